//! The shape of a zoned device and the quantities it is addressed by.
//!
//! LBAs count device blocks: `lba = zone * zone_size + offset`. Offsets from `zone_capacity` up to
//! `zone_size` exist as addresses and hold no data.

use std::fmt;

/// Index of a zone, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ZoneId(pub u32);

/// A logical block address, in device blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lba(pub u64);

impl Lba {
    /// The address `blocks` further on.
    #[must_use]
    pub fn plus(self, blocks: u64) -> Lba {
        Lba(self.0 + blocks)
    }
}

impl fmt::Display for ZoneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Lba {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Shape and limits of a zoned device. All sizes but `block_size` count blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes per block, a power of two from 512 up.
    pub block_size: u32,
    /// Number of zones.
    pub zones: u32,
    /// Blocks of address space per zone.
    pub zone_size: u64,
    /// Writable blocks per zone, at most `zone_size`.
    pub zone_capacity: u64,
    /// Zones that may be open at once; 0 is no limit.
    pub max_open: u32,
    /// Zones that may be open or closed at once; 0 is no limit.
    pub max_active: u32,
    /// Largest append, in blocks; 0 is no limit.
    pub max_append: u64,
}

impl Geometry {
    /// First LBA of a zone.
    #[must_use]
    pub fn zone_start(&self, zone: ZoneId) -> Lba {
        Lba(u64::from(zone.0) * self.zone_size)
    }

    /// Zone that holds an LBA (which may lie beyond the device: compare with `zones`).
    #[must_use]
    pub fn zone_of(&self, lba: Lba) -> ZoneId {
        ZoneId(u32::try_from(lba.0 / self.zone_size).unwrap_or(u32::MAX))
    }

    /// Block offset of an LBA in its zone.
    #[must_use]
    pub fn offset_of(&self, lba: Lba) -> u64 {
        lba.0 % self.zone_size
    }
}
