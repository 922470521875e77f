//! Programs compiled to machine code whose every load and store is confined to one cage.
//!
//! uBPF masks addresses and adds the base of the cage, which is a constant in the code. Plain loads
//! and stores are then made single instructions that have the base in a segment register (module
//! `segment`); what stays masked are atomic operations.
//!
//! To compile once for all cages, a program is compiled for random bases of the cage and of its
//! static data ([`Bases`]), and the 64-bit constants that are these bases, or addresses in the data,
//! are found in the code, and replaced for each cage. That the right ones are found is not left to
//! chance: there must be as many as the program has accesses to memory and addresses of data, and
//! no program can name a base it does not know.
//!
//! The code lies in pages of its own that are writable while it is made and executable afterwards,
//! never both.

use std::ptr::null_mut;

use super::ffi;
use super::machine::{Machine, outcome};
use super::segment;
use crate::engine::cage::{Cage, Layout, Region};
use crate::engine::{Code, Deadline, Engine, Exit, Helpers, Linked, Prepared, guard};

/// Upper bounds of the code of a slot, and of what every program has.
const BYTES_PER_SLOT: usize = 192;
const BYTES_FIXED: usize = 4096;

/// How far from the start of the data an address may be that refers to it: compilers form such as
/// that of an element before the first one, and instructions have room for 32 bits of distance.
const REACH: u64 = 1 << 33;

/// How often to compile with other bases when constants of the program look like them.
const TRIES: usize = 3;

/// The engine of production.
#[derive(Clone, Copy, Debug, Default)]
pub struct Compiler;

impl Engine for Compiler {
    fn prepare(&self, program: &Linked<'_>, layout: &Layout) -> Result<Box<dyn Prepared>, String> {
        prepare(program, layout, Masking::On)
    }
}

/// Compiles without masks, which leaves nothing between a program and the memory of the process:
/// for measuring what the masks cost, with programs one trusts.
#[cfg(feature = "measure-uncaged")]
#[derive(Clone, Copy, Debug, Default)]
pub struct UncagedCompiler;

#[cfg(feature = "measure-uncaged")]
impl Engine for UncagedCompiler {
    fn prepare(&self, program: &Linked<'_>, layout: &Layout) -> Result<Box<dyn Prepared>, String> {
        prepare(program, layout, Masking::Off)
    }
}

/// Whether loads and stores are masked into the cage.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Masking {
    On,
    #[cfg(feature = "measure-uncaged")]
    Off,
}

fn prepare(
    program: &Linked<'_>,
    layout: &Layout,
    masking: Masking,
) -> Result<Box<dyn Prepared>, String> {
    for _ in 0..TRIES {
        if let Some(template) = Template::new(program, layout, masking)? {
            return Ok(Box::new(template));
        }
    }
    Err("its constants cannot be told from addresses".to_owned())
}

/// Bases a program is compiled for before its cage is known.
struct Bases {
    cage: u64,
    data: u64,
}

impl Bases {
    /// Random ones, which take 64 bits to write and are too far apart to be mistaken.
    fn random() -> Result<Bases, String> {
        let mut bytes = [0u8; 16];
        // SAFETY: the buffer is writable for its length.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        if got != bytes.len() as isize {
            return Err(system("random numbers"));
        }
        let number = |half: &[u8]| half.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
        let (first, second) = bytes.split_at(8);
        Ok(Bases {
            cage: number(first) >> 2 | 1 << 62,
            data: number(second) >> 3 | 1 << 61,
        })
    }

    /// Whether `value` is an address of static data, or refers to such a one.
    fn is_data(&self, value: u64) -> bool {
        value.wrapping_sub(self.data).wrapping_add(REACH) < 2 * REACH
    }
}

/// What has to become of a constant in the code.
#[derive(Clone, Copy)]
enum Patch {
    /// The base of the cage.
    Base,
    /// The address of this byte of the static data; those before it are as negative.
    Data(u64),
}

/// Code for any cage of a layout.
struct Template {
    layout: Layout,
    code: Vec<u8>,
    /// Where the constants are in the code.
    patches: Vec<(usize, Patch)>,
}

impl Template {
    /// Nothing if other constants look like the ones to be replaced.
    fn new(
        program: &Linked<'_>,
        layout: &Layout,
        masking: Masking,
    ) -> Result<Option<Template>, String> {
        let bases = Bases::random()?;
        let instructions = (program.instructions)(bases.data);
        let machine = Machine::load(&instructions, program.functions)?;
        let mask = mask(layout, masking)?;
        let mut code = translate(&machine, instructions.len(), mask, &bases)?;
        let mut patches = find(&code, &bases);
        let (accesses, addresses) = expect(&instructions, &bases, masking);
        let based = patches.iter().filter(|patch| patch.1.is_base()).count();
        if (based, patches.len() - based) != (accesses.len(), addresses) {
            return Ok(None);
        }
        // uBPF goes through the program in order, and so do both of these.
        let mut accesses = accesses.into_iter();
        patches.retain(|(at, patch)| {
            let access = patch.is_base().then(|| accesses.next()).flatten();
            !access.is_some_and(|slot| segment::replace(&mut code, *at, slot, mask))
        });
        Ok(Some(Template {
            layout: *layout,
            code,
            patches,
        }))
    }
}

impl Patch {
    fn is_base(&self) -> bool {
        matches!(self, Patch::Base)
    }
}

/// What uBPF masks addresses with; 0 for not at all.
fn mask(layout: &Layout, masking: Masking) -> Result<i32, String> {
    let mask = match masking {
        Masking::On => layout.size() - 1,
        #[cfg(feature = "measure-uncaged")]
        Masking::Off => 0,
    };
    i32::try_from(mask).map_err(|_| "the cage is too large".to_owned())
}

impl Prepared for Template {
    fn bind(&self, cage: &Cage) -> Result<Box<dyn Code>, String> {
        if self.layout != *cage.layout() {
            return Err("the cage has another layout".to_owned());
        }
        let mut pages = CodePages::writable(self.code.len())?;
        let code = pages.bytes();
        code.copy_from_slice(&self.code);
        let (base, data) = (cage.base(), cage.address(Region::Data));
        for (at, patch) in &self.patches {
            let value = match patch {
                Patch::Base => base,
                Patch::Data(offset) => data.wrapping_add(*offset),
            };
            code[*at..*at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let code = pages.executable()?;
        Ok(Box::new(Compiled { code, base }))
    }
}

/// Machine code of the program in `machine`.
fn translate(machine: &Machine, slots: usize, mask: i32, bases: &Bases) -> Result<Vec<u8>, String> {
    let mut code = vec![0; slots * BYTES_PER_SLOT + BYTES_FIXED];
    let mut len = code.len();
    let mut error = null_mut();
    // SAFETY: the machine is valid, has a program loaded and is in nobody else's use; uBPF writes
    // no more than `len` bytes.
    let done = unsafe {
        ffi::ubpf_set_jit_pointer_mask_and_offset(machine.vm(), mask, bases.cage as usize);
        let buffer = code.as_mut_ptr();
        ffi::ubpf_translate_ex(
            machine.vm(),
            buffer,
            &mut len,
            &mut error,
            ffi::EXTENDED_MODE,
        )
    };
    outcome(done, error)?;
    code.truncate(len);
    Ok(code)
}

/// The constants in `code` that are bases.
fn find(code: &[u8], bases: &Bases) -> Vec<(usize, Patch)> {
    let patch = |window: &[u8]| {
        let value = u64::from_le_bytes(window.try_into().expect("a window of 8 bytes"));
        if value == bases.cage {
            Some(Patch::Base)
        } else if bases.is_data(value) {
            Some(Patch::Data(value.wrapping_sub(bases.data)))
        } else {
            None
        }
    };
    let windows = code.windows(8).enumerate();
    windows
        .filter_map(|(at, window)| Some((at, patch(window)?)))
        .collect()
}

/// What there must be: the masked accesses to memory, each with one base, in their order; and how
/// many addresses of data, each a constant.
fn expect(instructions: &[u64], bases: &Bases, masking: Masking) -> (Vec<u64>, usize) {
    const LDDW: u8 = 0x18;
    let (mut accesses, mut addresses) = (Vec::new(), 0);
    let mut slots = instructions.iter();
    while let Some(slot) = slots.next() {
        let opcode = *slot as u8;
        if opcode == LDDW {
            let high = slots.next().map_or(0, |second| second >> 32);
            let value = high << 32 | slot >> 32;
            addresses += usize::from(bases.is_data(value));
        } else if matches!(opcode & 7, 1..=3) && masking == Masking::On {
            accesses.push(*slot);
        }
    }
    (accesses, addresses)
}

struct Compiled {
    code: ExecutablePages,
    base: u64,
}

impl Code for Compiled {
    fn run(
        &self,
        cage: &mut Cage,
        arguments: [u64; 2],
        helpers: &mut dyn Helpers,
        deadline: Deadline,
    ) -> Exit {
        assert_eq!(self.base, cage.base(), "code of another cage");
        let program = guard::Program::Compiled {
            start: self.code.0.start as u64,
            len: self.code.0.len as u64,
        };
        // SAFETY: uBPF compiled it, bound to this cage: its accesses are masked into there or go by
        // way of the segment register, it uses the stack by balanced pushes and calls, and calls the
        // dispatcher only. The pages are executable and stay while `self` is borrowed.
        unsafe { guard::run(program, cage, arguments, helpers, deadline) }
    }
}

/// Pages of machine code.
struct CodePages {
    start: usize,
    /// Bytes of code.
    len: usize,
    /// Bytes mapped.
    mapped: usize,
}

impl CodePages {
    fn writable(len: usize) -> Result<CodePages, String> {
        let mapped = len.next_multiple_of(4096);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: no address is asked for, so nothing that exists is replaced.
        let start = unsafe { libc::mmap(null_mut(), mapped, writable, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(system("mapping pages for code"));
        }
        let start = start as usize;
        Ok(CodePages { start, len, mapped })
    }

    /// The code while it is being made.
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped writable by `writable`, as `executable` takes `self`; exclusively ours.
        unsafe { std::slice::from_raw_parts_mut(self.start as *mut u8, self.len) }
    }

    fn executable(self) -> Result<ExecutablePages, String> {
        let access = libc::PROT_READ | libc::PROT_EXEC;
        // SAFETY: the range is the mapping of `self`, which nobody has borrowed.
        if unsafe { libc::mprotect(self.start as *mut _, self.mapped, access) } != 0 {
            return Err(system("making code executable"));
        }
        Ok(ExecutablePages(self))
    }
}

/// Pages of machine code, no longer writable.
struct ExecutablePages(CodePages);

impl Drop for CodePages {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody can run it any more.
        unsafe { libc::munmap(self.start as *mut _, self.mapped) };
    }
}

fn system(what: &str) -> String {
    format!("{what}: {}", std::io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cage::CageConfig;

    #[test]
    fn only_atomic_operations_have_the_base_of_the_cage_in_their_code() {
        let layout = Layout::new(&CageConfig::default()).unwrap();
        // Loads, loads that extend a sign, stores of constants and of registers; then, of 4 and of 8
        // bytes, an addition. Base r1, and what takes other encodings: r6, r7, r8, r10.
        let plain = [0x61, 0x69, 0x71, 0x79, 0x81, 0x89, 0x91];
        let constants = [0x62, 0x6a, 0x72, 0x7a];
        let stores = [0x63, 0x6b, 0x73, 0x7b];
        let mut code = Vec::new();
        for base in [1u64, 6, 7, 8, 10] {
            for offset in [0u64, 8, 0xfff8, 0x1000, 0x8000] {
                code.extend(plain.map(|opcode| opcode | base << 12 | offset << 16));
                code.extend(constants.map(|opcode| opcode | base << 8 | offset << 16 | 7 << 32));
                code.extend(stores.map(|opcode| opcode | base << 8 | offset << 16));
            }
        }
        code.extend([0xc3 | 1 << 8, 0xdb | 1 << 8, 0x95]);
        let program = Linked {
            instructions: &|_| code.clone(),
            functions: &[],
        };
        let template = Template::new(&program, &layout, Masking::On)
            .unwrap()
            .unwrap();
        assert_eq!(template.patches.len(), 2);
    }
}
