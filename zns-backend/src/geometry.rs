//! The shape of a zoned device and the quantities it is addressed by.
//!
//! LBAs count device blocks: `lba = zone * zone_size + offset`. Offsets from `zone_capacity` up to
//! `zone_size` exist as addresses and hold no data.

use std::fmt;

use crate::error::{Error, Result};

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

    /// Bytes per block, as a length.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        self.block_size as usize
    }

    /// Blocks of address space of the whole device.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        u64::from(self.zones) * self.zone_size
    }

    /// Bytes that can be written to the whole device.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        u64::from(self.zones) * self.zone_capacity * u64::from(self.block_size)
    }

    /// Bytes that can be written to one zone.
    #[must_use]
    pub fn zone_capacity_bytes(&self) -> u64 {
        self.zone_capacity * u64::from(self.block_size)
    }

    /// Checks that a device of this shape can exist.
    ///
    /// # Errors
    /// [`Error::BadGeometry`] naming the first thing that is impossible.
    pub fn validate(&self) -> Result<()> {
        self.impossibility()
            .map_or(Ok(()), |reason| Err(Error::BadGeometry(reason)))
    }

    fn impossibility(&self) -> Option<String> {
        if !self.block_size.is_power_of_two() || self.block_size < MIN_BLOCK_SIZE {
            let given = self.block_size;
            return Some(format!(
                "block size {given} is no power of two from {MIN_BLOCK_SIZE} up"
            ));
        }
        if self.block_size > MAX_BLOCK_SIZE {
            return Some(format!(
                "block size {} is above {MAX_BLOCK_SIZE}",
                self.block_size
            ));
        }
        if self.zones == 0 {
            return Some("no zones".into());
        }
        if self.zone_capacity == 0 {
            return Some("zone capacity of no blocks".into());
        }
        if self.zone_capacity > self.zone_size {
            let (capacity, size) = (self.zone_capacity, self.zone_size);
            return Some(format!(
                "zone capacity {capacity} is above the zone size {size}"
            ));
        }
        let bytes = self
            .zone_size
            .checked_mul(u64::from(self.zones))
            .and_then(|blocks| blocks.checked_mul(u64::from(self.block_size)));
        if bytes.is_none_or(|bytes| bytes > MAX_DEVICE_BYTES) {
            return Some(format!(
                "{} zones of {} blocks are too much",
                self.zones, self.zone_size
            ));
        }
        if self.max_active != 0 && self.max_open > self.max_active {
            let (open, active) = (self.max_open, self.max_active);
            return Some(format!(
                "open limit {open} is above the active limit {active}"
            ));
        }
        None
    }

    /// A geometry for an emulated device that holds at most `bytes`: 4 KiB blocks and about a
    /// hundred zones of 1 MiB to 256 MiB.
    ///
    /// # Errors
    /// [`Error::BadGeometry`] when not even one zone fits.
    pub fn for_size(bytes: u64) -> Result<Geometry> {
        let ideal = (bytes / 128).max(1);
        let zone_bytes = (1 << ideal.ilog2()).clamp(1 << 20, 256 << 20);
        let zones = u32::try_from(bytes / zone_bytes)
            .map_err(|_| Error::BadGeometry(format!("{bytes} bytes are too much")))?;
        let geometry = Geometry {
            block_size: 4096,
            zones,
            zone_size: zone_bytes / 4096,
            zone_capacity: zone_bytes / 4096,
            max_open: 16,
            max_active: 32,
            max_append: 256,
        };
        geometry.validate()?;
        Ok(geometry)
    }
}

const MIN_BLOCK_SIZE: u32 = 512;
const MAX_BLOCK_SIZE: u32 = 1 << 20;

/// What a file offset can express.
const MAX_DEVICE_BYTES: u64 = i64::MAX as u64;

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Geometry = Geometry {
        block_size: 4096,
        zones: 8,
        zone_size: 64,
        zone_capacity: 48,
        max_open: 3,
        max_active: 4,
        max_append: 16,
    };

    #[test]
    fn possible_geometries_are_accepted() {
        assert!(GOOD.validate().is_ok());
        assert!(
            Geometry {
                max_open: 0,
                ..GOOD
            }
            .validate()
            .is_ok()
        );
        assert!(
            Geometry {
                max_active: 0,
                ..GOOD
            }
            .validate()
            .is_ok()
        );
        assert!(
            Geometry {
                block_size: 512,
                zone_capacity: 64,
                ..GOOD
            }
            .validate()
            .is_ok()
        );
    }

    #[test]
    fn every_impossible_geometry_is_refused_by_its_reason() {
        let cases = [
            (
                Geometry {
                    block_size: 0,
                    ..GOOD
                },
                "power of two",
            ),
            (
                Geometry {
                    block_size: 256,
                    ..GOOD
                },
                "power of two",
            ),
            (
                Geometry {
                    block_size: 4097,
                    ..GOOD
                },
                "power of two",
            ),
            (
                Geometry {
                    block_size: 1 << 30,
                    ..GOOD
                },
                "above",
            ),
            (Geometry { zones: 0, ..GOOD }, "no zones"),
            (
                Geometry {
                    zone_capacity: 0,
                    ..GOOD
                },
                "no blocks",
            ),
            (
                Geometry {
                    zone_capacity: 65,
                    ..GOOD
                },
                "above the zone size",
            ),
            (
                Geometry {
                    zone_size: 0,
                    ..GOOD
                },
                "above the zone size",
            ),
            (
                Geometry {
                    zone_size: u64::MAX,
                    ..GOOD
                },
                "too much",
            ),
            (
                Geometry {
                    zone_size: 1 << 48,
                    ..GOOD
                },
                "too much",
            ),
            (
                Geometry {
                    max_open: 5,
                    ..GOOD
                },
                "open limit 5",
            ),
        ];
        for (geometry, reason) in cases {
            let error = geometry.validate().expect_err(reason).to_string();
            assert!(error.contains(reason), "{error} does not name: {reason}");
        }
    }

    #[test]
    fn geometry_for_a_size_never_exceeds_it() {
        for bytes in [1 << 20, 3 << 20, 100 << 20, 1 << 30, (1 << 40) + 17] {
            let geometry = Geometry::for_size(bytes).expect("fits");
            assert!(geometry.capacity_bytes() <= bytes && geometry.capacity_bytes() > bytes / 2);
        }
        assert!(Geometry::for_size(4096).is_err());
    }
}
