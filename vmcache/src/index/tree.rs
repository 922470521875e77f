//! Handles to one tree: point operations, batches, scans, bulk load.

use super::Shared;
use crate::btree::{BTree, BulkLoad, Cursor, Span, check_lengths};
use crate::error::Result;
use std::ops::{Bound, ControlFlow, RangeBounds};
use std::sync::Arc;

/// A tree of an index file. Clones are handles to the same tree; all may be used from many threads.
#[derive(Clone)]
pub struct Tree {
    shared: Arc<Shared>,
    tree: BTree,
}

/// Changes to be applied together.
#[derive(Clone, Debug, Default)]
pub struct WriteBatch {
    changes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl WriteBatch {
    /// No changes yet.
    #[must_use]
    pub fn new() -> WriteBatch {
        WriteBatch::default()
    }

    /// Sets the value of a key.
    pub fn set(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> &mut WriteBatch {
        self.changes.push((key.into(), Some(value.into())));
        self
    }

    /// Removes a key.
    pub fn remove(&mut self, key: impl Into<Vec<u8>>) -> &mut WriteBatch {
        self.changes.push((key.into(), None));
        self
    }

    /// Number of changes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether there are no changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

impl Tree {
    pub(super) fn new(shared: &Arc<Shared>, tree: BTree) -> Tree {
        Tree {
            shared: Arc::clone(shared),
            tree,
        }
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// Of reading: [`crate::Error::Io`], [`crate::Error::Damaged`], [`crate::Error::NoFrame`].
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut value = Vec::new();
        Ok(self.get_into(key, &mut value)?.then_some(value))
    }

    /// Appends the value of `key` to `out`; false, and nothing appended, if there is none.
    ///
    /// # Errors
    /// As [`Tree::get`].
    pub fn get_into(&self, key: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        let start = out.len();
        let found = self.tree.get(&self.shared.space, key, out);
        if !matches!(found, Ok(true)) {
            out.truncate(start);
        }
        found
    }

    /// Sets the value of `key`; true if it replaced one.
    ///
    /// # Errors
    /// [`crate::Error::KeyTooLong`], [`crate::Error::ValueTooLong`], [`crate::Error::Full`], [`crate::Error::Latched`], and those of
    /// reading, and of writing another page to make room; the tree is then as before.
    pub fn set(&self, key: &[u8], value: &[u8]) -> Result<bool> {
        check_lengths(key, value)?;
        let _gate = self.shared.enter()?;
        self.tree.insert(&self.shared.space, key, value)
    }

    /// Removes `key`; false if there is none.
    ///
    /// # Errors
    /// As [`Tree::set`].
    pub fn remove(&self, key: &[u8]) -> Result<bool> {
        let _gate = self.shared.enter()?;
        self.tree.remove(&self.shared.space, key)
    }

    /// Applies changes in order, so that every commit has all of them or none. Readers may see some
    /// before others.
    ///
    /// # Errors
    /// As [`Tree::set`]. If a change after the first fails, the file is latched, since it holds a part
    /// of the batch that must not be committed.
    pub fn apply(&self, batch: &WriteBatch) -> Result<()> {
        for (key, value) in &batch.changes {
            check_lengths(key, value.as_deref().unwrap_or_default())?;
        }
        let _gate = self.shared.enter()?;
        let space = &self.shared.space;
        for (index, (key, value)) in batch.changes.iter().enumerate() {
            let applied = match value {
                Some(value) => self.tree.insert(space, key, value),
                None => self.tree.remove(space, key),
            };
            match applied {
                Ok(_) => {}
                Err(error) if index == 0 => return Err(error),
                Err(error) => return Err(self.shared.latch(error)),
            }
        }
        Ok(())
    }

    /// The entries with keys in `range`, ascending; descending from the other end.
    ///
    /// The tree may change meanwhile: keys come in order and once, and none is missing that is there
    /// from beginning to end.
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Range {
        Range {
            shared: Arc::clone(&self.shared),
            cursor: self.cursor(&range),
        }
    }

    /// Calls `visit` with the entries that [`Tree::range`] gives, ascending, until it says to stop. Faster
    /// than that, since keys and values are only lent.
    ///
    /// `visit` may use the tree and the file, whose changes the scan may see or not.
    ///
    /// # Errors
    /// As [`Tree::get`].
    pub fn for_each<K: AsRef<[u8]>>(
        &self,
        range: impl RangeBounds<K>,
        visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        self.cursor(&range).for_each(&self.shared.space, visit)
    }

    /// [`Tree::for_each`] with the first `count` entries at most. Faster than stopping there, as it is known
    /// from the beginning which pages it takes.
    ///
    /// # Errors
    /// As [`Tree::get`].
    pub fn for_first<K: AsRef<[u8]>>(
        &self,
        count: usize,
        range: impl RangeBounds<K>,
        visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        let cursor = self.cursor(&range).up_to(count);
        cursor.for_each(&self.shared.space, visit)
    }

    fn cursor<K: AsRef<[u8]>>(&self, range: &impl RangeBounds<K>) -> Cursor {
        let own = |bound: Bound<&K>| bound.map(|key| key.as_ref().to_vec());
        let span = Span {
            lower: own(range.start_bound()),
            upper: own(range.end_bound()),
        };
        Cursor::new(self.tree, span)
    }

    /// All entries.
    pub fn iter(&self) -> Range {
        self.range::<&[u8]>(..)
    }

    /// Fills the empty tree from entries in strictly ascending order of keys, each page written once;
    /// returns how many there were. The next commit has all of them.
    ///
    /// Commits wait until it is done, so `entries` must not come from writing to the same file.
    ///
    /// # Errors
    /// [`crate::Error::BulkLoad`]; those of [`Tree::set`]; what `entries` fails with. The tree is then empty.
    pub fn bulk_load<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        entries: impl IntoIterator<Item = Result<(K, V)>>,
    ) -> Result<u64> {
        let _gate = self.shared.enter()?;
        std::thread::scope(|scope| {
            let mut load = BulkLoad::new(self.tree, &self.shared.space, scope)?;
            let mut count = 0;
            for entry in entries {
                let (key, value) = entry?;
                load.push(key.as_ref(), value.as_ref())?;
                count += 1;
            }
            load.finish()?;
            Ok(count)
        })
    }
}

/// An iterator over entries of a tree, from both ends.
pub struct Range {
    shared: Arc<Shared>,
    cursor: Cursor,
}

impl Iterator for Range {
    type Item = Result<(Vec<u8>, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.cursor.next(&self.shared.space);
        if next.is_err() {
            self.cursor.stop();
        }
        next.transpose()
    }
}

impl DoubleEndedIterator for Range {
    fn next_back(&mut self) -> Option<Self::Item> {
        let next = self.cursor.next_back(&self.shared.space);
        if next.is_err() {
            self.cursor.stop();
        }
        next.transpose()
    }
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tree({})", self.tree.root)
    }
}
