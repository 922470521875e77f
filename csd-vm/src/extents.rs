//! Extents: what the host resolved, put together as far as it can be handled at once.

use std::ops::Range;

use zns_backend::{Geometry, Lba};

use crate::request::{BLOCK_SIZE, Piece};

/// Whether an extent ends with the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// All of its bytes are of the snapshot.
    Within,
    /// It is the block that the snapshot ends in, or past that.
    Tail,
}

/// Consecutive blocks of the file that are consecutive in one zone, or a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// First block, counted from the first one resolved.
    pub(crate) first: u64,
    /// How many.
    pub(crate) blocks: u64,
    /// Where they are; none for a hole.
    pub(crate) lba: Option<Lba>,
    /// Whether they are the snapshot's last.
    pub(crate) place: Place,
}

impl Extent {
    /// Its bytes, counted from the first one resolved.
    pub(crate) fn bytes(&self) -> Range<usize> {
        let at = |blocks: u64| blocks as usize * BLOCK_SIZE;
        at(self.first)..at(self.first + self.blocks)
    }
}

/// A resolved range of blocks.
#[derive(Debug, Default)]
pub(crate) struct Resolved {
    /// The extents, without gaps.
    pub(crate) extents: Vec<Extent>,
    /// Bytes of the snapshot in the block it ends in.
    pub(crate) tail_bytes: usize,
    checksums: Vec<u32>,
}

impl Resolved {
    /// Takes the extents of `pieces`, if they cover exactly `count` blocks. Those past the first
    /// `whole` ones are not whole blocks of the snapshot.
    pub(crate) fn set(
        &mut self,
        pieces: &[Piece],
        count: u64,
        whole: u64,
        geometry: &Geometry,
    ) -> bool {
        self.extents.clear();
        self.checksums.clear();
        let mut first = 0u64;
        for piece in pieces {
            let blocks = piece.blocks();
            if blocks == 0 || blocks > count - first {
                return false;
            }
            let lba = match piece {
                Piece::Hole { .. } => None,
                Piece::Mapped { lba, .. } => Some(*lba),
            };
            self.add(first, blocks, lba, whole, geometry);
            match piece {
                Piece::Mapped { checksums, .. } => self.checksums.extend_from_slice(checksums),
                Piece::Hole { blocks } => {
                    let len = self.checksums.len() + *blocks as usize;
                    self.checksums.resize(len, 0);
                }
            }
            first += blocks;
        }
        first == count
    }

    /// The checksums of an extent's blocks.
    pub(crate) fn checksums(&self, extent: &Extent) -> &[u32] {
        let first = extent.first as usize;
        &self.checksums[first..first + extent.blocks as usize]
    }

    fn add(&mut self, first: u64, blocks: u64, lba: Option<Lba>, whole: u64, geometry: &Geometry) {
        let within = whole.saturating_sub(first).min(blocks);
        if within > 0 {
            self.join(first, within, lba, geometry);
        }
        if within < blocks {
            self.extents.push(Extent {
                first: first + within,
                blocks: blocks - within,
                lba: lba.map(|lba| lba.plus(within)),
                place: Place::Tail,
            });
        }
    }

    fn join(&mut self, first: u64, blocks: u64, lba: Option<Lba>, geometry: &Geometry) {
        if let Some(last) = self.extents.last_mut()
            && last.place == Place::Within
        {
            let continues = match (last.lba, lba) {
                (None, None) => true,
                (Some(before), Some(here)) => {
                    before.0.checked_add(last.blocks) == Some(here.0)
                        && geometry.zone_of(before) == geometry.zone_of(here)
                }
                _ => false,
            };
            if continues {
                last.blocks += blocks;
                return;
            }
        }
        self.extents.push(Extent {
            first,
            blocks,
            lba,
            place: Place::Within,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(lba: u64, blocks: u32) -> Piece {
        Piece::Mapped {
            lba: Lba(lba),
            checksums: (0..blocks).map(|index| lba as u32 + index).collect(),
        }
    }

    fn geometry() -> Geometry {
        Geometry {
            block_size: 4096,
            zones: 8,
            zone_size: 64,
            zone_capacity: 64,
            max_open: 0,
            max_active: 0,
            max_append: 0,
        }
    }

    #[test]
    fn neighbours_join_within_a_zone_and_short_of_the_tail() {
        let pieces = [
            mapped(60, 2),
            mapped(62, 2),
            mapped(64, 3),
            Piece::Hole { blocks: 1 },
            Piece::Hole { blocks: 2 },
            mapped(67, 3),
        ];
        let mut resolved = Resolved::default();
        assert!(resolved.set(&pieces, 13, 12, &geometry()));
        let got: Vec<_> = resolved
            .extents
            .iter()
            .map(|e| (e.first, e.blocks, e.lba.map(|lba| lba.0), e.place))
            .collect();
        let expected = [
            (0, 4, Some(60), Place::Within),
            (4, 3, Some(64), Place::Within),
            (7, 3, None, Place::Within),
            (10, 2, Some(67), Place::Within),
            (12, 1, Some(69), Place::Tail),
        ];
        assert_eq!(got, expected);
        assert_eq!(resolved.checksums(&resolved.extents[0]), [60, 61, 62, 63]);
        assert_eq!(resolved.checksums(&resolved.extents[4]), [69]);
    }

    #[test]
    fn pieces_that_do_not_cover_the_range_are_refused() {
        let mut resolved = Resolved::default();
        for pieces in [
            vec![],
            vec![mapped(1, 2)],
            vec![mapped(1, 4)],
            vec![Piece::Hole { blocks: u64::MAX }, mapped(1, 4)],
            vec![Piece::Hole { blocks: 0 }, mapped(1, 3)],
        ] {
            assert!(!resolved.set(&pieces, 3, 3, &geometry()), "{pieces:?}");
        }
    }
}
