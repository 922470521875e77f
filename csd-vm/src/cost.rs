//! What the work of a thread has cost.

use std::os::raw::c_long;
use std::time::Duration;

/// Processor time of this thread, in its own code and in the system.
pub(crate) fn processor() -> Duration {
    // SAFETY: a zeroed `timespec` is a valid one, and the call only writes to it. (The times of
    // `rusage` are those of the last tick.)
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time);
        time
    };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Page faults of this thread without I/O.
pub(crate) fn faults() -> c_long {
    // SAFETY: a zeroed `rusage` is a valid one, and the call only writes to it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_THREAD, &mut usage);
        usage
    };
    usage.ru_minflt
}
