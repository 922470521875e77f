//! Programs run instruction by instruction: what compiled code is held against.
//!
//! It shares nothing with the compiler but the cage and the code around programs: instructions are
//! decoded and carried out as RFC 9669 has them, in safe code. What both agree on,
//! to the last bit: results, memory, the helpers that are called and with what, where the
//! first byte is that cannot be accessed. Addresses are taken as compiled code takes
//! them; r0 and r3 to r9 are 0 at the start, r1 to r5 after a helper.
//!
//! Where they differ: compiled code keeps return addresses on a stack of 512 KiB and overflows it
//! a few calls after or before the interpreter, which counts them. Of two pages that an access needs
//! and neither of which it can have, the interpreter names the first, the processor any.

mod alu;
mod machine;

use std::cell::Cell;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use self::machine::{End, Machine, Source};
use super::cage::{Cage, Layout, Region};
use super::{Code, Deadline, Engine, Exit, Helpers, Linked, Prepared, guard};
use crate::program::insn::{Insn, LDDW};

/// The engine of tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interpreter;

impl Engine for Interpreter {
    fn prepare(&self, program: &Linked<'_>, layout: &Layout) -> Result<Box<dyn Prepared>, String> {
        prepare(program, layout, Arc::new(Meter::new(u64::MAX)))
    }
}

/// Instructions counted and limited.
#[derive(Debug)]
pub struct Meter {
    instructions_max: u64,
    instructions: AtomicU64,
    accesses: AtomicU64,
}

impl Meter {
    /// Runs of more than `instructions_max` instructions end as if their time were over.
    #[must_use]
    pub fn new(instructions_max: u64) -> Meter {
        Meter {
            instructions_max,
            instructions: AtomicU64::new(0),
            accesses: AtomicU64::new(0),
        }
    }

    /// Instructions of the last run.
    #[must_use]
    pub fn instructions(&self) -> u64 {
        self.instructions.load(Relaxed)
    }

    /// Accesses to memory of the last run.
    #[must_use]
    pub fn accesses(&self) -> u64 {
        self.accesses.load(Relaxed)
    }
}

/// An interpreter that counts and limits instructions, so that endless programs end at the same
/// place each time.
#[derive(Clone, Debug)]
pub struct Metered(pub Arc<Meter>);

impl Engine for Metered {
    fn prepare(&self, program: &Linked<'_>, layout: &Layout) -> Result<Box<dyn Prepared>, String> {
        prepare(program, layout, Arc::clone(&self.0))
    }
}

fn prepare(
    program: &Linked<'_>,
    layout: &Layout,
    meter: Arc<Meter>,
) -> Result<Box<dyn Prepared>, String> {
    const SOMEWHERE: u64 = 1 << 40;
    const ELSEWHERE: u64 = SOMEWHERE + (1 << 36);
    let instructions = (program.instructions)(SOMEWHERE);
    let elsewhere = (program.instructions)(ELSEWHERE);
    let differ = |at: &usize| instructions[at - 1..=*at] != elsewhere[at - 1..=*at];
    let seconds = (1..instructions.len()).filter(|at| instructions[at - 1] as u8 == LDDW);
    let addresses = seconds.filter(differ).map(|second| {
        let value = constant(&instructions[second - 1..=second]);
        (second - 1, value.wrapping_sub(SOMEWHERE))
    });
    let addresses = addresses.collect();
    let source = Source::new(&instructions, program.functions)?;
    Ok(Box::new(Relocatable {
        layout: *layout,
        source,
        addresses,
        meter,
    }))
}

/// The value of a two-slot constant.
fn constant(slots: &[u64]) -> u64 {
    slots[1] >> 32 << 32 | slots[0] >> 32
}

/// A program and where it has addresses of static data: slot, and byte of the data.
struct Relocatable {
    layout: Layout,
    source: Source,
    addresses: Vec<(usize, u64)>,
    meter: Arc<Meter>,
}

impl Prepared for Relocatable {
    fn bind(&self, cage: &Cage) -> Result<Box<dyn Code>, String> {
        if self.layout != *cage.layout() {
            return Err("the cage has another layout".to_owned());
        }
        let mut source = self.source.clone();
        for (slot, offset) in &self.addresses {
            let value = cage.address(Region::Data).wrapping_add(*offset);
            let halves = [value as u32, (value >> 32) as u32].map(u32::cast_signed);
            for (insn, imm) in source.insns[*slot..].iter_mut().zip(halves) {
                *insn = Insn { imm, ..*insn };
            }
        }
        Ok(Box::new(Interpreted {
            source,
            base: cage.base(),
            meter: Arc::clone(&self.meter),
        }))
    }
}

struct Interpreted {
    source: Source,
    base: u64,
    meter: Arc<Meter>,
}

impl Code for Interpreted {
    fn run(
        &self,
        cage: &mut Cage,
        arguments: [u64; 2],
        helpers: &mut dyn Helpers,
        deadline: Deadline,
    ) -> Exit {
        assert_eq!(self.base, cage.base(), "a program of another cage");
        let stack = cage.layout().span(Region::Stack);
        let stack_end = cage.base() + stack.end();
        let limit = self.meter.instructions_max;
        let mut machine = Machine::new(&self.source, arguments, stack_end, limit);
        CURRENT.set((&raw mut machine).cast());
        let program = guard::Program::Interpreted(interpret);
        // SAFETY: `interpret` keeps to the stack it is called on, and calls the dispatcher only. It
        // and what it calls have nothing to drop when they are cut off there.
        let exit = unsafe { guard::run(program, cage, arguments, helpers, deadline) };
        CURRENT.set(null_mut());
        self.meter.instructions.store(machine.instructions, Relaxed);
        self.meter.accesses.store(machine.accesses, Relaxed);
        exit
    }
}

thread_local! {
    /// The machine that is to run on this thread.
    static CURRENT: Cell<*mut Machine<'static>> = const { Cell::new(null_mut()) };
}

/// Runs the machine of this thread.
unsafe extern "C" fn interpret(_: u64, _: u64, _: u64, _: u64) -> u64 {
    // SAFETY: `run` has put its machine there, waits for this call, and does not touch it meanwhile.
    let machine = unsafe { &mut *CURRENT.get() };
    match machine.run() {
        End::Returned => return machine.registers[0],
        End::Fault(address) => guard::note_fault(address),
        End::Overflow => guard::note_stack_overflow(),
        End::Exhausted => guard::note_timeout(),
        End::Stopping => {}
    }
    // SAFETY: called by the program's entry on its own stack; nothing here is to be dropped.
    unsafe { guard::abandon() }
}
