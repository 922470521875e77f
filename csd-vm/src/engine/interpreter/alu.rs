//! Arithmetic, comparisons and atomic operations on values alone.

use crate::program::insn::{Arithmetic, Insn};

/// Sign-extends the lowest `bits` bits.
pub(super) fn sign_extended(value: u64, bits: u32) -> u64 {
    let unused = 64 - bits;
    (value << unused)
        .cast_signed()
        .wrapping_shr(unused)
        .cast_unsigned()
}

/// `left operation right` in 64 bits.
pub(super) fn wide(insn: Insn, operation: Arithmetic, left: u64, right: u64) -> u64 {
    let (signed_left, signed_right) = (left.cast_signed(), right.cast_signed());
    let is_signed = insn.offset == 1;
    let shift = right as u32 & 63;
    match operation {
        Arithmetic::Add => left.wrapping_add(right),
        Arithmetic::Sub => left.wrapping_sub(right),
        Arithmetic::Mul => left.wrapping_mul(right),
        Arithmetic::Div if right == 0 => 0,
        Arithmetic::Div if is_signed => signed_left.wrapping_div(signed_right).cast_unsigned(),
        Arithmetic::Div => left / right,
        Arithmetic::Mod if right == 0 => left,
        Arithmetic::Mod if is_signed => signed_left.wrapping_rem(signed_right).cast_unsigned(),
        Arithmetic::Mod => left % right,
        Arithmetic::Or => left | right,
        Arithmetic::And => left & right,
        Arithmetic::Xor => left ^ right,
        Arithmetic::Lsh => left << shift,
        Arithmetic::Rsh => left >> shift,
        Arithmetic::Arsh => (signed_left >> shift).cast_unsigned(),
        Arithmetic::Neg => left.wrapping_neg(),
        Arithmetic::Mov => moved(insn, right),
    }
}

/// `left operation right` in 32 bits; the upper half is zero.
pub(super) fn narrow(insn: Insn, operation: Arithmetic, left: u64, right: u64) -> u64 {
    let (left, right) = (left as u32, right as u32);
    let (signed_left, signed_right) = (left.cast_signed(), right.cast_signed());
    let is_signed = insn.offset == 1;
    let shift = right & 31;
    u64::from(match operation {
        Arithmetic::Add => left.wrapping_add(right),
        Arithmetic::Sub => left.wrapping_sub(right),
        Arithmetic::Mul => left.wrapping_mul(right),
        Arithmetic::Div if right == 0 => 0,
        Arithmetic::Div if is_signed => signed_left.wrapping_div(signed_right).cast_unsigned(),
        Arithmetic::Div => left / right,
        Arithmetic::Mod if right == 0 => left,
        Arithmetic::Mod if is_signed => signed_left.wrapping_rem(signed_right).cast_unsigned(),
        Arithmetic::Mod => left % right,
        Arithmetic::Or => left | right,
        Arithmetic::And => left & right,
        Arithmetic::Xor => left ^ right,
        Arithmetic::Lsh => left << shift,
        Arithmetic::Rsh => left >> shift,
        Arithmetic::Arsh => (signed_left >> shift).cast_unsigned(),
        Arithmetic::Neg => left.wrapping_neg(),
        Arithmetic::Mov => moved(insn, right.into()) as u32,
    })
}

/// A move may extend a sign.
fn moved(insn: Insn, value: u64) -> u64 {
    match insn.offset {
        bits @ (8 | 16 | 32) => sign_extended(value, bits.cast_unsigned().into()),
        _ => value,
    }
}

/// Byte order: 0xd4 to little endian, which it is already, 0xdc to big endian, 0xd7 the other way
/// round. Only the lowest bits stay.
pub(super) fn swap(insn: Insn, value: u64) -> u64 {
    let swaps = insn.opcode != 0xd4;
    match insn.imm {
        16 if swaps => (value as u16).swap_bytes().into(),
        16 => (value as u16).into(),
        32 if swaps => (value as u32).swap_bytes().into(),
        32 => (value as u32).into(),
        _ if swaps => value.swap_bytes(),
        _ => value,
    }
}

/// Whether a conditional jump is taken.
pub(super) fn is_taken(insn: Insn, left: u64, right: u64) -> bool {
    let narrow = insn.opcode & 7 == 6;
    let (left, right) = match narrow {
        true => (u64::from(left as u32), u64::from(right as u32)),
        false => (left, right),
    };
    let bits = if narrow { 32 } else { 64 };
    let signed = |value| sign_extended(value, bits).cast_signed();
    match insn.opcode & 0xf0 {
        0x10 => left == right,
        0x20 => left > right,
        0x30 => left >= right,
        0x40 => left & right != 0,
        0x50 => left != right,
        0x60 => signed(left) > signed(right),
        0x70 => signed(left) >= signed(right),
        0xa0 => left < right,
        0xb0 => left <= right,
        0xc0 => signed(left) < signed(right),
        _ => signed(left) <= signed(right),
    }
}

/// What is in memory after an atomic operation of an immediate on `old`.
pub(super) fn updated(imm: i32, old: u64, operand: u64, compared: u64) -> u64 {
    match imm & 0xf0 {
        0x00 => old.wrapping_add(operand),
        0x40 => old | operand,
        0x50 => old & operand,
        0xa0 => old ^ operand,
        0xe0 => operand,
        _ if old == compared => operand,
        _ => old,
    }
}
