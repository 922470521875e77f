//! The verifier's view of a program: its instructions, a start, and models of the helpers.
//!
//! PREVAIL knows helpers by the types of their arguments. What those types cannot say (a size
//! before its pointer, a pointer handed back through memory) is said in instructions: the call is
//! turned into a call of a few instructions appended to the program, which call simpler, made-up
//! helpers. The program's data becomes one memory region of known size, and so does whatever a helper
//! gives access to, provided that the size is a constant in the stretch of code that calls it.

use std::collections::{BTreeMap, BTreeSet};

use prevail::linux::spec_prototypes::HelperPrototype;
use prevail::spec::ebpf_base::{EbpfArgumentType as Argument, EbpfReturnType as Return};

use crate::program::insn::{CALL, EXIT, Insn, Kind, LDDW, MOV64_IMM, MOV64_REG};
use crate::program::{Program, helper_name};

/// Bytes of the request description that a program is started with (`struct warren_request`).
pub const REQUEST_BYTES: i32 = 80;
/// Bytes of heap that `bpf_get_mem_info` is taken to give, as much as by default.
const HEAP_BYTES: i32 = 64 << 20;
/// Bytes that `bpf_get_call_info` is taken to give: a description and some 8000 addresses.
const CALL_BYTES: i32 = 64 << 10;
/// Slots in front of the program: they set r2, which holds the size of the request description.
pub(super) const START_SLOTS: usize = 1;

/// Reads memory: address, size.
const READS: i32 = 1000;
/// Fills memory: address, size.
const FILLS: i32 = 1001;
/// Updates 8 bytes: address.
const UPDATES: i32 = 1002;
/// Returns a region, or null: region.
const PROVIDES: i32 = 1003;
/// Returns any number.
const ANSWERS: i32 = 1004;

/// A program in the verifier's view.
pub(super) struct Modelled {
    pub(super) slots: Vec<u64>,
    /// Bytes of the regions of memory that it refers to by their numbers. The first is its data.
    pub(super) regions: Vec<u32>,
    /// The functions, those that stand for helpers included: first slots and slots. The first one
    /// is the start with the program's entry.
    pub(super) functions: Vec<(usize, usize)>,
}

/// The verifier's view of `program`.
pub(super) fn model(program: &Program) -> Modelled {
    let mut modelled = Modelled {
        slots: vec![mov(2, REQUEST_BYTES).encode()],
        regions: vec![u32::try_from(program.data().size()).unwrap_or(u32::MAX)],
        functions: Vec::new(),
    };
    modelled.slots.extend(program.instructions(0));
    modelled.refer_to_data(program);
    let own = program.functions().iter();
    let own = own.map(|f| (f.first + START_SLOTS, f.slots));
    let start = (
        0,
        program.functions().first().map_or(0, |f| f.slots) + START_SLOTS,
    );
    modelled.functions.push(start);
    modelled.functions.extend(own);
    modelled.stand_in_for_helpers();
    modelled
}

impl Modelled {
    /// Turns loads of the addresses of data into references to the region.
    fn refer_to_data(&mut self, program: &Program) {
        for (slot, offset) in program.data_references() {
            let at = slot + START_SLOTS;
            let load = Insn::decode(self.slots[at]);
            let offset = i32::try_from(offset).unwrap_or(i32::MIN);
            let [low, high] = region_address(load.dst, 0, offset);
            self.slots[at] = low.encode();
            self.slots[at + 1] = high.encode();
        }
    }

    /// Turns calls of helpers that prototypes cannot describe into calls of what stands for them.
    fn stand_in_for_helpers(&mut self) {
        let mut known: BTreeMap<(u32, Option<i32>), usize> = BTreeMap::new();
        let targets = jump_targets(&self.slots);
        let (mut at, end) = (0, self.slots.len());
        // The values of registers that constants were moved to.
        let mut constants = [None; 16];
        while at < end {
            let insn = Insn::decode(self.slots[at]);
            if targets.contains(&at) {
                constants = [None; 16];
            }
            if insn.opcode == CALL && insn.src == 0 {
                let helper = insn.imm as u32;
                let size = sized_by(helper).and_then(|register| constants[register]);
                let target = match known.get(&(helper, size)) {
                    Some(target) => Some(*target),
                    None => self.stand_in(helper, size),
                };
                if let Some(target) = target {
                    known.insert((helper, size), target);
                    let distance = target as i64 - at as i64 - 1;
                    self.slots[at] = local_call(distance).encode();
                }
            }
            follow_constants(&mut constants, insn);
            at += if insn.opcode == LDDW { 2 } else { 1 };
        }
    }

    /// Appends what stands for a helper whose result has `size` bytes, and returns where it is.
    fn stand_in(&mut self, helper: u32, size: Option<i32>) -> Option<usize> {
        let region = self.regions.len() as i32;
        let (body, bytes) = stand_in(helper, size, region)?;
        self.regions.extend(bytes);
        let at = self.slots.len();
        self.functions.push((at, body.len()));
        self.slots.extend(body.iter().map(|insn| insn.encode()));
        Some(at)
    }
}

/// The register that tells how many bytes a helper gives access to.
fn sized_by(helper: u32) -> Option<usize> {
    match helper_name(helper)? {
        "warren_map" => Some(2),
        "warren_reserve" => Some(1),
        _ => None,
    }
}

fn jump_targets(slots: &[u64]) -> BTreeSet<usize> {
    let targets = slots.iter().enumerate().filter_map(|(at, slot)| {
        let insn = Insn::decode(*slot);
        let distance = match insn.kind()? {
            Kind::Jump | Kind::Branch { .. } => i64::from(insn.offset),
            Kind::JumpLong => i64::from(insn.imm),
            _ => return None,
        };
        usize::try_from(at as i64 + 1 + distance).ok()
    });
    targets.collect()
}

/// Keeps track of which registers hold constants after `insn`.
fn follow_constants(constants: &mut [Option<i32>; 16], insn: Insn) {
    let moved = match insn.opcode {
        // The 32-bit move, of a number that the wider one would not extend by its sign.
        MOV64_IMM | 0xb4 if insn.imm >= 0 => Some(insn.imm),
        MOV64_REG | 0xbc if insn.offset == 0 => constants[usize::from(insn.src)],
        _ => None,
    };
    match insn.kind() {
        Some(Kind::Arithmetic { .. } | Kind::Swap | Kind::Constant | Kind::Load(_)) => {
            constants[usize::from(insn.dst)] = moved;
        }
        Some(Kind::Store(_) | Kind::StoreImmediate(_) | Kind::Branch { .. }) => {}
        Some(Kind::Call) => constants[..6].fill(None),
        _ => constants.fill(None),
    }
}

const fn insn(opcode: u8, dst: u8, src: u8, offset: i16, imm: i32) -> Insn {
    Insn {
        opcode,
        dst,
        src,
        offset,
        imm,
    }
}

const fn mov(dst: u8, imm: i32) -> Insn {
    insn(MOV64_IMM, dst, 0, 0, imm)
}

const fn copy(dst: u8, src: u8) -> Insn {
    insn(MOV64_REG, dst, src, 0, 0)
}

const fn call(helper: i32) -> Insn {
    insn(CALL, 0, 0, 0, helper)
}

const fn local_call(distance: i64) -> Insn {
    insn(CALL, 0, 1, 0, distance as i32)
}

/// `*(u64 *)to = from`
const fn store(to: u8, from: u8) -> Insn {
    insn(0x7b, to, from, 0, 0)
}

const RETURN: Insn = insn(EXIT, 0, 0, 0, 0);

/// The address of byte `offset` of a region.
const fn region_address(dst: u8, region: i32, offset: i32) -> [Insn; 2] {
    [insn(LDDW, dst, 2, 0, region), insn(0, 0, 0, 0, offset)]
}

/// The number of a region.
const fn region_number(dst: u8, region: i32) -> [Insn; 2] {
    [insn(LDDW, dst, 1, 0, region), insn(0, 0, 0, 0, 0)]
}

/// The instructions that stand for a helper, for those whose arguments a prototype cannot describe,
/// and the bytes of the `region` that they refer to, if they do. The size is that of the memory the
/// helper gives access to, where it is a constant; otherwise what it gives is no pointer.
fn stand_in(helper: u32, size: Option<i32>, region: i32) -> Option<(Vec<Insn>, Option<u32>)> {
    let mut bytes = None;
    let body = match (helper_name(helper)?, size) {
        // (zone, sector, offset, size, data)
        ("bpf_read", _) => vec![copy(1, 5), copy(2, 4), call(FILLS), RETURN],
        // (zone, *sector, offset, size, data)
        ("bpf_write", _) => vec![
            copy(6, 5),
            copy(7, 4),
            copy(1, 2),
            call(UPDATES),
            copy(1, 6),
            copy(2, 7),
            call(READS),
            RETURN,
        ],
        // (**memory, *size)
        ("bpf_get_mem_info", _) => {
            bytes = Some(HEAP_BYTES);
            let [low, high] = region_address(0, region, 0);
            let size = mov(3, HEAP_BYTES);
            vec![low, high, store(1, 0), size, store(2, 3), mov(0, 0), RETURN]
        }
        // (**call)
        ("bpf_get_call_info", _) => {
            bytes = Some(CALL_BYTES);
            let [low, high] = region_address(0, region, 0);
            vec![low, high, store(1, 0), mov(0, 0), RETURN]
        }
        // (text), of unknown length
        ("bpf_debug", _) => vec![mov(2, 1), call(READS), RETURN],
        // (offset, size, **at): returns at most size
        ("warren_map", Some(size)) => {
            bytes = Some(size);
            let [low, high] = region_address(0, region, 0);
            let at_most = insn(0xd5, 0, 0, 1, size);
            let number = call(ANSWERS);
            vec![
                low,
                high,
                store(3, 0),
                number,
                at_most,
                mov(0, size),
                RETURN,
            ]
        }
        ("warren_map", None) => vec![mov(0, 0), store(3, 0), call(ANSWERS), RETURN],
        // (size)
        ("warren_reserve", Some(size)) => {
            bytes = Some(size);
            let [low, high] = region_number(1, region);
            vec![low, high, call(PROVIDES), RETURN]
        }
        ("warren_reserve", None) => vec![call(ANSWERS), RETURN],
        _ => return None,
    };
    Some((body, bytes.map(i32::unsigned_abs)))
}

const fn prototype(name: &'static str, returns: Return, takes: &[Argument]) -> HelperPrototype {
    let mut argument_type = [Argument::DontCare; 5];
    let mut i = 0;
    while i < takes.len() {
        argument_type[i] = takes[i];
        i += 1;
    }
    HelperPrototype {
        name,
        return_type: returns,
        argument_type,
        reallocate_packet: false,
        ctx_descriptor: None,
        unsupported: false,
        might_sleep: false,
        zero_args_mask: 0,
        allowed_map_types: 0,
    }
}

const READ: Argument = Argument::PtrToReadableMem;
const FILL: Argument = Argument::PtrToWritableMem;
const SIZE: Argument = Argument::ConstSizeOrZero;
const ANY: Argument = Argument::Anything;
const NUMBER: Return = Return::Integer;
const MEMORY: Return = Return::PtrToMapValueOrNull;

/// The helpers whose arguments a prototype describes, and the made-up ones.
static PROTOTYPES: &[(i32, HelperPrototype)] = &[
    (1, prototype("bpf_return_data", NUMBER, &[READ, SIZE])),
    (4, prototype("bpf_get_sector_size", NUMBER, &[])),
    (5, prototype("bpf_get_zone_capacity", NUMBER, &[])),
    (6, prototype("bpf_get_zone_size", NUMBER, &[])),
    (32, prototype("warren_request", NUMBER, &[FILL, SIZE])),
    (34, prototype("warren_read", NUMBER, &[ANY, FILL, SIZE])),
    (35, prototype("warren_emit", NUMBER, &[READ, SIZE])),
    (37, prototype("warren_append", NUMBER, &[READ, SIZE])),
    (
        38,
        prototype("warren_argument", NUMBER, &[ANY, Argument::PtrToLong]),
    ),
    (39, prototype("warren_log", NUMBER, &[READ, SIZE])),
    (40, prototype("warren_trim", NUMBER, &[ANY])),
    (41, prototype("warren_unmap", NUMBER, &[])),
    (READS, prototype("(read)", NUMBER, &[READ, SIZE])),
    (FILLS, prototype("(fill)", NUMBER, &[FILL, SIZE])),
    (
        UPDATES,
        prototype("(update)", NUMBER, &[Argument::PtrToLong]),
    ),
    (
        PROVIDES,
        prototype("(provide)", MEMORY, &[Argument::PtrToMap]),
    ),
    (ANSWERS, prototype("(answer)", NUMBER, &[])),
];

/// What the verifier is told of helper `number`.
pub(super) fn helper_prototype(number: i32) -> Option<&'static HelperPrototype> {
    PROTOTYPES
        .iter()
        .find(|(known, _)| *known == number)
        .map(|(_, prototype)| prototype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::HELPERS;

    #[test]
    fn every_helper_has_either_a_prototype_or_a_stand_in() {
        for helper in HELPERS {
            let prototype = helper_prototype(helper.number as i32);
            assert!(prototype.is_none_or(|p| p.name == helper.name));
            assert!(prototype.is_some() != stand_in(helper.number, None, 0).is_some());
        }
    }
}
