//! The segment register by way of which compiled programs access their cage.
//!
//! Nobody else in a process uses gs on x86_64: threads have their variables by fs.

use std::sync::OnceLock;

/// `arch_prctl`: sets the base of gs.
const ARCH_SET_GS: i32 = 0x1001;
/// In the auxiliary vector: processes may set the bases of fs and gs themselves.
const HWCAP2_FSGSBASE: u64 = 1 << 1;

/// Has accesses by way of gs on this thread begin at `base`.
///
/// # Panics
/// When the system refuses, which it does for addresses of its own only.
pub(super) fn set(base: u64) {
    static BY_INSTRUCTION: OnceLock<bool> = OnceLock::new();
    let by_instruction = *BY_INSTRUCTION.get_or_init(|| {
        // SAFETY: reads what the system told the process at its start.
        unsafe { libc::getauxval(libc::AT_HWCAP2) & HWCAP2_FSGSBASE != 0 }
    });
    if by_instruction {
        // SAFETY: the system allows the instruction; no code but compiled programs uses gs.
        unsafe {
            std::arch::asm!("wrgsbase {}", in(reg) base, options(nostack, nomem, preserves_flags))
        };
        return;
    }
    // SAFETY: as above.
    let refused = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) };
    assert_eq!(refused, 0, "no segment at {base:#x}");
}
