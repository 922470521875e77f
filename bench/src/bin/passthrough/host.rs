//! The host's files behind the mount: which are open, and what a request does to one.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use fuser::{FileAttr, FileHandle, INodeNo, TimeOrNow};
use parking_lot::{Mutex, RwLock};
use rustix::fs::{self as host, AtFlags, Gid, Mode, OFlags, SeekFrom, Timespec, Uid};
use rustix::io::Result;

use crate::inodes::{self, Inodes};

/// An open file or directory.
pub(super) struct Handle {
    pub(super) fd: OwnedFd,
    /// Held while a directory is read: its descriptor has one position.
    pub(super) position: Mutex<()>,
}

/// A directory entry of the host.
pub(super) struct HostEntry {
    pub(super) ino: u64,
    pub(super) next: u64,
    pub(super) kind: fuser::FileType,
    pub(super) name: Vec<u8>,
}

/// The filesystem.
pub(crate) struct Passthrough {
    pub(super) inodes: Inodes,
    pub(super) handles: RwLock<HashMap<u64, Arc<Handle>>>,
    next_handle: AtomicU64,
}

impl Passthrough {
    pub(crate) fn open(source: &Path, open_max: usize) -> io::Result<Passthrough> {
        // No O_PATH: file handles are opened by way of it.
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root: File = host::open(source, flags, Mode::empty())?.into();
        Ok(Passthrough {
            inodes: Inodes::new(root, open_max)?,
            handles: RwLock::default(),
            next_handle: AtomicU64::new(1),
        })
    }

    pub(super) fn keep(&self, fd: OwnedFd) -> FileHandle {
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        let handle = Handle {
            fd,
            position: Mutex::new(()),
        };
        self.handles.write().insert(number, Arc::new(handle));
        FileHandle(number)
    }

    pub(super) fn handle(&self, fh: FileHandle) -> Result<Arc<Handle>> {
        let handles = self.handles.read();
        handles.get(&fh.0).cloned().ok_or(rustix::io::Errno::BADF)
    }

    /// Flags for the host: the page cache above reads where the program only writes, and knows
    /// itself where an append goes.
    pub(super) fn host_flags(flags: i32) -> OFlags {
        let mut flags = OFlags::from_bits_retain(flags as u32);
        if flags & OFlags::ACCMODE == OFlags::WRONLY {
            flags = (flags - OFlags::ACCMODE) | OFlags::RDWR;
        }
        (flags - OFlags::APPEND - OFlags::NOFOLLOW - OFlags::DIRECT) | OFlags::CLOEXEC
    }

    pub(super) fn open_ino(&self, ino: INodeNo, flags: OFlags) -> Result<FileHandle> {
        let fd = self.inodes.fd(ino)?;
        Ok(self.keep(host::open(Inodes::path(&fd), flags, Mode::empty())?))
    }

    pub(super) fn make(
        &self,
        parent: INodeNo,
        name: &OsStr,
        call: impl FnOnce(&OwnedFd) -> Result<()>,
    ) -> Result<FileAttr> {
        let dir = self.inodes.fd(parent)?;
        call(&dir)?;
        self.inodes.lookup(parent, name)
    }

    pub(super) fn change(
        &self,
        ino: INodeNo,
        (mode, uid, gid, size): (Option<u32>, Option<u32>, Option<u32>, Option<u64>),
        (atime, mtime): (Option<TimeOrNow>, Option<TimeOrNow>),
    ) -> Result<FileAttr> {
        let fd = self.inodes.fd(ino)?;
        let path = Inodes::path(&fd);
        if let Some(mode) = mode {
            host::chmod(&path, Mode::from_raw_mode(mode))?;
        }
        if uid.is_some() || gid.is_some() {
            let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
            host::chownat(&*fd, "", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if let Some(size) = size {
            let file = host::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
            host::ftruncate(file, size)?;
        }
        if atime.is_some() || mtime.is_some() {
            let times = host::Timestamps {
                last_access: timespec(atime),
                last_modification: timespec(mtime),
            };
            host::utimensat(host::CWD, &path, &times, AtFlags::empty())?;
        }
        self.inodes.attr_of(fd.as_fd())
    }

    /// Some entries of a directory after `offset`.
    pub(super) fn entries(&self, fh: FileHandle, offset: u64) -> Result<Vec<HostEntry>> {
        let handle = self.handle(fh)?;
        let _position = handle.position.lock();
        host::seek(&handle.fd, SeekFrom::Start(offset))?;
        let mut entries = Vec::new();
        let mut buffer = Vec::with_capacity(32 << 10);
        let mut dir = host::RawDir::new(&handle.fd, buffer.spare_capacity_mut());
        while let Some(entry) = dir.next() {
            let entry = entry?;
            entries.push(HostEntry {
                ino: entry.ino(),
                next: entry.next_entry_cookie(),
                kind: inodes::kind(entry.file_type()),
                name: entry.file_name().to_bytes().to_vec(),
            });
            if dir.is_buffer_empty() {
                break;
            }
        }
        Ok(entries)
    }
}

fn timespec(time: Option<TimeOrNow>) -> Timespec {
    let (tv_sec, tv_nsec) = match time {
        None => (0, host::UTIME_OMIT),
        Some(TimeOrNow::Now) => (0, host::UTIME_NOW),
        Some(TimeOrNow::SpecificTime(time)) => {
            let since = time
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default();
            (since.as_secs() as i64, i64::from(since.subsec_nanos()))
        }
    };
    Timespec { tv_sec, tv_nsec }
}
