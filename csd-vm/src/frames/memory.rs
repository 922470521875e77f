//! The memory that frames lie in: a file without a name, mapped writable for the host; cages map
//! parts of it read-only.
//!
//! Nothing is promised in advance: what is used is asked for ([`Memory::provide`]), so that a machine
//! without memory is an error here and not a signal at the first access.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::ptr::null_mut;

/// The file and its mapping.
pub(super) struct Memory {
    file: File,
    start: *mut u8,
    len: usize,
}

// SAFETY: the mapping belongs to the value and is valid on every thread; whoever asks for bytes of it
// promises that nobody else has them (`bytes`).
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Addresses for `len` bytes, none of which takes memory yet.
    pub(super) fn new(len: usize) -> io::Result<Memory> {
        // SAFETY: the name ends with a zero byte.
        let fd = unsafe { libc::memfd_create(c"csd-frames".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len as u64)?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: no address is asked for, so nothing that exists is replaced.
        let start = unsafe { libc::mmap(null_mut(), len, access, libc::MAP_SHARED, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = start.cast();
        Ok(Memory { file, start, len })
    }

    /// Has memory behind a range of bytes.
    pub(super) fn provide(&self, range: Range<usize>) -> io::Result<()> {
        self.allocate(0, range)
    }

    /// Gives the memory behind a range of bytes back; what was in there is gone.
    pub(super) fn give_back(&self, range: Range<usize>) -> io::Result<()> {
        self.allocate(
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            range,
        )
    }

    fn allocate(&self, mode: libc::c_int, range: Range<usize>) -> io::Result<()> {
        let offset = |at: usize| libc::off_t::try_from(at).map_err(io::Error::other);
        let (at, len) = (offset(range.start)?, offset(range.len())?);
        // SAFETY: changes a file of our own; no reference into the range exists (`bytes`).
        match unsafe { libc::fallocate(self.file.as_raw_fd(), mode, at, len) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// A range of bytes.
    ///
    /// # Safety
    /// It was provided and not given back since, and nobody else refers to any of it, or reads it in
    /// a cage, as long as the result lives.
    #[expect(
        clippy::mut_from_ref,
        reason = "exclusive by the promise of the caller"
    )]
    pub(super) unsafe fn bytes(&self, range: Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: within the mapping, which lives as long as `self`, as was just checked; memory is
        // behind it and nobody else refers to it, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// What the operating system knows of the file.
    #[cfg(test)]
    pub(super) fn metadata(&self) -> io::Result<std::fs::Metadata> {
        self.file.metadata()
    }

    /// The file, to be mapped.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing refers to it without a borrow of `self`.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}
