//! An index file: several named trees over one pool, committed together.
//!
//! Everything that changes pages holds the gate shared for the length of an operation or batch; a commit
//! holds it exclusively while it copies the dirty pages, so a commit never has half an operation.
//! Readers do not pass the gate. Concurrent commits share one flush.
//!
//! A commit in steps: gate; bitmap and meta pages are brought up to date; dirty pages are staged into
//! the commit method; gate opens; the method writes (pages may leave memory again) and syncs. A failure
//! before the sync leaves the pages dirty, and the next commit has them; a failed sync latches the file,
//! since it is open what the medium holds: writes and commits are refused until it is opened again.

mod group;
mod tree;

pub use tree::{Range, Tree, WriteBatch};

use crate::btree::{self, BTree, TreeStats};
use crate::commit::{AtomicWrites, Commit, CommitMethod, Journal, JournalOptions, random_id};
use crate::error::{Error, Result};
use crate::meta::{META, Meta, TREE_NAME_BYTES_MAX, TREES_MAX, has_magic};
use crate::page::{PAGE_BYTES, PageRead};
use crate::pool::{BufferPool, PoolOptions, PoolStats};
use crate::space::{Allocator, Space};
use crate::storage::{FileStorage, Storage};
use group::Group;
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::collections::HashSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// How an index file commits. A file can be opened one way and later another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CommitKind {
    /// By atomic writes where the filesystem has them, else with a journal.
    #[default]
    Automatic,
    /// With a journal.
    Journal,
}

/// Sizes of an index file's memory and journal, and how it commits.
#[derive(Clone, Copy, Debug)]
pub struct IndexOptions {
    /// Most bytes of pages in memory; at least 64 KiB.
    pub cache_bytes: usize,
    /// Most bytes the file may have. Costs address space, and nothing else, unless the system is set to
    /// count all address space as memory (`vm.overcommit_memory` 2).
    pub file_bytes_max: u64,
    /// Length at which a log of the journal is copied home.
    pub log_bytes: u64,
    /// How it commits.
    pub commits: CommitKind,
}

impl Default for IndexOptions {
    fn default() -> IndexOptions {
        let log_bytes = JournalOptions::default().log_bytes;
        IndexOptions {
            cache_bytes: 256 << 20,
            file_bytes_max: 1 << 40,
            log_bytes,
            commits: CommitKind::default(),
        }
    }
}

/// What is in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Each tree by name.
    pub trees: Vec<(String, TreeStats)>,
    /// Pages of the file.
    pub pages: u64,
    /// Pages that are free for new entries.
    pub pages_free: u64,
    /// Pages marked in use that no tree has. A page that could not be read when a long value was
    /// removed may leave some; they cost space only.
    pub pages_lost: u64,
}

pub(crate) struct Shared {
    pub(crate) space: Space,
    method: Arc<dyn CommitMethod>,
    gate: RwLock<()>,
    group: Group,
    /// Held while a commit runs, from its beginning until it is durable.
    committing: Mutex<()>,
    trees: Mutex<Vec<(String, BTree)>>,
    /// What page 0 says, as it is in memory; none before there is one.
    meta: Mutex<Option<Meta>>,
    /// Number of the last commit.
    committed: AtomicU64,
    /// Something may have changed since the last commit began.
    changed: AtomicBool,
    latched: OnceLock<Arc<Error>>,
}

/// An open index file. Clones are handles to the same file.
///
/// What was not committed when the last handle, [`Tree`] or [`Range`] goes is gone. [`crate::Kv`] is a
/// front end that commits at the end and tidies in the background.
#[derive(Clone)]
pub struct IndexFile {
    shared: Arc<Shared>,
}

/// The path of a log of the journal of `path`.
fn log_path(path: &Path, which: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("-journal-{which}"));
    name.into()
}

/// Whether there is an index file at `path`, by what the file begins with or the journal beside it. It
/// is not opened, so it may still be damaged, of another version, or in use.
///
/// # Errors
/// Of the operating system; [`io::ErrorKind::NotFound`] when there is no file.
pub fn is_index_file(path: &Path) -> io::Result<bool> {
    let mut start = Vec::new();
    let file = std::fs::File::open(path)?;
    file.take(PAGE_BYTES as u64).read_to_end(&mut start)?;
    let has_log = |which| {
        let log = std::fs::metadata(log_path(path, which));
        log.is_ok_and(|log| log.len() > 0)
    };
    Ok(has_magic(&start) || has_log(0) || has_log(1))
}

/// Removes an index file, which nobody has open, and its journal.
///
/// # Errors
/// Of the operating system.
pub fn remove_index_file(path: &Path) -> io::Result<()> {
    // The journal first: it belongs to no file that is made later.
    for log in [log_path(path, 0), log_path(path, 1)] {
        match std::fs::remove_file(log) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    std::fs::remove_file(path)
}

fn open_journal(file: Arc<dyn Storage>, logs: &[PathBuf; 2], log_bytes: u64) -> Result<Journal> {
    let open = |path: &PathBuf| -> Result<Arc<dyn Storage>> {
        let log = FileStorage::open(path).map_err(Error::io("open"))?;
        Ok(Arc::new(log))
    };
    let logs = [open(&logs[0])?, open(&logs[1])?];
    Journal::open(file, logs, JournalOptions { log_bytes })
}

impl IndexFile {
    /// Opens the index file at `path`, or creates one. Its journal, if it needs one, is in two files
    /// beside it.
    ///
    /// # Errors
    /// Of the operating system; [`Error::Format`], [`Error::Damaged`] when it is no intact index file;
    /// [`Error::Option`].
    pub fn open(path: &Path, options: IndexOptions) -> Result<IndexFile> {
        let file = FileStorage::open(path).map_err(Error::io("open"))?;
        let file = Arc::new(file);
        let logs = [log_path(path, 0), log_path(path, 1)];
        if options.commits == CommitKind::Journal || !file.has_atomic_writes() {
            let journal = open_journal(file, &logs, options.log_bytes)?;
            return IndexFile::with_method(Arc::new(journal), options);
        }
        let mut journal = None;
        if logs.iter().any(|log| log.exists()) {
            // The file comes from elsewhere, or was used otherwise: first to its last commit.
            let emptied = open_journal(Arc::clone(&file) as _, &logs, options.log_bytes)?;
            emptied.close()?;
            journal = Some(emptied);
            for log in &logs {
                std::fs::remove_file(log).map_err(Error::io("remove the journal"))?;
            }
        }
        let writes = AtomicWrites::open(file, journal.as_ref())?;
        IndexFile::with_method(Arc::new(writes), options)
    }

    /// How it commits: "atomic writes" or "journal".
    #[must_use]
    pub fn commits_by(&self) -> &'static str {
        self.shared.method.name()
    }

    /// Opens the index file that a commit method has, or creates one there.
    ///
    /// # Errors
    /// As [`IndexFile::open`].
    pub fn with_method(method: Arc<dyn CommitMethod>, options: IndexOptions) -> Result<IndexFile> {
        let pages_max = options.file_bytes_max / PAGE_BYTES as u64;
        let frames_max = options.cache_bytes / PAGE_BYTES;
        let pool_options = PoolOptions {
            frames_max,
            pages_max,
            check: btree::check_page,
        };
        let store: Arc<dyn crate::PageStore> = Arc::clone(&method) as _;
        let pool = BufferPool::new(store, pool_options)?;
        let is_new = method.is_new();
        let (pages, trees, meta) = if is_new {
            (Allocator::new(pages_max), Vec::new(), None)
        } else {
            let meta = Meta::decode(&pool.shared(META)?.view().to_buf())?;
            let pages = Allocator::load(&pool, pages_max, meta.page_count)?;
            let trees = meta
                .trees
                .iter()
                .map(|(name, root)| (name.clone(), BTree { root: *root }));
            (pages, trees.collect(), Some(meta))
        };
        let shared = Shared {
            space: Space::new(pool, pages, random_id()),
            method,
            gate: RwLock::new(()),
            group: Group::default(),
            committing: Mutex::new(()),
            trees: Mutex::new(trees),
            committed: AtomicU64::new(meta.as_ref().map_or(0, |meta| meta.commit)),
            meta: Mutex::new(meta),
            changed: AtomicBool::new(is_new),
            latched: OnceLock::new(),
        };
        let index = IndexFile {
            shared: Arc::new(shared),
        };
        if is_new {
            index.commit()?;
        }
        Ok(index)
    }

    /// The tree of this name, made empty if there is none yet; the next commit has it.
    ///
    /// # Errors
    /// [`Error::TreeName`]; those of allocating a page.
    pub fn tree(&self, name: &str) -> Result<Tree> {
        if name.is_empty() || name.len() > TREE_NAME_BYTES_MAX {
            return Err(Error::TreeName("a name has 1 to 47 bytes"));
        }
        let find = |trees: &[(String, BTree)]| {
            let tree = trees
                .iter()
                .find(|(known, _)| known == name)
                .map(|(_, tree)| *tree);
            tree.map(|tree| Tree::new(&self.shared, tree))
        };
        if let Some(tree) = find(&self.shared.trees.lock()) {
            return Ok(tree);
        }
        let _gate = self.shared.enter()?;
        let mut trees = self.shared.trees.lock();
        if let Some(tree) = find(&trees) {
            return Ok(tree);
        }
        if trees.len() == TREES_MAX {
            return Err(Error::TreeName(
                "the file has as many trees as its catalog holds",
            ));
        }
        let tree = BTree::create(&self.shared.space)?;
        trees.push((name.to_owned(), tree));
        Ok(Tree::new(&self.shared, tree))
    }

    /// The names of the trees.
    #[must_use]
    pub fn tree_names(&self) -> Vec<String> {
        self.shared
            .trees
            .lock()
            .iter()
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Makes everything that returned before this call durable, in one piece.
    ///
    /// # Errors
    /// Of the medium: nothing in memory is lost, and it may be tried again, unless the sync failed, after
    /// which the file refuses with [`Error::Latched`]. Whether a failed commit happened is open until
    /// the next one succeeds or the file is opened again.
    pub fn commit(&self) -> Result<()> {
        self.shared.group.commit(|| self.shared.flush())
    }

    /// Copies committed pages from the journal home if it is time; otherwise does nothing.
    ///
    /// # Errors
    /// Of the medium; it can be tried again.
    pub fn tidy(&self) -> Result<()> {
        self.shared.method.tidy()
    }

    /// Whether [`IndexFile::tidy`] has something to do.
    #[must_use]
    pub fn is_untidy(&self) -> bool {
        self.shared.method.is_untidy()
    }

    /// Commits, and leaves nothing in the journal. The caller is done with all other handles.
    ///
    /// # Errors
    /// As [`IndexFile::commit`] and [`IndexFile::tidy`].
    pub fn close(self) -> Result<()> {
        self.finish()
    }

    /// What [`IndexFile::close`] does.
    pub(crate) fn finish(&self) -> Result<()> {
        self.commit()?;
        let _no_commit = self.shared.committing.lock();
        let _gate = self.shared.gate.write();
        self.shared.check_latch()?;
        self.shared.method.close()
    }

    /// What the pool has done so far.
    #[must_use]
    pub fn pool_stats(&self) -> PoolStats {
        self.shared.space.pool.stats()
    }

    /// Pages of the file, in use or free.
    #[must_use]
    pub fn page_count(&self) -> u64 {
        self.shared.space.pages.page_count()
    }

    /// Verifies every tree. Writers wait meanwhile.
    ///
    /// # Errors
    /// [`Error::Damaged`] for the first thing that does not hold; those of reading.
    pub fn check(&self) -> Result<CheckReport> {
        let _gate = self.shared.gate.write();
        let space = &self.shared.space;
        let mut seen = HashSet::new();
        let mut report = CheckReport {
            pages: space.pages.page_count(),
            pages_free: space.pages.page_count() - space.pages.used_count(),
            ..CheckReport::default()
        };
        for (name, tree) in self.shared.trees.lock().iter() {
            report
                .trees
                .push((name.clone(), tree.check(space, &mut seen)?));
        }
        let known = seen.len() as u64 + space.pages.reserved_count();
        report.pages_lost = space.pages.used_count().saturating_sub(known);
        Ok(report)
    }
}

impl Shared {
    /// Passes the gate for a change.
    fn enter(&self) -> Result<RwLockReadGuard<'_, ()>> {
        let gate = self.gate.read();
        self.check_latch()?;
        if !self.changed.load(Ordering::Relaxed) {
            self.changed.store(true, Ordering::Relaxed);
        }
        Ok(gate)
    }

    fn check_latch(&self) -> Result<()> {
        self.latched
            .get()
            .map_or(Ok(()), |error| Err(Error::Latched(Arc::clone(error))))
    }

    /// Refuses writes and commits from now on.
    fn latch(&self, error: Error) -> Error {
        let error = match error {
            Error::Latched(error) => error,
            error => Arc::new(error),
        };
        tracing::error!(%error, "commits are refused until the file is opened again");
        Error::Latched(Arc::clone(self.latched.get_or_init(|| error)))
    }

    /// One commit, on behalf of everybody who waits for it.
    fn flush(&self) -> Result<()> {
        let _one_at_a_time = self.committing.lock();
        if self.method.is_overdue() {
            self.method.tidy()?;
        }
        let gate = self.gate.write();
        self.check_latch()?;
        if !self.changed.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let flushed = self.flush_changes(gate);
        if flushed.is_err() {
            self.changed.store(true, Ordering::Relaxed);
        }
        flushed
    }

    fn flush_changes(&self, gate: RwLockWriteGuard<'_, ()>) -> Result<()> {
        let number = self.committed.load(Ordering::Relaxed) + 1;
        let page_count = self.prepare(number)?;
        let pool = &self.space.pool;
        let dirty = pool.take_dirty();
        let mut batch = self.method.begin(Commit {
            number,
            page_count,
            pages_expected: dirty.len(),
        });
        let mut staged = Vec::with_capacity(dirty.len());
        for (index, &page) in dirty.iter().enumerate() {
            let Some(image) = pool.stage(page) else {
                continue;
            };
            staged.push(page);
            if let Err(error) = batch.add(page, image) {
                pool.settle(&staged, false);
                pool.return_dirty(&dirty[index + 1..]);
                return Err(error);
            }
        }
        drop(gate);
        let written = batch.write();
        pool.settle(&staged, written.is_ok());
        match written {
            Ok(()) => {}
            Err(error @ Error::Latched(_)) => return Err(self.latch(error)),
            Err(error) => return Err(error),
        }
        batch.sync().map_err(|error| self.latch(error))?;
        self.committed.store(number, Ordering::Relaxed);
        Ok(())
    }

    /// Brings the bitmap and meta pages up to date; returns the number of pages of the file.
    fn prepare(&self, number: u64) -> Result<u64> {
        let Space { pool, pages, .. } = &self.space;
        btree::free_again(&self.space);
        pages.store(pool)?;
        let trees = self.trees.lock();
        let meta = Meta {
            file_id: self.method.file_id(),
            commit: number,
            page_count: pages.page_count(),
            trees: trees
                .iter()
                .map(|(name, tree)| (name.clone(), tree.root))
                .collect(),
        };
        let page_count = meta.page_count;
        let mut known = self.meta.lock();
        let is_known = known.as_ref().is_some_and(|known| {
            let commit = known.commit;
            !self.method.counts_commits()
                && *known
                    == Meta {
                        commit,
                        ..meta.clone()
                    }
        });
        if !is_known {
            pool.create(META)?.write(&meta.encode());
            *known = Some(meta);
        }
        Ok(page_count)
    }
}
