//! Frames: the bound on their number, and the clock that makes room.
//!
//! A frame is counted before the page it is for is touched, and the count never passes the limit. When
//! it has reached it, the thread in need evicts a batch, in numbered phases. Evicting latches only
//! without waiting, so it may run in a thread that holds latches itself.
//!
//! Which pages stay: the hand takes away the mark that says that a page was not used since it came by
//! last, as every clock does, and counts the turns in which it was: a page gains heat in each of them and
//! loses a little in the others, and is evicted when it has none left. One that was read for a single use
//! has none and its mark on. So what is used now and then stays, where pages that are used once, by a scan
//! say, would drive it out; and as the hand moves the faster the fewer pages have no heat, pages that
//! were hot once leave soon after.
//!
//! Dirtiness is a byte per page: clean, dirty, or staged (copied out for a commit that has not reached
//! the medium yet). Only clean pages lose their frame. A write that fails leaves its pages dirty.

use super::BufferPool;
use super::state::Latch;
use crate::error::{Error, Result};
use crate::page::{PAGE_WORDS, PageBuf, PageId, PageRead};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Pages evicted, and written back, at once.
const BATCH_MAX: usize = 64;
/// Turns of the hand in search of victims: the first may only mark, and each takes twice as much heat away
/// as the one before, so that by then all pages have lost theirs that are not in use.
const TURNS_MAX: usize = 7;
/// How long a thread waits for a frame when everything is latched, before it gives up.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long it sleeps in between unless a frame comes free.
const NAP: Duration = Duration::from_millis(2);

pub(super) const CLEAN: u8 = 0;
pub(super) const DIRTY: u8 = 1;
pub(super) const STAGED: u8 = 2;

/// The right to one frame; given back when dropped.
pub(crate) struct Frame<'p> {
    pub(super) pool: &'p BufferPool,
}

/// What one pass of the clock found.
#[derive(Default)]
struct Victims {
    /// Pages that were clean, not latched yet.
    clean: Vec<PageId>,
    /// Dirty pages, latched shared.
    dirty: Vec<PageId>,
}

impl BufferPool {
    /// A frame, evicting and waiting for one as necessary. The caller holds no latch.
    pub(crate) fn frame(&self) -> Result<Frame<'_>> {
        let since = Instant::now();
        loop {
            if let Some(frame) = self.claim() {
                return Ok(frame);
            }
            let evicted = self.evict();
            if !matches!(evicted, Ok(0)) {
                evicted?;
                continue;
            }
            if since.elapsed() > PATIENCE {
                return Err(Error::NoFrame);
            }
            let mut waiting = self.waiting.lock();
            if self.used.load(Ordering::Relaxed) >= self.frames_max {
                self.came_free.wait_for(&mut waiting, NAP);
            }
        }
    }

    /// A frame if there is one after evicting a batch. May be called with latches held.
    ///
    /// # Errors
    /// [`Error::NoFrame`] when there is none: let go of all latches and call [`BufferPool::make_room`].
    pub(crate) fn frame_now(&self) -> Result<Frame<'_>> {
        match self.claim() {
            Some(frame) => Ok(frame),
            None => self
                .evict()
                .and_then(|_| self.claim().ok_or(Error::NoFrame)),
        }
    }

    /// Waits until there was a free frame. The caller holds no latch.
    pub(crate) fn make_room(&self) -> Result<()> {
        self.frame().map(drop)
    }

    pub(super) fn claim(&self) -> Option<Frame<'_>> {
        let claimed = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                (used < self.frames_max).then_some(used + 1)
            });
        claimed.ok().map(|_| Frame { pool: self })
    }

    pub(super) fn give_back(&self, frames: usize) {
        let before = self.used.fetch_sub(frames, Ordering::Relaxed);
        if before >= self.frames_max {
            drop(self.waiting.lock());
            self.came_free.notify_all();
        }
    }

    /// Evicts a batch of pages that were not used since the hand last passed; returns how many.
    ///
    /// # Errors
    /// When writing dirty pages failed and no clean one could be evicted instead; they stay dirty.
    pub fn evict(&self) -> Result<usize> {
        // Phase 1: the hand marks unused pages, and picks those that it finds marked.
        let victims = self.pick_victims();
        // Phase 2: dirty victims are written, under shared latches, and become clean.
        let written = self.write_victims(&victims.dirty);
        // Phase 3: clean victims that are still unused are latched exclusively, and written ones that
        // nobody else has latched.
        let mut latched: Vec<_> = victims
            .clean
            .iter()
            .copied()
            .filter(|&page| self.latch_clean(page))
            .collect();
        for &page in &victims.dirty {
            let dirtiness = self.dirtiness(page);
            let cleaned = written.is_ok()
                && dirtiness
                    .compare_exchange(DIRTY, CLEAN, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok();
            match cleaned && self.state(page).try_upgrade() {
                true => latched.push(page),
                false => self.state(page).release_shared(),
            }
        }
        // Phase 4: their memory goes back to the system, in one call if the system can.
        latched.sort_unstable();
        self.discard_frames(&latched);
        // Phase 5: they leave the set and are unlatched as evicted.
        for &page in &latched {
            self.resident.remove(page);
            self.state(page).release_evicted();
        }
        let count = latched.len();
        if count > 0 {
            self.counters
                .evictions
                .fetch_add(count as u64, Ordering::Relaxed);
            self.give_back(count);
            return Ok(count);
        }
        written.map(|()| 0)
    }

    fn pick_victims(&self) -> Victims {
        let batch = (self.frames_max / 8).clamp(1, BATCH_MAX);
        let mut victims = Victims::default();
        let mut passed = 0;
        while victims.clean.len() + victims.dirty.len() < batch
            && passed < TURNS_MAX * self.resident.slots()
        {
            let loss = 1 << (passed / self.resident.slots());
            passed += batch;
            for met in self.resident.advance(batch) {
                let page = met.page;
                let state = self.state(page);
                let seen = state.load();
                match seen.latch() {
                    Latch::Unlocked if state.try_mark(seen) => met.warm(),
                    Latch::Marked if met.cool(loss) => {}
                    Latch::Marked => match self.dirtiness(page).load(Ordering::Relaxed) {
                        CLEAN => victims.clean.push(page),
                        DIRTY if state.try_shared(seen) => victims.dirty.push(page),
                        _ => {}
                    },
                    Latch::Unlocked | Latch::Evicted | Latch::Exclusive | Latch::Shared(_) => {}
                }
            }
        }
        victims
    }

    /// Latches a page exclusively if it is still marked, and clean.
    fn latch_clean(&self, page: PageId) -> bool {
        let state = self.state(page);
        let seen = state.load();
        if seen.latch() != Latch::Marked || !state.try_exclusive(seen) {
            return false;
        }
        let is_clean = self.dirtiness(page).load(Ordering::Relaxed) == CLEAN;
        if !is_clean {
            state.release_exclusive();
        }
        is_clean
    }

    fn write_victims(&self, pages: &[PageId]) -> Result<()> {
        if pages.is_empty() {
            return Ok(());
        }
        let images: Vec<PageBuf> = pages.iter().map(|&page| self.sealed_image(page)).collect();
        self.store.write_back(pages, &images)?;
        self.counters
            .writes
            .fetch_add(pages.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// A copy of a latched page as it goes to the medium.
    pub(super) fn sealed_image(&self, page: PageId) -> PageBuf {
        let mut image = self.view(page).to_buf();
        image.seal(page);
        image
    }

    /// Gives back the memory of pages in ascending order, all latched exclusively.
    fn discard_frames(&self, pages: &[PageId]) {
        let runs = pages.chunk_by(|a, b| a.0 + 1 == b.0);
        self.frames.discard(runs.map(|run| {
            let start = run[0].0 as usize * PAGE_WORDS;
            start..start + run.len() * PAGE_WORDS
        }));
    }

    /// Evicts one page, latched exclusively by the caller, whose contents nobody needs any more.
    pub(super) fn forget_page(&self, page: PageId) {
        self.dirtiness(page).store(CLEAN, Ordering::Relaxed);
        self.discard_frames(&[page]);
        self.resident.remove(page);
        self.state(page).release_evicted();
        self.give_back(1);
    }

    /// Notes that a page, latched exclusively by the caller, differs from the medium.
    pub(super) fn mark_dirty(&self, page: PageId) {
        if self.dirtiness(page).swap(DIRTY, Ordering::Relaxed) != DIRTY {
            let mut dirty = self.dirty.lock();
            dirty.push(page);
            // Pages that were stolen or dropped since stay listed; weed them out now and then.
            if dirty.len() > 4 * self.frames_max {
                dirty.retain(|&page| self.dirtiness(page).load(Ordering::Relaxed) != CLEAN);
                dirty.sort_unstable();
                dirty.dedup();
            }
        }
    }

    /// The pages that may be dirty, in ascending order; the caller stages or returns each of them.
    pub(crate) fn take_dirty(&self) -> Vec<PageId> {
        let mut pages = std::mem::take(&mut *self.dirty.lock());
        pages.sort_unstable();
        pages.dedup();
        pages
    }

    /// Puts pages of [`BufferPool::take_dirty`] back that were not staged.
    pub(crate) fn return_dirty(&self, pages: &[PageId]) {
        self.dirty.lock().extend_from_slice(pages);
    }

    /// Copies a page for a commit if it is dirty: the sealed image, which the caller writes and then
    /// settles. Until then the page keeps its frame.
    pub(crate) fn stage(&self, page: PageId) -> Option<PageBuf> {
        let state = self.state(page);
        while self.dirtiness(page).load(Ordering::Relaxed) == DIRTY {
            let seen = state.load();
            match seen.latch() {
                Latch::Evicted => return None,
                // Not held up by those who wait, since they may wait for a thread that waits for this one.
                _ if state.try_shared_before_waiters(seen) => {
                    let staged = self.dirtiness(page);
                    let staged = staged.compare_exchange(
                        DIRTY,
                        STAGED,
                        Ordering::Relaxed,
                        Ordering::Relaxed,
                    );
                    let image = staged.is_ok().then(|| self.sealed_image(page));
                    state.release_shared();
                    return image;
                }
                _ => state.wait(seen),
            }
        }
        None
    }

    /// Ends the staging of pages: clean if their images reached the medium, else dirty again. Pages
    /// changed since they were staged are dirty either way.
    pub(crate) fn settle(&self, pages: &[PageId], written: bool) {
        let after = if written { CLEAN } else { DIRTY };
        for &page in pages {
            let settled = self.dirtiness(page).compare_exchange(
                STAGED,
                after,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            if settled.is_ok() && !written {
                self.dirty.lock().push(page);
            }
        }
        if written {
            self.counters
                .writes
                .fetch_add(pages.len() as u64, Ordering::Relaxed);
        }
    }
}
