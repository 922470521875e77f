//! Names: looking up, making, linking and removing them.

use super::types::{Attributes, Caller, FileKind, Time};
use super::{METADATA_BLOCKS, Volume, acl, directory, handles, inode};
use crate::catalog::{Key, Kind};
use crate::error::{Error, Result};
use crate::format::record::{InodeRecord, MAX_FRAGMENT, decode_inline, encode_inline};
use crate::store::{Records, Txn};
use crate::types::Ino;
use directory::Entry;

/// Longest target of a symlink, PATH_MAX without its NUL.
const MAX_TARGET: usize = 4095;

/// What an inode is made as.
struct NewInode<'a> {
    /// Type and permissions, before umask or default ACL.
    mode: u32,
    rdev: u32,
    target: &'a [u8],
}

/// What a name is removed as.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Removal {
    Unlink,
    Rmdir,
}

fn find_removal(
    records: &impl Records,
    parent: Ino,
    name: &[u8],
    removal: Removal,
) -> Result<(InodeRecord, Entry, InodeRecord)> {
    let directory = inode::load_parent(records, parent)?;
    let entry = directory::find_entry(records, parent, name)?;
    let child = inode::load_named(records, entry.ino)?;
    match (removal, inode::is_directory(&child)) {
        (Removal::Unlink, true) => Err(Error::IsDirectory),
        (Removal::Rmdir, false) => Err(Error::NotDirectory),
        (Removal::Rmdir, true) if child.entries > 0 => Err(Error::NotEmpty),
        _ => Ok((directory, entry, child)),
    }
}

fn find_vacancy(
    records: &impl Records,
    parent: Ino,
    name: &[u8],
    kind: FileKind,
) -> Result<(InodeRecord, u64)> {
    let directory = inode::load_parent(records, parent)?;
    let cookie = directory::find_vacancy(records, parent, name)?;
    if kind == FileKind::Directory && directory.nlink >= inode::MAX_LINKS {
        return Err(Error::TooManyLinks);
    }
    Ok((directory, cookie))
}

fn find_link(
    records: &impl Records,
    ino: Ino,
    parent: Ino,
    name: &[u8],
) -> Result<(InodeRecord, InodeRecord, u64)> {
    let child = inode::load(records, ino)?;
    if inode::is_directory(&child) {
        return Err(Error::NotPermitted);
    }
    let (directory, cookie) = find_vacancy(records, parent, name, inode::kind(&child))?;
    if child.nlink >= inode::MAX_LINKS {
        return Err(Error::TooManyLinks);
    }
    Ok((child, directory, cookie))
}

/// Puts a new inode into the transaction, with what it inherits from the directory it is made in.
fn make_inode(
    txn: &mut Txn<'_>,
    caller: &Caller,
    ino: Ino,
    parent: (Ino, &InodeRecord),
    new: &NewInode<'_>,
) -> Result<InodeRecord> {
    let (parent_ino, parent) = parent;
    let now = inode::to_timestamp(Time::now());
    let directory = new.mode & libc::S_IFMT == libc::S_IFDIR;
    let mut inode = InodeRecord {
        mode: new.mode,
        nlink: if directory { 2 } else { 1 },
        uid: caller.uid,
        gid: caller.gid,
        rdev: new.rdev,
        size: new.target.len() as u64,
        parent: if directory { parent_ino.0 } else { 0 },
        atime: now,
        mtime: now,
        ctime: now,
        crtime: now,
        ..InodeRecord::default()
    };
    if parent.mode & libc::S_ISGID != 0 {
        inode.gid = parent.gid;
        if directory {
            inode.mode |= libc::S_ISGID;
        }
    }
    acl::inherit(txn, caller, ino, &mut inode, (parent_ino, parent))?;
    for (number, part) in (0..).zip(new.target.chunks(MAX_FRAGMENT)) {
        txn.put(Key::new(ino, Kind::Inline, number), &encode_inline(part))?;
    }
    inode::count_made(txn)?;
    Ok(inode)
}

/// The target of a symlink.
pub(super) fn load_target(
    records: &impl Records,
    ino: Ino,
    inode: &InodeRecord,
) -> Result<Vec<u8>> {
    let len = inode.size as usize;
    let mut target = Vec::with_capacity(len.min(MAX_TARGET));
    for number in 0..len.min(MAX_TARGET).div_ceil(MAX_FRAGMENT) as u64 {
        let key = Key::new(ino, Kind::Inline, number);
        if let Some(value) = records.get(&key)? {
            target.extend_from_slice(decode_inline(&key, &value)?);
        }
    }
    if target.len() != len {
        return Err(Error::Corrupt {
            what: "symbolic link",
            detail: format!("inode {ino}: {} of {len} bytes are there", target.len()),
        });
    }
    Ok(target)
}

impl Volume {
    /// Entry `name` of directory `parent`; "." and ".." work too.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `NameTooLong`; device errors.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attributes> {
        let view = self.store.view();
        let directory = inode::load_directory(&view, parent)?;
        let ino = match name {
            b"." => parent,
            b".." => Ino(directory.parent),
            _ => {
                directory::check_name(name)?;
                directory::find_entry(&view, parent, name)?.ino
            }
        };
        let inode = inode::load_named(&view, ino)?;
        let mut attributes = inode::attributes(ino, &inode);
        self.sessions.adjust(&mut attributes);
        Ok(attributes)
    }

    /// The target of a symlink.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` if it is no symlink; device errors.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let view = self.store.view();
        let inode = inode::load(&view, ino)?;
        if inode::kind(&inode) != FileKind::Symlink {
            return Err(Error::Invalid("not a symbolic link"));
        }
        load_target(&view, ino, &inode)
    }

    /// Makes a regular file, device, fifo or socket; `mode` includes the type bits (S_IFMT).
    /// Inherits the default ACL and the set-group-ID bit of `parent`; applies `umask` if there is
    /// no default ACL.
    ///
    /// # Errors
    /// `Exists`, `NotFound`, `NotDirectory`, `NameTooLong`, `Invalid`, `NoSpace`; device errors.
    pub fn mknod(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        rdev: u32,
    ) -> Result<Attributes> {
        let (file_type, rdev) = match mode & libc::S_IFMT {
            0 => (libc::S_IFREG, 0),
            device @ (libc::S_IFCHR | libc::S_IFBLK) => (device, rdev),
            plain @ (libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK) => (plain, 0),
            _ => return Err(Error::Invalid("type of a new inode")),
        };
        let new = NewInode {
            mode: file_type | mode & 0o7777,
            rdev,
            target: b"",
        };
        self.make(caller, parent, name, &new)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// As [`Volume::mknod`]; `TooManyLinks`.
    pub fn mkdir(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
    ) -> Result<Attributes> {
        let new = NewInode {
            mode: libc::S_IFDIR | mode & 0o7777,
            rdev: 0,
            target: b"",
        };
        self.make(caller, parent, name, &new)
    }

    /// Makes a symbolic link to `target`.
    ///
    /// # Errors
    /// As [`Volume::mknod`]; `NameTooLong` also for the target.
    pub fn symlink(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        target: &[u8],
    ) -> Result<Attributes> {
        if target.is_empty() {
            return Err(Error::NotFound);
        }
        if target.len() > MAX_TARGET {
            return Err(Error::NameTooLong);
        }
        let new = NewInode {
            mode: libc::S_IFLNK | 0o777,
            rdev: 0,
            target,
        };
        self.make(caller, parent, name, &new)
    }

    fn make(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        new: &NewInode<'_>,
    ) -> Result<Attributes> {
        directory::check_name(name)?;
        let kind = inode::kind_from_number((new.mode >> 12) as u8)
            .ok_or(Error::Invalid("type of a new inode"))?;
        find_vacancy(&self.store.view(), parent, name, kind)?;
        let ino = self.fresh_ino();
        let mut txn = self.store.begin()?;
        let (mut directory, cookie) = find_vacancy(&txn, parent, name, kind)?;
        txn.claim_space(METADATA_BLOCKS)?;
        let inode = make_inode(&mut txn, caller, ino, (parent, &directory), new)?;
        inode::save(&mut txn, ino, &inode)?;
        directory::put(&mut txn, parent, cookie, name, ino, kind)?;
        directory.entries += 1;
        if kind == FileKind::Directory {
            directory.nlink += 1;
        }
        inode::touch(&mut directory, inode.ctime);
        inode::save(&mut txn, parent, &directory)?;
        self.commit(txn, &[parent, ino])?;
        Ok(inode::attributes(ino, &inode))
    }

    /// A regular file without a name (O_TMPFILE); an orphan until linked.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `NoSpace`; device errors.
    pub fn tmpfile(&self, caller: &Caller, parent: Ino, mode: u32) -> Result<Attributes> {
        inode::load_parent(&self.store.view(), parent)?;
        let ino = self.fresh_ino();
        let mut txn = self.store.begin()?;
        let directory = inode::load_parent(&txn, parent)?;
        txn.claim_space(METADATA_BLOCKS)?;
        let new = NewInode {
            mode: libc::S_IFREG | mode & 0o7777,
            rdev: 0,
            target: b"",
        };
        let mut inode = make_inode(&mut txn, caller, ino, (parent, &directory), &new)?;
        inode.nlink = 0;
        inode::save(&mut txn, ino, &inode)?;
        handles::put_orphan(&mut txn, ino)?;
        self.commit(txn, &[ino])?;
        self.handles.born_orphaned(ino);
        Ok(inode::attributes(ino, &inode))
    }

    /// Gives an inode another name, or a [`Volume::tmpfile`] its first.
    ///
    /// # Errors
    /// `NotPermitted` for a directory, `Exists`, `TooManyLinks` and those of [`Volume::mknod`].
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attributes> {
        directory::check_name(name)?;
        find_link(&self.store.view(), ino, parent, name)?;
        let mut txn = self.store.begin()?;
        let (mut child, mut directory, cookie) = find_link(&txn, ino, parent, name)?;
        txn.claim_space(METADATA_BLOCKS)?;
        let now = inode::to_timestamp(Time::now());
        if child.nlink == 0 {
            handles::adopt(&mut txn, ino)?;
        }
        child.nlink += 1;
        child.ctime = now;
        inode::save(&mut txn, ino, &child)?;
        directory::put(&mut txn, parent, cookie, name, ino, inode::kind(&child))?;
        directory.entries += 1;
        inode::touch(&mut directory, now);
        inode::save(&mut txn, parent, &directory)?;
        self.commit(txn, &[parent, ino])?;
        let mut attributes = inode::attributes(ino, &child);
        self.sessions.adjust(&mut attributes);
        Ok(attributes)
    }

    /// Removes a name of anything but a directory. (The kernel checks the sticky bit.)
    ///
    /// # Errors
    /// `NotFound`, `IsDirectory`; device errors.
    pub fn unlink(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        self.remove(caller, parent, name, Removal::Unlink)
    }

    /// Removes an empty directory. (The kernel checks the sticky bit.)
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `NotEmpty`; device errors.
    pub fn rmdir(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        self.remove(caller, parent, name, Removal::Rmdir)
    }

    fn remove(&self, _: &Caller, parent: Ino, name: &[u8], removal: Removal) -> Result<()> {
        directory::check_name(name)?;
        {
            let view = self.store.view();
            let (_, entry, child) = find_removal(&view, parent, name, removal)?;
            if child.nlink == 1 {
                handles::read_ahead(&view, entry.ino)?;
            }
        }
        let mut txn = self.store.begin()?;
        let (mut directory, entry, mut child) = find_removal(&txn, parent, name, removal)?;
        let now = inode::to_timestamp(Time::now());
        directory::remove(&mut txn, parent, entry.cookie)?;
        directory.entries = directory.entries.saturating_sub(1);
        if removal == Removal::Rmdir {
            directory.nlink = directory.nlink.saturating_sub(1);
        }
        inode::touch(&mut directory, now);
        inode::save(&mut txn, parent, &directory)?;
        let disposal = self.drop_link(&mut txn, entry.ino, &mut child, now)?;
        self.commit(txn, &[parent, entry.ino])?;
        self.finish_disposal(entry.ino, disposal);
        Ok(())
    }
}
