//! Quantities and names shared by all layers of the filesystem.

use std::fmt;

pub use zns_backend::{Lba, ZoneId};

/// Bytes per block: of the device, of a file block, of a catalog node.
pub const BLOCK_SIZE: usize = 4096;
/// [`BLOCK_SIZE`] as `u64`.
pub const BLOCK: u64 = BLOCK_SIZE as u64;

/// Largest file size in bytes, 16 TiB.
pub const MAX_FILE_SIZE: u64 = 16 << 40;

/// Inode number. 1 is the root directory; 0 is never used.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory.
    pub const ROOT: Ino = Ino(1);
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Position of a chunk in the log. Grows by one per chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
