//! A filesystem in memory that is simple enough to be obviously right, to hold the real one against.
//!
//! It has the operations of `warren_fs::volume::Volume` on maps and byte blocks. Every operation
//! answers its result or *the set of errnos POSIX lets it fail with here*: where two things are
//! wrong at once, the order in which they are noticed is nobody's promise.
//!
//! Copies are cheap (nodes are shared), so a test keeps one per operation.
//! Left out: times, ACLs, permission checks, and space.

mod atomic;
mod contents;
pub(crate) mod device;
pub(crate) mod digest;
pub(crate) mod driver;
pub(crate) mod generate;
pub(crate) mod minimise;
mod node;
pub(crate) mod ops;

use std::collections::BTreeMap;
use std::sync::Arc;

use contents::Contents;
pub(crate) use node::{Body, Node};
use warren_fs::volume::types::FileKind;

/// Largest file size that the filesystem promises.
pub(crate) const SIZE_MAX: u64 = 16 << 40;
const NAME_MAX: usize = 255;

/// The errnos an operation may fail with.
pub(crate) type Refusal = Vec<i32>;
pub(crate) type Answer<T> = Result<T, Refusal>;

fn refuse<T>(errno: i32) -> Answer<T> {
    Err(vec![errno])
}

/// Who makes a file, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Maker {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) umask: u32,
}

/// Attribute changes of one setattr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Permissions(u32),
    Owner { uid: u32, gid: u32 },
    Size(u64),
}

/// The reference filesystem.
#[derive(Clone, Debug)]
pub(crate) struct Reference {
    nodes: BTreeMap<u64, Arc<Node>>,
    next: u64,
}

pub(crate) const ROOT: u64 = 1;

impl Reference {
    /// An empty filesystem whose root directory looks like `root` of the real one.
    pub(crate) fn new(permissions: u32, uid: u32, gid: u32) -> Reference {
        let root = Node {
            body: Body::Directory {
                parent: ROOT,
                entries: BTreeMap::new(),
            },
            permissions,
            uid,
            gid,
            rdev: 0,
            names: 1,
            handles: 0,
            linkable: false,
            xattrs: BTreeMap::new(),
        };
        Reference {
            nodes: BTreeMap::from([(ROOT, Arc::new(root))]),
            next: ROOT + 1,
        }
    }

    pub(crate) fn node(&self, ino: u64) -> Answer<&Node> {
        self.nodes
            .get(&ino)
            .map(Arc::as_ref)
            .ok_or_else(|| vec![libc::ENOENT])
    }

    fn node_mut(&mut self, ino: u64) -> Answer<&mut Node> {
        match self.nodes.get_mut(&ino) {
            Some(node) => Ok(Arc::make_mut(node)),
            None => refuse(libc::ENOENT),
        }
    }

    fn entries(&self, ino: u64) -> Answer<&BTreeMap<Vec<u8>, u64>> {
        match &self.node(ino)?.body {
            Body::Directory { entries, .. } => Ok(entries),
            _ => refuse(libc::ENOTDIR),
        }
    }

    fn entries_mut(&mut self, ino: u64) -> Answer<&mut BTreeMap<Vec<u8>, u64>> {
        match &mut self.node_mut(ino)?.body {
            Body::Directory { entries, .. } => Ok(entries),
            _ => refuse(libc::ENOTDIR),
        }
    }

    fn file(&self, ino: u64) -> Answer<&Contents> {
        match &self.node(ino)?.body {
            Body::File(contents) => Ok(contents),
            Body::Directory { .. } => refuse(libc::EISDIR),
            _ => refuse(libc::EINVAL),
        }
    }

    /// Whether `ino` is a file and the size asked for is possible.
    fn file_checked(&self, ino: u64, too_large: bool) -> Answer<()> {
        match self.file(ino).map(|_| ()) {
            Err(mut errnos) if too_large => {
                errnos.push(libc::EFBIG);
                Err(errnos)
            }
            Ok(()) if too_large => refuse(libc::EFBIG),
            answer => answer,
        }
    }

    fn file_mut(&mut self, ino: u64) -> Answer<&mut Contents> {
        match &mut self.node_mut(ino)?.body {
            Body::File(contents) => Ok(contents),
            Body::Directory { .. } => refuse(libc::EISDIR),
            _ => refuse(libc::EINVAL),
        }
    }

    fn is_directory(&self, ino: u64) -> bool {
        self.entries(ino).is_ok()
    }

    /// Link count as stat(2) shows it.
    pub(crate) fn nlink(&self, ino: u64) -> u32 {
        let node = &self.nodes[&ino];
        match &node.body {
            Body::Directory { entries, .. } if node.names > 0 => {
                2 + entries.values().filter(|e| self.is_directory(**e)).count() as u32
            }
            _ => node.names,
        }
    }

    pub(crate) fn lookup(&self, parent: u64, name: &[u8]) -> Answer<u64> {
        let entries = self.entries(parent);
        if name.len() > NAME_MAX {
            let mut errnos = vec![libc::ENAMETOOLONG];
            errnos.extend(entries.err().into_iter().flatten());
            return Err(errnos);
        }
        entries?
            .get(name)
            .copied()
            .ok_or_else(|| vec![libc::ENOENT])
    }

    /// Names of a directory with their inodes, without "." and "..".
    pub(crate) fn list(&self, ino: u64) -> Answer<BTreeMap<Vec<u8>, u64>> {
        self.entries(ino).cloned()
    }

    /// Whether `parent` may take the new entry `name`.
    fn vacant(&self, parent: u64, name: &[u8]) -> Answer<()> {
        match self.lookup(parent, name) {
            Ok(_) => refuse(libc::EEXIST),
            Err(errnos) if errnos == [libc::ENOENT] => {
                if self.node(parent)?.names == 0 {
                    return refuse(libc::ENOENT);
                }
                Ok(())
            }
            Err(errnos) => Err(errnos),
        }
    }

    fn add(
        &mut self,
        parent: u64,
        name: &[u8],
        maker: Maker,
        mode: u32,
        body: Body,
    ) -> Answer<u64> {
        self.vacant(parent, name)?;
        let ino = self.add_nameless(parent, maker, mode, body)?;
        let node = self.node_mut(ino)?;
        node.names = 1;
        node.linkable = false;
        self.entries_mut(parent)?.insert(name.to_vec(), ino);
        Ok(ino)
    }

    fn add_nameless(&mut self, parent: u64, maker: Maker, mode: u32, body: Body) -> Answer<u64> {
        let above = self.node(parent)?;
        let inherits_group = above.permissions & 0o2000 != 0;
        let gid = if inherits_group { above.gid } else { maker.gid };
        let mut permissions = mode & 0o7777;
        match &body {
            Body::Link(_) => permissions = 0o777,
            Body::Directory { .. } if inherits_group => {
                permissions = (permissions & !maker.umask) | 0o2000;
            }
            _ => permissions &= !maker.umask,
        }
        let ino = self.next;
        self.next += 1;
        let node = Node {
            body,
            permissions,
            uid: maker.uid,
            gid,
            rdev: 0,
            names: 0,
            handles: 0,
            linkable: true,
            xattrs: BTreeMap::new(),
        };
        self.nodes.insert(ino, Arc::new(node));
        Ok(ino)
    }

    /// mknod(2) of the given type.
    pub(crate) fn mknod(
        &mut self,
        maker: Maker,
        parent: u64,
        name: &[u8],
        kind: FileKind,
        mode: u32,
        rdev: u32,
    ) -> Answer<u64> {
        let body = match kind {
            FileKind::Regular => Body::File(Contents::default()),
            other => Body::Special(other),
        };
        let ino = self.add(parent, name, maker, mode, body)?;
        if matches!(kind, FileKind::BlockDevice | FileKind::CharDevice) {
            self.node_mut(ino)?.rdev = rdev;
        }
        Ok(ino)
    }

    pub(crate) fn mkdir(
        &mut self,
        maker: Maker,
        parent: u64,
        name: &[u8],
        mode: u32,
    ) -> Answer<u64> {
        let body = Body::Directory {
            parent,
            entries: BTreeMap::new(),
        };
        self.add(parent, name, maker, mode, body)
    }

    pub(crate) fn symlink(
        &mut self,
        maker: Maker,
        parent: u64,
        name: &[u8],
        to: &[u8],
    ) -> Answer<u64> {
        self.add(parent, name, maker, 0o777, Body::Link(to.to_vec()))
    }

    pub(crate) fn tmpfile(&mut self, maker: Maker, parent: u64, mode: u32) -> Answer<u64> {
        self.entries(parent)?;
        self.add_nameless(parent, maker, mode, Body::File(Contents::default()))
    }

    pub(crate) fn link(&mut self, ino: u64, parent: u64, name: &[u8]) -> Answer<()> {
        if self.is_directory(ino) {
            let mut errnos = vec![libc::EPERM];
            errnos.extend(self.vacant(parent, name).err().into_iter().flatten());
            return Err(errnos);
        }
        self.node(ino)?;
        self.vacant(parent, name)?;
        let node = self.node_mut(ino)?;
        node.names += 1;
        node.linkable = false;
        self.entries_mut(parent)?.insert(name.to_vec(), ino);
        Ok(())
    }

    pub(crate) fn unlink(&mut self, parent: u64, name: &[u8]) -> Answer<()> {
        let ino = self.lookup(parent, name)?;
        if self.is_directory(ino) {
            return refuse(libc::EISDIR);
        }
        self.entries_mut(parent)?.remove(name);
        self.drop_name(ino);
        Ok(())
    }

    pub(crate) fn rmdir(&mut self, parent: u64, name: &[u8]) -> Answer<()> {
        let ino = self.lookup(parent, name)?;
        if !self.entries(ino)?.is_empty() {
            return refuse(libc::ENOTEMPTY);
        }
        self.entries_mut(parent)?.remove(name);
        self.drop_name(ino);
        Ok(())
    }

    fn drop_name(&mut self, ino: u64) {
        let node = Arc::make_mut(self.nodes.get_mut(&ino).expect("a named inode exists"));
        node.names -= 1;
        self.reclaim(ino);
    }

    fn reclaim(&mut self, ino: u64) {
        let node = &self.nodes[&ino];
        if node.names == 0 && node.handles == 0 {
            self.nodes.remove(&ino);
        }
    }

    /// Whether `ino` is `below` or a directory above it.
    fn is_above(&self, ino: u64, mut below: u64) -> bool {
        loop {
            if below == ino {
                return true;
            }
            match &self.nodes[&below].body {
                Body::Directory { parent, .. } if below != ROOT => below = *parent,
                _ => return false,
            }
        }
    }

    /// rename(2) with `flags` 0, RENAME_NOREPLACE or RENAME_EXCHANGE.
    pub(crate) fn rename(
        &mut self,
        from: (u64, &[u8]),
        to: (u64, &[u8]),
        flags: u32,
    ) -> Answer<()> {
        let source = self.lookup(from.0, from.1);
        let target = self.lookup(to.0, to.1);
        let absent = |answer: &Answer<u64>| matches!(answer, Err(e) if *e == [libc::ENOENT]);
        let mut wrong: Refusal = Vec::new();
        wrong.extend(source.clone().err().into_iter().flatten());
        if !absent(&target) || flags == libc::RENAME_EXCHANGE {
            wrong.extend(target.clone().err().into_iter().flatten());
        }
        if target.is_ok() && flags == libc::RENAME_NOREPLACE {
            wrong.push(libc::EEXIST);
        }
        if let Ok(source) = source.clone() {
            if self.is_directory(source) && self.is_above(source, to.0) {
                wrong.push(libc::EINVAL);
            }
            if let Ok(target) = target.clone() {
                self.rename_over(source, target, from.0, flags, &mut wrong);
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let source = source?;
        match target {
            Ok(target) if target == source => {}
            Ok(target) if flags == libc::RENAME_EXCHANGE => {
                self.place(source, to)?;
                self.place(target, from)?;
            }
            replaced => {
                self.entries_mut(from.0)?.remove(from.1);
                self.place(source, to)?;
                if let Ok(replaced) = replaced {
                    self.drop_name(replaced);
                }
            }
        }
        Ok(())
    }

    /// What is wrong with renaming `source` onto (or against) the existing `target`.
    fn rename_over(&self, source: u64, target: u64, from: u64, flags: u32, wrong: &mut Refusal) {
        let (source_is, target_is) = (self.is_directory(source), self.is_directory(target));
        if target_is && self.is_above(target, from) {
            wrong.push(if flags == libc::RENAME_EXCHANGE {
                libc::EINVAL
            } else {
                libc::ENOTEMPTY
            });
        }
        if flags == libc::RENAME_EXCHANGE || source == target {
            return;
        }
        match (source_is, target_is) {
            (true, false) => wrong.push(libc::ENOTDIR),
            (false, true) => wrong.push(libc::EISDIR),
            (true, true) if !self.entries(target).is_ok_and(BTreeMap::is_empty) => {
                wrong.push(libc::ENOTEMPTY);
            }
            _ => {}
        }
    }

    fn place(&mut self, ino: u64, at: (u64, &[u8])) -> Answer<()> {
        self.entries_mut(at.0)?.insert(at.1.to_vec(), ino);
        if let Body::Directory { parent, .. } = &mut self.node_mut(ino)?.body {
            *parent = at.0;
        }
        Ok(())
    }

    pub(crate) fn open(&mut self, ino: u64, truncate: bool) -> Answer<()> {
        if truncate {
            let contents = self.file_mut(ino)?;
            contents.resize(0);
        }
        self.node_mut(ino)?.handles += 1;
        Ok(())
    }

    pub(crate) fn release(&mut self, ino: u64) {
        let node = Arc::make_mut(self.nodes.get_mut(&ino).expect("an open inode exists"));
        node.handles -= 1;
        self.reclaim(ino);
    }

    /// What a crash or a remount does: handles are gone, and files without a name with them.
    pub(crate) fn forget_handles(&mut self) {
        self.nodes.retain(|_, node| node.names > 0);
        for node in self.nodes.values_mut() {
            if node.handles > 0 {
                Arc::make_mut(node).handles = 0;
            }
        }
    }

    pub(crate) fn read(&self, ino: u64, offset: u64, len: usize) -> Answer<Vec<u8>> {
        Ok(self.file(ino)?.read(offset, len))
    }

    pub(crate) fn write(&mut self, ino: u64, offset: u64, data: &[u8], kill: bool) -> Answer<()> {
        let too_large = offset + data.len() as u64 > SIZE_MAX;
        self.file_checked(ino, too_large)?;
        if data.is_empty() {
            return Ok(());
        }
        self.file_mut(ino)?.write(offset, data);
        if kill {
            self.node_mut(ino)?.end_privileges();
        }
        Ok(())
    }

    pub(crate) fn setattr(&mut self, ino: u64, change: Change, kill: bool) -> Answer<()> {
        match change {
            Change::Permissions(bits) => self.node_mut(ino)?.permissions = bits & 0o7777,
            Change::Owner { uid, gid } => {
                let node = self.node_mut(ino)?;
                (node.uid, node.gid) = (uid, gid);
            }
            Change::Size(size) => {
                self.file_checked(ino, size > SIZE_MAX)?;
                self.file_mut(ino)?.resize(size);
            }
        }
        if kill {
            self.node_mut(ino)?.end_privileges();
        }
        Ok(())
    }

    /// fallocate(2); `mode` is one of the supported combinations.
    pub(crate) fn fallocate(&mut self, ino: u64, offset: u64, len: u64, mode: i32) -> Answer<()> {
        self.file(ino)?;
        if len == 0 {
            return refuse(libc::EINVAL);
        }
        let Some(end) = offset.checked_add(len).filter(|end| *end <= SIZE_MAX) else {
            return refuse(libc::EFBIG);
        };
        let contents = self.file_mut(ino)?;
        if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0 {
            contents.zero(offset, end);
        }
        if mode & libc::FALLOC_FL_KEEP_SIZE == 0 && end > contents.size() {
            contents.resize(end);
        }
        Ok(())
    }

    pub(crate) fn copy_range(&mut self, from: (u64, u64), to: (u64, u64), len: u64) -> Answer<u64> {
        let data = self.file(from.0)?.read(from.1, len as usize);
        self.file(to.0)?;
        if data.is_empty() {
            return Ok(0);
        }
        self.write(to.0, to.1, &data, false)?;
        Ok(data.len() as u64)
    }

    pub(crate) fn setxattr(
        &mut self,
        ino: u64,
        name: &[u8],
        value: &[u8],
        create: bool,
        replace: bool,
    ) -> Answer<()> {
        let xattrs = &mut self.node_mut(ino)?.xattrs;
        let exists = xattrs.contains_key(name);
        if create && exists {
            return refuse(libc::EEXIST);
        }
        if replace && !exists {
            return refuse(libc::ENODATA);
        }
        xattrs.insert(name.to_vec(), value.to_vec());
        Ok(())
    }

    pub(crate) fn getxattr(&self, ino: u64, name: &[u8]) -> Answer<Vec<u8>> {
        let value = self.node(ino)?.xattrs.get(name);
        value.cloned().ok_or_else(|| vec![libc::ENODATA])
    }

    pub(crate) fn removexattr(&mut self, ino: u64, name: &[u8]) -> Answer<()> {
        match self.node_mut(ino)?.xattrs.remove(name) {
            Some(_) => Ok(()),
            None => refuse(libc::ENODATA),
        }
    }
}
