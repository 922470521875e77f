//! Checkpoints: the nodes that are newer than the last one, then a record of where the root is.
//!
//! Writers stop only while the root pointer and the zone table are copied, and while the written
//! nodes are made clean in the head. The record is appended after a flush that covers the nodes
//! and every chunk the checkpoint contains, and is flushed itself.

use super::open_chunk::OpenChunk;
use super::{Counters, Mark, Store};
use crate::catalog::{NodeInfo, Page, Tree, WriteOut};
use crate::error::{Error, Result};
use crate::format::checkpoint::{Checkpoint, ZoneRecord};
use crate::format::chunk::{CHUNK_BLOCKS, Class};
use crate::types::{BLOCK_SIZE, Lba};

/// Times a checkpoint starts over because a node zone failed.
const ATTEMPTS: usize = 4;

/// The state a checkpoint contains.
struct Snapshot {
    tree: Tree,
    version: u64,
    next_sequence: u64,
    reserved: u64,
    zones: Vec<ZoneRecord>,
    log_blocks: u64,
    relocations: u64,
}

impl Store {
    /// Writes a checkpoint.
    ///
    /// # Errors
    /// Device errors.
    pub fn checkpoint(&self) -> Result<()> {
        let _one_at_a_time = self.maintenance.lock();
        self.checkpoint_locked()
    }

    pub(super) fn checkpoint_final(&self) -> Result<()> {
        let _one_at_a_time = self.maintenance.lock();
        self.write_checkpoint(true, None)
    }

    /// The checkpoint that ends a recovery. The log was sound before `log_end`; sequence numbers
    /// from there on may have been skipped.
    pub(super) fn checkpoint_recovered(&self, log_end: u64) -> Result<()> {
        let _one_at_a_time = self.maintenance.lock();
        self.write_checkpoint(false, Some(log_end))
    }

    /// As [`Store::checkpoint`], for a caller that holds the maintenance lock.
    pub(super) fn checkpoint_locked(&self) -> Result<()> {
        self.write_checkpoint(false, None)
    }

    fn write_checkpoint(&self, clean: bool, log_end: Option<u64>) -> Result<()> {
        self.check_writable()?;
        for _ in 0..ATTEMPTS {
            let snapshot = self.latch("checkpoint", self.take_written_snapshot())?;
            let mut nodes = NodeWriter {
                store: self,
                open: None,
                written: Vec::new(),
            };
            let tree = snapshot.tree.clone();
            let written = tree
                .write_out(&mut |info, page| nodes.push(info, page))
                .and_then(|written| nodes.finish().map(|()| written));
            match written {
                Ok(written) => {
                    let reached = log_end.unwrap_or(snapshot.next_sequence);
                    let outcome = self.record(snapshot, &written, &nodes.written, clean, reached);
                    return self.latch("checkpoint", outcome);
                }
                Err(Error::Device(error)) => tracing::error!("writing catalog nodes: {error}"),
                Err(error) => return Err(error),
            }
        }
        self.latch(
            "checkpoint",
            Err(Error::BadImage("no zone takes the catalog nodes".into())),
        )
    }

    /// A snapshot whose chunks are on the device. A chunk that had to go elsewhere on its way was
    /// moved in the head and not in a snapshot that is older, so that is taken again. Every
    /// relocation retires a zone: this ends.
    fn take_written_snapshot(&self) -> Result<Snapshot> {
        loop {
            let snapshot = self.take_snapshot();
            self.write_before(snapshot.next_sequence)?;
            if self.head.read().relocations == snapshot.relocations {
                return Ok(snapshot);
            }
        }
    }

    fn take_snapshot(&self) -> Snapshot {
        let mut head = self.head.write();
        self.seal_open(&mut head);
        Snapshot {
            tree: head.tree.clone(),
            version: head.version,
            next_sequence: head.next_sequence,
            reserved: head.reserved,
            zones: head.zones.records(),
            log_blocks: head.log_blocks,
            relocations: head.relocations,
        }
    }

    /// Makes nodes and record durable, then makes the nodes clean in the head.
    fn record(
        &self,
        snapshot: Snapshot,
        written: &WriteOut,
        node_lbas: &[Lba],
        clean: bool,
        reached: u64,
    ) -> Result<()> {
        let mut zones = snapshot.zones;
        let number = {
            let head = self.head.read();
            // Node zones have moved on while the nodes were written.
            for (id, zone) in head.zones.iter() {
                if matches!(class_of(zone.usage), Some(Class::Node)) {
                    let record = &mut zones[id.0 as usize];
                    record.usage = zone.usage;
                    record.pointer = zone.pointer;
                    record.age = zone.age;
                }
            }
            for lba in node_lbas {
                zones[head.zones.of(*lba).0 as usize].live += 1;
            }
            head.durable.number + 1
        };
        self.flush_device()?;
        self.commits.note_durable(snapshot.next_sequence);
        let root = written.root();
        let checkpoint = Checkpoint {
            number,
            next_sequence: snapshot.next_sequence,
            root_lba: root.lba.0,
            root_crc: root.crc,
            root_height: written.height(),
            next_ino: self.next_ino(),
            reserved: snapshot.reserved,
            clean,
            zones,
        };
        self.anchors.lock().append(&checkpoint, reached)?;
        self.flush_device()?;
        written.publish(&self.cache);
        let mut head = self.head.write();
        let report = head.tree.adopt(written);
        for lba in report.adopted.iter().chain(&report.superseded) {
            head.zones.credit(*lba, 1)?;
        }
        let version = head.version;
        for lba in &report.superseded {
            head.zones.debit(*lba, 1, version)?;
        }
        head.durable = Mark {
            number,
            version: snapshot.version,
        };
        head.log_blocks -= snapshot.log_blocks;
        self.forget_ghosts(&mut head);
        self.publish_pressure(&head);
        Counters::add(&self.counters.checkpoints, 1);
        Counters::add(&self.counters.node_blocks, node_lbas.len() as u64);
        Ok(())
    }
}

/// Blocks of log that recovery has to read at most: 256 MiB.
pub(super) const LOG_BLOCKS_MAX: u64 = 256 * CHUNK_BLOCKS;

pub(super) fn class_of(usage: crate::format::checkpoint::ZoneUse) -> Option<Class> {
    use crate::format::checkpoint::ZoneUse;
    match usage {
        ZoneUse::Open(class) | ZoneUse::Sealed(class) => Some(class),
        ZoneUse::Free | ZoneUse::Anchor | ZoneUse::Retired => None,
    }
}

/// Packs nodes into node chunks and writes them.
struct NodeWriter<'a> {
    store: &'a Store,
    open: Option<OpenChunk>,
    written: Vec<Lba>,
}

impl NodeWriter<'_> {
    fn push(&mut self, info: NodeInfo, page: &Page) -> Result<Lba> {
        if self.open.as_ref().is_none_or(|chunk| chunk.room() == 0) {
            self.finish()?;
            self.open = Some(self.store.open_side_chunk(Class::Node)?);
        }
        let chunk = self.open.as_mut().ok_or(Error::NoSpace)?;
        let lba = chunk.push_node(info.level, info.first_key, page);
        self.written.push(lba);
        Ok(lba)
    }

    fn finish(&mut self) -> Result<()> {
        match self.open.take() {
            Some(chunk) => self.store.write_side_chunk(chunk),
            None => Ok(()),
        }
    }
}

impl Store {
    /// A chunk in the open zone of a class other than hot, or in a new one. The caller holds the
    /// maintenance lock and writes the chunk before it asks for the next.
    pub(super) fn open_side_chunk(&self, class: Class) -> Result<OpenChunk> {
        let mut head = self.head.write();
        let version = head.version;
        let zone = match head.zones.open_zones(class).first() {
            Some(zone) => *zone,
            None => {
                let keep = match class {
                    Class::Node => 0,
                    Class::Hot | Class::Cold => self.checkpoint_zones(&head),
                };
                let free = head.zones.take_free(class, keep, version);
                free.ok_or(Error::NoSpace)?
            }
        };
        let start = head.zones.next_lba(zone);
        let limit = head.zones.remaining(zone).min(CHUNK_BLOCKS);
        let buffer = self.device.buffer(CHUNK_BLOCKS as usize * BLOCK_SIZE);
        Ok(OpenChunk::new(class, zone, start, limit, buffer))
    }

    /// Seals and writes such a chunk. If the write fails the zone is retired.
    pub(super) fn write_side_chunk(&self, chunk: OpenChunk) -> Result<()> {
        let sequence = self.head.read().next_sequence;
        let durable = self.commits.durable();
        let sealed = chunk.seal(&self.superblock.fsid, sequence, durable);
        if let Err(error) = self.device.write(sealed.lba, sealed.bytes()) {
            self.retire_zone(&mut self.head.write(), sealed.zone);
            return Err(error.into());
        }
        let finish = {
            let mut head = self.head.write();
            let version = head.version;
            head.zones
                .advance(sealed.zone, sealed.blocks, sequence, version)
        };
        if finish {
            self.writer.finish_zone(sealed.zone);
        }
        Ok(())
    }
}
