//! Checking the store against itself, and reading everything that is live.

use std::ops::ControlFlow;

use super::extent::{Backing, Extent, for_each_extent};
use super::scan::{FoundChunk, read_chunk};
use super::zones::{Zone, ZoneTable};
use super::{Records, Store, View};
use crate::catalog::{CheckEvent, Key, Kind};
use crate::error::Result;
use crate::format::checkpoint::ZoneUse;
use crate::format::chunk::Payload;
use crate::report::{FsckReport, Progress, ScrubReport};
use crate::types::{BLOCK_SIZE, Ino, Lba, ZoneId};

/// Blocks read at a time by a scrub.
const SCRUB_BLOCKS: u64 = 256;
/// Extents collected under one view by a scrub, so that no view lasts long.
const SCRUB_EXTENTS: usize = 64;

/// One bit per block: which ones the catalog refers to.
struct LiveMap {
    zones: Vec<Vec<u64>>,
    counts: Vec<u64>,
}

impl LiveMap {
    fn new(zones: usize) -> LiveMap {
        LiveMap {
            zones: vec![Vec::new(); zones],
            counts: vec![0; zones],
        }
    }

    /// Marks a block; false if it was marked before.
    fn mark(&mut self, zone: ZoneId, offset: u64) -> bool {
        let words = &mut self.zones[zone.0 as usize];
        let at = (offset / 64) as usize;
        if words.len() <= at {
            words.resize(at + 1, 0);
        }
        let fresh = words[at] & 1 << (offset % 64) == 0;
        words[at] |= 1 << (offset % 64);
        if fresh {
            self.counts[zone.0 as usize] += 1;
        }
        fresh
    }
}

/// Compares what the catalog refers to with what the zone table counts.
struct Checker<'a> {
    store: &'a Store,
    zones: ZoneTable,
    live: LiveMap,
    reserved: u64,
    /// End of the last extent, to see overlaps.
    last_extent: Option<(Ino, u64)>,
    report: FsckReport,
}

impl Store {
    /// Checks the tree (order, levels, checksums), extents (no overlap, no block used twice),
    /// live counts, and the payload tables of all chunks against the catalog. Every record is shown
    /// to `visit`. Nothing is changed.
    ///
    /// # Errors
    /// Only if the device cannot be asked at all; what is wrong is in the report.
    pub fn check(
        &self,
        visit: &mut dyn FnMut(Key, &[u8]),
        progress: Progress<'_>,
    ) -> Result<FsckReport> {
        let (view, zones, reserved) = {
            let head = self.head.read();
            (self.view_of(&head), head.zones.clone(), head.reserved)
        };
        let count = self.device.geometry().zones as usize;
        let mut checker = Checker {
            store: self,
            zones,
            live: LiveMap::new(count),
            reserved: 0,
            last_extent: None,
            report: FsckReport::default(),
        };
        checker.report.errors.extend(self.damage.clone());
        let tree = view.tree().check(&self.cache, &mut |event| match event {
            CheckEvent::Node {
                reference: Some(reference),
                ..
            } => {
                checker.refer(reference.lba, 1, "a catalog node");
            }
            CheckEvent::Node {
                reference: None, ..
            } => {}
            CheckEvent::Record { key, value } => {
                checker.record(&key, value);
                visit(key, value);
            }
        });
        checker.report.errors.extend(tree.problems);
        checker.report.checked.insert("nodes".into(), tree.nodes);
        checker
            .report
            .checked
            .insert("records".into(), tree.records);
        if checker.reserved != reserved {
            let found = checker.reserved;
            checker.fail(format!(
                "{reserved} blocks are counted as reserved, {found} are"
            ));
        }
        let table: Vec<(ZoneId, Zone)> = checker.zones.iter().map(|(id, z)| (id, *z)).collect();
        for (done, (id, zone)) in table.into_iter().enumerate() {
            progress(done as u64, count as u64);
            checker.zone(&view, id, &zone)?;
        }
        progress(count as u64, count as u64);
        Ok(checker.report)
    }

    /// Reads every catalog node and every live block of every file, with the filesystem in use.
    #[must_use]
    pub fn scrub(&self, progress: Progress<'_>) -> ScrubReport {
        let mut report = ScrubReport::default();
        let total = self.space().used;
        let tree = self.view().tree().check(&self.cache, &mut |_| {});
        report.blocks += tree.nodes;
        report.errors.extend(tree.problems);
        let mut next = Some(Key::MIN);
        while let Some(from) = next {
            match self.scrub_from(&from, &mut report) {
                Ok(then) => next = then,
                Err(error) => {
                    report
                        .errors
                        .push(format!("catalog behind {from}: {error}"));
                    next = None;
                }
            }
            progress(report.blocks.min(total), total);
        }
        report
    }

    /// Reads the blocks of some extents from `from` on; returns where to go on.
    fn scrub_from(&self, from: &Key, report: &mut ScrubReport) -> Result<Option<Key>> {
        let view = self.view();
        let mut extents = Vec::new();
        let mut next = None;
        view.scan(from, &Key::MAX, &mut |key, value| {
            if extents.len() == SCRUB_EXTENTS {
                next = Some(key);
                return ControlFlow::Break(());
            }
            if key.kind == Kind::Extent {
                match Extent::decode(&key, value) {
                    Ok(extent) => extents.push((key.ino, extent)),
                    Err(error) => report.errors.push(error.to_string()),
                }
            }
            ControlFlow::Continue(())
        })?;
        for (ino, extent) in extents {
            if !matches!(extent.backing, Backing::Mapped { .. }) {
                continue;
            }
            let mut block = extent.start;
            while block < extent.end() {
                let count = SCRUB_BLOCKS.min(extent.end() - block);
                let mut buffer = self.device.buffer(count as usize * BLOCK_SIZE);
                let bytes = &mut buffer[..count as usize * BLOCK_SIZE];
                if let Err(error) = view.read_blocks(ino, block, bytes) {
                    report
                        .errors
                        .push(format!("inode {ino} block {block}: {error}"));
                }
                report.blocks += count;
                block += count;
            }
        }
        Ok(next)
    }
}

impl Checker<'_> {
    fn fail(&mut self, problem: String) {
        self.report.errors.push(problem);
    }

    fn count(&mut self, kind: &str, n: u64) {
        *self.report.checked.entry(kind.into()).or_default() += n;
    }

    fn record(&mut self, key: &Key, value: &[u8]) {
        if key.kind != Kind::Extent {
            return;
        }
        self.count("extents", 1);
        let extent = match Extent::decode(key, value) {
            Ok(extent) => extent,
            Err(error) => return self.fail(error.to_string()),
        };
        if let Some((ino, end)) = self.last_extent
            && ino == key.ino
            && extent.start < end
        {
            self.fail(format!(
                "inode {ino}: extents overlap at block {}",
                extent.start
            ));
        }
        self.last_extent = Some((key.ino, extent.end()));
        match extent.backing {
            Backing::Mapped { lba, .. } => {
                self.refer(
                    lba,
                    extent.len,
                    &format!("inode {} block {}", key.ino, extent.start),
                );
            }
            Backing::Reserved => self.reserved += extent.len,
        }
    }

    /// Notes that `what` refers to `blocks` blocks at `lba`.
    fn refer(&mut self, lba: Lba, blocks: u64, what: &str) {
        self.count("blocks", blocks);
        let geometry = *self.store.device.geometry();
        let zone = geometry.zone_of(lba);
        let offset = geometry.offset_of(lba);
        let known = zone.0 < geometry.zones && {
            let zone = self.zones.get(zone);
            !matches!(zone.usage, ZoneUse::Free | ZoneUse::Anchor)
                && offset
                    .checked_add(blocks)
                    .is_some_and(|end| end <= zone.pointer)
        };
        if !known {
            return self.fail(format!("{what}: LBA {lba} lies outside the written log"));
        }
        for i in 0..blocks {
            if !self.live.mark(zone, offset + i) {
                self.fail(format!("{what}: LBA {} is in use twice", lba.plus(i)));
            }
        }
    }

    /// Compares the live count of a zone, and the owners its chunks name, with the catalog.
    fn zone(&mut self, view: &View<'_>, id: ZoneId, zone: &Zone) -> Result<()> {
        let live = self.live.counts[id.0 as usize];
        if live != zone.live {
            self.fail(format!(
                "zone {id}: {} blocks are counted as live, {live} are",
                zone.live
            ));
        }
        if live == 0 {
            return Ok(());
        }
        let start = self.store.device.geometry().zone_start(id);
        let written = self
            .store
            .device
            .report(id, 1)?
            .first()
            .map_or(0, |info| info.write_pointer);
        let end = zone.pointer.min(written);
        let (mut at, mut owned) = (0, 0);
        while at < end && owned < live {
            let fsid = &self.store.superblock.fsid;
            let chunk = match read_chunk(&*self.store.device, fsid, start.plus(at), end - at) {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(error) => {
                    self.fail(format!("zone {id} block {at}: {error}"));
                    break;
                }
            };
            self.count("chunks", 1);
            at += chunk.info.blocks;
            owned += self.chunk(view, &chunk)?;
        }
        if owned != live {
            self.fail(format!(
                "zone {id}: the chunks below block {at} own {owned} of {live} live blocks"
            ));
        }
        Ok(())
    }

    /// How many payload blocks of a chunk the catalog refers to as the payload table says.
    fn chunk(&mut self, view: &View<'_>, chunk: &FoundChunk) -> Result<u64> {
        let mut lba = chunk.payload_lba();
        let mut crcs = chunk.body.crcs.as_slice();
        let mut owned = 0;
        for run in &chunk.body.payload {
            let (of_run, rest) = crcs.split_at(run.blocks() as usize);
            crcs = rest;
            match *run {
                Payload::Data { ino, first, count } => {
                    let end = first.saturating_add(u64::from(count));
                    let outcome = for_each_extent(view, ino, first, end, &mut |extent| {
                        let piece = extent.slice(first, end);
                        let offset = piece.start - first;
                        if let Backing::Mapped { lba: mapped, crcs } = piece.backing
                            && mapped == lba.plus(offset)
                        {
                            owned += piece.len;
                            let table = &of_run[offset as usize..(offset + piece.len) as usize];
                            if crcs != table {
                                self.report.errors.push(format!(
                                    "inode {ino} block {}: the catalog's checksums are not those of the chunk at LBA {}",
                                    piece.start, chunk.info.lba
                                ));
                            }
                        }
                        ControlFlow::Continue(())
                    });
                    if let Err(error) = outcome {
                        self.fail(format!("inode {ino}: {error}"));
                    }
                }
                Payload::Node { level, first_key } => {
                    let key = first_key.key()?;
                    if view
                        .tree()
                        .references(&self.store.cache, level, &key, lba)?
                    {
                        owned += 1;
                    }
                }
            }
            lba = lba.plus(run.blocks());
        }
        Ok(owned)
    }
}
