//! Access to a page: the guard's name says the latch.
//!
//! All three read through [`PageView`], relaxed atomic loads of aligned 64-bit words; a change is made
//! on a private copy and put back word by word with relaxed atomic stores under the exclusive latch, or
//! in place where only a few bytes of a value change. So
//! optimistic reads that race with changes are defined behaviour, and what they return reaches the
//! caller only when the latch word validates: the closure given to [`Optimistic::read`] computes a
//! value that cannot borrow from the view, and the value is dropped unless it validates. The price is
//! a copy of the page per change, a fraction of a microsecond.

use super::{BufferPool, Frame};
use crate::page::{PAGE_WORDS, PageBuf, PageId, PageRead};
use std::sync::atomic::{AtomicU64, Ordering};

/// The words of a frame, which others may be changing.
#[derive(Clone, Copy)]
pub struct PageView<'a> {
    words: &'a [AtomicU64; PAGE_WORDS],
}

impl PageView<'_> {
    pub(super) fn new(words: &[AtomicU64; PAGE_WORDS]) -> PageView<'_> {
        PageView { words }
    }
}

impl PageRead for PageView<'_> {
    #[inline]
    fn word(&self, index: usize) -> u64 {
        u64::from_le(self.words[index % PAGE_WORDS].load(Ordering::Relaxed))
    }
}

/// The page changed while it was read without a latch: do the operation again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed;

/// Access without a latch: nothing is kept out, and what is read must validate.
#[derive(Clone, Copy)]
pub struct Optimistic<'p> {
    pub(super) pool: &'p BufferPool,
    pub(super) page: PageId,
    pub(super) version: u64,
}

impl<'p> Optimistic<'p> {
    /// The page.
    #[must_use]
    pub fn page(&self) -> PageId {
        self.page
    }

    /// Computes something from the page; it comes back only if the page has not changed since the
    /// guard was made. `read` may see any mixture of old and new words, and must end on all of them.
    ///
    /// # Errors
    /// [`Changed`] when the page was changed or evicted.
    #[inline]
    pub fn read<R: 'static>(&self, read: impl FnOnce(&PageView<'_>) -> R) -> Result<R, Changed> {
        let value = read(&self.pool.view(self.page));
        self.check()?;
        Ok(value)
    }

    /// Whether the page is still as it was when the guard was made.
    ///
    /// # Errors
    /// [`Changed`] when the page was changed or evicted.
    #[inline]
    pub fn check(&self) -> Result<(), Changed> {
        if self.pool.state(self.page).validate(self.version) {
            Ok(())
        } else {
            Err(Changed)
        }
    }

    /// Latches the page exclusively, provided that it has not changed since the guard was made.
    /// Does not wait.
    ///
    /// # Errors
    /// [`Changed`] when the page was changed, evicted or is latched by others.
    pub fn upgrade(self) -> Result<Exclusive<'p>, Changed> {
        let state = self.pool.state(self.page);
        let seen = state.load();
        if seen.version() == self.version && state.try_exclusive(seen) {
            Ok(Exclusive {
                pool: self.pool,
                page: self.page,
            })
        } else {
            Err(Changed)
        }
    }
}

/// A latch that keeps changes and eviction out.
pub struct Shared<'p> {
    pub(super) pool: &'p BufferPool,
    pub(super) page: PageId,
}

impl Shared<'_> {
    /// The page.
    #[must_use]
    pub fn page(&self) -> PageId {
        self.page
    }

    /// The page's words, stable while the guard lives.
    #[must_use]
    pub fn view(&self) -> PageView<'_> {
        self.pool.view(self.page)
    }
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        self.pool.state(self.page).release_shared();
    }
}

/// A latch that keeps everybody else out.
pub struct Exclusive<'p> {
    pub(super) pool: &'p BufferPool,
    pub(super) page: PageId,
}

impl Exclusive<'_> {
    /// The page.
    #[must_use]
    pub fn page(&self) -> PageId {
        self.page
    }

    /// The page's words.
    #[must_use]
    pub fn view(&self) -> PageView<'_> {
        self.pool.view(self.page)
    }

    /// Replaces the page's contents and marks it dirty; words that are the same are not touched.
    pub fn write(&mut self, image: &PageBuf) {
        let words = self.pool.words(self.page);
        for (word, &new) in words.iter().zip(image.raw_words()) {
            if word.load(Ordering::Relaxed) != new {
                word.store(new, Ordering::Relaxed);
            }
        }
        self.pool.mark_dirty(self.page);
    }

    /// Replaces some bytes of the page, from `at`, and marks it dirty.
    pub(crate) fn put(&mut self, mut at: usize, mut bytes: &[u8]) {
        let words = self.pool.words(self.page);
        while !bytes.is_empty() {
            let within = at % 8;
            let (now, rest) = bytes.split_at(bytes.len().min(8 - within));
            let word = &words[at / 8 % PAGE_WORDS];
            let mut image = word.load(Ordering::Relaxed).to_ne_bytes();
            image[within..within + now.len()].copy_from_slice(now);
            word.store(u64::from_ne_bytes(image), Ordering::Relaxed);
            at += now.len();
            bytes = rest;
        }
        self.pool.mark_dirty(self.page);
    }

    /// Changes the page through a private copy, put back when `change` returns.
    pub fn update<R>(&mut self, change: impl FnOnce(&mut PageBuf) -> R) -> R {
        let mut image = self.view().to_buf();
        let result = change(&mut image);
        self.write(&image);
        result
    }

    /// Drops the page's contents without writing them, and gives the frame back.
    pub fn discard(self) {
        self.pool.forget_page(self.page);
        std::mem::forget(self);
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        self.pool.state(self.page).release_exclusive();
    }
}

impl Frame<'_> {
    /// The frame is now a page's; eviction gives it back.
    pub(super) fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Frame<'_> {
    fn drop(&mut self) {
        self.pool.give_back(1);
    }
}
