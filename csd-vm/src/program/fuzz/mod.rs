//! Hostile input, for the fuzzers of the linker, the engines and the device: mutations of real
//! objects, streams of instructions that are valid, nearly valid or noise, and whole programs that
//! get far ([`Fuzzer::program`]).
//!
//! Everything comes from a seed; the same seed gives the same inputs in the same order.

mod object;
mod similar;
mod typed;

pub use self::object::{DataSection, Parts};
use super::helpers::HELPERS;
use super::insn::{CALL, EXIT, Insn, JA, LDDW};

/// Values at which arithmetic on offsets and counts goes wrong.
const EXTREMES: [u64; 16] = [
    0,
    1,
    7,
    8,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fff8,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_fff8,
    0xffff_ffff_ffff_ffff,
];

/// Number of cases a fuzzer runs: `WARREN_FUZZ_CASES`, else `default`.
#[must_use]
pub fn cases(default: u64) -> u64 {
    from_environment("WARREN_FUZZ_CASES").unwrap_or(default)
}

/// The seed of a fuzzer: `WARREN_SEED`, else `default`. Print it when a case fails.
#[must_use]
pub fn seed(default: u64) -> u64 {
    from_environment("WARREN_SEED").unwrap_or(default)
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Source of hostile input.
#[derive(Clone, Debug)]
pub struct Fuzzer {
    state: u64,
}

impl Fuzzer {
    /// A source that starts from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Fuzzer {
        Fuzzer { state: seed }
    }

    /// The next random number (splitmix64; Steele, Lea and Flood 2014).
    pub fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, or 0 if there is none.
    pub fn below(&mut self, end: usize) -> usize {
        match end as u64 {
            0 => 0,
            end => (self.number() % end) as usize,
        }
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// `object` with a few mutations.
    pub fn mutate(&mut self, object: &[u8]) -> Vec<u8> {
        let mut out = object.to_vec();
        for _ in 0..1 + self.below(4) {
            match self.below(16) {
                0 => self.flip_bit(&mut out),
                1 => self.set_byte(&mut out),
                2 => self.set_number(&mut out, 0),
                3 => self.set_number(&mut out, 64),
                4 => self.truncate(&mut out),
                5 => self.extend(&mut out),
                6 => self.swap_ranges(&mut out),
                7 => self.shuffle_sections(&mut out),
                8 => self.mutate_instruction(&mut out),
                9..=11 => self.mutate_tables(&mut out),
                _ => self.mutate_code(&mut out),
            }
        }
        out
    }

    fn flip_bit(&mut self, out: &mut [u8]) {
        let at = self.below(out.len());
        if let Some(byte) = out.get_mut(at) {
            *byte ^= 1 << self.below(8);
        }
    }

    fn set_byte(&mut self, out: &mut [u8]) {
        let at = self.below(out.len());
        if let Some(byte) = out.get_mut(at) {
            *byte = self.number() as u8;
        }
    }

    /// Sets an aligned number, in the first `within` bytes if that is not 0, to an extreme.
    fn set_number(&mut self, out: &mut [u8], within: usize) {
        let size = self.pick(&[2usize, 4, 8]);
        let end = if within == 0 { out.len() } else { within };
        let at = self.below(end.min(out.len()) / size) * size;
        self.put_extreme(out, at, size);
    }

    /// An extreme, sometimes off by a little or random, at `at`.
    fn put_extreme(&mut self, out: &mut [u8], at: usize, size: usize) {
        let value = match self.below(4) {
            0 => self.number(),
            1 => self.below(256) as u64,
            2 => out.len() as u64,
            _ => self.pick(&EXTREMES),
        };
        let value = value.wrapping_add_signed(self.below(3) as i64 - 1);
        if let Some(to) = out.get_mut(at..).and_then(|rest| rest.get_mut(..size)) {
            to.copy_from_slice(&value.to_le_bytes()[..size]);
        }
    }

    fn truncate(&mut self, out: &mut Vec<u8>) {
        let size = self.below(out.len() + 1);
        out.truncate(size);
    }

    fn extend(&mut self, out: &mut Vec<u8>) {
        for _ in 0..self.below(64) {
            out.push(self.number() as u8);
        }
    }

    fn swap_ranges(&mut self, out: &mut [u8]) {
        let size = 1 + self.below(64);
        let (a, b) = (self.below(out.len()), self.below(out.len()));
        for i in 0..size.min(a.abs_diff(b)) {
            if a + i < out.len() && b + i < out.len() {
                out.swap(a + i, b + i);
            }
        }
    }

    /// Where the section table is and how many entries it has, as the header says.
    fn section_table(out: &[u8]) -> Option<(usize, usize)> {
        let at = u64::from_le_bytes(out.get(40..48)?.try_into().ok()?);
        let count = u16::from_le_bytes(out.get(60..62)?.try_into().ok()?);
        let at = usize::try_from(at).ok().filter(|at| *at < out.len())?;
        let room = (out.len() - at) / SECTION_HEADER;
        Some((at, room.min(count.into()))).filter(|(_, count)| *count > 0)
    }

    /// Swaps two section headers.
    fn shuffle_sections(&mut self, out: &mut [u8]) {
        if let Some((table, count)) = Self::section_table(out) {
            let a = table + self.below(count) * SECTION_HEADER;
            let b = table + self.below(count) * SECTION_HEADER;
            for i in 0..SECTION_HEADER {
                out.swap(a + i, b + i);
            }
        }
    }

    /// Changes a field of a section header, or an entry of a symbol or relocation table.
    fn mutate_tables(&mut self, out: &mut [u8]) {
        let Some((table, count)) = Self::section_table(out) else {
            return;
        };
        let header = table + self.below(count) * SECTION_HEADER;
        if self.below(3) == 0 {
            let (field, size) = self.pick(&[
                (0, 4),
                (4, 4),
                (8, 8),
                (24, 8),
                (32, 8),
                (40, 4),
                (44, 4),
                (48, 8),
            ]);
            return self.put_extreme(out, header + field, size);
        }
        let Some(((kind, at), size)) = read_u32(out, header + 4)
            .zip(read_u64(out, header + 24))
            .zip(read_u64(out, header + 32))
        else {
            return;
        };
        let (entry, fields): (usize, &[(usize, usize)]) = match kind {
            2 => (24, &[(0, 4), (4, 1), (6, 2), (8, 8), (16, 8)]),
            9 => (16, &[(0, 8), (8, 4), (12, 4)]),
            _ => (8, &[(0, 1), (1, 1), (2, 2), (4, 4)]),
        };
        let entries = usize::try_from(size).unwrap_or(0).min(out.len()) / entry;
        let (field, size) = self.pick(fields);
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let at = at.saturating_add(self.below(entries) * entry + field);
        self.put_extreme(out, at, size);
    }

    /// Replaces what is likely an instruction: objects start with their code.
    fn mutate_instruction(&mut self, out: &mut [u8]) {
        let at = 64 + self.below(out.len() / 3 / 8 + 1) * 8;
        let slot = self.instruction(16, at % 16).to_le_bytes();
        if let Some(to) = out.get_mut(at..).and_then(|rest| rest.get_mut(..8)) {
            to.copy_from_slice(&slot);
        }
    }

    /// `object` with a few instructions changed into similar ones: most of these are accepted and run.
    pub fn mutate_kernel(&mut self, object: &[u8]) -> Vec<u8> {
        let mut out = object.to_vec();
        for _ in 0..1 + self.below(3) {
            self.mutate_code(&mut out);
        }
        out
    }

    /// Changes an instruction of a section of code into a similar one.
    fn mutate_code(&mut self, out: &mut [u8]) {
        const EXECUTABLE: u64 = 4;
        let Some((table, count)) = Self::section_table(out) else {
            return;
        };
        let sections = (0..count).filter_map(|number| {
            let header = table + number * SECTION_HEADER;
            let flags = read_u64(out, header + 8)?;
            let at = usize::try_from(read_u64(out, header + 24)?).ok()?;
            let size = usize::try_from(read_u64(out, header + 32)?).ok()?;
            let size = size.min(out.len().checked_sub(at)?) / 8 * 8;
            (flags & EXECUTABLE != 0 && size > 0).then_some(at..at + size)
        });
        let sections: Vec<_> = sections.collect();
        let chosen = self.below(sections.len());
        let Some(range) = sections.into_iter().nth(chosen) else {
            return;
        };
        let bytes = &mut out[range];
        let (words, _) = bytes.as_chunks_mut::<8>();
        let mut slots: Vec<u64> = words.iter().map(|w| u64::from_le_bytes(*w)).collect();
        self.change_slot(&mut slots);
        for (word, slot) in words.iter_mut().zip(slots) {
            *word = slot.to_le_bytes();
        }
    }

    /// About `length` slots of noise that has the look of instructions.
    pub fn noise(&mut self, length: usize) -> Vec<u64> {
        (0..length)
            .map(|at| match self.below(3) {
                0 => self.number(),
                _ => self.instruction(length, at),
            })
            .collect()
    }

    /// About `length` slots, made so that most such streams are valid: a main function and up to
    /// three others, which may call each other and helpers and loop. Registers hold anything.
    pub fn stream(&mut self, length: usize) -> Vec<u64> {
        let functions = 1 + self.below(4);
        let bodies: Vec<usize> = (0..functions)
            .map(|_| 2 + self.below(length / functions + 1))
            .collect();
        let mut starts = vec![0];
        for body in &bodies {
            starts.push(starts[starts.len() - 1] + body);
        }
        let mut out = Vec::new();
        for (number, body) in bodies.iter().enumerate() {
            self.body(&mut out, *body, &starts[..functions]);
            debug_assert_eq!(out.len(), starts[number + 1]);
        }
        // Now and then something is wrong with it.
        if self.below(4) == 0 {
            let at = self.below(out.len());
            out[at] = self.instruction(out.len(), at);
        }
        out
    }

    /// Appends a function of `slots` slots.
    fn body(&mut self, out: &mut Vec<u64>, slots: usize, starts: &[usize]) {
        let first = out.len();
        let last = first + slots - 1;
        // Constants first: jumps must not lead into their middle.
        let mut is_target = vec![true; slots];
        let mut constants = vec![false; slots];
        for at in 0..slots.saturating_sub(3) {
            if is_target[at] && self.below(12) == 0 {
                constants[at] = true;
                is_target[at + 1] = false;
            }
        }
        while out.len() < last {
            let at = out.len() - first;
            if constants[at] {
                let dst = self.below(10) as u8;
                out.extend(constant(dst, self.pick(&EXTREMES)));
                continue;
            }
            let mut insn = Insn::decode(self.instruction(slots, at));
            if insn.opcode & 7 == 5 || insn.opcode & 7 == 6 {
                insn = self.jump(insn, at, &is_target);
            }
            if insn.opcode == CALL && insn.src == 1 {
                let to = self.pick(starts) as i64;
                insn.imm = (to - out.len() as i64 - 1) as i32;
            }
            out.push(insn.encode());
        }
        let exit = Insn {
            opcode: EXIT,
            ..Insn::default()
        };
        out.push(exit.encode());
    }

    /// `insn` with a target in its function, mostly forward; else to the next instruction.
    fn jump(&mut self, mut insn: Insn, at: usize, is_target: &[bool]) -> Insn {
        if insn.opcode == CALL || insn.opcode == EXIT {
            return insn;
        }
        let from = if self.below(8) == 0 { 0 } else { at + 1 };
        let to = from + self.below(is_target.len() - from);
        let ok = to != at && is_target[to];
        let distance = if ok { to as i64 - at as i64 - 1 } else { 0 };
        if insn.opcode == 0x06 {
            (insn.offset, insn.imm) = (0, distance as i32);
        } else {
            insn.offset = distance as i16;
        }
        insn
    }

    /// A plausible instruction for slot `at` of `length`.
    fn instruction(&mut self, length: usize, at: usize) -> u64 {
        let mut insn = Insn {
            dst: self.below(10) as u8,
            ..Insn::default()
        };
        match self.below(16) {
            0..=6 => self.arithmetic(&mut insn),
            7..=8 => {
                insn.opcode = self.pick(&[0x61, 0x69, 0x71, 0x79, 0x81, 0x89, 0x91]);
                insn.src = self.below(11) as u8;
                insn.offset = self.displacement(insn.src);
            }
            9..=10 => {
                insn.opcode = self.pick(&[0x62, 0x6a, 0x72, 0x7a, 0x63, 0x6b, 0x73, 0x7b]);
                insn.dst = self.below(11) as u8;
                insn.offset = self.displacement(insn.dst);
                match insn.opcode & 7 {
                    3 => insn.src = self.below(11) as u8,
                    _ => insn.imm = self.pick(&EXTREMES) as i32,
                }
            }
            11 => self.atomic(&mut insn),
            12..=13 => {
                insn.opcode = (self.pick(&[
                    0x10u8, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xa0, 0xb0, 0xc0, 0xd0,
                ])) | self.pick(&[5, 6, 13, 14]);
                match insn.opcode & 8 {
                    0 => insn.imm = self.pick(&EXTREMES) as i32,
                    _ => insn.src = self.below(11) as u8,
                }
                insn.offset = (self.below(length) as i64 - at as i64) as i16;
            }
            14 => {
                insn = Insn {
                    opcode: self.pick(&[JA, 0x06, EXIT]),
                    ..Insn::default()
                };
            }
            _ => {
                insn = Insn {
                    opcode: CALL,
                    src: self.below(2) as u8,
                    imm: self.pick(HELPERS).number as i32,
                    ..Insn::default()
                };
            }
        }
        // Rarely anything at all.
        match self.below(400) {
            0 => insn.opcode = self.number() as u8,
            1 => insn.opcode = LDDW,
            2 => insn.src = self.below(16) as u8,
            3 => insn.offset = self.number() as i16,
            _ => {}
        }
        insn.encode()
    }

    fn arithmetic(&mut self, insn: &mut Insn) {
        let operation = self.below(14) as u8;
        let (wide, register) = (self.below(2) == 0, self.below(2) == 0);
        insn.opcode = operation << 4 | if wide { 7 } else { 4 } | if register { 8 } else { 0 };
        if register {
            insn.src = self.below(11) as u8;
        } else {
            insn.imm = self.pick(&EXTREMES) as i32;
        }
        match operation {
            3 | 9 => {
                insn.offset = self.below(2) as i16;
                insn.imm |= i32::from(!register);
            }
            6 | 7 | 12 if !register => insn.imm = self.below(if wide { 64 } else { 32 }) as i32,
            8 => *insn = negation(insn.dst, wide),
            11 if register && self.below(3) == 0 => {
                insn.offset = self.pick(if wide { &[8, 16, 32] } else { &[8, 16] });
            }
            13 => {
                insn.opcode = self.pick(&[0xd4, 0xdc, 0xd7]);
                insn.src = 0;
                insn.imm = self.pick(&[16, 32, 64]);
            }
            _ => {}
        }
    }

    fn atomic(&mut self, insn: &mut Insn) {
        insn.opcode = self.pick(&[0xc3, 0xdb]);
        insn.dst = self.below(11) as u8;
        insn.src = self.below(10) as u8;
        insn.offset = self.displacement(insn.dst);
        insn.imm = self.pick(&[0, 1, 0x40, 0x41, 0x50, 0x51, 0xa0, 0xa1, 0xe1, 0xf1]);
    }

    /// On the stack for r10, anywhere near for other registers.
    fn displacement(&mut self, base: u8) -> i16 {
        match base {
            10 => -8 * (1 + self.below(64) as i16),
            _ if self.below(8) == 0 => self.number() as i16,
            _ => self.below(64) as i16 - 32,
        }
    }
}

/// Bytes of an entry of the section table.
const SECTION_HEADER: usize = 64;

fn negation(dst: u8, wide: bool) -> Insn {
    Insn {
        opcode: if wide { 0x87 } else { 0x84 },
        dst,
        ..Insn::default()
    }
}

fn constant(dst: u8, value: u64) -> [u64; 2] {
    let low = Insn {
        opcode: LDDW,
        dst,
        imm: value as i32,
        ..Insn::default()
    };
    let high = Insn {
        imm: (value >> 32) as i32,
        ..Insn::default()
    };
    [low.encode(), high.encode()]
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..)?.get(..4)?;
    Some(u32::from_le_bytes(field.try_into().ok()?))
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..)?.get(..8)?;
    Some(u64::from_le_bytes(field.try_into().ok()?))
}
