//! Leaves: slotted pages that are the same bytes in memory and on the device.
//!
//! After the header come the slots, sorted by key: key, offset and length of the value. Values grow
//! down from the end of the page. A removed value that is not the lowest leaves a gap, which is
//! counted and closed when an insertion needs the room. Copying a leaf is one `memcpy`, writing it
//! takes no encoding, and reading it takes only validation.

use super::key::Key;
use super::node::{
    CAPACITY, HEADER, Page, read_count, read_u16, write_count, write_header, write_u16,
};
use crate::types::BLOCK_SIZE;

/// Longest value in bytes: four records of any size fit one leaf.
pub const MAX_VALUE: usize = 960;

/// Lowest byte that belongs to a value.
const AT_HEAP: usize = 8;
/// Bytes of gaps between values.
const AT_GAPS: usize = 10;
/// Bytes per slot: key, offset, length.
const SLOT: usize = Key::SIZE + 4;
/// Most that two leaves may hold together and still be merged; leaves room for what comes next.
const MERGE_LIMIT: usize = CAPACITY / 8 * 7;

const _: () = assert!(4 * (SLOT + MAX_VALUE) <= CAPACITY);

/// A leaf.
#[derive(Clone)]
pub(super) struct Leaf {
    page: Box<Page>,
}

impl std::fmt::Debug for Leaf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Leaf({} records)", self.len())
    }
}

impl Leaf {
    /// A leaf without records.
    pub(super) fn new() -> Leaf {
        let mut page = Box::new([0; BLOCK_SIZE]);
        write_header(&mut page, 0, 0);
        write_u16(&mut page, AT_HEAP, BLOCK_SIZE);
        Leaf { page }
    }

    /// The leaf in a page whose magic, version and level have been checked.
    pub(super) fn from_page(page: Box<Page>) -> Result<Leaf, String> {
        let leaf = Leaf { page };
        leaf.validate()?;
        Ok(leaf)
    }

    /// Checks order, kinds, offsets, lengths and space accounting.
    pub(super) fn validate(&self) -> Result<(), String> {
        let (count, heap) = (self.len(), self.heap());
        if HEADER + count * SLOT > heap || heap > BLOCK_SIZE {
            return Err(format!(
                "{count} slots and values from byte {heap} do not fit"
            ));
        }
        let mut taken = Taken([0; BLOCK_SIZE / 64]);
        let mut bytes = 0;
        let mut previous = None;
        for at in 0..count {
            let slot = self.slot(at);
            let key = Key::decode(slot.first_chunk().expect("a slot begins with a key"))
                .ok_or_else(|| format!("slot {at}: unknown kind {}", slot[8]))?;
            if previous.is_some_and(|previous| previous >= key) {
                return Err(format!("slot {at}: key {key} out of order"));
            }
            previous = Some(key);
            let (start, len) = self.value_position(at);
            let placed = start >= heap && start_of(start, len) == start;
            if !placed || len > MAX_VALUE || start + len > BLOCK_SIZE {
                return Err(format!("slot {at}: value of {len} bytes at byte {start}"));
            }
            if !taken.take(start, len) {
                return Err(format!("slot {at}: value overlaps another"));
            }
            bytes += len;
        }
        if bytes + self.gaps() != BLOCK_SIZE - heap {
            return Err(format!(
                "{bytes} bytes of values, {} of gaps from byte {heap}",
                self.gaps()
            ));
        }
        Ok(())
    }

    /// The bytes.
    pub(super) fn page(&self) -> &Page {
        &self.page
    }

    /// Number of records.
    pub(super) fn len(&self) -> usize {
        read_count(&self.page)
    }

    /// Bytes that slots and values take.
    pub(super) fn used(&self) -> usize {
        self.len() * SLOT + BLOCK_SIZE - self.heap() - self.gaps()
    }

    /// The key in slot `at`.
    pub(super) fn key(&self, at: usize) -> Key {
        Key::decode(
            self.slot(at)
                .first_chunk()
                .expect("a slot begins with a key"),
        )
        .expect("kinds are checked when a page is read")
    }

    /// Offset and length of the value in slot `at`.
    pub(super) fn value_position(&self, at: usize) -> (usize, usize) {
        let slot = HEADER + at * SLOT + Key::SIZE;
        (read_u16(&self.page, slot), read_u16(&self.page, slot + 2))
    }

    /// The value in slot `at`.
    pub(super) fn value(&self, at: usize) -> &[u8] {
        let (start, len) = self.value_position(at);
        &self.page[start..start + len]
    }

    /// The slot of a key, or the slot where it would go.
    pub(super) fn search(&self, key: &Key) -> Result<usize, usize> {
        let wanted = (key.ino.0, key.kind as u8, key.offset);
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.raw_key(middle).cmp(&wanted) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Ok(middle),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// Stores `value` under the key that slot `at` has or is to get. `false`: no room; a value the
    /// key had is gone then.
    pub(super) fn put(&mut self, at: Result<usize, usize>, key: &Key, value: &[u8]) -> bool {
        if let Ok(at) = at {
            let (start, len) = self.value_position(at);
            if len == value.len() {
                self.page[start..start + len].copy_from_slice(value);
                return true;
            }
            self.remove(at, at + 1);
        }
        self.insert(at.unwrap_or_else(|at| at), key, value)
    }

    /// Removes the records in slots `from .. to`.
    pub(super) fn remove(&mut self, from: usize, to: usize) {
        let count = self.len();
        let (mut heap, mut gaps) = (self.heap(), self.gaps());
        for at in from..to {
            let (start, len) = self.value_position(at);
            if start == heap {
                heap += len;
            } else {
                gaps += len;
            }
        }
        if to - from == count {
            (heap, gaps) = (BLOCK_SIZE, 0);
        }
        self.page.copy_within(
            HEADER + to * SLOT..HEADER + count * SLOT,
            HEADER + from * SLOT,
        );
        write_count(&mut self.page, count - (to - from));
        write_u16(&mut self.page, AT_HEAP, heap);
        write_u16(&mut self.page, AT_GAPS, gaps);
    }

    /// Inserts a record that does not fit at slot `at` by splitting the leaf; returns the right half.
    pub(super) fn split_insert(&mut self, at: usize, key: &Key, value: &[u8]) -> Leaf {
        let cut = self.split_point(at, key, value.len());
        let count = self.len();
        let mut right = Leaf::new();
        if cut <= at {
            right.append(self, cut, at);
            right.push(key, value);
            right.append(self, at, count);
            self.remove(cut, count);
        } else {
            right.append(self, cut - 1, count);
            self.remove(cut - 1, count);
            assert!(
                self.insert(at, key, value),
                "half a leaf has room for a record"
            );
        }
        right
    }

    /// Takes in the records of the leaf to the right. What is too much for one leaf is shared out
    /// evenly and the new right one returned.
    pub(super) fn absorb(&mut self, right: &Leaf) -> Option<Leaf> {
        let total = self.used() + right.used();
        if total <= MERGE_LIMIT {
            self.append(right, 0, right.len());
            return None;
        }
        let (mut low, mut high) = (Leaf::new(), Leaf::new());
        for leaf in [&*self, right] {
            for at in 0..leaf.len() {
                let side = if low.used() < total / 2 {
                    &mut low
                } else {
                    &mut high
                };
                side.append(leaf, at, at + 1);
            }
        }
        *self = low;
        Some(high)
    }

    /// How many of the records, the new one at `at` counted in, stay on the left of a split.
    ///
    /// Keys often arrive in ascending order, at the end of the leaf or at the end of one inode's
    /// records of a kind; what comes next will then go right of the new record, so the left side is
    /// left full. Otherwise half of the bytes.
    fn split_point(&self, at: usize, key: &Key, len: usize) -> usize {
        let count = self.len();
        if at == count {
            return count;
        }
        let bytes = |at: usize| SLOT + self.value_position(at).1;
        let run = |at: usize| {
            let other = self.key(at);
            (other.ino, other.kind) == (key.ino, key.kind)
        };
        if at > 0 && run(at - 1) && !run(at) && (0..at).map(bytes).sum::<usize>() >= CAPACITY / 2 {
            return at;
        }
        let half = (self.used() + SLOT + len) / 2;
        let mut left = 0;
        for cut in 0..count {
            left += match cut.cmp(&at) {
                std::cmp::Ordering::Less => bytes(cut),
                std::cmp::Ordering::Equal => SLOT + len,
                std::cmp::Ordering::Greater => bytes(cut - 1),
            };
            if left >= half {
                return cut + 1;
            }
        }
        count
    }

    /// Appends a record whose key is greater than all others and for which there is room.
    fn push(&mut self, key: &Key, value: &[u8]) {
        assert!(
            self.insert(self.len(), key, value),
            "a half of a split has room"
        );
    }

    /// Appends records `from .. to` of another leaf, whose keys are greater.
    fn append(&mut self, other: &Leaf, from: usize, to: usize) {
        for at in from..to {
            self.push(&other.key(at), other.value(at));
        }
    }

    fn insert(&mut self, at: usize, key: &Key, value: &[u8]) -> bool {
        let count = self.len();
        if self.used() + SLOT + value.len() > CAPACITY {
            return false;
        }
        let end = HEADER + count * SLOT;
        if end + SLOT + value.len() > self.heap() {
            self.compact();
        }
        let heap = self.heap() - value.len();
        let slot = HEADER + at * SLOT;
        self.page.copy_within(slot..end, slot + SLOT);
        self.page[slot..slot + Key::SIZE].copy_from_slice(&key.encode());
        write_u16(
            &mut self.page,
            slot + Key::SIZE,
            start_of(heap, value.len()),
        );
        write_u16(&mut self.page, slot + Key::SIZE + 2, value.len());
        self.page[heap..heap + value.len()].copy_from_slice(value);
        write_u16(&mut self.page, AT_HEAP, heap);
        write_count(&mut self.page, count + 1);
        true
    }

    /// Closes the gaps between values.
    fn compact(&mut self) {
        let old: Page = *self.page;
        let mut heap = BLOCK_SIZE;
        for at in 0..self.len() {
            let (start, len) = self.value_position(at);
            heap -= len;
            self.page[heap..heap + len].copy_from_slice(&old[start..start + len]);
            write_u16(
                &mut self.page,
                HEADER + at * SLOT + Key::SIZE,
                start_of(heap, len),
            );
        }
        write_u16(&mut self.page, AT_HEAP, heap);
        write_u16(&mut self.page, AT_GAPS, 0);
    }

    fn heap(&self) -> usize {
        read_u16(&self.page, AT_HEAP)
    }

    fn gaps(&self) -> usize {
        read_u16(&self.page, AT_GAPS)
    }

    fn slot(&self, at: usize) -> &[u8; SLOT] {
        self.page[HEADER + at * SLOT..]
            .first_chunk()
            .expect("slots lie in the page")
    }

    /// The key in slot `at` as numbers that compare like the key.
    fn raw_key(&self, at: usize) -> (u64, u8, u64) {
        let slot = self.slot(at);
        let number = |at: usize| {
            u64::from_le_bytes(*slot[at..].first_chunk().expect("a slot holds its key"))
        };
        (number(0), slot[8], number(9))
    }
}

/// The offset in the slot of a value that is put at `heap`. An empty value is nowhere; it is said to
/// be at the end of the page, so that no value ever begins below the heap.
fn start_of(heap: usize, len: usize) -> usize {
    if len == 0 { BLOCK_SIZE } else { heap }
}

/// Which bytes of a page belong to a value, one bit each.
struct Taken([u64; BLOCK_SIZE / 64]);

impl Taken {
    /// Marks a run of bytes of the page; `false` if one of them was marked already.
    fn take(&mut self, start: usize, len: usize) -> bool {
        let (mut at, end) = (start, start + len);
        while at < end {
            let bits = (64 - at % 64).min(end - at);
            let mask = (u64::MAX >> (64 - bits)) << (at % 64);
            let word = &mut self.0[at / 64];
            if *word & mask != 0 {
                return false;
            }
            *word |= mask;
            at += bits;
        }
        true
    }
}
