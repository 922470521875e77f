//! The inodes the kernel knows of: each holds an O_PATH descriptor until it is forgotten, or, from
//! the last quarter of the process's descriptors on, the host's file handle.
//!
//! Node numbers are the inode numbers of the host; only the root is 1.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};
use parking_lot::RwLock;
use rustix::fs::{AtFlags, Mode, OFlags, Stat, openat, statat};
use rustix::io::{Errno, Result};

use crate::place::Place;

const SHARDS: usize = 64;

struct Known {
    place: Place,
    lookups: u64,
}

/// All known inodes.
pub(crate) struct Inodes {
    root_ino: u64,
    root: Arc<OwnedFd>,
    open: AtomicUsize,
    /// Most inodes that hold a descriptor.
    open_max: usize,
    shards: Vec<RwLock<HashMap<u64, Known>>>,
}

impl Inodes {
    /// All inodes below `root` with at most `open_max` descriptors held.
    pub(crate) fn new(root: File, open_max: usize) -> Result<Inodes> {
        let root_ino = rustix::fs::fstat(&root)?.st_ino;
        let root = Arc::new(OwnedFd::from(root));
        let inodes = Inodes {
            root_ino,
            root: Arc::clone(&root),
            open: AtomicUsize::new(1),
            open_max,
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
        };
        let known = Known {
            place: Place::Open(root),
            lookups: 1,
        };
        inodes
            .shard(INodeNo::ROOT.0)
            .write()
            .insert(INodeNo::ROOT.0, known);
        Ok(inodes)
    }

    fn shard(&self, ino: u64) -> &RwLock<HashMap<u64, Known>> {
        &self.shards[ino as usize % SHARDS]
    }

    /// The descriptor of a known inode.
    pub(crate) fn fd(&self, ino: INodeNo) -> Result<Arc<OwnedFd>> {
        let shard = self.shard(ino.0).read();
        let known = shard.get(&ino.0).ok_or(Errno::STALE)?;
        known.place.fd(self.root.as_fd())
    }

    /// A path that names the inode of a descriptor, whatever its name is now.
    pub(crate) fn path(fd: &OwnedFd) -> String {
        format!("/proc/self/fd/{}", fd.as_raw_fd())
    }

    /// Looks a name up and counts the reference the kernel takes.
    pub(crate) fn lookup(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr> {
        let parent = self.fd(parent)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&*parent, name, flags, Mode::empty())?;
        let attr = self.attr_of(fd.as_fd())?;
        match self.shard(attr.ino.0).write().entry(attr.ino.0) {
            Entry::Occupied(mut known) => known.get_mut().lookups += 1,
            Entry::Vacant(free) => {
                let place = if self.open.load(Ordering::Relaxed) < self.open_max {
                    self.open.fetch_add(1, Ordering::Relaxed);
                    Place::Open(Arc::new(fd))
                } else {
                    Place::closed(&fd)?
                };
                free.insert(Known { place, lookups: 1 });
            }
        }
        Ok(attr)
    }

    pub(crate) fn forget(&self, ino: INodeNo, lookups: u64) {
        let mut shard = self.shard(ino.0).write();
        if let Entry::Occupied(mut known) = shard.entry(ino.0) {
            known.get_mut().lookups = known.get().lookups.saturating_sub(lookups);
            if known.get().lookups == 0
                && ino != INodeNo::ROOT
                && let Place::Open(_) = known.remove().place
            {
                self.open.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Attributes of the inode a descriptor stands for.
    pub(crate) fn attr_of(&self, fd: BorrowedFd<'_>) -> Result<FileAttr> {
        let stat = statat(fd, "", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)?;
        let mut attr = attributes(&stat);
        if attr.ino.0 == self.root_ino {
            attr.ino = INodeNo::ROOT;
        }
        Ok(attr)
    }
}

fn attributes(stat: &Stat) -> FileAttr {
    FileAttr {
        ino: INodeNo(stat.st_ino),
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        crtime: UNIX_EPOCH,
        kind: kind(rustix::fs::FileType::from_raw_mode(stat.st_mode)),
        perm: (stat.st_mode & 0o7777) as u16,
        nlink: stat.st_nlink as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: stat.st_rdev as u32,
        blksize: 4096,
        flags: 0,
    }
}

fn time(seconds: i64, nanos: u64) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let start = if seconds < 0 {
        UNIX_EPOCH - whole
    } else {
        UNIX_EPOCH + whole
    };
    start + Duration::from_nanos(nanos)
}

/// The FUSE name of a file type.
pub(crate) fn kind(host: rustix::fs::FileType) -> FileType {
    match host {
        rustix::fs::FileType::Directory => FileType::Directory,
        rustix::fs::FileType::Symlink => FileType::Symlink,
        rustix::fs::FileType::BlockDevice => FileType::BlockDevice,
        rustix::fs::FileType::CharacterDevice => FileType::CharDevice,
        rustix::fs::FileType::Fifo => FileType::NamedPipe,
        rustix::fs::FileType::Socket => FileType::Socket,
        _ => FileType::RegularFile,
    }
}
