//! BPF kernels for computational storage: their compiled objects, and two twins of each.
//!
//! The *C twin* is the kernel's own source compiled for the host: what it does without a VM, and
//! the native speed to compare with. The *Rust twin* ([`Kernel::native`]) is written on its own and
//! straightforwardly: what the kernel should do. All three must agree on every input.
//!
//! The crate knows no device and no filesystem: it hands out objects, and inputs to try them on.

pub mod generate;
mod kernels;
pub mod native;
mod runtime;

pub use kernels::KERNELS;
pub use runtime::{Entry, OutOfMemory, Runtime};

/// Why a kernel runs; the numbers of `enum warren_op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Operation {
    /// The kernel performs a read: its output is what the reader gets.
    ReadStream = 0,
    /// The kernel runs on data just written: its output is appended to the file.
    WriteEvent = 1,
    /// The kernel transforms a write: its output is written in place of the data.
    WriteStream = 2,
    /// The kernel runs on data just read: its output is added to what the reader gets.
    ReadEvent = 3,
}

/// What a kernel is run on.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Why it runs.
    pub operation: Operation,
    /// First byte of the request in the file.
    pub offset: u64,
    /// Bytes of the request.
    pub size: u64,
    /// The whole file as the kernel sees it.
    pub snapshot: &'a [u8],
    /// The data written or just read; empty for [`Operation::ReadStream`].
    pub data: &'a [u8],
    /// Arguments of the registration.
    pub arguments: &'a [u64],
}

impl<'a> Input<'a> {
    /// A view: one request over the whole file.
    #[must_use]
    pub fn view(snapshot: &'a [u8], arguments: &'a [u64]) -> Self {
        Self::read(snapshot, 0, snapshot.len() as u64, arguments)
    }

    /// A read of `size` bytes from `offset` on.
    #[must_use]
    pub fn read(snapshot: &'a [u8], offset: u64, size: u64, arguments: &'a [u64]) -> Self {
        Self {
            operation: Operation::ReadStream,
            offset,
            size,
            snapshot,
            data: &[],
            arguments,
        }
    }

    /// An operation other than a read stream: `data` at `offset`, of a file that is otherwise empty.
    #[must_use]
    pub fn data(operation: Operation, offset: u64, data: &'a [u8], arguments: &'a [u64]) -> Self {
        Self {
            operation,
            offset,
            size: data.len() as u64,
            snapshot: &[],
            data,
            arguments,
        }
    }

    /// The byte after the last one of the request, within the snapshot.
    #[must_use]
    pub fn end(&self) -> u64 {
        let limit = self.snapshot.len() as u64;
        if self.offset >= limit {
            return self.offset;
        }
        self.offset + self.size.min(limit - self.offset)
    }

    /// The bytes of the request.
    #[must_use]
    pub fn range(&self) -> &'a [u8] {
        let end = self.end();
        if end == self.offset {
            return &[];
        }
        // Within the snapshot, whose length is a usize.
        &self.snapshot[self.offset as usize..end as usize]
    }

    /// Argument `index`, or `otherwise` when there are fewer.
    #[must_use]
    pub fn argument_or(&self, index: usize, otherwise: u64) -> u64 {
        self.arguments.get(index).copied().unwrap_or(otherwise)
    }
}

/// A kernel's output, or the negative number it returned.
pub type Outcome = Result<Vec<u8>, i64>;

/// One kernel.
pub struct Kernel {
    /// Its name, that of its source in `kernels/` without `.c`.
    pub name: &'static str,
    /// The ELF object, compiled for BPF.
    pub object: &'static [u8],
    /// The operations it is made for; under others it fails or does what its source says.
    pub operations: &'static [Operation],
    /// What it does, in a line.
    pub summary: &'static str,
    /// The Rust twin.
    pub native: fn(&Input<'_>) -> Outcome,
    /// Contents that mean something to it: exactly `size` bytes, a function of seed and size. For
    /// write operations it is the data written.
    pub generate: fn(seed: u64, size: usize) -> Vec<u8>,
    /// Arguments to try it with, valid ones, a function of the seed.
    pub arguments: fn(seed: u64) -> Vec<Vec<u64>>,
    /// The C twin, for [`Runtime::run`].
    pub entry: Entry,
    /// The same, compiled by clang: with vectors, which BPF has none of.
    pub vectors: Entry,
}

impl Kernel {
    /// The kernel of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        KERNELS.iter().find(|kernel| kernel.name == name)
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("name", &self.name)
            .field("object_bytes", &self.object.len())
            .finish_non_exhaustive()
    }
}
