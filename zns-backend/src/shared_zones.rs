//! A zone table that many threads use: changes go through one short lock, reads of the table go
//! through one atomic word per zone.
//!
//! Invariant: a word always equals some state its zone had under the lock, and the sink has seen
//! the same sequence of states in the same order.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::device::{ZoneInfo, ZoneState};
use crate::error::{Error, Result};
use crate::geometry::{Geometry, Lba, ZoneId};
use crate::zone_state::{Action, AlsoClosed, Zone, ZoneTable, check_read};

/// Hears of every change of a zone, under the lock of the table.
pub(crate) trait ZoneSink: Send + Sync {
    fn changed(&self, id: ZoneId, zone: Zone);
}

/// A device whose zone table lives in memory alone.
pub(crate) struct Volatile;

impl ZoneSink for Volatile {
    fn changed(&self, _: ZoneId, _: Zone) {}
}

impl<S: ZoneSink> ZoneSink for Option<S> {
    fn changed(&self, id: ZoneId, zone: Zone) {
        if let Some(sink) = self {
            sink.changed(id, zone);
        }
    }
}

pub(crate) struct SharedZones<S> {
    geometry: Geometry,
    table: Mutex<ZoneTable>,
    words: Vec<AtomicU64>,
    sink: S,
}

const STATES: [ZoneState; 7] = [
    ZoneState::Empty,
    ZoneState::ImplicitlyOpen,
    ZoneState::ExplicitlyOpen,
    ZoneState::Closed,
    ZoneState::Full,
    ZoneState::ReadOnly,
    ZoneState::Offline,
];

/// Bits of a word that hold the write pointer; the state is above them.
const POINTER_BITS: u32 = 56;

fn pack(zone: Zone) -> u64 {
    let state = STATES
        .iter()
        .position(|&state| state == zone.state)
        .unwrap_or(0) as u64;
    state << POINTER_BITS | zone.write_pointer
}

fn unpack(word: u64) -> Zone {
    Zone {
        state: STATES[(word >> POINTER_BITS) as usize],
        write_pointer: word & ((1 << POINTER_BITS) - 1),
    }
}

impl<S: ZoneSink> SharedZones<S> {
    pub(crate) fn new(geometry: Geometry, table: ZoneTable, sink: S) -> SharedZones<S> {
        let ids = (0..geometry.zones).map(ZoneId);
        let words = ids.map(|id| AtomicU64::new(pack(table.zone(id)))).collect();
        SharedZones {
            geometry,
            table: Mutex::new(table),
            words,
            sink,
        }
    }

    pub(crate) fn sink(&self) -> &S {
        &self.sink
    }

    /// The zone as of now, without the lock.
    pub(crate) fn zone(&self, id: ZoneId) -> Zone {
        unpack(self.words[id.0 as usize].load(Ordering::Acquire))
    }

    pub(crate) fn report(&self, first: ZoneId, count: u32) -> Result<Vec<ZoneInfo>> {
        let end = first
            .0
            .checked_add(count)
            .filter(|&end| end <= self.geometry.zones);
        let end = end.ok_or(Error::OutOfRange(self.geometry.zone_start(first)))?;
        let table = self.table.lock();
        Ok((first.0..end)
            .map(|zone| table.info(ZoneId(zone)))
            .collect())
    }

    pub(crate) fn check_read(&self, lba: Lba, blocks: u64) -> Result<()> {
        check_read(&self.geometry, |id| self.zone(id), lba, blocks)
    }

    pub(crate) fn write(&self, lba: Lba, blocks: u64) -> Result<()> {
        let mut table = self.table.lock();
        let also_closed = table.write(lba, blocks)?;
        self.publish(&table, self.geometry.zone_of(lba), also_closed);
        Ok(())
    }

    /// Whether [`SharedZones::write`] would accept.
    pub(crate) fn check_write(&self, lba: Lba, blocks: u64) -> Result<()> {
        self.table.lock().check_write(lba, blocks).map(drop)
    }

    pub(crate) fn append(&self, id: ZoneId, blocks: u64) -> Result<Lba> {
        self.check_append_length(blocks)?;
        let mut table = self.table.lock();
        let (lba, also_closed) = table.append(id, blocks)?;
        self.publish(&table, id, also_closed);
        Ok(lba)
    }

    /// Where [`SharedZones::append`] would put it.
    pub(crate) fn check_append(&self, id: ZoneId, blocks: u64) -> Result<Lba> {
        self.check_append_length(blocks)?;
        self.table
            .lock()
            .check_append(id, blocks)
            .map(|(lba, _)| lba)
    }

    fn check_append_length(&self, blocks: u64) -> Result<()> {
        let max = self.geometry.max_append;
        if max != 0 && blocks > max {
            return Err(Error::BadLength(
                (blocks * u64::from(self.geometry.block_size)) as usize,
            ));
        }
        Ok(())
    }

    pub(crate) fn act(&self, id: ZoneId, action: Action) -> Result<()> {
        let mut table = self.table.lock();
        let also_closed = table.act(id, action)?;
        self.publish(&table, id, also_closed);
        Ok(())
    }

    /// Whether a zone could be reset now.
    pub(crate) fn check_reset(&self, id: ZoneId) -> Result<()> {
        self.table.lock().check_reset(id)
    }

    pub(crate) fn fail(&self, id: ZoneId, state: ZoneState) -> Result<()> {
        let mut table = self.table.lock();
        table.fail(id, state)?;
        self.publish(&table, id, None);
        Ok(())
    }

    fn publish(&self, table: &ZoneTable, id: ZoneId, also_closed: AlsoClosed) {
        for id in [Some(id), also_closed].into_iter().flatten() {
            let zone = table.zone(id);
            self.sink.changed(id, zone);
            self.words[id.0 as usize].store(pack(zone), Ordering::Release);
        }
    }
}

/// The number of whole blocks in a buffer.
///
/// # Errors
/// [`Error::BadLength`] if it is empty or ends within a block.
pub(crate) fn blocks_in(geometry: &Geometry, len: usize) -> Result<u64> {
    if len == 0 || !len.is_multiple_of(geometry.block_bytes()) {
        return Err(Error::BadLength(len));
    }
    Ok((len / geometry.block_bytes()) as u64)
}

/// Calls `each` with the parts of a range that lie in one zone: (first block, range of blocks
/// counted from the start of the whole range).
pub(crate) fn by_zone(
    geometry: &Geometry,
    lba: Lba,
    blocks: u64,
    mut each: impl FnMut(Lba, std::ops::Range<u64>) -> Result<()>,
) -> Result<()> {
    let mut done = 0;
    while done < blocks {
        let at = lba.plus(done);
        let here = (geometry.zone_size - geometry.offset_of(at)).min(blocks - done);
        each(at, done..done + here)?;
        done += here;
    }
    Ok(())
}
