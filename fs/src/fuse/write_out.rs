//! Having the kernel write the dirty pages of a file, and keep them.
//!
//! No notification does that: invalidating an inode writes its pages one at a time and then drops all that
//! is cached of it. So the daemon opens the file on its own mount, by its inode number, as any process could,
//! and asks for the write. Only threads that serve no requests may do so; the event loops know them by their
//! numbers and answer such an open at once, whatever the file is kept for.
//!
//! The mount is opened for each write anew: a descriptor that is kept would keep it busy.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use super::mountinfo::DeviceNumber;
use crate::types::Ino;

/// FILEID_INO64_GEN: an inode number in two words, high and low, and a generation, which is 0.
const BY_NUMBER: i32 = 0x81;

/// A file handle of that kind, as open_by_handle_at(2) takes it.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    words: [u32; 3],
}

/// A mount, to open files of by their numbers.
pub(super) struct OwnMount {
    pub(super) path: PathBuf,
    pub(super) device: DeviceNumber,
}

impl OwnMount {
    fn open(&self, ino: Ino) -> io::Result<File> {
        let root = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(&self.path)?;
        let DeviceNumber { major, minor } = self.device;
        if root.metadata()?.dev() != libc::makedev(major, minor) {
            return Err(io::Error::other("something else is mounted over it"));
        }
        let mut handle = Handle {
            bytes: 12,
            kind: BY_NUMBER,
            words: [(ino.0 >> 32) as u32, ino.0 as u32, 0],
        };
        // SAFETY: the handle has the layout of struct file_handle with as many bytes as it says, and
        // outlives the call.
        let fd = unsafe {
            let flags = libc::O_RDONLY | libc::O_CLOEXEC;
            libc::open_by_handle_at(root.as_raw_fd(), (&raw mut handle).cast(), flags)
        };
        match fd {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: the call has just made the descriptor, and nobody else knows it.
            fd => Ok(unsafe { File::from_raw_fd(fd) }),
        }
    }

    /// Writes the dirty pages of a file. That some could not be written is for those to notice who
    /// serve the writes.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub(super) fn write_out(&self, ino: Ino) -> io::Result<()> {
        const ALL: u32 = libc::SYNC_FILE_RANGE_WAIT_BEFORE
            | libc::SYNC_FILE_RANGE_WRITE
            | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        let file = self.open(ino)?;
        // SAFETY: the descriptor is open, and no memory is passed.
        if unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, ALL) } != 0 {
            tracing::debug!(inode = ino.0, "write-back: {}", io::Error::last_os_error());
        }
        Ok(())
    }
}
