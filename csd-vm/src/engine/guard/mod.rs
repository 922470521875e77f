//! Runs a program so that nothing it does ends more than itself.
//!
//! A program runs on a stack of its own ([`asm`]), its helpers on the stack of the thread that
//! started it. What ends it from outside its own code:
//!
//! * a fault (SIGSEGV, SIGBUS, SIGFPE, SIGILL) of an instruction of the program or of the code
//!   around it: the handler ([`signals`]) lets the thread resume at `recover`. A fault below its
//!   kernel stack is endless recursion;
//! * the deadline: the watchdog signals the thread. While the program runs, the handler resumes at
//!   `recover`; while a helper runs, it notes the wish, which `dispatch` looks at after every
//!   helper. Between the two there is no instruction where a signal is lost;
//! * a helper that says so, or panics.
//!
//! A fault anywhere else goes to whoever handled the signal before. A bus error of a helper in
//! the window of its cage (a file cut off under its mapping) puts a page of zeros there and ends
//! the program when the helper returns. [`copy`] and [`inspect`] report faults of their accesses
//! to their callers.

mod asm;
mod inspection;
mod run;
mod segment;
mod signals;
mod stack;

pub(super) use inspection::inspect;
pub(super) use run::{
    Program, is_stopping, note_fault, note_stack_overflow, note_timeout, run, settle, with_cage,
};
pub(super) use signals::deadline_signal;

/// Address of the function programs call with the number of a helper: the external dispatcher of
/// the engine.
pub(super) fn dispatcher() -> unsafe extern "C" fn() {
    asm::dispatch
}

/// Calls helper `number` for an interpreter, on the stack of the host as compiled code does. It does
/// not return if the program is to end.
///
/// # Safety
/// A program is interpreted on this thread and is not in a helper; no frame between it and the
/// caller has anything to drop.
pub(super) unsafe fn call_helper([a, b, c, d, e]: [u64; 5], number: u32) -> u64 {
    type Dispatch = unsafe extern "C" fn(u64, u64, u64, u64, u64, u32) -> u64;
    // SAFETY: the function takes these arguments and keeps the registers that a C function keeps.
    let dispatch =
        unsafe { std::mem::transmute::<unsafe extern "C" fn(), Dispatch>(asm::dispatch) };
    // SAFETY: the contract is the caller's.
    unsafe { dispatch(a, b, c, d, e, number) }
}

/// Copies `bytes` bytes and tells whether all of them could be read and written.
///
/// # Safety
/// The ranges do not overlap; nothing else accesses `to` meanwhile, or writes `from` if it is
/// memory of this process alone. Memory that is not mapped, or not as needed, is no violation.
pub(super) unsafe fn copy(to: *mut u8, from: *const u8, bytes: usize) -> bool {
    signals::install();
    // SAFETY: the contract is the caller's; faults resume at the failure exit of the copy.
    unsafe { asm::copy(to, from, bytes) != 0 }
}

/// Ends the program that runs on this thread; the reason has been noted.
///
/// # Safety
/// A program runs on this thread and is not in a helper; no frame between it and the caller has
/// anything to drop.
pub(super) unsafe fn abandon() -> ! {
    // SAFETY: the contract is the caller's; the current run of the thread is the program's.
    unsafe { asm::abandon(run::current()) }
}
