//! What runs a linked program: an engine compiles it for a cage and runs it in there.
//!
//! The rest of the crate knows engines only by the traits here.

use std::time::Instant;

use crate::program::Program;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The program returned r0.
    Returned(u64),
    /// It accessed memory that is not there: the offset in the cage.
    Fault(u64),
    /// It ran out of native stack: endless recursion.
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
    /// Carries out the call of helper `number` with r1 to r5. Pointers among the arguments are as
    /// the program has them, unchecked: [`cage::Cage::check`] and its companions translate them.
    fn call(&mut self, number: u32, arguments: [u64; 5]) -> Called;
}

/// Compiles programs.
pub trait Engine: Send + Sync {
    /// Code of `program` that runs in the cage at `base` only.
    ///
    /// # Errors
    /// What the engine finds wrong; programs that passed the validator are expected to compile.
    fn compile(&self, program: &Program, cage: &cage::Cage) -> Result<Box<dyn Code>, String>;
}

/// A compiled (or interpretable) program, bound to a cage.
pub trait Code: Send {
    /// Runs it in `cage`, the one it was compiled for, with `arguments` in r1 and r2, until it
    /// ends or `deadline` passes.
    fn run(
        &self,
        cage: &mut cage::Cage,
        arguments: [u64; 2],
        helpers: &mut dyn Helpers,
        deadline: Instant,
    ) -> Exit;
}
