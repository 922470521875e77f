//! Long values: a chain of pages that is written once and never changed.
//!
//! ```text
//!  reference (the entry's value): first page u64 | length u32 | stamp u64
//!  page: 16 next page u64 | 24 stamp u64 | 32 bytes here u16 | 40 bytes
//! ```
//!
//! The stamp is unique to the value. A reader takes the reference from a validated leaf and then needs
//! no latch: a page that carries the stamp is part of that value, whatever happened to the leaf since.
//! If a page does not, the value was replaced or removed meanwhile and the reader starts again at the
//! leaf; only if that still has the same reference is the chain damaged.

use super::{Attempt, Stop};
use crate::error::{Error, Result};
use crate::page::{Kind, PAGE_BYTES, PageBuf, PageId, PageRead};
use crate::space::Space;
use std::sync::atomic::Ordering;

const NEXT_AT: usize = 16;
const STAMP_AT: usize = 24;
const LEN_AT: usize = 32;
const BYTES_AT: usize = 40;
/// Bytes of a value in one page.
const CHUNK_BYTES: usize = PAGE_BYTES - BYTES_AT;
/// Bytes of an encoded reference.
const REFERENCE_BYTES: usize = 20;

/// Where a long value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    first: PageId,
    len: u32,
    stamp: u64,
}

impl Reference {
    pub(super) fn encode(self) -> [u8; REFERENCE_BYTES] {
        let mut bytes = [0; REFERENCE_BYTES];
        bytes[..8].copy_from_slice(&self.first.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..].copy_from_slice(&self.stamp.to_le_bytes());
        bytes
    }

    /// # Errors
    /// When the bytes are not a reference.
    pub(super) fn decode(bytes: &[u8]) -> std::result::Result<Reference, &'static str> {
        let bytes: &[u8; REFERENCE_BYTES] = bytes
            .try_into()
            .map_err(|_| "a reference to overflow pages has the wrong length")?;
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let len = u32::from_le_bytes(bytes[8..12].try_into().expect("4 bytes"));
        Ok(Reference {
            first: PageId(number(0)),
            len,
            stamp: number(12),
        })
    }

    fn pages(self) -> usize {
        (self.len as usize).div_ceil(CHUNK_BYTES)
    }
}

/// Whether an overflow page's length is possible.
pub(super) fn check_image(page: &PageBuf) -> std::result::Result<(), &'static str> {
    let fits = usize::from(page.u16_at(LEN_AT)) <= CHUNK_BYTES;
    fits.then_some(())
        .ok_or("an overflow page holds more than fits")
}

/// Writes a value to pages of its own.
pub(super) fn write(space: &Space, value: &[u8]) -> Result<Reference> {
    let stamp = space.stamp.fetch_add(1, Ordering::Relaxed);
    let mut pages = Vec::new();
    let written = write_pages(space, value, stamp, &mut pages);
    if let Err(error) = written {
        give_back(space, &pages);
        return Err(error);
    }
    Ok(Reference {
        first: pages[0],
        len: value.len() as u32,
        stamp,
    })
}

fn write_pages(space: &Space, value: &[u8], stamp: u64, pages: &mut Vec<PageId>) -> Result<()> {
    for _ in value.chunks(CHUNK_BYTES) {
        pages.push(space.pages.take()?);
    }
    for (index, chunk) in value.chunks(CHUNK_BYTES).enumerate() {
        let mut image = PageBuf::zeroed();
        image.set_kind(Kind::Overflow, 0);
        image.put_u64(NEXT_AT, pages.get(index + 1).map_or(0, |page| page.0));
        image.put_u64(STAMP_AT, stamp);
        image.put_u16(LEN_AT, chunk.len() as u16);
        image.bytes_mut()[BYTES_AT..BYTES_AT + chunk.len()].copy_from_slice(chunk);
        space.pool.create(pages[index])?.write(&image);
    }
    Ok(())
}

/// Gives pages back whose contents nobody needs.
fn give_back(space: &Space, pages: &[PageId]) {
    for &page in pages {
        space.pool.drop_page(page);
        space.pages.give(page);
    }
}

/// Gives back the pages of a value that is no longer, or never became, part of a tree.
///
/// If the chain cannot be read at the moment, this is done before the next commit; if it is damaged, the
/// rest of its pages stays allocated, which the checker reports.
pub(super) fn free(space: &Space, reference: Reference) {
    let mut pages = Vec::new();
    match walk(space, reference, |page, _| pages.push(page)) {
        Ok(()) => {}
        Err(error @ Error::Damaged { .. }) => {
            tracing::warn!(%error, "pages of a removed value stay allocated");
        }
        Err(_) => return space.unfreed.lock().push(reference),
    }
    give_back(space, &pages);
}

/// Gives back what [`free`] could not read before.
pub(crate) fn free_again(space: &Space) {
    let references = std::mem::take(&mut *space.unfreed.lock());
    references
        .into_iter()
        .for_each(|reference| free(space, reference));
}

/// Calls `visit` with each page of the chain and a copy of it.
pub(super) fn walk(
    space: &Space,
    reference: Reference,
    mut visit: impl FnMut(PageId, &PageBuf),
) -> Result<()> {
    if reference.pages() as u64 > space.pages.page_count() {
        return Err(Error::damaged(
            reference.first,
            "its value is longer than the file",
        ));
    }
    let mut page = reference.first;
    let mut left = reference.len as usize;
    for _ in 0..reference.pages() {
        let image = space.pool.shared(page)?.view().to_buf();
        let here = usize::from(image.u16_at(LEN_AT));
        let stamped =
            image.kind() == Kind::Overflow as u8 && image.u64_at(STAMP_AT) == reference.stamp;
        if !stamped || here != left.min(CHUNK_BYTES) {
            return Err(Error::damaged(
                page,
                "it is not the overflow page its value refers to",
            ));
        }
        visit(page, &image);
        left -= here;
        page = PageId(image.u64_at(NEXT_AT));
    }
    Ok(())
}

/// Appends the value to `out`.
pub(super) fn read(space: &Space, reference: Reference, out: &mut Vec<u8>) -> Result<()> {
    let start = out.len();
    let read = walk(space, reference, |_, image| {
        out.extend_from_slice(
            &image.bytes()[BYTES_AT..BYTES_AT + usize::from(image.u16_at(LEN_AT))],
        );
    });
    if read.is_err() {
        out.truncate(start);
    }
    read
}

/// Appends the value to `out` in an attempt that starts at the leaf. `stale` is the reference that the
/// attempt before failed with: met again, the failure is real.
pub(super) fn read_again(
    space: &Space,
    reference: Reference,
    stale: &mut Option<Reference>,
    out: &mut Vec<u8>,
) -> Attempt<()> {
    match read(space, reference, out) {
        Ok(()) => Ok(()),
        Err(_) if stale.replace(reference) != Some(reference) => Err(Stop::Again),
        Err(error) => Err(Stop::Failed(error)),
    }
}
