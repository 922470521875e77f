//! The bytes of a log file.
//!
//! ```text
//!  block 0, header:     crc u32 | version u32 | magic u64 | file id u64 | generation u64
//!  then batches:        a descriptor, and as many page images as it lists
//!  descriptor:          crc u32 | count u32 | magic u64 | generation u64 | sequence u64
//!                       | crc of the descriptor before u32 | flags u32 (1: a commit ends here)
//!                       | number of the last commit before u64 | page count u64
//!                       | entries: page u64, crc of its image u32
//! ```
//!
//! A batch belongs to the log if its generation is the header's, its sequence follows on, it names the
//! checksum of the descriptor before, and every image has the checksum that it lists. Whatever an
//! earlier use of the file left behind has another generation.

use crate::meta::COMMIT_MAX;
use crate::page::{PAGE_BYTES, PageBuf, PageId, PageRead};

const HEADER_MAGIC: u64 = u64::from_le_bytes(*b"vmc-log\0");
const BATCH_MAGIC: u64 = u64::from_le_bytes(*b"vmcbatch");
const VERSION: u32 = 1;
const ENTRIES_AT: usize = 56;
const ENTRY_BYTES: usize = 12;
const COMMIT: u32 = 1;
/// Most images behind one descriptor.
pub(super) const BATCH_PAGES_MAX: usize = 256;

const _: () = assert!(ENTRIES_AT + BATCH_PAGES_MAX * ENTRY_BYTES <= PAGE_BYTES);

/// The first block of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) file_id: u64,
    /// Grows with every use of either log.
    pub(super) generation: u64,
}

fn close(mut block: PageBuf) -> PageBuf {
    let crc = block.checksum();
    block.put_u32(0, crc);
    block
}

impl Header {
    pub(super) fn encode(self) -> PageBuf {
        let mut block = PageBuf::zeroed();
        block.put_u32(4, VERSION);
        block.put_u64(8, HEADER_MAGIC);
        block.put_u64(16, self.file_id);
        block.put_u64(24, self.generation);
        close(block)
    }

    /// None when the block is not a header, or was torn when the log was started afresh, which is only
    /// done when nothing in it is needed.
    pub(super) fn decode(block: &PageBuf) -> Option<Header> {
        let valid = block.u32_at(0) == block.checksum()
            && block.u32_at(4) == VERSION
            && block.u64_at(8) == HEADER_MAGIC
            && block.u64_at(24) <= COMMIT_MAX;
        valid.then(|| Header {
            file_id: block.u64_at(16),
            generation: block.u64_at(24),
        })
    }
}

/// What a descriptor says apart from its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) generation: u64,
    pub(super) sequence: u64,
    /// Checksum of the descriptor before, zero for the first.
    pub(super) chain: u32,
    /// Number of the last commit before.
    pub(super) after: u64,
    /// The batch ends commit `after + 1`, with this many pages in the file.
    pub(super) commit: Option<u64>,
}

impl Batch {
    /// Encodes the descriptor of sealed images.
    pub(super) fn encode(self, images: &[PageBuf]) -> PageBuf {
        let mut block = PageBuf::zeroed();
        block.put_u32(4, images.len() as u32);
        block.put_u64(8, BATCH_MAGIC);
        block.put_u64(16, self.generation);
        block.put_u64(24, self.sequence);
        block.put_u32(32, self.chain);
        block.put_u32(36, if self.commit.is_some() { COMMIT } else { 0 });
        block.put_u64(40, self.after);
        block.put_u64(48, self.commit.unwrap_or(0));
        for (index, image) in images.iter().enumerate() {
            let at = ENTRIES_AT + index * ENTRY_BYTES;
            block.bytes_mut()[at..at + 8].copy_from_slice(&image.number().0.to_le_bytes());
            block.put_u32(at + 8, image.u32_at(0));
        }
        close(block)
    }

    /// Decodes a descriptor and the pages it lists; none when the block is not one.
    pub(super) fn decode(block: &PageBuf) -> Option<(Batch, Vec<(PageId, u32)>)> {
        let count = block.u32_at(4) as usize;
        let valid = block.u32_at(0) == block.checksum()
            && block.u64_at(8) == BATCH_MAGIC
            && block.u64_at(40) <= COMMIT_MAX
            && count <= BATCH_PAGES_MAX;
        if !valid {
            return None;
        }
        let batch = Batch {
            generation: block.u64_at(16),
            sequence: block.u64_at(24),
            chain: block.u32_at(32),
            after: block.u64_at(40),
            commit: (block.u32_at(36) & COMMIT != 0).then(|| block.u64_at(48)),
        };
        let entries = (0..count).map(|index| {
            let at = ENTRIES_AT + index * ENTRY_BYTES;
            (PageId(block.u64_unaligned(at)), block.u32_at(at + 8))
        });
        Some((batch, entries.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_decode_to_what_was_encoded_and_damage_shows() {
        let images: Vec<_> = (0..BATCH_PAGES_MAX as u64)
            .map(|page| {
                let mut image = PageBuf::zeroed();
                image.seal(PageId(page << 33));
                image
            })
            .collect();
        let batch = Batch {
            generation: 3,
            sequence: 4,
            chain: 5,
            after: 6,
            commit: Some(7),
        };
        let mut block = batch.encode(&images);
        let (decoded, entries) = Batch::decode(&block).unwrap();
        assert_eq!(decoded, batch);
        assert!(
            entries
                .iter()
                .zip(&images)
                .all(|(entry, image)| *entry == (image.number(), image.u32_at(0)))
        );
        for at in (0..PAGE_BYTES).step_by(61) {
            block.bytes_mut()[at] ^= 1;
            assert!(Batch::decode(&block).is_none());
            block.bytes_mut()[at] ^= 1;
        }
        let header = Header {
            file_id: 1,
            generation: 2,
        };
        assert_eq!(Header::decode(&header.encode()), Some(header));
        assert_eq!(Header::decode(&PageBuf::zeroed()), None);
    }
}
