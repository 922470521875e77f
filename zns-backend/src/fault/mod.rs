//! A memory device that fails as planned and remembers everything written to it.
//!
//! # Faults it injects, and nothing else
//!
//! - [`Fault::FailWrite`]: the write answers a media error; nothing of it is stored, the write pointer
//!   stays.
//! - [`Fault::TearWrite`]: the first blocks are stored and the write pointer moves past them; the write
//!   answers a media error. Nothing of a torn durable write is durable.
//! - [`Fault::LoseWrite`]: the write answers success and moves the write pointer; its blocks read as
//!   zeroes.
//! - [`Fault::FailFlush`]: the flush answers a media error; what it would have covered stays unflushed.
//! - [`Fault::FailRead`]: the read answers a media error.
//! - [`Fault::FlipBit`]: one bit of what the read returns is wrong; the medium is not.
//! - [`Fault::Delay`]: the operation starts late.
//! - [`FaultDevice::fail_zone`]: a zone becomes read-only or offline.
//! - Power cuts: see [`WriteLog::device_after`].
//!
//! The same operations in the same order meet the same faults. Operations that the zone state
//! machine refuses do not count.

mod log;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::device::{DeviceQueue, MapSource, ZoneInfo, ZoneState, ZonedDevice};
use crate::error::{Error, Result};
use crate::geometry::{Geometry, Lba, ZoneId};
use crate::mem::MemDevice;
use crate::queue::SyncQueue;
use crate::shared_zones::blocks_in;
pub use log::{CrashPoint, LoggedOp, Survival, WriteLog};

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A write or append fails as a whole.
    FailWrite,
    /// A write or append fails after this many blocks.
    TearWrite {
        /// Blocks that are stored.
        blocks: u64,
    },
    /// A write or append succeeds and stores zeroes.
    LoseWrite,
    /// A flush fails.
    FailFlush,
    /// A read fails.
    FailRead,
    /// A read returns this bit (modulo its length) inverted.
    FlipBit {
        /// Index of the bit in the buffer.
        bit: u64,
    },
    /// A read, write, append or flush starts this much later.
    Delay(Duration),
}

/// Which operations a fault hits, among those of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// The one with this number: writes and appends, reads, and flushes are each counted from 0 on.
    Nth(u64),
    /// Those that start in this zone. Never a flush.
    Zone(ZoneId),
    /// All.
    Always,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Write,
    Read,
    Flush,
}

impl Fault {
    fn applies_to(self, kind: Kind) -> bool {
        match self {
            Fault::FailWrite | Fault::TearWrite { .. } | Fault::LoseWrite => kind == Kind::Write,
            Fault::FailRead | Fault::FlipBit { .. } => kind == Kind::Read,
            Fault::FailFlush => kind == Kind::Flush,
            Fault::Delay(_) => true,
        }
    }
}

/// A memory device with planned faults and a write log. Clones are handles of the same device.
#[derive(Clone)]
pub struct FaultDevice(Arc<Inner>);

struct Inner {
    device: MemDevice,
    plan: Mutex<Vec<(When, Fault)>>,
    /// Operations so far, by kind.
    counts: [AtomicU64; 3],
    durable_writes: AtomicBool,
    logging: AtomicBool,
    log: Mutex<WriteLog>,
}

impl FaultDevice {
    /// Wraps `device`, whose present contents are the base of the log.
    ///
    /// # Errors
    /// Those of reading `device`.
    pub fn new(device: MemDevice) -> Result<FaultDevice> {
        let log = WriteLog::starting_from(&device)?;
        Ok(FaultDevice(Arc::new(Inner {
            device,
            plan: Mutex::default(),
            counts: Default::default(),
            durable_writes: AtomicBool::new(false),
            logging: AtomicBool::new(true),
            log: Mutex::new(log),
        })))
    }

    /// Has the device say that durable writes are operations of its own from now on
    /// ([`ZonedDevice::has_durable_writes`]); until then whoever wants something durable flushes.
    #[must_use]
    pub fn with_durable_writes(self) -> FaultDevice {
        self.0.durable_writes.store(true, Ordering::Relaxed);
        self
    }

    /// Adds a fault to the plan. Of several that hit one operation the one added first counts;
    /// delays add up.
    pub fn inject(&self, when: When, fault: Fault) {
        self.0.plan.lock().push((when, fault));
    }

    /// Forgets the plan. The counts go on.
    pub fn clear_faults(&self) {
        self.0.plan.lock().clear();
    }

    /// Writes and appends, reads, and flushes so far.
    #[must_use]
    pub fn counts(&self) -> (u64, u64, u64) {
        let count = |kind: Kind| self.0.counts[kind as usize].load(Ordering::Relaxed);
        (count(Kind::Write), count(Kind::Read), count(Kind::Flush))
    }

    /// Stops recording the log for good and frees what it holds.
    pub fn stop_log(&self) {
        self.0.logging.store(false, Ordering::Relaxed);
        self.0.log.lock().clear();
    }

    /// The log so far. Cheap: data is shared.
    #[must_use]
    pub fn log(&self) -> WriteLog {
        self.0.log.lock().clone()
    }

    /// Makes a zone [`ZoneState::ReadOnly`] or [`ZoneState::Offline`], as a failing medium does.
    ///
    /// # Errors
    /// As [`MemDevice::fail_zone`].
    pub fn fail_zone(&self, zone: ZoneId, state: ZoneState) -> Result<()> {
        self.0.device.fail_zone(zone, state)?;
        self.record(|| LoggedOp::Fail { zone, state });
        Ok(())
    }

    fn record(&self, op: impl FnOnce() -> LoggedOp) {
        if self.0.logging.load(Ordering::Relaxed) {
            self.0.log.lock().push(op());
        }
    }

    /// Counts an operation and finds its fault; sleeps if it is to be late.
    fn fault_for(&self, kind: Kind, lba: Option<Lba>) -> Option<Fault> {
        let number = self.0.counts[kind as usize].fetch_add(1, Ordering::Relaxed);
        let zone = lba.map(|lba| self.0.device.geometry().zone_of(lba));
        let hits = |when: &When| match *when {
            When::Nth(nth) => nth == number,
            When::Zone(hit) => zone == Some(hit),
            When::Always => true,
        };
        let plan = self.0.plan.lock();
        let hit: Vec<Fault> = plan
            .iter()
            .filter(|(when, fault)| fault.applies_to(kind) && hits(when))
            .map(|&(_, fault)| fault)
            .collect();
        drop(plan);
        let mut first = None;
        for fault in hit {
            match fault {
                Fault::Delay(duration) => std::thread::sleep(duration),
                other => first = first.or(Some(other)),
            }
        }
        first
    }

    fn write_as(&self, lba: Lba, data: &[u8], durable: bool) -> Result<()> {
        let blocks = blocks_in(self.geometry(), data.len())?;
        self.0.device.check_write(lba, blocks)?;
        let store = |data: &[u8]| self.0.device.write(lba, data).map(|()| lba);
        self.write_with_fault(lba, data, durable, store).map(drop)
    }

    /// Carries a write out under its fault. `store` writes what it is given and answers where.
    fn write_with_fault(
        &self,
        lba: Lba,
        data: &[u8],
        durable: bool,
        store: impl FnOnce(&[u8]) -> Result<Lba>,
    ) -> Result<Lba> {
        let fault = self.fault_for(Kind::Write, Some(lba));
        let block = self.geometry().block_bytes();
        let zeroes;
        let (stored, torn) = match fault {
            Some(Fault::FailWrite) => return Err(Error::Media(lba)),
            Some(Fault::TearWrite { blocks }) => {
                let kept = usize::try_from(blocks)
                    .unwrap_or(usize::MAX)
                    .saturating_mul(block);
                (&data[..kept.min(data.len())], true)
            }
            Some(Fault::LoseWrite) => {
                zeroes = vec![0; data.len()];
                (&zeroes[..], false)
            }
            _ => (data, false),
        };
        let mut at = lba;
        if !stored.is_empty() {
            at = store(stored)?;
            self.record(|| LoggedOp::Write {
                lba: at,
                data: stored.into(),
                durable: durable && !torn,
            });
        }
        if torn { Err(Error::Media(at)) } else { Ok(at) }
    }
}

impl ZonedDevice for FaultDevice {
    fn geometry(&self) -> &Geometry {
        self.0.device.geometry()
    }

    fn report(&self, first: ZoneId, count: u32) -> Result<Vec<ZoneInfo>> {
        self.0.device.report(first, count)
    }

    fn read(&self, lba: Lba, buf: &mut [u8]) -> Result<()> {
        self.0.device.read(lba, buf)?;
        match self.fault_for(Kind::Read, Some(lba)) {
            Some(Fault::FailRead) => Err(Error::Media(lba)),
            Some(Fault::FlipBit { bit }) => {
                let bit = bit % (buf.len() as u64 * 8);
                buf[(bit / 8) as usize] ^= 1 << (bit % 8);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn write(&self, lba: Lba, data: &[u8]) -> Result<()> {
        self.write_as(lba, data, false)
    }

    fn write_durable(&self, lba: Lba, data: &[u8]) -> Result<()> {
        if self.has_durable_writes() {
            return self.write_as(lba, data, true);
        }
        self.write(lba, data)?;
        self.flush()
    }

    fn has_durable_writes(&self) -> bool {
        self.0.durable_writes.load(Ordering::Relaxed)
    }

    fn append(&self, zone: ZoneId, data: &[u8]) -> Result<Lba> {
        let blocks = blocks_in(self.geometry(), data.len())?;
        let lba = self.0.device.check_append(zone, blocks)?;
        self.write_with_fault(lba, data, false, |data| self.0.device.append(zone, data))
    }

    fn reset(&self, zone: ZoneId) -> Result<()> {
        self.0.device.reset(zone)?;
        self.record(|| LoggedOp::Reset { zone });
        Ok(())
    }

    fn finish(&self, zone: ZoneId) -> Result<()> {
        self.0.device.finish(zone)?;
        self.record(|| LoggedOp::Finish { zone });
        Ok(())
    }

    fn open(&self, zone: ZoneId) -> Result<()> {
        self.0.device.open(zone)
    }

    fn close(&self, zone: ZoneId) -> Result<()> {
        self.0.device.close(zone)
    }

    fn flush(&self) -> Result<()> {
        // What is logged by now has completed, so this flush covers it.
        let covers = self.0.log.lock().len();
        if self.fault_for(Kind::Flush, None) == Some(Fault::FailFlush) {
            return Err(Error::Media(Lba(0)));
        }
        self.0.device.flush()?;
        self.record(|| LoggedOp::Flush { covers });
        Ok(())
    }

    fn queue(&self, _depth: u32) -> Result<Box<dyn DeviceQueue>> {
        Ok(Box::new(SyncQueue::new(Arc::new(self.clone()))))
    }

    fn in_memory(&self) -> bool {
        self.0.device.in_memory()
    }

    fn map_source(&self, lba: Lba, blocks: u64) -> Result<Option<MapSource<'_>>> {
        self.0.device.map_source(lba, blocks)
    }

    fn describe(&self) -> String {
        format!("fault:{}", self.0.device.describe())
    }
}
