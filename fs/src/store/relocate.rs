//! What happens when a write fails: the zone is retired, and its chunks go elsewhere.
//!
//! The blocks of a failed chunk have addresses already, in the catalog and perhaps in transactions
//! of chunks that are on the device. The chunk is written again in another zone under the same
//! sequence number with its first address as *origin*; extents in the head are moved, and recovery
//! translates addresses below the origin in every transaction it replays. A retired zone is never
//! written again, so an old address can mean nothing else.

use std::ops::ControlFlow;
use std::sync::Arc;

use zns_backend::DmaBuffer;

use super::extent::{Backing, Extent, for_each_extent};
use super::open_chunk::{OpenChunk, Sealed};
use super::txn::account;
use super::view::scan_tree;
use super::{Counters, Head, Records, Store, Value};
use crate::catalog::{Key, Kind, NodeCache, Tree};
use crate::error::{Error, Result};
use crate::format::checkpoint::ZoneUse;
use crate::format::chunk::{self, Class, Payload};
use crate::types::{Lba, ZoneId};

/// A chunk that was written elsewhere than its blocks were told.
#[derive(Clone, Copy)]
pub(super) struct Ghost {
    /// From this version on nobody refers to the old address.
    version: u64,
    old: Lba,
    blocks: u64,
    new: Lba,
}

impl Head {
    /// Where the block is that older versions know at `lba`, if its chunk was written elsewhere.
    pub(super) fn moved_to(&self, lba: Lba) -> Option<Lba> {
        self.ghosts.iter().find_map(|ghost| {
            let offset = lba.0.checked_sub(ghost.old.0)?;
            (offset < ghost.blocks).then(|| ghost.new.plus(offset))
        })
    }
}

impl Store {
    /// Takes a zone out of use for good. The device is told to finish it: as long as it is open it
    /// counts against the zones that may be active, and soon no other could be opened.
    pub(super) fn retire_zone(&self, head: &mut Head, zone: ZoneId) {
        tracing::error!("zone {zone} is retired after a failed write");
        head.zones.retire(zone);
        self.writer.finish_zone(zone);
        if head.last_zone == Some(zone) {
            head.last_zone = None;
        }
    }

    /// Sends chunks whose write failed, and those behind them, elsewhere.
    pub(super) fn relocate_failed(&self) -> Result<()> {
        let mut head = self.head.write();
        let failed = self.writer.take_failed();
        for sealed in &failed {
            if head.zones.get(sealed.zone).usage != ZoneUse::Retired {
                self.retire_zone(&mut head, sealed.zone);
            }
        }
        for (done, sealed) in failed.iter().enumerate() {
            if let Err(error) = self.relocate(&mut head, sealed) {
                // Who waits for these must not wait for ever.
                self.writer.put_back_failed(&failed[done..]);
                return Err(error);
            }
        }
        if head
            .open
            .as_ref()
            .is_some_and(|c| head.zones.get(c.zone).usage == ZoneUse::Retired)
        {
            // The chunk being filled has addresses in the dead zone too.
            if head.open.as_ref().is_some_and(OpenChunk::is_empty) {
                head.open = None;
                self.publish_open_range(None);
            } else if let Some((sealed, _)) = self.seal_unqueued(&mut head) {
                self.writer.enqueue_failed(&sealed);
                if let Err(error) = self.relocate(&mut head, &sealed) {
                    self.writer.put_back_failed(&[sealed]);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Writes a chunk again in the first zone that takes it. The head is held: no address in a
    /// zone that fails now gets into the catalog.
    fn relocate(&self, head: &mut Head, sealed: &Arc<Sealed>) -> Result<()> {
        let mut buffer = DmaBuffer::new(sealed.bytes().len());
        buffer.copy_from_slice(sealed.bytes());
        let (zone, lba) = loop {
            let zone = self.zone_with_room(head, sealed.blocks)?;
            let lba = head.zones.next_lba(zone);
            chunk::readdress(&mut buffer, lba)?;
            match self.device.write(lba, &buffer) {
                Ok(()) => break (zone, lba),
                // No fault of the zone: to retire it, and the next, would end with none.
                Err(
                    error @ (zns_backend::Error::TooManyActive(_)
                    | zns_backend::Error::TooManyOpen(_)),
                ) => return Err(error.into()),
                Err(error) => {
                    tracing::error!("writing {} blocks at LBA {lba}: {error}", sealed.blocks);
                    self.retire_zone(head, zone);
                }
            }
        };
        if head
            .zones
            .advance(zone, sealed.blocks, sealed.sequence, head.version + 1)
        {
            self.writer.finish_zone(zone);
        }
        // Older versions find their blocks here, too.
        head.zones.keep_for(zone, 0);
        self.translate_extents(head, sealed, lba)?;
        head.staged.moved(sealed.lba, sealed.blocks, lba);
        head.version += 1;
        head.relocations += 1;
        head.settle_retired()?;
        let ghost = Ghost {
            version: head.version,
            old: sealed.lba,
            blocks: sealed.blocks,
            new: lba,
        };
        head.ghosts.push(ghost);
        Counters::add(&self.counters.writes_relocated, 1);
        self.writer.settle(sealed.sequence);
        Ok(())
    }

    fn zone_with_room(&self, head: &mut Head, blocks: u64) -> Result<ZoneId> {
        let open = head.zones.open_zones(Class::Hot);
        let taken = head.open.as_ref().map(|chunk| chunk.zone);
        open.into_iter()
            .find(|zone| {
                Some(*zone) != taken
                    && head.zones.remaining(*zone) >= blocks
                    && self.writer.is_idle(*zone)
            })
            .or_else(|| head.zones.take_free(Class::Hot, 0, head.version))
            .ok_or(Error::NoSpace)
    }

    /// Maps what `sealed` holds to the same blocks of a chunk at `lba`.
    fn translate_extents(&self, head: &mut Head, sealed: &Sealed, lba: Lba) -> Result<()> {
        let mut at = 1;
        for run in &sealed.payload {
            if let Payload::Data { ino, first, count } = *run {
                let mut changes = Vec::new();
                let records = HeadRecords {
                    tree: &head.tree,
                    cache: &self.cache,
                };
                for_each_extent(
                    &records,
                    ino,
                    first,
                    first + u64::from(count),
                    &mut |extent| {
                        if let Backing::Mapped { lba: old, crcs } = &extent.backing
                            && let Some(new) = translate(*old, sealed, lba)
                        {
                            let backing = Backing::Mapped {
                                lba: new,
                                crcs: crcs.clone(),
                            };
                            changes.push(Extent { backing, ..extent });
                        }
                        ControlFlow::Continue(())
                    },
                )?;
                for extent in changes {
                    let key = Key::new(ino, Kind::Extent, extent.start);
                    let value = extent.encode();
                    let old = head.tree.put(&self.cache, key, &value)?;
                    account(head, &key, old.as_deref(), Some(&value))?;
                }
            }
            at += run.blocks();
        }
        debug_assert!(at <= sealed.blocks, "the payload lies inside the chunk");
        Ok(())
    }

    /// Frees relocated chunks that no view refers to by their old address.
    pub(super) fn forget_ghosts(&self, head: &mut Head) {
        let oldest = self.pins.oldest().unwrap_or(u64::MAX);
        head.ghosts.retain(|ghost| {
            let needed = ghost.version > oldest;
            if !needed {
                self.writer.forget_resident(ghost.old);
            }
            needed
        });
    }
}

/// The address in a chunk moved to `lba` of a block that `sealed` held at `old`.
fn translate(old: Lba, sealed: &Sealed, lba: Lba) -> Option<Lba> {
    let offset = old.0.checked_sub(sealed.lba.0)?;
    (offset < sealed.blocks).then(|| lba.plus(offset))
}

/// The head's tree as records, while the head is borrowed in parts.
struct HeadRecords<'a> {
    tree: &'a Tree,
    cache: &'a NodeCache,
}

impl Records for HeadRecords<'_> {
    fn get(&self, key: &Key) -> Result<Option<Value>> {
        self.tree.get(self.cache, key)
    }

    fn floor(&self, key: &Key) -> Result<Option<(Key, Value)>> {
        self.tree.floor(self.cache, key)
    }

    fn scan(
        &self,
        from: &Key,
        to: &Key,
        visit: &mut dyn FnMut(Key, &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        scan_tree(self.tree, self.cache, from, to, visit)
    }
}
