//! The addresses that kernels of the OpenCSD ABI read and write by.
//!
//! Blocks of the snapshot have the address they have on the device. What has none gets one past
//! the end of the device, so that no kernel can confuse it with a block there, and so that zone
//! and sector are computed from it as from any other:
//!
//! | from | what |
//! |---|---|
//! | the first zone past the device | the data handed in with the request |
//! | right after the data | the sectors reserved for appending |
//! | [`HOLE_ZONES`] zones further on | holes, at their block number in the file |
//!
//! Only what the request is about can be found here; everything else is refused.

use zns_backend::{Geometry, Lba};

use crate::request::Piece;

/// Zones between the data of a request and the addresses of holes.
const HOLE_ZONES: u64 = 1 << 32;

/// What a sector holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sector {
    /// A block of the snapshot, by its number in the file.
    Snapshot(u64),
    /// A sector of the data handed in, by its number.
    Data(u64),
}

#[derive(Clone, Copy, Debug)]
struct Run {
    lba: u64,
    sectors: u64,
    first: Sector,
}

/// The sectors of one request.
#[derive(Debug)]
pub(super) struct Sectors {
    zone_size: u64,
    /// First address past the device.
    beyond: u64,
    data: u64,
    reserved: u64,
    /// Ascending by address, once [`Sectors::sort`] was called.
    runs: Vec<Run>,
}

impl Sectors {
    /// The sectors of a request with `data` sectors of data and `reserved` ones to append to.
    pub(super) fn new(geometry: &Geometry, data: u64, reserved: u64) -> Sectors {
        let beyond = geometry.blocks();
        let mut runs = Vec::new();
        if data > 0 {
            runs.push(Run {
                lba: beyond,
                sectors: data,
                first: Sector::Data(0),
            });
        }
        Sectors {
            zone_size: geometry.zone_size,
            beyond,
            data,
            reserved,
            runs,
        }
    }

    /// Address of the first sector of data.
    pub(super) fn data_start(&self) -> u64 {
        self.beyond
    }

    /// Addresses reserved for appending.
    pub(super) fn reserved(&self) -> std::ops::Range<u64> {
        let start = self.beyond + self.data;
        start..start + self.reserved
    }

    /// Adds the blocks of the file from `block` on that `piece` holds, and returns the address of
    /// the first of them; the others follow it.
    pub(super) fn add(&mut self, block: u64, piece: &Piece) -> u64 {
        let lba = match piece {
            Piece::Mapped { lba: Lba(lba), .. } => *lba,
            Piece::Hole { .. } => self.hole(block),
        };
        self.runs.push(Run {
            lba,
            sectors: piece.blocks(),
            first: Sector::Snapshot(block),
        });
        lba
    }

    /// Everything has been added.
    pub(super) fn sort(&mut self) {
        self.runs.sort_unstable_by_key(|run| run.lba);
    }

    /// The address of a hole at `block` of the file.
    pub(super) fn hole(&self, block: u64) -> u64 {
        self.beyond + HOLE_ZONES * self.zone_size + block
    }

    /// The address of sector `sector` of zone `zone`, if such can be.
    pub(super) fn address(&self, zone: u64, sector: u64) -> Option<u64> {
        let start = zone.checked_mul(self.zone_size)?;
        (sector < self.zone_size).then_some(())?;
        start.checked_add(sector)
    }

    /// Whether `sectors` from `lba` on lie in one zone.
    pub(super) fn in_one_zone(&self, lba: u64, sectors: u64) -> bool {
        sectors <= self.zone_size - lba % self.zone_size
    }

    /// What the sector at `lba` holds and how many further ones follow it in the same way, itself
    /// included.
    pub(super) fn find(&self, lba: u64) -> Option<(Sector, u64)> {
        let after = self.runs.partition_point(|run| run.lba <= lba);
        let run = self.runs.get(after.checked_sub(1)?)?;
        let at = lba - run.lba;
        let left = run.sectors.checked_sub(at).filter(|&left| left > 0)?;
        let sector = match run.first {
            Sector::Snapshot(block) => Sector::Snapshot(block + at),
            Sector::Data(index) => Sector::Data(index + at),
        };
        Some((sector, left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry() -> Geometry {
        Geometry {
            block_size: 4096,
            zones: 8,
            zone_size: 64,
            zone_capacity: 48,
            max_open: 0,
            max_active: 0,
            max_append: 0,
        }
    }

    #[test]
    fn sectors_are_found_where_they_were_added_and_nowhere_else() {
        let mut sectors = Sectors::new(&geometry(), 2, 3);
        let mapped = |lba, blocks: usize| Piece::Mapped {
            lba: Lba(lba),
            checksums: vec![0; blocks].into(),
        };
        assert_eq!(sectors.add(0, &mapped(100, 4)), 100);
        let hole = sectors.add(4, &Piece::Hole { blocks: 2 });
        assert_eq!(sectors.add(6, &mapped(70, 1)), 70);
        sectors.sort();
        assert_eq!(sectors.find(102), Some((Sector::Snapshot(2), 2)));
        assert_eq!(sectors.find(70), Some((Sector::Snapshot(6), 1)));
        assert_eq!(sectors.find(hole + 1), Some((Sector::Snapshot(5), 1)));
        assert_eq!(sectors.find(513), Some((Sector::Data(1), 1)));
        for absent in [0, 69, 71, 99, 104, 511, 514, hole - 1, hole + 2, u64::MAX] {
            assert_eq!(sectors.find(absent), None, "{absent}");
        }
        assert_eq!(sectors.reserved(), 514..517);
    }

    #[test]
    fn positions_outside_a_zone_have_no_address() {
        let sectors = Sectors::new(&geometry(), 0, 0);
        assert_eq!(sectors.address(2, 63), Some(191));
        assert_eq!(sectors.address(2, 64), None);
        assert_eq!(sectors.address(u64::MAX, 0), None);
        assert_eq!(sectors.address(u64::MAX / 64, 63), Some(u64::MAX));
        assert!(sectors.in_one_zone(191, 1) && !sectors.in_one_zone(191, 2));
    }
}
