//! POSIX semantics over the transactional store: inodes, names, data, attributes.
//!
//! A [`Volume`] is a filesystem without a mount. It does no permission checks of its own beyond
//! those that only it can make (the kernel does them, `default_permissions`).

pub mod types;

use std::ops::ControlFlow;
use std::sync::Arc;

use zns_backend::ZonedDevice;

use crate::error::{Error, Result};
use crate::store::{Store, StoreOptions};
use crate::types::Ino;
use types::{Attributes, Caller, DirEntry, Seek, SetAttributes, Statistics, Time, XattrFlags};

/// A mounted-able filesystem.
pub struct Volume {
    store: Arc<Store>,
}

impl Volume {
    /// Opens the filesystem on `device`, recovers it, creates the root directory if the store is
    /// fresh, and reclaims orphans.
    pub fn open(device: Arc<dyn ZonedDevice>, options: &StoreOptions) -> Result<Volume> {
        Ok(Volume {
            store: Store::open(device, options)?,
        })
    }
    /// The store below.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }
    /// Counts a reference of the kernel to an inode (one per entry it is told of).
    pub fn remember(&self, ino: Ino) {}
    /// Drops `count` references; an inode without names, references and open handles is reclaimed.
    pub fn forget(&self, ino: Ino, count: u64) {}
    /// Entry `name` of directory `parent`; "." and ".." work too.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attributes> {
        Err(Error::NotFound)
    }
    pub fn getattr(&self, ino: Ino) -> Result<Attributes> {
        Err(Error::NotFound)
    }
    pub fn setattr(&self, caller: &Caller, ino: Ino, set: &SetAttributes) -> Result<Attributes> {
        Err(Error::NotFound)
    }
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        Err(Error::NotFound)
    }
    /// Regular files, devices, fifos and sockets; `mode` includes the type bits (S_IFMT).
    /// Inherits the default ACL and the set-group-ID bit of `parent`; applies `umask` if there is no default ACL.
    pub fn mknod(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        rdev: u32,
    ) -> Result<Attributes> {
        Err(Error::NotFound)
    }
    pub fn mkdir(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
    ) -> Result<Attributes> {
        Err(Error::NotFound)
    }
    pub fn symlink(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        target: &[u8],
    ) -> Result<Attributes> {
        Err(Error::NotFound)
    }
    /// A regular file without a name (O_TMPFILE); an orphan until linked.
    pub fn tmpfile(&self, caller: &Caller, parent: Ino, mode: u32) -> Result<Attributes> {
        Err(Error::NotFound)
    }
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attributes> {
        Err(Error::NotFound)
    }
    pub fn unlink(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        Err(Error::NotFound)
    }
    pub fn rmdir(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        Err(Error::NotFound)
    }
    /// `flags`: 0, RENAME_NOREPLACE or RENAME_EXCHANGE of rename(2); others are Invalid.
    pub fn rename(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: u32,
    ) -> Result<()> {
        Err(Error::NotFound)
    }
    /// Counts an open handle of `ino` (file or directory). `truncate`: O_TRUNC.
    pub fn open_handle(&self, caller: &Caller, ino: Ino, truncate: bool) -> Result<()> {
        Err(Error::NotFound)
    }
    /// Drops a handle.
    pub fn release(&self, ino: Ino) {}
    /// Appends up to `size` bytes from `offset` to `out` (cleared first); short at end of file.
    pub fn read(&self, ino: Ino, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<()> {
        Err(Error::NotFound)
    }
    /// Writes all of `data` or fails. `append`: at the end of the file instead. `kill_privileges`: clear
    /// set-user-ID, set-group-ID (if group-executable) and security.capability. `now`: None leaves the times alone
    /// (writeback caching: the kernel keeps them).
    pub fn write(
        &self,
        ino: Ino,
        offset: u64,
        data: &[u8],
        kill_privileges: bool,
        now: Option<Time>,
    ) -> Result<()> {
        Err(Error::NotFound)
    }
    /// Makes all changes of `ino` durable.
    pub fn fsync(&self, ino: Ino) -> Result<()> {
        Err(Error::NotFound)
    }
    /// Makes everything durable.
    pub fn sync(&self) -> Result<()> {
        Err(Error::NotFound)
    }
    /// fallocate(2) with mode 0, KEEP_SIZE, PUNCH_HOLE|KEEP_SIZE, ZERO_RANGE[|KEEP_SIZE]; others are Unsupported.
    pub fn fallocate(
        &self,
        caller: &Caller,
        ino: Ino,
        offset: u64,
        len: u64,
        mode: i32,
    ) -> Result<()> {
        Err(Error::NotFound)
    }
    pub fn seek(&self, ino: Ino, offset: u64, whence: Seek) -> Result<u64> {
        Err(Error::NotFound)
    }
    /// Copies a range between files inside the daemon; returns the bytes copied (short at end of file).
    pub fn copy_range(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        len: u64,
    ) -> Result<u64> {
        Err(Error::NotFound)
    }
    /// Visits the entries of a directory after `cookie` (0: from the start, "." and ".." included) until `visit` breaks.
    /// Each entry carries the cookie to go on behind it. Entries that stay are visited exactly once
    /// whatever is created and removed meanwhile.
    pub fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        visit: &mut dyn FnMut(&DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        Err(Error::NotFound)
    }
    pub fn statfs(&self) -> Statistics {
        Statistics::default()
    }
    pub fn setxattr(
        &self,
        caller: &Caller,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        Err(Error::NotFound)
    }
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        Err(Error::NotFound)
    }
    /// Names, each ended by a NUL.
    pub fn listxattr(&self, caller: &Caller, ino: Ino) -> Result<Vec<u8>> {
        Err(Error::NotFound)
    }
    pub fn removexattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<()> {
        Err(Error::NotFound)
    }
    /// Last commit and checkpoint; further changes fail.
    pub fn close(&self) -> Result<()> {
        Ok(())
    }
}
