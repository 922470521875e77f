//! The few instructions between the host and a program, in assembly so that every state they can
//! be interrupted in is known.
//!
//! * `enter` switches to the kernel stack, clears the registers and calls the program.
//! * `dispatch` is what programs call as a helper: it switches back to the host's stack, where
//!   the helper runs as an ordinary call of whoever started the program, and clears the registers
//!   that could tell the program host addresses.
//! * `recover` ends a program from wherever it is: the signal handlers resume there.
//! * `copy` copies bytes and tells when memory is not there: the signal handlers resume a fault
//!   of its one instruction at its failure exit.
//!
//! Neither the frames of helpers nor any other Rust frame is ever cut off: `recover` is reached
//! only while the program itself runs, or after its helper has returned. There is no
//! `setjmp`; the registers a caller keeps are on its own stack, at `host_sp`.

use super::run::Run;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the entry code of compiled kernels is written for x86_64 only");

/// Bytes of a kernel stack, and its alignment.
pub(super) const STACK_SIZE: usize = 512 << 10;

/// Where, from the top of a kernel stack, its [`Run`] is noted.
pub(super) const RUN_SLOT: usize = 16;

std::arch::global_asm!(
    r#"
    .pushsection .text.warren_csd_guard, "ax", @progbits
    .hidden warren_csd_first, warren_csd_enter, warren_csd_dispatch, warren_csd_abandon
    .hidden warren_csd_recover, warren_csd_last, warren_csd_copy, warren_csd_copying
    .hidden warren_csd_copy_failed
    .globl warren_csd_first, warren_csd_enter, warren_csd_dispatch, warren_csd_abandon
    .globl warren_csd_recover, warren_csd_last, warren_csd_copy, warren_csd_copying
    .globl warren_csd_copy_failed

    .p2align 4
warren_csd_first:
warren_csd_enter:               /* run, entry, r1, r2, end of the program's stack */
    push rbp
    push rbx
    push r12
    push r13
    push r14
    push r15
    push rdi
    mov [rdi + {host_sp}], rsp
    mov rsp, [rdi + {kernel_sp}]
    mov r9, rsi
    mov eax, [rdi + {inner}]
    mov rsi, rcx
    mov rcx, r8
    mov [rdi + {mode}], eax
    mov rdi, rdx
    xor eax, eax
    xor edx, edx
    xor ebx, ebx
    xor ebp, ebp
    xor r8d, r8d
    xor r10d, r10d
    xor r11d, r11d
    xor r12d, r12d
    xor r13d, r13d
    xor r14d, r14d
    xor r15d, r15d
    call r9
    mov rdi, [rsp]
    mov rsp, [rdi + {host_sp}]
    mov dword ptr [rdi + {mode}], 0
    mov [rdi + {value}], rax
    xor eax, eax
2:
    pop rdi
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret

    .p2align 4
warren_csd_dispatch:            /* five arguments, the number of the helper */
    mov rax, rsp
    and rax, -{stack_size}
    mov rax, [rax + {stack_size} - {run_slot}]
    mov [rax + {resume_sp}], rsp
    mov rsp, [rax + {host_sp}]
    mov dword ptr [rax + {mode}], {helper}
    push rax
    push rax
    call {helper_entry}
    mov rcx, [rsp]
    mov r8d, [rcx + {inner}]
    mov [rcx + {mode}], r8d
    cmp dword ptr [rcx + {stop}], 0
    jne 3f
    mov rsp, [rcx + {resume_sp}]
    xor edi, edi
    xor esi, esi
    xor edx, edx
    xor ecx, ecx
    xor r8d, r8d
    xor r9d, r9d
    xor r10d, r10d
    xor r11d, r11d
    ret
3:
    mov rdi, rcx
warren_csd_abandon:             /* run */
    mov rsp, [rdi + {host_sp}]
warren_csd_recover:             /* run, with rsp at its host_sp */
    mov dword ptr [rdi + {mode}], 0
    mov eax, 1
    jmp 2b
warren_csd_last:

    .p2align 4
warren_csd_copy:                /* to, from, bytes */
    mov rcx, rdx
warren_csd_copying:
    rep movsb
    mov eax, 1
    ret
warren_csd_copy_failed:
    xor eax, eax
    ret
    .popsection
    "#,
    host_sp = const std::mem::offset_of!(Run, host_sp),
    kernel_sp = const std::mem::offset_of!(Run, kernel_sp),
    resume_sp = const std::mem::offset_of!(Run, resume_sp),
    mode = const std::mem::offset_of!(Run, mode),
    inner = const std::mem::offset_of!(Run, inner),
    stop = const std::mem::offset_of!(Run, stop),
    value = const std::mem::offset_of!(Run, value),
    helper = const super::run::HELPER,
    stack_size = const STACK_SIZE,
    run_slot = const RUN_SLOT,
    helper_entry = sym super::run::helper_entry,
);

unsafe extern "C" {
    #[link_name = "warren_csd_enter"]
    pub(super) fn enter(run: *const Run, entry: u64, r1: u64, r2: u64, stack_end: u64) -> u64;
    #[link_name = "warren_csd_dispatch"]
    pub(super) fn dispatch();
    #[link_name = "warren_csd_abandon"]
    pub(super) fn abandon(run: *const Run) -> !;
    #[link_name = "warren_csd_copy"]
    pub(super) fn copy(to: *mut u8, from: *const u8, bytes: usize) -> u64;

    static warren_csd_first: u8;
    static warren_csd_last: u8;
    static warren_csd_recover: u8;
    static warren_csd_copying: u8;
    static warren_csd_copy_failed: u8;
}

/// Whether `pc` is in the code between host and program.
pub(super) fn is_ours(pc: u64) -> bool {
    (&raw const warren_csd_first as u64..&raw const warren_csd_last as u64).contains(&pc)
}

/// Where a program ends.
pub(super) fn recover() -> u64 {
    &raw const warren_csd_recover as u64
}

/// The instruction of `copy` that faults.
pub(super) fn copying() -> u64 {
    &raw const warren_csd_copying as u64
}

/// Where `copy` goes on after a fault.
pub(super) fn copy_failed() -> u64 {
    &raw const warren_csd_copy_failed as u64
}
