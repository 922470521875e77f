//! The zone table of an image, mapped shared: two atomic words per zone.
//!
//! The exact word follows every change at once; a store into the mapping is in the host's page
//! cache, so it survives the death of this process, and as one 64-bit store it is never torn.
//! The bound word is an upper bound of the write pointer that reaches the disk before any data
//! beyond the last one does; it is what counts after the host itself died.
//!
//! Invariants, per zone: once a flush returned, everything flushed lies below the bound word that
//! is on disk; `bound >= exact write pointer` holds in memory right after `raise_bounds`.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::format::{TABLE_OFFSET, Word, ZONE_ENTRY_BYTES, decode_zone, encode_zone};
use crate::device::ZoneState;
use crate::error::{Error, Result};
use crate::geometry::{Geometry, ZoneId};
use crate::shared_zones::ZoneSink;
use crate::zone_state::Zone;

/// How far a bound is raised beyond what needs it, in bytes.
pub(crate) const BOUND_STEP_BYTES: u64 = 1 << 20;

pub(crate) struct MappedTable {
    geometry: Geometry,
    /// Start of the mapping, which begins with the header block.
    base: NonNull<u8>,
    len: usize,
    bounds: Mutex<Bounds>,
    /// Number of times a bound word changed, and how many of those changes are durable.
    changed: AtomicU64,
    durable: AtomicU64,
}

struct Bounds {
    /// Bound of each zone, as in its bound word.
    zones: Vec<Zone>,
    /// Zones whose bound no longer covers them, in no order, each once.
    lagging: Vec<ZoneId>,
    /// Whether a zone is in `lagging`.
    lags: Vec<bool>,
}

// SAFETY: the mapping is only touched through atomics and lives as long as the value.
unsafe impl Send for MappedTable {}
// SAFETY: as above.
unsafe impl Sync for MappedTable {}

impl MappedTable {
    /// Maps the table of `file` and sets every zone's words to what `zones` says.
    pub(crate) fn map(file: &File, geometry: Geometry, zones: &[Zone]) -> Result<MappedTable> {
        let len = (TABLE_OFFSET + u64::from(geometry.zones) * ZONE_ENTRY_BYTES) as usize;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh shared mapping of an open file; no existing memory is replaced.
        let base = unsafe {
            let fd = file.as_raw_fd();
            libc::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        let base = NonNull::new(base.cast::<u8>()).filter(|_| base != libc::MAP_FAILED);
        let base = base.ok_or_else(|| Error::last_os("mapping the zone table"))?;
        let bounds = Bounds {
            zones: zones.to_vec(),
            lagging: Vec::new(),
            lags: vec![false; zones.len()],
        };
        let table = MappedTable {
            geometry,
            base,
            len,
            bounds: Mutex::new(bounds),
            changed: AtomicU64::new(0),
            durable: AtomicU64::new(0),
        };
        for (id, &zone) in zones.iter().enumerate() {
            let id = ZoneId(id as u32);
            table.store(Word::Exact, id, zone);
            table.store(Word::Bound, id, zone);
        }
        Ok(table)
    }

    fn word(&self, word: Word, id: ZoneId) -> &AtomicU64 {
        let offset = word_offset(word, id) as usize;
        assert!(offset + 8 <= self.len, "the zone is in the table");
        // SAFETY: the offset is within the mapping (asserted), 8-aligned as mapping and offsets
        // are, and the mapping is only accessed atomically while `self` lives.
        unsafe { self.base.add(offset).cast::<AtomicU64>().as_ref() }
    }

    fn store(&self, word: Word, id: ZoneId, zone: Zone) {
        let bits = encode_zone(word, id, zone);
        self.word(word, id).store(bits.to_le(), Ordering::Release);
    }

    /// Raises the bound of every zone that outgrew it. Answers whether the table has to become
    /// durable with the flush that follows, and if so, what to tell [`MappedTable::synced`] then.
    pub(crate) fn raise_bounds(&self) -> Option<u64> {
        let mut bounds = self.bounds.lock();
        let lagging = std::mem::take(&mut bounds.lagging);
        for id in lagging {
            bounds.lags[id.0 as usize] = false;
            let bits = u64::from_le(self.word(Word::Exact, id).load(Ordering::Acquire));
            let exact = decode_zone(Word::Exact, id, bits).unwrap_or(Zone::EMPTY);
            let raised = self.bound_for(exact);
            if bounds.zones[id.0 as usize] != raised {
                bounds.zones[id.0 as usize] = raised;
                self.store(Word::Bound, id, raised);
                self.changed.fetch_add(1, Ordering::Release);
            }
        }
        let changed = self.changed.load(Ordering::Acquire);
        (changed > self.durable.load(Ordering::Acquire)).then_some(changed)
    }

    /// Every change of a bound up to `changed` is on disk.
    pub(crate) fn synced(&self, changed: u64) {
        self.durable.fetch_max(changed, Ordering::AcqRel);
    }

    fn bound_for(&self, exact: Zone) -> Zone {
        let capacity = self.geometry.zone_capacity;
        let step = (BOUND_STEP_BYTES / u64::from(self.geometry.block_size)).max(1);
        match exact.state {
            ZoneState::Empty | ZoneState::Full | ZoneState::ReadOnly | ZoneState::Offline => exact,
            _ if exact.write_pointer == 0 => Zone::EMPTY,
            _ => {
                let bound = (exact.write_pointer + 1).next_multiple_of(step);
                // One short of the capacity: a bound is no reason to call a zone full.
                let bound = bound.min(capacity - 1).max(exact.write_pointer);
                Zone {
                    state: ZoneState::Closed,
                    write_pointer: bound,
                }
            }
        }
    }
}

impl ZoneSink for MappedTable {
    fn changed(&self, id: ZoneId, zone: Zone) {
        self.store(Word::Exact, id, zone);
        let mut bounds = self.bounds.lock();
        let bound = bounds.zones[id.0 as usize];
        if zone.state == ZoneState::Empty {
            // Nothing waits for this to be durable: an older bound shows zeroes or new data.
            bounds.zones[id.0 as usize] = zone;
            self.store(Word::Bound, id, zone);
            return;
        }
        let outgrown = zone.write_pointer > bound.write_pointer
            || (zone.state != bound.state && is_final(zone.state));
        if outgrown && !std::mem::replace(&mut bounds.lags[id.0 as usize], true) {
            bounds.lagging.push(id);
        }
    }
}

fn is_final(state: ZoneState) -> bool {
    matches!(
        state,
        ZoneState::Full | ZoneState::ReadOnly | ZoneState::Offline
    )
}

impl Drop for MappedTable {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length, and nobody can hold a reference any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Byte offset of a word in the image.
fn word_offset(word: Word, id: ZoneId) -> u64 {
    TABLE_OFFSET + u64::from(id.0) * ZONE_ENTRY_BYTES + 8 * word as u64
}

/// The zones a table (without the header) describes by one of its words.
///
/// # Errors
/// Which zone is damaged.
pub(crate) fn decode_table(
    geometry: &Geometry,
    table: &[u8],
    word: Word,
) -> std::result::Result<Vec<Zone>, String> {
    let entries = table
        .chunks_exact(ZONE_ENTRY_BYTES as usize)
        .take(geometry.zones as usize);
    entries
        .zip(0..)
        .map(|(entry, id)| {
            let decode = |word: Word| {
                let bytes = entry[8 * word as usize..].first_chunk::<8>()?;
                decode_zone(word, ZoneId(id), u64::from_le_bytes(*bytes))
            };
            let (exact, bound) = (decode(Word::Exact), decode(Word::Bound));
            let both = exact.zip(bound).map(|(exact, bound)| match word {
                Word::Exact => exact,
                Word::Bound => bound,
            });
            both.ok_or_else(|| format!("the entry of zone {id} is damaged"))
        })
        .collect()
}

/// The bytes of a table of empty zones.
pub(crate) fn empty_table(geometry: &Geometry) -> Vec<u8> {
    (0..geometry.zones)
        .map(ZoneId)
        .flat_map(|id| [Word::Exact, Word::Bound].map(|word| encode_zone(word, id, Zone::EMPTY)))
        .flat_map(u64::to_le_bytes)
        .collect()
}
