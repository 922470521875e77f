//! Checkpoint records, appended to the anchor zones.
//!
//! A record is a whole number of blocks: a header, the bincode-encoded [`Checkpoint`],
//! zeros, and at the very end of the last block a trailer, so that the newest record is
//! found from the write pointer backwards. The header's CRC32C covers header and body; the trailer
//! repeats it.

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{FORMAT_VERSION, chunk::Class, corrupt, decode_from, encode_into};
use crate::error::Result;
use crate::types::BLOCK_SIZE;

const MAGIC: [u8; 8] = *b"WRNCHKPT";
const TRAILER_MAGIC: [u8; 8] = *b"WRNCKEND";
const WHAT: &str = "checkpoint";

/// Most blocks of one record (64 MiB: more zones than any device has).
pub const RECORD_BLOCKS_MAX: u64 = 16 << 10;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RecordHeader {
    magic: [u8; 8],
    fsid: [u8; 16],
    version: U32,
    blocks: U32,
    body_bytes: U32,
    crc: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RecordTrailer {
    magic: [u8; 8],
    number: U64,
    blocks: U32,
    crc: U32,
    self_crc: U32,
    reserved: U32,
}

const _: () = assert!(size_of::<RecordHeader>() == 40);
const _: () = assert!(size_of::<RecordTrailer>() == 32);

/// What a zone is used as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ZoneUse {
    /// Holds nothing; its first chunk decides what it becomes.
    Free,
    /// Holds superblock and checkpoint records.
    Anchor,
    /// Takes chunks of its class.
    Open(Class),
    /// Takes nothing more.
    Sealed(Class),
    /// Failed a write; what is live in it can still be read, nothing is written again.
    Retired,
}

/// A zone at the time of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneRecord {
    /// Its use.
    pub usage: ZoneUse,
    /// Blocks given to chunks.
    pub pointer: u64,
    /// Blocks the catalog maps.
    pub live: u64,
    /// Log position of the newest data in it.
    pub age: u64,
}

/// Everything recovery starts from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Grows by one per checkpoint.
    pub number: u64,
    /// The catalog contains every transaction of chunks before this one.
    pub next_sequence: u64,
    /// Address of the root node.
    pub root_lba: u64,
    /// CRC32C of the root node.
    pub root_crc: u32,
    /// Levels of the tree.
    pub root_height: u8,
    /// Next free inode number.
    pub next_ino: u64,
    /// Blocks promised to files and not written.
    pub reserved: u64,
    /// Written by a clean unmount: nothing was logged behind it.
    pub clean: bool,
    /// One record per zone.
    pub zones: Vec<ZoneRecord>,
}

impl Checkpoint {
    /// The blocks of the record.
    #[must_use]
    pub fn to_blocks(&self, fsid: &[u8; 16]) -> Vec<u8> {
        let mut body = Vec::new();
        encode_into(&mut body, self);
        let bytes = size_of::<RecordHeader>() + body.len() + size_of::<RecordTrailer>();
        let blocks = bytes.div_ceil(BLOCK_SIZE);
        let mut header = RecordHeader {
            magic: MAGIC,
            fsid: *fsid,
            version: FORMAT_VERSION.into(),
            blocks: (blocks as u32).into(),
            body_bytes: (body.len() as u32).into(),
            crc: 0.into(),
        };
        let crc = crc32c::crc32c_append(crc32c::crc32c(header.as_bytes()), &body);
        header.crc = crc.into();
        let mut trailer = RecordTrailer {
            magic: TRAILER_MAGIC,
            number: self.number.into(),
            blocks: (blocks as u32).into(),
            crc: crc.into(),
            self_crc: 0.into(),
            reserved: 0.into(),
        };
        trailer.self_crc = crc32c::crc32c(trailer.as_bytes()).into();
        let mut out = Vec::with_capacity(blocks * BLOCK_SIZE);
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(&body);
        out.resize(blocks * BLOCK_SIZE - size_of::<RecordTrailer>(), 0);
        out.extend_from_slice(trailer.as_bytes());
        out
    }

    /// If `block` ends a record: its number and how many blocks it has.
    #[must_use]
    pub fn parse_trailer(block: &[u8]) -> Option<(u64, u64)> {
        let at = block.len().checked_sub(size_of::<RecordTrailer>())?;
        let mut trailer = RecordTrailer::read_from_bytes(&block[at..]).ok()?;
        let expected = trailer.self_crc.get();
        trailer.self_crc = 0.into();
        let blocks = u64::from(trailer.blocks.get());
        let sound = trailer.magic == TRAILER_MAGIC
            && crc32c::crc32c(trailer.as_bytes()) == expected
            && (1..=RECORD_BLOCKS_MAX).contains(&blocks);
        sound.then(|| (trailer.number.get(), blocks))
    }

    /// Reads and checks a record.
    ///
    /// # Errors
    /// `Corrupt` naming what is wrong.
    pub fn parse(bytes: &[u8], fsid: &[u8; 16], zones: u32) -> Result<Checkpoint> {
        let (mut header, rest) = RecordHeader::read_from_prefix(bytes)
            .map_err(|_| corrupt(WHAT, "the record is cut short"))?;
        let expected = header.crc.get();
        header.crc = 0.into();
        let body = rest
            .get(..header.body_bytes.get() as usize)
            .ok_or_else(|| corrupt(WHAT, "the record is cut short"))?;
        if header.magic != MAGIC
            || header.fsid != *fsid
            || crc32c::crc32c_append(crc32c::crc32c(header.as_bytes()), body) != expected
        {
            return Err(corrupt(WHAT, "checksum mismatch"));
        }
        let (this, _): (Checkpoint, _) = decode_from(body, WHAT)?;
        if this.zones.len() != zones as usize {
            return Err(corrupt(
                WHAT,
                format!("{} zone records for {zones} zones", this.zones.len()),
            ));
        }
        Ok(this)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(zones: usize) -> Checkpoint {
        Checkpoint {
            number: 9,
            next_sequence: 77,
            root_lba: 1234,
            root_crc: 5,
            root_height: 2,
            next_ino: 99,
            reserved: 0,
            clean: true,
            zones: vec![
                ZoneRecord {
                    usage: ZoneUse::Open(Class::Cold),
                    pointer: 3,
                    live: 2,
                    age: 1
                };
                zones
            ],
        }
    }

    #[test]
    fn record_survives_the_round_trip_at_every_size() {
        for zones in [2, 100, 200, 1000] {
            let record = sample(zones);
            let bytes = record.to_blocks(&[1; 16]);
            let last = &bytes[bytes.len() - BLOCK_SIZE..];
            let (number, blocks) = Checkpoint::parse_trailer(last).unwrap();
            assert_eq!((number, blocks as usize), (9, bytes.len() / BLOCK_SIZE));
            assert_eq!(
                Checkpoint::parse(&bytes, &[1; 16], zones as u32).unwrap(),
                record
            );
        }
    }

    #[test]
    fn flipped_bits_are_noticed() {
        let record = sample(20);
        let mut bytes = record.to_blocks(&[1; 16]);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(found) = Checkpoint::parse(&bytes, &[1; 16], 20) {
                assert_eq!(found, record, "bit {bit}");
            }
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
