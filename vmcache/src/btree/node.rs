//! Reading a node, in whatever memory it lies.
//!
//! ```text
//!  16 count  18 heap start  20 heap bytes in use  22 prefix length      (u16 each)
//!  24 lower fence (offset, length)   28 upper fence (offset, length or 0xffff: none)
//!  32 last child (inner nodes)       40 heads, slots ..→   free   ←.. heap
//!  head: u32, padded to 8 bytes behind the last   slot: offset u16 | key length u16 | value length u16 | flags u16
//! ```
//!
//! A node covers the keys from its lower fence (inclusive; empty: from the first key) to its upper fence
//! (exclusive; none: to the last key). What the fences have in common all its keys have in common too;
//! this prefix is kept once, in the lower fence, and slots keep the rest (prefix truncation, Graefe §3). A
//! node without an upper fence, the last of its level, has the prefix that its lower fence and its keys
//! happen to have in common, and is the only kind in which a search may be for a key without the prefix.
//! So ascending keys, which all arrive there, fill pages as they fill the others.
//!
//! The head is the first four bytes of the rest as a number, zero padded. The heads lie together, so that
//! a search reads a few neighbouring cache lines and then, mostly, one slot and one key. In an inner node
//! the value of slot i is the child for keys below key i and not below key i-1; keys not below any go to
//! the last child.
//!
//! The functions here run on memory that changes meanwhile, so they are total and bounded: they may
//! return nonsense then, which the reader's latch does not validate. For an image that comes from the
//! medium [`check_image`] makes sure that offsets stay inside the page.

use super::KEY_BYTES_MAX;
use crate::page::{Kind, PAGE_BYTES, PageBuf, PageId, PageRead};
use std::cmp::Ordering;

pub(super) const COUNT_AT: usize = 16;
pub(super) const HEAP_START_AT: usize = 18;
pub(super) const HEAP_USED_AT: usize = 20;
pub(super) const PREFIX_LEN_AT: usize = 22;
pub(super) const LOWER_AT: usize = 24;
pub(super) const UPPER_AT: usize = 28;
pub(super) const LAST_CHILD_AT: usize = 32;
pub(super) const HEADS_AT: usize = 40;
const HEAD_BYTES: usize = 4;
pub(super) const SLOT_BYTES: usize = 8;
/// Bytes of an entry beside its key and value.
pub(super) const ENTRY_OVERHEAD: usize = HEAD_BYTES + SLOT_BYTES;
/// The length of an upper fence that is not there.
pub(super) const NO_FENCE: u16 = u16::MAX;
/// Flag of a slot whose value is a reference to overflow pages.
pub(super) const OVERFLOW: u16 = 1;
const COUNT_MAX: usize = (PAGE_BYTES - HEADS_AT) / ENTRY_OVERHEAD;
/// So many heads or fewer are searched by reading them all.
const LINEAR_MAX: usize = 16;

const _: () =
    assert!(HEADS_AT.is_multiple_of(8) && SLOT_BYTES == 8 && slots_end(COUNT_MAX) <= PAGE_BYTES);

/// Where a node of `count` entries has its slots: behind the heads, at a multiple of 8.
#[inline]
pub(super) const fn slots_at(count: usize) -> usize {
    HEADS_AT + (count * HEAD_BYTES).next_multiple_of(8)
}

/// Where the slots end.
pub(super) const fn slots_end(count: usize) -> usize {
    slots_at(count) + count * SLOT_BYTES
}

/// Where the head of an entry is.
#[inline]
pub(super) const fn head_at(index: usize) -> usize {
    HEADS_AT + index * HEAD_BYTES
}

/// A node for reading.
pub(super) struct Node<'a, P>(pub(super) &'a P);

impl<P> Clone for Node<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for Node<'_, P> {}

/// Where a key is, or would go: a slot's index.
pub(super) type Found = Result<usize, usize>;

/// The first four bytes of a key's rest as a number that orders like them.
#[inline]
pub(super) fn head_of(rest: &[u8]) -> u32 {
    match rest.first_chunk::<4>() {
        Some(chunk) => u32::from_be_bytes(*chunk),
        None => {
            let mut padded = [0; 4];
            padded[..rest.len()].copy_from_slice(rest);
            u32::from_be_bytes(padded)
        }
    }
}

/// Bytes that two keys have in common at their start.
pub(super) fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl<P: PageRead> Node<'_, P> {
    #[inline]
    fn field(&self, at: usize) -> usize {
        usize::from(self.0.u16_at(at))
    }

    #[inline]
    pub(super) fn count(&self) -> usize {
        self.field(COUNT_AT).min(COUNT_MAX)
    }

    pub(super) fn is_leaf(&self) -> bool {
        self.0.level() == 0
    }

    #[inline]
    pub(super) fn prefix_len(&self) -> usize {
        self.field(PREFIX_LEN_AT)
    }

    pub(super) fn heap_start(&self) -> usize {
        self.field(HEAP_START_AT)
    }

    pub(super) fn heap_used(&self) -> usize {
        self.field(HEAP_USED_AT)
    }

    #[inline]
    fn head(&self, index: usize) -> u32 {
        self.0.u32_at(head_at(index))
    }

    /// The slot of an entry: offset, key length, value length and flags, from the lowest bits on.
    #[inline]
    fn slot(&self, index: usize) -> u64 {
        self.0.u64_at(slots_at(self.count()) + index * SLOT_BYTES)
    }

    #[inline]
    pub(super) fn key_at(&self, index: usize) -> usize {
        usize::from(self.slot(index) as u16)
    }

    #[inline]
    pub(super) fn rest_len(&self, index: usize) -> usize {
        usize::from((self.slot(index) >> 16) as u16)
    }

    #[inline]
    pub(super) fn value_len(&self, index: usize) -> usize {
        usize::from((self.slot(index) >> 32) as u16)
    }

    #[inline]
    pub(super) fn is_overflow(&self, index: usize) -> bool {
        (self.slot(index) >> 48) as u16 & OVERFLOW != 0
    }

    #[inline]
    pub(super) fn value_at(&self, index: usize) -> usize {
        self.key_at(index) + self.rest_len(index)
    }

    /// Bytes that the entry takes, up to padding.
    pub(super) fn entry_bytes(&self, index: usize) -> usize {
        ENTRY_OVERHEAD + self.rest_len(index) + self.value_len(index)
    }

    /// Bytes in use, with the header.
    pub(super) fn used(&self) -> usize {
        slots_end(self.count()) + self.heap_used()
    }

    /// Bytes in use by entries alone.
    pub(super) fn payload(&self) -> usize {
        (0..self.count()).map(|index| self.entry_bytes(index)).sum()
    }

    /// Whether the node has an upper fence.
    #[inline]
    pub(super) fn is_bounded(&self) -> bool {
        self.0.u16_at(UPPER_AT + 2) != NO_FENCE
    }

    /// Whether `key` begins with the prefix that all keys of the node have.
    #[inline]
    pub(super) fn has_prefix(&self, key: &[u8]) -> bool {
        let len = self.prefix_len();
        let own = key.get(..len);
        own.is_some_and(|own| self.0.compare(self.field(LOWER_AT), len, own).is_eq())
    }

    /// The first entry, up to `count`, whose head is not below `head`.
    #[inline]
    fn first_from(&self, head: u32, count: usize) -> usize {
        let (mut low, mut len) = (0, count);
        while len > LINEAR_MAX {
            let half = len / 2;
            // Chosen without a branch, which would be guessed wrong every other time.
            low = match self.head(low + half - 1) < head {
                true => low + half,
                false => low,
            };
            len -= half;
        }
        let below = (low..low + len).map(|index| usize::from(self.head(index) < head));
        low + below.sum::<usize>()
    }

    /// Finds `key`, which lies between the node's fences.
    #[inline]
    pub(super) fn search(&self, key: &[u8]) -> Found {
        let count = self.count();
        if !self.is_bounded() && !self.has_prefix(key) {
            // Not below the lower fence and without its beginning: above all that has it.
            return Err(count);
        }
        let rest = key.get(self.prefix_len()..).unwrap_or_default();
        let head = head_of(rest);
        let mut low = self.first_from(head, count);
        if low == count || self.head(low) != head {
            return Err(low);
        }
        let mut high = low + 1;
        if high < count && self.head(high) == head {
            let above = head.checked_add(1);
            high = above.map_or(count, |above| self.first_from(above, count));
        }
        while low < high {
            let middle = low.midpoint(high);
            let slot = self.slot(middle);
            let (at, len) = (usize::from(slot as u16), usize::from((slot >> 16) as u16));
            match self.0.compare(at, len, rest) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Ok(middle),
                Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// Index of the child that covers `key`.
    #[inline]
    pub(super) fn child_index(&self, key: &[u8]) -> usize {
        match self.search(key) {
            Ok(index) => index + 1,
            Err(index) => index,
        }
    }

    /// Index of the child that covers the keys just below `key`.
    pub(super) fn child_index_below(&self, key: &[u8]) -> usize {
        self.search(key).unwrap_or_else(|index| index)
    }

    /// The child at `index`, of `count() + 1`.
    #[inline]
    pub(super) fn child(&self, index: usize) -> PageId {
        match index < self.count() {
            true => PageId(self.0.u64_unaligned(self.value_at(index))),
            false => PageId(self.0.u64_at(LAST_CHILD_AT)),
        }
    }

    /// Appends the bytes after the common prefix.
    pub(super) fn append_rest(&self, index: usize, out: &mut Vec<u8>) {
        self.0
            .append_to(self.key_at(index), self.rest_len(index), out);
    }

    /// Replaces `key` by the common prefix.
    pub(super) fn read_prefix(&self, key: &mut Vec<u8>) {
        key.clear();
        self.0
            .append_to(self.field(LOWER_AT), self.prefix_len(), key);
    }

    /// The whole key at `index`.
    pub(super) fn key(&self, index: usize) -> Vec<u8> {
        let mut key = Vec::with_capacity(self.prefix_len() + self.rest_len(index) + 8);
        self.0
            .append_to(self.field(LOWER_AT), self.prefix_len(), &mut key);
        self.append_rest(index, &mut key);
        key
    }

    /// Appends the value at `index`.
    #[inline]
    pub(super) fn append_value(&self, index: usize, out: &mut Vec<u8>) {
        self.0
            .append_to(self.value_at(index), self.value_len(index), out);
    }

    pub(super) fn value(&self, index: usize) -> Vec<u8> {
        let mut value = Vec::new();
        self.append_value(index, &mut value);
        value
    }

    pub(super) fn lower(&self) -> Vec<u8> {
        let mut fence = Vec::new();
        self.0
            .append_to(self.field(LOWER_AT), self.field(LOWER_AT + 2), &mut fence);
        fence
    }

    pub(super) fn upper(&self) -> Option<Vec<u8>> {
        if self.0.u16_at(UPPER_AT + 2) == NO_FENCE {
            return None;
        }
        let mut fence = Vec::new();
        self.0
            .append_to(self.field(UPPER_AT), self.field(UPPER_AT + 2), &mut fence);
        Some(fence)
    }
}

/// Whether the node's offsets and lengths stay inside the page, add up, and its keys are in order, so
/// that it can be searched and changed.
pub(super) fn check_image(page: &PageBuf) -> Result<(), &'static str> {
    let node = Node(page);
    if page.kind() != Kind::Node as u8 {
        return Err("a tree's page is not a node");
    }
    let count = usize::from(page.u16_at(COUNT_AT));
    if count > COUNT_MAX || node.heap_start() < slots_end(count) || node.heap_start() > PAGE_BYTES {
        return Err("a node's slots and heap overlap");
    }
    let fence_bytes = check_fences(node)?;
    let entry_bytes = (0..count)
        .map(|index| check_entry(node, index))
        .sum::<Result<usize, _>>()?;
    let used = fence_bytes + entry_bytes;
    if used != node.heap_used() || used > PAGE_BYTES - node.heap_start() {
        return Err("a node's entries overlap");
    }
    Ok(())
}

fn is_in_heap<P: PageRead>(node: Node<'_, P>, at: usize, len: usize) -> bool {
    len == 0 || (at >= node.heap_start() && at + len <= PAGE_BYTES)
}

/// Checks the fences and returns their bytes.
fn check_fences(node: Node<'_, PageBuf>) -> Result<usize, &'static str> {
    let lower_len = node.field(LOWER_AT + 2);
    let upper_len = match node.0.u16_at(UPPER_AT + 2) {
        NO_FENCE => 0,
        len => usize::from(len),
    };
    let inside = is_in_heap(node, node.field(LOWER_AT), lower_len)
        && is_in_heap(node, node.field(UPPER_AT), upper_len);
    if !inside || lower_len.max(upper_len) > KEY_BYTES_MAX {
        return Err("a node's fence is too long or lies outside its heap");
    }
    let shorter = match node.is_bounded() {
        true => lower_len.min(upper_len),
        false => lower_len,
    };
    if node.prefix_len() > shorter {
        return Err("a node's prefix is longer than its fences");
    }
    Ok(lower_len + upper_len)
}

/// Checks an entry by itself and against the one before, and returns its bytes in the heap.
fn check_entry(node: Node<'_, PageBuf>, index: usize) -> Result<usize, &'static str> {
    let bytes = node.rest_len(index) + node.value_len(index);
    let inside = is_in_heap(node, node.key_at(index), bytes);
    if !inside || node.prefix_len() + node.rest_len(index) > KEY_BYTES_MAX {
        return Err("a node's entry is too long or lies outside its heap");
    }
    if !node.is_leaf() && node.value_len(index) != 8 {
        return Err("an inner node's entry is not a child");
    }
    if node.head(index) != head_of(node.rest_bytes(index)) {
        return Err("a key's head is not the start of the key");
    }
    if index > 0 && node.rest_bytes(index - 1) >= node.rest_bytes(index) {
        return Err("a node's keys are not in order");
    }
    Ok(bytes)
}

impl Node<'_, PageBuf> {
    /// The bytes of a key after the prefix, inside the page as was checked.
    fn rest_bytes(&self, index: usize) -> &[u8] {
        let at = self.key_at(index);
        self.0
            .bytes()
            .get(at..at + self.rest_len(index))
            .unwrap_or_default()
    }

    /// The value at `index`, inside the page as was checked.
    pub(super) fn value_bytes(&self, index: usize) -> &[u8] {
        let at = self.value_at(index);
        let bytes = self.0.bytes().get(at..at + self.value_len(index));
        bytes.unwrap_or_default()
    }

    fn fence_bytes(&self, at: usize) -> &[u8] {
        let (start, len) = (self.field(at), self.field(at + 2));
        let bytes = self.0.bytes().get(start..start + len);
        bytes.unwrap_or_default()
    }

    /// Whether `key` lies between the fences.
    pub(super) fn covers(&self, key: &[u8]) -> bool {
        let below_upper = !self.is_bounded() || key < self.fence_bytes(UPPER_AT);
        self.fence_bytes(LOWER_AT) <= key && below_upper
    }
}
