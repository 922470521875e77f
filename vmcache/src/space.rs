//! The pages of a file: memory for them, and which of them are in use.
//!
//! Allocation is a bitmap in memory, a bit per page, next-fit. The file keeps it in bitmap pages, one
//! per [`GROUP_PAGES`] pages at a fixed place of each group; they are brought up to date as part of a
//! commit. So taking and giving pages needs no other page, no latch and no input or output. A page
//! freed may be used again at once: the state of the last commit is kept elsewhere until the next one
//! is durable (see [`crate::commit`]).

use crate::btree::{Contention, Reference};
use crate::error::{Error, Result};
use crate::page::{HEADER_BYTES, Kind, PAGE_BYTES, PageBuf, PageId, PageRead};
use crate::pool::BufferPool;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, AtomicUsize};

/// Pages that one bitmap page describes.
const GROUP_PAGES: u64 = ((PAGE_BYTES - HEADER_BYTES) * 8) as u64;
/// Place of the bitmap page in its group; page 0 of the file is the meta page.
const BITMAP_AT: u64 = 1;
const WORDS_PER_GROUP: usize = (GROUP_PAGES / 64) as usize;

const _: () = assert!(GROUP_PAGES.is_multiple_of(64));

/// A pool and the allocation of its file's pages.
pub(crate) struct Space {
    pub(crate) pool: BufferPool,
    pub(crate) pages: Allocator,
    /// The next value's stamp: see [`crate::btree`] on overflow pages.
    pub(crate) stamp: AtomicU64,
    pub(crate) contention: Contention,
    /// Entries of the leaf that a scan read from the medium last: what to expect of others.
    pub(crate) leaf_entries: AtomicUsize,
    /// Removed values whose pages could not be read to be given back.
    pub(crate) unfreed: Mutex<Vec<Reference>>,
}

impl Space {
    /// `stamp` is random, so that no stamp comes twice in the life of a file.
    pub(crate) fn new(pool: BufferPool, pages: Allocator, stamp: u64) -> Space {
        Space {
            pool,
            pages,
            stamp: AtomicU64::new(stamp),
            contention: Contention::new(),
            leaf_entries: AtomicUsize::new(0),
            unfreed: Mutex::new(Vec::new()),
        }
    }
}

/// Which pages are in use.
pub(crate) struct Allocator {
    state: Mutex<State>,
    pages_max: u64,
}

struct State {
    /// A bit per page, set when in use; whole groups.
    used: Vec<u64>,
    /// Pages from here on were never in use.
    page_count: u64,
    /// Pages below that are not in use.
    free_count: u64,
    /// Where the search for a free page goes on.
    hint: u64,
    /// Groups whose bitmap page is out of date.
    changed: BTreeSet<u64>,
}

impl State {
    fn is_used(&self, page: u64) -> bool {
        self.used
            .get((page / 64) as usize)
            .is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    fn set(&mut self, page: u64, used: bool) {
        let words = (page / GROUP_PAGES + 1) as usize * WORDS_PER_GROUP;
        if self.used.len() < words {
            self.used.resize(words, 0);
        }
        let bit = 1 << (page % 64);
        let word = &mut self.used[(page / 64) as usize];
        *word = if used { *word | bit } else { *word & !bit };
        self.changed.insert(page / GROUP_PAGES);
    }

    /// A free page below `page_count`, which exists.
    fn find(&self) -> u64 {
        let words = self.page_count.div_ceil(64);
        let from = self.hint / 64;
        let order = (from..words).chain(0..from.min(words));
        let word = order.into_iter().find(|&word| {
            let free = !self.used[word as usize];
            // Of the last word only the pages below the count.
            let valid = match word == self.page_count / 64 {
                true => (1 << (self.page_count % 64)) - 1,
                false => u64::MAX,
            };
            free & valid != 0
        });
        let word = word.expect("the count of free pages is exact");
        word * 64 + u64::from((!self.used[word as usize]).trailing_zeros())
    }

    /// A page that was never in use.
    fn extend(&mut self, pages_max: u64) -> Result<u64> {
        // The first page of a group brings the group's bitmap page with it.
        let bitmap = u64::from(self.page_count.is_multiple_of(GROUP_PAGES));
        if self.page_count + bitmap >= pages_max {
            return Err(Error::Full(pages_max));
        }
        let page = self.page_count;
        if bitmap > 0 {
            self.set(page + BITMAP_AT, true);
        }
        self.page_count += 1 + bitmap;
        Ok(page)
    }
}

impl Allocator {
    /// For a new file: the meta page and the first bitmap page are in use.
    pub(crate) fn new(pages_max: u64) -> Allocator {
        let state = State {
            used: Vec::new(),
            page_count: 0,
            free_count: 0,
            hint: 0,
            changed: BTreeSet::new(),
        };
        let allocator = Allocator {
            state: Mutex::new(state),
            pages_max,
        };
        {
            let mut state = allocator.state.lock();
            state.set(0, true);
            state.set(BITMAP_AT, true);
            state.page_count = BITMAP_AT + 1;
        }
        allocator
    }

    /// Reads the bitmap of a file of `page_count` pages.
    pub(crate) fn load(pool: &BufferPool, pages_max: u64, page_count: u64) -> Result<Allocator> {
        if page_count > pages_max {
            return Err(Error::Option(
                "the file is larger than the largest size it is opened with",
            ));
        }
        let mut used = Vec::new();
        for group in 0..page_count.div_ceil(GROUP_PAGES) {
            let bitmap = PageId(group * GROUP_PAGES + BITMAP_AT);
            let image = pool.shared(bitmap)?;
            if image.view().kind() != Kind::Bitmap as u8 {
                return Err(Error::damaged(bitmap, "it is not the bitmap it should be"));
            }
            used.extend(
                (0..WORDS_PER_GROUP).map(|word| image.view().u64_at(HEADER_BYTES + word * 8)),
            );
        }
        let in_use: u64 = used.iter().map(|word| u64::from(word.count_ones())).sum();
        let free_count = page_count.checked_sub(in_use);
        let free_count =
            free_count.ok_or(Error::Format("more pages are in use than the file has"))?;
        let state = State {
            used,
            page_count,
            free_count,
            hint: 0,
            changed: BTreeSet::new(),
        };
        Ok(Allocator {
            state: Mutex::new(state),
            pages_max,
        })
    }

    /// Takes a page into use.
    pub(crate) fn take(&self) -> Result<PageId> {
        let mut state = self.state.lock();
        let page = if state.free_count > 0 {
            state.free_count -= 1;
            state.find()
        } else {
            state.extend(self.pages_max)?
        };
        state.set(page, true);
        state.hint = page + 1;
        Ok(PageId(page))
    }

    /// Gives a page back.
    pub(crate) fn give(&self, page: PageId) {
        let mut state = self.state.lock();
        if !state.is_used(page.0) {
            tracing::error!(%page, "a damaged tree refers to a page that was free; the checker tells more");
            return;
        }
        state.set(page.0, false);
        state.free_count += 1;
        state.hint = state.hint.min(page.0);
    }

    /// Whether a page is in use.
    pub(crate) fn is_used(&self, page: PageId) -> bool {
        self.state.lock().is_used(page.0)
    }

    /// Pages of the file, used or free.
    pub(crate) fn page_count(&self) -> u64 {
        self.state.lock().page_count
    }

    /// Pages in use.
    pub(crate) fn used_count(&self) -> u64 {
        let state = self.state.lock();
        state.page_count - state.free_count
    }

    /// Pages in use that hold no tree: the meta page and the bitmaps.
    pub(crate) fn reserved_count(&self) -> u64 {
        1 + self.page_count().div_ceil(GROUP_PAGES)
    }

    /// Brings the bitmap pages up to date; nobody allocates meanwhile.
    pub(crate) fn store(&self, pool: &BufferPool) -> Result<()> {
        let mut state = self.state.lock();
        while let Some(&group) = state.changed.first() {
            let mut image = PageBuf::zeroed();
            image.set_kind(Kind::Bitmap, 0);
            let words = &state.used[group as usize * WORDS_PER_GROUP..][..WORDS_PER_GROUP];
            for (index, &word) in words.iter().enumerate() {
                image.put_u64(HEADER_BYTES + index * 8, word);
            }
            pool.create(PageId(group * GROUP_PAGES + BITMAP_AT))?
                .write(&image);
            state.changed.remove(&group);
        }
        Ok(())
    }
}
