//! Blocks that are in the log before the transaction that will map them is begun.
//!
//! Whoever gathers more than memory should hold stages blocks: they are payload of hot chunks, as the
//! blocks of any file are, and no record refers to them. Mapping them later moves no byte; a crash
//! before that leaves dead payload and nothing to clean up. Until they are mapped or dropped,
//!
//! - they count as used space,
//! - their zones are neither collected nor reset (no live count says that they are needed),
//! - a chunk of theirs that is written elsewhere after a failed write takes them along.
//!
//! So addresses are kept here, where those three look, and not with who staged.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::blocks::Run;
use super::extent::{Backing, Extent, MAX_MAPPED};
use super::{Head, Store, Txn};
use crate::checksum;
use crate::error::{Error, Result};
use crate::types::{BLOCK_SIZE, Ino, Lba, ZoneId};

/// Who staged blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stage(pub u64);

/// Address and checksum by file block.
type Blocks = BTreeMap<u64, (Lba, u32)>;

/// All staged blocks.
#[derive(Default)]
pub(super) struct Staged {
    stages: HashMap<Stage, Blocks>,
}

impl Staged {
    /// Number of blocks.
    pub(super) fn blocks(&self) -> u64 {
        self.stages.values().map(|blocks| blocks.len() as u64).sum()
    }

    /// The blocks that stand in the `count` blocks from `old` on stand in those from `new` on.
    pub(super) fn moved(&mut self, old: Lba, count: u64, new: Lba) {
        for (lba, _) in self.stages.values_mut().flat_map(BTreeMap::values_mut) {
            if let Some(offset) = lba.0.checked_sub(old.0)
                && offset < count
            {
                *lba = new.plus(offset);
            }
        }
    }
}

impl Head {
    /// Zones with staged blocks.
    pub(super) fn staging_zones(&self) -> HashSet<ZoneId> {
        let blocks = self.staged.stages.values().flat_map(BTreeMap::values);
        blocks.map(|(lba, _)| self.zones.of(*lba)).collect()
    }

    /// The zones that can be reset ([`super::zones::ZoneTable::reclaimable`]).
    pub(super) fn reclaimable(&self, version: u64, read: impl Fn(u64, u64) -> bool) -> Vec<ZoneId> {
        let staging = self.staging_zones();
        let mut zones = self.zones.reclaimable(version, read);
        zones.retain(|zone| !staging.contains(zone));
        zones
    }
}

impl Store {
    /// Writes runs of whole blocks of a file, each with the first one's number, into the log without
    /// mapping them, in place of those that were staged there before. Together they should be few,
    /// since other transactions wait.
    ///
    /// # Errors
    /// `NoSpace`, `ReadOnly`, device errors; then none of them is staged.
    pub fn stage(&self, stage: Stage, ino: Ino, runs: &[(u64, Vec<u8>)]) -> Result<()> {
        let crcs_of = |(_, data): &(u64, Vec<u8>)| -> Vec<u32> {
            let blocks = data.chunks_exact(BLOCK_SIZE);
            blocks.map(checksum::crc32c).collect()
        };
        let crcs: Vec<Vec<u32>> = runs.iter().map(crcs_of).collect();
        let mut txn = self.begin()?;
        txn.claim_space(crcs.iter().map(|crcs| crcs.len() as u64).sum())?;
        let mut placed = Vec::new();
        for ((first, data), crcs) in runs.iter().zip(&crcs) {
            let mut crcs_left = crcs.iter();
            let mut block = *first;
            for (lba, len) in txn.append_blocks(ino, *first, data, crcs)? {
                for (offset, crc) in (0..len).zip(&mut crcs_left) {
                    placed.push((block, (lba.plus(offset), *crc)));
                    block += 1;
                }
            }
        }
        let blocks = txn.head_mut().staged.stages.entry(stage).or_default();
        blocks.extend(placed);
        Ok(())
    }

    /// Fills `out` with a staged block; false if it is not staged. The block is verified if it comes
    /// from the device.
    ///
    /// # Errors
    /// `BadBlock`, device errors.
    pub fn read_staged(&self, stage: Stage, ino: Ino, block: u64, out: &mut [u8]) -> Result<bool> {
        // What a view pins can be read at an address that a failed write has made an old one.
        let view = self.view();
        let found = {
            let head = self.head.read();
            let blocks = head.staged.stages.get(&stage);
            blocks.and_then(|blocks| blocks.get(&block).copied())
        };
        let Some((lba, crc)) = found else {
            return Ok(false);
        };
        if !self.copy_from_memory(None, lba, out) {
            let run = Run {
                lba,
                start: block,
                crcs: vec![crc],
            };
            self.read_runs(ino, &mut [(run, out)])?;
        }
        drop(view);
        Ok(true)
    }

    /// Forgets the staged blocks from `first` on and before `end`; returns how many there were.
    pub fn unstage(&self, stage: Stage, first: u64, end: u64) -> u64 {
        if !self.is_staged(stage, first, end) {
            return 0;
        }
        let mut head = self.head.write();
        let Some(blocks) = head.staged.stages.get_mut(&stage) else {
            return 0;
        };
        // What stays is not moved: a writer unstages block by block, among many.
        let gone: Vec<u64> = blocks.range(first..end).map(|(block, _)| *block).collect();
        for block in &gone {
            blocks.remove(block);
        }
        if blocks.is_empty() {
            head.staged.stages.remove(&stage);
        }
        gone.len() as u64
    }

    /// Whether any block from `first` on and before `end` is staged.
    pub fn is_staged(&self, stage: Stage, first: u64, end: u64) -> bool {
        let head = self.head.read();
        let blocks = head.staged.stages.get(&stage);
        blocks.is_some_and(|blocks| blocks.range(first..end).next().is_some())
    }
}

impl Txn<'_> {
    /// Maps what is staged, and returns by how many blocks the file's allocation grew. The blocks stay
    /// staged, since the transaction may come to nothing.
    ///
    /// # Errors
    /// `TooLarge`, device errors.
    pub fn map_staged(&mut self, stage: Stage, ino: Ino) -> Result<u64> {
        let staged = self.head_mut().staged.stages.get(&stage).cloned();
        let mut grown = 0;
        for extent in extents(&staged.unwrap_or_default()) {
            if extent.end() > super::extent::MAX_FILE_BLOCKS {
                return Err(Error::TooLarge);
            }
            let replaced = self.unmap_blocks(ino, extent.start, extent.len)?;
            grown += extent.len - replaced;
            self.insert(ino, extent)?;
        }
        Ok(grown)
    }
}

/// The blocks as extents.
fn extents(blocks: &Blocks) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    for (&block, &(at, crc)) in blocks {
        if let Some(last) = extents.last_mut()
            && let Backing::Mapped { lba, crcs } = &mut last.backing
            && last.start + last.len == block
            && lba.plus(last.len) == at
            && last.len < MAX_MAPPED
        {
            last.len += 1;
            crcs.push(crc);
            continue;
        }
        extents.push(Extent {
            start: block,
            len: 1,
            backing: Backing::Mapped {
                lba: at,
                crcs: vec![crc],
            },
        });
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_in_the_file_and_in_the_log_become_one_extent() {
        let blocks: Blocks = [
            (4, (Lba(100), 1)),
            (5, (Lba(101), 2)),
            (6, (Lba(200), 3)),
            (8, (Lba(201), 4)),
        ]
        .into();
        let found: Vec<(u64, u64)> = extents(&blocks).iter().map(|e| (e.start, e.len)).collect();
        assert_eq!(found, [(4, 2), (6, 1), (8, 1)]);
        let long: Blocks = (0..300).map(|at| (at, (Lba(1000 + at), 0))).collect();
        assert_eq!(extents(&long).len() as u64, 300_u64.div_ceil(MAX_MAPPED));
    }

    #[test]
    fn staged_blocks_move_with_their_chunk() {
        let mut staged = Staged::default();
        let blocks = [(0, (Lba(99), 0)), (1, (Lba(100), 0)), (2, (Lba(110), 0))];
        staged.stages.insert(Stage(1), blocks.into());
        staged.moved(Lba(100), 10, Lba(500));
        let lbas: Vec<u64> = staged.stages[&Stage(1)]
            .values()
            .map(|(l, _)| l.0)
            .collect();
        assert_eq!(lbas, [99, 500, 110]);
    }
}
