//! Programs that get far: mostly valid, with registers that hold what they are used for, bounded
//! loops, calls, helpers with plausible arguments, and now and then something wild.
//!
//! In every function r6 is the request, r7 an address in the heap, r8 and r9 are numbers that
//! outlive calls, r0 to r5 numbers of the moment. Numbers are kept at r10-256 and above, counters of
//! loops below them, buffers for helpers below those.

use super::object::{DataSection, Parts};
use super::{EXTREMES, Fuzzer};
use crate::engine::cage::{CageConfig, Layout, Region};
use crate::program::insn::{CALL, EXIT, Insn, LDDW};

/// Loops within loops.
const LOOPS_MAX: usize = 3;
/// The counter of the outermost loop, below r10.
const COUNTERS: i16 = 264;
/// Buffers for helpers, below r10.
const BUFFERS: i16 = 512;
/// Registers that hold numbers.
const NUMBERS: [u8; 8] = [0, 1, 2, 3, 4, 5, 8, 9];
/// Sizes of memory accesses, as bits of opcodes: 4, 2, 1 and 8 bytes.
const SIZES: [u8; 4] = [0x00, 0x08, 0x10, 0x18];

/// Bytes of each section of data.
const DATA_BYTES: u64 = 96;

impl Fuzzer {
    /// A program of about `slots` slots.
    pub fn program(&mut self, slots: usize) -> Parts {
        let functions = 1 + self.below(5);
        let mut author = Author::new(self, functions);
        for number in 0..functions {
            author.function(number, slots / functions);
        }
        let mut parts = author.finish();
        for bytes in [&mut parts.read_only, &mut parts.initialised] {
            bytes.extend((0..DATA_BYTES).map(|_| self.number() as u8));
        }
        parts.zeroed = DATA_BYTES;
        // Now and then something is wrong with it.
        if self.below(5) == 0 {
            for _ in 0..1 + self.below(3) {
                self.change_slot(&mut parts.slots);
            }
        }
        parts
    }
}

/// Writes a program.
struct Author<'f> {
    random: &'f mut Fuzzer,
    layout: Layout,
    slots: Vec<u64>,
    references: Vec<(usize, DataSection)>,
    starts: Vec<usize>,
    /// Slots of calls, and the functions they call.
    calls: Vec<(usize, usize)>,
    functions: usize,
    /// The function being written.
    function: usize,
    loops: usize,
}

impl<'f> Author<'f> {
    fn new(random: &'f mut Fuzzer, functions: usize) -> Author<'f> {
        let layout = Layout::new(&CageConfig::default()).expect("the layout of every device");
        Author {
            random,
            layout,
            slots: Vec::new(),
            references: Vec::new(),
            starts: Vec::new(),
            calls: Vec::new(),
            functions,
            function: 0,
            loops: 0,
        }
    }

    fn finish(mut self) -> Parts {
        for (at, function) in self.calls {
            let distance = self.starts[function] as i64 - at as i64 - 1;
            self.slots[at] |= u64::from(distance as u32) << 32;
        }
        Parts {
            slots: self.slots,
            references: self.references,
            ..Parts::default()
        }
    }

    fn emit(&mut self, opcode: u8, dst: u8, src: u8, offset: i16, imm: i32) {
        let insn = Insn {
            opcode,
            dst,
            src,
            offset,
            imm,
        };
        self.slots.push(insn.encode());
    }

    fn below(&mut self, end: usize) -> usize {
        self.random.below(end)
    }

    fn one_in(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    fn register(&mut self) -> u8 {
        self.random.pick(&NUMBERS)
    }

    /// A register whose value is read: mostly a number.
    fn source(&mut self) -> u8 {
        match self.one_in(20) {
            true => self.below(11) as u8,
            false => self.register(),
        }
    }

    fn mov(&mut self, dst: u8, imm: i32) {
        self.emit(0xb7, dst, 0, 0, imm);
    }

    fn copy(&mut self, dst: u8, src: u8) {
        self.emit(0xbf, dst, src, 0, 0);
    }

    /// `dst = src + imm`.
    fn address(&mut self, dst: u8, src: u8, imm: i32) {
        self.copy(dst, src);
        self.emit(0x07, dst, 0, 0, imm);
    }

    fn function(&mut self, number: usize, slots: usize) {
        self.function = number;
        self.starts.push(self.slots.len());
        self.copy(6, 1);
        if number == 0 {
            self.emit(0x79, 7, 6, 56, 0);
            self.emit(0x79, 8, 6, 8, 0);
            self.emit(0x79, 9, 6, 16, 0);
        } else {
            for (dst, src) in [(7, 2), (8, 3), (9, 4)] {
                self.copy(dst, src);
            }
        }
        self.statements(slots);
        // What was computed counts, and is mostly no failure.
        for register in [1, 2, 3, 4, 5, 8, 9] {
            self.emit(0x27, 0, 0, 0, 31);
            self.emit(0x0f, 0, register, 0, 0);
        }
        if !self.one_in(8) {
            self.emit(0x77, 0, 0, 0, 1);
        }
        self.emit(EXIT, 0, 0, 0, 0);
    }

    /// Statements of about `slots` slots in all.
    fn statements(&mut self, slots: usize) {
        let end = self.slots.len() + slots;
        while self.slots.len() < end {
            let left = end - self.slots.len();
            match self.below(100) {
                0..=27 => self.arithmetic(),
                28..=33 => self.constant(),
                34..=47 => self.stack_access(),
                48..=57 => self.heap_access(),
                58..=61 => self.atomic(),
                62..=66 => self.data_access(),
                67..=69 => self.request_field(),
                70..=77 => self.condition(left),
                78..=85 => self.bounded_loop(left),
                86..=92 => self.helper(),
                93..=97 => self.local_call(),
                98 if self.one_in(12) => self.edge_access(),
                _ if self.one_in(30) => self.wild(),
                _ => self.arithmetic(),
            }
        }
    }

    fn arithmetic(&mut self) {
        let mut insn = Insn {
            dst: self.register(),
            ..Insn::default()
        };
        self.random.arithmetic(&mut insn);
        if insn.opcode & 8 != 0 && insn.opcode >> 4 != 0xd {
            insn.src = self.source();
        }
        self.slots.push(insn.encode());
    }

    fn number(&mut self) -> u64 {
        match self.below(3) {
            0 => self.random.pick(&EXTREMES),
            1 => self.below(256) as u64,
            _ => self.random.number(),
        }
    }

    fn load_constant(&mut self, dst: u8, value: u64) {
        self.emit(LDDW, dst, 0, 0, value as i32);
        self.emit(0, 0, 0, 0, (value >> 32) as i32);
    }

    fn constant(&mut self) {
        let (dst, value) = (self.register(), self.number());
        match self.below(3) {
            0 => self.load_constant(dst, value),
            1 => self.mov(dst, value as i32),
            _ => self.emit(0xb4, dst, 0, 0, value as i32),
        }
    }

    /// A load or a store at `base + offset`.
    fn access(&mut self, base: u8, offset: i16) {
        let size = self.random.pick(&SIZES);
        match self.below(5) {
            0 | 1 => {
                let dst = self.register();
                self.emit(0x61 | size, dst, base, offset, 0);
            }
            2 if size != 0x18 => {
                let dst = self.register();
                self.emit(0x81 | size, dst, base, offset, 0);
            }
            3 => {
                let value = self.number() as i32;
                self.emit(0x62 | size, base, 0, offset, value);
            }
            _ => {
                let src = self.source();
                self.emit(0x63 | size, base, src, offset, 0);
            }
        }
    }

    fn stack_access(&mut self) {
        let offset = -8 * (1 + self.below(32) as i16);
        self.access(10, offset);
    }

    /// At a place that is computed, or near r7.
    fn heap_access(&mut self) {
        let offset = self.below(128) as i16;
        if self.one_in(3) {
            return self.access(7, offset);
        }
        let base = self.random.pick(&[1u8, 2, 3, 4, 5]);
        let from = self.register();
        self.copy(base, from);
        self.emit(0x57, base, 0, 0, 0x3ff8);
        self.emit(0x0f, base, 7, 0, 0);
        self.access(base, offset);
    }

    fn atomic(&mut self) {
        let mut insn = Insn::default();
        self.random.atomic(&mut insn);
        (insn.dst, insn.offset) = match self.below(2) {
            0 => (10, -8 * (1 + self.below(32) as i16)),
            _ => (7, 8 * self.below(16) as i16),
        };
        insn.src = self.register();
        self.slots.push(insn.encode());
    }

    /// Of static data: also through addresses of elements that are not there.
    fn data_access(&mut self) {
        let sections = [
            DataSection::ReadOnly,
            DataSection::Initialised,
            DataSection::Zeroed,
        ];
        let section = self.random.pick(&sections);
        let base = self.random.pick(&[1u8, 2, 3, 4, 5]);
        let addend = match self.below(6) {
            0 => self.number() as i32,
            1 => -8 * self.below(16) as i32,
            _ => self.below(DATA_BYTES as usize - 8) as i32,
        };
        self.references.push((self.slots.len(), section));
        self.emit(LDDW, base, 0, 0, addend);
        self.emit(0, 0, 0, 0, 0);
        self.emit(0x07, base, 0, 0, addend.wrapping_neg());
        let offset = self.below(DATA_BYTES as usize - 8) as i16;
        if section != DataSection::ReadOnly {
            return self.access(base, offset);
        }
        let (dst, size) = (self.register(), self.random.pick(&SIZES));
        self.emit(0x61 | size, dst, base, offset, 0);
    }

    fn request_field(&mut self) {
        let (dst, offset) = (self.register(), 8 * self.below(10) as i16);
        self.emit(0x79, dst, 6, offset, 0);
    }

    /// Jumps over some statements, or to one of two lists of them.
    fn condition(&mut self, slots: usize) {
        let at = self.slots.len();
        self.branch();
        self.statements(self.part(slots));
        if self.one_in(2) {
            let over = self.slots.len();
            let long = self.one_in(3);
            self.emit(if long { 0x06 } else { 0x05 }, 0, 0, 0, 0);
            self.land(at);
            self.statements(self.part(slots));
            self.land(over);
        } else {
            self.land(at);
        }
    }

    fn part(&self, slots: usize) -> usize {
        (slots / 3).clamp(1, 30)
    }

    /// A conditional jump whose target comes later.
    fn branch(&mut self) {
        let conditions = [
            0x10u8, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xa0, 0xb0, 0xc0, 0xd0,
        ];
        let opcode = self.random.pick(&conditions) | self.random.pick(&[5, 6]);
        let dst = self.register();
        if self.one_in(2) {
            let src = self.register();
            self.emit(opcode | 8, dst, src, 0, 0);
        } else {
            let imm = self.number() as i32;
            self.emit(opcode, dst, 0, 0, imm);
        }
    }

    /// The jump at `from` leads to what comes next.
    fn land(&mut self, from: usize) {
        let mut insn = Insn::decode(self.slots[from]);
        let distance = self.slots.len() - from - 1;
        match insn.opcode {
            0x06 => insn.imm = distance as i32,
            _ => insn.offset = distance as i16,
        }
        self.slots[from] = insn.encode();
    }

    fn bounded_loop(&mut self, slots: usize) {
        if self.loops >= LOOPS_MAX {
            return self.arithmetic();
        }
        let counter = -(COUNTERS + 8 * self.loops as i16);
        let times = 1 + self.below(if self.function == 0 { 20 } else { 4 }) as i32;
        self.emit(0x7a, 10, 0, counter, times);
        let start = self.slots.len();
        self.loops += 1;
        self.statements(self.part(slots));
        self.loops -= 1;
        self.emit(0x79, 5, 10, counter, 0);
        self.emit(0x07, 5, 0, 0, -1);
        self.emit(0x7b, 10, 5, counter, 0);
        let back = start as i64 - self.slots.len() as i64 - 1;
        self.emit(0x55, 5, 0, back as i16, 0);
    }

    /// Calls a function further on; rarely any.
    fn local_call(&mut self) {
        let later = self.functions - self.function - 1;
        let function = match self.one_in(25) {
            true => self.below(self.functions),
            false if later == 0 => return self.arithmetic(),
            false => self.function + 1 + self.below(later),
        };
        self.copy(1, 6);
        let offset = 8 * self.below(16) as i32;
        self.address(2, 7, offset);
        for dst in [3, 4] {
            let src = self.register();
            self.copy(dst, src);
        }
        self.calls.push((self.slots.len(), function));
        self.emit(CALL, 0, 1, 0, 0);
    }

    /// At the edge of a region, by its place in the cage.
    fn edge_access(&mut self) {
        let span = self.layout.span(self.random.pick(&Region::ALL));
        let edges = [span.start, span.end(), self.layout.size(), 0];
        let edge = self.random.pick(&edges);
        let at = edge.wrapping_add_signed(self.below(33) as i64 - 16);
        self.load_constant(1, at);
        self.access(1, 0);
    }

    fn wild(&mut self) {
        let slot = self.random.instruction(self.slots.len() + 1, 0);
        let insn = Insn::decode(slot);
        // Jumps are left to changes of finished programs.
        if insn.opcode & 7 != 5 && insn.opcode & 7 != 6 && insn.opcode != LDDW {
            self.slots.push(slot);
        }
    }

    fn call_helper(&mut self, number: i32) {
        self.emit(CALL, 0, 0, 0, number);
    }

    /// An address of a buffer of at least 64 bytes; rarely any address.
    fn buffer(&mut self, dst: u8) {
        match self.below(200) {
            0 => {
                let from = self.source();
                self.copy(dst, from);
            }
            1 => self.address(dst, 6, 0),
            2 => {
                let span = self.layout.span(self.random.pick(&Region::ALL));
                let edge = self.random.pick(&[span.start, span.end()]);
                let at = edge.wrapping_add_signed(self.below(80) as i64 - 72);
                self.load_constant(dst, at);
            }
            3..=99 => {
                let offset = 8 * self.below(256) as i32;
                self.address(dst, 7, offset);
            }
            _ => {
                let offset = 8 * self.below(16) as i32 - i32::from(BUFFERS);
                self.address(dst, 10, offset);
            }
        }
    }

    /// A number of bytes, mostly few.
    fn size(&mut self, dst: u8) {
        match self.below(250) {
            0 => {
                let value = self.random.pick(&EXTREMES);
                self.load_constant(dst, value);
            }
            1 => {
                let size = self.below(5000) as i32;
                self.mov(dst, size);
            }
            _ => {
                let size = self.below(65) as i32;
                self.mov(dst, size);
            }
        }
    }

    /// A place in the file, mostly within.
    fn position(&mut self, dst: u8) {
        match self.below(16) {
            0 => {
                let value = self.number();
                self.load_constant(dst, value);
            }
            1 => self.copy(dst, 8),
            _ => {
                let at = self.below(90_000) as i32;
                self.mov(dst, at);
            }
        }
    }

    /// A helper that takes a buffer and a size.
    fn on_bytes(&mut self, number: i32) {
        self.buffer(1);
        self.size(2);
        self.call_helper(number);
    }

    fn helper(&mut self) {
        match self.below(20) {
            0 => self.on_bytes(1),
            1 => self.opencsd_read(),
            2 if self.one_in(6) => self.opencsd_write(),
            2 | 3 => {
                let number = 4 + self.below(3) as i32;
                self.call_helper(number);
            }
            4 => {
                self.buffer(1);
                self.buffer(2);
                self.call_helper(7);
            }
            5 | 6 => {
                self.buffer(1);
                let number = 8 + self.below(2) as i32;
                self.call_helper(number);
            }
            7 => self.on_bytes(32),
            8..=10 => self.map(),
            11 | 12 => {
                self.position(1);
                self.buffer(2);
                self.size(3);
                self.call_helper(34);
            }
            13 | 14 => self.on_bytes(35),
            15 => self.reserve(),
            16 => self.on_bytes(37),
            17 => {
                let index = self.below(4) as i32;
                self.mov(1, index);
                self.buffer(2);
                self.call_helper(38);
            }
            18 => self.on_bytes(39),
            _ => {
                self.size(1);
                let number = 40 + self.below(2) as i32;
                self.call_helper(number);
            }
        }
        // What is left in r1 to r5 counts too.
        if self.one_in(3) {
            let register = 1 + self.below(5) as u8;
            self.emit(0x0f, 8, register, 0, 0);
        }
    }

    /// Maps, and looks at what is there.
    fn map(&mut self) {
        let at = i32::from(-BUFFERS);
        self.position(1);
        let size = 1 + self.below(9000) as i32;
        self.mov(2, size);
        self.address(3, 10, at);
        self.call_helper(33);
        self.emit(0x79, 1, 10, -BUFFERS, 0);
        self.copy(2, 0);
        // Nothing was mapped, or an error came back.
        let skip = self.slots.len();
        self.emit(0xd5, 2, 0, 0, 8);
        for _ in 0..1 + self.below(3) {
            let (dst, size) = (
                self.random.pick(&[0u8, 3, 4, 5, 8]),
                self.random.pick(&SIZES),
            );
            self.emit(0x61 | size, dst, 1, 0, 0);
        }
        if self.one_in(3) {
            self.call_helper(35);
        }
        self.land(skip);
    }

    fn reserve(&mut self) {
        self.size(1);
        self.call_helper(36);
        let skip = self.slots.len();
        self.emit(0x15, 0, 0, 0, 0);
        self.copy(3, 0);
        let value = self.number() as i32;
        self.emit(0x72, 3, 0, 0, value);
        self.land(skip);
    }

    /// Finds the first sector as FluffleFS kernels do, and reads of it.
    fn opencsd_read(&mut self) {
        self.address(1, 10, i32::from(-BUFFERS));
        self.call_helper(8);
        self.emit(0x79, 3, 10, -BUFFERS, 0);
        self.emit(0x79, 1, 3, 52, 0);
        self.copy(2, 1);
        let zone_size = if self.one_in(30) { 255 } else { 256 };
        self.emit(0x37, 1, 0, 0, zone_size);
        self.emit(0x97, 2, 0, 0, 256);
        let offset = self.below(4200) as i32;
        self.mov(3, offset);
        self.size(4);
        self.buffer(5);
        self.call_helper(2);
    }

    /// Writes to the first sectors that are set aside, behind a device of 64 zones.
    fn opencsd_write(&mut self) {
        self.mov(1, 64);
        let sector = self.below(3) as i32;
        self.emit(0x7a, 10, 0, -BUFFERS, sector);
        self.address(2, 10, i32::from(-BUFFERS));
        let offset = if self.one_in(2) {
            0
        } else {
            self.below(100) as i32
        };
        self.mov(3, offset);
        self.size(4);
        self.buffer(5);
        self.call_helper(3);
    }
}
