//! A redo log of page images in two files that take turns.
//!
//! Until a commit is durable, the file keeps the state of the commit before: a page that leaves memory
//! early, and every page of a commit, is appended to the active log. The commit's last batch carries a
//! mark, and everything up to it is validated by checksums, so one sequential write and one sync make
//! the commit atomic and durable. An index in memory finds the images that the log holds.
//!
//! When the active log is long enough it is sealed at a commit and the other one takes over; tidying
//! copies the sealed log's images home, syncs the file, and only then starts that log afresh. So writers
//! do not wait for tidying unless it falls a whole log behind.
//!
//! Why a log of images and not a rollback journal or a double write buffer in place: stealing a page
//! needs no sync, a commit needs one instead of two or three, and the images of several commits to the
//! same page go home once. The price is reading back from the log until then.
//!
//! Pages beyond the end of the last commit are in no committed state. In large numbers they are written
//! to the file directly, once, and synced before the commit's mark is written; a bulk load so costs one
//! write per page.
//!
//! Lock order: tail, then a log's index. No page latch is taken here.

use super::log::Log;
use super::record::{BATCH_PAGES_MAX, Batch, Header};
use super::recovery;
use super::{Commit, CommitBatch, CommitMethod};
use crate::error::{Error, Result};
use crate::page::{PAGE_BYTES, PageBuf, PageId, PageRead};
use crate::pool::PageStore;
use crate::storage::{ReadOp, Storage, reads_of, writes_of};
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Commits with more pages write those that are new in the file directly.
const DIRECT_FROM_PAGES: usize = 1024;

/// Images of a commit that are kept in memory, so that writers need not wait until they are written.
const STAGED_PAGES_MAX: usize = 8 * BATCH_PAGES_MAX;
/// Images that are copied home at once: so few that those who read meanwhile need not wait long.
const HOME_PAGES: usize = 32;
/// Blocks of a batch at most.
const BATCH_BLOCKS_MAX: usize = 1 + BATCH_PAGES_MAX;

/// How the journal behaves.
#[derive(Clone, Copy, Debug)]
pub struct JournalOptions {
    /// Length at which a log is sealed.
    pub log_bytes: u64,
}

impl Default for JournalOptions {
    fn default() -> JournalOptions {
        JournalOptions {
            log_bytes: 64 << 20,
        }
    }
}

/// Where the next batch goes.
pub(super) struct Tail {
    pub(super) active: usize,
    pub(super) generation: u64,
    pub(super) block: u64,
    pub(super) sequence: u64,
    pub(super) chain: u32,
    /// Number of the last commit.
    pub(super) after: u64,
    /// Batches since then.
    pub(super) uncommitted: u64,
    /// Generation of the other log, which is empty; none while its images are not home yet.
    pub(super) spare: Option<u64>,
    /// Pages were written to the file that no sync covers.
    pub(super) file_unsynced: bool,
}

/// A redo log beside a file; see the module's text.
pub struct Journal {
    pub(super) file: Arc<dyn Storage>,
    pub(super) logs: [Log; 2],
    pub(super) tail: Mutex<Tail>,
    pub(super) active: AtomicUsize,
    /// The sealed log's commits are durable, so that it can be copied home.
    pub(super) sealed_durable: AtomicBool,
    /// Pages from here on are in no committed state; zero before the first commit.
    pub(super) committed_pages: AtomicU64,
    pub(super) tidying: Mutex<()>,
    pub(super) file_id: u64,
    pub(super) is_new: bool,
    pub(super) log_blocks: u64,
}

impl Journal {
    /// Opens a file with its two logs, and brings it to the last commit.
    ///
    /// # Errors
    /// Of the storage; [`Error::Format`] when the three do not belong together or hold something else.
    pub fn open(
        file: Arc<dyn Storage>,
        logs: [Arc<dyn Storage>; 2],
        options: JournalOptions,
    ) -> Result<Journal> {
        recovery::open(file, logs, options)
    }

    /// Appends sealed images, at most [`BATCH_PAGES_MAX`]; `blocks` has a free block before them.
    fn append(&self, tail: &mut Tail, blocks: &mut [PageBuf], commit: Option<u64>) -> Result<()> {
        let (descriptor, images) = blocks
            .split_first_mut()
            .expect("a block for the descriptor");
        let batch = Batch {
            generation: tail.generation,
            sequence: tail.sequence,
            chain: tail.chain,
            after: tail.after,
            commit,
        };
        *descriptor = batch.encode(images);
        let chain = descriptor.u32_at(0);
        let log = &self.logs[tail.active];
        log.write(tail.block, blocks, self.log_blocks)
            .map_err(Error::io("append to the journal"))?;
        let mut index = log.index.write();
        for (block, image) in (tail.block + 1..).zip(&blocks[1..]) {
            index.insert(image.number(), block);
        }
        tail.block += blocks.len() as u64;
        tail.sequence += 1;
        tail.chain = chain;
        tail.uncommitted += 1;
        if commit.is_some() {
            tail.after += 1;
            tail.uncommitted = 0;
        }
        Ok(())
    }

    /// Whether no committed state, and no log, has the page.
    fn is_fresh(&self, page: PageId) -> bool {
        let committed = self.committed_pages.load(Ordering::Relaxed);
        committed > 0 && page.0 >= committed && !self.is_logged(page)
    }

    /// Whether a log has an image of the page.
    fn is_logged(&self, page: PageId) -> bool {
        self.logs
            .iter()
            .any(|log| log.index.read().contains_key(&page))
    }

    /// Writes pages to their places in the file.
    fn write_home(&self, images: &[PageBuf]) -> Result<()> {
        self.file
            .write_batch(&writes_of(images))
            .map_err(Error::io("write pages"))
    }

    /// Makes the other log the active one, if it is empty; whether it did.
    fn seal(&self, tail: &mut Tail) -> bool {
        let spare = tail.spare.take();
        if let Some(generation) = spare {
            self.sealed_durable.store(false, Ordering::Relaxed);
            tail.active = 1 - tail.active;
            tail.generation = generation;
            tail.block = 1;
            tail.sequence = 0;
            tail.chain = 0;
            self.active.store(tail.active, Ordering::Release);
        }
        spare.is_some()
    }

    /// Copies all images of a log to their places and makes them durable there.
    pub(super) fn copy_home(&self, log: &Log) -> Result<()> {
        let mut images: Vec<_> = log
            .index
            .read()
            .iter()
            .map(|(&page, &block)| (page, block))
            .collect();
        images.sort_unstable();
        for chunk in images.chunks(HOME_PAGES) {
            let mut bufs = PageBuf::zeroed_vec(chunk.len());
            let blocks = chunk.iter().zip(&mut bufs);
            let mut reads: Vec<_> = blocks
                .map(|(&(_, block), buf)| ReadOp {
                    offset: block * PAGE_BYTES as u64,
                    into: buf.bytes_mut(),
                })
                .collect();
            log.storage
                .read_batch(&mut reads)
                .map_err(Error::io("read the journal"))?;
            chunk
                .iter()
                .zip(&bufs)
                .try_for_each(|(&(page, _), buf)| buf.verify(page))?;
            self.write_home(&bufs)?;
        }
        if images.is_empty() {
            Ok(())
        } else {
            self.file.sync().map_err(Error::io("sync the file"))
        }
    }

    /// Starts a log afresh, whose images are all home.
    pub(super) fn restart(&self, log: &Log, generation: u64) -> Result<()> {
        {
            let _readers_left = log.in_use.write();
            log.index.write().clear();
        }
        let header = Header {
            file_id: self.file_id,
            generation,
        }
        .encode();
        log.write(0, &[header], 0)
            .map_err(Error::io("start the journal"))?;
        // Before a batch follows: an old header with new batches could validate a part of the old ones.
        log.storage.sync().map_err(Error::io("start the journal"))?;
        // What an exceptionally large commit took, the next ones will not need.
        log.shrink(2 * self.log_blocks)
            .map_err(Error::io("shorten the journal"))
    }
}

impl PageStore for Journal {
    fn read(&self, page: PageId, into: &mut PageBuf) -> Result<()> {
        // The page's latch orders this load after the one who wrote the page.
        let active = self.active.load(Ordering::Acquire);
        for log in [&self.logs[active], &self.logs[1 - active]] {
            let _in_use = log.in_use.read();
            let block = log.index.read().get(&page).copied();
            if let Some(block) = block {
                let read = log
                    .storage
                    .read_at(block * PAGE_BYTES as u64, into.bytes_mut());
                return read.map_err(Error::io("read the journal"));
            }
        }
        self.file
            .read_at(page.offset(), into.bytes_mut())
            .map_err(Error::io("read a page"))
    }

    fn read_batch(&self, pages: &[PageId], into: &mut [PageBuf]) -> Result<()> {
        let logged: HashSet<_> = pages
            .iter()
            .copied()
            .filter(|&page| self.is_logged(page))
            .collect();
        for (&page, buf) in pages.iter().zip(&mut *into) {
            if logged.contains(&page) {
                self.read(page, buf)?;
            }
        }
        let mut reads = reads_of(pages, into, |page| !logged.contains(&page));
        self.file
            .read_batch(&mut reads)
            .map_err(Error::io("read pages"))
    }

    fn write_back(&self, pages: &[PageId], images: &[PageBuf]) -> Result<()> {
        let mut tail = self.tail.lock();
        if pages.iter().all(|&page| self.is_fresh(page)) {
            tail.file_unsynced = true;
            return self.write_home(images);
        }
        let (mut fresh, mut logged) = (Vec::new(), vec![PageBuf::zeroed()]);
        for (&page, image) in pages.iter().zip(images) {
            let to = if self.is_fresh(page) {
                &mut fresh
            } else {
                &mut logged
            };
            to.push(image.clone());
        }
        if !fresh.is_empty() {
            tail.file_unsynced = true;
            self.write_home(&fresh)?;
        }
        if logged.len() > 1 {
            self.append(&mut tail, &mut logged, None)?;
        }
        Ok(())
    }
}

impl CommitMethod for Journal {
    fn name(&self) -> &'static str {
        "journal"
    }

    fn is_new(&self) -> bool {
        self.is_new
    }

    fn file_id(&self) -> u64 {
        self.file_id
    }

    fn counts_commits(&self) -> bool {
        true
    }

    fn begin(&self, commit: Commit) -> Box<dyn CommitBatch + '_> {
        let tail = self.tail.lock();
        assert_eq!(commit.number, tail.after + 1, "commits are consecutive");
        let direct = tail.file_unsynced || commit.pages_expected > DIRECT_FROM_PAGES;
        // The memory is taken once.
        let images = commit.pages_expected.min(STAGED_PAGES_MAX);
        let blocks = Vec::with_capacity(images + 1 + images / BATCH_PAGES_MAX);
        let log = tail.active;
        Box::new(JournalCommit {
            journal: self,
            tail: Some(tail),
            commit,
            direct,
            blocks,
            fresh: Vec::new(),
            log,
        })
    }

    fn is_untidy(&self) -> bool {
        self.sealed_durable.load(Ordering::Acquire)
    }

    fn is_overdue(&self) -> bool {
        self.is_untidy() && self.tail.lock().block > 2 * self.log_blocks
    }

    fn tidy(&self) -> Result<()> {
        let _one_at_a_time = self.tidying.lock();
        if !self.is_untidy() {
            return Ok(());
        }
        let (sealed, generation) = {
            let tail = self.tail.lock();
            (&self.logs[1 - tail.active], tail.generation + 1)
        };
        self.copy_home(sealed)?;
        self.restart(sealed, generation)?;
        self.sealed_durable.store(false, Ordering::Release);
        self.tail.lock().spare = Some(generation);
        Ok(())
    }

    fn close(&self) -> Result<()> {
        self.tidy()?;
        let mut tail = self.tail.lock();
        if tail.uncommitted > 0 {
            // Only the next opening may tell these from the commits before.
            return Ok(());
        }
        if self.seal(&mut tail) {
            self.sealed_durable.store(true, Ordering::Release);
        }
        drop(tail);
        self.tidy()
    }
}

/// A commit on its way into the log.
struct JournalCommit<'j> {
    journal: &'j Journal,
    /// Held until the commit is written.
    tail: Option<MutexGuard<'j, Tail>>,
    commit: Commit,
    /// New pages go to the file directly.
    direct: bool,
    /// Images for the log, with a block for the descriptor before the first of each batch.
    blocks: Vec<PageBuf>,
    /// Images for the file.
    fresh: Vec<PageBuf>,
    /// The log that has the commit.
    log: usize,
}

impl JournalCommit<'_> {
    fn tail(&mut self) -> &mut Tail {
        self.tail.as_mut().expect("held until written")
    }

    fn write_fresh(&mut self) -> Result<()> {
        self.tail().file_unsynced = true;
        self.journal.write_home(&self.fresh)?;
        self.fresh.clear();
        Ok(())
    }

    /// Appends what there is, and with the last batch the commit's mark.
    fn append(&mut self, commit: Option<u64>) -> Result<()> {
        let tail = self.tail.as_mut().expect("held until written");
        let last = self.blocks.len().saturating_sub(1) / BATCH_BLOCKS_MAX;
        for (index, batch) in self.blocks.chunks_mut(BATCH_BLOCKS_MAX).enumerate() {
            let mark = commit.filter(|_| index == last);
            self.journal.append(tail, batch, mark)?;
        }
        self.blocks.clear();
        Ok(())
    }
}

impl CommitBatch for JournalCommit<'_> {
    fn add(&mut self, page: PageId, image: PageBuf) -> Result<()> {
        if self.direct && self.journal.is_fresh(page) {
            self.fresh.push(image);
            if self.fresh.len() == BATCH_PAGES_MAX {
                self.write_fresh()?;
            }
        } else {
            if self.blocks.len() >= STAGED_PAGES_MAX {
                self.append(None)?;
            }
            if self.blocks.len().is_multiple_of(BATCH_BLOCKS_MAX) {
                self.blocks.push(PageBuf::zeroed());
            }
            self.blocks.push(image);
        }
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        if !self.fresh.is_empty() {
            self.write_fresh()?;
        }
        if self.tail().file_unsynced {
            let synced = self.journal.file.sync().map_err(Error::io("sync the file"));
            // A later sync may succeed without the pages that this one lost.
            synced.map_err(|error| Error::Latched(Arc::new(error)))?;
            self.tail().file_unsynced = false;
        }
        // Should writing fail now, the mark may be there all the same: its pages are fresh no more.
        self.journal
            .committed_pages
            .fetch_max(self.commit.page_count, Ordering::Relaxed);
        if self.blocks.is_empty() {
            self.blocks.push(PageBuf::zeroed());
        }
        self.append(Some(self.commit.page_count))?;
        let mut tail = self.tail.take().expect("written once");
        if tail.block > self.journal.log_blocks {
            self.journal.seal(&mut tail);
        }
        Ok(())
    }

    fn sync(self: Box<Self>) -> Result<()> {
        let synced = self.journal.logs[self.log].storage.sync();
        synced.map_err(Error::io("sync the journal"))?;
        let is_sealed = self.journal.active.load(Ordering::Acquire) != self.log;
        if is_sealed {
            self.journal.sealed_durable.store(true, Ordering::Release);
        }
        Ok(())
    }
}
