//! Programs: from an object file, as `clang -target bpf -c` writes it, to checked instructions.
//!
//! [`Program::link`] reads the object (`elf`), links the functions reachable from the entry and
//! the data they refer to (`link`, `layout`) and validates every instruction (`validate`), so
//! that an engine gets nothing but instructions it knows, jumps within a function and calls of the
//! starts of functions. A program is immutable and has no address: [`Program::instructions`] and
//! [`Program::data_at`] give it one.
//!
//! What is absent: indirect calls, maps, BTF, CO-RE, and any knowledge of what the program does;
//! that memory accesses stay where they belong is up to the cage.

mod elf;
pub mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod helpers;
pub mod insn;
mod layout;
mod link;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod validate;

use sha2::{Digest, Sha256};

pub use error::{LinkProblem, LoadError, Place, Violation};
pub use helpers::{HELPERS, HelperName, helper_name, helper_number};
use insn::Insn;

/// Data starts on a page of this many bytes.
pub const PAGE: u64 = 4096;

/// Bytes of stack a frame has at least, and all that clang uses by default.
pub const FRAME_BYTES: u32 = 512;

/// What an object may hold at most, and where to start in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkLimits {
    /// Name of the function to start with. By default `main`, else the only global function.
    pub entry: Option<String>,
    /// Bytes of the object file, debug information included. Default 4 MiB.
    pub object_bytes: u64,
    /// Sections of the object. Default 4096.
    pub sections: u64,
    /// Symbols of the object. Default 65536.
    pub symbols: u64,
    /// Relocations in sections with a place in memory. Default 65536.
    pub relocations: u64,
    /// Functions of the object. Default 4096.
    pub functions: u64,
    /// Slots of the linked program. Default, and the most the engine takes: 65535.
    pub instructions: u64,
    /// Bytes of constants. Default 1 MiB.
    pub read_only_bytes: u64,
    /// Bytes of variables with initial values. Default 1 MiB.
    pub initialised_bytes: u64,
    /// Bytes of variables that start as zeros. Default 16 MiB.
    pub zeroed_bytes: u64,
    /// Bytes of one stack frame. Default 512, as of clang; at most [`LinkLimits::MAX_STACK`].
    pub stack_bytes: u32,
}

impl LinkLimits {
    /// The largest stack frame the engine can be told of.
    pub const MAX_STACK: u32 = 32 << 10;
    /// The most slots the engine takes.
    pub const MAX_INSTRUCTIONS: u64 = 65535;
}

impl Default for LinkLimits {
    fn default() -> LinkLimits {
        LinkLimits {
            entry: None,
            object_bytes: 4 << 20,
            sections: 4096,
            symbols: 65536,
            relocations: 65536,
            functions: 4096,
            instructions: LinkLimits::MAX_INSTRUCTIONS,
            read_only_bytes: 1 << 20,
            initialised_bytes: 1 << 20,
            zeroed_bytes: 16 << 20,
            stack_bytes: FRAME_BYTES,
        }
    }
}

/// A function of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name, cut and escaped.
    pub name: String,
    /// The section of the object it comes from, cut and escaped.
    pub section: String,
    /// Its first slot in the program.
    pub first: usize,
    /// How many slots it has.
    pub slots: usize,
    /// Its first slot in the section it comes from.
    pub first_in_section: usize,
    /// Bytes of its stack frame: a multiple of 16, at least [`FRAME_BYTES`], at least as far below
    /// r10 as it visibly reaches.
    pub stack_bytes: u32,
}

/// The initial data of a program: constants from the start, then, from the next page on, variables
/// with initial values, and zeroed variables right behind those.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Data {
    /// Constants.
    pub read_only: Vec<u8>,
    /// Variables with initial values.
    pub initialised: Vec<u8>,
    /// Bytes of variables that start as zeros.
    pub zeroed: u64,
}

impl Data {
    /// Where [`Data::initialised`] starts, from the start of the data: a multiple of [`PAGE`].
    #[must_use]
    pub fn initialised_at(&self) -> u64 {
        (self.read_only.len() as u64).next_multiple_of(PAGE)
    }

    /// Where the zeroed variables start, from the start of the data.
    #[must_use]
    pub fn zeroed_at(&self) -> u64 {
        self.initialised_at() + self.initialised.len() as u64
    }

    /// Bytes from the start of the data to its end.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.zeroed_at() + self.zeroed
    }
}

/// A 64-bit constant load whose value is the address of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AddressFixup {
    /// Its first slot.
    slot: usize,
    /// What it points at, from the start of the data.
    offset: i64,
}

/// A pointer in the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DataPointer {
    /// Where it is, from the start of the data.
    at: u64,
    /// 8, or 4 for the lower half of an address, which masks to the same place.
    bytes: u8,
    /// What it points at, from the start of the data.
    offset: i64,
}

/// A linked and validated program.
#[derive(Clone, Debug)]
pub struct Program {
    hash: [u8; 32],
    slots: Vec<u64>,
    functions: Vec<Function>,
    fixups: Vec<AddressFixup>,
    data: Data,
    pointers: Vec<DataPointer>,
    helpers: Vec<u32>,
}

impl Program {
    /// Links and validates the object file `object`.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn link(object: &[u8], limits: &LinkLimits) -> Result<Program, LoadError> {
        let parsed = elf::Object::parse(object, limits)?;
        let linked = link::link(&parsed, limits)?;
        Program::validated(linked, Sha256::digest(object).into(), limits)
    }

    /// A program without data made of these slots, for tests of engines: execution starts at slot
    /// 0, and functions start there and wherever a call of a function leads.
    ///
    /// # Errors
    /// What is wrong with the instructions.
    pub fn from_slots(slots: &[u64], limits: &LinkLimits) -> Result<Program, LoadError> {
        check_limit("instructions", slots.len() as u64, limits.instructions)?;
        let mut digest = Sha256::new();
        for slot in slots {
            digest.update(slot.to_le_bytes());
        }
        let linked = link::Linked {
            slots: slots.to_vec(),
            functions: functions_by_calls(slots),
            fixups: Vec::new(),
            data: Data::default(),
            pointers: Vec::new(),
        };
        Program::validated(linked, digest.finalize().into(), limits)
    }

    fn validated(
        linked: link::Linked,
        hash: [u8; 32],
        limits: &LinkLimits,
    ) -> Result<Program, LoadError> {
        let mut functions = linked.functions;
        let helpers = validate::validate(&linked.slots, &mut functions, limits)?;
        Ok(Program {
            hash,
            slots: linked.slots,
            functions,
            fixups: linked.fixups,
            data: linked.data,
            pointers: linked.pointers,
            helpers,
        })
    }

    /// SHA-256 of the object.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// Name of the function that execution starts with, at slot 0.
    #[must_use]
    pub fn entry_name(&self) -> &str {
        self.functions.first().map_or("", |entry| &entry.name)
    }

    /// The functions, in the order of their slots, which they cover without a gap.
    #[must_use]
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// Numbers of the helpers it calls, ascending.
    #[must_use]
    pub fn helpers(&self) -> &[u32] {
        &self.helpers
    }

    /// How many slots it has.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Its data as the object has it, with pointers that have not been filled in: for sizes.
    #[must_use]
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// Whether its data holds pointers, so that it differs from place to place.
    #[must_use]
    pub fn data_has_pointers(&self) -> bool {
        !self.pointers.is_empty()
    }

    /// Its slots when the data is placed at `data_base`, a multiple of [`PAGE`].
    #[must_use]
    pub fn instructions(&self, data_base: u64) -> Vec<u64> {
        let mut slots = self.slots.clone();
        for fixup in &self.fixups {
            let address = data_base.wrapping_add_signed(fixup.offset);
            let halves = [address as u32, (address >> 32) as u32];
            for (slot, half) in slots.iter_mut().skip(fixup.slot).zip(halves) {
                let insn = Insn::decode(*slot);
                *slot = Insn {
                    imm: half.cast_signed(),
                    ..insn
                }
                .encode();
            }
        }
        slots
    }

    /// First slots of the constant loads that refer to data, with what they point at from the
    /// start of the data.
    pub(crate) fn data_references(&self) -> impl Iterator<Item = (usize, i64)> {
        self.fixups.iter().map(|fixup| (fixup.slot, fixup.offset))
    }

    /// Where slot `slot` comes from.
    #[must_use]
    pub fn place(&self, slot: usize) -> Option<Place> {
        let after = self.functions.partition_point(|f| f.first <= slot);
        let function = self.functions.get(after.checked_sub(1)?)?;
        let within = (slot - function.first < function.slots).then_some(slot - function.first)?;
        Some(Place {
            section: function.section.clone(),
            function: function.name.clone(),
            instruction: function.first_in_section + within,
        })
    }

    /// Its data when placed at `data_base`, a multiple of [`PAGE`].
    #[must_use]
    pub fn data_at(&self, data_base: u64) -> Data {
        let mut data = self.data.clone();
        let variables = data.initialised_at();
        for pointer in &self.pointers {
            let (image, at) = match pointer.at.checked_sub(variables) {
                Some(at) => (&mut data.initialised, at),
                None => (&mut data.read_only, pointer.at),
            };
            let address = data_base.wrapping_add_signed(pointer.offset).to_le_bytes();
            let target = image
                .iter_mut()
                .skip(usize::try_from(at).unwrap_or(usize::MAX));
            for (to, from) in target.zip(&address[..pointer.bytes.into()]) {
                *to = *from;
            }
        }
        data
    }
}

/// Functions that start at slot 0 and at every target of a call.
fn functions_by_calls(slots: &[u64]) -> Vec<Function> {
    let mut starts = vec![0usize];
    for (index, slot) in slots.iter().enumerate() {
        let insn = Insn::decode(*slot);
        let after_constant = index
            .checked_sub(1)
            .is_some_and(|before| Insn::decode(slots[before]).opcode == insn::LDDW);
        if insn.opcode == insn::CALL && insn.src == 1 && !after_constant {
            let target = index as i64 + 1 + i64::from(insn.imm);
            starts.extend(usize::try_from(target).ok().filter(|&t| t < slots.len()));
        }
    }
    starts.sort_unstable();
    starts.dedup();
    let ends = starts.iter().skip(1).copied().chain([slots.len()]);
    starts
        .iter()
        .zip(ends)
        .enumerate()
        .map(|(number, (&first, end))| Function {
            name: format!("function{number}"),
            section: "(none)".to_owned(),
            first,
            slots: end - first,
            first_in_section: first,
            stack_bytes: 0,
        })
        .collect()
}

/// Refuses `found` above `limit`.
fn check_limit(what: &'static str, found: u64, limit: u64) -> Result<(), LoadError> {
    if found <= limit {
        return Ok(());
    }
    Err(LoadError::TooLarge { what, found, limit })
}
