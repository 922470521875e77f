//! A chunk that is being filled, and what it becomes when it is sealed.

use std::sync::Arc;

use zns_backend::DmaBuffer;

use crate::catalog::Key;
use crate::checksum;
use crate::format::chunk::{self, Class, Identity, Payload, Span, table_bytes, tail_blocks};
use crate::types::{BLOCK_SIZE, Ino, Lba, Sequence, ZoneId};

/// A chunk whose place in a zone is fixed and whose contents are growing.
pub(super) struct OpenChunk {
    pub(super) zone: ZoneId,
    pub(super) start: Lba,
    class: Class,
    limit: u64,
    buffer: DmaBuffer,
    runs: Vec<Payload>,
    crcs: Vec<u32>,
    transactions: Vec<u8>,
    transaction_count: u32,
    span: Span,
}

/// A chunk on its way to the device; its contents do not change any more.
pub(super) struct Sealed {
    pub(super) sequence: u64,
    pub(super) zone: ZoneId,
    pub(super) lba: Lba,
    pub(super) blocks: u64,
    pub(super) payload: Vec<Payload>,
    pub(super) buffer: Arc<DmaBuffer>,
}

impl OpenChunk {
    /// An empty chunk at `start` that may take up to `limit` blocks.
    pub(super) fn new(
        class: Class,
        zone: ZoneId,
        start: Lba,
        limit: u64,
        buffer: DmaBuffer,
    ) -> OpenChunk {
        debug_assert!(buffer.len() as u64 >= limit * BLOCK_SIZE as u64);
        OpenChunk {
            zone,
            start,
            class,
            limit,
            buffer,
            runs: Vec::new(),
            crcs: Vec::new(),
            transactions: Vec::new(),
            transaction_count: 0,
            span: Span::default(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.crcs.is_empty() && self.transaction_count == 0
    }

    fn payload_blocks(&self) -> u64 {
        self.crcs.len() as u64
    }

    /// First address behind the blocks it may take.
    pub(super) fn end(&self) -> Lba {
        self.start.plus(self.limit)
    }

    /// Payload blocks that still fit.
    pub(super) fn room(&self) -> u64 {
        let table = table_bytes(self.runs.len() + 1, self.limit);
        let tail = tail_blocks(table + self.transactions.len());
        self.limit.saturating_sub(1 + self.payload_blocks() + tail)
    }

    /// Whether an encoded transaction still fits.
    pub(super) fn fits_transaction(&self, bytes: usize) -> bool {
        let table = table_bytes(self.runs.len(), self.payload_blocks());
        let tail = tail_blocks(table + self.transactions.len() + bytes);
        1 + self.payload_blocks() + tail <= self.limit
    }

    fn push_block(&mut self, block: &[u8], crc: u32) -> Lba {
        let index = self.crcs.len();
        let at = (1 + index) * BLOCK_SIZE;
        self.buffer[at..at + BLOCK_SIZE].copy_from_slice(block);
        self.crcs.push(crc);
        self.start.plus(1 + index as u64)
    }

    /// Takes blocks of a file, which must fit; returns the address of the first.
    pub(super) fn push_data(&mut self, ino: Ino, first: u64, data: &[u8], crcs: &[u32]) -> Lba {
        debug_assert!(crcs.len() as u64 <= self.room());
        let blocks = crcs.len() as u32;
        match self.runs.last_mut() {
            Some(Payload::Data {
                ino: owner,
                first: start,
                count,
            }) if *owner == ino && *start + u64::from(*count) == first => {
                *count += blocks;
            }
            _ => self.runs.push(Payload::Data {
                ino,
                first,
                count: blocks,
            }),
        }
        let at = (1 + self.crcs.len()) * BLOCK_SIZE;
        self.buffer[at..at + data.len()].copy_from_slice(data);
        let lba = self.start.plus(1 + self.payload_blocks());
        self.crcs.extend_from_slice(crcs);
        lba
    }

    /// Takes a catalog node, which must fit; returns its address.
    pub(super) fn push_node(&mut self, level: u8, first_key: Key, page: &[u8; BLOCK_SIZE]) -> Lba {
        debug_assert!(self.room() > 0);
        self.runs.push(Payload::Node {
            level,
            first_key: first_key.into(),
        });
        self.push_block(page, checksum::crc32c(page))
    }

    /// Takes an encoded transaction, which must fit.
    pub(super) fn push_transaction(&mut self, bytes: &[u8]) {
        debug_assert!(self.fits_transaction(bytes.len()));
        self.transactions.extend_from_slice(bytes);
        self.transaction_count += 1;
    }

    /// Takes a part of an encoded transaction, which must fit, and nothing behind it unless it is the
    /// last one. Parts but the first go into a chunk that has no transaction yet.
    pub(super) fn push_part(&mut self, bytes: &[u8], first: bool, last: bool) {
        debug_assert!(first || self.transaction_count == 0);
        self.push_transaction(bytes);
        self.span.continues |= !first;
        self.span.goes_on = !last;
    }

    /// Copies payload blocks from `lba` on to `out` if they stand in this chunk.
    pub(super) fn copy_to(&self, lba: Lba, out: &mut [u8]) -> bool {
        let blocks = (out.len() / BLOCK_SIZE) as u64;
        let Some(offset) = lba.0.checked_sub(self.start.0) else {
            return false;
        };
        if offset == 0 || offset + blocks > 1 + self.payload_blocks() {
            return false;
        }
        let at = offset as usize * BLOCK_SIZE;
        out.copy_from_slice(&self.buffer[at..at + out.len()]);
        true
    }

    /// Writes header and tail into the buffer; the result can go to the device. Every chunk of the
    /// log before `durable` is known to be durable.
    pub(super) fn seal(mut self, fsid: &[u8; 16], sequence: u64, durable: u64) -> Sealed {
        let identity = Identity {
            sequence: Sequence(sequence),
            durable: Sequence(durable.min(sequence)),
            class: self.class,
            span: self.span,
            lba: self.start,
            origin: self.start,
        };
        let transactions = (self.transaction_count, self.transactions.as_slice());
        let blocks = chunk::seal(
            &mut self.buffer,
            fsid,
            &identity,
            &self.runs,
            &self.crcs,
            transactions,
        );
        Sealed {
            sequence,
            zone: self.zone,
            lba: self.start,
            blocks,
            payload: self.runs,
            buffer: Arc::new(self.buffer),
        }
    }
}

impl Sealed {
    /// The bytes that go to the device.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.blocks as usize * BLOCK_SIZE]
    }

    /// Copies payload blocks from `lba` on to `out` if they stand in this chunk. Blocks are found
    /// at the address they were first given.
    pub(super) fn copy_to(&self, lba: Lba, out: &mut [u8]) -> bool {
        let Some(offset) = lba.0.checked_sub(self.lba.0) else {
            return false;
        };
        if (offset + (out.len() / BLOCK_SIZE) as u64) > self.blocks {
            return false;
        }
        let at = offset as usize * BLOCK_SIZE;
        out.copy_from_slice(&self.buffer[at..at + out.len()]);
        true
    }
}
