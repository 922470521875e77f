//! What the work asks of the system: attributes, clocks, aligned memory, files.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::XattrFlags;

/// The attribute that has reads answered by a kernel.
pub(crate) const READ_STREAM: &str = "user.process.csd_read_stream";
/// The attribute that tells what kernels did and cost.
pub(crate) const STATISTICS: &str = "user.process.csd_stats";

pub(crate) fn set(file: &Path, name: &str, value: &str) -> io::Result<()> {
    Ok(rustix::fs::setxattr(
        file,
        name,
        value.as_bytes(),
        XattrFlags::empty(),
    )?)
}

pub(crate) fn remove(file: &Path, name: &str) -> io::Result<()> {
    Ok(rustix::fs::removexattr(file, name)?)
}

/// The value of an attribute.
pub(crate) fn get(file: &Path, name: &str) -> io::Result<Vec<u8>> {
    let mut value = vec![0; 64 << 10];
    let len = rustix::fs::getxattr(file, name, &mut value)?;
    value.truncate(len);
    Ok(value)
}

/// Opens for reading, past the page cache if `direct`.
pub(crate) fn open(file: &Path, direct: bool) -> io::Result<File> {
    let flags = if direct { libc::O_DIRECT } else { 0 };
    OpenOptions::new().read(true).custom_flags(flags).open(file)
}

/// Reads at `offset` with one system call; returns how much came.
pub(crate) fn read_at(file: &File, to: &mut [u8], offset: u64) -> io::Result<usize> {
    // SAFETY: `to` is writable for its length.
    let got = unsafe {
        libc::pread(
            file.as_raw_fd(),
            to.as_mut_ptr().cast(),
            to.len(),
            offset as libc::off_t,
        )
    };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// Processor time of this process: in its own code, in the system.
pub(crate) fn processor() -> (Duration, Duration) {
    // SAFETY: a zeroed `rusage` is a valid one, and the call only writes to it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let time = |t: libc::timeval| {
        Duration::from_secs(t.tv_sec as u64) + Duration::from_micros(t.tv_usec as u64)
    };
    (time(usage.ru_utime), time(usage.ru_stime))
}

/// Processor time of this thread.
pub(crate) fn thread_time() -> Duration {
    // SAFETY: a zeroed `timespec` is a valid one, and the call only writes to it.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time);
        time
    };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The monotonic clock in nanoseconds, which processes have in common.
pub(crate) fn now() -> u64 {
    // SAFETY: a zeroed `timespec` is a valid one, and the call only writes to it.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time);
        time
    };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Memory as O_DIRECT wants it.
pub(crate) struct Aligned(Vec<Page>);

#[derive(Clone)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

impl Aligned {
    /// Zeros, at least `bytes`, in whole pages.
    pub(crate) fn new(bytes: usize) -> Aligned {
        Aligned(vec![Page([0; 4096]); bytes.div_ceil(4096)])
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        let len = self.0.len() * 4096;
        // SAFETY: pages are plain bytes without padding, borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), len) }
    }
}
