//! Changing a node, always in a private image.
//!
//! Entries are appended to the heap, which grows downwards; removing one leaves a hole, and the node is
//! rebuilt without holes when an entry would fit otherwise. Splitting and merging build new images.
//!
//! Why a split between two entries always fits: the separator is at most one byte longer than what its
//! neighbours share, so not longer than the fence it replaces (which has the prefix) and the neighbour
//! that leaves the node (which has the rest) together; and a longer prefix only shortens entries. Only a
//! split at the end, made for ascending insertion, adds a fence and removes nothing, and is checked.

use super::KEY_BYTES_MAX;
use super::node::{
    COUNT_AT, HEAP_START_AT, HEAP_USED_AT, LAST_CHILD_AT, LOWER_AT, NO_FENCE, Node, OVERFLOW,
    PREFIX_LEN_AT, SLOT_BYTES, SLOTS_AT, UPPER_AT, common_prefix, head_of,
};
use crate::page::{Kind, PAGE_BYTES, PageBuf, PageId};

/// Bytes of key and inline value that one entry may have: with them a node of two fences of the greatest
/// length still takes one entry.
pub(super) const ENTRY_BYTES_MAX: usize = PAGE_BYTES - SLOTS_AT - SLOT_BYTES - 2 * KEY_BYTES_MAX;

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
    right[..(common_prefix(left, right) + 1).min(right.len())].to_vec()
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

    /// Whether an entry with a key of this length fits, holes included.
    fn fits(&self, key_len: usize, value_len: usize) -> bool {
        let rest = key_len.saturating_sub(self.node().prefix_len());
        self.node().used() + SLOT_BYTES + rest + value_len <= PAGE_BYTES
    }

    /// Inserts an entry before slot `index`, where its key belongs; false when there is no room.
    pub(super) fn insert(&mut self, index: usize, key: &[u8], value: Stored<'_>) -> bool {
        if !self.fits(key.len(), value.bytes.len()) {
            return false;
        }
        let rest = key.get(self.node().prefix_len()..).unwrap_or_default();
        self.insert_rest(index, rest, value);
        true
    }

    /// Inserts an entry that fits, given its key after the prefix.
    fn insert_rest(&mut self, index: usize, rest: &[u8], value: Stored<'_>) {
        let count = self.node().count();
        let slots_end = SLOTS_AT + (count + 1) * SLOT_BYTES;
        if self.node().heap_start() < slots_end + rest.len() + value.bytes.len() {
            self.compact();
        }
        let at = self.push_heap(&[rest, value.bytes]);
        let slot = SLOTS_AT + index * SLOT_BYTES;
        self.image
            .bytes_mut()
            .copy_within(slot..SLOTS_AT + count * SLOT_BYTES, slot + SLOT_BYTES);
        self.image.put_u32(slot, head_of(rest));
        self.image.put_u16(slot + 4, at);
        self.image.put_u16(slot + 6, rest.len() as u16);
        self.image.put_u16(slot + 8, value.bytes.len() as u16);
        self.image
            .put_u16(slot + 10, if value.overflow { OVERFLOW } else { 0 });
        self.image.put_u16(COUNT_AT, (count + 1) as u16);
    }

    /// Removes the entry at `index`.
    pub(super) fn remove(&mut self, index: usize) {
        let count = self.node().count();
        let freed = self.node().entry_bytes(index) - SLOT_BYTES;
        let slot = SLOTS_AT + index * SLOT_BYTES;
        self.image
            .bytes_mut()
            .copy_within(slot + SLOT_BYTES..SLOTS_AT + count * SLOT_BYTES, slot);
        self.image.put_u16(COUNT_AT, (count - 1) as u16);
        let used = self.node().heap_used() - freed;
        self.image.put_u16(HEAP_USED_AT, used as u16);
    }

    /// Replaces the value at `index`; false, and nothing changed, when there is no room.
    pub(super) fn replace(&mut self, index: usize, value: Stored<'_>) -> bool {
        let node = self.node();
        if node.value_len(index) == value.bytes.len() {
            let (at, slot) = (node.value_at(index), SLOTS_AT + index * SLOT_BYTES);
            self.image.bytes_mut()[at..at + value.bytes.len()].copy_from_slice(value.bytes);
            self.image
                .put_u16(slot + 10, if value.overflow { OVERFLOW } else { 0 });
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

    /// Rebuilds the node without holes.
    fn compact(&mut self) {
        let old = self.node();
        let mut new = NodeBuf::new(old.0.bytes()[5], &old.lower(), old.upper().as_deref());
        new.image.put_u64(LAST_CHILD_AT, old.child(old.count()).0);
        for index in 0..old.count() {
            let mut rest = Vec::new();
            old.append_rest(index, &mut rest);
            let value = old.value(index);
            new.insert_rest(
                index,
                &rest,
                Stored {
                    bytes: &value,
                    overflow: old.is_overflow(index),
                },
            );
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
    let at = full.search(key).unwrap_or_else(|index| index);
    let ends = at == count && count > 0;
    if ends && let Some(halves) = halve_leaf(full, count, separator(&full.key(count - 1), key)) {
        return Some(halves);
    }
    match count {
        0 => None,
        1 => halve_leaf(full, 0, separator(key, &full.key(0))),
        _ => {
            let middle = best_middle(full, |index| {
                let (left, right) = (full.key(index - 1), full.key(index));
                common_prefix(&left, &right) + 1
            });
            halve_leaf(
                full,
                middle,
                separator(&full.key(middle - 1), &full.key(middle)),
            )
        }
    }
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
    let middle = match count {
        0 => return None,
        1 => 0,
        // Ascending insertion: leave the left node full.
        _ if full.child_index(key) == count => count - 1,
        _ => best_middle(full, |index| full.prefix_len() + full.rest_len(index)),
    };
    let separator = full.key(middle);
    let level = full.0.bytes()[5];
    let mut left = NodeBuf::new(level, &full.lower(), Some(&separator));
    let mut right = NodeBuf::new(level, &separator, full.upper().as_deref());
    left.set_last_child(full.child(middle));
    right.set_last_child(full.child(count));
    let fits = left.append_from(full, 0..middle) && right.append_from(full, middle + 1..count);
    fits.then_some(Halves {
        left,
        separator,
        right,
    })
}

/// The split point, from 1, near the middle by bytes, whose separator is shortest.
fn best_middle(full: Node<'_, PageBuf>, separator_len: impl Fn(usize) -> usize) -> usize {
    let count = full.count();
    let half = (0..count)
        .map(|index| full.entry_bytes(index))
        .sum::<usize>()
        / 2;
    let mut sum = 0;
    let middle = (0..count)
        .find(|&index| {
            sum += full.entry_bytes(index);
            sum > half
        })
        .unwrap_or(0)
        .clamp(1, count - 1);
    let window = count / 16;
    let candidates = middle.saturating_sub(window).max(1)..=(middle + window).min(count - 1);
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
