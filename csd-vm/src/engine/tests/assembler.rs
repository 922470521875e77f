//! Instructions for tests.

/// One slot.
pub(super) fn slot(opcode: u8, dst: u8, src: u8, offset: i16, imm: i32) -> u64 {
    u64::from(opcode)
        | u64::from(dst) << 8
        | u64::from(src) << 12
        | u64::from(offset as u16) << 16
        | u64::from(imm as u32) << 32
}

/// `dst = imm`, sign-extended.
pub(super) fn mov(dst: u8, imm: i32) -> u64 {
    slot(0xb7, dst, 0, 0, imm)
}

/// `dst = src`.
pub(super) fn mov_register(dst: u8, src: u8) -> u64 {
    slot(0xbf, dst, src, 0, 0)
}

/// `dst += imm`.
pub(super) fn add(dst: u8, imm: i32) -> u64 {
    slot(0x07, dst, 0, 0, imm)
}

/// `dst += src`.
pub(super) fn add_register(dst: u8, src: u8) -> u64 {
    slot(0x0f, dst, src, 0, 0)
}

/// `dst |= src`.
pub(super) fn or_register(dst: u8, src: u8) -> u64 {
    slot(0x4f, dst, src, 0, 0)
}

/// `dst = value`, two slots.
pub(super) fn lddw(dst: u8, value: u64) -> [u64; 2] {
    let (low, high) = (value as u32 as i32, (value >> 32) as u32 as i32);
    [slot(0x18, dst, 0, 0, low), slot(0, 0, 0, 0, high)]
}

/// `dst = *(u64 *)(src + offset)`.
pub(super) fn load(dst: u8, src: u8, offset: i16) -> u64 {
    slot(0x79, dst, src, offset, 0)
}

/// `*(u64 *)(dst + offset) = src`.
pub(super) fn store(dst: u8, offset: i16, src: u8) -> u64 {
    slot(0x7b, dst, src, offset, 0)
}

/// Goes on `offset` slots after the next.
pub(super) fn jump(offset: i16) -> u64 {
    slot(0x05, 0, 0, offset, 0)
}

/// Goes on `offset` slots after the next unless `dst` is `imm`.
pub(super) fn jump_unless_equal(dst: u8, imm: i32, offset: i16) -> u64 {
    slot(0x55, dst, 0, offset, imm)
}

/// Calls a helper.
pub(super) fn call(number: i32) -> u64 {
    slot(0x85, 0, 0, 0, number)
}

/// Calls the function `offset` slots after the next.
pub(super) fn call_local(offset: i32) -> u64 {
    slot(0x85, 0, 1, 0, offset)
}

/// Returns.
pub(super) fn exit() -> u64 {
    slot(0x95, 0, 0, 0, 0)
}

/// `parts` one after the other.
pub(super) fn code(parts: &[&[u64]]) -> Vec<u64> {
    parts.concat()
}
