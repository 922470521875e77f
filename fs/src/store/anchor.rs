//! The anchor zones: where the superblock and the newest checkpoint are.
//!
//! Zones 0 and 1 take checkpoint records in turn. Each starts with the superblock, whose
//! generation grows with every switch. A switch resets the other zone, writes superblock and
//! record there and flushes; until then the full zone holds the newest record, afterwards it is
//! only the older copy. So a sound record exists at every moment.

use std::sync::Arc;

use zns_backend::{ZoneState, ZonedDevice};

use crate::error::{Error, Result};
use crate::format::checkpoint::{Checkpoint, RECORD_BLOCKS_MAX};
use crate::format::superblock::Superblock;
use crate::types::{BLOCK_SIZE, Lba, ZoneId};

pub(super) struct Anchors {
    device: Arc<dyn ZonedDevice>,
    superblock: Superblock,
    current: ZoneId,
    pointer: u64,
}

/// What a mounted device says of itself.
pub(super) struct FoundCheckpoint {
    pub(super) superblock: Superblock,
    pub(super) checkpoint: Checkpoint,
    pub(super) anchors: Anchors,
}

impl Anchors {
    /// Makes the anchor zones of a new filesystem, both empty on the device.
    pub(super) fn format(device: Arc<dyn ZonedDevice>, superblock: Superblock) -> Result<Anchors> {
        let zone = ZoneId(0);
        device.write(device.geometry().zone_start(zone), &superblock.to_block())?;
        Ok(Anchors {
            device,
            superblock,
            current: zone,
            pointer: 1,
        })
    }

    /// Finds the newest checkpoint.
    ///
    /// # Errors
    /// `BadImage` when there is no filesystem or no sound checkpoint.
    pub(super) fn find(device: &Arc<dyn ZonedDevice>) -> Result<FoundCheckpoint> {
        let mut newest: Option<FoundCheckpoint> = None;
        let mut problem: Option<Error> = None;
        for zone in [ZoneId(0), ZoneId(1)] {
            match Anchors::find_in(device, zone) {
                Ok(Some(found)) => {
                    let newer = newest
                        .as_ref()
                        .is_none_or(|best| found.checkpoint.number > best.checkpoint.number);
                    if newer {
                        newest = Some(found);
                    }
                }
                Ok(None) => {}
                Err(error) => problem = Some(error),
            }
        }
        newest.ok_or_else(|| {
            problem.unwrap_or_else(|| Error::BadImage("no WarrenFS filesystem on it".into()))
        })
    }

    fn find_in(device: &Arc<dyn ZonedDevice>, zone: ZoneId) -> Result<Option<FoundCheckpoint>> {
        let geometry = *device.geometry();
        let info = device.report(zone, 1)?;
        let pointer = match info.first() {
            Some(info) if info.state != ZoneState::Offline => info.write_pointer,
            _ => return Ok(None),
        };
        if pointer == 0 {
            return Ok(None);
        }
        let start = geometry.zone_start(zone);
        let mut block = vec![0; BLOCK_SIZE];
        device.read(start, &mut block)?;
        if !Superblock::looks_like(&block) && block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let superblock = Superblock::parse(&block, &geometry)?;
        let Some(checkpoint) = newest_record(
            device.as_ref(),
            start,
            pointer,
            &superblock.fsid,
            geometry.zones,
        )?
        else {
            return Err(Error::BadImage(format!("zone {zone}: no sound checkpoint")));
        };
        let anchors = Anchors {
            device: Arc::clone(device),
            superblock,
            current: zone,
            pointer,
        };
        Ok(Some(FoundCheckpoint {
            superblock,
            checkpoint,
            anchors,
        }))
    }

    /// Whether either anchor zone holds the superblock of some version of the filesystem.
    pub(super) fn holds_filesystem(device: &dyn ZonedDevice) -> Result<bool> {
        for info in device.report(ZoneId(0), 2)? {
            if info.write_pointer > 0 && info.state != ZoneState::Offline {
                let mut block = vec![0; device.geometry().block_size as usize];
                device.read(device.geometry().zone_start(info.zone), &mut block)?;
                if Superblock::looks_like(&block) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Appends a record and makes it durable.
    pub(super) fn append(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let record = checkpoint.to_blocks(&self.superblock.fsid);
        let blocks = (record.len() / BLOCK_SIZE) as u64;
        let geometry = *self.device.geometry();
        if blocks + 1 > geometry.zone_capacity {
            return Err(Error::BadImage(format!(
                "a checkpoint of {blocks} blocks does not fit a zone of {}",
                geometry.zone_capacity
            )));
        }
        if self.pointer + blocks <= geometry.zone_capacity {
            let lba = geometry.zone_start(self.current).plus(self.pointer);
            match self.device.write(lba, &record) {
                Ok(()) => {
                    self.pointer += blocks;
                    return Ok(self.device.flush()?);
                }
                Err(error) => {
                    tracing::error!(
                        "anchor zone {}: {error}; going on in the other",
                        self.current
                    );
                }
            }
        }
        self.switch(&record, blocks)
    }

    /// Goes on in the other anchor zone, starting with `record`.
    fn switch(&mut self, record: &[u8], blocks: u64) -> Result<()> {
        let next = ZoneId(1 - self.current.0);
        let start = self.device.geometry().zone_start(next);
        // The full zone gives up its place among the active ones first.
        if let Err(error) = self.device.finish(self.current) {
            tracing::warn!("finishing anchor zone {}: {error}", self.current);
        }
        self.device.reset(next)?;
        let generation = self.superblock.generation.get() + 1;
        let mut superblock = self.superblock;
        superblock.generation = generation.into();
        self.device.write(start, &superblock.to_block())?;
        self.device.write(start.plus(1), record)?;
        self.device.flush()?;
        self.superblock = superblock;
        self.current = next;
        self.pointer = 1 + blocks;
        Ok(())
    }
}

/// The newest sound record below `pointer`, searched backwards.
fn newest_record(
    device: &dyn ZonedDevice,
    start: Lba,
    pointer: u64,
    fsid: &[u8; 16],
    zones: u32,
) -> Result<Option<Checkpoint>> {
    let mut end = pointer;
    let mut block = vec![0; BLOCK_SIZE];
    while end > 1 {
        device.read(start.plus(end - 1), &mut block)?;
        if let Some((number, blocks)) = Checkpoint::parse_trailer(&block)
            && blocks < end
            && blocks <= RECORD_BLOCKS_MAX
        {
            let mut record = vec![0; blocks as usize * BLOCK_SIZE];
            device.read(start.plus(end - blocks), &mut record)?;
            match Checkpoint::parse(&record, fsid, zones) {
                Ok(checkpoint) if checkpoint.number == number => return Ok(Some(checkpoint)),
                Ok(_) => tracing::warn!("checkpoint {number}: its trailer names another"),
                Err(error) => tracing::warn!("checkpoint {number}: {error}"),
            }
        }
        end -= 1;
    }
    Ok(None)
}
