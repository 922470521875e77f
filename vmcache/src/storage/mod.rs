//! The files below: bytes at offsets, in batches, and a barrier.
//!
//! One narrow trait, so that a test can put a medium with faults in place of a file. A write is
//! durable once a later [`Storage::sync`] returned without error; before that any part of it, or none,
//! may survive a crash.

mod file;
mod memory;
mod runs;
mod uring;

pub use file::FileStorage;
pub use memory::MemoryStorage;
pub(crate) use runs::{reads_of, writes_of};

use std::io;

/// A read of a batch.
#[derive(Debug)]
pub struct ReadOp<'a> {
    /// Byte offset in the file.
    pub offset: u64,
    /// Filled completely.
    pub into: &'a mut [u8],
}

/// A write of a batch.
#[derive(Debug, Clone, Copy)]
pub struct WriteOp<'a> {
    /// Byte offset in the file.
    pub offset: u64,
    /// Written completely.
    pub from: &'a [u8],
}

/// A file or block device.
///
/// Offsets, lengths and buffers are multiples of [`crate::PAGE_BYTES`].
pub trait Storage: Send + Sync {
    /// Bytes of the file.
    ///
    /// # Errors
    /// Of the operating system.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// Of the operating system.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `into` from `offset`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] when the file ends before; else of the operating system.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// Writes `from` at `offset`, extending the file where needed.
    ///
    /// # Errors
    /// Of the operating system; a part may have been written.
    fn write_at(&self, offset: u64, from: &[u8]) -> io::Result<()>;

    /// Does all reads, in any order or at once.
    ///
    /// # Errors
    /// Of one that failed; the contents of the others are then undetermined.
    fn read_batch(&self, reads: &mut [ReadOp<'_>]) -> io::Result<()> {
        reads
            .iter_mut()
            .try_for_each(|read| self.read_at(read.offset, read.into))
    }

    /// Does all writes, in any order or at once; they do not overlap.
    ///
    /// # Errors
    /// Of one that failed; others may have been done or not.
    fn write_batch(&self, writes: &[WriteOp<'_>]) -> io::Result<()> {
        writes
            .iter()
            .try_for_each(|write| self.write_at(write.offset, write.from))
    }

    /// May cut the file off behind `len` bytes, whose contents nobody needs; a hint.
    ///
    /// # Errors
    /// Of the operating system.
    fn shrink(&self, len: u64) -> io::Result<()> {
        let _ = len;
        Ok(())
    }

    /// Makes all completed writes durable.
    ///
    /// # Errors
    /// Of the operating system; it is then open what is durable.
    fn sync(&self) -> io::Result<()>;
}

/// A file on a filesystem with atomic writes.
///
/// Writes between [`AtomicStorage::start`] and [`AtomicStorage::commit`] happen together, at the commit,
/// or not at all. Until then they are read back here and nowhere else.
pub trait AtomicStorage: Storage {
    /// Starts a session of writes. There is none yet.
    ///
    /// # Errors
    /// Of the operating system.
    fn start(&self) -> io::Result<()>;

    /// Ends the session; its writes have happened and are durable.
    ///
    /// # Errors
    /// Of the operating system. The session has ended; it is open whether its writes have happened.
    fn commit(&self) -> io::Result<()>;

    /// Ends the session, if there is one; its writes have not happened.
    ///
    /// # Errors
    /// Of the operating system.
    fn abort(&self) -> io::Result<()>;
}
