//! The structural validator: rules that every instruction of a linked program keeps.
//!
//! It makes sure that the engine meets only what it executes as this crate understands it: known
//! opcodes with empty reserved fields, jumps to instructions of the same function, calls of known
//! helpers and of the first instructions of functions, no way past the end of a function, an
//! untouched frame pointer and a bounded frame. The engine's own checks are weaker; some of what it
//! lets through (a call into the middle of a constant) makes it compile jumps to anywhere.
//!
//! It does not look at values: memory accesses are the cage's business, time is the watchdog's.

use super::error::{LoadError, Place, Violation};
use super::helpers::helper_name;
use super::insn::{Arithmetic, CALL_REGISTER, FRAME, Insn, Kind, LDDW};
use super::{FRAME_BYTES, Function, LinkLimits, check_limit};

/// Bit of the immediate of an atomic operation: the old value is returned.
const FETCH: i32 = 0x01;
const EXCHANGE: i32 = 0xe0 | FETCH;
const COMPARE_EXCHANGE: i32 = 0xf0 | FETCH;

type Checked = Result<(), Violation>;

/// Validates `slots`, made up of `functions` without gaps; fills in their stack use and returns
/// the helpers called, ascending.
pub(super) fn validate(
    slots: &[u64],
    functions: &mut [Function],
    limits: &LinkLimits,
) -> Result<Vec<u32>, LoadError> {
    let limit = limits.instructions.min(LinkLimits::MAX_INSTRUCTIONS);
    check_limit("instructions", slots.len() as u64, limit)?;
    let starts: Vec<usize> = functions.iter().map(|function| function.first).collect();
    let mut helpers = Vec::new();
    for function in functions {
        let body = slots
            .get(function.first..)
            .and_then(|rest| rest.get(..function.slots))
            .unwrap_or_default();
        let mut checker = FunctionChecker::new(body, function.first, &starts);
        let frame = checker.run(limits).map_err(|(index, violation)| {
            let place = Place {
                section: function.section.clone(),
                function: function.name.clone(),
                instruction: function.first_in_section + index,
            };
            LoadError::Refused { place, violation }
        })?;
        function.stack_bytes = frame;
        helpers.append(&mut checker.helpers);
    }
    helpers.sort_unstable();
    helpers.dedup();
    Ok(helpers)
}

/// Checks one function.
struct FunctionChecker<'a> {
    slots: &'a [u64],
    /// Its first slot in the program.
    first: usize,
    /// First slots of all functions, ascending.
    starts: &'a [usize],
    /// Which slots are second halves of constants.
    second_half: Vec<bool>,
    helpers: Vec<u32>,
}

impl<'a> FunctionChecker<'a> {
    fn new(slots: &'a [u64], first: usize, starts: &'a [usize]) -> Self {
        FunctionChecker {
            slots,
            first,
            starts,
            second_half: vec![false; slots.len()],
            helpers: Vec::new(),
        }
    }

    /// Returns the bytes of the stack frame.
    fn run(&mut self, limits: &LinkLimits) -> Result<u32, (usize, Violation)> {
        self.find_constants()?;
        let mut stack = StackUse::new(self.slots.len());
        for (index, insn) in self.instructions() {
            if let Some(target) = self.check(index, insn).map_err(|v| (index, v))? {
                stack.label(target);
            }
        }
        self.check_end()?;
        let limit = limits.stack_bytes.min(LinkLimits::MAX_STACK);
        for (index, insn) in self.instructions() {
            stack.step(index, insn);
            stack.check(limit).map_err(|v| (index, v))?;
        }
        Ok(stack.frame())
    }

    /// The instructions with their first slots.
    fn instructions(&self) -> Vec<(usize, Insn)> {
        let slots = self.slots.iter().enumerate();
        slots
            .filter(|(index, _)| !self.second_half[*index])
            .map(|(index, slot)| (index, Insn::decode(*slot)))
            .collect()
    }

    fn find_constants(&mut self) -> Result<(), (usize, Violation)> {
        let mut index = 0;
        while let Some(slot) = self.slots.get(index) {
            let insn = Insn::decode(*slot);
            index += 1;
            if insn.opcode == LDDW {
                let half = self.slots.get(index).map(|slot| Insn::decode(*slot));
                check_second_half(half).map_err(|v| (index - 1, v))?;
                self.second_half[index] = true;
                index += 1;
            }
        }
        Ok(())
    }

    /// Checks one instruction; returns where it may jump to.
    fn check(&mut self, index: usize, insn: Insn) -> Result<Option<usize>, Violation> {
        if insn.opcode == CALL_REGISTER {
            return Err(Violation::IndirectCall);
        }
        let kind = insn.kind().ok_or(Violation::Opcode(insn.opcode))?;
        check_registers(insn)?;
        check_reserved(insn, kind)?;
        check_frame_pointer(insn, kind)?;
        match kind {
            Kind::Arithmetic {
                wide,
                operation,
                register,
            } => check_arithmetic(insn, wide, operation, register).map(|()| None),
            Kind::Swap => check_swap(insn).map(|()| None),
            Kind::Atomic(_) => check_atomic(insn).map(|()| None),
            Kind::Jump | Kind::Branch { .. } => {
                self.check_jump(index, insn.offset.into()).map(Some)
            }
            Kind::JumpLong => self.check_jump(index, insn.imm.into()).map(Some),
            Kind::Call => self.check_call(index, insn).map(|()| None),
            Kind::Constant
            | Kind::Load(_)
            | Kind::Store(_)
            | Kind::StoreImmediate(_)
            | Kind::Exit => Ok(None),
        }
    }

    fn check_jump(&self, index: usize, distance: i64) -> Result<usize, Violation> {
        let target = index as i64 + 1 + distance;
        let shown = target + self.first as i64;
        let slot = usize::try_from(target)
            .ok()
            .filter(|&slot| slot < self.slots.len())
            .ok_or(Violation::JumpOutside(shown))?;
        if self.second_half[slot] {
            return Err(Violation::JumpIntoConstant(shown));
        }
        // The engine refuses it.
        if slot == index {
            return Err(Violation::JumpToItself);
        }
        Ok(slot)
    }

    fn check_call(&mut self, index: usize, insn: Insn) -> Checked {
        match insn.src {
            0 => {
                let number = u32::try_from(insn.imm)
                    .ok()
                    .filter(|&number| helper_name(number).is_some())
                    .ok_or(Violation::Helper(insn.imm))?;
                self.helpers.push(number);
                Ok(())
            }
            1 => {
                let target = (self.first + index) as i64 + 1 + i64::from(insn.imm);
                usize::try_from(target)
                    .ok()
                    .filter(|slot| self.starts.binary_search(slot).is_ok())
                    .map(|_| ())
                    .ok_or(Violation::CallTarget(target))
            }
            _ => Err(Violation::Reserved("source")),
        }
    }

    /// The last instruction must not run on into whatever follows.
    fn check_end(&self) -> Result<(), (usize, Violation)> {
        match self.instructions().last() {
            Some((_, insn))
                if matches!(insn.kind(), Some(Kind::Exit | Kind::Jump | Kind::JumpLong)) =>
            {
                Ok(())
            }
            Some((index, _)) => Err((*index, Violation::FallsThrough)),
            None => Err((0, Violation::FallsThrough)),
        }
    }
}

fn check_second_half(half: Option<Insn>) -> Checked {
    match half {
        Some(Insn {
            opcode: 0,
            dst: 0,
            src: 0,
            offset: 0,
            ..
        }) => Ok(()),
        _ => Err(Violation::IncompleteConstant),
    }
}

fn check_registers(insn: Insn) -> Checked {
    match insn.dst.max(insn.src) {
        register if register > FRAME => Err(Violation::Register(register)),
        _ => Ok(()),
    }
}

/// Fields that an instruction does not use hold zero.
fn check_reserved(insn: Insn, kind: Kind) -> Checked {
    let (dst, src, offset, imm) = match kind {
        // The offset selects signed division and sign extension, checked there.
        Kind::Arithmetic { register, .. } => (true, register, true, !register),
        Kind::Swap => (true, false, false, true),
        Kind::Constant => (true, false, false, true),
        Kind::Load(_) | Kind::Store(_) => (true, true, true, false),
        Kind::StoreImmediate(_) => (true, false, true, true),
        Kind::Atomic(_) => (true, true, true, true),
        Kind::Jump => (false, false, true, false),
        Kind::JumpLong => (false, false, false, true),
        Kind::Branch { register } => (true, register, true, !register),
        Kind::Call => (false, true, false, true),
        Kind::Exit => (false, false, false, false),
    };
    let unused = |used: bool, value: bool, field| match used || !value {
        true => Ok(()),
        false => Err(Violation::Reserved(field)),
    };
    unused(dst, insn.dst != 0, "destination")?;
    unused(src, insn.src != 0, "source")?;
    unused(offset, insn.offset != 0, "offset")?;
    unused(imm, insn.imm != 0, "immediate")
}

/// r10 is read only, and the engine cannot compare it from the left.
fn check_frame_pointer(insn: Insn, kind: Kind) -> Checked {
    let written = match kind {
        Kind::Arithmetic { .. } | Kind::Swap | Kind::Constant | Kind::Load(_) => insn.dst,
        Kind::Atomic(_) if insn.imm & FETCH != 0 => insn.src,
        _ => 0,
    };
    if written == FRAME {
        return Err(Violation::FramePointer);
    }
    if matches!(kind, Kind::Branch { .. }) && insn.dst == FRAME {
        return Err(Violation::FramePointerCompared);
    }
    Ok(())
}

fn check_arithmetic(insn: Insn, wide: bool, operation: Arithmetic, register: bool) -> Checked {
    match operation {
        Arithmetic::Div | Arithmetic::Mod => check_division(insn, register),
        Arithmetic::Mov => check_move(insn, wide, register),
        Arithmetic::Lsh | Arithmetic::Rsh | Arithmetic::Arsh => check_shift(insn, wide, register),
        Arithmetic::Neg => check_negation(insn),
        _ => check_no_offset(insn),
    }
}

/// By a register that is zero: the quotient is 0 and the remainder the dividend.
fn check_division(insn: Insn, register: bool) -> Checked {
    if !(0..=1).contains(&insn.offset) {
        return Err(Violation::Reserved("offset"));
    }
    if !register && insn.imm == 0 {
        return Err(Violation::DivisionByZero);
    }
    Ok(())
}

fn check_move(insn: Insn, wide: bool, register: bool) -> Checked {
    match insn.offset {
        0 => Ok(()),
        8 | 16 if register => Ok(()),
        32 if register && wide => Ok(()),
        bits if register => Err(Violation::SignExtension(bits)),
        _ => Err(Violation::Reserved("offset")),
    }
}

/// By a register: the amount is taken modulo the width.
fn check_shift(insn: Insn, wide: bool, register: bool) -> Checked {
    let width = if wide { 64 } else { 32 };
    if !register && !(0..width).contains(&insn.imm) {
        return Err(Violation::Shift(insn.imm));
    }
    check_no_offset(insn)
}

fn check_negation(insn: Insn) -> Checked {
    if insn.imm != 0 {
        return Err(Violation::Reserved("immediate"));
    }
    check_no_offset(insn)
}

fn check_no_offset(insn: Insn) -> Checked {
    match insn.offset {
        0 => Ok(()),
        _ => Err(Violation::Reserved("offset")),
    }
}

fn check_swap(insn: Insn) -> Checked {
    match insn.imm {
        16 | 32 | 64 => Ok(()),
        bits => Err(Violation::Swap(bits)),
    }
}

fn check_atomic(insn: Insn) -> Checked {
    // Addition, or, and, exclusive or; each with or without the old value.
    match insn.imm & !FETCH {
        0x00 | 0x40 | 0x50 | 0xa0 => Ok(()),
        _ if insn.imm == EXCHANGE || insn.imm == COMPARE_EXCHANGE => Ok(()),
        _ => Err(Violation::Atomic(insn.imm)),
    }
}

/// Follows constant distances from r10 within stretches of code that have a single way in. That
/// sees every direct access and every address of an object on the stack as compilers form it.
struct StackUse {
    labels: Vec<bool>,
    /// For each register, its distance from r10 if that is known.
    distance: [Option<i64>; 11],
    /// The lowest distance seen.
    lowest: i64,
    above: bool,
}

impl StackUse {
    fn new(slots: usize) -> StackUse {
        StackUse {
            labels: vec![false; slots],
            distance: Self::unknown(),
            lowest: 0,
            above: false,
        }
    }

    fn unknown() -> [Option<i64>; 11] {
        let mut distance = [None; 11];
        distance[usize::from(FRAME)] = Some(0);
        distance
    }

    /// Something jumps to `slot`.
    fn label(&mut self, slot: usize) {
        if let Some(label) = self.labels.get_mut(slot) {
            *label = true;
        }
    }

    fn step(&mut self, index: usize, insn: Insn) {
        if self.labels[index] {
            self.distance = Self::unknown();
        }
        let Some(kind) = insn.kind() else { return };
        match kind {
            Kind::Arithmetic {
                wide,
                operation,
                register,
            } => {
                let result = self.arithmetic(insn, wide, operation, register);
                self.set(insn.dst, result);
            }
            Kind::Swap | Kind::Constant => self.set(insn.dst, None),
            Kind::Load(bytes) => {
                self.access(insn.src, insn.offset, bytes);
                self.set(insn.dst, None);
            }
            Kind::Store(bytes) | Kind::StoreImmediate(bytes) => {
                self.access(insn.dst, insn.offset, bytes);
            }
            Kind::Atomic(bytes) => {
                self.access(insn.dst, insn.offset, bytes);
                self.set(insn.src, None);
                self.set(0, None);
            }
            Kind::Call => (0..=5).for_each(|register| self.set(register, None)),
            Kind::Jump | Kind::JumpLong | Kind::Exit => self.distance = Self::unknown(),
            Kind::Branch { .. } => {}
        }
    }

    fn arithmetic(
        &self,
        insn: Insn,
        wide: bool,
        operation: Arithmetic,
        register: bool,
    ) -> Option<i64> {
        let left = self.distance[usize::from(insn.dst)];
        let immediate = i64::from(insn.imm);
        match (operation, register) {
            _ if !wide => None,
            (Arithmetic::Mov, true) if insn.offset == 0 => self.distance[usize::from(insn.src)],
            (Arithmetic::Add, false) => left?.checked_add(immediate),
            (Arithmetic::Sub, false) => left?.checked_sub(immediate),
            _ => None,
        }
    }

    fn set(&mut self, register: u8, distance: Option<i64>) {
        if register == FRAME {
            return;
        }
        self.distance[usize::from(register)] = distance;
        self.lowest = self.lowest.min(distance.unwrap_or(0));
    }

    fn access(&mut self, base: u8, offset: i16, bytes: u8) {
        if let Some(distance) = self.distance[usize::from(base)] {
            let start = distance.saturating_add(offset.into());
            self.lowest = self.lowest.min(start);
            self.above |= start.saturating_add(bytes.into()) > 0;
        }
    }

    fn check(&self, limit: u32) -> Checked {
        if self.above {
            return Err(Violation::AboveFrame);
        }
        let used = self.lowest.unsigned_abs();
        if used > u64::from(limit) {
            return Err(Violation::Stack {
                used,
                limit: limit.into(),
            });
        }
        Ok(())
    }

    /// Bytes of the frame, once checked. Never less than what clang may use, for what was not seen.
    fn frame(&self) -> u32 {
        u32::try_from(self.lowest.unsigned_abs())
            .unwrap_or(u32::MAX)
            .max(FRAME_BYTES)
            .next_multiple_of(16)
    }
}
