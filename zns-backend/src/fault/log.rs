//! The write log of a [`FaultDevice`](super::FaultDevice) and the devices a power cut could leave.
//!
//! The model of a power cut: operations covered by a completed flush happened, and so did durable
//! writes that completed. Of every other write, each block is kept or lost on its own (a lost one
//! reads as zeroes), those below a durable write in its zone too, and the write pointer of its zone is
//! anywhere from the last durable block up to the last one written. A completed reset
//! happened, and whatever was unflushed in its zone is gone; an unflushed finish happened or not. The
//! operation the power cut interrupts is treated as unflushed, a reset among them as happened or
//! not. Open zones are found closed. Where lost writes would leave more zones active than the device
//! has room for, zones that were full stay full.
//!
//! Rebuilding shares all data with the log, and starts from the last flush it has been asked about.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::device::{ZoneState, ZonedDevice};
use crate::error::{Error, Result};
use crate::geometry::{Geometry, Lba, ZoneId};
use crate::mem::MemDevice;
use crate::mem::store::{Store, ZoneBlocks, put_blocks};
use crate::zone_state::{Zone, ZoneTable};

/// A completed operation.
#[derive(Clone, Debug)]
pub enum LoggedOp {
    /// Blocks were stored, by write or append.
    Write {
        /// First block.
        lba: Lba,
        /// What was stored.
        data: Arc<[u8]>,
        /// Once it has completed, it needs no flush.
        durable: bool,
    },
    /// A zone was emptied.
    Reset {
        /// The zone.
        zone: ZoneId,
    },
    /// A zone was made full.
    Finish {
        /// The zone.
        zone: ZoneId,
    },
    /// A flush completed.
    Flush {
        /// The operations before this index were complete when it started.
        covers: usize,
    },
    /// A zone's medium failed.
    Fail {
        /// The zone.
        zone: ZoneId,
        /// Read-only or offline.
        state: ZoneState,
    },
}

/// Where in the log the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrashPoint {
    completed: usize,
    interrupts: bool,
}

impl CrashPoint {
    /// After the first `completed` operations, with none under way.
    #[must_use]
    pub fn after(completed: usize) -> CrashPoint {
        CrashPoint {
            completed,
            interrupts: false,
        }
    }

    /// While operation `index` is under way.
    #[must_use]
    pub fn during(index: usize) -> CrashPoint {
        CrashPoint {
            completed: index,
            interrupts: true,
        }
    }
}

/// What survives of unflushed operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// Everything.
    All,
    /// Nothing.
    None,
    /// A choice per block, write pointer and operation, determined by the seed.
    Seeded(u64),
}

/// Everything that happened to a device, in order of completion.
pub struct WriteLog {
    geometry: Geometry,
    ops: Vec<LoggedOp>,
    base: Arc<Vec<ZoneReplay>>,
    /// The state after some number of operations, all of them durable.
    known: Mutex<(usize, Arc<Vec<ZoneReplay>>)>,
}

impl Clone for WriteLog {
    fn clone(&self) -> WriteLog {
        let known = Mutex::new(self.known.lock().clone());
        WriteLog {
            ops: self.ops.clone(),
            base: Arc::clone(&self.base),
            known,
            ..*self
        }
    }
}

/// A zone on its way through the log.
#[derive(Clone)]
struct ZoneReplay {
    blocks: Arc<ZoneBlocks>,
    /// Where the write pointer is at least, and at most.
    durable: u64,
    issued: u64,
    /// The finish of the zone survived.
    finished: bool,
    failed: Option<ZoneState>,
}

impl WriteLog {
    pub(super) fn starting_from(device: &MemDevice) -> Result<WriteLog> {
        let geometry = *device.geometry();
        let mut base = Vec::with_capacity(geometry.zones as usize);
        for info in device.report(ZoneId(0), geometry.zones)? {
            let failed = Some(info.state)
                .filter(|state| matches!(state, ZoneState::ReadOnly | ZoneState::Offline));
            let mut blocks = ZoneBlocks::new();
            if info.write_pointer > 0 && failed != Some(ZoneState::Offline) {
                let mut data = vec![0; info.write_pointer as usize * geometry.block_bytes()];
                device.read(geometry.zone_start(info.zone), &mut data)?;
                put_blocks(&mut blocks, 0, &data.into(), geometry.block_bytes());
            }
            base.push(ZoneReplay {
                blocks: Arc::new(blocks),
                durable: info.write_pointer,
                issued: info.write_pointer,
                finished: info.state == ZoneState::Full,
                failed,
            });
        }
        let base = Arc::new(base);
        let known = Mutex::new((0, Arc::clone(&base)));
        Ok(WriteLog {
            geometry,
            ops: Vec::new(),
            base,
            known,
        })
    }

    pub(super) fn push(&mut self, op: LoggedOp) {
        self.ops.push(op);
    }

    pub(super) fn clear(&mut self) {
        self.ops = Vec::new();
        *self.known.lock() = (0, Arc::clone(&self.base));
    }

    /// Number of operations.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether nothing happened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// The operations.
    #[must_use]
    pub fn ops(&self) -> &[LoggedOp] {
        &self.ops
    }

    /// The device as a power cut at `cut` leaves it; see the module for the model.
    ///
    /// # Errors
    /// [`Error::BadImage`] if the log has no such point.
    pub fn device_after(&self, cut: CrashPoint, survival: Survival) -> Result<MemDevice> {
        let CrashPoint {
            completed,
            interrupts,
        } = cut;
        if completed + usize::from(interrupts) > self.ops.len() {
            let len = self.ops.len();
            return Err(Error::BadImage(format!(
                "a log of {len} operations has no {cut:?}"
            )));
        }
        let covered = self.ops[..completed].iter().filter_map(|op| match op {
            LoggedOp::Flush { covers } => Some(*covers),
            _ => None,
        });
        let durable = covered.max().unwrap_or(0);
        let mut zones = Vec::clone(&self.durable_state(durable));
        let mut choice = Choice::new(survival);
        for op in &self.ops[durable..completed] {
            let standing = match op {
                LoggedOp::Write { durable: true, .. } => Standing::Durable,
                _ => Standing::Unflushed,
            };
            self.apply(&mut zones, op, &mut choice, standing);
        }
        if interrupts {
            self.apply(
                &mut zones,
                &self.ops[completed],
                &mut choice,
                Standing::Interrupted,
            );
        }
        self.power_up(zones, &mut choice)
    }

    /// The state after the first `upto` operations, all of them flushed.
    fn durable_state(&self, upto: usize) -> Arc<Vec<ZoneReplay>> {
        let mut known = self.known.lock();
        if known.0 > upto {
            *known = (0, Arc::clone(&self.base));
        }
        if known.0 < upto {
            let (from, state) = &mut *known;
            let zones = Arc::make_mut(state);
            let mut all = Choice::new(Survival::All);
            for op in &self.ops[*from..upto] {
                self.apply(zones, op, &mut all, Standing::Durable);
            }
            *from = upto;
        }
        Arc::clone(&known.1)
    }

    fn apply(
        &self,
        zones: &mut [ZoneReplay],
        op: &LoggedOp,
        choice: &mut Choice,
        standing: Standing,
    ) {
        match op {
            LoggedOp::Write { lba, data, .. } => {
                let zone = &mut zones[self.geometry.zone_of(*lba).0 as usize];
                let first = self.geometry.offset_of(*lba);
                self.apply_write(zone, first, data, choice, standing);
            }
            LoggedOp::Reset { zone } => {
                let zone = &mut zones[zone.0 as usize];
                if standing != Standing::Interrupted || choice.keep() {
                    *zone = ZoneReplay {
                        blocks: Arc::default(),
                        durable: 0,
                        issued: 0,
                        finished: false,
                        failed: zone.failed,
                    };
                }
            }
            LoggedOp::Finish { zone } => {
                let zone = &mut zones[zone.0 as usize];
                zone.issued = self.geometry.zone_capacity;
                if standing == Standing::Durable || choice.keep() {
                    zone.finished = true;
                }
                if standing == Standing::Durable {
                    zone.durable = zone.issued;
                }
            }
            LoggedOp::Fail { zone, state } => zones[zone.0 as usize].failed = Some(*state),
            LoggedOp::Flush { .. } => {}
        }
    }

    fn apply_write(
        &self,
        zone: &mut ZoneReplay,
        first: u64,
        data: &Arc<[u8]>,
        choice: &mut Choice,
        standing: Standing,
    ) {
        let block = self.geometry.block_bytes();
        let end = first + (data.len() / block) as u64;
        let blocks = Arc::make_mut(&mut zone.blocks);
        put_blocks(blocks, first as usize, data, block);
        zone.issued = zone.issued.max(end);
        if standing == Standing::Durable {
            zone.durable = zone.durable.max(end);
            return;
        }
        for slot in &mut blocks[first as usize..end as usize] {
            if !choice.keep() {
                *slot = None;
            }
        }
    }

    /// Settles write pointers and states.
    fn power_up(&self, zones: Vec<ZoneReplay>, choice: &mut Choice) -> Result<MemDevice> {
        let capacity = self.geometry.zone_capacity;
        let mut found = Vec::with_capacity(zones.len());
        for zone in &zones {
            let pointer = if zone.finished {
                capacity
            } else {
                choice.between(zone.durable, zone.issued)
            };
            let state = match pointer {
                _ if zone.failed.is_some() => zone.failed.unwrap_or(ZoneState::Offline),
                0 => ZoneState::Empty,
                _ if pointer == capacity => ZoneState::Full,
                _ => ZoneState::Closed,
            };
            found.push(Zone {
                state,
                write_pointer: pointer,
            });
        }
        let active = found
            .iter()
            .filter(|zone| zone.state == ZoneState::Closed)
            .count();
        let excess = match self.geometry.max_active as usize {
            0 => 0,
            limit => active.saturating_sub(limit),
        };
        let were_full = found
            .iter_mut()
            .zip(&zones)
            .filter(|(zone, replay)| zone.state == ZoneState::Closed && replay.issued == capacity);
        for (zone, _) in were_full.take(excess) {
            *zone = Zone {
                state: ZoneState::Full,
                write_pointer: capacity,
            };
        }
        let kept = zones.into_iter().zip(&found).map(|(mut zone, found)| {
            if zone.blocks.len() as u64 > found.write_pointer {
                Arc::make_mut(&mut zone.blocks).truncate(found.write_pointer as usize);
            }
            zone.blocks
        });
        let store = Store::shared(kept);
        let table = ZoneTable::restore(self.geometry, found).map_err(Error::BadImage)?;
        Ok(MemDevice::from_parts(self.geometry, table, store))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Durable,
    Unflushed,
    Interrupted,
}

/// The choices a power cut makes: a splitmix64 sequence, or always the same.
struct Choice {
    survival: Survival,
    state: u64,
}

impl Choice {
    fn new(survival: Survival) -> Choice {
        let state = match survival {
            Survival::Seeded(seed) => seed,
            Survival::All | Survival::None => 0,
        };
        Choice { survival, state }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn keep(&mut self) -> bool {
        match self.survival {
            Survival::All => true,
            Survival::None => false,
            Survival::Seeded(_) => self.next().is_multiple_of(2),
        }
    }

    /// A place from `low` to `high`; the ends are as likely as all in between together.
    fn between(&mut self, low: u64, high: u64) -> u64 {
        match self.survival {
            Survival::All => high,
            Survival::None => low,
            Survival::Seeded(_) if low == high => low,
            Survival::Seeded(_) => match self.next() % 3 {
                0 => low,
                1 => high,
                _ => low + self.next() % (high - low + 1),
            },
        }
    }
}
