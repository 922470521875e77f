//! What goes in and out of a [`super::Volume`].

use crate::types::Ino;

/// Nanoseconds since 1970, possibly before (negative).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Time(pub i128);

impl Time {
    /// The time of the host.
    #[must_use]
    pub fn now() -> Time {
        match std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
            Ok(after) => Time(after.as_nanos() as i128),
            Err(before) => Time(-(before.duration().as_nanos() as i128)),
        }
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User, in the mount's user namespace.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Thread that made the call.
    pub pid: u32,
    /// File mode creation mask (create, mkdir, mknod).
    pub umask: u32,
}

/// What a process may do, for checks that the kernel does not make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    /// Permissions do not matter (CAP_DAC_OVERRIDE).
    pub overrides: bool,
    /// May read every file and search every directory (CAP_DAC_READ_SEARCH).
    pub reads_all: bool,
}

impl Credentials {
    /// Whether it belongs to a group.
    #[must_use]
    pub fn is_in(&self, group: u32) -> bool {
        self.gid == group || self.groups.contains(&group)
    }
}

/// Type of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum FileKind {
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Block device.
    BlockDevice,
    /// Character device.
    CharDevice,
    /// Named pipe.
    Fifo,
    /// Unix domain socket.
    Socket,
}

/// Attributes of an inode, as stat(2) shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Inode number.
    pub ino: Ino,
    /// Type.
    pub kind: FileKind,
    /// Permission bits and set-ID and sticky bits (07777).
    pub permissions: u32,
    /// Link count.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of device files.
    pub rdev: u32,
    /// Size in bytes.
    pub size: u64,
    /// Space allocated, in 512-byte units.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the contents.
    pub mtime: Time,
    /// Last change of the attributes.
    pub ctime: Time,
    /// Creation.
    pub crtime: Time,
}

/// Attribute changes; `None` stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttributes {
    /// Permission bits (07777).
    pub permissions: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<Time>,
    /// Modification time.
    pub mtime: Option<Time>,
    /// Change time (the kernel keeps it under writeback caching); otherwise now.
    pub ctime: Option<Time>,
    /// The change ends set-ID bits and capabilities (FATTR_KILL_SUIDGID).
    pub kill_privileges: bool,
}

impl SetAttributes {
    /// Whether these are times that the kernel has kept and writes back, as it does behind the pages
    /// that changed with them.
    #[must_use]
    pub fn is_written_back(&self) -> bool {
        let owner = self.permissions.is_some() || self.uid.is_some() || self.gid.is_some();
        self.mtime.is_some() && self.ctime.is_some() && self.size.is_none() && !owner
    }
}

/// Where a seek is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// SEEK_DATA.
    Data,
    /// SEEK_HOLE.
    Hole,
}

/// How an attribute is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XattrFlags {
    /// XATTR_CREATE: fail if it exists.
    pub create: bool,
    /// XATTR_REPLACE: fail if it does not exist.
    pub replace: bool,
    /// Setting an access ACL clears the set-group-ID bit (FUSE_SETXATTR_ACL_KILL_SGID).
    pub kill_sgid: bool,
}

/// A directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// Inode it names.
    pub ino: Ino,
    /// Type of that inode.
    pub kind: FileKind,
    /// The name.
    pub name: &'a [u8],
    /// Cookie to continue after this entry; positive as i64, never 0.
    pub cookie: u64,
}

/// What statfs(2) shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Blocks of 4096 bytes in all.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Inodes in use.
    pub inodes_used: u64,
    /// Inodes that could still be made.
    pub inodes_free: u64,
}
