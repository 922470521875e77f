//! One run of a program, as the code around it and the signal handlers see it.

use std::cell::Cell;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{null, null_mut};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64, compiler_fence};

use super::asm;
use super::segment;
use super::signals;
use super::stack::{KernelStack, SignalStack};
use crate::engine::cage::Cage;
use crate::engine::watchdog::{self, Slot};
use crate::engine::{Called, Deadline, Exit, Helpers};

/// No program runs.
pub(super) const OUTSIDE: u32 = 0;
/// Compiled code runs.
pub(super) const COMPILED: u32 = 1;
/// A helper runs.
pub(super) const HELPER: u32 = 2;
/// The interpreter runs.
pub(super) const INTERPRETED: u32 = 3;

const ABORTED: u32 = 1;
const TIMED_OUT: u32 = 2;
const FAULT: u32 = 3;
const STACK_OVERFLOW: u32 = 4;

/// State of the program on a thread. Written and read by this thread alone, also from its signal
/// handlers and the assembly around programs, hence atomics (plain moves) and a fixed layout.
#[repr(C)]
pub(super) struct Run {
    /// Stack pointer of the host while a program runs.
    pub(super) host_sp: AtomicU64,
    /// Where the stack of programs starts.
    pub(super) kernel_sp: AtomicU64,
    /// Stack pointer of the program while a helper runs.
    pub(super) resume_sp: AtomicU64,
    /// What r0 was at the end.
    pub(super) value: AtomicU64,
    /// What runs now.
    pub(super) mode: AtomicU32,
    /// What runs when no helper does.
    pub(super) inner: AtomicU32,
    /// Not 0 when the program is to end, and why.
    pub(super) stop: AtomicU32,
    /// Address of a fault.
    fault: AtomicU64,
    /// Compiled code.
    code_start: AtomicU64,
    code_end: AtomicU64,
    /// The window of the cage.
    window_start: AtomicU64,
    window_end: AtomicU64,
    /// What to access for [`STACK_OVERFLOW`].
    stack_guard: AtomicU64,
    stack_guard_end: AtomicU64,
    /// The [`Context`] of helpers.
    context: Cell<*mut c_void>,
}

/// What helpers work with.
struct Context<'a> {
    cage: &'a mut Cage,
    helpers: &'a mut dyn Helpers,
}

/// What to run.
#[derive(Clone, Copy)]
pub(in crate::engine) enum Program {
    /// Compiled code that starts at `start` and is `len` bytes long.
    Compiled {
        /// Its first instruction.
        start: u64,
        /// Its bytes.
        len: u64,
    },
    /// A function with the calling convention of compiled code that interprets a program. It has
    /// nothing to drop when it, or what it calls, is cut off by [`super::abandon`] or in
    /// [`super::call_helper`].
    Interpreted(unsafe extern "C" fn(r1: u64, r2: u64, zero: u64, stack_end: u64) -> u64),
}

/// What a thread needs to run programs.
struct Thread {
    run: Box<Run>,
    stack: KernelStack,
    slot: Slot,
    _signal_stack: SignalStack,
}

thread_local! {
    static THREAD: Thread = Thread::new().expect("no memory for the stacks of a kernel thread");
    /// The run of [`THREAD`]; for signal handlers, hence without destructor or lazy set-up.
    static CURRENT: Cell<*const Run> = const { Cell::new(null()) };
}

/// The run of this thread; null before its first.
pub(super) fn current() -> *const Run {
    CURRENT.get()
}

impl Thread {
    fn new() -> std::io::Result<Thread> {
        signals::install();
        signals::unblock();
        let stack = KernelStack::new()?;
        let run = Box::new(Run::new(&stack));
        run.kernel_sp.store(stack.top(&raw const *run), Relaxed);
        let thread = Thread {
            _signal_stack: SignalStack::ensure()?,
            slot: watchdog::register(),
            run,
            stack,
        };
        CURRENT.set(&raw const *thread.run);
        Ok(thread)
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        debug_assert!(self.stack.guard().start == self.run.stack_guard.load(Relaxed));
        CURRENT.set(null());
    }
}

impl Run {
    fn new(stack: &KernelStack) -> Run {
        let guard = stack.guard();
        Run {
            host_sp: AtomicU64::new(0),
            kernel_sp: AtomicU64::new(0),
            resume_sp: AtomicU64::new(0),
            value: AtomicU64::new(0),
            mode: AtomicU32::new(OUTSIDE),
            inner: AtomicU32::new(OUTSIDE),
            stop: AtomicU32::new(0),
            fault: AtomicU64::new(0),
            code_start: AtomicU64::new(0),
            code_end: AtomicU64::new(0),
            window_start: AtomicU64::new(0),
            window_end: AtomicU64::new(0),
            stack_guard: AtomicU64::new(guard.start),
            stack_guard_end: AtomicU64::new(guard.end),
            context: Cell::new(null_mut()),
        }
    }

    fn prepare(&self, program: Program, cage: &Cage) -> u64 {
        let (entry, len, inner) = match program {
            Program::Compiled { start, len } => (start, len, COMPILED),
            Program::Interpreted(function) => (function as usize as u64, 0, INTERPRETED),
        };
        let window = cage.layout().span(crate::engine::cage::Region::Window);
        self.code_start.store(entry, Relaxed);
        self.code_end.store(entry + len, Relaxed);
        self.window_start.store(cage.base() + window.start, Relaxed);
        self.window_end.store(cage.base() + window.end(), Relaxed);
        self.inner.store(inner, Relaxed);
        self.stop.store(0, Relaxed);
        entry
    }

    /// Whether the program runs at `pc`, where it can be ended at once.
    pub(super) fn is_interruptible_at(&self, pc: u64) -> bool {
        let code = self.code_start.load(Relaxed)..self.code_end.load(Relaxed);
        match self.mode.load(Relaxed) {
            COMPILED => code.contains(&pc) || asm::is_ours(pc),
            _ => false,
        }
    }

    /// Whether a fault at `pc` is the program's. Interpreters copy what they access.
    pub(super) fn is_fault_of_program(&self, pc: u64) -> bool {
        self.is_interruptible_at(pc)
    }

    /// Whether a helper runs and `address` is in the window of its cage.
    pub(super) fn is_window_of_helper(&self, address: u64) -> bool {
        let window = self.window_start.load(Relaxed)..self.window_end.load(Relaxed);
        self.mode.load(Relaxed) == HELPER && window.contains(&address)
    }

    /// Notes that the program is to end because of an access to `address`.
    pub(super) fn note_fault(&self, address: u64) {
        let reason = match self.in_stack_guard(address) {
            true => STACK_OVERFLOW,
            false => FAULT,
        };
        self.fault.store(address, Relaxed);
        self.note(reason);
    }

    /// Notes that the program is to end because its time is over.
    pub(super) fn note_timeout(&self) {
        self.note(TIMED_OUT);
    }

    fn note(&self, reason: u32) {
        if self.stop.load(Relaxed) == 0 {
            self.stop.store(reason, Relaxed);
        }
    }

    fn in_stack_guard(&self, address: u64) -> bool {
        let guard = self.stack_guard.load(Relaxed)..self.stack_guard_end.load(Relaxed);
        guard.contains(&address)
    }

    fn exit(&self, abandoned: bool, cage: &Cage) -> Exit {
        if !abandoned {
            return Exit::Returned(self.value.load(Relaxed));
        }
        let offset = self.fault.load(Relaxed).wrapping_sub(cage.base());
        match self.stop.load(Relaxed) {
            ABORTED => Exit::Aborted,
            TIMED_OUT => Exit::TimedOut,
            FAULT if !cage.layout().below_stack(offset) => Exit::Fault(offset),
            _ => Exit::StackOverflow,
        }
    }
}

/// Runs `program` in `cage` with `arguments` until it ends or `deadline` passes.
///
/// # Safety
/// The program is code made for this cage by an engine: it accesses memory masked into the cage, by
/// way of the segment of the cage, or checked, keeps to the stack it is started on and calls nothing but `dispatcher`.
pub(in crate::engine) unsafe fn run(
    program: Program,
    cage: &mut Cage,
    arguments: [u64; 2],
    helpers: &mut dyn Helpers,
    deadline: Deadline,
) -> Exit {
    THREAD.with(|thread| {
        let run = &*thread.run;
        let nested = run.mode.load(Relaxed) != OUTSIDE;
        assert!(
            !nested,
            "a helper started a program on the thread of its own"
        );
        let entry = run.prepare(program, cage);
        let stack = cage.layout().span(crate::engine::cage::Region::Stack);
        let stack_end = cage.base() + stack.end();
        segment::set(cage.base());
        let mut context = Context { cage, helpers };
        run.context.set((&raw mut context).cast());
        let watch = thread.slot.watch(deadline);
        compiler_fence(std::sync::atomic::Ordering::SeqCst);
        // SAFETY: `run` outlives the call and is this thread's, its kernel stack is mapped and not
        // in use; the contract on `entry` is the caller's. `context` stays in place until the call
        // returns and is used by `helper_entry` and `with_cage` alone meanwhile.
        let abandoned = unsafe { asm::enter(run, entry, arguments[0], arguments[1], stack_end) };
        compiler_fence(std::sync::atomic::Ordering::SeqCst);
        drop(watch);
        run.context.set(null_mut());
        run.exit(abandoned != 0, context.cage)
    })
}

/// Gives back a priority lent to this thread.
pub(in crate::engine) fn settle() {
    if !current().is_null() {
        THREAD.with(|thread| thread.slot.settle());
    }
}

/// What `dispatch` calls for every call of a helper: r1 to r5, its number, and the run, which it
/// passes on the stack.
pub(super) extern "C" fn helper_entry(
    r1: u64,
    r2: u64,
    r3: u64,
    r4: u64,
    r5: u64,
    number: u32,
    run: *const Run,
) -> u64 {
    // SAFETY: `dispatch` passes the run noted on the kernel stack of this thread, which lives in
    // its `Thread`; `run` has set its context and is waiting for the program to end, so that the
    // context is ours alone until we return.
    let (run, context) = unsafe { (&*run, &mut *(*run).context.get().cast::<Context<'_>>()) };
    let arguments = [r1, r2, r3, r4, r5];
    let call = || context.helpers.call(context.cage, number, arguments);
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Called::Value(value)) => value,
        Ok(Called::Abort) => {
            run.note(ABORTED);
            0
        }
        Err(panic) => {
            // What is in there could panic when dropped; the hook has reported it.
            std::mem::forget(panic);
            run.note(ABORTED);
            0
        }
    }
}

/// Whether the program of this thread is to end; for interpreters, between instructions.
pub(in crate::engine) fn is_stopping() -> bool {
    let run = current();
    // SAFETY: when not null it points to the run in the `Thread` of this thread.
    !run.is_null() && unsafe { (*run).stop.load(Relaxed) != 0 }
}

/// Notes that the program of this thread ends because of an access to `address`.
pub(in crate::engine) fn note_fault(address: u64) {
    let run = current();
    if !run.is_null() {
        // SAFETY: as in `is_stopping`.
        unsafe { (*run).note_fault(address) };
    }
}

/// Notes that the program of this thread ends because it calls too deeply.
pub(in crate::engine) fn note_stack_overflow() {
    let run = current();
    if !run.is_null() {
        // SAFETY: as in `is_stopping`.
        unsafe { (*run).note(STACK_OVERFLOW) };
    }
}

/// Notes that the program of this thread ends because its time is over.
pub(in crate::engine) fn note_timeout() {
    let run = current();
    if !run.is_null() {
        // SAFETY: as in `is_stopping`.
        unsafe { (*run).note_timeout() };
    }
}

/// Lets `access` have the cage of the program that is being interpreted on this thread.
pub(in crate::engine) fn with_cage<R>(access: impl FnOnce(&mut Cage) -> R) -> Option<R> {
    let run = current();
    // SAFETY: as in `is_stopping`; in this mode `run` has set the context, and no helper, which
    // could have the cage borrowed, is running. What gets it here cannot get it again: `access` is
    // told of the cage alone, and interpreters do not nest.
    unsafe {
        if run.is_null() || (*run).mode.load(Relaxed) != INTERPRETED {
            return None;
        }
        let context = (*run).context.get().cast::<Context<'_>>();
        Some(access((*context).cage))
    }
}
