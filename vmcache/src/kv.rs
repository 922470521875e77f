//! A key-value store on one tree of an index file.
//!
//! Handles are clones; the last one to go commits what is pending, waits for the background thread, and
//! leaves the journal empty. The background thread only tidies: it copies committed pages from the
//! journal to their places, next to everything else.

use crate::error::Result;
use crate::index::{CheckReport, IndexFile, IndexOptions, Range, Tree, WriteBatch};
use crate::pool::PoolStats;
use parking_lot::{Condvar, Mutex};
use std::ops::{ControlFlow, RangeBounds};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// How long the background thread waits after a failure.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Signal {
    state: Mutex<SignalState>,
    changed: Condvar,
}

#[derive(Default)]
struct SignalState {
    stop: bool,
    untidy: bool,
}

struct Shared {
    index: IndexFile,
    tree: Tree,
    signal: Arc<Signal>,
    worker: Mutex<Option<JoinHandle<()>>>,
}

impl Shared {
    /// Ends the background work, commits, and empties the journal; once.
    fn finish(&self) -> Result<()> {
        let Some(worker) = self.worker.lock().take() else {
            return Ok(());
        };
        self.signal.state.lock().stop = true;
        self.signal.changed.notify_all();
        if worker.join().is_err() {
            tracing::error!("the background thread panicked");
        }
        self.index.finish()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            tracing::error!(%error, "the last changes may not be durable");
        }
    }
}

/// A key-value store in a file. Clones are handles to the same store, usable from many threads.
#[derive(Clone)]
pub struct Kv {
    shared: Arc<Shared>,
}

impl Kv {
    /// The tree that the entries are in unless another one is asked for.
    pub const TREE: &str = "kv";

    /// Opens the store at `path`, or creates one.
    ///
    /// # Errors
    /// As [`IndexFile::open`].
    pub fn open(path: &Path, options: IndexOptions) -> Result<Kv> {
        Kv::on(IndexFile::open(path, options)?)
    }

    /// The store in an index file that is already open.
    ///
    /// # Errors
    /// As [`IndexFile::tree`] and [`IndexFile::commit`].
    pub fn on(index: IndexFile) -> Result<Kv> {
        Kv::on_tree(index, Kv::TREE)
    }

    /// The store in one of the trees of an index file that is already open, made if there is none of
    /// that name. A file has one store at a time; its other trees are reached through [`Kv::index`].
    ///
    /// # Errors
    /// As [`IndexFile::tree`] and [`IndexFile::commit`].
    pub fn on_tree(index: IndexFile, name: &str) -> Result<Kv> {
        let tree = index.tree(name)?;
        index.commit()?;
        let signal = Arc::new(Signal::default());
        let worker = {
            let (index, signal) = (index.clone(), Arc::clone(&signal));
            std::thread::Builder::new()
                .name("vmcache-tidy".into())
                .spawn(move || tidy(&index, &signal))
        };
        let worker = worker.map_err(crate::Error::io("start the background thread"))?;
        let shared = Shared {
            index,
            tree,
            signal,
            worker: Mutex::new(Some(worker)),
        };
        Ok(Kv {
            shared: Arc::new(shared),
        })
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// As [`Tree::get`].
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.shared.tree.get(key)
    }

    /// Appends the value of `key` to `out`; false if there is none.
    ///
    /// # Errors
    /// As [`Tree::get`].
    pub fn get_into(&self, key: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        self.shared.tree.get_into(key, out)
    }

    /// Sets the value of `key`; true if it replaced one. Visible at once, durable with the next commit.
    ///
    /// # Errors
    /// As [`Tree::set`].
    pub fn set(&self, key: &[u8], value: &[u8]) -> Result<bool> {
        self.shared.tree.set(key, value)
    }

    /// Removes `key`; false if there is none. Durable with the next commit.
    ///
    /// # Errors
    /// As [`Tree::remove`].
    pub fn remove(&self, key: &[u8]) -> Result<bool> {
        self.shared.tree.remove(key)
    }

    /// Applies changes that every commit has all of or none.
    ///
    /// # Errors
    /// As [`Tree::apply`].
    pub fn apply(&self, batch: &WriteBatch) -> Result<()> {
        self.shared.tree.apply(batch)
    }

    /// The entries with keys in `range`; see [`Tree::range`]. Keeps the file open while it lives.
    pub fn scan<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Range {
        self.shared.tree.range(range)
    }

    /// Calls `visit` with the entries with keys in `range`; see [`Tree::for_each`].
    ///
    /// # Errors
    /// As [`Tree::for_each`].
    pub fn for_each<K: AsRef<[u8]>>(
        &self,
        range: impl RangeBounds<K>,
        visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        self.shared.tree.for_each(range, visit)
    }

    /// Calls `visit` with the first `count` entries with keys in `range`; see [`Tree::for_first`].
    ///
    /// # Errors
    /// As [`Tree::for_first`].
    pub fn for_first<K: AsRef<[u8]>>(
        &self,
        count: usize,
        range: impl RangeBounds<K>,
        visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        self.shared.tree.for_first(count, range, visit)
    }

    /// Fills the empty store from entries in ascending order of keys; see [`Tree::bulk_load`].
    ///
    /// # Errors
    /// As [`Tree::bulk_load`].
    pub fn bulk_load<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        entries: impl IntoIterator<Item = Result<(K, V)>>,
    ) -> Result<u64> {
        self.shared.tree.bulk_load(entries)
    }

    /// Makes everything before durable in one piece; concurrent calls share one flush.
    ///
    /// # Errors
    /// As [`IndexFile::commit`].
    pub fn commit(&self) -> Result<()> {
        self.shared.index.commit()?;
        if self.shared.index.is_untidy() {
            self.shared.signal.state.lock().untidy = true;
            self.shared.signal.changed.notify_all();
        }
        Ok(())
    }

    /// Verifies the file. Writers wait meanwhile.
    ///
    /// # Errors
    /// As [`IndexFile::check`].
    pub fn check(&self) -> Result<CheckReport> {
        self.shared.index.check()
    }

    /// What the pool has done so far.
    #[must_use]
    pub fn pool_stats(&self) -> PoolStats {
        self.shared.index.pool_stats()
    }

    /// The index file, for further trees.
    #[must_use]
    pub fn index(&self) -> &IndexFile {
        &self.shared.index
    }

    /// Lets go of the handle; if it is the last one, commits and closes, which dropping it does too but
    /// cannot report.
    ///
    /// # Errors
    /// As [`IndexFile::close`].
    pub fn close(self) -> Result<()> {
        Arc::into_inner(self.shared).map_or(Ok(()), |shared| shared.finish())
    }
}

/// The background thread.
fn tidy(index: &IndexFile, signal: &Signal) {
    let mut state = signal.state.lock();
    while !state.stop {
        if !std::mem::take(&mut state.untidy) {
            signal.changed.wait(&mut state);
            continue;
        }
        drop(state);
        let tidied = index.tidy();
        state = signal.state.lock();
        if let Err(error) = tidied {
            tracing::warn!(%error, "committed pages stay in the journal until the next try");
            state.untidy = true;
            signal.changed.wait_for(&mut state, RETRY);
        }
    }
}
