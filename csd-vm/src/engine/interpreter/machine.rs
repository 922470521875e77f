//! Registers, calls and the way through a program.

use super::alu;
use crate::engine::cage::{Access, Cage, PAGE, REACH};
use crate::engine::{Frame, guard};
use crate::program::insn::{CALL, FRAME, Insn, Kind};

/// Nested calls of functions: about as many as compiled code has stack for.
const CALLS_MAX: usize = 10_000;

/// Instructions between two looks at whether the program is to end.
const LOOK_EVERY: u64 = 64;

/// Fetch: the old value of an atomic operation is returned.
const FETCH: i32 = 1;
/// The operation of an atomic compare and exchange.
const COMPARE_EXCHANGE: i32 = 0xf1;

/// A decoded program.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) insns: Vec<Insn>,
    kinds: Vec<Kind>,
    functions: Vec<Frame>,
}

impl Source {
    /// Decodes; jumps and calls have to lead to slots of the program.
    pub(super) fn new(slots: &[u64], functions: &[Frame]) -> Result<Source, String> {
        let insns: Vec<Insn> = slots.iter().map(|slot| Insn::decode(*slot)).collect();
        let mut kinds = Vec::with_capacity(insns.len());
        let mut is_second = false;
        for (at, insn) in insns.iter().enumerate() {
            // The second half of a constant is never carried out, as the first goes past it.
            let kind = if is_second {
                Some(Kind::Exit)
            } else {
                insn.kind()
            };
            let kind = kind.ok_or_else(|| format!("slot {at} is no instruction"))?;
            is_second = !is_second && kind == Kind::Constant;
            let goes = match kind {
                Kind::Jump | Kind::Branch { .. } => i64::from(insn.offset),
                Kind::JumpLong => insn.imm.into(),
                Kind::Call if insn.src == 1 => insn.imm.into(),
                _ => 0,
            };
            let target = at as i64 + 1 + goes;
            let falls = !matches!(kind, Kind::Exit);
            if falls && !(0..insns.len() as i64).contains(&target) {
                return Err(format!("slot {at} leads out of the program"));
            }
            kinds.push(kind);
        }
        if insns.is_empty() || is_second {
            return Err("the program ends in the middle of an instruction".to_owned());
        }
        let mut functions = functions.to_vec();
        functions.sort_by_key(|frame| frame.first_slot);
        Ok(Source {
            insns,
            kinds,
            functions,
        })
    }

    /// Bytes of stack of the function that starts at `slot`, as the compiler is told.
    fn stack_bytes(&self, slot: usize) -> u64 {
        crate::engine::stack_bytes(&self.functions, slot as u64).into()
    }
}

/// How a run ended.
pub(super) enum End {
    Returned,
    /// The address of the first byte that could not be accessed.
    Fault(u64),
    Overflow,
    /// All its instructions are used up.
    Exhausted,
    /// Someone else has noted why.
    Stopping,
}

/// What a call keeps for its caller.
struct Call {
    returns_to: usize,
    kept: [u64; 4],
    stack_bytes: u64,
}

/// A program that runs.
pub(super) struct Machine<'a> {
    source: &'a Source,
    pub(super) registers: [u64; 11],
    /// The slot that comes next.
    next: usize,
    calls: Vec<Call>,
    /// Bytes of stack of the function that runs.
    stack_bytes: u64,
    instructions_max: u64,
    pub(super) instructions: u64,
    pub(super) accesses: u64,
}

impl<'a> Machine<'a> {
    pub(super) fn new(
        source: &'a Source,
        [r1, r2]: [u64; 2],
        stack_end: u64,
        instructions_max: u64,
    ) -> Machine<'a> {
        let mut registers = [0; 11];
        registers[1] = r1;
        registers[2] = r2;
        registers[usize::from(FRAME)] = stack_end;
        Machine {
            source,
            registers,
            next: 0,
            calls: Vec::new(),
            stack_bytes: source.stack_bytes(0),
            instructions_max,
            instructions: 0,
            accesses: 0,
        }
    }

    /// Runs until the program ends.
    pub(super) fn run(&mut self) -> End {
        loop {
            if self.instructions.is_multiple_of(LOOK_EVERY) && guard::is_stopping() {
                return End::Stopping;
            }
            if self.instructions >= self.instructions_max {
                return End::Exhausted;
            }
            self.instructions += 1;
            if let Err(end) = self.step() {
                return end;
            }
        }
    }

    fn step(&mut self) -> Result<(), End> {
        let at = self.next;
        // `Source::new` made sure that nothing leads out of the program.
        let (insn, kind) = (self.source.insns[at], self.source.kinds[at]);
        self.next = at + 1;
        let (dst, src) = (usize::from(insn.dst), usize::from(insn.src));
        match kind {
            Kind::Arithmetic {
                wide,
                operation,
                register,
            } => {
                let (left, right) = (self.registers[dst], self.right(insn, register));
                self.registers[dst] = match wide {
                    true => alu::wide(insn, operation, left, right),
                    false => alu::narrow(insn, operation, left, right),
                };
            }
            Kind::Swap => self.registers[dst] = alu::swap(insn, self.registers[dst]),
            Kind::Constant => {
                let high = self.source.insns[at + 1].imm.cast_unsigned();
                let low = insn.imm.cast_unsigned();
                self.registers[dst] = u64::from(high) << 32 | u64::from(low);
                self.next = at + 2;
            }
            Kind::Load(bytes) => {
                let value = self.load(self.address(src, insn), bytes)?;
                let extends = insn.opcode & 0xe0 == 0x80;
                self.registers[dst] = match extends {
                    true => alu::sign_extended(value, u32::from(bytes) * 8),
                    false => value,
                };
            }
            Kind::Store(bytes) => {
                self.store(self.address(dst, insn), bytes, self.registers[src])?;
            }
            Kind::StoreImmediate(bytes) => {
                let value = i64::from(insn.imm).cast_unsigned();
                self.store(self.address(dst, insn), bytes, value)?;
            }
            Kind::Atomic(bytes) => self.atomic(insn, bytes)?,
            Kind::Jump => self.jump(insn.offset.into()),
            Kind::JumpLong => self.jump(insn.imm),
            Kind::Branch { register } => {
                if alu::is_taken(insn, self.registers[dst], self.right(insn, register)) {
                    self.jump(insn.offset.into());
                }
            }
            Kind::Call if insn.src == 1 => self.enter(insn)?,
            Kind::Call => self.call_helper(insn)?,
            Kind::Exit => self.leave()?,
        }
        Ok(())
    }

    /// The right side of an operation.
    fn right(&self, insn: Insn, register: bool) -> u64 {
        match register {
            true => self.registers[usize::from(insn.src)],
            false => i64::from(insn.imm).cast_unsigned(),
        }
    }

    fn address(&self, register: usize, insn: Insn) -> u64 {
        self.registers[register].wrapping_add_signed(insn.offset.into())
    }

    fn jump(&mut self, distance: i32) {
        self.next = self.next.wrapping_add_signed(distance as isize);
    }

    fn enter(&mut self, insn: Insn) -> Result<(), End> {
        if self.calls.len() >= CALLS_MAX {
            return Err(End::Overflow);
        }
        let mut kept = [0; 4];
        kept.copy_from_slice(&self.registers[6..10]);
        self.calls.push(Call {
            returns_to: self.next,
            kept,
            stack_bytes: self.stack_bytes,
        });
        let frame = &mut self.registers[usize::from(FRAME)];
        *frame = frame.wrapping_sub(self.stack_bytes);
        self.jump(insn.imm);
        self.stack_bytes = self.source.stack_bytes(self.next);
        Ok(())
    }

    fn leave(&mut self) -> Result<(), End> {
        let Some(call) = self.calls.pop() else {
            return Err(End::Returned);
        };
        self.next = call.returns_to;
        self.registers[6..10].copy_from_slice(&call.kept);
        self.stack_bytes = call.stack_bytes;
        let frame = &mut self.registers[usize::from(FRAME)];
        *frame = frame.wrapping_add(self.stack_bytes);
        Ok(())
    }

    fn call_helper(&mut self, insn: Insn) -> Result<(), End> {
        debug_assert_eq!(insn.opcode, CALL);
        let mut arguments = [0; 5];
        arguments.copy_from_slice(&self.registers[1..6]);
        // SAFETY: a program is interpreted on this thread and in no helper; the frames from here up
        // to `interpret` hold nothing that is to be dropped if the helper ends it.
        let value = unsafe { guard::call_helper(arguments, insn.imm.cast_unsigned()) };
        self.registers[0] = value;
        self.registers[1..6].fill(0);
        Ok(())
    }

    fn load(&mut self, address: u64, bytes: u8) -> Result<u64, End> {
        self.accesses += 1;
        in_cage(|cage| read(cage, address, bytes, Access::Read))
    }

    fn store(&mut self, address: u64, bytes: u8, value: u64) -> Result<(), End> {
        self.accesses += 1;
        in_cage(|cage| write(cage, address, bytes, value))
    }

    /// Memory that can be read and not written faults before anything is changed.
    fn atomic(&mut self, insn: Insn, bytes: u8) -> Result<(), End> {
        self.accesses += 1;
        let (dst, src) = (usize::from(insn.dst), usize::from(insn.src));
        let address = self.address(dst, insn);
        let cut = |value: u64| {
            if bytes == 4 {
                u64::from(value as u32)
            } else {
                value
            }
        };
        let (operand, compared) = (cut(self.registers[src]), cut(self.registers[0]));
        let old = in_cage(|cage| {
            // Compiled code masks these, and takes the lower 32 bits of all other addresses.
            let address = address & (cage.layout().size() - 1);
            let old = read(cage, address, bytes, Access::Write)?;
            let new = alu::updated(insn.imm, old, operand, compared);
            write(cage, address, bytes, new)?;
            Ok(old)
        })?;
        if insn.imm == COMPARE_EXCHANGE {
            self.registers[0] = old;
        } else if insn.imm & FETCH != 0 {
            self.registers[src] = old;
        }
        Ok(())
    }
}

/// Lets `access` have the cage of the program that runs.
fn in_cage<R>(access: impl FnOnce(&mut Cage) -> Result<R, End>) -> Result<R, End> {
    guard::with_cage(access).unwrap_or(Err(End::Stopping))
}

fn read(cage: &mut Cage, address: u64, bytes: u8, access: Access) -> Result<u64, End> {
    let Some(at) = cage.check(address, bytes.into(), access) else {
        return Err(fault(cage, address, bytes, access));
    };
    let mut value = [0; 8];
    match cage.read_bytes(at, &mut value[..bytes.into()]) {
        Ok(()) => Ok(u64::from_le_bytes(value)),
        Err(_) => Err(fault(cage, address, bytes, access)),
    }
}

fn write(cage: &mut Cage, address: u64, bytes: u8, value: u64) -> Result<(), End> {
    let Some(at) = cage.check(address, bytes.into(), Access::Write) else {
        return Err(fault(cage, address, bytes, Access::Write));
    };
    let value = &value.to_le_bytes()[..bytes.into()];
    match cage.write_bytes(at, value) {
        Ok(()) => Ok(()),
        Err(_) => Err(fault(cage, address, bytes, Access::Write)),
    }
}

/// The first of the bytes that cannot be accessed so: where the processor faults. Bytes past the end
/// of the cage are in the guard behind it.
fn fault(cage: &Cage, address: u64, bytes: u8, access: Access) -> End {
    let start = address & (REACH - 1);
    let can = |offset: &u64| {
        let checked = (*offset < REACH).then(|| cage.check(*offset, 1, access));
        let checked = checked.flatten();
        checked.is_some_and(|at| cage.read_bytes(at, &mut [0]).is_ok())
    };
    let last = start + u64::from(bytes) - 1;
    // Access changes from page to page only.
    let pages = [start, last / PAGE * PAGE];
    let missing = pages.into_iter().find(|offset| !can(offset));
    End::Fault(cage.base() + missing.unwrap_or(start))
}
