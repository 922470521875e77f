//! The buffer pool: pages of a file at fixed places in virtual memory (Leis et al., "Virtual-Memory
//! Assisted Buffer Management", SIGMOD 2023).
//!
//! One anonymous mapping is as large as the file may become; page n of the file has its place at page n
//! of the mapping, so there is no table to look pages up in. Which pages have memory behind them is
//! decided here, not by the kernel: a page is read explicitly when somebody wants it, and its memory is
//! given back with MADV_DONTNEED when the clock evicts it. A state word per page carries its latch.
//!
//! Invariants: at most `frames_max` pages are populated at any time. A page is populated or emptied
//! only under its exclusive latch. Whoever waits for a frame, or for the medium to be read, holds no
//! latch on another page. An image is checked (checksum, number, and whatever the owner of the pool
//! checks) before its words get into the mapping.
//!
//! Leaves out transactions: what is written when, and where, is the business of the [`PageStore`].

mod evict;
mod guard;
mod mapping;
mod resident;
mod state;
#[cfg(test)]
mod state_tests;
mod sync;

pub use guard::{Changed, Exclusive, Optimistic, PageView, Shared};

pub(crate) use evict::Frame;

use crate::error::{Error, Result};
use crate::page::{PAGE_BYTES, PAGE_WORDS, PageBuf, PageId};
use crate::storage::{Storage, reads_of, writes_of};
use mapping::Mapping;
use parking_lot::{Condvar, Mutex};
use resident::{Entry, ResidentSet};
use state::{Latch, PageState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

/// Fewest frames a pool works with: a few operations' latches and a batch of evictions.
pub const FRAMES_MIN: usize = 16;
/// Pages that a prefetch reads at once.
const PREFETCH_MAX: usize = 32;
/// Pages that are written at once.
const WRITE_MAX: usize = 64;

/// Where the pool's pages come from and go to.
pub trait PageStore: Send + Sync {
    /// Reads the latest image of a page, as it was last written.
    ///
    /// # Errors
    /// Of the medium.
    fn read(&self, page: PageId, into: &mut PageBuf) -> Result<()>;

    /// Reads several pages, at once where the medium can.
    ///
    /// # Errors
    /// Of the medium; the images are then undetermined.
    fn read_batch(&self, pages: &[PageId], into: &mut [PageBuf]) -> Result<()>;

    /// Writes sealed images of pages that have to leave memory. They can be read back when this
    /// returns; they need not be durable.
    ///
    /// # Errors
    /// Of the medium; the pages then stay in memory.
    fn write_back(&self, pages: &[PageId], images: &[PageBuf]) -> Result<()>;
}

/// Every page at its own place in one file; what a crash leaves is up to the medium.
pub struct InPlace<S> {
    storage: S,
}

impl<S: Storage> InPlace<S> {
    /// A store on `storage`.
    pub fn new(storage: S) -> InPlace<S> {
        InPlace { storage }
    }

    /// The file.
    pub fn storage(&self) -> &S {
        &self.storage
    }
}

impl<S: Storage> PageStore for InPlace<S> {
    fn read(&self, page: PageId, into: &mut PageBuf) -> Result<()> {
        self.storage
            .read_at(page.offset(), into.bytes_mut())
            .map_err(Error::io("read a page"))
    }

    fn read_batch(&self, pages: &[PageId], into: &mut [PageBuf]) -> Result<()> {
        self.storage
            .read_batch(&mut reads_of(pages, into, |_| true))
            .map_err(Error::io("read pages"))
    }

    fn write_back(&self, _: &[PageId], images: &[PageBuf]) -> Result<()> {
        self.storage
            .write_batch(&writes_of(images))
            .map_err(Error::io("write pages"))
    }
}

/// Size and checks of a pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolOptions {
    /// Most pages in memory at any time; at least [`FRAMES_MIN`].
    pub frames_max: usize,
    /// Most pages the file can have; costs address space only.
    pub pages_max: u64,
    /// Checked on every page that is read, after checksum and number.
    pub check: fn(PageId, &PageBuf) -> Result<()>,
}

/// What a pool has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Pages in memory now.
    pub frames: usize,
    /// Pages read from the medium.
    pub reads: u64,
    /// Pages written to the medium.
    pub writes: u64,
    /// Pages that lost their frame to another.
    pub evictions: u64,
}

#[derive(Default)]
struct Counters {
    reads: AtomicU64,
    writes: AtomicU64,
    evictions: AtomicU64,
}

/// A buffer pool; see the module's text.
pub struct BufferPool {
    frames: Mapping<AtomicU64>,
    states: Mapping<AtomicU64>,
    /// Per page clean, dirty or staged: see [`evict`].
    dirtiness: Mapping<AtomicU8>,
    resident: ResidentSet,
    store: Arc<dyn PageStore>,
    check: fn(PageId, &PageBuf) -> Result<()>,
    pages_max: u64,
    frames_max: usize,
    /// Frames in use or promised.
    used: AtomicUsize,
    waiting: Mutex<()>,
    came_free: Condvar,
    /// Every dirty page, and some that are not.
    dirty: Mutex<Vec<PageId>>,
    counters: Counters,
}

impl BufferPool {
    /// An empty pool over `store`.
    ///
    /// # Errors
    /// [`Error::Option`] for sizes that cannot be; [`Error::Io`] when the address space is refused.
    pub fn new(store: Arc<dyn PageStore>, options: PoolOptions) -> Result<BufferPool> {
        if options.frames_max < FRAMES_MIN {
            return Err(Error::Option("a pool needs at least 16 frames"));
        }
        let pages = usize::try_from(options.pages_max)
            .ok()
            .filter(|&pages| pages <= usize::MAX / PAGE_BYTES);
        let pages = pages.ok_or(Error::Option(
            "the largest file size does not fit the address space",
        ))?;
        Ok(BufferPool {
            frames: Mapping::new(pages * PAGE_WORDS)?,
            states: Mapping::new(pages)?,
            dirtiness: Mapping::new(pages)?,
            resident: ResidentSet::new(options.frames_max),
            store,
            check: options.check,
            pages_max: options.pages_max,
            frames_max: options.frames_max,
            used: AtomicUsize::new(0),
            waiting: Mutex::new(()),
            came_free: Condvar::new(),
            dirty: Mutex::new(Vec::new()),
            counters: Counters::default(),
        })
    }

    /// What the pool has done so far.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        PoolStats {
            frames: self.used.load(Ordering::Relaxed),
            reads: self.counters.reads.load(Ordering::Relaxed),
            writes: self.counters.writes.load(Ordering::Relaxed),
            evictions: self.counters.evictions.load(Ordering::Relaxed),
        }
    }

    #[inline]
    fn state(&self, page: PageId) -> PageState<'_> {
        PageState(&self.states[page.0 as usize])
    }

    fn dirtiness(&self, page: PageId) -> &AtomicU8 {
        &self.dirtiness[page.0 as usize]
    }

    #[inline]
    fn words(&self, page: PageId) -> &[AtomicU64; PAGE_WORDS] {
        let start = page.0 as usize * PAGE_WORDS;
        self.frames[start..start + PAGE_WORDS]
            .try_into()
            .expect("a page's words")
    }

    #[inline]
    fn view(&self, page: PageId) -> PageView<'_> {
        PageView::new(self.words(page))
    }

    #[inline]
    fn in_range(&self, page: PageId) -> Result<()> {
        if page.0 < self.pages_max {
            Ok(())
        } else {
            Err(Error::OutOfRange(page))
        }
    }

    /// Reads `page` into memory if it is not there, and notes its version. Waits while it is latched
    /// exclusively. The caller holds no latch.
    ///
    /// # Errors
    /// Those of reading: see [`PageStore`], [`Error::Damaged`], [`Error::NoFrame`]; what evicting
    /// another page failed with; [`Error::OutOfRange`].
    #[inline]
    pub fn optimistic(&self, page: PageId) -> Result<Optimistic<'_>> {
        self.in_range(page)?;
        let state = self.state(page);
        let mut faulted = false;
        loop {
            let seen = state.load();
            match seen.latch() {
                Latch::Marked if !faulted => _ = state.try_unmark(seen),
                Latch::Unlocked | Latch::Shared(_) | Latch::Marked => {
                    return Ok(Optimistic {
                        pool: self,
                        page,
                        version: seen.version(),
                    });
                }
                Latch::Exclusive => state.wait(seen),
                Latch::Evicted => {
                    self.fault(page)?;
                    faulted = true;
                }
            }
        }
    }

    /// Latches `page` against changes, reading it into memory if it is not there. Waits for exclusive
    /// latches to end. The caller holds no latch.
    ///
    /// # Errors
    /// As [`BufferPool::optimistic`].
    pub fn shared(&self, page: PageId) -> Result<Shared<'_>> {
        self.latch(page, |state, seen| state.try_shared(seen))?;
        Ok(Shared { pool: self, page })
    }

    /// Latches `page` for change, reading it into memory if it is not there. Waits for all other
    /// latches to end. The caller holds no latch.
    ///
    /// # Errors
    /// As [`BufferPool::optimistic`].
    pub fn exclusive(&self, page: PageId) -> Result<Exclusive<'_>> {
        self.latch(page, |state, seen| state.try_exclusive(seen))?;
        Ok(Exclusive { pool: self, page })
    }

    fn latch(&self, page: PageId, attempt: fn(PageState<'_>, state::Word) -> bool) -> Result<()> {
        self.in_range(page)?;
        let state = self.state(page);
        loop {
            let seen = state.load();
            match seen.latch() {
                Latch::Evicted => self.fault(page)?,
                _ if attempt(state, seen) => return Ok(()),
                _ => state.wait(seen),
            }
        }
    }

    /// Waits a while for the latches on a page to end. The caller holds no latch.
    pub(crate) fn wait_unlatched(&self, page: PageId) {
        let state = self.state(page);
        state.wait(state.load());
    }

    /// Latches a page that is about to be written from scratch, without reading it.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::NoFrame`], and what evicting another page failed with.
    pub fn create(&self, page: PageId) -> Result<Exclusive<'_>> {
        let frame = self.frame()?;
        self.create_in(frame, page)
    }

    /// [`BufferPool::create`] with a frame that the caller already has. Waits only for those who read
    /// the page though it is nobody's, so the caller may hold other latches.
    pub(crate) fn create_in<'p>(&'p self, frame: Frame<'p>, page: PageId) -> Result<Exclusive<'p>> {
        self.in_range(page)?;
        let state = self.state(page);
        loop {
            let seen = state.load();
            if state.try_fault(seen) {
                self.resident.insert(page, Entry::Ahead);
                frame.keep();
                break;
            }
            if state.try_exclusive(seen) {
                break;
            }
            state.wait(seen);
        }
        Ok(Exclusive { pool: self, page })
    }

    /// Drops the contents of a page that nobody needs any more, without writing them. The caller holds
    /// no latch.
    pub(crate) fn drop_page(&self, page: PageId) {
        let state = self.state(page);
        loop {
            let seen = state.load();
            if seen.latch() == Latch::Evicted {
                return;
            }
            if state.try_exclusive(seen) {
                return Exclusive { pool: self, page }.discard();
            }
            state.wait(seen);
        }
    }

    /// Reads an evicted page into memory; on return it was resident for a moment at least.
    #[cold]
    fn fault(&self, page: PageId) -> Result<()> {
        // The frame comes first: nobody waits for one with a latch held.
        let frame = self.frame()?;
        let state = self.state(page);
        if !state.try_fault(state.load()) {
            return Ok(());
        }
        let mut image = PageBuf::zeroed();
        let read = self
            .store
            .read(page, &mut image)
            .and_then(|()| self.admit(page, &image, Entry::Read));
        if read.is_ok() {
            frame.keep();
            // This use is the one that it is read for.
            state.release_marked();
        } else {
            state.release_evicted();
        }
        read
    }

    /// Checks an image and puts it into the frame of its page, which is latched exclusively.
    fn admit(&self, page: PageId, image: &PageBuf, entry: Entry) -> Result<()> {
        image.verify(page)?;
        (self.check)(page, image)?;
        self.put_words(page, image);
        self.resident.insert(page, entry);
        self.counters.reads.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Fills the frame of a page that is latched exclusively.
    fn put_words(&self, page: PageId, image: &PageBuf) {
        for (word, &new) in self.words(page).iter().zip(image.raw_words()) {
            word.store(new, Ordering::Relaxed);
        }
    }

    /// Whether `page` is in memory at the moment, or on its way.
    pub(crate) fn is_resident(&self, page: PageId) -> bool {
        self.in_range(page).is_ok() && self.state(page).load().latch() != Latch::Evicted
    }

    /// Reads those of `pages` that are not in memory, in one batch, as far as frames are free without
    /// waiting. A hint: what cannot be read is left for whoever needs it. The caller holds no latch.
    pub fn prefetch(&self, pages: &[PageId]) {
        let (mut latched, mut frames) = (Vec::new(), Vec::new());
        let pages = pages.iter().copied();
        let mut pages: Vec<_> = pages.filter(|&page| self.in_range(page).is_ok()).collect();
        pages.truncate(PREFETCH_MAX);
        // So that neighbours are read in one piece.
        pages.sort_unstable();
        for page in pages {
            let state = self.state(page);
            let seen = state.load();
            // A quarter of the pool at most, so that what was prefetched survives until it is used.
            if seen.latch() != Latch::Evicted || frames.len() >= self.frames_max / 4 {
                continue;
            }
            let Ok(frame) = self.frame_now() else { break };
            if state.try_fault(seen) {
                latched.push(page);
                frames.push(frame);
            }
        }
        let mut images = vec![PageBuf::zeroed(); latched.len()];
        let read = match latched.is_empty() {
            true => Ok(()),
            false => self.store.read_batch(&latched, &mut images),
        };
        for ((page, image), frame) in latched.into_iter().zip(&images).zip(frames) {
            match read
                .as_ref()
                .map_err(Error::clone)
                .and_then(|()| self.admit(page, image, Entry::Ahead))
            {
                Ok(()) => {
                    frame.keep();
                    self.state(page).release_exclusive();
                }
                Err(_) => self.state(page).release_evicted(),
            }
        }
    }

    /// Writes every dirty page to the store.
    ///
    /// # Errors
    /// Of the store; pages that were not written stay dirty.
    pub fn flush(&self) -> Result<()> {
        let pages = self.take_dirty();
        let mut chunks = pages.chunks(WRITE_MAX);
        while let Some(chunk) = chunks.next() {
            if let Err(error) = self.write_out(chunk) {
                chunks.for_each(|rest| self.return_dirty(rest));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Seals and writes pages that are in use, but that nothing refers to yet, without a way through memory;
    /// keeps them in memory as far as there are free frames. The caller holds no latch, and no commit begins
    /// meanwhile.
    ///
    /// # Errors
    /// Of the store.
    pub(crate) fn write_new(&self, pages: &[PageId], images: &mut [PageBuf]) -> Result<()> {
        if pages.is_empty() {
            return Ok(());
        }
        for (&page, image) in pages.iter().zip(&mut *images) {
            self.in_range(page)?;
            image.seal(page);
        }
        self.store.write_back(pages, images)?;
        self.counters
            .writes
            .fetch_add(pages.len() as u64, Ordering::Relaxed);
        for (&page, image) in pages.iter().zip(&*images) {
            self.show(page, image);
        }
        Ok(())
    }

    /// Puts the image of a page that was just written into memory, if there is room, or if the page is there:
    /// somebody with an old reference may have read what the store had before.
    fn show(&self, page: PageId, image: &PageBuf) {
        let state = self.state(page);
        loop {
            let seen = state.load();
            if seen.latch() == Latch::Evicted {
                let Some(frame) = self.claim() else { return };
                if state.try_fault(seen) {
                    self.put_words(page, image);
                    self.resident.insert(page, Entry::Ahead);
                    frame.keep();
                    return state.release_exclusive();
                }
            } else if state.try_exclusive(seen) {
                self.put_words(page, image);
                return state.release_exclusive();
            } else {
                state.wait(seen);
            }
        }
    }

    /// Writes those of `pages` that are dirty to the store, best in ascending order; they stay in memory. The
    /// caller holds no latch, and no commit begins meanwhile.
    ///
    /// # Errors
    /// Of the store; the pages then stay dirty.
    pub(crate) fn write_out(&self, pages: &[PageId]) -> Result<()> {
        let mut staged = Vec::with_capacity(pages.len());
        let mut images = Vec::with_capacity(pages.len());
        for &page in pages {
            if let Some(image) = self.stage(page) {
                staged.push(page);
                images.push(image);
            }
        }
        if staged.is_empty() {
            return Ok(());
        }
        let written = self.store.write_back(&staged, &images);
        self.settle(&staged, written.is_ok());
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::PageRead;
    use crate::storage::MemoryStorage;

    fn pool() -> BufferPool {
        let store = Arc::new(InPlace::new(MemoryStorage::default()));
        let options = PoolOptions {
            frames_max: FRAMES_MIN,
            pages_max: 1000,
            check: |_, _| Ok(()),
        };
        BufferPool::new(store, options).unwrap()
    }

    fn image(number: u64) -> PageBuf {
        let mut image = PageBuf::zeroed();
        image.put_u64(16, number);
        image
    }

    fn read(pool: &BufferPool, page: PageId) -> u64 {
        pool.shared(page).unwrap().view().u64_at(16)
    }

    #[test]
    fn new_pages_are_written_once_take_free_frames_only_and_replace_what_was_read_before() {
        let pool = pool();
        let old = PageId(5);
        pool.create(old).unwrap().write(&image(1));
        pool.flush().unwrap();
        pool.evict().unwrap();
        assert_eq!(read(&pool, old), 1);
        let pages: Vec<_> = (0..100).map(PageId).collect();
        let mut images: Vec<_> = pages.iter().map(|page| image(1000 + page.0)).collect();
        let before = pool.stats();
        pool.write_new(&pages, &mut images).unwrap();
        let after = pool.stats();
        assert_eq!(after.writes, before.writes + 100);
        assert_eq!(after.evictions, before.evictions);
        assert_eq!(after.frames, FRAMES_MIN);
        for page in pages {
            assert_eq!(read(&pool, page), 1000 + page.0);
        }
        pool.flush().unwrap();
        assert_eq!(pool.stats().writes, after.writes);
    }
}
