//! The stacks of a thread that runs programs: one for the programs, and one for signal handlers.

use std::io;
use std::ptr::null_mut;

use super::asm::{RUN_SLOT, STACK_SIZE};
use super::run::Run;

const PAGE: usize = 4096;

/// Bytes of the stack of signal handlers: the registers of the widest vector units and more.
const SIGNAL_STACK_SIZE: usize = 64 << 10;

/// A stack for compiled code, aligned to its size so that `dispatch` finds its [`Run`] from the
/// stack pointer alone. Its lowest page is inaccessible.
pub(super) struct KernelStack {
    base: usize,
}

impl KernelStack {
    pub(super) fn new() -> io::Result<KernelStack> {
        let start = map(2 * STACK_SIZE)?;
        let base = start.next_multiple_of(STACK_SIZE);
        unmap(start, base - start);
        unmap(base + STACK_SIZE, start + STACK_SIZE - base);
        let stack = KernelStack { base };
        // SAFETY: the page is the lowest of a mapping just made, which nothing uses yet.
        let guarded = unsafe { libc::mprotect(base as *mut _, PAGE, libc::PROT_NONE) };
        if guarded != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stack)
    }

    /// Notes the run at the top and tells where the stack starts below that.
    pub(super) fn top(&self, run: *const Run) -> u64 {
        let slot = self.base + STACK_SIZE - RUN_SLOT;
        // SAFETY: the slot is in the last page of the stack, writable, aligned and nobody's else.
        unsafe { (slot as *mut *const Run).write(run) };
        slot as u64
    }

    /// Addresses whose access means that the stack is used up.
    pub(super) fn guard(&self) -> std::ops::Range<u64> {
        self.base as u64..(self.base + PAGE) as u64
    }
}

impl Drop for KernelStack {
    fn drop(&mut self) {
        unmap(self.base, STACK_SIZE);
    }
}

/// A stack for signal handlers, if the thread had none.
pub(super) struct SignalStack {
    own: Option<usize>,
}

impl SignalStack {
    /// Makes sure that the thread has one.
    pub(super) fn ensure() -> io::Result<SignalStack> {
        let mut old = none();
        // SAFETY: both structures are valid; the call only reads the state of the thread.
        if unsafe { libc::sigaltstack(null_mut(), &mut old) } != 0 {
            return Err(io::Error::last_os_error());
        }
        if old.ss_flags & libc::SS_DISABLE == 0 {
            return Ok(SignalStack { own: None });
        }
        let start = map(SIGNAL_STACK_SIZE)?;
        let new = libc::stack_t {
            ss_sp: start as *mut _,
            ss_flags: 0,
            ss_size: SIGNAL_STACK_SIZE,
        };
        // SAFETY: the memory is mapped and stays so until the stack is disabled again.
        if unsafe { libc::sigaltstack(&new, null_mut()) } != 0 {
            let error = io::Error::last_os_error();
            unmap(start, SIGNAL_STACK_SIZE);
            return Err(error);
        }
        Ok(SignalStack { own: Some(start) })
    }
}

impl Drop for SignalStack {
    fn drop(&mut self) {
        let Some(start) = self.own else { return };
        // SAFETY: disables the stack of this thread, which is the one `ensure` has set: values of
        // this type stay with their thread. No handler runs on it now.
        unsafe { libc::sigaltstack(&none(), null_mut()) };
        unmap(start, SIGNAL_STACK_SIZE);
    }
}

fn none() -> libc::stack_t {
    libc::stack_t {
        ss_sp: null_mut(),
        ss_flags: libc::SS_DISABLE,
        ss_size: 0,
    }
}

fn map(bytes: usize) -> io::Result<usize> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let writable = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: no address is asked for, so nothing that exists is replaced.
    let start = unsafe { libc::mmap(null_mut(), bytes, writable, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(start as usize)
}

fn unmap(start: usize, bytes: usize) {
    if bytes > 0 {
        // SAFETY: callers pass ranges of mappings of this module that nothing uses any more.
        unsafe { libc::munmap(start as *mut _, bytes) };
    }
}
