//! Inodes of the reference.

use std::collections::BTreeMap;

use warren_fs::volume::types::FileKind;

use super::contents::Contents;

/// What an inode is, besides its attributes.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    File(Contents),
    Directory {
        parent: u64,
        entries: BTreeMap<Vec<u8>, u64>,
    },
    Link(Vec<u8>),
    Special(FileKind),
}

/// An inode.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) body: Body,
    pub(crate) permissions: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) rdev: u32,
    /// Names of a non-directory.
    pub(crate) names: u32,
    pub(crate) handles: u32,
    /// Made without a name and never linked: link(2) may still give it one.
    pub(crate) linkable: bool,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Node {
    pub(crate) fn kind(&self) -> FileKind {
        match &self.body {
            Body::File(_) => FileKind::Regular,
            Body::Directory { .. } => FileKind::Directory,
            Body::Link(_) => FileKind::Symlink,
            Body::Special(kind) => *kind,
        }
    }

    /// Size as stat(2) shows it; directories have none that is promised.
    pub(crate) fn size(&self) -> u64 {
        match &self.body {
            Body::File(contents) => contents.size(),
            Body::Link(target) => target.len() as u64,
            Body::Directory { .. } | Body::Special(_) => 0,
        }
    }

    /// Whether a crash could not tell the two apart.
    pub(crate) fn same_as(&self, other: &Node) -> bool {
        let contents = |node: &Node| match &node.body {
            Body::File(contents) => Some(contents.checksums()),
            _ => None,
        };
        let plain = |n: &Node| (n.permissions, n.uid, n.gid, n.size(), n.names);
        plain(self) == plain(other)
            && self.xattrs == other.xattrs
            && contents(self) == contents(other)
    }

    pub(super) fn end_privileges(&mut self) {
        self.permissions &= !0o4000;
        if self.permissions & 0o010 != 0 {
            self.permissions &= !0o2000;
        }
        self.xattrs.remove(b"security.capability".as_slice());
    }
}
