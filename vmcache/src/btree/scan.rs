//! Range scans in both directions, stable under concurrent change.
//!
//! A cursor works on a validated copy of one leaf at a time, and finds the next one by the copy's fence,
//! from the root. So it holds no latch and no page between steps, and whatever happens to the tree
//! meanwhile it returns keys in order, each at most once, every key that was there all along, and with
//! each key a value that it had while the cursor was on its leaf. A leaf that is not in memory is read
//! together with those that come next: as many as a scan of known length takes, going by how many entries
//! the leaf has that was read last; else one, and then in batches that grow, since most scans are short.

use super::descend::{Ahead, To};
use super::node::Node;
use super::overflow::{self, Reference};
use super::{BTree, retry};
use crate::error::{Error, Result};
use crate::page::{PageBuf, PageRead};
use crate::space::Space;
use std::ops::{Bound, ControlFlow};
use std::sync::atomic::Ordering;

/// Most leaves that are read ahead of a scan at once.
const AHEAD_MAX: usize = 16;

/// The keys that a scan has not returned yet lie between these.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) lower: Bound<Vec<u8>>,
    pub(crate) upper: Bound<Vec<u8>>,
}

impl Span {
    fn starts_by(&self, key: &[u8]) -> bool {
        match &self.lower {
            Bound::Unbounded => true,
            Bound::Included(lower) => key >= lower.as_slice(),
            Bound::Excluded(lower) => key > lower.as_slice(),
        }
    }

    fn reaches(&self, key: &[u8]) -> bool {
        match &self.upper {
            Bound::Unbounded => true,
            Bound::Included(upper) => key <= upper.as_slice(),
            Bound::Excluded(upper) => key < upper.as_slice(),
        }
    }
}

/// A leaf as it was, and what of it is left.
struct LeafCopy {
    image: Box<PageBuf>,
    /// Forward: the next entry. Backward: the number of entries left.
    at: usize,
}

/// One end of a scan.
#[derive(Default)]
struct End {
    leaf: Option<LeafCopy>,
    /// Leaves that were read ahead at once.
    ahead: usize,
    /// Memory for the next copy.
    spare: Option<Box<PageBuf>>,
}

/// A scan over a tree, from both ends if wanted.
pub(crate) struct Cursor {
    tree: BTree,
    span: Span,
    front: End,
    back: End,
    /// Entries that are wanted and left.
    left: usize,
    done: bool,
}

/// A key and its value.
pub(crate) type Entry = (Vec<u8>, Vec<u8>);

/// Puts a copy of `key` where the bound has its key, reusing its memory.
fn exclude(bound: &mut Bound<Vec<u8>>, key: &[u8]) {
    let mut kept = match std::mem::replace(bound, Bound::Unbounded) {
        Bound::Included(kept) | Bound::Excluded(kept) => kept,
        Bound::Unbounded => Vec::new(),
    };
    kept.clear();
    kept.extend_from_slice(key);
    *bound = Bound::Excluded(kept);
}

impl Cursor {
    pub(crate) fn new(tree: BTree, span: Span) -> Cursor {
        Cursor {
            tree,
            span,
            front: End::default(),
            back: End::default(),
            left: usize::MAX,
            done: false,
        }
    }

    /// The same scan with an end after so many entries, for [`Cursor::for_each`].
    pub(crate) fn up_to(self, entries: usize) -> Cursor {
        Cursor {
            left: entries,
            ..self
        }
    }

    /// Ends the scan, as it cannot go on.
    pub(crate) fn stop(&mut self) {
        self.done = true;
    }

    /// The first entry that is left.
    pub(crate) fn next(&mut self, space: &Space) -> Result<Option<Entry>> {
        while !self.done {
            let LeafCopy { image, at } = match self.front.leaf.take() {
                Some(leaf) => leaf,
                None => self.load_front(space)?,
            };
            let node = Node(&*image);
            if at == node.count() {
                match node.upper().filter(|fence| self.span.reaches(fence)) {
                    None => self.done = true,
                    Some(fence) => self.span.lower = Bound::Included(fence),
                }
                continue;
            }
            let key = node.key(at);
            if !self.span.reaches(&key) {
                self.done = true;
                break;
            }
            let value = self.value(space, node, at, &key)?;
            exclude(&mut self.span.lower, &key);
            self.front.leaf = Some(LeafCopy { image, at: at + 1 });
            if let Some(value) = value {
                return Ok(Some((key, value)));
            }
        }
        Ok(None)
    }

    /// Calls `visit` with the entries that are left, until it says to stop.
    pub(crate) fn for_each(
        mut self,
        space: &Space,
        mut visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut key = Vec::new();
        while self.left > 0 {
            let LeafCopy { image, at } = self.load_front(space)?;
            let node = Node(&*image);
            node.read_prefix(&mut key);
            for index in at..node.count() {
                key.truncate(node.prefix_len());
                node.append_rest(index, &mut key);
                if !self.span.reaches(&key) {
                    return Ok(());
                }
                let flow = match node.is_overflow(index) {
                    false => visit(&key, node.value_bytes(index)),
                    true => match self.value(space, node, index, &key)? {
                        Some(value) => visit(&key, &value),
                        None => continue,
                    },
                };
                self.left -= 1;
                if flow.is_break() || self.left == 0 {
                    return Ok(());
                }
            }
            match node.upper().filter(|fence| self.span.reaches(fence)) {
                None => return Ok(()),
                Some(fence) => self.span.lower = Bound::Included(fence),
            }
            self.front.spare = Some(image);
        }
        Ok(())
    }

    /// The last entry that is left.
    pub(crate) fn next_back(&mut self, space: &Space) -> Result<Option<Entry>> {
        while !self.done {
            let LeafCopy { image, at } = match self.back.leaf.take() {
                Some(leaf) => leaf,
                None => self.load_back(space)?,
            };
            let node = Node(&*image);
            if at == 0 {
                let fence = node.lower();
                self.done =
                    fence.is_empty() || !self.span.starts_by(&fence) && !self.starts_below(&fence);
                self.span.upper = Bound::Excluded(fence);
                continue;
            }
            let key = node.key(at - 1);
            if !self.span.starts_by(&key) {
                self.done = true;
                break;
            }
            let value = self.value(space, node, at - 1, &key)?;
            exclude(&mut self.span.upper, &key);
            self.back.leaf = Some(LeafCopy { image, at: at - 1 });
            if let Some(value) = value {
                return Ok(Some((key, value)));
            }
        }
        Ok(None)
    }

    /// Whether keys below `fence` are left.
    fn starts_below(&self, fence: &[u8]) -> bool {
        match &self.span.lower {
            Bound::Unbounded => true,
            Bound::Included(lower) | Bound::Excluded(lower) => lower.as_slice() < fence,
        }
    }

    fn load_front(&mut self, space: &Space) -> Result<LeafCopy> {
        let (start, after) = match &self.span.lower {
            Bound::Unbounded => (&[][..], false),
            Bound::Included(key) => (key.as_slice(), false),
            Bound::Excluded(key) => (key.as_slice(), true),
        };
        let image = read_leaf(
            space,
            self.tree,
            &mut self.front,
            To::Covering(start),
            false,
            self.left,
        )?;
        let node = Node(&*image);
        if node.upper().is_some_and(|fence| fence.as_slice() <= start) {
            return Err(Error::damaged(
                self.tree.root,
                "a leaf below it does not cover what its parent says",
            ));
        }
        let at = match node.search(start) {
            Ok(index) => index + usize::from(after),
            Err(index) => index,
        };
        Ok(LeafCopy { image, at })
    }

    fn load_back(&mut self, space: &Space) -> Result<LeafCopy> {
        let (to, end) = match &self.span.upper {
            Bound::Unbounded => (To::Last, None),
            Bound::Included(key) => (To::Covering(key), Some((key, true))),
            Bound::Excluded(key) => (To::Below(key), Some((key, false))),
        };
        let image = read_leaf(space, self.tree, &mut self.back, to, true, self.left)?;
        let node = Node(&*image);
        let Some((key, with)) = end else {
            let at = node.count();
            return Ok(LeafCopy { image, at });
        };
        let lower = node.lower();
        if !lower.is_empty() && (lower > *key || lower == *key && !with) {
            return Err(Error::damaged(
                self.tree.root,
                "a leaf below it does not cover what its parent says",
            ));
        }
        let at = match node.search(key) {
            Ok(index) => index + usize::from(with),
            Err(index) => index,
        };
        Ok(LeafCopy { image, at })
    }

    /// The value of an entry of a leaf copy; none if the entry is gone since and its value with it.
    fn value(
        &self,
        space: &Space,
        node: Node<'_, PageBuf>,
        at: usize,
        key: &[u8],
    ) -> Result<Option<Vec<u8>>> {
        let value = node.value(at);
        if !node.is_overflow(at) {
            return Ok(Some(value));
        }
        let mut long = Vec::new();
        let read = Reference::decode(&value)
            .map_err(|what| Error::damaged(self.tree.root, what))
            .and_then(|reference| overflow::read(space, reference, &mut long));
        match read {
            Ok(()) => Ok(Some(long)),
            // Replaced since the leaf was copied, or really damaged, which reading it afresh tells.
            Err(_) => Ok(self.tree.get(space, key, &mut long)?.then_some(long)),
        }
    }
}

/// Copies the leaf at `to`; if it is not in memory, it is read together with others that the scan comes
/// to next. `left` is the number of entries that are wanted.
fn read_leaf(
    space: &Space,
    tree: BTree,
    end: &mut End,
    to: To<'_>,
    backward: bool,
    left: usize,
) -> Result<Box<PageBuf>> {
    let growing = (2 * end.ahead).clamp(1, AHEAD_MAX);
    let count = match (left, space.leaf_entries.load(Ordering::Relaxed)) {
        (usize::MAX, _) | (_, 0) => growing,
        (left, entries) => (left - 1).div_ceil(entries).min(AHEAD_MAX),
    };
    let mut ahead = Ahead {
        backward,
        count,
        missed: false,
    };
    let spare = end.spare.take();
    let mut image = spare.unwrap_or_else(|| Box::new(PageBuf::zeroed()));
    retry(&space.pool, || {
        let place = tree.descend_ahead(space, &to, &mut ahead)?;
        place.node.read(|view| view.copy_to(&mut image))?;
        Ok(())
    })?;
    if ahead.missed {
        end.ahead = count;
        let entries = Node(&*image).count();
        space.leaf_entries.store(entries, Ordering::Relaxed);
    }
    Ok(image)
}
