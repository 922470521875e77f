//! For the tests of this crate: compiling kernels, and running them without an engine.

use std::path::PathBuf;
use std::process::Command;

use super::insn::{Arithmetic, CALL, EXIT, FRAME, Insn, JA, JA_LONG, Kind};
use super::{LinkLimits, LoadError, Program};

/// The object that clang makes of the C source `source` with `options` besides the target.
pub(crate) fn compile(source: &str, options: &[&str]) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| -> PathBuf { directory.path().join(name) };
    std::fs::write(path("kernel.c"), source).expect("the source is written");
    let clang = Command::new("clang")
        .args([
            "-target",
            "bpf",
            "-Wall",
            "-Werror",
            "-ffreestanding",
            "-fno-crash-diagnostics",
        ])
        .args(options)
        .arg("-c")
        .arg(path("kernel.c"))
        .arg("-o")
        .arg(path("kernel.o"))
        .output()
        .expect("these tests need clang (with its BPF target) in PATH");
    let messages = String::from_utf8_lossy(&clang.stderr);
    assert!(clang.status.success(), "clang: {messages}");
    std::fs::read(path("kernel.o")).expect("the object is read")
}

/// Links the C source `source`, compiled with `-O2`.
pub(crate) fn link(source: &str) -> Result<Program, LoadError> {
    Program::link(&compile(source, &["-O2"]), &LinkLimits::default())
}

/// Where [`Machine`] places data.
const DATA: u64 = 0x7_1234_5000;
/// Where [`Machine`] ends its stack.
const STACK_END: u64 = 0x8_0000_0000;
const STACK_BYTES: usize = 64 << 10;

/// Runs a linked program instruction by instruction, for what clang makes of small tests.
pub(crate) struct Machine {
    slots: Vec<u64>,
    stack_bytes: Vec<(usize, u64)>,
    data: Vec<u8>,
    stack: Vec<u8>,
    registers: [u64; 11],
    /// Numbers and arguments of the helpers called; helpers return 0.
    pub(crate) calls: Vec<(u32, [u64; 5])>,
}

impl Machine {
    fn new(program: &Program) -> Machine {
        let placed = program.data_at(DATA);
        let mut data = placed.read_only.clone();
        data.resize(placed.initialised_at() as usize, 0);
        data.extend_from_slice(&placed.initialised);
        data.resize(placed.size() as usize, 0);
        let functions = program.functions().iter();
        Machine {
            slots: program.instructions(DATA),
            stack_bytes: functions.map(|f| (f.first, f.stack_bytes.into())).collect(),
            data,
            stack: vec![0; STACK_BYTES],
            registers: [0; 11],
            calls: Vec::new(),
        }
    }

    /// Runs the program with `argument` in r1 and returns r0.
    pub(crate) fn run(program: &Program, argument: u64) -> u64 {
        Machine::ended(program, argument).registers[0]
    }

    /// The machine after it has run the program with `argument` in r1.
    pub(crate) fn ended(program: &Program, argument: u64) -> Machine {
        let mut machine = Machine::new(program);
        machine.registers[1] = argument;
        machine.registers[usize::from(FRAME)] = STACK_END;
        machine.function(0);
        machine
    }

    /// The `size` bytes at `address`.
    pub(crate) fn bytes(&mut self, address: u64, size: usize) -> &mut [u8] {
        let stack_start = STACK_END - STACK_BYTES as u64;
        if address >= stack_start {
            &mut self.stack[(address - stack_start) as usize..][..size]
        } else {
            &mut self.data[(address - DATA) as usize..][..size]
        }
    }

    fn function(&mut self, mut at: usize) {
        let end = self
            .stack_bytes
            .iter()
            .rev()
            .find(|(first, _)| *first <= at);
        let frame = end.expect("slot 0 is in a function").1;
        for _ in 0..1_000_000 {
            let insn = Insn::decode(self.slots[at]);
            at += 1;
            match (insn.opcode, insn.kind().expect("a known opcode")) {
                (EXIT, _) => return,
                (CALL, _) if insn.src == 1 => {
                    let saved = self.registers;
                    self.registers[usize::from(FRAME)] -= frame;
                    self.function((at as i64 + i64::from(insn.imm)) as usize);
                    self.registers[6..].copy_from_slice(&saved[6..]);
                }
                (CALL, _) => {
                    let arguments = self.registers[1..6].try_into().expect("five registers");
                    self.calls.push((insn.imm as u32, arguments));
                    self.registers[0] = 0;
                }
                (_, Kind::Constant) => {
                    let high = Insn::decode(self.slots[at]).imm as u32;
                    at += 1;
                    let value = u64::from(insn.imm as u32) | u64::from(high) << 32;
                    self.registers[usize::from(insn.dst)] = value;
                }
                (JA, _) => at = (at as i64 + i64::from(insn.offset)) as usize,
                (JA_LONG, _) => at = (at as i64 + i64::from(insn.imm)) as usize,
                (_, Kind::Branch { register }) => {
                    if self.branch(insn, register) {
                        at = (at as i64 + i64::from(insn.offset)) as usize;
                    }
                }
                (_, kind) => self.step(insn, kind),
            }
        }
        panic!("the program does not end");
    }

    fn right(&self, insn: Insn, register: bool) -> u64 {
        match register {
            true => self.registers[usize::from(insn.src)],
            false => i64::from(insn.imm) as u64,
        }
    }

    fn branch(&self, insn: Insn, register: bool) -> bool {
        let (mut a, mut b) = (
            self.registers[usize::from(insn.dst)],
            self.right(insn, register),
        );
        let (mut sa, mut sb) = (a as i64, b as i64);
        if insn.opcode & 7 == 6 {
            (a, b) = (u64::from(a as u32), u64::from(b as u32));
            (sa, sb) = (i64::from(sa as i32), i64::from(sb as i32));
        }
        match insn.opcode & 0xf0 {
            0x10 => a == b,
            0x20 => a > b,
            0x30 => a >= b,
            0x40 => a & b != 0,
            0x50 => a != b,
            0x60 => sa > sb,
            0x70 => sa >= sb,
            0xa0 => a < b,
            0xb0 => a <= b,
            0xc0 => sa < sb,
            _ => sa <= sb,
        }
    }

    fn step(&mut self, insn: Insn, kind: Kind) {
        let (dst, src) = (usize::from(insn.dst), usize::from(insn.src));
        let displaced = |base: u64| base.wrapping_add_signed(insn.offset.into());
        match kind {
            Kind::Load(size) => {
                let address = displaced(self.registers[src]);
                let mut value = [0; 8];
                value[..size.into()].copy_from_slice(self.bytes(address, size.into()));
                self.registers[dst] = u64::from_le_bytes(value);
            }
            Kind::Store(size) | Kind::StoreImmediate(size) => {
                let value = self
                    .right(insn, matches!(kind, Kind::Store(_)))
                    .to_le_bytes();
                let address = displaced(self.registers[dst]);
                self.bytes(address, size.into())
                    .copy_from_slice(&value[..size.into()]);
            }
            Kind::Arithmetic {
                wide,
                operation,
                register,
            } => {
                let right = self.right(insn, register);
                let result = arithmetic(operation, self.registers[dst], right, wide);
                self.registers[dst] = result;
            }
            other => panic!("clang made {other:?} of a test that should not need it"),
        }
    }
}

fn arithmetic(operation: Arithmetic, a: u64, b: u64, wide: bool) -> u64 {
    let (a, b) = match wide {
        true => (a, b),
        false => (u64::from(a as u32), u64::from(b as u32)),
    };
    let shift = b as u32 & if wide { 63 } else { 31 };
    let signed = if wide { a as i64 } else { i64::from(a as i32) };
    let result = match operation {
        Arithmetic::Add => a.wrapping_add(b),
        Arithmetic::Sub => a.wrapping_sub(b),
        Arithmetic::Mul => a.wrapping_mul(b),
        Arithmetic::Div => a.checked_div(b).unwrap_or(0),
        Arithmetic::Mod => a.checked_rem(b).unwrap_or(a),
        Arithmetic::Or => a | b,
        Arithmetic::And => a & b,
        Arithmetic::Xor => a ^ b,
        Arithmetic::Lsh => a << shift,
        Arithmetic::Rsh => a >> shift,
        Arithmetic::Arsh => (signed >> shift) as u64,
        Arithmetic::Neg => a.wrapping_neg(),
        Arithmetic::Mov => b,
    };
    if wide {
        result
    } else {
        u64::from(result as u32)
    }
}
