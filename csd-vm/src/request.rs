//! What the host asks of the device, and what it gets back.

use std::sync::Arc;
use std::time::Duration;

use zns_backend::Lba;

/// Bytes of a block, the sector of the OpenCSD ABI.
pub const BLOCK_SIZE: usize = 4096;

/// Why a kernel runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// The kernel performs a read: what it emits is what the reader gets.
    ReadStream,
    /// The kernel transforms a write: what it emits is written in place of the data.
    WriteStream,
    /// The kernel runs on data just read; what it emits is added to what the reader gets.
    ReadEvent,
    /// The kernel runs on data just written; what it emits is appended to the file.
    WriteEvent,
}

/// Consecutive blocks of the snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Reads as zeros.
    Hole {
        /// How many blocks.
        blocks: u64,
    },
    /// On the device from `lba` on, and stays there as long as the [`SnapshotMap`] lives.
    Mapped {
        /// First block on the device.
        lba: Lba,
        /// CRC32C of each block.
        checksums: Arc<[u32]>,
    },
}

impl Piece {
    /// How many blocks it covers; never 0.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        match self {
            Piece::Hole { blocks } => *blocks,
            Piece::Mapped { checksums, .. } => checksums.len() as u64,
        }
    }
}

/// Where the blocks of a snapshot are. The host keeps them in place until the last reference is
/// dropped.
pub trait SnapshotMap: Send + Sync {
    /// Bytes of the snapshot.
    fn size(&self) -> u64;

    /// Appends the pieces that cover exactly `[first, first + blocks)`, in order; blocks past the
    /// end of the snapshot are holes.
    ///
    /// # Errors
    /// A description of what went wrong on the host's side; the execution fails with it.
    fn resolve(&self, first: u64, blocks: u64, out: &mut Vec<Piece>) -> Result<(), String>;
}

/// What the OpenCSD ABI tells a kernel about the file. The device only hands it on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileIdentity {
    /// Number of the inode.
    pub inode: u64,
    /// Number of the directory it was found in.
    pub parent: u64,
}

/// Bounds of one execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Wall time from the start of the kernel.
    pub time: Duration,
    /// Processor time, helpers included, where it is to be less than the wall time.
    pub processor: Option<Duration>,
    /// Bytes of heap.
    pub heap: u64,
    /// Bytes it may emit.
    pub output: u64,
    /// Blocks it may read (each read or mapping of a block counts).
    pub blocks_read: u64,
    /// Blocks it may append.
    pub blocks_appended: u64,
}

/// One execution.
pub struct Request {
    /// Why the kernel runs.
    pub operation: Operation,
    /// First byte of the request in the file.
    pub offset: u64,
    /// Bytes of the request, within the snapshot for reads.
    pub size: u64,
    /// What the kernel sees of the file.
    pub snapshot: Arc<dyn SnapshotMap>,
    /// The file, for kernels that ask.
    pub file: FileIdentity,
    /// The bytes being written (write operations) or just read (`ReadEvent`): `size` of them.
    pub data: Vec<u8>,
    /// Arguments of the registration.
    pub arguments: Arc<[u64]>,
    /// Bounds of this execution.
    pub limits: Limits,
}

/// Why an execution failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The kernel returned a negative value.
    #[error("the kernel returned {0}")]
    Returned(i64),
    /// It ran out of time.
    #[error("the kernel ran longer than {0:?}")]
    TimedOut(Duration),
    /// It ran out of processor time.
    #[error("the kernel used a processor for longer than {0:?}")]
    ProcessorTime(Duration),
    /// It touched memory outside what it has.
    #[error("the kernel accessed memory it does not have, at {0:#x} of its cage")]
    Fault(u64),
    /// It recursed too deeply.
    #[error("the kernel overflowed its call stack")]
    StackOverflow,
    /// A helper was called in a way that ends the kernel.
    #[error("{helper}: {reason}")]
    Helper {
        /// Name of the helper.
        helper: &'static str,
        /// What was wrong.
        reason: String,
    },
    /// A limit of the request was exceeded.
    #[error("the kernel exceeded its limit of {0}")]
    Limit(&'static str),
    /// Blocks of the snapshot could not be read, or do not have their checksum.
    #[error("{0}")]
    Storage(String),
    /// The device is shutting down.
    #[error("the device is shutting down")]
    Stopped,
    /// The device itself failed: no memory for a cage, a program that does not compile.
    #[error("the device failed: {0}")]
    Internal(String),
}

/// What an execution cost and moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// Wall time of the kernel, in nanoseconds.
    pub run_ns: u64,
    /// Processor time of it, in nanoseconds.
    pub processor_ns: u64,
    /// Time between submission and start, in nanoseconds.
    pub queued_ns: u64,
    /// Bytes of the snapshot read or mapped.
    pub bytes_read: u64,
    /// Bytes given back to the host.
    pub bytes_returned: u64,
    /// Bytes appended.
    pub bytes_appended: u64,
    /// Calls of helpers.
    pub helper_calls: u64,
}

/// The end of an execution. Borrowed from the device while the host takes what it needs.
pub struct Completion<'a> {
    /// What the kernel returned (not negative), or why it failed.
    pub status: Result<u64, Failure>,
    /// What it emitted; empty after a failure.
    pub output: &'a [u8],
    /// What it appended; empty after a failure.
    pub appended: &'a [u8],
    /// What it cost.
    pub usage: Usage,
}
