//! Transfers of pages: those that are neighbours in the file, and in memory, in one piece.

use super::{ReadOp, WriteOp};
use crate::page::{PageBuf, PageId};
use zerocopy::IntoBytes;

fn are_neighbours(a: PageId, b: PageId) -> bool {
    a.0 + 1 == b.0
}

/// Writes of sealed images to their pages' places.
pub(crate) fn writes_of(images: &[PageBuf]) -> Vec<WriteOp<'_>> {
    images
        .chunk_by(|a, b| are_neighbours(a.number(), b.number()))
        .map(|run| WriteOp {
            offset: run[0].number().offset(),
            from: run.as_bytes(),
        })
        .collect()
}

/// Reads of the pages that `wanted` holds for, each into its image.
pub(crate) fn reads_of<'b>(
    pages: &[PageId],
    mut into: &'b mut [PageBuf],
    wanted: impl Fn(PageId) -> bool,
) -> Vec<ReadOp<'b>> {
    let mut reads = Vec::with_capacity(pages.len());
    for run in pages.chunk_by(|&a, &b| are_neighbours(a, b) && wanted(a) && wanted(b)) {
        let (bufs, rest) = into.split_at_mut(run.len());
        into = rest;
        if wanted(run[0]) {
            reads.push(ReadOp {
                offset: run[0].offset(),
                into: bufs.as_mut_bytes(),
            });
        }
    }
    reads
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::PAGE_BYTES;

    /// First page and number of pages.
    fn span(offset: u64, bytes: usize) -> (u64, usize) {
        let page = PAGE_BYTES as u64;
        (offset / page, bytes / PAGE_BYTES)
    }

    #[test]
    fn neighbours_are_transferred_together_and_each_page_once() {
        let pages = [3, 4, 5, 9, 8, 20, 21].map(PageId);
        let mut images = PageBuf::zeroed_vec(pages.len());
        for (image, &page) in images.iter_mut().zip(&pages) {
            image.seal(page);
        }
        let writes = writes_of(&images);
        let written: Vec<_> = writes
            .iter()
            .map(|w| span(w.offset, w.from.len()))
            .collect();
        assert_eq!(written, [(3, 3), (9, 1), (8, 1), (20, 2)]);

        let mut bufs = PageBuf::zeroed_vec(pages.len());
        let start = bufs.as_ptr() as usize;
        let reads = reads_of(&pages, &mut bufs, |page| page.0 != 4 && page.0 != 8);
        let read: Vec<_> = reads
            .iter()
            .map(|r| {
                let image = (r.into.as_ptr() as usize - start) / PAGE_BYTES;
                (span(r.offset, r.into.len()), image)
            })
            .collect();
        assert_eq!(read, [((3, 1), 0), ((5, 1), 2), ((9, 1), 3), ((20, 2), 5)]);
    }
}
