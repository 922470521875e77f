//! Garbage collection: moving what is live out of a zone so that it can be reset.
//!
//! A block is live if the newest version of the catalog maps its owner, which the payload table of
//! its chunk names, to its address. File blocks are copied into cold zones and flushed before a
//! transaction maps them; nodes are marked, and the next checkpoint writes them elsewhere. A zone
//! whose last live block is gone waits for a durable checkpoint, and for the views that are older.

use std::ops::ControlFlow;

use super::extent::{Backing, Extent, for_each_extent};
use super::open_chunk::OpenChunk;
use super::scan::{FoundChunk, read_chunk};
use super::{Counters, Head, Store, Txn};
use crate::checksum;
use crate::error::{Error, Result};
use crate::format::checkpoint::ZoneUse;
use crate::format::chunk::{CHUNK_BLOCKS, Class, Payload};
use crate::types::{BLOCK_SIZE, Ino, Lba, ZoneId};

/// Victims collected under one checkpoint at most.
const BATCH_MAX: usize = 8;
/// Times the copies of a victim are made if a zone does not take them.
const ATTEMPTS: usize = 4;
/// Moved runs mapped in one transaction.
const MOVES_PER_TRANSACTION: usize = 64;

/// Free zones that the copies of one batch take at most.
const ZONES_OF_COPIES_MAX: usize = 4;

/// A collection that gains less than this part of a zone was futile.
const GAIN_MIN_PART: u64 = 16;

/// Blocks between live ones up to which they are read along: that takes less time than another
/// request.
const GAP_MAX: u64 = 32;

/// A run of file blocks that the catalog still maps to where it was written.
struct Piece {
    ino: Ino,
    first: u64,
    crcs: Vec<u32>,
    lba: Lba,
}

impl Piece {
    fn end(&self) -> Lba {
        self.lba.plus(self.crcs.len() as u64)
    }
}

/// A run of file blocks that was copied.
struct Move {
    ino: Ino,
    first: u64,
    count: u64,
    from: Lba,
    to: Lba,
}

/// Copies of live blocks on their way into cold zones.
struct Relocation<'a> {
    store: &'a Store,
    open: Option<OpenChunk>,
    /// Moves whose blocks are in the open chunk.
    pending: Vec<Move>,
    /// Moves whose blocks are written.
    written: Vec<Move>,
}

impl Store {
    /// Collects up to `zones` victim zones now; returns how many zones were freed.
    ///
    /// # Errors
    /// Device errors.
    pub fn collect(&self, zones: usize) -> Result<usize> {
        self.check_writable()?;
        let _one_at_a_time = self.maintenance.lock();
        self.collect_locked(zones)
    }

    /// As [`Store::collect`], for a caller that holds the maintenance lock.
    pub(super) fn collect_locked(&self, goal: usize) -> Result<usize> {
        self.head.write().collecting = true;
        let outcome = self.collect_victims(goal);
        self.head.write().collecting = false;
        outcome
    }

    fn collect_victims(&self, goal: usize) -> Result<usize> {
        let unwritten = || self.head.read().zones.unwritten();
        let before = unwritten();
        let mut freed = self.reclaim()?;
        if freed < goal && (self.has_empty_zones() || self.has_many_nodes()) {
            self.checkpoint_locked()?;
            freed += self.reclaim()?;
        }
        let mut tried = Vec::new();
        while freed < goal {
            let mut batch = self.pick_victims(goal - freed, &tried);
            if batch.is_empty() {
                break;
            }
            // The last chunks of a victim may still be on their way.
            let next = self.head.read().next_sequence;
            self.latch("collection", self.write_before(next))?;
            // A victim that did not take them is retired: its pointer counts what is not there.
            let retired =
                |zone: &ZoneId| self.head.read().zones.get(*zone).usage == ZoneUse::Retired;
            batch.retain(|zone| !retired(zone));
            let (mut failed, mut full) = (false, false);
            for zone in &batch {
                // A victim that cannot be read, or a zone that does not take the copies: others may
                // do. What was not moved stays where it is.
                match self.empty_zone(*zone) {
                    Err(Error::Device(error)) => {
                        tracing::error!("collecting zone {zone}: {error}");
                        failed = true;
                    }
                    Err(Error::NoSpace) => {
                        full = true;
                        break;
                    }
                    other => other?,
                }
            }
            tried.extend(&batch);
            self.checkpoint_locked()?;
            let reset = self.reclaim()?;
            freed += reset;
            if full || (reset == 0 && !failed) {
                break;
            }
        }
        // Zones that were reset are no gain if as much was written to move what they held.
        let least = self.device.geometry().zone_capacity / GAIN_MIN_PART;
        self.note_collection(unwritten() >= before + least);
        Ok(freed)
    }

    fn has_empty_zones(&self) -> bool {
        let head = self.head.read();
        let read = |from, before| self.pins.any_within(from, before);
        !head.reclaimable(head.version, read).is_empty()
    }

    fn has_many_nodes(&self) -> bool {
        self.head.read().tree.dirty_nodes() >= self.limits.dirty_nodes
    }

    /// Blocks that can be copied while there are zones for the transactions that map the copies and for the
    /// checkpoint afterwards.
    fn room_for_copies(&self, head: &Head) -> u64 {
        let mapping = usize::from(head.zones.room(Class::Hot) < CHUNK_BLOCKS);
        let others = self.checkpoint_zones(head) + mapping;
        let free = head
            .zones
            .free_count()
            .saturating_sub(others)
            .min(ZONES_OF_COPIES_MAX);
        let blocks =
            head.zones.room(Class::Cold) + free as u64 * self.device.geometry().zone_capacity;
        blocks - blocks.div_ceil(CHUNK_BLOCKS)
    }

    /// Victims whose live blocks fit what is left to write. At least one zone's worth is gained per batch, so
    /// a batch of fuller zones is larger.
    fn pick_victims(&self, goal: usize, tried: &[ZoneId]) -> Vec<ZoneId> {
        let head = self.head.read();
        let capacity = self.device.geometry().zone_capacity;
        let free = head.zones.free_count();
        let budget = self.room_for_copies(&head);
        let greedy = free <= self.limits.low_zones;
        let kept = self.pins.newest_kept();
        let staging: Vec<ZoneId> = head.staging_zones().into_iter().collect();
        let mut batch: Vec<ZoneId> = Vec::new();
        let (mut live, mut gain) = (0, 0);
        while batch.len() < BATCH_MAX && gain < goal as u64 * capacity {
            let except = [tried, &batch, &staging].concat();
            let Some(zone) = head.zones.victim(head.next_sequence, greedy, kept, &except) else {
                break;
            };
            let zone_live = head.zones.get(zone).live;
            if live + zone_live > budget {
                break;
            }
            live += zone_live;
            gain += capacity - zone_live;
            batch.push(zone);
        }
        batch
    }

    /// Resets the zones that nothing needs any more.
    pub(super) fn reclaim(&self) -> Result<usize> {
        let zones = {
            let head = self.head.read();
            let read = |from, before| self.pins.any_within(from, before);
            head.reclaimable(head.durable.version, read)
        };
        for zone in &zones {
            let start = self.device.geometry().zone_start(*zone);
            match self.device.reset(*zone) {
                Ok(()) => {
                    self.cache
                        .invalidate(start..start.plus(self.device.geometry().zone_size));
                    let mut head = self.head.write();
                    head.zones.release(*zone);
                    self.publish_pressure(&head);
                }
                Err(error) => {
                    tracing::error!("resetting zone {zone}: {error}");
                    self.retire_zone(&mut self.head.write(), *zone);
                }
            }
        }
        Counters::add(&self.counters.zones_reset, zones.len() as u64);
        Ok(zones.len())
    }

    /// Moves everything live out of a zone. If a zone does not take the copies, which retires it,
    /// they are made again in another; nothing was mapped to them yet.
    fn empty_zone(&self, zone: ZoneId) -> Result<()> {
        for _ in 1..ATTEMPTS {
            match self.try_empty_zone(zone) {
                Err(Error::Device(error)) => tracing::error!("collecting zone {zone}: {error}"),
                outcome => return outcome,
            }
        }
        self.try_empty_zone(zone)
    }

    fn try_empty_zone(&self, zone: ZoneId) -> Result<()> {
        let start = self.device.geometry().zone_start(zone);
        let end = self.head.read().zones.get(zone).pointer;
        let mut relocation = Relocation {
            store: self,
            open: None,
            pending: Vec::new(),
            written: Vec::new(),
        };
        let mut at = 0;
        let mut damaged = None;
        while at < end {
            let found = read_chunk(
                &*self.device,
                &self.superblock.fsid,
                start.plus(at),
                end - at,
            )?;
            let Some(chunk) = found else {
                damaged = Some(start.plus(at));
                break;
            };
            at += chunk.info.blocks;
            self.move_chunk(&chunk, &mut relocation)?;
        }
        relocation.finish()?;
        if let Some(lba) = damaged {
            // The torn end a power cut left behind holds nothing; damage does.
            let mut head = self.head.write();
            if head.zones.get(zone).live > 0 {
                tracing::error!(
                    "zone {zone}: the chunk header at LBA {lba} is damaged; what is live behind it stays"
                );
                head.zones.retire(zone);
            }
        }
        Counters::add(&self.counters.zones_collected, 1);
        Ok(())
    }

    fn move_chunk(&self, chunk: &FoundChunk, relocation: &mut Relocation<'_>) -> Result<()> {
        let mut lba = chunk.payload_lba();
        let mut live = Vec::new();
        for run in &chunk.body.payload {
            match *run {
                Payload::Data { ino, first, count } => {
                    self.live_pieces(ino, first, u64::from(count), lba, &mut live)?;
                }
                Payload::Node { level, first_key } => {
                    let key = first_key.key()?;
                    // Asked first without the head, so that the path is in memory for the change.
                    let live = {
                        let view = self.view();
                        view.tree().references(&self.cache, level, &key, lba)?
                    };
                    if live {
                        let mut head = self.head.write();
                        head.tree.touch(&self.cache, level, &key, lba)?;
                        head.version += 1;
                        head.settle_retired()?;
                    }
                }
            }
            lba = lba.plus(run.blocks());
        }
        relocation.copy_all(&live)
    }

    /// Adds the parts of a run at `lba` that the catalog still maps there, by address.
    fn live_pieces(
        &self,
        ino: Ino,
        first: u64,
        count: u64,
        lba: Lba,
        pieces: &mut Vec<Piece>,
    ) -> Result<()> {
        let view = self.view();
        let end = first.saturating_add(count);
        for_each_extent(&view, ino, first, end, &mut |extent| {
            let Extent { start, backing, .. } = extent.slice(first, end);
            if let Backing::Mapped { lba: mapped, crcs } = backing
                && mapped == lba.plus(start - first)
            {
                pieces.push(Piece {
                    ino,
                    first: start,
                    crcs,
                    lba: mapped,
                });
            }
            ControlFlow::Continue(())
        })
    }
}

impl Relocation<'_> {
    /// Copies the pieces of a chunk, which are in the order of their addresses.
    fn copy_all(&mut self, pieces: &[Piece]) -> Result<()> {
        let near = |a: &Piece, b: &Piece| {
            let gap = b.lba.0.checked_sub(a.end().0);
            gap.is_some_and(|gap| gap <= GAP_MAX)
        };
        pieces
            .chunk_by(near)
            .try_for_each(|span| self.copy_span(span))
    }

    /// Copies pieces with one read of all that lies between the first and the last.
    fn copy_span(&mut self, pieces: &[Piece]) -> Result<()> {
        let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else {
            return Ok(());
        };
        let len = (last.end().0 - first.lba.0) as usize * BLOCK_SIZE;
        let mut buffer = self.store.device.buffer(len);
        let data = &mut buffer[..len];
        match self.store.device.read(first.lba, data) {
            // What cannot be read may lie between the pieces: each for itself.
            Err(_) if pieces.len() > 1 => {
                return pieces
                    .iter()
                    .try_for_each(|piece| self.copy_span(std::slice::from_ref(piece)));
            }
            outcome => outcome?,
        }
        for piece in pieces {
            let at = (piece.lba.0 - first.lba.0) as usize * BLOCK_SIZE;
            self.copy(piece, &data[at..at + piece.crcs.len() * BLOCK_SIZE])?;
        }
        Ok(())
    }

    /// Copies blocks, with the checksums the catalog has for them: a block that went bad stays
    /// recognisable as such.
    fn copy(&mut self, piece: &Piece, data: &[u8]) -> Result<()> {
        let store = self.store;
        let Piece {
            ino,
            first,
            ref crcs,
            lba: from,
        } = *piece;
        let found: Vec<u32> = data
            .chunks_exact(BLOCK_SIZE)
            .map(checksum::crc32c)
            .collect();
        for (i, (found, crc)) in found.iter().zip(crcs).enumerate() {
            if found != crc {
                Counters::add(&store.counters.checksum_errors, 1);
                let offset = (first + i as u64) * BLOCK_SIZE as u64;
                let lba = from.plus(i as u64);
                tracing::error!(
                    "moving a damaged block: {}",
                    Error::BadBlock { ino, offset, lba }
                );
            }
        }
        let mut at = 0;
        while at < crcs.len() {
            if self.open.as_ref().is_none_or(|chunk| chunk.room() == 0) {
                self.write_open()?;
                self.open = Some(store.open_side_chunk(Class::Cold)?);
            }
            let chunk = self.open.as_mut().ok_or(Error::NoSpace)?;
            let n = (crcs.len() - at).min(chunk.room() as usize);
            let bytes = &data[at * BLOCK_SIZE..(at + n) * BLOCK_SIZE];
            let block = first + at as u64;
            let to = chunk.push_data(ino, block, bytes, &found[at..at + n]);
            self.pending.push(Move {
                ino,
                first: block,
                count: n as u64,
                from: from.plus(at as u64),
                to,
            });
            at += n;
        }
        Ok(())
    }

    fn write_open(&mut self) -> Result<()> {
        if let Some(chunk) = self.open.take() {
            self.store.write_side_chunk(chunk)?;
            self.written.append(&mut self.pending);
        }
        Ok(())
    }

    /// Makes the copies durable and maps them.
    fn finish(mut self) -> Result<()> {
        self.write_open()?;
        if self.written.is_empty() {
            return Ok(());
        }
        self.store.flush_device()?;
        for group in self.written.chunks(MOVES_PER_TRANSACTION) {
            let mut txn = self.store.begin_collecting()?;
            for run in group {
                let moved = txn.remap(run)?;
                Counters::add(&self.store.counters.blocks_moved, moved);
            }
            txn.commit()?;
            if self.store.has_many_nodes() {
                self.store.checkpoint_locked()?;
            }
        }
        Ok(())
    }
}

impl Txn<'_> {
    /// Maps the blocks of a run that are still where they were copied from to the copies.
    fn remap(&mut self, run: &Move) -> Result<u64> {
        let end = run.first + run.count;
        let mut pieces = Vec::new();
        for_each_extent(self, run.ino, run.first, end, &mut |extent| {
            let piece = extent.slice(run.first, end);
            if let Backing::Mapped { lba, crcs } = &piece.backing {
                let offset = piece.start - run.first;
                if *lba == run.from.plus(offset) {
                    let backing = Backing::Mapped {
                        lba: run.to.plus(offset),
                        crcs: crcs.clone(),
                    };
                    pieces.push(Extent { backing, ..piece });
                }
            }
            ControlFlow::Continue(())
        })?;
        let mut moved = 0;
        for piece in pieces {
            moved += piece.len;
            self.unmap_blocks(run.ino, piece.start, piece.len)?;
            self.insert(run.ino, piece)?;
        }
        Ok(moved)
    }
}
