//! Consistent versions of the map, and the pins that keep what they refer to.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::ControlFlow;

use parking_lot::Mutex;

use super::{Head, Records, Store, Value};
use crate::catalog::{Key, NodeCache, Tree};
use crate::error::Result;
use crate::types::Ino;

/// How often each version is read.
type Counts = BTreeMap<u64, usize>;

/// Versions somebody reads, with how many do: for a moment, or kept for longer.
#[derive(Default)]
pub(super) struct Pins(Mutex<(Counts, Counts)>);

fn add(counts: &mut Counts, version: u64) {
    *counts.entry(version).or_default() += 1;
}

fn remove(counts: &mut Counts, version: u64) {
    if let Some(count) = counts.get_mut(&version) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&version);
        }
    }
}

impl Pins {
    fn add(&self, version: u64) {
        add(&mut self.0.lock().0, version);
    }

    fn remove(&self, version: u64) {
        remove(&mut self.0.lock().0, version);
    }

    pub(super) fn keep(&self, version: u64) {
        add(&mut self.0.lock().1, version);
    }

    pub(super) fn let_go(&self, version: u64) {
        remove(&mut self.0.lock().1, version);
    }

    /// The oldest version in use.
    pub(super) fn oldest(&self) -> Option<u64> {
        let (brief, kept) = &*self.0.lock();
        brief.keys().chain(kept.keys()).min().copied()
    }

    /// The newest version that is kept.
    pub(super) fn newest_kept(&self) -> Option<u64> {
        self.0.lock().1.keys().next_back().copied()
    }

    /// Whether a version of `[from, before)` is in use.
    pub(super) fn any_within(&self, from: u64, before: u64) -> bool {
        let (brief, kept) = &*self.0.lock();
        within(brief, from, before) || within(kept, from, before)
    }

    /// Whether a version of `[from, before)` is kept.
    pub(super) fn any_kept_within(&self, from: u64, before: u64) -> bool {
        within(&self.0.lock().1, from, before)
    }

    /// How many views there are, and how many of them are kept.
    pub(super) fn count(&self) -> (usize, usize) {
        let (brief, kept) = &*self.0.lock();
        let kept = kept.values().sum();
        (brief.values().sum::<usize>() + kept, kept)
    }
}

fn within(counts: &Counts, from: u64, before: u64) -> bool {
    from < before && counts.range(from..before).next().is_some()
}

thread_local! {
    /// How many views the thread has. Counted in builds with debug assertions only.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// Whether this thread has a view; builds without debug assertions do not know of any.
pub(super) fn is_held() -> bool {
    HELD.get() > 0
}

/// A consistent version of the map that stays as it is; reading it takes no lock, and what it
/// refers to is kept on the device until it is dropped. Cheap: one reference count.
///
/// A thread drops its views before it begins a transaction, which debug assertions enforce: what a view
/// pins cannot be collected for the transaction. That is why it stays on its thread.
pub struct View<'a> {
    pub(super) store: &'a Store,
    tree: Tree,
    version: u64,
    of_this_thread: PhantomData<*const ()>,
}

impl Store {
    /// The newest version of everything.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        self.view_of(&self.head.read())
    }

    /// The version in `head`, for a caller that has it.
    pub(super) fn view_of(&self, head: &Head) -> View<'_> {
        self.pins.add(head.version);
        if cfg!(debug_assertions) {
            HELD.set(HELD.get() + 1);
        }
        View {
            store: self,
            tree: head.tree.clone(),
            version: head.version,
            of_this_thread: PhantomData,
        }
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        self.store.pins.remove(self.version);
        if cfg!(debug_assertions) {
            HELD.set(HELD.get() - 1);
        }
    }
}

impl View<'_> {
    /// Number of transactions this version contains.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Fills `buffer` (whole blocks) with the blocks of `ino` from `first` on; holes read as
    /// zeros. Every block that comes from the device is verified.
    ///
    /// # Errors
    /// `BadBlock` on a checksum mismatch, device errors.
    pub fn read_blocks(&self, ino: Ino, first: u64, buffer: &mut [u8]) -> Result<()> {
        self.store.read_file_blocks(self, None, ino, first, buffer)
    }
}

impl Records for View<'_> {
    fn get(&self, key: &Key) -> Result<Option<Value>> {
        self.tree.get(&self.store.cache, key)
    }

    fn floor(&self, key: &Key) -> Result<Option<(Key, Value)>> {
        self.tree.floor(&self.store.cache, key)
    }

    fn scan(
        &self,
        from: &Key,
        to: &Key,
        visit: &mut dyn FnMut(Key, &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        scan_tree(&self.tree, &self.store.cache, from, to, visit)
    }
}

pub(super) fn scan_tree(
    tree: &Tree,
    cache: &NodeCache,
    from: &Key,
    to: &Key,
    visit: &mut dyn FnMut(Key, &[u8]) -> ControlFlow<()>,
) -> Result<()> {
    for record in tree.range(cache, *from..=*to) {
        let (key, value) = record?;
        if visit(key, &value).is_break() {
            break;
        }
    }
    Ok(())
}
