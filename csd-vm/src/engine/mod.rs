//! What runs a linked program: an engine prepares it once, binds it to cages and runs it in there.
//!
//! The rest of the crate knows engines only by the traits here. [`ubpf::Compiler`] is the engine
//! of production; [`interpreter::Interpreter`], written on its own, runs the same programs
//! instruction by instruction and checks every access, which makes it the oracle of the tests.
//!
//! What a program computes depends on its instructions, its cage and its helpers alone: registers
//! start as 0 but for its arguments and the end of its stack, and those that a helper may use are 0 when it
//! returns.
//!
//! Whatever a program does ends in an [`Exit`]: loads and stores are confined to its
//! [`cage::Cage`], faults and time-outs are turned into an end of this program only by the module `guard`.
//! What engines do not do: check programs. They run what passed the structural validator; jumps
//! and calls into the middle of a two-slot instruction in particular must have been refused there.

pub mod cage;
mod guard;
pub mod interpreter;
#[cfg(test)]
mod tests;
pub mod ubpf;
mod watchdog;

use cage::{Cage, Layout};
pub use watchdog::{Deadline, Group, expire};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The program returned r0.
    Returned(u64),
    /// It accessed memory that is not there or not writable: the offset in the cage.
    Fault(u64),
    /// It ran out of stack: endless recursion.
    StackOverflow,
    /// The deadline passed.
    TimedOut,
    /// A helper ended it; the reason is with whoever implements [`Helpers`].
    Aborted,
}

/// What a helper says to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Called {
    /// The program goes on with this in r0.
    Value(u64),
    /// The program ends with [`Exit::Aborted`].
    Abort,
}

/// The helpers of one run.
pub trait Helpers {
    /// Carries out the call of helper `number` with r1 to r5 of a program in `cage`. Pointers
    /// among the arguments are as the program has them, unchecked: [`Cage::check`] translates
    /// them. It runs on the stack of the thread that started the run. A panic ends the program
    /// with [`Exit::Aborted`].
    fn call(&mut self, cage: &mut Cage, number: u32, arguments: [u64; 5]) -> Called;
}

/// A function of a linked program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where it starts, in slots of 8 bytes from the start of the program.
    pub first_slot: u32,
    /// Bytes of stack it uses, rounded up to a multiple of 16 by the engine.
    pub stack_bytes: u16,
}

/// Bytes of stack of the function that starts at `slot`, a multiple of 16. `functions` are in the order
/// of their first slots.
fn stack_bytes(functions: &[Frame], slot: u64) -> u16 {
    /// What a function may use that is not in the list: the most there is.
    const MAX: u16 = 512;
    let found = functions.binary_search_by_key(&slot, |frame| frame.first_slot.into());
    let bytes = found.map_or(MAX, |index| functions[index].stack_bytes);
    bytes.min(u16::MAX - 15).next_multiple_of(16)
}

/// A linked program as engines take it: validated, entry at slot 0.
#[derive(Clone, Copy)]
pub struct Linked<'a> {
    /// Its instructions of 8 bytes each, as they are in memory, relocated for static data at an
    /// address: the two-slot constants that are such addresses change with it, and nothing else.
    pub instructions: &'a dyn Fn(u64) -> Vec<u64>,
    /// Its functions, the entry included.
    pub functions: &'a [Frame],
}

/// Makes programs runnable.
pub trait Engine: Send + Sync {
    /// Code of `program` for any cage with `layout`.
    ///
    /// # Errors
    /// What the engine finds wrong; programs that passed the validator are expected to compile.
    fn prepare(&self, program: &Linked<'_>, layout: &Layout) -> Result<Box<dyn Prepared>, String>;

    /// Code of `program` that runs in `cage` only.
    ///
    /// # Errors
    /// As [`Engine::prepare`] and [`Prepared::bind`].
    fn compile(&self, program: &Linked<'_>, cage: &Cage) -> Result<Box<dyn Code>, String> {
        self.prepare(program, cage.layout())?.bind(cage)
    }
}

/// A program made ready once, to be bound to many cages.
pub trait Prepared: Send + Sync {
    /// Code that runs in `cage` only, where the static data is at the start of its data region.
    ///
    /// # Errors
    /// A cage with another layout than it was prepared for, or what the system refuses.
    fn bind(&self, cage: &Cage) -> Result<Box<dyn Code>, String>;
}

/// Whether the time of the program on this thread is over: helpers that take long look at this.
#[must_use]
pub fn is_overdue() -> bool {
    watchdog::is_overdue()
}

/// Ends what a time-out leaves behind: so that it is noticed and reported in time at any load, a
/// thread whose program was overdue may keep a real-time priority. To be called when the end has
/// been reported; the next run on the thread does it too.
pub fn settle() {
    guard::settle();
}

/// A program bound to a cage.
pub trait Code: Send {
    /// Runs it in `cage`, the one it was bound to, with `arguments` in r1 and r2, until it
    /// ends or `deadline` passes. All other registers start as 0, but r10, the end of the stack.
    ///
    /// # Panics
    /// With another cage, and when a helper of a run starts another run on the same thread.
    fn run(
        &self,
        cage: &mut Cage,
        arguments: [u64; 2],
        helpers: &mut dyn Helpers,
        deadline: Deadline,
    ) -> Exit;
}
