//! The table of kernels.

use crate::Operation::{ReadEvent, ReadStream, WriteEvent, WriteStream};
use crate::runtime::{Entry, RawEntry};
use crate::{Kernel, generate, native};

/// Declares the C twins, whose names the build gives them, and the table.
macro_rules! kernels {
    ($($name:ident ($entry:ident, $vectors:ident, $returns:ident) [$($operation:ident),+] $summary:literal;)+) => {
        unsafe extern "C" {
            $(
                fn $entry(request: *const core::ffi::c_void) -> i64;
                fn $vectors(request: *const core::ffi::c_void) -> i64;
            )+
        }

        /// Every kernel, by name.
        pub static KERNELS: &[Kernel] = &[$(Kernel {
            name: stringify!($name),
            object: include_bytes!(concat!(env!("OUT_DIR"), "/", stringify!($name), ".o")),
            operations: &[$($operation),+],
            summary: $summary,
            native: native::$name,
            generate: generate::$name::contents,
            arguments: generate::$name::arguments,
            entry: Entry::$returns($entry as RawEntry),
            vectors: Entry::$returns($vectors as RawEntry),
        }),+];
    };
}

kernels! {
    bloom_probe (warren_kernel_bloom_probe, warren_vector_bloom_probe, returning_i64) [ReadStream]
        "blocks that may hold a key, by the Bloom filter of each";
    btree_lookup (warren_kernel_btree_lookup, warren_vector_btree_lookup, returning_i64) [ReadStream]
        "keys or a range of keys of a B-tree file";
    compress (warren_kernel_compress, warren_vector_compress, returning_i64) [WriteStream]
        "stores written data in compressed frames";
    crc32c (warren_kernel_crc32c, warren_vector_crc32c, returning_i64) [ReadStream]
        "CRC-32C of the request or of its blocks";
    csv (warren_kernel_csv, warren_vector_csv, returning_i64) [ReadStream]
        "columns of comma-separated lines, or the aggregate of one";
    decompress (warren_kernel_decompress, warren_vector_decompress, returning_i64) [ReadStream]
        "what was written through compress";
    entropy (warren_kernel_entropy, warren_vector_entropy, returning_i64) [ReadStream]
        "how often each byte value occurs";
    filter (warren_kernel_filter, warren_vector_filter, returning_i64) [ReadStream]
        "u32 above a threshold: their count, or they themselves";
    grep (warren_kernel_grep, warren_vector_grep, returning_i64) [ReadStream]
        "lines that contain a literal";
    knn (warren_kernel_knn, warren_vector_knn, returning_i64) [ReadStream]
        "i16 vectors nearest to a query";
    line_index (warren_kernel_line_index, warren_vector_line_index, returning_i64) [WriteEvent, ReadStream]
        "where lines begin";
    passthrough (warren_kernel_passthrough, warren_vector_passthrough, returning_i64) [ReadStream, WriteStream, ReadEvent]
        "the data as it is";
    passthrough_flfs (warren_kernel_passthrough_flfs, warren_vector_passthrough_flfs, returning_int) [ReadStream]
        "the data as it is, through the OpenCSD helpers";
    sum_min_max (warren_kernel_sum_min_max, warren_vector_sum_min_max, returning_i64) [ReadStream]
        "count, sum, least and largest of u32 or u64";
}
