//! Commits by atomic writes of the filesystem: every page is written once, to its place.
//!
//! Pages that have to leave memory before their commit, and all pages of a commit, are written to the
//! file within a session ([`AtomicStorage`]), which the commit ends. Until then the file holds the last
//! commit for everybody but this handle, which reads what it wrote. So there is nothing to recover:
//! when the process or the power ends, so does the session.
//!
//! A session in which a write failed has nothing whole to commit. As long as every page in it is in memory
//! too, it is aborted and the next commit begins anew; once pages have left memory for it, it is kept for
//! reading, and no commit is made any more until the file is opened again.
//!
//! Lock order: the state is held by a commit from its beginning until it is durable, since a page that
//! was written to its session later would be part of it. No page latch is taken here.

use super::recovery::{random_id, read_meta};
use super::{Commit, CommitBatch, CommitMethod, Journal};
use crate::error::{Error, Result};
use crate::page::{PAGE_BYTES, PageBuf, PageId};
use crate::pool::PageStore;
use crate::storage::{AtomicStorage, reads_of, writes_of};
use parking_lot::{Mutex, MutexGuard};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// Images written at a time.
const BATCH_PAGES: usize = 256;

#[derive(Default)]
struct State {
    /// A session has been started.
    started: bool,
    /// It holds pages that are not in memory any more.
    evicted: bool,
}

/// Atomic writes to a file; see the module's text.
pub struct AtomicWrites {
    file: Arc<dyn AtomicStorage>,
    state: Mutex<State>,
    /// Why no commit can be made any more.
    broken: OnceLock<Arc<Error>>,
    /// It is open what the file holds of pages that are not in memory.
    unknown: AtomicBool,
    file_id: u64,
    is_new: bool,
}

impl AtomicWrites {
    /// Opens a file, which is at its last commit. If it has a journal, that must have been opened and
    /// closed before, and a file without a commit goes by the identity that it knows.
    ///
    /// # Errors
    /// Of the storage; [`Error::Format`] when it is no intact index file.
    pub fn open(file: Arc<dyn AtomicStorage>, journal: Option<&Journal>) -> Result<AtomicWrites> {
        let meta = read_meta(&*file)?;
        if meta.is_none() && !is_blank(&*file)? {
            return Err(Error::Format("page 0 is damaged"));
        }
        // What the system takes for a part of the file may be the trace of a session that ended.
        let pages = meta.as_ref().map_or(0, |meta| meta.page_count);
        file.shrink(pages * PAGE_BYTES as u64)
            .map_err(Error::io("shorten the file"))?;
        Ok(AtomicWrites {
            file,
            state: Mutex::default(),
            broken: OnceLock::new(),
            unknown: AtomicBool::new(false),
            file_id: meta
                .as_ref()
                .map(|meta| meta.file_id)
                .or(journal.map(|journal| journal.file_id))
                .unwrap_or_else(random_id),
            is_new: meta.is_none(),
        })
    }

    fn check(&self) -> Result<()> {
        self.broken
            .get()
            .map_or(Ok(()), |error| Err(Error::Latched(Arc::clone(error))))
    }

    fn latch(&self, error: Error) -> Error {
        let error = self.broken.get_or_init(|| Arc::new(error));
        Error::Latched(Arc::clone(error))
    }

    /// Writes images to their places, as a part of the session.
    fn write(&self, state: &mut State, images: &[PageBuf]) -> Result<()> {
        self.check()?;
        if !state.started {
            self.file
                .start()
                .map_err(Error::io("start an atomic write"))?;
            state.started = true;
        }
        let written = self.file.write_batch(&writes_of(images));
        let error = match written {
            Ok(()) => return Ok(()),
            Err(error) => Error::io("write pages")(error),
        };
        if state.evicted {
            return Err(self.latch(error));
        }
        match self.file.abort() {
            Ok(()) => state.started = false,
            Err(abort) => return Err(self.latch(Error::io("abort an atomic write")(abort))),
        }
        Err(error)
    }
}

/// Whether nothing was ever committed to the file: it is empty, or looks longer than it is.
fn is_blank(file: &dyn AtomicStorage) -> Result<bool> {
    let mut page = PageBuf::zeroed();
    match file.read_at(0, page.bytes_mut()) {
        Ok(()) => Ok(page.bytes().iter().all(|byte| *byte == 0)),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            file.is_empty().map_err(Error::io("measure the file"))
        }
        Err(error) => Err(Error::io("read page 0")(error)),
    }
}

impl PageStore for AtomicWrites {
    fn read(&self, page: PageId, into: &mut PageBuf) -> Result<()> {
        if self.unknown.load(Ordering::Acquire) {
            self.check()?;
        }
        self.file
            .read_at(page.offset(), into.bytes_mut())
            .map_err(Error::io("read a page"))
    }

    fn read_batch(&self, pages: &[PageId], into: &mut [PageBuf]) -> Result<()> {
        if self.unknown.load(Ordering::Acquire) {
            self.check()?;
        }
        self.file
            .read_batch(&mut reads_of(pages, into, |_| true))
            .map_err(Error::io("read pages"))
    }

    fn write_back(&self, _: &[PageId], images: &[PageBuf]) -> Result<()> {
        let mut state = self.state.lock();
        self.write(&mut state, images)?;
        state.evicted = true;
        Ok(())
    }
}

impl CommitMethod for AtomicWrites {
    fn name(&self) -> &'static str {
        "atomic writes"
    }

    fn is_new(&self) -> bool {
        self.is_new
    }

    fn file_id(&self) -> u64 {
        self.file_id
    }

    fn counts_commits(&self) -> bool {
        false
    }

    fn begin(&self, _: Commit) -> Box<dyn CommitBatch + '_> {
        Box::new(AtomicCommit {
            method: self,
            state: self.state.lock(),
            images: Vec::new(),
        })
    }

    fn is_untidy(&self) -> bool {
        false
    }

    fn is_overdue(&self) -> bool {
        false
    }

    fn tidy(&self) -> Result<()> {
        Ok(())
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// A commit under way.
struct AtomicCommit<'m> {
    method: &'m AtomicWrites,
    state: MutexGuard<'m, State>,
    images: Vec<PageBuf>,
}

impl AtomicCommit<'_> {
    fn flush(&mut self) -> Result<()> {
        let images = std::mem::take(&mut self.images);
        self.method.write(&mut self.state, &images)
    }
}

impl CommitBatch for AtomicCommit<'_> {
    fn add(&mut self, _: PageId, image: PageBuf) -> Result<()> {
        self.images.push(image);
        if self.images.len() >= BATCH_PAGES {
            self.flush()?;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        self.flush()
    }

    fn sync(mut self: Box<Self>) -> Result<()> {
        self.method.check()?;
        let committed = self.method.file.commit();
        *self.state = State::default();
        committed.map_err(|error| {
            self.method.unknown.store(true, Ordering::Release);
            self.method
                .latch(Error::io("commit an atomic write")(error))
        })
    }
}
