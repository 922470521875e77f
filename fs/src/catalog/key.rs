//! Keys of the catalog: `(inode, kind, offset)`, ordered, 17 bytes.

use std::fmt;

use crate::types::Ino;

/// What a catalog record is. The numbers are on-disk values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Attributes of an inode; offset 0.
    Inode = 1,
    /// Contents of a small file or target of a symlink; offset = number of the fragment.
    Inline = 2,
    /// File block to LBA run; offset = first file block.
    Extent = 3,
    /// Directory entry; offset = name hash and collision number.
    Entry = 4,
    /// Extended attribute; offset = name hash, collision number and fragment.
    Xattr = 5,
    /// An inode without a name that waits for its last close; key inode 0, offset = inode.
    Orphan = 6,
}

impl Kind {
    /// The kind with this on-disk number.
    #[must_use]
    pub fn from_u8(value: u8) -> Option<Kind> {
        Some(match value {
            1 => Kind::Inode,
            2 => Kind::Inline,
            3 => Kind::Extent,
            4 => Kind::Entry,
            5 => Kind::Xattr,
            6 => Kind::Orphan,
            _ => return None,
        })
    }
}

/// A catalog key. The derived order is the order of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Inode the record belongs to.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// Position among the records of this kind.
    pub offset: u64,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}, {:?}, {:#x})", self.ino, self.kind, self.offset)
    }
}

impl Key {
    /// Encoded size in bytes.
    pub const SIZE: usize = 17;
    /// No key is smaller.
    pub const MIN: Key = Key::new(Ino(0), Kind::Inode, 0);
    /// No key is greater.
    pub const MAX: Key = Key::new(Ino(u64::MAX), Kind::Orphan, u64::MAX);

    /// A key.
    #[must_use]
    pub const fn new(ino: Ino, kind: Kind, offset: u64) -> Key {
        Key { ino, kind, offset }
    }

    /// The encoding: inode, kind, offset, little-endian.
    #[must_use]
    pub fn encode(&self) -> [u8; Key::SIZE] {
        let mut bytes = [0; Key::SIZE];
        bytes[..8].copy_from_slice(&self.ino.0.to_le_bytes());
        bytes[8] = self.kind as u8;
        bytes[9..].copy_from_slice(&self.offset.to_le_bytes());
        bytes
    }

    /// The key that `bytes` encodes; `None` if the kind is unknown.
    #[must_use]
    pub fn decode(bytes: &[u8; Key::SIZE]) -> Option<Key> {
        let (ino, rest) = bytes.split_first_chunk::<8>()?;
        let (kind, offset) = rest.split_first()?;
        Some(Key {
            ino: Ino(u64::from_le_bytes(*ino)),
            kind: Kind::from_u8(*kind)?,
            offset: u64::from_le_bytes(offset.try_into().ok()?),
        })
    }
}
