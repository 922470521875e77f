//! Accesses to memory in one instruction: by way of a segment register whose base is the cage's.
//!
//! uBPF confines a load or a store with five instructions: it copies the address, adds the
//! displacement, masks the sum, adds the base of the cage, and accesses. An access with a segment
//! prefix and a 32-bit address does all of that by itself: the processor adds register and
//! displacement modulo 2^32 and adds the base of the segment to that, whatever is in the register.
//! The cage is [`REACH`](crate::engine::cage::REACH) = 2^32 bytes of addresses, so there is nothing
//! else that such an instruction can reach.
//!
//! The machine code is changed in place: each sequence, which is known byte by byte from the BPF
//! instruction it was made for, becomes one access and then instructions that do nothing. Where the
//! code is not exactly what is expected (there is no such case known), it stays as it is, masked.
//! Atomic operations are masked too: their address has to be in a register.
//!
//! Jumps lead to the beginnings of sequences only, where the access is now.

/// Where uBPF has the registers of programs.
const HOST_REGISTERS: [u8; 11] = [0, 7, 6, 2, 10, 8, 3, 12, 13, 14, 15];

/// Registers that no program sees: for addresses and for constants.
const R11: u8 = 11;
const RCX: u8 = 1;

const GS_SEGMENT: u8 = 0x65;
const ADDRESS_32: u8 = 0x67;
const OPERAND_16: u8 = 0x66;

/// Bytes of the base in a masked sequence.
const BASE_BYTES: usize = 8;

/// The longest instruction there is.
const INSTRUCTION_BYTES_MAX: usize = 15;

/// Instructions that do nothing, of 1 to 10 bytes; longer ones have more prefixes.
const NOTHING: [&[u8]; 10] = [
    &[0x90],
    &[0x66, 0x90],
    &[0x0f, 0x1f, 0x00],
    &[0x0f, 0x1f, 0x40, 0x00],
    &[0x0f, 0x1f, 0x44, 0x00, 0x00],
    &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
    &[0x0f, 0x1f, 0x80, 0, 0, 0, 0],
    &[0x0f, 0x1f, 0x84, 0x00, 0, 0, 0, 0],
    &[0x66, 0x0f, 0x1f, 0x84, 0x00, 0, 0, 0, 0],
    &[0x66, 0x2e, 0x0f, 0x1f, 0x84, 0x00, 0, 0, 0, 0],
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Load,
    LoadSigned,
    Store,
    StoreConstant,
}

/// A load or a store of a program, with registers of the machine.
struct MemoryAccess {
    kind: Kind,
    bytes: u8,
    /// Holds the address.
    base: u8,
    /// What is loaded or stored; nothing for a constant.
    value: u8,
    displacement: i32,
    constant: i32,
}

/// An instruction of the machine but for its operands.
struct Operation {
    narrow: bool,
    wide: bool,
    opcode: &'static [u8],
}

const fn operation(narrow: bool, wide: bool, opcode: &'static [u8]) -> Operation {
    Operation {
        narrow,
        wide,
        opcode,
    }
}

impl MemoryAccess {
    /// Nothing if the slot is no plain load or store.
    fn decode(slot: u64) -> Option<MemoryAccess> {
        let opcode = slot as u8;
        let kind = match (opcode & 0x07, opcode & 0xe0) {
            (1, 0x60) => Kind::Load,
            (1, 0x80) => Kind::LoadSigned,
            (2, 0x60) => Kind::StoreConstant,
            (3, 0x60) => Kind::Store,
            _ => return None,
        };
        let register = |number: u64| HOST_REGISTERS.get(number as usize).copied();
        let (dst, src) = (register(slot >> 8 & 15)?, register(slot >> 12 & 15)?);
        let (base, value) = match kind {
            Kind::Load | Kind::LoadSigned => (src, dst),
            Kind::Store => (dst, src),
            Kind::StoreConstant => (dst, 0),
        };
        Some(MemoryAccess {
            kind,
            bytes: [4, 2, 1, 8][usize::from(opcode >> 3 & 3)],
            base,
            value,
            displacement: i32::from((slot >> 16) as u16 as i16),
            constant: (slot >> 32) as u32 as i32,
        })
    }

    fn operation(&self) -> Operation {
        match (self.kind, self.bytes) {
            (Kind::Load, 1) => operation(false, false, &[0x0f, 0xb6]),
            (Kind::Load, 2) => operation(false, false, &[0x0f, 0xb7]),
            (Kind::Load, bytes) => operation(false, bytes == 8, &[0x8b]),
            (Kind::LoadSigned, 1) => operation(false, true, &[0x0f, 0xbe]),
            (Kind::LoadSigned, 2) => operation(false, true, &[0x0f, 0xbf]),
            (Kind::LoadSigned, _) => operation(false, true, &[0x63]),
            (Kind::Store, 1) => operation(false, false, &[0x88]),
            (Kind::Store, bytes) => operation(bytes == 2, bytes == 8, &[0x89]),
            (Kind::StoreConstant, 1) => operation(false, false, &[0xc6]),
            (Kind::StoreConstant, bytes) => operation(bytes == 2, bytes == 8, &[0xc7]),
        }
    }

    /// What uBPF makes of it, but for the base of the cage: what stands before it and behind.
    fn masked(&self, mask: i32) -> (Vec<u8>, Vec<u8>) {
        let constant = self.kind == Kind::StoreConstant;
        let (address, scratch) = if constant { (RCX, R11) } else { (R11, RCX) };
        let mut before = between_registers(0x89, self.base, address).to_vec();
        if self.displacement != 0 {
            before.extend(with_constant(0x81, 0, address, self.displacement));
        }
        before.extend(with_constant(0x81, 4, address, mask));
        before.extend([0x48 | scratch >> 3, 0xb8 | scratch & 7]);
        let mut after = between_registers(0x01, scratch, address).to_vec();
        let (value, operation) = if constant {
            after.extend(with_constant(0xc7, 0, R11, self.constant));
            let store = MemoryAccess {
                kind: Kind::Store,
                ..*self
            };
            (R11, store.operation())
        } else {
            (self.value, self.operation())
        };
        after.extend(operation.narrow.then_some(OPERAND_16));
        after.push(extension(operation.wide, value, address));
        after.extend(operation.opcode);
        after.push((value & 7) << 3 | address & 7);
        (before, after)
    }

    /// The one instruction instead, in a long form (four bytes of displacement, a prefix twice): as
    /// much room is to be filled, and what fills it costs by the number of instructions.
    fn in_segment(&self) -> Vec<u8> {
        const WITH_DISPLACEMENT: u8 = 0x80;
        const NEEDS_INDEX_BYTE: u8 = 4;
        let Operation {
            narrow,
            wide,
            opcode,
        } = self.operation();
        let mut code = vec![GS_SEGMENT, ADDRESS_32, ADDRESS_32];
        code.extend(narrow.then_some(OPERAND_16));
        code.push(extension(wide, self.value, self.base));
        code.extend(opcode);
        let low = self.base & 7;
        code.push(WITH_DISPLACEMENT | (self.value & 7) << 3 | low);
        if low == NEEDS_INDEX_BYTE {
            code.push(0x24);
        }
        code.extend(self.displacement.to_le_bytes());
        if self.kind == Kind::StoreConstant {
            let bytes = usize::from(self.bytes.min(4));
            code.extend(&self.constant.to_le_bytes()[..bytes]);
        }
        code
    }
}

/// The prefix that tells the width and the upper bits of registers.
fn extension(wide: bool, register: u8, base: u8) -> u8 {
    0x40 | u8::from(wide) << 3 | register >> 3 << 2 | base >> 3
}

/// An instruction of 64 bits on two registers.
fn between_registers(opcode: u8, source: u8, target: u8) -> [u8; 3] {
    let registers = 0xc0 | (source & 7) << 3 | target & 7;
    [extension(true, source, target), opcode, registers]
}

/// An instruction of 64 bits on a register and a constant.
fn with_constant(opcode: u8, number: u8, target: u8, constant: i32) -> Vec<u8> {
    let [first, opcode, registers] = between_registers(opcode, number, target);
    let mut code = vec![first, opcode, registers];
    code.extend(constant.to_le_bytes());
    code
}

/// Makes one instruction of the sequence for the access in `slot`, which has the base of the cage at
/// byte `base_at` of `code` and masks with `mask`. Tells whether it did.
pub(super) fn replace(code: &mut [u8], base_at: usize, slot: u64, mask: i32) -> bool {
    let Some(access) = MemoryAccess::decode(slot) else {
        return false;
    };
    let (before, after) = access.masked(mask);
    let end = base_at + BASE_BYTES + after.len();
    let Some(start) = base_at.checked_sub(before.len()) else {
        return false;
    };
    let is_expected = code.get(start..base_at) == Some(&before)
        && code.get(base_at + BASE_BYTES..end) == Some(&after);
    if !is_expected {
        return false;
    }
    let instruction = access.in_segment();
    let (used, rest) = code[start..end].split_at_mut(instruction.len());
    used.copy_from_slice(&instruction);
    do_nothing(rest);
    true
}

/// Fills `code` with as few instructions as possible that do nothing.
fn do_nothing(code: &mut [u8]) {
    let count = code.len().div_ceil(INSTRUCTION_BYTES_MAX).max(1);
    for part in code.chunks_mut(code.len().div_ceil(count).max(1)) {
        let longest = NOTHING[part.len().min(NOTHING.len()) - 1];
        let (prefixes, instruction) = part.split_at_mut(part.len() - longest.len());
        prefixes.fill(OPERAND_16);
        instruction.copy_from_slice(longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_that_is_not_as_expected_stays() {
        // r2 = *(u64 *)(r1 + 8)
        let slot = 0x0008_1279;
        let access = MemoryAccess::decode(slot).unwrap();
        let (before, after) = access.masked(0xffff);
        let good = [&before[..], &[1; 8], &after].concat();
        let mut code = good.clone();
        assert!(replace(&mut code, before.len(), slot, 0xffff));
        assert_eq!(code.len(), good.len());
        assert_eq!(code[..7], [0x65, 0x67, 0x67, 0x48, 0x8b, 0xb7, 0x08]);
        for at in (0..before.len()).chain(before.len() + 8..good.len()) {
            let mut code = good.clone();
            code[at] ^= 1;
            let damaged = code.clone();
            assert!(!replace(&mut code, before.len(), slot, 0xffff));
            assert_eq!(code, damaged);
        }
        for (len, base_at) in [(good.len() - 1, before.len()), (good.len(), 3)] {
            let mut code = good[..len].to_vec();
            assert!(!replace(&mut code, base_at, slot, 0xffff));
            assert_eq!(code, good[..len]);
        }
    }

    #[test]
    fn rooms_of_every_length_are_filled() {
        for (before, code) in NOTHING.iter().enumerate() {
            assert_eq!(code.len(), before + 1);
        }
        let count = |code: &[u8]| code.windows(3).filter(|w| w[..2] == [0x0f, 0x1f]).count();
        for len in 0..60 {
            let mut code = vec![0xcc; len];
            do_nothing(&mut code);
            assert!(!code.contains(&0xcc));
            assert!(len < 3 || count(&code) == len.div_ceil(15), "{len}");
        }
    }
}
