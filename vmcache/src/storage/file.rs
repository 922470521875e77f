//! A file or block device of the operating system, past its page cache where that is possible.
//!
//! Opened with O_DIRECT; a filesystem that refuses (tmpfs, some FUSE ones) is used through the page
//! cache instead. Single transfers are plain `pread`/`pwrite`, batches go through a ring.

use super::uring::Rings;
use super::{AtomicStorage, ReadOp, Storage, WriteOp};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

// The atomic-write ioctls of F2FS, which other filesystems have too.
/// `_IO(0xf5, 1)`.
const START_ATOMIC_WRITE: u32 = 0xf501;
/// `_IO(0xf5, 2)`.
const COMMIT_ATOMIC_WRITE: u32 = 0xf502;
/// `_IO(0xf5, 5)`.
const ABORT_ATOMIC_WRITE: u32 = 0xf505;
/// `_IOR(0xf5, 12, u32)`.
const GET_FEATURES: u32 = 0x8004_f50c;
const FEATURE_ATOMIC_WRITE: u32 = 4;

/// How long a file that is in use is waited for.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// An open file or block device, locked against a second user.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    direct: bool,
    rings: Rings,
}

impl FileStorage {
    /// Opens `path` for reading and writing, creating an empty file if there is none.
    ///
    /// The creation itself is durable when this returns.
    ///
    /// # Errors
    /// Of the operating system; [`io::ErrorKind::WouldBlock`] when another user has it open.
    pub fn open(path: &Path) -> io::Result<FileStorage> {
        let existed = path.exists();
        let (file, direct) = match Self::open_with(path, libc::O_DIRECT) {
            Ok(file) => (file, true),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                (Self::open_with(path, 0)?, false)
            }
            Err(error) => return Err(error),
        };
        lock(&file)?;
        if !existed {
            file.sync_all()?;
            let parent = path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
        }
        Ok(FileStorage {
            file,
            direct,
            rings: Rings::default(),
        })
    }

    fn open_with(path: &Path, flags: i32) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(flags)
            .open(path)
    }

    /// Reads what is left of a transfer of which `done` bytes are there.
    fn read_rest(&self, offset: u64, into: &mut [u8], done: usize) -> io::Result<()> {
        let len = into.len() as u64;
        let read = self
            .file
            .read_exact_at(&mut into[done..], offset + done as u64);
        match read {
            // Past an end that is no multiple of a block, a direct read is not even attempted.
            Err(error)
                if error.raw_os_error() == Some(libc::EINVAL) && offset + len > self.len()? =>
            {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            read => read,
        }
    }

    /// Whether the filesystem has atomic writes for this handle: F2FS has them, but not past its page
    /// cache, where they would show to others early.
    #[must_use]
    pub fn has_atomic_writes(&self) -> bool {
        let mut features = 0;
        if !self.direct
            || self.ioctl(GET_FEATURES, Some(&mut features)).is_err()
            || features & FEATURE_ATOMIC_WRITE == 0
        {
            return false;
        }
        match self.start() {
            Ok(()) => self.abort().is_ok(),
            // It has: another handle's session is under way.
            Err(error) => error.kind() == io::ErrorKind::ResourceBusy,
        }
    }

    fn ioctl(&self, request: u32, answer: Option<&mut u32>) -> io::Result<()> {
        let answer = answer.map_or(std::ptr::null_mut(), std::ptr::from_mut);
        // SAFETY: the requests take no argument, or store a u32 at the one given here, which is exclusively
        // borrowed for the call.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), request as libc::Ioctl, answer) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Whether transfers bypass the page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.direct
    }
}

/// Takes the advisory lock that keeps a second user out.
///
/// Of a process that was killed, the kernel takes down the rings a moment after the process is gone, and
/// transfers in them keep the file and its lock; so this tries for a while.
fn lock(file: &File) -> io::Result<()> {
    let since = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if since.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(TryLockError::WouldBlock) => {
                let kind = io::ErrorKind::WouldBlock;
                return Err(io::Error::new(kind, "the file is in use elsewhere"));
            }
        }
    }
}

impl Storage for FileStorage {
    fn len(&self) -> io::Result<u64> {
        let metadata = self.file.metadata()?;
        if metadata.file_type().is_block_device() {
            use std::io::{Seek, SeekFrom};
            return (&self.file).seek(SeekFrom::End(0));
        }
        Ok(metadata.len())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.read_rest(offset, into, 0)
    }

    fn write_at(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.file.write_all_at(from, offset)
    }

    fn read_batch(&self, reads: &mut [ReadOp<'_>]) -> io::Result<()> {
        if reads.len() > 1
            && let Some(mut ring) = self.rings.take()
        {
            let (done, ring) = ring.read(self.file.as_raw_fd(), reads);
            self.rings.give_back(ring);
            // A short transfer (end of file, or a signal) is finished the plain way.
            return reads.iter_mut().zip(done).try_for_each(|(read, done)| {
                let done = done?;
                self.file
                    .read_exact_at(&mut read.into[done..], read.offset + done as u64)
            });
        }
        reads
            .iter_mut()
            .try_for_each(|read| self.read_at(read.offset, read.into))
    }

    fn write_batch(&self, writes: &[WriteOp<'_>]) -> io::Result<()> {
        if writes.len() > 1
            && let Some(mut ring) = self.rings.take()
        {
            let (done, ring) = ring.write(self.file.as_raw_fd(), writes);
            self.rings.give_back(ring);
            return writes.iter().zip(done).try_for_each(|(write, done)| {
                let done = done?;
                self.file
                    .write_all_at(&write.from[done..], write.offset + done as u64)
            });
        }
        writes
            .iter()
            .try_for_each(|write| self.write_at(write.offset, write.from))
    }

    fn shrink(&self, len: u64) -> io::Result<()> {
        let metadata = self.file.metadata()?;
        if metadata.is_file() && metadata.len() > len {
            self.file.set_len(len)
        } else {
            Ok(())
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

impl AtomicStorage for FileStorage {
    fn start(&self) -> io::Result<()> {
        self.ioctl(START_ATOMIC_WRITE, None)
    }

    fn commit(&self) -> io::Result<()> {
        self.ioctl(COMMIT_ATOMIC_WRITE, None)
    }

    fn abort(&self) -> io::Result<()> {
        self.ioctl(ABORT_ATOMIC_WRITE, None)
    }
}
