//! What lies in the call area of a cage: the description of the request, the data handed in, and,
//! for kernels that ask for it, FluffleFS's call information.
//!
//! The bytes are part of the kernel ABI. Integers are little-endian.

use crate::request::{BLOCK_SIZE, Operation, Request};

/// Version of the Warren ABI.
const ABI_VERSION: u32 = 1;

/// Bytes of `struct warren_request`.
pub(crate) const REQUEST_BYTES: usize = 80;

/// Where the data handed in starts in the call area: on a page of its own.
pub(crate) const DATA_AT: u64 = BLOCK_SIZE as u64;

/// Bytes of `struct flfs_call`.
const FLFS_CALL_BYTES: usize = 52;

/// Bytes of `struct flfs_write_call`.
const FLFS_WRITE_CALL_BYTES: usize = 40;

/// Where a cage has what a request description points at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    /// Address of the data handed in; 0 without any.
    pub(crate) data: u64,
    /// Address of the heap.
    pub(crate) heap: u64,
    /// Bytes of heap.
    pub(crate) heap_size: u64,
    /// Bytes that may be emitted.
    pub(crate) output_limit: u64,
}

/// The number of an operation, in both ABIs.
pub(crate) fn operation_number(operation: Operation) -> u32 {
    match operation {
        Operation::ReadStream => 0,
        Operation::WriteEvent => 1,
        Operation::WriteStream => 2,
        Operation::ReadEvent => 3,
    }
}

/// Whether the operation is about data being written.
pub(super) fn writes(operation: Operation) -> bool {
    matches!(operation, Operation::WriteStream | Operation::WriteEvent)
}

/// `struct warren_request`.
pub(crate) fn describe(request: &Request, places: &Places) -> [u8; REQUEST_BYTES] {
    let mut out = Layout::default();
    out.u32(ABI_VERSION);
    out.u32(operation_number(request.operation));
    out.u64(request.offset);
    out.u64(request.size);
    out.u64(request.snapshot.size());
    out.u32(u32::try_from(request.arguments.len()).unwrap_or(u32::MAX));
    out.u32(0);
    out.u64(places.data);
    out.u64(request.data.len() as u64);
    out.u64(places.heap);
    out.u64(places.heap_size);
    out.u64(places.output_limit);
    let mut bytes = [0; REQUEST_BYTES];
    bytes.copy_from_slice(&out.0);
    bytes
}

/// `struct flfs_call`, for writes followed by `struct flfs_write_call`, then the addresses of the
/// sectors. The sectors of data start with the first byte written: nothing pads them in front,
/// zeros pad them to whole sectors.
pub(super) fn flfs_call(
    request: &Request,
    reserved: &std::ops::Range<u64>,
    appended: u64,
    sectors: &[u64],
) -> Vec<u8> {
    let mut out = Layout::default();
    let head = FLFS_CALL_BYTES + FLFS_WRITE_CALL_BYTES;
    out.0.reserve(head + std::mem::size_of_val(sectors));
    out.u32(operation_number(request.operation));
    out.u64(request.size);
    out.u64(request.offset);
    out.u64(request.file.inode);
    out.u64(request.file.parent);
    out.u32(0);
    out.u32(0);
    out.u64(request.snapshot.size());
    if writes(request.operation) {
        let size = request.data.len();
        out.u64(0);
        out.u64((size.next_multiple_of(BLOCK_SIZE) - size) as u64);
        out.u64(reserved.start);
        out.u64(reserved.start + appended.div_ceil(BLOCK_SIZE as u64));
        out.u64(reserved.end);
    }
    for lba in sectors {
        out.u64(*lba);
    }
    out.0
}

#[derive(Default)]
struct Layout(Vec<u8>);

impl Layout {
    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
}
