//! A zoned device in memory, gone when it is dropped.
//!
//! The zones of an ordinary one lie in one sparse memfd, one after the other and `zone_size` apart,
//! so that readers can map them ([`ZonedDevice::map_source`]); a reset punches a hole. A device
//! rebuilt from a write log ([`crate::WriteLog::device_after`]) holds its blocks as references into
//! the log instead, so that building one costs little; it cannot be mapped.
//!
//! Invariant: every byte at or above a write pointer is zero. Nothing is ever volatile here beyond
//! the whole device, so `flush` has nothing to do; [`crate::FaultDevice`] adds power cuts.

pub(crate) mod store;

use std::os::fd::AsFd;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::device::{DeviceQueue, MapSource, ZoneInfo, ZoneState, ZonedDevice};
use crate::error::{Error, Result};
use crate::geometry::{Geometry, Lba, ZoneId};
use crate::queue::SyncQueue;
use crate::shared_zones::{SharedZones, Volatile, blocks_in};
use crate::zone_state::{Action, ZoneTable};
use store::Store;

/// A zoned device in memory. Clones are handles of the same device.
#[derive(Clone)]
pub struct MemDevice(Arc<Inner>);

struct Inner {
    geometry: Geometry,
    zones: SharedZones<Volatile>,
    store: Store,
    /// Per zone: held while a reset clears it and while a write takes its place, so that a write
    /// accepted after a reset is never cleared by it.
    order: Vec<Mutex<()>>,
}

impl Inner {
    fn in_order(&self, zone: ZoneId) -> Result<MutexGuard<'_, ()>> {
        let order = self.order.get(zone.0 as usize);
        Ok(order
            .ok_or(Error::OutOfRange(self.geometry.zone_start(zone)))?
            .lock())
    }
}

impl MemDevice {
    /// An empty device.
    ///
    /// # Errors
    /// [`crate::Error::BadGeometry`]; [`crate::Error::Io`] if the host gives no memfd of that size.
    pub fn new(geometry: Geometry) -> Result<MemDevice> {
        geometry.validate()?;
        let store = Store::memfd(&geometry)?;
        Ok(MemDevice::from_parts(
            geometry,
            ZoneTable::new(geometry),
            store,
        ))
    }

    pub(crate) fn from_parts(geometry: Geometry, table: ZoneTable, store: Store) -> MemDevice {
        let zones = SharedZones::new(geometry, table, Volatile);
        let order = (0..geometry.zones).map(|_| Mutex::new(())).collect();
        MemDevice(Arc::new(Inner {
            geometry,
            zones,
            store,
            order,
        }))
    }

    /// Whether a write would be accepted now.
    pub(crate) fn check_write(&self, lba: Lba, blocks: u64) -> Result<()> {
        self.0.zones.check_write(lba, blocks)
    }

    /// Where an append would go now.
    pub(crate) fn check_append(&self, zone: ZoneId, blocks: u64) -> Result<Lba> {
        self.0.zones.check_append(zone, blocks)
    }

    /// Makes a zone [`ZoneState::ReadOnly`] or [`ZoneState::Offline`], as a failing medium does.
    ///
    /// # Errors
    /// [`crate::Error::InvalidTransition`] for any other state, or from offline back to read-only.
    pub fn fail_zone(&self, zone: ZoneId, state: ZoneState) -> Result<()> {
        self.0.zones.fail(zone, state)
    }
}

impl ZonedDevice for MemDevice {
    fn geometry(&self) -> &Geometry {
        &self.0.geometry
    }

    fn report(&self, first: ZoneId, count: u32) -> Result<Vec<ZoneInfo>> {
        self.0.zones.report(first, count)
    }

    fn read(&self, lba: Lba, buf: &mut [u8]) -> Result<()> {
        let blocks = blocks_in(&self.0.geometry, buf.len())?;
        self.0.zones.check_read(lba, blocks)?;
        self.0.store.read(&self.0.geometry, lba, buf)
    }

    fn write(&self, lba: Lba, data: &[u8]) -> Result<()> {
        let blocks = blocks_in(&self.0.geometry, data.len())?;
        let zone = self.0.geometry.zone_of(lba);
        {
            let _order = self.0.in_order(zone)?;
            self.0.zones.write(lba, blocks)?;
        }
        self.0.store.write(&self.0.geometry, lba, data)
    }

    fn write_durable(&self, lba: Lba, data: &[u8]) -> Result<()> {
        self.write(lba, data)
    }

    fn has_durable_writes(&self) -> bool {
        true
    }

    fn append(&self, zone: ZoneId, data: &[u8]) -> Result<Lba> {
        let blocks = blocks_in(&self.0.geometry, data.len())?;
        let lba = {
            let _order = self.0.in_order(zone)?;
            self.0.zones.append(zone, blocks)?
        };
        self.0.store.write(&self.0.geometry, lba, data)?;
        Ok(lba)
    }

    fn reset(&self, zone: ZoneId) -> Result<()> {
        let _order = self.0.in_order(zone)?;
        self.0.zones.check_reset(zone)?;
        self.0.store.clear(&self.0.geometry, zone)?;
        self.0.zones.act(zone, Action::Reset)
    }

    fn finish(&self, zone: ZoneId) -> Result<()> {
        self.0.zones.act(zone, Action::Finish)
    }

    fn open(&self, zone: ZoneId) -> Result<()> {
        self.0.zones.act(zone, Action::Open)
    }

    fn close(&self, zone: ZoneId) -> Result<()> {
        self.0.zones.act(zone, Action::Close)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn queue(&self, _depth: u32) -> Result<Box<dyn DeviceQueue>> {
        Ok(Box::new(SyncQueue::new(Arc::new(self.clone()))))
    }

    fn in_memory(&self) -> bool {
        self.0.store.fd().is_some()
    }

    fn map_source(&self, lba: Lba, blocks: u64) -> Result<Option<MapSource<'_>>> {
        self.0.zones.check_read(lba, blocks)?;
        let offset = lba.0 * u64::from(self.0.geometry.block_size);
        Ok(self.0.store.fd().map(|file| MapSource {
            fd: file.as_fd(),
            offset,
        }))
    }

    fn describe(&self) -> String {
        let bytes = self.0.geometry.capacity_bytes();
        match bytes {
            _ if bytes.is_multiple_of(1 << 30) => format!("mem:{}G", bytes >> 30),
            _ if bytes.is_multiple_of(1 << 20) => format!("mem:{}M", bytes >> 20),
            _ if bytes.is_multiple_of(1 << 10) => format!("mem:{}K", bytes >> 10),
            _ => format!("mem:{bytes}"),
        }
    }
}
