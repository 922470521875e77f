//! A zoned device in an image file.
//!
//! See `docs/device-image-format.md` for the bytes.
//!
//! # What survives what
//!
//! *The process dies* (kill -9): everything accepted so far. Zone states and write pointers are
//! words in a shared mapping, data is with the host's kernel; nothing of it belongs to the process.
//! A write counts from its submission on: one that was submitted and never reached the kernel leaves
//! zeroes below the write pointer.
//!
//! *The host dies*: everything flushed. The write pointer of a zone that was not full is found at
//! its bound, up to 1 MiB above the last flushed block; blocks in between hold what was written
//! there or zeroes.
//!
//! *Resets*: the zone's word becomes empty, then its space is punched out of the file. If the
//! process dies in between, the next open punches. If the host dies before the next flush, the
//! reset may be undone as a whole or show a part of the old data as zeroes. Old data next to newer
//! data of the same zone cannot be found: the host's filesystem commits its metadata in order, so
//! the punch is durable no later than the allocation of the blocks written after it.
//!
//! # Flush
//!
//! Data is written with O_DIRECT, so a flush needs no write-back; it must still commit the host
//! filesystem's journal if blocks were allocated or initialised since. To keep small commits clear
//! of that, a zone that sees two small flushed writes in a row is *prewritten*: 1 MiB of zeroes above
//! the write pointer, once, after which the small writes are pure overwrites. Bulk writers never
//! meet that. The zone table stays out of a flush as well, except when a bound has to be raised.
//!
//! A synchronous flush goes through a small ring because `fdatasync` would write the table's page each
//! time, which is always dirty: a 4 KiB commit took 1.25 times the plain file's with it and 1.12 times
//! with the ring's ranged fsync. Baseline: 4 KiB O_DIRECT overwrite and `fdatasync` of a preallocated,
//! written file on ext4, 94 to 127 us on a shared machine with two cores, unoptimised build, one run
//! each. Through the queue, where write and flush are two round trips, two runs gave 1.08 and 1.40.
//! Under heavy load of others the figures say nothing (0.15 to 0.7 was seen). `flush_latency` among
//! the examples measures again.
//!
//! There are no durable writes of its own ([`ZonedDevice::has_durable_writes`]): `RWF_DSYNC` has the host
//! do the same and was no faster (`docs/devices.md`), and a write that fails can then not be told from a
//! flush that does.
//!
//! # Locks
//!
//! One lock per zone puts acceptance of writes, prewriting, reset and finish of that zone in order;
//! reset, finish and prewriting hold it across their I/O, reads and writes of data never do.

mod direct;
mod flusher;
mod format;
mod image;
mod table;
mod uring;

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use io_uring::{cqueue, squeue};
use parking_lot::{Mutex, MutexGuard};

use crate::buffer::DmaBuffer;
use crate::burst::Bursts;
use crate::device::{DeviceQueue, MapSource, ZoneInfo, ZoneState, ZonedDevice};
use crate::error::{Error, Result};
use crate::geometry::{Geometry, Lba, ZoneId};
use crate::host;
use crate::pool::Pool;
use crate::shared_zones::{SharedZones, blocks_in, by_zone};
use crate::zone_state::{Action, ZoneTable};
use direct::DirectFile;
use flusher::Flusher;
use format::{Header, Layout};
use table::MappedTable;

/// A zoned device in an image file. Clones are handles of the same device; the last one dropped
/// closes the image cleanly.
#[derive(Clone)]
pub struct FileDevice(Arc<Inner>);

struct Inner {
    path: PathBuf,
    geometry: Geometry,
    layout: Layout,
    header: Header,
    /// Buffered descriptor of header and table; carries the lock.
    meta: std::fs::File,
    data: DirectFile,
    /// The sink is `None` on a device opened read-only.
    zones: SharedZones<Option<MappedTable>>,
    order: Vec<Mutex<ZoneIo>>,
    /// Number of flushes so far.
    flushes: AtomicU64,
    pool: Option<Arc<Pool>>,
    flusher: Flusher,
    bursts: Bursts<squeue::Entry, cqueue::Entry>,
}

/// What the write path of a zone remembers.
#[derive(Default)]
struct ZoneIo {
    /// The host has reserved space for the zone.
    reserved: bool,
    /// Bytes of the zone up to which prewriting initialised it.
    prewritten: u64,
    /// Flush count at the last write.
    last_flush: u64,
    /// Bytes written since.
    since_flush: u64,
    /// Consecutive flush intervals with little written.
    small_intervals: u32,
}

/// Less than this between two flushes makes an interval small.
const SMALL_INTERVAL_BYTES: u64 = 256 << 10;
/// Small intervals in a row after which a zone is prewritten.
const SMALL_INTERVALS_MIN: u32 = 2;
/// How much is prewritten at once.
const PREWRITE_BYTES: u64 = 1 << 20;

impl FileDevice {
    /// Makes an image of empty zones at `path` and opens it. With `force` an existing file is
    /// replaced.
    ///
    /// # Errors
    /// [`Error::BadGeometry`]; [`Error::BadImage`] if the file exists; [`Error::Busy`];
    /// [`Error::Io`].
    pub fn create(path: impl AsRef<Path>, geometry: &Geometry, force: bool) -> Result<FileDevice> {
        image::create(path.as_ref(), geometry, force)?;
        FileDevice::open(path, false)
    }

    /// Opens an image. Read-only openers share it among themselves and with no writer.
    ///
    /// # Errors
    /// [`Error::Busy`] if somebody else has it open; [`Error::BadImage`] in one line if it is no
    /// image, truncated, of another version, or damaged; [`Error::Io`].
    pub fn open(path: impl AsRef<Path>, read_only: bool) -> Result<FileDevice> {
        let path = path.as_ref();
        let claimed = image::claim(path, read_only)?;
        let io_error = |source| Error::io(format!("opening {}", path.display()), source);
        let geometry = claimed.header.geometry;
        let data = DirectFile::open(path, read_only, geometry.block_bytes()).map_err(io_error)?;
        let mut header = claimed.header;
        let mut mapped = None;
        if !read_only {
            if claimed.unclean {
                clear_above_write_pointers(&claimed)?;
            }
            let table = MappedTable::map(&claimed.file, geometry, &claimed.zones)?;
            claimed.file.sync_data().map_err(io_error)?;
            header.clean = false;
            header.boot_id = image::boot_id()?;
            image::write_header(&claimed.file, &header).map_err(io_error)?;
            mapped = Some(table);
        }
        let flusher = Flusher::new(&claimed.file, claimed.layout.data)?;
        let table = ZoneTable::restore(geometry, claimed.zones).map_err(Error::BadImage)?;
        Ok(FileDevice(Arc::new(Inner {
            path: path.to_owned(),
            geometry,
            layout: claimed.layout,
            header,
            meta: claimed.file,
            data,
            zones: SharedZones::new(geometry, table, mapped),
            order: (0..geometry.zones).map(|_| Mutex::default()).collect(),
            flushes: AtomicU64::new(0),
            pool: if read_only { None } else { Pool::new().ok() },
            flusher,
            bursts: Bursts::new(),
        })))
    }

    /// Identity of the image, random at its creation.
    #[must_use]
    pub fn uuid(&self) -> [u8; 16] {
        self.0.header.uuid
    }

    /// Whether data goes past the host's page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.0.data.is_direct()
    }

    /// Makes a zone [`ZoneState::ReadOnly`] or [`ZoneState::Offline`], as a failing medium does.
    ///
    /// # Errors
    /// [`Error::InvalidTransition`] for any other state, or from offline back to read-only.
    pub fn fail_zone(&self, zone: ZoneId, state: ZoneState) -> Result<()> {
        self.0.check_writable()?;
        self.0.zones.fail(zone, state)
    }
}

/// Restores the invariant that everything above a write pointer is zero.
fn clear_above_write_pointers(claimed: &image::Claimed) -> Result<()> {
    let block = u64::from(claimed.header.geometry.block_size);
    for (start, zone) in (0..)
        .map(|index| index * claimed.layout.stride)
        .zip(&claimed.zones)
    {
        let written = zone.write_pointer * block;
        let offset = claimed.layout.data + start + written;
        zero_range(&claimed.file, offset, claimed.layout.stride - written)
            .map_err(|source| Error::io("clearing what lies above a write pointer", source))?;
    }
    Ok(())
}

/// Punches a hole, or writes zeroes where the host cannot.
fn zero_range(file: &std::fs::File, offset: u64, len: u64) -> io::Result<()> {
    match host::punch_hole(file, offset, len) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        outcome => return outcome,
    }
    let zeroes = vec![0; (1 << 20).min(len as usize)];
    let mut done = 0;
    while done < len {
        let piece = (len - done).min(zeroes.len() as u64);
        host::write_at(file, &zeroes[..piece as usize], offset + done)?;
        done += piece;
    }
    file.sync_data()
}

impl Inner {
    fn io_error(&self, doing: &str, source: io::Error) -> Error {
        Error::io(format!("{doing} {}", self.path.display()), source)
    }

    fn check_writable(&self) -> Result<()> {
        match self.zones.sink() {
            Some(_) => Ok(()),
            None => Err(Error::ReadOnlyDevice(self.path.display().to_string())),
        }
    }

    fn in_order(&self, zone: ZoneId) -> Result<MutexGuard<'_, ZoneIo>> {
        self.check_writable()?;
        let order = self.order.get(zone.0 as usize);
        Ok(order
            .ok_or(Error::OutOfRange(self.geometry.zone_start(zone)))?
            .lock())
    }

    fn bytes(&self, blocks: u64) -> u64 {
        blocks * u64::from(self.geometry.block_size)
    }

    /// Byte offset of a block in the image.
    fn offset(&self, lba: Lba) -> u64 {
        let zone = u64::from(self.geometry.zone_of(lba).0);
        self.layout.data + zone * self.layout.stride + self.bytes(self.geometry.offset_of(lba))
    }

    /// Accepts a write at `lba`: afterwards its place is the caller's to fill.
    fn accept_write(&self, lba: Lba, blocks: u64) -> Result<()> {
        let zone = self.geometry.zone_of(lba);
        if zone.0 >= self.geometry.zones {
            return Err(Error::OutOfRange(lba));
        }
        let mut io = self.in_order(zone)?;
        self.reserve(&mut io, zone)?;
        self.zones.write(lba, blocks)?;
        self.prewrite(&mut io, lba, blocks);
        Ok(())
    }

    /// Accepts an append and answers its place, which is the caller's to fill.
    fn accept_append(&self, zone: ZoneId, blocks: u64) -> Result<Lba> {
        let mut io = self.in_order(zone)?;
        self.reserve(&mut io, zone)?;
        let lba = self.zones.append(zone, blocks)?;
        self.prewrite(&mut io, lba, blocks);
        Ok(lba)
    }

    /// Has the host set space aside for a zone that is about to be written, so that its blocks lie
    /// together and a full host is noticed before the zone changes.
    fn reserve(&self, io: &mut ZoneIo, id: ZoneId) -> Result<()> {
        let zone = self.zones.zone(id);
        let writable = !matches!(
            zone.state,
            ZoneState::Full | ZoneState::ReadOnly | ZoneState::Offline
        );
        if io.reserved || !writable {
            return Ok(());
        }
        let written = self.bytes(zone.write_pointer);
        let start = self.offset(self.geometry.zone_start(id)) + written;
        let len = self.geometry.zone_capacity_bytes() - written;
        match host::reserve(self.data.file(), start, len) {
            Err(error) if error.raw_os_error() != Some(libc::EOPNOTSUPP) => {
                return Err(self.io_error("reserving space for a zone of", error));
            }
            _ => io.reserved = true,
        }
        Ok(())
    }

    /// Zeroes the next stretch above a write just accepted at `lba`, if the zone sees small flushed
    /// writes and this one reached the end of what is initialised. Nothing can be in flight there:
    /// it is above the write pointer, and the caller holds the zone's lock.
    fn prewrite(&self, io: &mut ZoneIo, lba: Lba, blocks: u64) {
        let flushes = self.flushes.load(Ordering::Relaxed);
        if io.last_flush != flushes {
            let small = io.since_flush < SMALL_INTERVAL_BYTES;
            io.small_intervals = if small {
                io.small_intervals.saturating_add(1)
            } else {
                0
            };
            io.last_flush = flushes;
            io.since_flush = 0;
        }
        io.since_flush += self.bytes(blocks);
        let end = self.bytes(self.geometry.offset_of(lba) + blocks);
        let capacity = self.geometry.zone_capacity_bytes();
        if io.small_intervals < SMALL_INTERVALS_MIN
            || io.since_flush >= SMALL_INTERVAL_BYTES
            || end < io.prewritten
            || end >= capacity
        {
            return;
        }
        let len = PREWRITE_BYTES.min(capacity - end);
        let zeroes = &zeroes()[..len as usize];
        match self.data.write_at(zeroes, self.offset(lba.plus(blocks))) {
            Ok(()) => io.prewritten = end + len,
            Err(error) => tracing::debug!(%error, "prewriting failed; small commits stay slow"),
        }
    }

    /// What has to happen before and after the host's flush.
    fn begin_flush(&self) -> FlushKind {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        match self
            .zones
            .sink()
            .as_ref()
            .and_then(MappedTable::raise_bounds)
        {
            Some(changed) => FlushKind::WithTable { changed },
            None if self.data.is_direct() => FlushKind::DataOnly,
            None => FlushKind::PageCache,
        }
    }

    fn end_flush(&self, kind: FlushKind) {
        if let (FlushKind::WithTable { changed }, Some(table)) = (kind, self.zones.sink()) {
            table.synced(changed);
        }
    }
}

/// What a flush has to cover.
#[derive(Clone, Copy, Debug)]
enum FlushKind {
    /// Data that is with the disk already.
    DataOnly,
    /// Data in the page cache.
    PageCache,
    /// Also the zone table, whose bounds changed.
    WithTable { changed: u64 },
}

/// A page-aligned stretch of zeroes.
fn zeroes() -> &'static [u8] {
    static ZEROES: std::sync::OnceLock<DmaBuffer> = std::sync::OnceLock::new();
    ZEROES.get_or_init(|| DmaBuffer::new(PREWRITE_BYTES as usize))
}

impl ZonedDevice for FileDevice {
    fn geometry(&self) -> &Geometry {
        &self.0.geometry
    }

    fn report(&self, first: ZoneId, count: u32) -> Result<Vec<ZoneInfo>> {
        self.0.zones.report(first, count)
    }

    fn read(&self, lba: Lba, buf: &mut [u8]) -> Result<()> {
        let inner = &*self.0;
        let block = inner.geometry.block_bytes();
        let blocks = blocks_in(&inner.geometry, buf.len())?;
        inner.zones.check_read(lba, blocks)?;
        by_zone(&inner.geometry, lba, blocks, |at, part| {
            let bytes = part.start as usize * block..part.end as usize * block;
            inner
                .data
                .read_at(&mut buf[bytes], inner.offset(at))
                .map_err(|source| inner.io_error("reading", source))
        })
    }

    fn read_all(&self, reads: &mut [(Lba, &mut [u8])]) -> Result<()> {
        let together = reads.len() > 1 && reads.iter().all(|(_, buf)| self.0.data.takes(buf));
        if together && let Some(outcome) = uring::read_all(&self.0, reads) {
            return outcome;
        }
        reads
            .iter_mut()
            .try_for_each(|(lba, buf)| self.read(*lba, buf))
    }

    fn write(&self, lba: Lba, data: &[u8]) -> Result<()> {
        let blocks = blocks_in(&self.0.geometry, data.len())?;
        self.0.accept_write(lba, blocks)?;
        let written = self.0.data.write_at(data, self.0.offset(lba));
        written.map_err(|source| self.0.io_error("writing", source))
    }

    fn append(&self, zone: ZoneId, data: &[u8]) -> Result<Lba> {
        let blocks = blocks_in(&self.0.geometry, data.len())?;
        let lba = self.0.accept_append(zone, blocks)?;
        let written = self.0.data.write_at(data, self.0.offset(lba));
        written.map_err(|source| self.0.io_error("writing", source))?;
        Ok(lba)
    }

    fn reset(&self, zone: ZoneId) -> Result<()> {
        let inner = &*self.0;
        let mut io = inner.in_order(zone)?;
        inner.zones.act(zone, Action::Reset)?;
        *io = ZoneIo::default();
        let start = inner.offset(inner.geometry.zone_start(zone));
        zero_range(&inner.meta, start, inner.layout.stride).map_err(|source| {
            // A zone that is empty with old data in it must never be written again.
            if let Err(error) = inner.zones.fail(zone, ZoneState::Offline) {
                tracing::error!(%zone, %error, "a zone could be neither cleared nor retired");
            }
            inner.io_error("clearing a zone of", source)
        })
    }

    fn finish(&self, zone: ZoneId) -> Result<()> {
        let inner = &*self.0;
        let mut io = inner.in_order(zone)?;
        let written = inner.bytes(inner.zones.zone(zone).write_pointer);
        inner.zones.act(zone, Action::Finish)?;
        *io = ZoneIo::default();
        let start = inner.offset(inner.geometry.zone_start(zone)) + written;
        // Only gives reserved space back: what is there reads as zeroes either way.
        if let Err(error) =
            host::punch_hole(inner.data.file(), start, inner.layout.stride - written)
        {
            tracing::debug!(%zone, %error, "the rest of a finished zone keeps its space");
        }
        Ok(())
    }

    fn open(&self, zone: ZoneId) -> Result<()> {
        let mut io = self.0.in_order(zone)?;
        self.0.reserve(&mut io, zone)?;
        self.0.zones.act(zone, Action::Open)
    }

    fn close(&self, zone: ZoneId) -> Result<()> {
        let _io = self.0.in_order(zone)?;
        self.0.zones.act(zone, Action::Close)
    }

    fn flush(&self) -> Result<()> {
        let kind = self.0.begin_flush();
        let synced = match kind {
            FlushKind::DataOnly => self.0.flusher.flush(),
            FlushKind::PageCache | FlushKind::WithTable { .. } => self.0.meta.sync_data(),
        };
        synced.map_err(|source| self.0.io_error("flushing", source))?;
        self.0.end_flush(kind);
        Ok(())
    }

    fn queue(&self, depth: u32) -> Result<Box<dyn DeviceQueue>> {
        uring::queue(self, depth)
    }

    fn buffer(&self, len: usize) -> DmaBuffer {
        let registered = self.0.pool.as_ref().and_then(|pool| pool.take(len));
        registered.unwrap_or_else(|| DmaBuffer::new(len))
    }

    fn map_source(&self, lba: Lba, blocks: u64) -> Result<Option<MapSource<'_>>> {
        self.0.zones.check_read(lba, blocks)?;
        Ok(Some(MapSource {
            fd: self.0.meta.as_fd(),
            offset: self.0.offset(lba),
        }))
    }

    fn describe(&self) -> String {
        self.0.path.display().to_string()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.zones.sink().is_none() {
            return;
        }
        let clean = Header {
            clean: true,
            ..self.header
        };
        let closed = self
            .meta
            .sync_data()
            .and_then(|()| image::write_header(&self.meta, &clean));
        if let Err(error) = closed {
            let path = self.path.display();
            tracing::error!(%path, %error, "the image could not be closed cleanly");
        }
    }
}
