//! Chunks: the unit of writing of the log.
//!
//! A chunk is one contiguous device write of up to [`CHUNK_BLOCKS`] blocks:
//!
//! ```text
//! | header block | payload block 0 | .. | payload block P-1 | tail block 0 | .. | tail block T-1 |
//! ```
//!
//! The header block holds a [`ChunkHeader`] and the first bytes of the *body*; the rest of the body
//! fills the tail blocks. So a small commit is one header block and its data, and the address of a
//! payload block is known when it enters the chunk, before the size of the body is.
//!
//! The body is the payload table (runs of blocks with their owners), the CRC32C of every payload
//! block, and the transactions. The header's CRC32C covers header and body.
//!
//! A transaction that is too long for one chunk is a run of parts, one in each of consecutive hot chunks:
//! the last transaction of the first, all of those between, and the first of the last ([`Span`]).

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{FORMAT_VERSION, corrupt, decode_from, encode_into};
use crate::catalog::{Key, Kind};
use crate::checksum;
use crate::error::Result;
use crate::types::{BLOCK_SIZE, Ino, Lba, Sequence};

/// Most blocks in a chunk: 1 MiB.
pub const CHUNK_BLOCKS: u64 = 256;
/// Bytes of body that fit into the header block.
pub const HEADER_ROOM: usize = BLOCK_SIZE - size_of::<ChunkHeader>();

const MAGIC: [u8; 8] = *b"WRNCHUNK";
const WHAT: &str = "chunk";

/// Sequence numbers stay below this; a device wears out long before.
pub const SEQUENCE_LIMIT: u64 = 1 << 62;

/// What a zone and the chunks in it are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Class {
    /// User writes and all transactions; these chunks form the log.
    Hot = 1,
    /// File blocks that the collector moved.
    Cold = 2,
    /// Catalog nodes of checkpoints.
    Node = 3,
}

/// Head of the header block.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ChunkHeader {
    magic: [u8; 8],
    fsid: [u8; 16],
    sequence: U64,
    durable: U64,
    lba: U64,
    origin: U64,
    version: U32,
    body_bytes: U32,
    payload_blocks: U32,
    transactions: U32,
    class: u8,
    span: u8,
    reserved: [u8; 2],
    crc: U32,
}

const _: () = assert!(size_of::<ChunkHeader>() == 80);

/// Owner of a run of payload blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Payload {
    /// Blocks of a file, from `first` on.
    Data {
        /// The file.
        ino: Ino,
        /// First file block.
        first: u64,
        /// Number of blocks.
        count: u32,
    },
    /// One catalog node.
    Node {
        /// Height above the leaves.
        level: u8,
        /// First key below it.
        first_key: WireKey,
    },
}

impl Payload {
    /// Number of payload blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        match self {
            Payload::Data { count, .. } => u64::from(*count),
            Payload::Node { .. } => 1,
        }
    }
}

/// A catalog key in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireKey {
    ino: u64,
    offset: u64,
    kind: u8,
}

impl From<Key> for WireKey {
    fn from(key: Key) -> WireKey {
        WireKey {
            ino: key.ino.0,
            offset: key.offset,
            kind: key.kind as u8,
        }
    }
}

impl WireKey {
    /// The key.
    ///
    /// # Errors
    /// `Corrupt` if the kind is unknown.
    pub fn key(self) -> Result<Key> {
        let kind = Kind::from_u8(self.kind)
            .ok_or_else(|| corrupt(WHAT, format!("unknown record kind {}", self.kind)))?;
        Ok(Key::new(Ino(self.ino), kind, self.offset))
    }
}

/// One change of the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Set a record.
    Put {
        /// Its key.
        key: WireKey,
        /// Its value.
        #[serde(with = "serde_bytes")]
        value: Vec<u8>,
    },
    /// Remove a record.
    Delete {
        /// Its key.
        key: WireKey,
    },
    /// Remove all records from `from` to `to`, both included.
    DeleteRange {
        /// First key.
        from: WireKey,
        /// Last key.
        to: WireKey,
    },
}

impl Op {
    /// Bytes of the encoded operation, an upper bound.
    #[must_use]
    pub fn encoded_len_max(&self) -> usize {
        // The index of the variant, up to two keys, the length of the value.
        let fixed = 4 + 2 * 17 + 8;
        match self {
            Op::Put { value, .. } => fixed + value.len(),
            Op::Delete { .. } | Op::DeleteRange { .. } => fixed,
        }
    }
}

/// The changes of one transaction and the inode counter after it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// Next inode number that is free.
    pub next_ino: u64,
    /// Changes in order.
    pub ops: Vec<Op>,
}

/// Number of blocks a body of `bytes` takes behind the payload.
#[must_use]
pub fn tail_blocks(bytes: usize) -> u64 {
    bytes.saturating_sub(HEADER_ROOM).div_ceil(BLOCK_SIZE) as u64
}

/// How the transactions of a chunk go on from and into its neighbours in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// The first transaction is a further part of the last one of the chunk before.
    pub continues: bool,
    /// The last transaction is a part, which the first one of the next chunk continues. If that chunk
    /// does not say so too, the transaction never happened.
    pub goes_on: bool,
}

impl Span {
    fn to_byte(self) -> u8 {
        u8::from(self.continues) | u8::from(self.goes_on) << 1
    }

    fn from_byte(byte: u8) -> Option<Span> {
        (byte < 4).then_some(Span {
            continues: byte & 1 != 0,
            goes_on: byte & 2 != 0,
        })
    }
}

/// What the writer of a chunk says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Position in the log; for cold and node chunks the position when they were written.
    pub sequence: Sequence,
    /// Every chunk of the log before this one was durable when the chunk was sealed: a recovery
    /// that finds this chunk and cannot get as far has lost acknowledged data.
    pub durable: Sequence,
    /// Use of the chunk.
    pub class: Class,
    /// Transactions that it has parts of.
    pub span: Span,
    /// Address of the header block.
    pub lba: Lba,
    /// Where the chunk was first meant to be.
    pub origin: Lba,
}

/// What a chunk says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkInfo {
    /// Position in the log; for cold and node chunks the position when they were written.
    pub sequence: Sequence,
    /// Every chunk of the log before this one was durable when the chunk was sealed.
    pub durable: Sequence,
    /// Use of the chunk.
    pub class: Class,
    /// Transactions that it has parts of.
    pub span: Span,
    /// Address of the header block.
    pub lba: Lba,
    /// Where the chunk was first meant to be; differs from `lba` after a failed write.
    pub origin: Lba,
    /// Number of payload blocks.
    pub payload_blocks: u64,
    /// Number of blocks in all.
    pub blocks: u64,
}

/// A parsed header block.
pub struct ParsedHeader {
    /// The chunk.
    pub info: ChunkInfo,
    header: ChunkHeader,
    body_head: Vec<u8>,
}

/// The decoded body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    /// Owners of the payload blocks, in order.
    pub payload: Vec<Payload>,
    /// CRC32C of every payload block.
    pub crcs: Vec<u32>,
    /// Transactions, in order.
    pub transactions: Vec<Transaction>,
}

/// Size of the encoded payload table and checksums, an upper bound.
#[must_use]
pub fn table_bytes(runs: usize, blocks: u64) -> usize {
    16 + runs * 24 + blocks as usize * 4
}

/// Writes header and body of a chunk whose payload already stands in `buffer` from the second
/// block on; returns the number of blocks of the whole chunk.
///
/// # Panics
/// If the chunk does not fit `buffer`: the caller keeps account of the room.
pub fn seal(
    buffer: &mut [u8],
    fsid: &[u8; 16],
    identity: &Identity,
    payload: &[Payload],
    crcs: &[u32],
    transactions: (u32, &[u8]),
) -> u64 {
    let mut body =
        Vec::with_capacity(table_bytes(payload.len(), crcs.len() as u64) + transactions.1.len());
    encode_into(&mut body, &payload);
    encode_into(&mut body, &crcs);
    body.extend_from_slice(transactions.1);
    let mut header = ChunkHeader {
        magic: MAGIC,
        fsid: *fsid,
        sequence: identity.sequence.0.into(),
        durable: identity.durable.0.into(),
        lba: identity.lba.0.into(),
        origin: identity.origin.0.into(),
        version: FORMAT_VERSION.into(),
        body_bytes: (body.len() as u32).into(),
        payload_blocks: (crcs.len() as u32).into(),
        transactions: transactions.0.into(),
        class: identity.class as u8,
        span: identity.span.to_byte(),
        reserved: [0; 2],
        crc: 0.into(),
    };
    header.crc = checksum::crc32c_append(checksum::crc32c(header.as_bytes()), &body).into();

    let (head, tail) = body.split_at(body.len().min(HEADER_ROOM));
    let head_start = size_of::<ChunkHeader>();
    buffer[..head_start].copy_from_slice(header.as_bytes());
    buffer[head_start..head_start + head.len()].copy_from_slice(head);
    buffer[head_start + head.len()..BLOCK_SIZE].fill(0);
    let tail_start = (1 + crcs.len()) * BLOCK_SIZE;
    let blocks = 1 + crcs.len() as u64 + tail_blocks(body.len());
    let end = blocks as usize * BLOCK_SIZE;
    buffer[tail_start..tail_start + tail.len()].copy_from_slice(tail);
    buffer[tail_start + tail.len()..end].fill(0);
    blocks
}

/// Changes the address of a sealed chunk; its origin stays.
///
/// # Errors
/// `Corrupt` if `buffer` holds no chunk.
pub fn readdress(buffer: &mut [u8], lba: Lba) -> Result<()> {
    let cut_short = || corrupt(WHAT, "cut short");
    let (mut header, rest) = ChunkHeader::read_from_prefix(&*buffer).map_err(|_| cut_short())?;
    let body_bytes = header.body_bytes.get() as usize;
    let head = rest
        .get(..body_bytes.min(HEADER_ROOM))
        .ok_or_else(cut_short)?;
    let tail_start = (1 + header.payload_blocks.get() as usize) * BLOCK_SIZE;
    let tail = buffer
        .get(tail_start..)
        .and_then(|bytes| bytes.get(..body_bytes - head.len()))
        .ok_or_else(cut_short)?;
    header.lba = lba.0.into();
    header.crc = 0.into();
    let crc = checksum::crc32c_append(checksum::crc32c(header.as_bytes()), head);
    header.crc = checksum::crc32c_append(crc, tail).into();
    buffer[..size_of::<ChunkHeader>()].copy_from_slice(header.as_bytes());
    Ok(())
}

/// Reads the header block that stands at `lba`. `None`: there is no chunk of this filesystem.
#[must_use]
pub fn parse_header(block: &[u8], lba: Lba, fsid: &[u8; 16]) -> Option<ParsedHeader> {
    let (header, rest) = ChunkHeader::read_from_prefix(block).ok()?;
    if header.magic != MAGIC
        || header.fsid != *fsid
        || header.version.get() != FORMAT_VERSION
        || header.lba.get() != lba.0
        || header.sequence.get() >= SEQUENCE_LIMIT
        || header.durable.get() > header.sequence.get()
    {
        return None;
    }
    let class = match header.class {
        1 => Class::Hot,
        2 => Class::Cold,
        3 => Class::Node,
        _ => return None,
    };
    let span = Span::from_byte(header.span)?;
    let body_bytes = header.body_bytes.get() as usize;
    let payload_blocks = u64::from(header.payload_blocks.get());
    let blocks = 1 + payload_blocks + tail_blocks(body_bytes);
    if blocks > CHUNK_BLOCKS {
        return None;
    }
    Some(ParsedHeader {
        info: ChunkInfo {
            sequence: Sequence(header.sequence.get()),
            durable: Sequence(header.durable.get()),
            class,
            span,
            lba,
            origin: Lba(header.origin.get()),
            payload_blocks,
            blocks,
        },
        header,
        body_head: rest[..body_bytes.min(HEADER_ROOM)].to_vec(),
    })
}

impl ParsedHeader {
    /// Address of the tail blocks and their number.
    #[must_use]
    pub fn tail(&self) -> (Lba, u64) {
        let start = self.info.lba.plus(1 + self.info.payload_blocks);
        (start, self.info.blocks - 1 - self.info.payload_blocks)
    }

    /// Checks and decodes the body; `tail` is the contents of the tail blocks.
    ///
    /// # Errors
    /// `Corrupt` if the checksum or a record is wrong.
    pub fn body(&self, tail: &[u8]) -> Result<Body> {
        let bad = |detail: &str| corrupt(WHAT, format!("LBA {}: {detail}", self.info.lba));
        let mut bytes = self.body_head.clone();
        let rest = self.header.body_bytes.get() as usize - bytes.len();
        bytes.extend_from_slice(
            tail.get(..rest)
                .ok_or_else(|| bad("the tail is cut short"))?,
        );
        let mut header = self.header;
        header.crc = 0.into();
        if checksum::crc32c_append(checksum::crc32c(header.as_bytes()), &bytes)
            != self.header.crc.get()
        {
            return Err(bad("header checksum mismatch"));
        }
        let (payload, rest): (Vec<Payload>, _) = decode_from(&bytes, WHAT)?;
        let (crcs, mut rest): (Vec<u32>, _) = decode_from(rest, WHAT)?;
        let blocks: u64 = payload.iter().map(Payload::blocks).sum();
        if blocks != self.info.payload_blocks || crcs.len() as u64 != blocks {
            return Err(bad("the payload table does not match the payload"));
        }
        let mut transactions = Vec::new();
        for _ in 0..self.header.transactions.get() {
            let (transaction, behind) = decode_from(rest, WHAT)?;
            transactions.push(transaction);
            rest = behind;
        }
        if !rest.is_empty() {
            return Err(bad("bytes behind the last transaction"));
        }
        Ok(Body {
            payload,
            crcs,
            transactions,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(transactions: usize, payload_blocks: u32) -> (Vec<u8>, u64, Body) {
        let payload = vec![
            Payload::Data {
                ino: Ino(7),
                first: 3,
                count: payload_blocks - 1,
            },
            Payload::Node {
                level: 1,
                first_key: Key::new(Ino(9), Kind::Extent, 1).into(),
            },
        ];
        let mut buffer = vec![0xaa; CHUNK_BLOCKS as usize * BLOCK_SIZE];
        let crcs: Vec<u32> = (0..payload_blocks).collect();
        let records: Vec<Transaction> = (0..transactions)
            .map(|i| Transaction {
                next_ino: i as u64,
                ops: vec![Op::Put {
                    key: Key::new(Ino(1), Kind::Inode, 0).into(),
                    value: vec![i as u8; 100],
                }],
            })
            .collect();
        let mut bytes = Vec::new();
        for record in &records {
            encode_into(&mut bytes, record);
        }
        let identity = Identity {
            sequence: Sequence(5),
            durable: Sequence(4),
            class: Class::Hot,
            span: Span::default(),
            lba: Lba(64),
            origin: Lba(64),
        };
        let blocks = seal(
            &mut buffer,
            &[3; 16],
            &identity,
            &payload,
            &crcs,
            (records.len() as u32, &bytes),
        );
        (
            buffer,
            blocks,
            Body {
                payload,
                crcs,
                transactions: records,
            },
        )
    }

    fn parse(buffer: &[u8]) -> Result<Body> {
        let header = parse_header(&buffer[..BLOCK_SIZE], Lba(64), &[3; 16]).expect("header");
        let (tail, blocks) = header.tail();
        let at = (tail.0 - 64) as usize * BLOCK_SIZE;
        header.body(&buffer[at..at + blocks as usize * BLOCK_SIZE])
    }

    #[test]
    fn small_commit_takes_header_and_payload_only() {
        let (buffer, blocks, body) = sample(3, 2);
        assert_eq!(blocks, 3);
        assert_eq!(parse(&buffer).unwrap(), body);
    }

    #[test]
    fn long_body_continues_in_the_tail() {
        let (buffer, blocks, body) = sample(200, 5);
        assert!(blocks > 6);
        assert_eq!(parse(&buffer).unwrap(), body);
        assert!(
            table_bytes(2, 5) >= {
                let mut out = Vec::new();
                encode_into(&mut out, &body.payload);
                encode_into(&mut out, &body.crcs);
                out.len()
            }
        );
    }

    #[test]
    fn readdressed_chunk_is_found_at_its_new_place_and_knows_its_origin() {
        let (mut buffer, _, body) = sample(200, 5);
        readdress(&mut buffer, Lba(1000)).unwrap();
        assert!(parse_header(&buffer[..BLOCK_SIZE], Lba(64), &[3; 16]).is_none());
        let header = parse_header(&buffer[..BLOCK_SIZE], Lba(1000), &[3; 16]).unwrap();
        assert_eq!(header.info.origin, Lba(64));
        let at = (header.tail().0.0 - 1000) as usize * BLOCK_SIZE;
        assert_eq!(header.body(&buffer[at..]).unwrap(), body);
    }

    #[test]
    fn every_flipped_bit_of_header_and_body_is_noticed() {
        let (mut buffer, _, body) = sample(1, 2);
        let used = size_of::<ChunkHeader>() + 300;
        for bit in 0..used * 8 {
            buffer[bit / 8] ^= 1 << (bit % 8);
            let parsed = parse_header(&buffer[..BLOCK_SIZE], Lba(64), &[3; 16]);
            if let Some(header) = parsed {
                let tail = vec![0; header.tail().1 as usize * BLOCK_SIZE];
                if let Ok(found) = header.body(&tail) {
                    assert_eq!(found, body, "bit {bit} went unnoticed");
                }
            }
            buffer[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
