//! Flushes that leave the zone table out.
//!
//! `fdatasync` writes every dirty page of the file, and the page of the zone table is always dirty.
//! `msync` syncs the range of the file that a mapping shows: one page of the data area is mapped,
//! never touched, and synced. The kernel finds nothing dirty in that range, commits the journal if
//! an extent changed, and flushes the disk; all in the calling thread, where the ring's ranged
//! fsync would hand the flush to a worker and back.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use crate::error::{Error, Result};

/// Bytes of the mapping: one page, or a part of one.
const WINDOW_BYTES: usize = 4096;

pub(super) struct Flusher {
    window: NonNull<libc::c_void>,
}

// SAFETY: the window is an address to name in msync; its memory is never read or written.
unsafe impl Send for Flusher {}
// SAFETY: as above.
unsafe impl Sync for Flusher {}

impl Flusher {
    /// A flusher for `file`, whose data area begins at `offset` (a multiple of the page size).
    pub(super) fn new(file: &File, offset: u64) -> Result<Flusher> {
        // SAFETY: a fresh shared mapping of an open file; no existing memory is replaced.
        let window = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                WINDOW_BYTES,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        let window = NonNull::new(window).filter(|_| window != libc::MAP_FAILED);
        let window = window.ok_or_else(|| Error::last_os("mapping the data area"))?;
        Ok(Flusher { window })
    }

    /// Commits the journal and flushes the disk under the file.
    pub(super) fn flush(&self) -> io::Result<()> {
        // SAFETY: the window is mapped for as long as `self` lives.
        match unsafe { libc::msync(self.window.as_ptr(), WINDOW_BYTES, libc::MS_SYNC) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` and unmapped only here.
        unsafe { libc::munmap(self.window.as_ptr(), WINDOW_BYTES) };
    }
}
