//! What a zoned device can answer besides success.

use crate::geometry::{Lba, ZoneId};

/// Result of a device operation.
pub type Result<T> = std::result::Result<T, Error>;

/// Device errors. The variants named after an NVMe status carry its meaning (NVM Express Zoned
/// Namespace Command Set Specification 1.1, section 4.1.1: status codes).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Zone Boundary Error (B8h): the operation crosses the end of a zone's capacity.
    #[error("operation of {blocks} blocks at LBA {lba} crosses the boundary of its zone")]
    ZoneBoundary {
        /// First block.
        lba: Lba,
        /// Length.
        blocks: u64,
    },
    /// Zone Is Full (B9h).
    #[error("zone {0} is full")]
    ZoneFull(ZoneId),
    /// Zone Is Read Only (BAh).
    #[error("zone {0} is read-only")]
    ZoneReadOnly(ZoneId),
    /// Zone Is Offline (BBh).
    #[error("zone {0} is offline")]
    ZoneOffline(ZoneId),
    /// Zone Invalid Write (BCh): a write not at the write pointer.
    #[error("write at LBA {lba} is not at the write pointer {write_pointer} of its zone")]
    ZoneInvalidWrite {
        /// Where the write was aimed.
        lba: Lba,
        /// Where the zone would have taken it.
        write_pointer: Lba,
    },
    /// Too Many Active Zones (BDh).
    #[error("too many active zones (limit {0})")]
    TooManyActive(u32),
    /// Too Many Open Zones (BEh).
    #[error("too many open zones (limit {0})")]
    TooManyOpen(u32),
    /// Invalid Zone State Transition (BFh).
    #[error("zone {zone} cannot go from {from} by {action}")]
    InvalidTransition {
        /// The zone.
        zone: ZoneId,
        /// State it is in.
        from: crate::ZoneState,
        /// Action that was asked for.
        action: &'static str,
    },
    /// A read of a block at or above the write pointer (Deallocated or Unwritten Logical Block).
    #[error("read at LBA {lba} is above the write pointer {write_pointer} of its zone")]
    Unwritten {
        /// First block of the read.
        lba: Lba,
        /// Write pointer of its zone.
        write_pointer: Lba,
    },
    /// LBA Out of Range (80h).
    #[error("LBA {0} lies beyond the device")]
    OutOfRange(Lba),
    /// A buffer that is empty, misaligned or no multiple of the block size.
    #[error("buffer of {0} bytes is not a positive multiple of the block size")]
    BadLength(usize),
    /// A geometry that no device can have.
    #[error("impossible geometry: {0}")]
    BadGeometry(String),
    /// An image or argument that is not what it should be.
    #[error("{0}")]
    BadImage(String),
    /// The device is in use by another process.
    #[error("{0} is in use by another process")]
    Busy(String),
    /// A change was asked of a device that was opened read-only.
    #[error("{0} is open read-only")]
    ReadOnlyDevice(String),
    /// The host's own I/O failed.
    #[error("{context}: {source}")]
    Io {
        /// What was being done, and to what.
        context: String,
        /// The error of the host.
        source: std::io::Error,
    },
    /// The medium failed (also: injected by the fault device).
    #[error("media error at LBA {0}")]
    Media(Lba),
}

impl Error {
    /// Wraps an error of the host with what was being done.
    pub(crate) fn io(context: impl Into<String>, source: std::io::Error) -> Error {
        Error::Io {
            context: context.into(),
            source,
        }
    }

    /// As [`Error::io`] from the calling thread's `errno`.
    pub(crate) fn last_os(context: impl Into<String>) -> Error {
        Error::io(context, std::io::Error::last_os_error())
    }
}
