//! Building a tree from sorted input, bottom up, each page written once.
//!
//! Entries gather until they fill a node; a node is cut off when it is known what follows, since that
//! determines its upper fence and with it the prefix. The pages hang in the air until the end, when the
//! empty root takes the contents of the topmost node; on failure they are all given back.
//!
//! Pages are written while the load goes on, many at a time and in the order of their numbers, in which
//! a fresh file gives them out: so they reach it one behind the other, in few transfers. They come into
//! memory only as far as there are free frames: a load drives nothing out.

use super::descend::{To, latch};
use super::edit::{NodeBuf, Stored, separator, separator_len};
use super::insert::NewValue;
use super::node::{Node, common_prefix, slots_end};
use super::overflow;
use super::writer::Writer;
use super::{BTree, Reference, Stop, retry};
use crate::error::{Error, Result};
use crate::page::{PAGE_BYTES, PageId};
use crate::space::Space;
use std::thread::Scope;

/// Bytes to which inner nodes are filled, leaving room for the separators of leaves that split later. Leaves
/// are filled to the last byte that they have: room in them would be memory without entries, and would be
/// gone with the first few insertions.
const INNER_FILL_BYTES: usize = PAGE_BYTES - PAGE_BYTES / 12;

/// An entry on its way into a node.
#[derive(Clone, Copy)]
struct Item {
    /// Where its key begins in the level's heap; its value follows.
    at: usize,
    key_len: usize,
    value_len: usize,
    overflow: bool,
}

/// The entries of one level that are not in a page yet: of a leaf its keys, of an inner node the
/// separators above the children.
///
/// The items of an inner node fit into one. Of a leaf, all before the last are known to fit with the last
/// one's key to follow; whether it fits too depends on what follows.
struct Level {
    level: u8,
    /// Lower fence of the next node.
    lower: Vec<u8>,
    items: Vec<Item>,
    heap: Vec<u8>,
}

impl Level {
    fn new(level: u8) -> Level {
        Level {
            level,
            lower: Vec::new(),
            items: Vec::new(),
            heap: Vec::new(),
        }
    }

    fn key(&self, item: &Item) -> &[u8] {
        &self.heap[item.at..item.at + item.key_len]
    }

    fn value(&self, item: &Item) -> &[u8] {
        &self.heap[item.at + item.key_len..][..item.value_len]
    }

    /// Bytes of a node of `count` entries, and with so many bytes of whole keys and values.
    fn node_bytes(&self, count: usize, entry_bytes: usize, fence: &[u8], prefix: usize) -> usize {
        slots_end(count) + self.lower.len() + fence.len() + entry_bytes - prefix * count
    }

    /// Whether a leaf of all items fits into a page, if `next` is the key that follows.
    fn leaf_fits(&self, next: Option<&[u8]>) -> bool {
        let count = self.items.len();
        let Some(last) = self.items.last() else {
            return true;
        };
        let last = self.key(last);
        let fence = match next {
            Some(next) => &next[..separator_len(last, next)],
            None => &[],
        };
        let prefix = common_prefix(&self.lower, if next.is_some() { fence } else { last });
        self.node_bytes(count, self.heap.len(), fence, prefix) <= PAGE_BYTES
    }

    /// Whether an inner node has room for another child, with `key` above it.
    fn inner_takes(&self, key: &[u8]) -> bool {
        let prefix = common_prefix(&self.lower, key);
        self.node_bytes(self.items.len(), self.heap.len(), key, prefix) <= INNER_FILL_BYTES
    }

    fn push(&mut self, key: &[u8], value: Stored<'_>) {
        self.items.push(Item {
            at: self.heap.len(),
            key_len: key.len(),
            value_len: value.bytes.len(),
            overflow: value.overflow,
        });
        self.heap.extend_from_slice(key);
        self.heap.extend_from_slice(value.bytes);
    }

    /// The upper fence of a node of the first `count` items.
    fn fence(&self, count: usize, next: Option<&[u8]>) -> Option<Vec<u8>> {
        if self.level > 0 {
            // The last item is the last child; what is above it, above the whole node.
            return (count < self.items.len() || next.is_some())
                .then(|| self.key(&self.items[count - 1]).to_vec());
        }
        let right = self.items.get(count).map(|item| self.key(item)).or(next)?;
        Some(separator(self.key(&self.items[count - 1]), right))
    }

    /// Builds a node of the first `count` items, if they fit.
    fn build(&self, count: usize, next: Option<&[u8]>) -> Option<(NodeBuf, Option<Vec<u8>>)> {
        let fence = self.fence(count, next);
        let mut node = NodeBuf::new(self.level, &self.lower, fence.as_deref());
        let mut items = &self.items[..count];
        if self.level > 0 {
            let (last, rest) = items.split_last()?;
            let child = self.value(last).try_into().ok()?;
            node.set_last_child(PageId(u64::from_le_bytes(child)));
            items = rest;
        }
        if fence.is_none()
            && let Some(last) = items.last()
        {
            node.set_prefix_len(common_prefix(&self.lower, self.key(last)));
        }
        let prefix = node.node().prefix_len();
        let entries = items.iter().map(|item| {
            let value = Stored {
                bytes: self.value(item),
                overflow: item.overflow,
            };
            (&self.key(item)[prefix..], value)
        });
        node.fill(items.len(), entries).then_some((node, fence))
    }

    /// Cuts off a node of as many items as fit. `next` is the key that follows, if any.
    fn cut(&mut self, next: Option<&[u8]>) -> (NodeBuf, Option<Vec<u8>>) {
        let all = self.items.len();
        let count = match self.level > 0 || self.leaf_fits(next) {
            true => all,
            false => all - 1,
        };
        let built = self.build(count, next);
        let (node, fence) = built.expect("so many items fit into a node");
        self.items.drain(..count);
        let cut = self.items.first().map_or(self.heap.len(), |item| item.at);
        self.heap.drain(..cut);
        self.items.iter_mut().for_each(|item| item.at -= cut);
        self.lower = fence.clone().unwrap_or_default();
        (node, fence)
    }
}

/// A tree under construction.
pub(crate) struct BulkLoad<'scope, 's> {
    tree: BTree,
    space: &'s Space,
    levels: Vec<Level>,
    /// Empty before the first entry.
    last_key: Vec<u8>,
    count: u64,
    writer: Writer<'scope, 's>,
    /// Everything allocated so far, given back unless the load succeeds.
    pages: Vec<PageId>,
    values: Vec<Reference>,
}

impl Drop for BulkLoad<'_, '_> {
    fn drop(&mut self) {
        if self.pages.is_empty() && self.values.is_empty() {
            return;
        }
        self.writer.abandon();
        for &page in &self.pages {
            self.space.pool.drop_page(page);
            self.space.pages.give(page);
        }
        for &reference in &self.values {
            overflow::free(self.space, reference);
        }
    }
}

impl<'scope, 's> BulkLoad<'scope, 's> {
    /// Starts loading into `tree`, which is empty and stays so until the end.
    pub(crate) fn new(
        tree: BTree,
        space: &'s Space,
        scope: &'scope Scope<'scope, 's>,
    ) -> Result<BulkLoad<'scope, 's>> {
        let levels = vec![Level::new(0)];
        let load = BulkLoad {
            tree,
            space,
            levels,
            last_key: Vec::new(),
            count: 0,
            writer: Writer::new(&space.pool, scope),
            pages: Vec::new(),
            values: Vec::new(),
        };
        load.check_empty()?;
        Ok(load)
    }

    fn check_empty(&self) -> Result<()> {
        let empty = retry(&self.space.pool, || {
            let place = self.tree.descend(self.space, &To::Last)?;
            Ok(place.parent.is_none() && place.node.read(|view| Node(view).count())? == 0)
        })?;
        if empty {
            Ok(())
        } else {
            Err(Error::BulkLoad("the tree is not empty"))
        }
    }

    /// Adds an entry, whose key is above all before.
    pub(crate) fn push(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if self.count > 0 && self.last_key.as_slice() >= key {
            return Err(Error::BulkLoad("the keys are not strictly ascending"));
        }
        let value = NewValue::new(self.space, key, value)?;
        if let NewValue::Overflow(reference, _) = value {
            self.values.push(reference);
        }
        let stored = value.stored();
        while !self.levels[0].leaf_fits(Some(key)) {
            self.cut(0, Some(key))?;
        }
        self.levels[0].push(key, stored);
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        self.count += 1;
        Ok(())
    }

    /// Writes a node of a level and hands it to the level above.
    fn cut(&mut self, level: usize, next: Option<&[u8]>) -> Result<()> {
        let (node, fence) = self.levels[level].cut(next);
        let page = self.space.pages.take()?;
        self.pages.push(page);
        self.writer.push(page, node.image)?;
        if self.levels.len() == level + 1 {
            let above =
                u8::try_from(level + 1).map_err(|_| Error::BulkLoad("the tree is too high"))?;
            self.levels.push(Level::new(above));
        }
        let key = fence.unwrap_or_default();
        let value = page.0.to_le_bytes();
        // Cutting needs to know that something follows; in an inner level not what.
        let above = &self.levels[level + 1];
        if !above.items.is_empty() && !above.inner_takes(&key) {
            self.cut(level + 1, Some(b""))?;
        }
        self.levels[level + 1].push(&key, Stored::inline(&value));
        Ok(())
    }

    /// Completes the tree.
    pub(crate) fn finish(mut self) -> Result<()> {
        let mut level = 0;
        let top = loop {
            // The topmost level with all its items in one node is the root.
            let is_top = self.levels.len() == level + 1;
            if is_top && self.levels[level].items.is_empty() {
                return Ok(());
            }
            let whole = self.levels[level].items.len();
            if is_top && let Some((node, _)) = self.levels[level].build(whole, None) {
                break node;
            }
            while !self.levels[level].items.is_empty() {
                self.cut(level, None)?;
            }
            level += 1;
        };
        self.writer.finish()?;
        retry(&self.space.pool, || {
            let root = self.space.pool.optimistic(self.tree.root)?;
            let empty = root.read(|view| Node(view).is_leaf() && Node(view).count() == 0)?;
            if !empty {
                return Err(Stop::Failed(Error::BulkLoad("the tree is not empty")));
            }
            latch(root)?.write(&top.image);
            Ok(())
        })?;
        self.pages.clear();
        self.values.clear();
        Ok(())
    }
}
