//! The Rust twins: what each kernel should do, written for clarity.
//!
//! They share no code with the kernels and take nothing from them but the documented formats.

mod lz4;
mod numbers;
mod structures;
mod text;

pub use lz4::{compress, decompress};
pub use numbers::{crc32c, entropy, filter, knn, sum_min_max};
pub use structures::{bloom_bits, bloom_probe, btree_lookup};
pub use text::{csv, grep, line_index};

use crate::{Input, Operation, Outcome};

/// The file is not in the kernel's format, or an argument makes no sense.
pub(crate) const EINVAL: i64 = -22;
/// The output would be larger than allowed.
pub(crate) const EFBIG: i64 = -27;
/// The kernel does not do this operation.
pub(crate) const EOPNOTSUPP: i64 = -95;

/// The data as it is.
///
/// # Errors
/// None.
pub fn passthrough(input: &Input<'_>) -> Outcome {
    Ok(match input.operation {
        Operation::ReadStream => input.range().to_vec(),
        _ => input.data.to_vec(),
    })
}

/// The data as it is, reads only.
///
/// # Errors
/// -3 for other operations.
pub fn passthrough_flfs(input: &Input<'_>) -> Outcome {
    match input.operation {
        Operation::ReadStream => Ok(input.range().to_vec()),
        _ => Err(-3),
    }
}

/// Little-endian words, one after the other.
pub(crate) fn words(words: impl IntoIterator<Item = u64>) -> Vec<u8> {
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// The word at byte `at`, which must be there.
pub(crate) fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}
