//! The zones as the store uses them: what each is for, how full it is, how much of it is live.
//!
//! Invariants: `live` of a zone counts exactly the blocks in it that the newest version of the
//! catalog refers to (file blocks through extents, nodes through the tree). A zone is *free* only
//! if the device holds it empty. `emptied` is the version at which the last live block left a
//! sealed zone, and `opened` the one at which it was taken: only versions from that one on and
//! before `emptied` can refer to what is in it, and none of them may be needed any more when the
//! zone is reset.

use std::collections::VecDeque;

use zns_backend::Geometry;

use crate::error::{Error, Result};
use crate::format::checkpoint::{ZoneRecord, ZoneUse};
use crate::format::chunk::Class;
use crate::types::{Lba, ZoneId};

pub(crate) use crate::format::checkpoint::ANCHORS;

/// Fewest blocks left in a zone for another chunk: a header and one block.
pub(super) const CHUNK_MIN: u64 = 2;

#[derive(Clone, Copy, Debug)]
pub(super) struct Zone {
    pub(super) usage: ZoneUse,
    pub(super) pointer: u64,
    pub(super) live: u64,
    pub(super) age: u64,
    pub(super) emptied: Option<u64>,
    pub(super) opened: u64,
}

#[derive(Clone)]
pub(super) struct ZoneTable {
    geometry: Geometry,
    zones: Vec<Zone>,
    free: VecDeque<ZoneId>,
    live_total: u64,
    retired: u64,
}

impl ZoneTable {
    /// A table from the records of a checkpoint; zones that are not free keep their use.
    pub(super) fn new(geometry: &Geometry, records: &[ZoneRecord]) -> ZoneTable {
        let zones: Vec<Zone> = records
            .iter()
            .map(|r| Zone {
                usage: r.usage,
                pointer: r.pointer,
                live: r.live,
                age: r.age,
                emptied: (r.live == 0).then_some(0),
                opened: 0,
            })
            .collect();
        let live_total = zones.iter().map(|z| z.live).sum();
        let retired = zones.iter().filter(|z| z.usage == ZoneUse::Retired).count() as u64;
        let mut table = ZoneTable {
            geometry: *geometry,
            zones,
            free: VecDeque::new(),
            live_total,
            retired,
        };
        table.rebuild_free();
        table
    }

    /// The table of a device that holds nothing yet.
    pub(super) fn fresh(geometry: &Geometry) -> ZoneTable {
        let records: Vec<ZoneRecord> = (0..geometry.zones)
            .map(|zone| ZoneRecord {
                usage: if zone < ANCHORS {
                    ZoneUse::Anchor
                } else {
                    ZoneUse::Free
                },
                pointer: 0,
                live: 0,
                age: 0,
            })
            .collect();
        ZoneTable::new(geometry, &records)
    }

    /// Recomputes the list of free zones, in the order of their numbers.
    pub(super) fn rebuild_free(&mut self) {
        self.free = self
            .iter()
            .filter(|(_, z)| z.usage == ZoneUse::Free)
            .map(|(id, _)| id)
            .collect();
    }

    pub(super) fn records(&self) -> Vec<ZoneRecord> {
        self.zones
            .iter()
            .map(|z| ZoneRecord {
                usage: z.usage,
                pointer: z.pointer,
                live: z.live,
                age: z.age,
            })
            .collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ZoneId, &Zone)> {
        (0..).map(ZoneId).zip(&self.zones)
    }

    pub(super) fn get(&self, id: ZoneId) -> &Zone {
        &self.zones[id.0 as usize]
    }

    pub(super) fn get_mut(&mut self, id: ZoneId) -> &mut Zone {
        &mut self.zones[id.0 as usize]
    }

    pub(super) fn of(&self, lba: Lba) -> ZoneId {
        self.geometry.zone_of(lba)
    }

    /// Blocks that can be written before a zone has to be reset.
    pub(super) fn unwritten(&self) -> u64 {
        let capacity = self.geometry.zone_capacity;
        let open = |zone: &Zone| matches!(zone.usage, ZoneUse::Open(_));
        let partly: u64 = self
            .iter()
            .filter(|(_, zone)| open(zone))
            .map(|(_, zone)| capacity - zone.pointer)
            .sum();
        self.free.len() as u64 * capacity + partly
    }

    /// Blocks left in the open zones of a class.
    pub(super) fn room(&self, class: Class) -> u64 {
        let open = self.open_zones(class).into_iter();
        open.map(|zone| self.remaining(zone)).sum()
    }

    pub(super) fn free_count(&self) -> usize {
        self.free.len()
    }

    /// Takes a zone out of use for good; what is live in it can still be read.
    pub(super) fn retire(&mut self, id: ZoneId) {
        let zone = self.get_mut(id);
        if zone.usage != ZoneUse::Retired {
            zone.usage = ZoneUse::Retired;
            self.retired += 1;
            self.free.retain(|free| *free != id);
        }
    }

    /// Blocks of zones that take nothing any more.
    pub(super) fn retired_blocks(&self) -> u64 {
        self.retired * self.geometry.zone_capacity
    }

    pub(super) fn live_total(&self) -> u64 {
        self.live_total
    }

    /// Blocks left in a zone.
    pub(super) fn remaining(&self, id: ZoneId) -> u64 {
        self.geometry.zone_capacity - self.get(id).pointer
    }

    /// Address of the next block of a zone.
    pub(super) fn next_lba(&self, id: ZoneId) -> Lba {
        self.geometry.zone_start(id).plus(self.get(id).pointer)
    }

    /// Opens, at a version, the zone that has been free for longest, unless that would leave fewer
    /// than `keep`.
    pub(super) fn take_free(&mut self, class: Class, keep: usize, version: u64) -> Option<ZoneId> {
        if self.free.len() <= keep {
            return None;
        }
        let id = self.free.pop_front()?;
        *self.get_mut(id) = Zone {
            usage: ZoneUse::Open(class),
            pointer: 0,
            live: 0,
            age: 0,
            emptied: None,
            opened: version,
        };
        Some(id)
    }

    /// The open zones of a class.
    pub(super) fn open_zones(&self, class: Class) -> Vec<ZoneId> {
        self.iter()
            .filter(|(_, z)| z.usage == ZoneUse::Open(class))
            .map(|(id, _)| id)
            .collect()
    }

    /// Gives `blocks` of an open zone to a chunk. True if the zone is thereby used up and sealed
    /// with a block left over, so that the device must be told to finish it.
    pub(super) fn advance(&mut self, id: ZoneId, blocks: u64, age: u64, version: u64) -> bool {
        let zone = self.get_mut(id);
        zone.pointer += blocks;
        zone.age = age;
        let left = self.remaining(id);
        if left < CHUNK_MIN {
            self.seal(id, version);
        }
        left > 0 && left < CHUNK_MIN
    }

    /// Takes an open zone out of use for writing.
    pub(super) fn seal(&mut self, id: ZoneId, version: u64) {
        let zone = self.get_mut(id);
        if let ZoneUse::Open(class) = zone.usage {
            zone.usage = ZoneUse::Sealed(class);
            if zone.live == 0 {
                zone.emptied = Some(version);
            }
        }
    }

    /// A zone has been reset.
    pub(super) fn release(&mut self, id: ZoneId) {
        *self.get_mut(id) = Zone {
            usage: ZoneUse::Free,
            pointer: 0,
            live: 0,
            age: 0,
            emptied: None,
            opened: 0,
        };
        self.free.push_back(id);
    }

    /// A version refers to something in a zone that was opened after it.
    pub(super) fn keep_for(&mut self, id: ZoneId, version: u64) {
        let zone = self.get_mut(id);
        zone.opened = zone.opened.min(version);
    }

    /// `blocks` blocks from `lba` on became live.
    ///
    /// # Errors
    /// `Corrupt` if they do not lie in a zone.
    pub(super) fn credit(&mut self, lba: Lba, blocks: u64) -> Result<()> {
        let zone = self.holder(lba, blocks)?;
        zone.live += blocks;
        zone.emptied = None;
        self.live_total += blocks;
        Ok(())
    }

    /// `blocks` blocks from `lba` on are dead from `version` on.
    ///
    /// # Errors
    /// `Corrupt` if they do not lie in a zone or were not live.
    pub(super) fn debit(&mut self, lba: Lba, blocks: u64, version: u64) -> Result<()> {
        let zone = self.holder(lba, blocks)?;
        zone.live = zone
            .live
            .checked_sub(blocks)
            .ok_or_else(|| Error::Corrupt {
                what: "live count",
                detail: format!("{blocks} blocks at LBA {lba} die in a zone with fewer live"),
            })?;
        if zone.live == 0 {
            zone.emptied = Some(version);
        }
        self.live_total -= blocks;
        Ok(())
    }

    fn holder(&mut self, lba: Lba, blocks: u64) -> Result<&mut Zone> {
        let capacity = self.geometry.zone_capacity;
        let inside = self
            .geometry
            .offset_of(lba)
            .checked_add(blocks)
            .is_some_and(|e| e <= capacity);
        let zone = self.zones.get_mut(self.geometry.zone_of(lba).0 as usize);
        zone.filter(|_| inside).ok_or_else(|| Error::Corrupt {
            what: "block address",
            detail: format!("{blocks} blocks at LBA {lba} lie in no zone"),
        })
    }

    /// Sealed zones without live blocks that neither a version older than `version` can need, nor
    /// one that is read: `read` says whether there is one from the first on and before the second.
    pub(super) fn reclaimable(&self, version: u64, read: impl Fn(u64, u64) -> bool) -> Vec<ZoneId> {
        self.iter()
            .filter(|(_, z)| {
                matches!(z.usage, ZoneUse::Sealed(_))
                    && z.live == 0
                    && z.emptied
                        .is_some_and(|emptied| emptied <= version && !read(z.opened, emptied))
            })
            .map(|(id, _)| id)
            .collect()
    }

    /// The sealed zone that is best to collect: by cost-benefit (Rosenblum and Ousterhout, The
    /// Design and Implementation of a Log-Structured File System, section 3.6), or the emptiest
    /// if `greedy`. Zones that are live to the last payload block gain nothing and are left alone,
    /// as are those that were there at version `kept`, which cannot be reset.
    pub(super) fn victim(
        &self,
        now: u64,
        greedy: bool,
        kept: Option<u64>,
        except: &[ZoneId],
    ) -> Option<ZoneId> {
        let capacity = self.geometry.zone_capacity;
        // One block in a chunk of 256 is its header, so this is what a fully live zone has.
        let full = capacity - capacity.div_ceil(crate::format::chunk::CHUNK_BLOCKS);
        let score = |zone: &Zone| {
            let used = zone.live as f64 / capacity as f64;
            if greedy {
                1.0 - used
            } else {
                (1.0 - used) * (now.saturating_sub(zone.age) + 1) as f64 / (1.0 + used)
            }
        };
        self.iter()
            .filter(|(id, z)| {
                matches!(z.usage, ZoneUse::Sealed(_))
                    && z.live > 0
                    && z.live < full
                    && kept.is_none_or(|kept| z.opened > kept)
                    && !except.contains(id)
            })
            .max_by(|(_, a), (_, b)| score(a).total_cmp(&score(b)))
            .map(|(id, _)| id)
    }
}
