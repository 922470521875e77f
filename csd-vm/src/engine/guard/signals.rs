//! The signal handlers, installed once per process.
//!
//! They call nothing but what is safe in a handler, hold no lock, and change nothing but where
//! the interrupted thread goes on. They run on the alternate stack of the thread.

use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Once, OnceLock};

use libc::{c_int, c_void, siginfo_t, ucontext_t};

use super::asm;
use super::inspection;
use super::run;
use crate::engine::watchdog;

const FAULTS: [c_int; 4] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL];

/// Who handled the signals before us, in the order of [`FAULTS`].
static PREVIOUS: [OnceLock<libc::sigaction>; 4] = [const { OnceLock::new() }; 4];

static INSTALL: Once = Once::new();
static INSTALLED: AtomicBool = AtomicBool::new(false);

/// The signal that ends a program whose time is over: a real-time one that neither the C library
/// nor Rust uses.
pub(in crate::engine) fn deadline_signal() -> c_int {
    libc::SIGRTMIN() + 5
}

/// Makes sure that the handlers are installed.
pub(super) fn install() {
    if INSTALLED.load(Ordering::Acquire) {
        return;
    }
    INSTALL.call_once(|| {
        for (signal, previous) in FAULTS.into_iter().zip(&PREVIOUS) {
            let old = set(signal, None);
            previous.get_or_init(|| old);
            set(signal, Some(on_fault));
        }
        set(deadline_signal(), Some(on_deadline));
        INSTALLED.store(true, Ordering::Release);
    });
}

/// Lets this thread get the signals handled here, whatever it inherited: a fault that is blocked
/// would end the process, and a blocked deadline would never come.
pub(super) fn unblock() {
    // SAFETY: the set is initialised before it is used; the call changes this thread's mask only.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in FAULTS.into_iter().chain([deadline_signal()]) {
            libc::sigaddset(&mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, null_mut());
    }
}

type Handler = unsafe extern "C" fn(c_int, *mut siginfo_t, *mut c_void);

/// Sets the handler of `signal`, if one is given, and tells what it was.
fn set(signal: c_int, handler: Option<Handler>) -> libc::sigaction {
    let mut old = MaybeUninit::zeroed();
    // SAFETY: the structures are valid; the handlers do only what is safe in handlers. A zeroed
    // `sigaction` is a valid value, also should the call fail, which for these signals it cannot.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        if let Some(handler) = handler {
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaddset(&mut action.sa_mask, deadline_signal());
            libc::sigaction(signal, &action, old.as_mut_ptr());
        } else {
            libc::sigaction(signal, null_mut(), old.as_mut_ptr());
        }
        old.assume_init()
    }
}

/// The instruction that was interrupted.
fn pc(context: &ucontext_t) -> u64 {
    context.uc_mcontext.gregs[libc::REG_RIP as usize] as u64
}

/// Lets the thread go on at `target` when the handler returns.
fn resume_at(context: &mut ucontext_t, target: u64) {
    context.uc_mcontext.gregs[libc::REG_RIP as usize] = target as i64;
}

/// Lets the thread leave its program when the handler returns.
fn recover(context: &mut ucontext_t, run: &run::Run) {
    const DIRECTION: i64 = 1 << 10;
    let host_sp = run.host_sp.load(Ordering::Relaxed) as i64;
    let registers = &mut context.uc_mcontext.gregs;
    registers[libc::REG_RSP as usize] = host_sp;
    registers[libc::REG_RDI as usize] = &raw const *run as i64;
    registers[libc::REG_EFL as usize] &= !DIRECTION;
    resume_at(context, asm::recover());
}

unsafe extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes valid structures to handlers with SA_SIGINFO.
    let handled = unsafe { resolve(signal, &*info, &mut *context.cast::<ucontext_t>()) };
    if !handled {
        // SAFETY: as above.
        unsafe { pass_on(signal, info, context) };
    }
}

/// Handles a fault of a copy, a program or a helper in its window.
fn resolve(signal: c_int, info: &siginfo_t, context: &mut ucontext_t) -> bool {
    let raised_by_hardware = info.si_code > 0;
    if !raised_by_hardware {
        return false;
    }
    let pc = pc(context);
    if pc == asm::copying() {
        resume_at(context, asm::copy_failed());
        return true;
    }
    // SAFETY: the field is set for all signals handled here.
    let address = unsafe { info.si_addr() } as u64;
    let of_memory = matches!(signal, libc::SIGSEGV | libc::SIGBUS);
    if of_memory && inspection::note_missing(address) {
        return put_zeros_at(address);
    }
    // SAFETY: when not null it points to the run in the `Thread` of this thread.
    let Some(run) = (unsafe { run::current().as_ref() }) else {
        return false;
    };
    if run.is_fault_of_program(pc) {
        run.note_fault(address);
        recover(context, run);
        return true;
    }
    if signal == libc::SIGBUS && run.is_window_of_helper(address) && put_zeros_at(address) {
        run.note_fault(address);
        return true;
    }
    false
}

/// Replaces the page of a window whose file was cut off.
fn put_zeros_at(address: u64) -> bool {
    const PAGE: usize = 4096;
    let page = address as usize & !(PAGE - 1);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: the page is in the window of a cage that the interrupted code has borrowed; nothing is
    // there, or a mapping that is broken and read-only, and no Rust object. The call is a bare
    // system call in practice, hence safe in a handler.
    let mapped = unsafe { libc::mmap(page as *mut _, PAGE, libc::PROT_READ, flags, -1, 0) };
    mapped != libc::MAP_FAILED
}

/// Gives a fault that is not ours to whoever handled it before; without one, the instruction is
/// repeated with the default action in place, which ends the process.
///
/// # Safety
/// Called from the handler with its arguments.
unsafe fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let index = FAULTS.iter().position(|fault| *fault == signal);
    let previous = index.and_then(|index| PREVIOUS[index].get());
    let Some(previous) = previous.filter(|p| !is_default(p.sa_sigaction)) else {
        // SAFETY: the structure is valid, and the call is safe in a handler.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = libc::SIG_DFL;
            libc::sigaction(signal, &action, null_mut());
            if (*info).si_code <= 0 {
                libc::raise(signal);
            }
        }
        return;
    };
    // SAFETY: the address was given to `sigaction` as a function of the kind its flags tell.
    unsafe {
        if previous.sa_flags & libc::SA_SIGINFO != 0 {
            let handler: Handler = std::mem::transmute(previous.sa_sigaction);
            handler(signal, info, context);
        } else {
            let handler: unsafe extern "C" fn(c_int) = std::mem::transmute(previous.sa_sigaction);
            handler(signal);
        }
    }
}

/// To ignore a fault would repeat it for ever; it is treated as the default.
fn is_default(action: usize) -> bool {
    action == libc::SIG_DFL || action == libc::SIG_IGN
}

unsafe extern "C" fn on_deadline(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: when not null it points to the run in the `Thread` of this thread.
    let Some(run) = (unsafe { run::current().as_ref() }) else {
        return;
    };
    if !watchdog::is_overdue() {
        return;
    }
    run.note_timeout();
    // SAFETY: the kernel passes a valid structure to handlers with SA_SIGINFO.
    let context = unsafe { &mut *context.cast::<ucontext_t>() };
    if run.is_interruptible_at(pc(context)) {
        recover(context, run);
    }
}
