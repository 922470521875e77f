//! Bytes of a file as a map of blocks. All-zero blocks are never kept, so files may be far larger
//! than memory, and two files with the same bytes have the same blocks.

use std::collections::BTreeMap;
use std::sync::Arc;

const BLOCK: u64 = 4096;

/// A block and its checksum, shared between copies of a file.
#[derive(Clone, Debug)]
struct Block {
    bytes: Arc<[u8]>,
    crc: u32,
}

/// Size and bytes of a file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contents {
    size: u64,
    blocks: BTreeMap<u64, Block>,
}

impl Contents {
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Checksums of the blocks that are not all zero.
    pub(crate) fn checksums(&self) -> BTreeMap<u64, u32> {
        self.blocks.iter().map(|(i, b)| (*i, b.crc)).collect()
    }

    /// Up to `len` bytes from `offset`; short at the end of the file.
    pub(crate) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let end = (offset + len as u64).min(self.size);
        let mut out = vec![0; end.saturating_sub(offset) as usize];
        for (index, within, at) in pieces(offset, end) {
            if let Some(block) = self.blocks.get(&index) {
                out[at..at + within.len()].copy_from_slice(&block.bytes[within]);
            }
        }
        out
    }

    /// Whether `[from, to)` holds nothing but zeros.
    pub(crate) fn is_zero(&self, from: u64, to: u64) -> bool {
        let touched = self
            .blocks
            .range(from / BLOCK..to.div_ceil(BLOCK).max(from / BLOCK));
        touched.into_iter().all(|(index, block)| {
            let start = index * BLOCK;
            let (from, to) = (from.max(start), to.min(start + BLOCK).max(from.max(start)));
            let within = (from - start) as usize..(to - start) as usize;
            block.bytes[within].iter().all(|b| *b == 0)
        })
    }

    /// Writes `data`, growing the file if it ends behind its end. Nothing happens without data.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        let end = offset + data.len() as u64;
        for (index, within, at) in pieces(offset, end) {
            let piece = &data[at..at + within.len()];
            self.change(index, |block| block[within].copy_from_slice(piece));
        }
        if !data.is_empty() {
            self.size = self.size.max(end);
        }
    }

    /// Makes `[from, to)` zero, as far as the file goes.
    pub(crate) fn zero(&mut self, from: u64, to: u64) {
        let to = to.min(self.size);
        let touched: Vec<u64> = self
            .blocks
            .range(from / BLOCK..to.div_ceil(BLOCK).max(from / BLOCK))
            .map(|(index, _)| *index)
            .collect();
        for index in touched {
            let start = index * BLOCK;
            let within = from.max(start)..to.min(start + BLOCK);
            if !within.is_empty() {
                let within = (within.start - start) as usize..(within.end - start) as usize;
                self.change(index, |block| block[within].fill(0));
            }
        }
    }

    pub(crate) fn resize(&mut self, size: u64) {
        if size < self.size {
            self.zero(size, self.size);
        }
        self.size = size;
    }

    fn change(&mut self, index: u64, edit: impl FnOnce(&mut [u8])) {
        let mut bytes = match self.blocks.get(&index) {
            Some(block) => block.bytes.to_vec(),
            None => vec![0; BLOCK as usize],
        };
        edit(&mut bytes);
        if bytes.iter().all(|b| *b == 0) {
            self.blocks.remove(&index);
        } else {
            let crc = crc32c::crc32c(&bytes);
            let bytes = bytes.into();
            self.blocks.insert(index, Block { bytes, crc });
        }
    }
}

/// Cuts `[from, to)` at block boundaries: block, range within the block, offset from `from`.
fn pieces(from: u64, to: u64) -> impl Iterator<Item = (u64, std::ops::Range<usize>, usize)> {
    let mut at = from;
    std::iter::from_fn(move || {
        if at >= to {
            return None;
        }
        let (index, start) = (at / BLOCK, at % BLOCK);
        let len = (BLOCK - start).min(to - at);
        let piece = (
            index,
            start as usize..(start + len) as usize,
            (at - from) as usize,
        );
        at += len;
        Some(piece)
    })
}
