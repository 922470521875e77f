//! A uBPF machine with a program in it.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr::{NonNull, null_mut};

use super::ffi::{self, Vm};
use crate::engine::{self, Frame, guard, watchdog};

/// Slots of the largest program uBPF takes.
const SLOTS_MAX: usize = 65_535;

/// Calls of helpers in the largest program: uBPF's compiler searches all jumps so far at every one
/// of them, which takes time that grows with the square of their number.
const HELPER_CALLS_MAX: usize = 4096;

/// The functions of a program, in the order of their first slots.
struct Frames(Vec<Frame>);

/// A virtual machine with a program loaded.
pub(super) struct Machine {
    vm: NonNull<Vm>,
    /// What the machine asks for the stack usage of functions; it keeps a pointer to it.
    _frames: Box<Frames>,
}

// SAFETY: a machine is memory of its own, used by one thread at a time, and the calls used here
// keep no state per thread.
unsafe impl Send for Machine {}

impl Machine {
    /// Loads a program.
    pub(super) fn load(instructions: &[u64], functions: &[Frame]) -> Result<Machine, String> {
        check_size(instructions)?;
        // Long before the first deadline.
        watchdog::start();
        // SAFETY: no arguments.
        let vm = NonNull::new(unsafe { ffi::ubpf_create() }).ok_or("out of memory")?;
        let mut frames = Box::new(Frames(functions.to_vec()));
        frames.0.sort_by_key(|frame| frame.first_slot);
        let cookie: *mut c_void = (&raw mut *frames).cast();
        let machine = Machine {
            vm,
            _frames: frames,
        };
        let bytes = size_of_val(instructions) as u32;
        let mut error = null_mut();
        // SAFETY: the machine is valid and not shared yet; `cookie` points to the frames, which
        // live as long as the machine; the instructions are copied.
        let loaded = unsafe {
            ffi::ubpf_set_error_print(vm.as_ptr(), print_nothing);
            ffi::ubpf_register_external_dispatcher(vm.as_ptr(), guard::dispatcher(), any_helper);
            ffi::ubpf_register_stack_usage_calculator(vm.as_ptr(), stack_usage, cookie);
            let code = instructions.as_ptr().cast();
            ffi::ubpf_load(vm.as_ptr(), code, bytes, &mut error)
        };
        outcome(loaded, error)?;
        Ok(machine)
    }

    pub(super) fn vm(&self) -> *mut Vm {
        self.vm.as_ptr()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: the machine is ours and in nobody's use.
        unsafe { ffi::ubpf_destroy(self.vm.as_ptr()) };
    }
}

fn check_size(instructions: &[u64]) -> Result<(), String> {
    let slots = instructions.len();
    if slots > SLOTS_MAX {
        return Err(format!(
            "{slots} instructions, at most {SLOTS_MAX} can be run"
        ));
    }
    let is_helper_call = |slot: &&u64| **slot & 0xf0ff == 0x85;
    let calls = instructions.iter().filter(is_helper_call).count();
    if calls > HELPER_CALLS_MAX {
        return Err(format!(
            "{calls} calls of helpers, at most {HELPER_CALLS_MAX} can be compiled"
        ));
    }
    Ok(())
}

/// What a call of uBPF that answers 0 and may leave a message has said.
pub(super) fn outcome(result: c_int, message: *mut c_char) -> Result<(), String> {
    let text = (!message.is_null()).then(|| {
        // SAFETY: uBPF leaves a string of its own allocation, for the caller to free.
        unsafe {
            let text = CStr::from_ptr(message).to_string_lossy().trim().to_owned();
            libc::free(message.cast());
            text
        }
    });
    if result == 0 {
        return Ok(());
    }
    Err(text.unwrap_or_else(|| "refused without a reason".to_owned()))
}

/// Numbers of helpers have been checked by the validator, and unknown ones end the program.
unsafe extern "C" fn any_helper(_: c_uint, _: *const Vm) -> bool {
    true
}

/// Errors are told by results, not on standard error.
unsafe extern "C" fn print_nothing(_: *mut c_void, _: *const c_char) -> c_int {
    0
}

/// Bytes of stack of the function at `slot`.
unsafe extern "C" fn stack_usage(_: *const Vm, slot: u16, cookie: *mut c_void) -> c_int {
    // SAFETY: the cookie is the one given in `Machine::load`.
    let Frames(frames) = unsafe { &*cookie.cast::<Frames>() };
    engine::stack_bytes(frames, slot.into()).into()
}
