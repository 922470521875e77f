//! The part of uBPF's C interface (vendor/ubpf/vm/inc/ubpf.h of async-ebpf 0.3.2) that is used.

use std::ffi::{c_char, c_int, c_uint, c_void};

// Keeps libubpf in the link, which that crate builds.
extern crate async_ebpf as _;

/// A virtual machine: a program and its settings.
#[repr(C)]
pub(super) struct Vm {
    _opaque: [u8; 0],
}

/// `ExtendedJitMode`: the caller hands in the stack of the program.
pub(super) const EXTENDED_MODE: c_uint = 0;

pub(super) type Validate = unsafe extern "C" fn(number: c_uint, vm: *const Vm) -> bool;
pub(super) type StackUsage =
    unsafe extern "C" fn(vm: *const Vm, slot: u16, cookie: *mut c_void) -> c_int;
/// Variadic in C. On x86_64 a function that looks at the named arguments only is called the same.
pub(super) type PrintError =
    unsafe extern "C" fn(stream: *mut c_void, format: *const c_char) -> c_int;

unsafe extern "C" {
    pub(super) fn ubpf_create() -> *mut Vm;
    pub(super) fn ubpf_destroy(vm: *mut Vm);
    pub(super) fn ubpf_set_error_print(vm: *mut Vm, print: PrintError);
    pub(super) fn ubpf_register_external_dispatcher(
        vm: *mut Vm,
        dispatcher: unsafe extern "C" fn(),
        validate: Validate,
    ) -> c_int;
    pub(super) fn ubpf_register_stack_usage_calculator(
        vm: *mut Vm,
        calculator: StackUsage,
        cookie: *mut c_void,
    ) -> c_int;
    pub(super) fn ubpf_load(
        vm: *mut Vm,
        code: *const c_void,
        bytes: u32,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(super) fn ubpf_set_jit_pointer_mask_and_offset(vm: *mut Vm, mask: i32, offset: usize);
    pub(super) fn ubpf_translate_ex(
        vm: *mut Vm,
        buffer: *mut u8,
        size: *mut usize,
        error: *mut *mut c_char,
        mode: c_uint,
    ) -> c_int;
}
