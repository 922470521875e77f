//! The on-disk bytes. Everything here is described in `docs/on-disk-format.md`.
//!
//! Fixed structures are little-endian `zerocopy` structs with asserted sizes; variable-length
//! records are serde types in bincode's fixed-width little-endian configuration. Every structure
//! carries a magic number, a version and a CRC32C. Decoding never trusts a length or an address.

pub mod checkpoint;
pub mod chunk;
pub mod record;
pub mod superblock;

use crate::error::{Error, Result};

/// Version of the whole format. A filesystem of another version is refused.
pub const FORMAT_VERSION: u32 = 1;

/// Largest variable-length record that is decoded, a bound on what hostile bytes can allocate.
const RECORD_LIMIT: usize = 64 << 20;

pub(crate) fn bincode_config() -> impl bincode::config::Config {
    bincode::config::standard()
        .with_little_endian()
        .with_fixed_int_encoding()
        .with_limit::<RECORD_LIMIT>()
}

/// Encodes `value` behind what `out` holds.
pub(crate) fn encode_into<T: serde::Serialize>(out: &mut Vec<u8>, value: &T) {
    bincode::serde::encode_into_std_write(value, out, bincode_config())
        .expect("plain data structures below the limit always encode");
}

/// Decodes one `T` from the start of `bytes` and returns it with the bytes behind it.
pub(crate) fn decode_from<'a, T: serde::de::DeserializeOwned>(
    bytes: &'a [u8],
    what: &'static str,
) -> Result<(T, &'a [u8])> {
    let (value, used) =
        bincode::serde::decode_from_slice(bytes, bincode_config()).map_err(|error| {
            Error::Corrupt {
                what,
                detail: error.to_string(),
            }
        })?;
    Ok((value, &bytes[used..]))
}

pub(crate) fn corrupt(what: &'static str, detail: impl Into<String>) -> Error {
    Error::Corrupt {
        what,
        detail: detail.into(),
    }
}
