//! Writes the pages of a bulk load while the next ones are built: a thread that is started once there is
//! a batch for it.
//!
//! At most three batches exist: one that is built, one that waits, one that is written. Before pages may be
//! given back, or anything refers to them, [`Writer::finish`] has seen the thread end.

use crate::error::Result;
use crate::page::{PageBuf, PageId};
use crate::pool::BufferPool;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

/// Pages that are written at once.
const BATCH_PAGES: usize = 128;

/// Pages that nobody knows of yet, and their images.
#[derive(Default)]
struct Batch {
    pages: Vec<PageId>,
    images: Vec<PageBuf>,
}

impl Batch {
    fn write(&mut self, pool: &BufferPool) -> Result<()> {
        pool.write_new(&self.pages, &mut self.images)?;
        self.pages.clear();
        self.images.clear();
        Ok(())
    }
}

/// The thread, and how batches come and go.
struct Thread<'scope> {
    full: SyncSender<Batch>,
    empty: Receiver<Batch>,
    handle: ScopedJoinHandle<'scope, Result<()>>,
}

/// Takes pages in the order of their numbers, as far as that can be.
pub(super) struct Writer<'scope, 'env> {
    pool: &'env BufferPool,
    scope: &'scope Scope<'scope, 'env>,
    batch: Batch,
    thread: Option<Thread<'scope>>,
}

impl<'scope, 'env> Writer<'scope, 'env> {
    pub(super) fn new(
        pool: &'env BufferPool,
        scope: &'scope Scope<'scope, 'env>,
    ) -> Writer<'scope, 'env> {
        Writer {
            pool,
            scope,
            batch: Batch::default(),
            thread: None,
        }
    }

    /// Takes the image of a page, to be written soon.
    pub(super) fn push(&mut self, page: PageId, image: PageBuf) -> Result<()> {
        self.batch.pages.push(page);
        self.batch.images.push(image);
        match self.batch.pages.len() < BATCH_PAGES {
            true => Ok(()),
            false => self.pass_on(),
        }
    }

    /// Hands the batch to the thread.
    fn pass_on(&mut self) -> Result<()> {
        let thread = self
            .thread
            .get_or_insert_with(|| start(self.pool, self.scope));
        let full = std::mem::take(&mut self.batch);
        if thread.full.send(full).is_err() {
            // It has ended, so it failed.
            return self.end();
        }
        self.batch = thread.empty.try_recv().unwrap_or_default();
        Ok(())
    }

    /// Lets go of what is not written yet; whoever does has a failure to report already.
    pub(super) fn abandon(&mut self) {
        self.batch = Batch::default();
        _ = self.end();
    }

    /// Waits for the thread to write what it has and to end.
    fn end(&mut self) -> Result<()> {
        let Some(Thread { full, handle, .. }) = self.thread.take() else {
            return Ok(());
        };
        drop(full);
        let joined = handle.join();
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Writes what is left. Afterwards all pages can be read from the store, or nothing is written any more.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.end()?;
        self.batch.write(self.pool)
    }
}

fn start<'scope, 'env>(
    pool: &'env BufferPool,
    scope: &'scope Scope<'scope, 'env>,
) -> Thread<'scope> {
    let (full, received) = sync_channel::<Batch>(1);
    let (written, empty) = sync_channel(2);
    let handle = scope.spawn(move || {
        for mut batch in received {
            batch.write(pool)?;
            // Whoever built it may be gone, or have enough of them.
            _ = written.try_send(batch);
        }
        Ok(())
    });
    Thread {
        full,
        empty,
        handle,
    }
}
