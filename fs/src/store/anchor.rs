//! The anchor zones: where the superblock and the newest checkpoint are.
//!
//! Zones 0 and 1 take checkpoint records in turn. Each starts with the superblock, whose
//! generation grows with every switch. A switch resets the other zone, writes superblock and
//! record there; until the flush that follows the full zone holds the newest durable record, afterwards
//! it has only older ones. So a sound record exists at every moment.
//!
//! Every record is written twice, in one write. If neither copy checks, the record is torn, and was
//! of no consequence, or damaged: then zones may have been reset since the record before it. Its
//! trailer tells how far the log reaches that the older record must lead to; recovery compares.

use std::sync::Arc;

use zns_backend::{ZoneState, ZonedDevice};

use crate::error::{Error, Result};
use crate::format::checkpoint::{Checkpoint, Trailer};
use crate::format::superblock::Superblock;
use crate::types::{BLOCK_SIZE, ZoneId};

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
    /// Every chunk before this one was durable once, says a newer record that cannot be read.
    pub(super) reached: u64,
}

/// What a search of an anchor zone found.
#[derive(Default)]
struct Records {
    newest: Option<Checkpoint>,
    /// Newer records that cannot be read.
    unreadable: Vec<Trailer>,
    /// What is wrong with the newest of them.
    problem: Option<Error>,
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

    /// Finds the newest checkpoint. One superblock is enough to read the records of both zones.
    ///
    /// # Errors
    /// `BadImage` when there is no filesystem or no sound checkpoint.
    pub(super) fn find(device: &Arc<dyn ZonedDevice>) -> Result<FoundCheckpoint> {
        let mut problem = None;
        let mut superblock: Option<Superblock> = None;
        let mut written = Vec::new();
        for zone in [ZoneId(0), ZoneId(1)] {
            match Anchors::superblock_in(&**device, zone) {
                Ok(None) => {}
                Ok(Some((pointer, parsed))) => {
                    written.push((zone, pointer));
                    match parsed {
                        Ok(found) => {
                            let newer =
                                |best: &Superblock| found.generation.get() > best.generation.get();
                            if superblock.as_ref().is_none_or(newer) {
                                superblock = Some(found);
                            }
                        }
                        Err(error) => problem = Some(error),
                    }
                }
                Err(error) => problem = Some(error),
            }
        }
        let Some(superblock) = superblock else {
            return Err(
                problem.unwrap_or_else(|| Error::BadImage("no WarrenFS filesystem on it".into()))
            );
        };
        let mut newest: Option<(Checkpoint, ZoneId, u64)> = None;
        let mut unreadable = Vec::new();
        for (zone, pointer) in written {
            match find_records(&**device, zone, pointer, &superblock.fsid) {
                Ok(records) => {
                    unreadable.extend(records.unreadable);
                    problem = records.problem.or(problem);
                    if let Some(found) = records.newest
                        && newest
                            .as_ref()
                            .is_none_or(|(best, ..)| found.number > best.number)
                    {
                        newest = Some((found, zone, pointer));
                    }
                }
                Err(error) => problem = Some(error),
            }
        }
        let Some((checkpoint, current, pointer)) = newest else {
            return Err(
                problem.unwrap_or_else(|| Error::BadImage("there is no sound checkpoint".into()))
            );
        };
        let newer = unreadable.iter().filter(|t| t.number > checkpoint.number);
        Ok(FoundCheckpoint {
            superblock,
            reached: newer.map(|t| t.reached).max().unwrap_or(0),
            checkpoint,
            anchors: Anchors {
                device: Arc::clone(device),
                superblock,
                current,
                pointer,
            },
        })
    }

    /// The write pointer of an anchor zone and the superblock in it. `None`: there is nothing.
    fn superblock_in(
        device: &dyn ZonedDevice,
        zone: ZoneId,
    ) -> Result<Option<(u64, Result<Superblock>)>> {
        let geometry = device.geometry();
        let pointer = match device.report(zone, 1)?.first() {
            Some(info) if info.state != ZoneState::Offline => info.write_pointer,
            _ => return Ok(None),
        };
        if pointer == 0 {
            return Ok(None);
        }
        let mut block = vec![0; BLOCK_SIZE];
        device.read(geometry.zone_start(zone), &mut block)?;
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        Ok(Some((pointer, Superblock::parse(&block, geometry))))
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

    /// Appends a record, which counts when the device has been flushed. Every chunk of the log before
    /// `reached` is durable.
    pub(super) fn append(&mut self, checkpoint: &Checkpoint, reached: u64) -> Result<()> {
        // Twice: the record before this one may lead to zones that were reset since. A power cut can
        // tear both copies, while nothing has been reset; damage later is not to reach both.
        let record = checkpoint
            .to_blocks(&self.superblock.fsid, reached)
            .repeat(2);
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
                    return Ok(());
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

    /// Goes on in the other anchor zone, starting with `record`. There is no third, so a write that
    /// fails is tried once more.
    fn switch(&mut self, record: &[u8], blocks: u64) -> Result<()> {
        self.begin_other(record, blocks).or_else(|error| {
            tracing::error!("beginning an anchor zone: {error}; trying again");
            self.begin_other(record, blocks)
        })
    }

    fn begin_other(&mut self, record: &[u8], blocks: u64) -> Result<()> {
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
        self.superblock = superblock;
        self.current = next;
        self.pointer = 1 + blocks;
        Ok(())
    }
}

/// The newest sound record below `pointer`, searched backwards, and what stands behind it.
fn find_records(
    device: &dyn ZonedDevice,
    zone: ZoneId,
    pointer: u64,
    fsid: &[u8; 16],
) -> Result<Records> {
    let geometry = device.geometry();
    let start = geometry.zone_start(zone);
    let mut records = Records::default();
    let mut block = vec![0; BLOCK_SIZE];
    let mut end = pointer;
    while end > 1 {
        device.read(start.plus(end - 1), &mut block)?;
        let trailer = Checkpoint::parse_trailer(&block);
        if let Some(Trailer { blocks, .. }) = trailer
            && blocks < end
        {
            let at = end - blocks;
            let mut record = vec![0; blocks as usize * BLOCK_SIZE];
            device.read(start.plus(at), &mut record)?;
            match Checkpoint::parse(&record, fsid, geometry) {
                Ok(checkpoint) => {
                    records.newest = Some(checkpoint);
                    return Ok(records);
                }
                Err(error) => {
                    tracing::warn!("the checkpoint at LBA {}: {error}", start.plus(at));
                    records.problem.get_or_insert(error);
                }
            }
        }
        records.unreadable.extend(trailer);
        end -= 1;
    }
    Ok(records)
}
