//! Inner nodes: separators and references to the children.
//!
//! In memory two vectors, because a child may be a pointer; on the device an array of entries
//! (separator, address, CRC32C of the child).

use super::key::Key;
use super::node::{CAPACITY, Child, HEADER, NodeRef, Page, read_count, read_level, write_header};
use super::tree::MAX_HEIGHT;
use crate::types::{BLOCK_SIZE, Lba};

/// Bytes per entry: separator, address, CRC32C.
const ENTRY: usize = Key::SIZE + 12;
/// Most children of an inner node.
pub const MAX_FANOUT: usize = CAPACITY / ENTRY;

const _: () = assert!(MAX_FANOUT == 140);

/// An inner node. Without children only on its way out of the tree. `keys[0]` is never consulted
/// (the bound is the parent's to know) and set right when the node is written.
#[derive(Clone, Debug)]
pub(super) struct Inner {
    level: u8,
    keys: Vec<Key>,
    children: Vec<Child>,
}

impl Inner {
    /// A node over two children, the first of which takes the keys from `low` on.
    pub(super) fn new(level: u8, low: Key, left: Child, separator: Key, right: Child) -> Inner {
        Inner {
            level,
            keys: vec![low, separator],
            children: vec![left, right],
        }
    }

    /// The inner node in a page whose magic and version have been checked.
    pub(super) fn from_page(page: &Page) -> Result<Inner, String> {
        let (level, count) = (read_level(page), read_count(page));
        if usize::from(level) >= MAX_HEIGHT {
            return Err(format!("level {level}"));
        }
        if count == 0 || count > MAX_FANOUT {
            return Err(format!("{count} children"));
        }
        let mut inner = Inner {
            level,
            keys: Vec::with_capacity(count),
            children: Vec::with_capacity(count),
        };
        for (at, entry) in page[HEADER..].chunks_exact(ENTRY).take(count).enumerate() {
            let (key, entry) = entry
                .split_first_chunk()
                .expect("an entry begins with a key");
            let (lba, crc) = entry.split_first_chunk().expect("then comes the address");
            let key =
                Key::decode(key).ok_or_else(|| format!("entry {at}: unknown kind {}", key[8]))?;
            if inner.keys.last().is_some_and(|previous| *previous >= key) {
                return Err(format!("entry {at}: key {key} out of order"));
            }
            inner.keys.push(key);
            inner.children.push(Child::Clean(NodeRef {
                lba: Lba(u64::from_le_bytes(*lba)),
                crc: u32::from_le_bytes(*crc.first_chunk().expect("then the checksum")),
            }));
        }
        Ok(inner)
    }

    /// The page of this node, with `low` as its first separator.
    pub(super) fn encode(&self, low: &Key, references: &[NodeRef]) -> Box<Page> {
        let mut page = Box::new([0; BLOCK_SIZE]);
        write_header(&mut page, self.level, self.len());
        let keys = std::iter::once(low).chain(&self.keys[1..]);
        let entries = page[HEADER..].chunks_exact_mut(ENTRY);
        for ((entry, key), reference) in entries.zip(keys).zip(references) {
            entry[..Key::SIZE].copy_from_slice(&key.encode());
            entry[Key::SIZE..Key::SIZE + 8].copy_from_slice(&reference.lba.0.to_le_bytes());
            entry[Key::SIZE + 8..].copy_from_slice(&reference.crc.to_le_bytes());
        }
        page
    }

    /// This node over children that are on the device.
    pub(super) fn with_clean_children(&self, low: Key, references: &[NodeRef]) -> Inner {
        let mut keys = self.keys.clone();
        keys[0] = low;
        let children = references
            .iter()
            .map(|reference| Child::Clean(*reference))
            .collect();
        Inner {
            level: self.level,
            keys,
            children,
        }
    }

    /// Distance from the leaves, at least 1.
    pub(super) fn level(&self) -> u8 {
        self.level
    }

    /// Number of children.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Memory behind the vectors, in bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        self.keys.capacity() * size_of::<Key>() + self.children.capacity() * size_of::<Child>()
    }

    /// Which child a key belongs to.
    pub(super) fn search(&self, key: &Key) -> usize {
        self.keys[1..].partition_point(|separator| separator <= key)
    }

    /// Separator of child `at`.
    pub(super) fn key(&self, at: usize) -> &Key {
        &self.keys[at]
    }

    /// Separator that ends the range of child `at`; `None` for the last child.
    pub(super) fn key_after(&self, at: usize) -> Option<&Key> {
        self.keys.get(at + 1)
    }

    /// Child `at`.
    pub(super) fn child(&self, at: usize) -> &Child {
        &self.children[at]
    }

    /// Child `at`, to change it.
    pub(super) fn child_mut(&mut self, at: usize) -> &mut Child {
        &mut self.children[at]
    }

    /// All children.
    pub(super) fn children(&self) -> &[Child] {
        &self.children
    }

    /// All children, to change them.
    pub(super) fn children_mut(&mut self) -> &mut [Child] {
        &mut self.children
    }

    /// Inserts a child right of child `at`. When that is one too many, splits the node and returns
    /// the right half with its separator.
    pub(super) fn insert_after(
        &mut self,
        at: usize,
        key: Key,
        child: Child,
    ) -> Option<(Key, Inner)> {
        self.keys.insert(at + 1, key);
        self.children.insert(at + 1, child);
        let count = self.len();
        if count <= MAX_FANOUT {
            return None;
        }
        // Ascending keys: leave the left side nearly full, as nothing more will come to it.
        let ascending = at + 2 == count;
        Some(self.split(if ascending {
            count - MAX_FANOUT / 10
        } else {
            count / 2
        }))
    }

    /// Removes child `at`. Its range goes to its left neighbour, or if it has none to its right.
    pub(super) fn remove(&mut self, at: usize) -> Child {
        // The first separator may be too high afterwards; nothing asks for it.
        self.keys.remove(at);
        self.children.remove(at)
    }

    /// Takes in the children of the node to the right, whose separator is `separator`. What is too
    /// much for one node is shared out evenly and the new right one returned with its separator.
    pub(super) fn absorb(&mut self, separator: Key, right: &Inner) -> Option<(Key, Inner)> {
        let middle = self.len();
        self.keys.extend_from_slice(&right.keys);
        self.keys[middle] = separator;
        self.children.extend_from_slice(&right.children);
        let count = self.len();
        (count > MAX_FANOUT / 8 * 7).then(|| self.split(count / 2))
    }

    fn split(&mut self, at: usize) -> (Key, Inner) {
        let keys = self.keys.split_off(at);
        let children = self.children.split_off(at);
        (
            keys[0],
            Inner {
                level: self.level,
                keys,
                children,
            },
        )
    }
}
