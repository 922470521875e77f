//! Changing a node, always in a private image.
//!
//! Entries are appended to the heap, which grows downwards; removing one leaves a hole, and the node is
//! rebuilt without holes when an entry would fit otherwise. Splitting and merging build new images.
//!
//! A node without an upper fence has the prefix that its lower fence shares with its keys: the first key
//! chooses it, and one that lacks it has the node rebuilt with a shorter one.
//!
//! Why a split between two entries always fits: the separator is at most one byte longer than what its
//! neighbours share, so not longer than the fence it replaces (which has the prefix) and the neighbour
//! that leaves the node (which has the rest) together; and a longer prefix only shortens entries. Where
//! there was no upper fence to replace, the left half gets one of at most 1 KiB more, and has with it, a
//! lower fence of as much, and half of the entries' bytes, still less than a page. That is why the middle
//! by bytes is tried last. Only a split at the end, made for ascending insertion, may not fit at all; then
//! the last entries go to the right as well.

use super::KEY_BYTES_MAX;
use super::node::{
    COUNT_AT, HEAP_START_AT, HEAP_USED_AT, LAST_CHILD_AT, LOWER_AT, NO_FENCE, Node, OVERFLOW,
    PREFIX_LEN_AT, SLOT_BYTES, UPPER_AT, common_prefix, head_at, head_of, slots_at, slots_end,
};
use crate::page::{Kind, PAGE_BYTES, PageBuf, PageId};

/// Bytes of key and inline value that one entry may have: with them a node of two fences of the greatest
/// length still takes one entry.
pub(super) const ENTRY_BYTES_MAX: usize = PAGE_BYTES - slots_end(1) - 2 * KEY_BYTES_MAX;

/// The value of an entry as a slot keeps it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored<'a> {
    pub(super) bytes: &'a [u8],
    /// The bytes are a reference to overflow pages.
    pub(super) overflow: bool,
}

impl<'a> Stored<'a> {
    pub(super) fn inline(bytes: &'a [u8]) -> Stored<'a> {
        Stored {
            bytes,
            overflow: false,
        }
    }
}

/// The separator of two neighbours: the shortest string above `left` and not above `right` (suffix
/// truncation).
pub(super) fn separator(left: &[u8], right: &[u8]) -> Vec<u8> {
    right[..separator_len(left, right)].to_vec()
}

/// How many bytes of `right` that is.
pub(super) fn separator_len(left: &[u8], right: &[u8]) -> usize {
    (common_prefix(left, right) + 1).min(right.len())
}

/// A node under construction or change.
pub(super) struct NodeBuf {
    pub(super) image: PageBuf,
}

impl NodeBuf {
    /// An empty node; its fences always fit.
    pub(super) fn new(level: u8, lower: &[u8], upper: Option<&[u8]>) -> NodeBuf {
        let mut image = PageBuf::zeroed();
        image.set_kind(Kind::Node, level);
        image.put_u16(HEAP_START_AT, PAGE_BYTES as u16);
        image.put_u16(UPPER_AT + 2, NO_FENCE);
        let mut node = NodeBuf { image };
        let at = node.push_heap(&[lower]);
        node.image.put_u16(LOWER_AT, at);
        node.image.put_u16(LOWER_AT + 2, lower.len() as u16);
        if let Some(upper) = upper {
            let at = node.push_heap(&[upper]);
            node.image.put_u16(UPPER_AT, at);
            node.image.put_u16(UPPER_AT + 2, upper.len() as u16);
            node.image
                .put_u16(PREFIX_LEN_AT, common_prefix(lower, upper) as u16);
        }
        node
    }

    /// Continues with an image that was read.
    pub(super) fn from_image(image: PageBuf) -> NodeBuf {
        NodeBuf { image }
    }

    pub(super) fn node(&self) -> Node<'_, PageBuf> {
        Node(&self.image)
    }

    pub(super) fn set_last_child(&mut self, child: PageId) {
        self.image.put_u64(LAST_CHILD_AT, child.0);
    }

    /// Puts bytes into the heap, for which there is room, and returns their offset.
    fn push_heap(&mut self, parts: &[&[u8]]) -> u16 {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let start = self.node().heap_start() - len;
        let mut at = start;
        for part in parts {
            self.image.bytes_mut()[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        self.image.put_u16(HEAP_START_AT, start as u16);
        let used = self.node().heap_used() + len;
        self.image.put_u16(HEAP_USED_AT, used as u16);
        start as u16
    }

    /// Inserts an entry before slot `index`, where its key belongs; false when there is no room.
    pub(super) fn insert(&mut self, index: usize, key: &[u8], value: Stored<'_>) -> bool {
        let (node, count) = (self.node(), self.node().count());
        let had = node.prefix_len();
        let prefix = match node.is_bounded() || count > 0 && node.has_prefix(key) {
            true => had,
            false => common_prefix(&node.lower(), key),
        };
        let rest = key.get(prefix..).unwrap_or_default();
        let growth = had.saturating_sub(prefix) * count + rest.len() + value.bytes.len();
        if slots_end(count + 1) + node.heap_used() + growth > PAGE_BYTES {
            return false;
        }
        if prefix != had {
            self.rebuild(prefix);
        }
        self.insert_rest(index, rest, value);
        true
    }

    /// Inserts an entry that fits, given its key after the prefix.
    fn insert_rest(&mut self, index: usize, rest: &[u8], value: Stored<'_>) {
        let count = self.node().count();
        if self.node().heap_start() < slots_end(count + 1) + rest.len() + value.bytes.len() {
            self.rebuild(self.node().prefix_len());
        }
        let at = self.push_heap(&[rest, value.bytes]);
        let (old, new) = (slots_at(count), slots_at(count + 1));
        let (bytes, before) = (self.image.bytes_mut(), index * SLOT_BYTES);
        bytes.copy_within(old + before..slots_end(count), new + before + SLOT_BYTES);
        bytes.copy_within(old..old + before, new);
        bytes.copy_within(head_at(index)..head_at(count), head_at(index + 1));
        bytes[head_at(count + 1)..new].fill(0);
        self.image.put_u32(head_at(index), head_of(rest));
        let slot = new + before;
        self.image.put_u16(slot, at);
        self.image.put_u16(slot + 2, rest.len() as u16);
        self.image.put_u16(slot + 4, value.bytes.len() as u16);
        self.image
            .put_u16(slot + 6, if value.overflow { OVERFLOW } else { 0 });
        self.image.put_u16(COUNT_AT, (count + 1) as u16);
    }

    /// Puts `count` entries into a node that has none, in order, their keys without the prefix; false, and the
    /// node is of no use, when there is no room for them all.
    pub(super) fn fill<'e>(
        &mut self,
        count: usize,
        entries: impl Iterator<Item = (&'e [u8], Stored<'e>)>,
    ) -> bool {
        let slots = slots_at(count);
        for (index, (rest, value)) in entries.enumerate() {
            let len = rest.len() + value.bytes.len();
            if slots_end(count) + len > self.node().heap_start() {
                return false;
            }
            let at = self.push_heap(&[rest, value.bytes]);
            let slot = [
                at,
                rest.len() as u16,
                value.bytes.len() as u16,
                if value.overflow { OVERFLOW } else { 0 },
            ];
            self.image.put_u32(head_at(index), head_of(rest));
            for (field, value) in slot.into_iter().enumerate() {
                let at = slots + index * SLOT_BYTES + 2 * field;
                self.image.put_u16(at, value);
            }
        }
        self.image.put_u16(COUNT_AT, count as u16);
        true
    }

    /// Has the keys of a node without an upper fence begin with so many bytes of its lower fence.
    pub(super) fn set_prefix_len(&mut self, prefix: usize) {
        self.image.put_u16(PREFIX_LEN_AT, prefix as u16);
    }

    /// Removes the entry at `index`.
    pub(super) fn remove(&mut self, index: usize) {
        let count = self.node().count();
        let freed = self.node().rest_len(index) + self.node().value_len(index);
        let (old, new) = (slots_at(count), slots_at(count - 1));
        let (bytes, before) = (self.image.bytes_mut(), index * SLOT_BYTES);
        bytes.copy_within(head_at(index + 1)..head_at(count), head_at(index));
        bytes[head_at(count - 1)..old].fill(0);
        bytes.copy_within(old..old + before, new);
        bytes.copy_within(old + before + SLOT_BYTES..slots_end(count), new + before);
        self.image.put_u16(COUNT_AT, (count - 1) as u16);
        let used = self.node().heap_used() - freed;
        self.image.put_u16(HEAP_USED_AT, used as u16);
    }

    /// Replaces the value at `index`; false, and nothing changed, when there is no room.
    pub(super) fn replace(&mut self, index: usize, value: Stored<'_>) -> bool {
        let node = self.node();
        if node.value_len(index) == value.bytes.len() {
            let slot = slots_at(node.count()) + index * SLOT_BYTES;
            let at = node.value_at(index);
            self.image.bytes_mut()[at..at + value.bytes.len()].copy_from_slice(value.bytes);
            self.image
                .put_u16(slot + 6, if value.overflow { OVERFLOW } else { 0 });
            return true;
        }
        if node.used() - node.value_len(index) + value.bytes.len() > PAGE_BYTES {
            return false;
        }
        let mut rest = Vec::new();
        node.append_rest(index, &mut rest);
        self.remove(index);
        self.insert_rest(index, &rest, value);
        true
    }

    /// Appends entries of another node, which fit.
    pub(super) fn append_from(
        &mut self,
        other: Node<'_, PageBuf>,
        entries: std::ops::Range<usize>,
    ) -> bool {
        entries.into_iter().all(|index| {
            let (key, value) = (other.key(index), other.value(index));
            let stored = Stored {
                bytes: &value,
                overflow: other.is_overflow(index),
            };
            self.insert(self.node().count(), &key, stored)
        })
    }

    /// Rebuilds the node without holes; one without an upper fence with a prefix of this length, which
    /// all of its keys have.
    fn rebuild(&mut self, prefix: usize) {
        let old = self.node();
        let mut new = NodeBuf::new(old.0.bytes()[5], &old.lower(), old.upper().as_deref());
        new.image.put_u16(PREFIX_LEN_AT, prefix as u16);
        new.image.put_u64(LAST_CHILD_AT, old.child(old.count()).0);
        for index in 0..old.count() {
            let (key, value) = (old.key(index), old.value(index));
            let stored = Stored {
                bytes: &value,
                overflow: old.is_overflow(index),
            };
            new.insert_rest(index, key.get(prefix..).unwrap_or_default(), stored);
        }
        *self = new;
    }
}

/// A node split in two; the separator goes to the parent.
pub(super) struct Halves {
    pub(super) left: NodeBuf,
    pub(super) separator: Vec<u8>,
    pub(super) right: NodeBuf,
}

/// Splits a full node so that `key` gets room on its side.
///
/// # Errors
/// When the node is damaged: what does not hold.
pub(super) fn split(full: Node<'_, PageBuf>, key: &[u8]) -> Result<Halves, &'static str> {
    let halves = if full.is_leaf() {
        split_leaf(full, key)
    } else {
        split_inner(full, key)
    };
    halves.ok_or("a full node's entries do not add up")
}

/// Splits a leaf before slot `at`; none when there is nothing on one of the sides.
pub(super) fn split_before(leaf: Node<'_, PageBuf>, at: usize) -> Option<Halves> {
    if !leaf.is_leaf() || at == 0 || at >= leaf.count() {
        return None;
    }
    halve_leaf(leaf, at, separator(&leaf.key(at - 1), &leaf.key(at)))
}

fn split_leaf(full: Node<'_, PageBuf>, key: &[u8]) -> Option<Halves> {
    let count = full.count();
    let between = |at: usize| separator(&full.key(at - 1), &full.key(at));
    match count {
        0 => return None,
        1 if full.key(0).as_slice() > key => {
            return halve_leaf(full, 0, separator(key, &full.key(0)));
        }
        _ => {}
    }
    let ascending = full.search(key) == Err(count);
    let end = ascending.then(|| halve_leaf(full, count, separator(&full.key(count - 1), key)));
    end.flatten().or_else(|| {
        let middle = middle_by_bytes(full);
        let best = best_middle(full, middle, |at| between(at).len());
        let near_end = near_end(count).filter(|_| ascending);
        let mut cuts = near_end
            .chain([best, middle])
            .filter(|&at| at > 0 && at < count);
        cuts.find_map(|at| halve_leaf(full, at, between(at)))
    })
}

/// Where to cut for ascending insertion, best first, if not behind the last entry.
fn near_end(count: usize) -> impl Iterator<Item = usize> {
    (count / 2 + 1..count).rev()
}

/// The first `at` entries left, the others right; none when they do not fit.
fn halve_leaf(full: Node<'_, PageBuf>, at: usize, separator: Vec<u8>) -> Option<Halves> {
    let mut left = NodeBuf::new(0, &full.lower(), Some(&separator));
    let mut right = NodeBuf::new(0, &separator, full.upper().as_deref());
    let fits = left.append_from(full, 0..at) && right.append_from(full, at..full.count());
    fits.then_some(Halves {
        left,
        separator,
        right,
    })
}

fn split_inner(full: Node<'_, PageBuf>, key: &[u8]) -> Option<Halves> {
    let count = full.count();
    if count < 2 {
        return (count == 1).then(|| halve_inner(full, 0)).flatten();
    }
    let ascending = full.child_index(key) == count;
    let middle = middle_by_bytes(full);
    let best = best_middle(full, middle, |at| full.prefix_len() + full.rest_len(at));
    let mut cuts = near_end(count).filter(|_| ascending).chain([best, middle]);
    cuts.find_map(|at| halve_inner(full, at))
}

/// The entries before `at` left, those behind it right; none when they do not fit.
fn halve_inner(full: Node<'_, PageBuf>, at: usize) -> Option<Halves> {
    let separator = full.key(at);
    let level = full.0.bytes()[5];
    let mut left = NodeBuf::new(level, &full.lower(), Some(&separator));
    let mut right = NodeBuf::new(level, &separator, full.upper().as_deref());
    left.set_last_child(full.child(at));
    right.set_last_child(full.child(full.count()));
    let fits = left.append_from(full, 0..at) && right.append_from(full, at + 1..full.count());
    fits.then_some(Halves {
        left,
        separator,
        right,
    })
}

/// The entry, from 1, before which lies about half of the bytes and never more, unless it is one entry.
fn middle_by_bytes(full: Node<'_, PageBuf>) -> usize {
    let half = full.payload() / 2;
    let mut sum = 0;
    let middle = (0..full.count()).find(|&index| {
        sum += full.entry_bytes(index);
        sum > half
    });
    middle.unwrap_or(0).max(1)
}

/// The split point near the middle whose separator is shortest.
fn best_middle(
    full: Node<'_, PageBuf>,
    middle: usize,
    separator_len: impl Fn(usize) -> usize,
) -> usize {
    let window = full.count() / 16;
    let last = (middle + window).min(full.count() - 1);
    let candidates = middle.saturating_sub(window).max(1)..=last;
    candidates
        .min_by_key(|&index| (separator_len(index), index.abs_diff(middle)))
        .unwrap_or(middle)
}

/// The union of two neighbours, or none if it does not fit with room to spare.
pub(super) fn merge(
    left: Node<'_, PageBuf>,
    separator: &[u8],
    right: Node<'_, PageBuf>,
) -> Option<NodeBuf> {
    let level = left.0.bytes()[5];
    let mut union = NodeBuf::new(level, &left.lower(), right.upper().as_deref());
    let mut fits = union.append_from(left, 0..left.count());
    if level > 0 {
        let child = left.child(left.count()).0.to_le_bytes();
        fits = fits && union.insert(union.node().count(), separator, Stored::inline(&child));
        union.set_last_child(right.child(right.count()));
    }
    fits = fits && union.append_from(right, 0..right.count());
    // An eighth stays free, so that the next insertion does not split it again.
    (fits && union.node().used() <= PAGE_BYTES - PAGE_BYTES / 8).then_some(union)
}
