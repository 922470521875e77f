//! Pages: their size, their number, a private image of one, and reading one word by word.
//!
//! Every page begins with the same 16 bytes: CRC32C of everything behind it (4), kind (1), level (1),
//! zero (2), the page's own number (8). The checksum is put in when an image leaves for the medium
//! ([`PageBuf::seal`]) and verified when one comes back ([`PageBuf::verify`]); the number inside
//! catches reads and writes that went to the wrong place.
//!
//! A page is read through [`PageRead`] in aligned 64-bit words only, so that the same search runs on a
//! private image and on memory that others change meanwhile. All of its methods are total: an offset
//! from a page that is changing, or damaged, wraps around inside the page and never panics.

use crate::error::{Error, Result};
use std::cmp::Ordering;
use std::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a page: the memory management unit's page, since a frame comes and goes with it, and the
/// block of WarrenFS and of most devices, so that a page is written without reading its surroundings.
pub const PAGE_BYTES: usize = 4096;
/// 64-bit words of a page.
pub(crate) const PAGE_WORDS: usize = PAGE_BYTES / 8;
/// Bytes of the header that all pages share.
pub(crate) const HEADER_BYTES: usize = 16;

const KIND_AT: usize = 4;
const LEVEL_AT: usize = 5;
const NUMBER_AT: usize = 8;

/// The number of a page: its byte offset in the file divided by [`PAGE_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(pub u64);

impl PageId {
    /// Byte offset of the page in its file.
    pub(crate) fn offset(self) -> u64 {
        self.0 * PAGE_BYTES as u64
    }
}

impl fmt::Display for PageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {}", self.0)
    }
}

/// What a page is used for. A page of zeros has none of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Meta = 1,
    Bitmap = 2,
    Node = 3,
    Overflow = 4,
}

/// A private image of a page, aligned for direct input and output.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
pub struct PageBuf {
    words: [u64; PAGE_WORDS],
}

const _: () = assert!(size_of::<PageBuf>() == PAGE_BYTES && align_of::<PageBuf>() == PAGE_BYTES);

impl PageBuf {
    pub(crate) const ZEROED: PageBuf = PageBuf {
        words: [0; PAGE_WORDS],
    };

    /// A page of zeros.
    #[must_use]
    pub fn zeroed() -> PageBuf {
        PageBuf::ZEROED
    }

    /// `count` pages of zeros, one after the other in memory.
    pub(crate) fn zeroed_vec(count: usize) -> Vec<PageBuf> {
        vec![PageBuf::zeroed(); count]
    }

    /// The page's bytes, in the order in which the file has them.
    #[must_use]
    pub fn bytes(&self) -> &[u8; PAGE_BYTES] {
        self.as_bytes()
            .try_into()
            .expect("a page has PAGE_BYTES bytes")
    }

    /// The page's bytes for change.
    pub fn bytes_mut(&mut self) -> &mut [u8; PAGE_BYTES] {
        self.as_mut_bytes()
            .try_into()
            .expect("a page has PAGE_BYTES bytes")
    }

    /// The words as they lie in memory.
    pub(crate) fn raw_words(&self) -> &[u64; PAGE_WORDS] {
        &self.words
    }

    pub(crate) fn set_kind(&mut self, kind: Kind, level: u8) {
        self.bytes_mut()[KIND_AT] = kind as u8;
        self.bytes_mut()[LEVEL_AT] = level;
    }

    pub(crate) fn put_u16(&mut self, at: usize, value: u16) {
        self.bytes_mut()[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn put_u32(&mut self, at: usize, value: u32) {
        self.bytes_mut()[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn put_u64(&mut self, at: usize, value: u64) {
        self.bytes_mut()[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// Puts the page's number and checksum in, as the last step before it is written.
    pub fn seal(&mut self, page: PageId) {
        self.put_u64(NUMBER_AT, page.0);
        let crc = self.checksum();
        self.put_u32(0, crc);
    }

    /// The checksum of everything behind the checksum field.
    pub(crate) fn checksum(&self) -> u32 {
        crc32c::crc32c(&self.bytes()[4..])
    }

    /// The page number that the image claims.
    pub(crate) fn number(&self) -> PageId {
        PageId(self.u64_at(NUMBER_AT))
    }

    /// Verifies checksum and page number of an image that was read as `page`.
    ///
    /// # Errors
    /// [`Error::Damaged`] when either differs.
    pub fn verify(&self, page: PageId) -> Result<()> {
        if self.u32_at(0) != self.checksum() {
            return Err(Error::damaged(page, "its checksum does not match"));
        }
        if self.number() != page {
            return Err(Error::damaged(page, "it holds the image of another page"));
        }
        Ok(())
    }
}

impl fmt::Debug for PageBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageBuf({}, kind {})", self.number(), self.kind())
    }
}

/// Reading a page in aligned 64-bit words.
///
/// An implementation on memory that changes meanwhile returns any word that was there; what is
/// derived from several words is only meaningful once the reader has validated its latch.
pub trait PageRead {
    /// The word at `index` modulo the number of words, little-endian bytes made a number.
    fn word(&self, index: usize) -> u64;

    /// The 8 bytes at `at`, a multiple of 8.
    #[inline]
    fn u64_at(&self, at: usize) -> u64 {
        self.word(at / 8)
    }

    /// The 4 bytes at `at`, a multiple of 4.
    #[inline]
    fn u32_at(&self, at: usize) -> u32 {
        (self.word(at / 8) >> (at % 8 * 8)) as u32
    }

    /// The 2 bytes at `at`, a multiple of 2.
    #[inline]
    fn u16_at(&self, at: usize) -> u16 {
        (self.word(at / 8) >> (at % 8 * 8)) as u16
    }

    /// The byte at `at`.
    #[inline]
    fn u8_at(&self, at: usize) -> u8 {
        (self.word(at / 8) >> (at % 8 * 8)) as u8
    }

    /// The 8 bytes from `at`, which need not be aligned.
    #[inline]
    fn u64_unaligned(&self, at: usize) -> u64 {
        let shift = at % 8 * 8;
        // In two steps, as a shift by the width of the word is none.
        self.word(at / 8) >> shift | self.word(at / 8 + 1) << 1 << (63 - shift)
    }

    /// Appends `len` bytes from `at` to `out`; at most a page.
    #[inline]
    fn append_to(&self, at: usize, len: usize, out: &mut Vec<u8>) {
        let len = len.min(PAGE_BYTES);
        let start = out.len();
        out.resize(start + len.next_multiple_of(8), 0);
        let chunks = out[start..].chunks_exact_mut(8);
        for (index, chunk) in chunks.enumerate() {
            chunk.copy_from_slice(&self.u64_unaligned(at + index * 8).to_le_bytes());
        }
        out.truncate(start + len);
    }

    /// Compares the `len` bytes from `at` with `other` as byte strings.
    #[inline]
    fn compare(&self, at: usize, len: usize, other: &[u8]) -> Ordering {
        let common = len.min(other.len()).min(PAGE_BYTES);
        let mut chunks = other[..common].chunks_exact(8);
        let mut from = at;
        for chunk in &mut chunks {
            let theirs = u64::from_be_bytes(chunk.try_into().expect("8 bytes"));
            match self.u64_unaligned(from).swap_bytes().cmp(&theirs) {
                Ordering::Equal => from += 8,
                unequal => return unequal,
            }
        }
        for &theirs in chunks.remainder() {
            match self.u8_at(from).cmp(&theirs) {
                Ordering::Equal => from += 1,
                unequal => return unequal,
            }
        }
        len.cmp(&other.len())
    }

    /// What the page says it is used for; zero for a page that was never used.
    #[inline]
    fn kind(&self) -> u8 {
        self.u8_at(KIND_AT)
    }

    /// Distance of a node from the leaves.
    #[inline]
    fn level(&self) -> u8 {
        self.u8_at(LEVEL_AT)
    }

    /// Copies the page.
    #[inline]
    fn copy_to(&self, copy: &mut PageBuf) {
        for (index, word) in copy.words.iter_mut().enumerate() {
            *word = self.word(index).to_le();
        }
    }

    /// A private copy of the page.
    #[inline]
    fn to_buf(&self) -> PageBuf {
        PageBuf {
            words: std::array::from_fn(|index| self.word(index).to_le()),
        }
    }
}

impl PageRead for PageBuf {
    #[inline]
    fn word(&self, index: usize) -> u64 {
        u64::from_le(self.words[index % PAGE_WORDS])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting() -> PageBuf {
        let mut page = PageBuf::zeroed();
        for (at, byte) in page.bytes_mut().iter_mut().enumerate() {
            *byte = (at * 7 % 251) as u8;
        }
        page
    }

    #[test]
    fn words_bytes_and_comparisons_agree_at_every_alignment() {
        let page = counting();
        for at in 0..64 {
            for len in 0..40 {
                let expected = &page.bytes()[at..at + len];
                let mut got = vec![9];
                page.append_to(at, len, &mut got);
                assert_eq!(&got[1..], expected);
                assert_eq!(page.compare(at, len, expected), Ordering::Equal);
                for other in [b"".as_slice(), b"\x10\x20", &page.bytes()[at + 1..at + 20]] {
                    assert_eq!(
                        page.compare(at, len, other),
                        expected.cmp(other),
                        "{at} {len}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_sealed_page_verifies_until_any_bit_changes() {
        let mut page = counting();
        page.seal(PageId(9));
        page.verify(PageId(9)).unwrap();
        assert!(page.verify(PageId(8)).is_err());
        for at in (0..PAGE_BYTES).step_by(37) {
            page.bytes_mut()[at] ^= 0x10;
            assert!(page.verify(PageId(9)).is_err(), "byte {at}");
            page.bytes_mut()[at] ^= 0x10;
        }
    }
}
