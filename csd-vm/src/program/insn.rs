//! BPF instructions: encoding, and which opcodes exist (RFC 9669, as far as the engine goes).
//!
//! A slot is the 8 bytes of one instruction as a little-endian `u64`; a 64-bit constant load takes
//! two. Legacy packet access and map or type references are no part of this.

/// First slot of a 64-bit constant load.
pub const LDDW: u8 = 0x18;
/// Call of a helper (source 0) or a function of the program (source 1).
pub const CALL: u8 = 0x85;
/// Call through a register, which is refused.
pub const CALL_REGISTER: u8 = 0x8d;
/// Return.
pub const EXIT: u8 = 0x95;
/// Jump by the offset field.
pub const JA: u8 = 0x05;
/// Jump by the immediate field.
pub const JA_LONG: u8 = 0x06;
/// 64-bit addition of an immediate.
pub const ADD64_IMM: u8 = 0x07;
/// 64-bit move of a register.
pub const MOV64_REG: u8 = 0xbf;
/// 64-bit move of an immediate.
pub const MOV64_IMM: u8 = 0xb7;
/// Number of the frame pointer, the last register.
pub const FRAME: u8 = 10;

/// The slot that returns.
pub const EXIT_SLOT: u64 = EXIT as u64;

/// Whether a slot jumps unconditionally.
#[must_use]
pub const fn is_goto(slot: u64) -> bool {
    let opcode = slot as u8;
    opcode == JA || opcode == JA_LONG
}

/// One decoded slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Insn {
    /// Class, operation and mode.
    pub opcode: u8,
    /// Destination register.
    pub dst: u8,
    /// Source register, or a subcode.
    pub src: u8,
    /// Displacement of memory accesses and jumps, or a subcode.
    pub offset: i16,
    /// Immediate.
    pub imm: i32,
}

impl Insn {
    /// The instruction in `slot`.
    #[must_use]
    pub const fn decode(slot: u64) -> Insn {
        let bytes = slot.to_le_bytes();
        Insn {
            opcode: bytes[0],
            dst: bytes[1] & 0x0f,
            src: bytes[1] >> 4,
            offset: i16::from_le_bytes([bytes[2], bytes[3]]),
            imm: i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        }
    }

    /// Its slot. Registers are cut to four bits.
    #[must_use]
    pub const fn encode(self) -> u64 {
        let offset = self.offset.to_le_bytes();
        let imm = self.imm.to_le_bytes();
        u64::from_le_bytes([
            self.opcode,
            (self.dst & 0x0f) | (self.src << 4),
            offset[0],
            offset[1],
            imm[0],
            imm[1],
            imm[2],
            imm[3],
        ])
    }

    /// What it does; `None` for opcodes that do not exist.
    #[must_use]
    pub const fn kind(self) -> Option<Kind> {
        match self.opcode & 0x07 {
            0x00 if self.opcode == LDDW => Some(Kind::Constant),
            0x01 => load(self.opcode),
            0x02 if mode(self.opcode) == 0x60 => Some(Kind::StoreImmediate(size(self.opcode))),
            0x03 => store(self.opcode),
            0x04 | 0x07 => arithmetic(self.opcode),
            0x05 | 0x06 => jump(self.opcode),
            _ => None,
        }
    }
}

/// What an instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Two-operand arithmetic.
    Arithmetic {
        /// 64 bits, else 32 and the upper half becomes zero.
        wide: bool,
        /// Which operation.
        operation: Arithmetic,
        /// The right side is a register, else the immediate.
        register: bool,
    },
    /// Conversion between byte orders; the immediate has the width.
    Swap,
    /// 64-bit constant in two slots.
    Constant,
    /// Load of this many bytes.
    Load(u8),
    /// Store of this many bytes of a register.
    Store(u8),
    /// Store of an immediate of this many bytes.
    StoreImmediate(u8),
    /// Atomic update of this many bytes; the immediate has the operation.
    Atomic(u8),
    /// Jump that is always taken, by the offset field.
    Jump,
    /// Jump that is always taken, by the immediate field.
    JumpLong,
    /// Conditional jump by the offset field.
    Branch {
        /// The right side is a register, else the immediate.
        register: bool,
    },
    /// Call.
    Call,
    /// Return.
    Exit,
}

/// Operations of the arithmetic classes, with the upper four bits of their opcodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Arithmetic {
    Add = 0x00,
    Sub = 0x10,
    Mul = 0x20,
    Div = 0x30,
    Or = 0x40,
    And = 0x50,
    Lsh = 0x60,
    Rsh = 0x70,
    Neg = 0x80,
    Mod = 0x90,
    Xor = 0xa0,
    Mov = 0xb0,
    Arsh = 0xc0,
}

const fn mode(opcode: u8) -> u8 {
    opcode & 0xe0
}

const fn size(opcode: u8) -> u8 {
    match opcode & 0x18 {
        0x00 => 4,
        0x08 => 2,
        0x10 => 1,
        _ => 8,
    }
}

const fn load(opcode: u8) -> Option<Kind> {
    match (mode(opcode), size(opcode)) {
        (0x60, size) | (0x80, size @ (1 | 2 | 4)) => Some(Kind::Load(size)),
        _ => None,
    }
}

const fn store(opcode: u8) -> Option<Kind> {
    match (mode(opcode), size(opcode)) {
        (0x60, size) => Some(Kind::Store(size)),
        (0xc0, size @ (4 | 8)) => Some(Kind::Atomic(size)),
        _ => None,
    }
}

const fn arithmetic(opcode: u8) -> Option<Kind> {
    let wide = opcode & 0x07 == 0x07;
    let register = opcode & 0x08 != 0;
    let operation = match opcode & 0xf0 {
        0x00 => Arithmetic::Add,
        0x10 => Arithmetic::Sub,
        0x20 => Arithmetic::Mul,
        0x30 => Arithmetic::Div,
        0x40 => Arithmetic::Or,
        0x50 => Arithmetic::And,
        0x60 => Arithmetic::Lsh,
        0x70 => Arithmetic::Rsh,
        0x80 if !register => Arithmetic::Neg,
        0x90 => Arithmetic::Mod,
        0xa0 => Arithmetic::Xor,
        0xb0 => Arithmetic::Mov,
        0xc0 => Arithmetic::Arsh,
        // To little endian, to big endian, and the unconditional swap.
        0xd0 if !wide || !register => return Some(Kind::Swap),
        _ => return None,
    };
    Some(Kind::Arithmetic {
        wide,
        operation,
        register,
    })
}

const fn jump(opcode: u8) -> Option<Kind> {
    match opcode {
        JA => Some(Kind::Jump),
        JA_LONG => Some(Kind::JumpLong),
        CALL => Some(Kind::Call),
        EXIT => Some(Kind::Exit),
        _ => match opcode & 0xf0 {
            0x10..=0x70 | 0xa0..=0xd0 => Some(Kind::Branch {
                register: opcode & 0x08 != 0,
            }),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_survives_decoding_and_encoding() {
        for slot in [0, u64::MAX, 0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210] {
            assert_eq!(Insn::decode(slot).encode(), slot);
        }
    }

    #[test]
    fn exactly_the_opcodes_of_the_instruction_set_are_known() {
        let known = (0..=255u8)
            .filter(|&opcode| {
                let insn = Insn {
                    opcode,
                    ..Insn::default()
                };
                insn.kind().is_some()
            })
            .count();
        // 12 operations in two widths and two forms, negations, swaps; constant; loads; stores
        // and atomics; 11 comparisons in two widths and two forms, two jumps, call, exit.
        assert_eq!(known, 12 * 4 + 2 + 3 + 1 + 7 + 8 + 2 + 11 * 4 + 2 + 2);
    }
}
