//! The bytes of an image file: header and zone words. The one place that knows them;
//! `docs/device-image-format.md` describes the same.
//!
//! Invariant: a header or word with any bit flipped does not decode, or decodes to the same.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::device::ZoneState;
use crate::geometry::{Geometry, ZoneId};
use crate::zone_state::Zone;

/// First bytes of every image.
pub(crate) const MAGIC: [u8; 8] = *b"WarrenZD";
/// Version of the layout.
pub(crate) const VERSION: u32 = 1;
/// Bytes of the header block.
pub(crate) const HEADER_BYTES: u64 = 4096;
/// The zone table follows the header; per zone the exact word, then the bound word.
pub(crate) const TABLE_OFFSET: u64 = HEADER_BYTES;
/// Bytes of a zone in the table.
pub(crate) const ZONE_ENTRY_BYTES: u64 = 16;
/// Alignment of the first zone.
const DATA_ALIGNMENT: u64 = 1 << 20;
/// Alignment of every other zone.
const ZONE_ALIGNMENT: u64 = 4096;

/// The header, as stored. Everything after `crc` up to the end of the block is zero.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: U32,
    block_size: U32,
    zones: U32,
    max_open: U32,
    max_active: U32,
    /// 1 after a clean close, 0 while open for writing.
    clean: U32,
    zone_size: U64,
    zone_capacity: U64,
    max_append: U64,
    uuid: [u8; 16],
    boot_id: [u8; 16],
    /// CRC32C of the whole header block with this field zero.
    crc: U32,
}

const RAW_BYTES: usize = size_of::<RawHeader>();
const _: () = assert!(
    RAW_BYTES == 92,
    "the header is what the format document says"
);
const CRC_AT: usize = RAW_BYTES - 4;

/// What the header of an image says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) geometry: Geometry,
    /// Identity of the image, random.
    pub(crate) uuid: [u8; 16],
    /// Boot of the host that last opened the image for writing.
    pub(crate) boot_id: [u8; 16],
    /// Whether that one closed it.
    pub(crate) clean: bool,
}

impl Header {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let geometry = &self.geometry;
        let raw = RawHeader {
            magic: MAGIC,
            version: VERSION.into(),
            block_size: geometry.block_size.into(),
            zones: geometry.zones.into(),
            max_open: geometry.max_open.into(),
            max_active: geometry.max_active.into(),
            clean: u32::from(self.clean).into(),
            zone_size: geometry.zone_size.into(),
            zone_capacity: geometry.zone_capacity.into(),
            max_append: geometry.max_append.into(),
            uuid: self.uuid,
            boot_id: self.boot_id,
            crc: 0.into(),
        };
        let mut block = vec![0; HEADER_BYTES as usize];
        block[..RAW_BYTES].copy_from_slice(raw.as_bytes());
        let crc = crc32c::crc32c(&block);
        block[CRC_AT..RAW_BYTES].copy_from_slice(&crc.to_le_bytes());
        block
    }

    /// Decodes a header block.
    ///
    /// # Errors
    /// What is wrong with it, to be said of the image.
    pub(crate) fn decode(block: &[u8]) -> Result<Header, String> {
        let (raw, _) = RawHeader::read_from_prefix(block)
            .map_err(|_| "is not a WarrenFS device image (too short)".to_owned())?;
        if raw.magic != MAGIC {
            return Err("is not a WarrenFS device image".into());
        }
        if raw.version != VERSION {
            let version = raw.version;
            return Err(format!(
                "has image format version {version}, this is {VERSION}"
            ));
        }
        let crc_without = crc32c::crc32c(&block[..CRC_AT]);
        let crc_without = crc32c::crc32c_append(crc_without, &[0; 4]);
        let crc_without = crc32c::crc32c_append(crc_without, &block[RAW_BYTES..]);
        if raw.crc.get() != crc_without {
            return Err("has a damaged header (its checksum does not match)".into());
        }
        let geometry = Geometry {
            block_size: raw.block_size.get(),
            zones: raw.zones.get(),
            zone_size: raw.zone_size.get(),
            zone_capacity: raw.zone_capacity.get(),
            max_open: raw.max_open.get(),
            max_active: raw.max_active.get(),
            max_append: raw.max_append.get(),
        };
        geometry
            .validate()
            .map_err(|error| format!("has a header with an {error}"))?;
        let clean = raw.clean.get() != 0;
        Ok(Header {
            geometry,
            uuid: raw.uuid,
            boot_id: raw.boot_id,
            clean,
        })
    }
}

/// Where things lie in an image of some geometry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Byte offset of zone 0.
    pub(crate) data: u64,
    /// Bytes from one zone to the next.
    pub(crate) stride: u64,
    /// Length of the file.
    pub(crate) len: u64,
}

impl Layout {
    /// The layout, or why there can be none.
    pub(crate) fn of(geometry: &Geometry) -> Result<Layout, String> {
        if u32::try_from(geometry.zone_capacity).is_err() {
            return Err(format!(
                "zones of {} blocks are too large",
                geometry.zone_capacity
            ));
        }
        let zones = u64::from(geometry.zones);
        let data = (TABLE_OFFSET + zones * ZONE_ENTRY_BYTES).next_multiple_of(DATA_ALIGNMENT);
        let stride = geometry
            .zone_capacity_bytes()
            .next_multiple_of(ZONE_ALIGNMENT);
        let len = stride
            .checked_mul(zones)
            .and_then(|zones| zones.checked_add(data));
        let len = len.filter(|&len| i64::try_from(len).is_ok());
        Ok(Layout {
            data,
            stride,
            len: len.ok_or("an image that size cannot be")?,
        })
    }
}

/// States by their number in a word.
const STATES: [ZoneState; 7] = [
    ZoneState::Empty,
    ZoneState::ImplicitlyOpen,
    ZoneState::ExplicitlyOpen,
    ZoneState::Closed,
    ZoneState::Full,
    ZoneState::ReadOnly,
    ZoneState::Offline,
];

fn state_number(state: ZoneState) -> u8 {
    match state {
        ZoneState::Empty => 0,
        ZoneState::ImplicitlyOpen => 1,
        ZoneState::ExplicitlyOpen => 2,
        ZoneState::Closed => 3,
        ZoneState::Full => 4,
        ZoneState::ReadOnly => 5,
        ZoneState::Offline => 6,
    }
}

/// Which of the two words of a zone; part of the check, so that they cannot be swapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Word {
    /// State and write pointer as they are.
    Exact = 0,
    /// An upper bound of the write pointer that holds after the host lost power.
    Bound = 1,
}

/// CRC32C of what the word says and whom it is about, folded to 24 bits. The fold keeps every
/// difference of one bit, since no single-bit change of the input changes the CRC in just the two
/// places that cancel out (a test goes through them all).
fn check(word: Word, zone: ZoneId, state: u8, write_pointer: u32) -> u32 {
    let mut said = [0; 10];
    said[0] = word as u8;
    said[1..5].copy_from_slice(&zone.0.to_le_bytes());
    said[5] = state;
    said[6..].copy_from_slice(&write_pointer.to_le_bytes());
    let crc = crc32c::crc32c(&said);
    (crc ^ (crc >> 24)) & 0x00FF_FFFF
}

/// Word of a zone: state in bits 0..8, write pointer in 8..40, check in 40..64.
pub(crate) fn encode_zone(word: Word, id: ZoneId, zone: Zone) -> u64 {
    let state = state_number(zone.state);
    let pointer = zone.write_pointer as u32;
    let check = check(word, id, state, pointer);
    u64::from(state) | u64::from(pointer) << 8 | u64::from(check) << 40
}

/// The zone a word describes, unless the word is damaged.
pub(crate) fn decode_zone(word: Word, id: ZoneId, bits: u64) -> Option<Zone> {
    let state = bits as u8;
    let pointer = (bits >> 8) as u32;
    let zone_state = *STATES.get(usize::from(state))?;
    (check(word, id, state, pointer) == (bits >> 40) as u32).then_some(Zone {
        state: zone_state,
        write_pointer: u64::from(pointer),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_a_zone_word_is_seen() {
        let zones = [
            Zone::EMPTY,
            Zone {
                state: ZoneState::Closed,
                write_pointer: 77,
            },
            Zone {
                state: ZoneState::Full,
                write_pointer: 0xFFFF_FFFF,
            },
        ];
        for zone in zones {
            for id in [0, 1, 255, 70_000].map(ZoneId) {
                for word in [Word::Exact, Word::Bound] {
                    let bits = encode_zone(word, id, zone);
                    assert_eq!(decode_zone(word, id, bits), Some(zone));
                    for bit in 0..64 {
                        assert_eq!(decode_zone(word, id, bits ^ (1 << bit)), None, "bit {bit}");
                    }
                }
                let exact = encode_zone(Word::Exact, id, zone);
                assert_eq!(decode_zone(Word::Bound, id, exact), None);
                assert_eq!(decode_zone(Word::Exact, ZoneId(id.0 + 1), exact), None);
            }
        }
    }

    #[test]
    fn every_flipped_bit_of_the_header_is_seen() {
        let geometry = Geometry {
            block_size: 4096,
            zones: 9,
            zone_size: 64,
            zone_capacity: 60,
            max_open: 3,
            max_active: 4,
            max_append: 16,
        };
        let header = Header {
            geometry,
            uuid: [7; 16],
            boot_id: [9; 16],
            clean: true,
        };
        let mut block = header.encode();
        assert_eq!(Header::decode(&block), Ok(header));
        for bit in 0..block.len() * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&block).is_err(), "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
