//! Checkpoint records, appended to the anchor zones.
//!
//! A record is a whole number of blocks: a header, the bincode-encoded [`Checkpoint`],
//! zeros, and at the very end of the last block a trailer, so that the newest record is
//! found from the write pointer backwards. The header's CRC32C covers header and body; the trailer
//! repeats it and has one of its own, so that of a damaged record it is still known how far the log
//! reached.

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use zns_backend::{Geometry, Lba};

use super::chunk::{Class, SEQUENCE_LIMIT};
use super::{FORMAT_VERSION, corrupt, decode_from, encode_into};
use crate::checksum;
use crate::error::Result;
use crate::types::BLOCK_SIZE;

const MAGIC: [u8; 8] = *b"WRNCHKPT";
const TRAILER_MAGIC: [u8; 8] = *b"WRNCKEND";
const WHAT: &str = "checkpoint";

/// Zones 0 and 1 hold superblocks and checkpoint records.
pub const ANCHORS: u32 = 2;
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
    reached: U64,
    blocks: U32,
    crc: U32,
    self_crc: U32,
    reserved: U32,
}

/// What the end of a record says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Number of the checkpoint.
    pub number: u64,
    /// Every chunk of the log before this one was durable before the record was written.
    pub reached: u64,
    /// Blocks of the record.
    pub blocks: u64,
}

const _: () = assert!(size_of::<RecordHeader>() == 40);
const _: () = assert!(size_of::<RecordTrailer>() == 40);

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
    /// The blocks of the record. Every chunk of the log before `reached` is durable: all before
    /// `next_sequence`, unless recovery skipped some.
    #[must_use]
    pub fn to_blocks(&self, fsid: &[u8; 16], reached: u64) -> Vec<u8> {
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
        let crc = checksum::crc32c_append(checksum::crc32c(header.as_bytes()), &body);
        header.crc = crc.into();
        let mut trailer = RecordTrailer {
            magic: TRAILER_MAGIC,
            number: self.number.into(),
            reached: reached.into(),
            blocks: (blocks as u32).into(),
            crc: crc.into(),
            self_crc: 0.into(),
            reserved: 0.into(),
        };
        trailer.self_crc = checksum::crc32c(trailer.as_bytes()).into();
        let mut out = Vec::with_capacity(blocks * BLOCK_SIZE);
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(&body);
        out.resize(blocks * BLOCK_SIZE - size_of::<RecordTrailer>(), 0);
        out.extend_from_slice(trailer.as_bytes());
        out
    }

    /// If `block` ends a record: what that is.
    #[must_use]
    pub fn parse_trailer(block: &[u8]) -> Option<Trailer> {
        let at = block.len().checked_sub(size_of::<RecordTrailer>())?;
        let mut trailer = RecordTrailer::read_from_bytes(&block[at..]).ok()?;
        let expected = trailer.self_crc.get();
        trailer.self_crc = 0.into();
        let blocks = u64::from(trailer.blocks.get());
        let sound = trailer.magic == TRAILER_MAGIC
            && checksum::crc32c(trailer.as_bytes()) == expected
            && (1..=RECORD_BLOCKS_MAX).contains(&blocks);
        sound.then(|| Trailer {
            number: trailer.number.get(),
            reached: trailer.reached.get(),
            blocks,
        })
    }

    /// Reads and checks a record.
    ///
    /// # Errors
    /// `Corrupt` naming what is wrong.
    pub fn parse(bytes: &[u8], fsid: &[u8; 16], geometry: &Geometry) -> Result<Checkpoint> {
        let (mut header, rest) = RecordHeader::read_from_prefix(bytes)
            .map_err(|_| corrupt(WHAT, "the record is cut short"))?;
        let expected = header.crc.get();
        header.crc = 0.into();
        let body = rest
            .get(..header.body_bytes.get() as usize)
            .ok_or_else(|| corrupt(WHAT, "the record is cut short"))?;
        if header.magic != MAGIC
            || header.fsid != *fsid
            || checksum::crc32c_append(checksum::crc32c(header.as_bytes()), body) != expected
        {
            return Err(corrupt(WHAT, "checksum mismatch"));
        }
        let (this, _): (Checkpoint, _) = decode_from(body, WHAT)?;
        match this.impossibility(geometry) {
            Some(detail) => Err(corrupt(WHAT, detail)),
            None => Ok(this),
        }
    }

    /// The first thing that cannot be on a device of this shape, whoever computed the checksum.
    fn impossibility(&self, geometry: &Geometry) -> Option<String> {
        let (found, zones) = (self.zones.len(), geometry.zones);
        if found != zones as usize {
            return Some(format!("{found} zone records for {zones} zones"));
        }
        for (limited, name) in [
            (self.number, "number"),
            (self.next_sequence, "next sequence"),
            (self.next_ino, "next inode"),
        ] {
            if limited >= SEQUENCE_LIMIT {
                return Some(format!("{name} {limited}"));
            }
        }
        if self.reserved > geometry.blocks() {
            return Some(format!("{} blocks reserved", self.reserved));
        }
        let root = Lba(self.root_lba);
        let root_zone = geometry.zone_of(root);
        let written = self.zones.get(root_zone.0 as usize).map(|z| z.pointer);
        if written.is_none_or(|pointer| geometry.offset_of(root) >= pointer) {
            return Some(format!("root at LBA {root}"));
        }
        let bad = self.zones.iter().zip(0..).find(|(zone, id)| {
            zone.pointer > geometry.zone_capacity
                || zone.live > zone.pointer
                || zone.age >= SEQUENCE_LIMIT
                || (zone.usage == ZoneUse::Anchor) != (*id < ANCHORS)
                || (matches!(zone.usage, ZoneUse::Free | ZoneUse::Anchor) && zone.live > 0)
        });
        bad.map(|(zone, id)| format!("zone {id}: {zone:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(zones: u32) -> Geometry {
        Geometry {
            block_size: BLOCK_SIZE as u32,
            zones,
            zone_size: 64,
            zone_capacity: 48,
            max_open: 0,
            max_active: 0,
            max_append: 0,
        }
    }

    fn sample(zones: usize) -> Checkpoint {
        let record = |id| ZoneRecord {
            usage: if id < ANCHORS as usize {
                ZoneUse::Anchor
            } else {
                ZoneUse::Open(Class::Cold)
            },
            pointer: 3,
            live: if id < ANCHORS as usize { 0 } else { 2 },
            age: 1,
        };
        Checkpoint {
            number: 9,
            next_sequence: 77,
            root_lba: 2 * 64 + 1,
            root_crc: 5,
            root_height: 2,
            next_ino: 99,
            reserved: 0,
            clean: true,
            zones: (0..zones).map(record).collect(),
        }
    }

    #[test]
    fn record_survives_the_round_trip_at_every_size() {
        for zones in [3, 100, 200, 1000] {
            let record = sample(zones);
            let bytes = record.to_blocks(&[1; 16], 77);
            let last = &bytes[bytes.len() - BLOCK_SIZE..];
            let trailer = Checkpoint::parse_trailer(last).unwrap();
            assert_eq!((trailer.number, trailer.reached), (9, 77));
            assert_eq!(trailer.blocks as usize, bytes.len() / BLOCK_SIZE);
            assert_eq!(
                Checkpoint::parse(&bytes, &[1; 16], &geometry(zones as u32)).unwrap(),
                record
            );
        }
    }

    #[test]
    fn flipped_bits_are_noticed() {
        let record = sample(20);
        let mut bytes = record.to_blocks(&[1; 16], 77);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(found) = Checkpoint::parse(&bytes, &[1; 16], &geometry(20)) {
                assert_eq!(found, record, "bit {bit}");
            }
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
