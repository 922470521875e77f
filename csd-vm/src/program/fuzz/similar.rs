//! Instructions changed into similar ones.

use super::{EXTREMES, Fuzzer};
use crate::program::helpers::HELPERS;
use crate::program::insn::{Insn, Kind, LDDW};

impl Fuzzer {
    /// Changes an instruction into a similar one, which is mostly valid where that was.
    pub(super) fn change_slot(&mut self, slots: &mut [u64]) {
        let at = self.below(slots.len());
        let Some(before) = slots.get(at).copied() else {
            return;
        };
        let insn = Insn::decode(before);
        let is_second = at > 0 && Insn::decode(slots[at - 1]).opcode == LDDW;
        let changed = match insn.kind() {
            _ if self.below(12) == 0 => self.anything_else(insn, slots, at),
            _ if is_second => Insn {
                imm: self.other_number(insn.imm),
                ..insn
            },
            Some(kind) => self.similar(insn, kind),
            None => insn,
        };
        slots[at] = changed.encode();
    }

    /// `insn` with a field that it uses changed.
    fn similar(&mut self, mut insn: Insn, kind: Kind) -> Insn {
        let (which, other) = (self.below(3), self.below(10) as u8);
        match kind {
            Kind::Arithmetic { register, .. } => match which {
                0 => insn.dst = other,
                1 if register => insn.src = other,
                1 => insn.imm = self.other_number(insn.imm),
                // Additions and the like become one another.
                _ if insn.offset == 0 && insn.opcode >> 4 != 8 => {
                    let operation = self.pick(&[0x00, 0x10, 0x20, 0x40, 0x50, 0xa0, 0xb0]);
                    insn.opcode = insn.opcode & 0x0f | operation;
                }
                _ => {}
            },
            Kind::Load(_) | Kind::Store(_) | Kind::StoreImmediate(_) => match which {
                0 if matches!(kind, Kind::Load(_)) => insn.dst = other,
                0 if matches!(kind, Kind::Store(_)) => insn.src = other,
                0 => insn.imm = self.other_number(insn.imm),
                1 => insn.offset = insn.offset.wrapping_add(self.below(17) as i16 - 8),
                _ if insn.opcode & 0xe0 == 0x60 => insn.opcode ^= self.pick(&[0x08, 0x10, 0x18]),
                _ => {}
            },
            Kind::Atomic(_) => insn.imm = self.pick(&[0, 1, 0x40, 0x41, 0x51, 0xa1, 0xe1, 0xf1]),
            Kind::Branch { register } => match which {
                0 => insn.dst = other,
                1 if register => insn.src = other,
                1 => insn.imm = self.other_number(insn.imm),
                _ => {
                    let conditions = [0x10, 0x20, 0x30, 0x50, 0x60, 0xa0, 0xb0, 0xd0];
                    insn.opcode = insn.opcode & 0x0f | self.pick(&conditions);
                }
            },
            Kind::Jump => insn.offset = insn.offset.wrapping_add(self.below(5) as i16 - 2),
            Kind::Constant | Kind::JumpLong => insn.imm = self.other_number(insn.imm),
            Kind::Call if insn.src == 0 => insn.imm = self.pick(HELPERS).number as i32,
            Kind::Swap => insn.imm = self.pick(&[16, 32, 64]),
            Kind::Call | Kind::Exit => {}
        }
        insn
    }

    fn other_number(&mut self, number: i32) -> i32 {
        match self.below(3) {
            0 => self.pick(&EXTREMES) as i32,
            1 => self.below(256) as i32,
            _ => number.wrapping_add(self.below(17) as i32 - 8),
        }
    }

    /// An instruction without regard to what is valid.
    fn anything_else(&mut self, mut insn: Insn, slots: &[u64], at: usize) -> Insn {
        match self.below(6) {
            0 => insn.dst = self.below(12) as u8,
            1 => insn.src = self.below(12) as u8,
            2 => insn.offset = self.number() as i16,
            3 => insn.opcode ^= 1 << self.below(8),
            4 => insn = Insn::decode(slots[self.below(slots.len())]),
            _ => insn = Insn::decode(self.instruction(slots.len(), at)),
        }
        insn
    }
}
