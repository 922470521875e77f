//! The one interface every zoned device has.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::buffer::DmaBuffer;
use crate::error::{Error, Result};
use crate::geometry::{Geometry, Lba, ZoneId};

/// State of a zone (NVMe ZNS Command Set 1.1, section 2.1.1.3: zone state machine).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ZoneState {
    /// Nothing written, no resources held.
    Empty,
    /// Opened by a write.
    ImplicitlyOpen,
    /// Opened by command.
    ExplicitlyOpen,
    /// Partly written, active but not open.
    Closed,
    /// Written to capacity or finished.
    Full,
    /// Readable, never writable again.
    ReadOnly,
    /// Neither readable nor writable.
    Offline,
}

impl fmt::Display for ZoneState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ZoneState::Empty => "empty",
            ZoneState::ImplicitlyOpen => "implicitly open",
            ZoneState::ExplicitlyOpen => "explicitly open",
            ZoneState::Closed => "closed",
            ZoneState::Full => "full",
            ZoneState::ReadOnly => "read-only",
            ZoneState::Offline => "offline",
        })
    }
}

/// What a zone report says of one zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneInfo {
    /// The zone.
    pub zone: ZoneId,
    /// Its state.
    pub state: ZoneState,
    /// Blocks from the zone's start to its write pointer. A full zone answers its capacity.
    pub write_pointer: u64,
    /// Writable blocks.
    pub capacity: u64,
}

/// Where a device's blocks can be mapped from.
#[derive(Debug)]
pub struct MapSource<'a> {
    /// File to hand to `mmap`.
    pub fd: BorrowedFd<'a>,
    /// Byte offset of the asked-for block in that file.
    pub offset: u64,
}

/// An operation for a [`DeviceQueue`]. Buffers belong to the request until it completes.
#[derive(Debug)]
pub enum Request {
    /// Fills `buffer` from `lba` on.
    Read {
        /// First block.
        lba: Lba,
        /// Destination, a multiple of the block size.
        buffer: DmaBuffer,
    },
    /// Writes the first `blocks` blocks of `data` at the write pointer, which must be `lba`.
    Write {
        /// First block.
        lba: Lba,
        /// Source. Shared, so that the blocks can be read from memory while in flight.
        data: Arc<DmaBuffer>,
        /// How many blocks of it.
        blocks: u64,
        /// As [`ZonedDevice::write_durable`] does it.
        durable: bool,
    },
    /// Writes the first `blocks` blocks of `data` wherever the zone's write pointer is.
    Append {
        /// Destination.
        zone: ZoneId,
        /// Source.
        data: Arc<DmaBuffer>,
        /// How many blocks of it.
        blocks: u64,
    },
    /// Everything completed before this was submitted becomes durable.
    Flush,
}

/// The end of a [`Request`].
#[derive(Debug)]
pub struct Completion {
    /// Token given at submission.
    pub token: u64,
    /// The address read, written or (append) assigned; `Lba(0)` for a flush.
    pub result: Result<Lba>,
    /// The buffer of a read.
    pub buffer: Option<DmaBuffer>,
}

/// Submission and completion with a queue depth above one. Submissions from several threads are
/// fine; a completion is delivered to exactly one waiter.
///
/// Writes to one zone are started in the order of their submission; appends in flight together get
/// their places in any order.
pub trait DeviceQueue: Send + Sync {
    /// Starts `request`. Blocks only while the queue is full. A request the device refuses at once
    /// (wrong state, wrong address) completes with the error; it does not fail here.
    ///
    /// # Errors
    /// Only if the queue itself is broken.
    fn submit(&self, token: u64, request: Request) -> Result<()>;

    /// Waits for at least `min` completions (0: only takes what is there) and appends all that are
    /// there to `out`.
    ///
    /// # Errors
    /// Only if the queue itself is broken.
    fn wait(&self, min: usize, out: &mut Vec<Completion>) -> Result<()>;
}

/// A zoned block device.
///
/// Blocks of one write become readable when the call returns. They are durable after a completed
/// [`ZonedDevice::flush`] that started later, or at once if the write was a durable one; until then a power cut may keep or lose each block
/// on its own, and write pointers may be found anywhere from the last flushed block up.
/// Zone resets are ordered: a reset that has returned is not undone by a flush-less power cut in a
/// way that makes older data readable again next to newer data of the same zone.
pub trait ZonedDevice: Send + Sync {
    /// Shape and limits.
    fn geometry(&self) -> &Geometry;

    /// The report of `count` zones from `first` on.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] when the range leaves the device.
    fn report(&self, first: ZoneId, count: u32) -> Result<Vec<ZoneInfo>>;

    /// Reads whole blocks. A read may not cross a write pointer; it may cross from one full zone
    /// into the next only where capacity equals size.
    ///
    /// # Errors
    /// [`Error::Unwritten`] at or above the write pointer, [`Error::ZoneOffline`], media errors.
    fn read(&self, lba: Lba, buf: &mut [u8]) -> Result<()>;

    /// Reads several ranges as [`ZonedDevice::read`] does each, at the same time where the device
    /// can.
    ///
    /// # Errors
    /// The first that a range meets; what the memory of the others holds then is not said.
    fn read_all(&self, reads: &mut [(Lba, &mut [u8])]) -> Result<()> {
        reads
            .iter_mut()
            .try_for_each(|(lba, buf)| self.read(*lba, buf))
    }

    /// Writes whole blocks at the write pointer of a zone.
    ///
    /// # Errors
    /// The statuses of the zone state machine; media errors.
    fn write(&self, lba: Lba, data: &[u8]) -> Result<()>;

    /// As [`ZonedDevice::write`], and the blocks are durable when the call returns. It says nothing
    /// of any other block: what was written before and not flushed may still be lost.
    ///
    /// # Errors
    /// As [`ZonedDevice::write`], and as [`ZonedDevice::flush`] where the device flushes for it
    /// ([`ZonedDevice::has_durable_writes`]).
    fn write_durable(&self, lba: Lba, data: &[u8]) -> Result<()> {
        self.write(lba, data)?;
        self.flush()
    }

    /// Whether a durable write is one operation of the device, so that it costs less than a write
    /// and a flush, and when it fails nothing but itself has failed.
    fn has_durable_writes(&self) -> bool {
        false
    }

    /// Writes whole blocks where the zone's write pointer is and returns their address.
    ///
    /// # Errors
    /// As [`ZonedDevice::write`]; [`Error::BadLength`] above the append limit.
    fn append(&self, zone: ZoneId, data: &[u8]) -> Result<Lba>;

    /// Empties a zone and gives its space back.
    ///
    /// # Errors
    /// The statuses of the zone state machine.
    fn reset(&self, zone: ZoneId) -> Result<()>;

    /// Makes a zone full without writing the rest of it.
    ///
    /// # Errors
    /// The statuses of the zone state machine.
    fn finish(&self, zone: ZoneId) -> Result<()>;

    /// Opens a zone explicitly.
    ///
    /// # Errors
    /// The statuses of the zone state machine.
    fn open(&self, zone: ZoneId) -> Result<()>;

    /// Closes an open zone.
    ///
    /// # Errors
    /// The statuses of the zone state machine.
    fn close(&self, zone: ZoneId) -> Result<()>;

    /// Makes every completed write durable.
    ///
    /// # Errors
    /// Host or media errors, after which what was unflushed must be taken for lost.
    fn flush(&self) -> Result<()>;

    /// A queue of the given depth (at least 1).
    ///
    /// # Errors
    /// When the host has no such queue to give.
    fn queue(&self, depth: u32) -> Result<Box<dyn DeviceQueue>>;

    /// A buffer of `len` bytes, registered with the device where it has such and one is free.
    fn buffer(&self, len: usize) -> DmaBuffer {
        DmaBuffer::new(len)
    }

    /// Where the `blocks` blocks from `lba` on can be mapped, on devices that live in host memory
    /// or in a file. The range lies in one zone and below its write pointer.
    ///
    /// # Errors
    /// As a read of the same blocks.
    fn map_source(&self, lba: Lba, blocks: u64) -> Result<Option<MapSource<'_>>> {
        let _ = (lba, blocks);
        Ok(None)
    }

    /// Whether what [`ZonedDevice::map_source`] tells of is in memory, as opposed to a file that mapping
    /// reads into the caches of the operating system.
    fn in_memory(&self) -> bool {
        false
    }

    /// What the device is, for messages: `mem:1G`, a path.
    fn describe(&self) -> String;
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> std::io::Error {
        match error {
            Error::Io { context, source } => {
                std::io::Error::new(source.kind(), format!("{context}: {source}"))
            }
            other => std::io::Error::other(other),
        }
    }
}
