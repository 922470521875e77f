//! Attributes of inodes: stat(2), and everything that chmod, chown, truncate and utimensat set.

use super::file::Edges;
use super::types::{Attributes, Caller, SetAttributes, Time};
use super::{Volume, acl, allocate, inode, xattr};
use crate::error::Result;
use crate::format::record::InodeRecord;
use crate::store::{Records, Txn};
use crate::types::Ino;

/// The inode, which must be a regular file if its size is to be set.
fn load(records: &impl Records, ino: Ino, set: &SetAttributes) -> Result<InodeRecord> {
    match set.size {
        Some(_) => inode::load_file(records, ino),
        None => inode::load(records, ino),
    }
}

/// Owner, group and permissions, and the privileges that end with a change of them.
fn set_ownership(
    txn: &mut Txn<'_>,
    ino: Ino,
    inode: &mut InodeRecord,
    set: &SetAttributes,
) -> Result<()> {
    inode.uid = set.uid.unwrap_or(inode.uid);
    inode.gid = set.gid.unwrap_or(inode.gid);
    let chown = set.uid.is_some() || set.gid.is_some();
    if (chown || set.kill_privileges) && !inode::is_directory(inode) {
        inode::clear_set_id(inode);
        xattr::drop_capability(txn, ino, inode)?;
    }
    if let Some(permissions) = set.permissions {
        inode.mode = inode.mode & libc::S_IFMT | permissions & 0o7777;
        acl::chmod(txn, ino, inode)?;
    }
    Ok(())
}

impl Volume {
    /// Attributes of an inode.
    ///
    /// # Errors
    /// `NotFound`; device errors.
    pub fn getattr(&self, ino: Ino) -> Result<Attributes> {
        let inode = inode::load(&self.store.view(), ino)?;
        let mut attributes = inode::attributes(ino, &inode);
        self.sessions.adjust(&mut attributes);
        Ok(attributes)
    }

    /// Changes attributes, all of them or none. A change of the owner or group ends set-ID bits
    /// and capabilities of what is no directory. (The kernel decides who may change what, and
    /// takes the set-group-ID bit from the permissions that somebody outside the group sets.)
    ///
    /// # Errors
    /// `NotFound`; for a size `IsDirectory`, `Invalid`, `TooLarge`, `NoSpace`; device errors.
    pub fn setattr(&self, _: &Caller, ino: Ino, set: &SetAttributes) -> Result<Attributes> {
        load(&self.store.view(), ino, set)?;
        let edges = match set.size {
            Some(size) => self.read_edges(ino, size, size)?,
            None => Edges::default(),
        };
        let mut txn = self.store.begin()?;
        if set.size.is_some() {
            self.sessions.admit(ino)?;
        }
        if set.is_written_back() {
            txn.accompanies();
        }
        let mut inode = load(&txn, ino, set)?;
        let now = inode::to_timestamp(Time::now());
        if let Some(size) = set.size {
            if size < inode.size {
                txn.frees();
            }
            allocate::set_size(&mut txn, ino, &mut inode, size, &edges)?;
            inode.mtime = now;
        }
        set_ownership(&mut txn, ino, &mut inode, set)?;
        if let Some(atime) = set.atime {
            inode.atime = inode::to_timestamp(atime);
        }
        if let Some(mtime) = set.mtime {
            inode.mtime = inode::to_timestamp(mtime);
        }
        inode.ctime = set.ctime.map_or(now, inode::to_timestamp);
        inode::save(&mut txn, ino, &inode)?;
        self.commit(txn, &[ino])?;
        let mut attributes = inode::attributes(ino, &inode);
        self.sessions.adjust(&mut attributes);
        Ok(attributes)
    }
}
