//! A catalog node, what refers to it, and the page header both kinds of node share.
//!
//! Decoding checks everything a page says about itself, so the rest of the module may index pages
//! without further checks. Whether a node fits the place where it was found (level, key range) is
//! for the caller to say.

use std::ops::Deref;
use std::sync::Arc;

use super::inner::Inner;
use super::key::Key;
use super::leaf::Leaf;
use crate::types::{BLOCK_SIZE, Lba};

/// The bytes of a node.
pub type Page = [u8; BLOCK_SIZE];

/// Bytes of the header of a page.
pub(super) const HEADER: usize = 16;
/// Bytes of a page that hold records or entries.
pub(super) const CAPACITY: usize = BLOCK_SIZE - HEADER;

const MAGIC: [u8; 4] = *b"WCat";
const VERSION: u8 = 1;
const AT_VERSION: usize = 4;
const AT_LEVEL: usize = 5;
const AT_COUNT: usize = 6;

/// Where a node is on the device and what its bytes must hash to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeRef {
    /// Block address.
    pub lba: Lba,
    /// CRC32C of the 4096 bytes.
    pub crc: u32,
}

/// How a parent (or the tree, for the root) refers to a node.
#[derive(Clone, Debug)]
pub(super) enum Child {
    /// On the device.
    Clean(NodeRef),
    /// Only in memory.
    Resident(Arc<Node>),
}

/// A node of the tree.
#[derive(Clone, Debug)]
pub(super) enum Node {
    /// Records.
    Leaf(Leaf),
    /// References to the nodes one level below.
    Inner(Inner),
}

impl Node {
    /// The node these bytes encode; the error says what is wrong with them.
    pub(super) fn decode(page: Box<Page>) -> Result<Node, String> {
        if page[..AT_VERSION] != MAGIC {
            return Err("no node magic".into());
        }
        if page[AT_VERSION] != VERSION {
            return Err(format!(
                "node version {} (known: {VERSION})",
                page[AT_VERSION]
            ));
        }
        if page[AT_LEVEL] == 0 {
            Leaf::from_page(page).map(Node::Leaf)
        } else {
            Inner::from_page(&page).map(Node::Inner)
        }
    }

    /// Distance from the leaves.
    pub(super) fn level(&self) -> u8 {
        match self {
            Node::Leaf(_) => 0,
            Node::Inner(inner) => inner.level(),
        }
    }

    /// Records of a leaf, children of an inner node.
    pub(super) fn len(&self) -> usize {
        match self {
            Node::Leaf(leaf) => leaf.len(),
            Node::Inner(inner) => inner.len(),
        }
    }

    /// Fill is below what deletions leave alone: a quarter.
    pub(super) fn underfull(&self) -> bool {
        match self {
            Node::Leaf(leaf) => leaf.used() < CAPACITY / 4,
            Node::Inner(inner) => inner.len() < super::MAX_FANOUT / 4,
        }
    }

    /// Memory the node takes, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        size_of::<Node>()
            + match self {
                Node::Leaf(_) => BLOCK_SIZE,
                Node::Inner(inner) => inner.heap_bytes(),
            }
    }

    /// The leaf this is. Levels are checked when nodes are loaded, so the caller knows.
    pub(super) fn leaf(&self) -> &Leaf {
        match self {
            Node::Leaf(leaf) => leaf,
            Node::Inner(_) => unreachable!("an inner node at level 0"),
        }
    }

    /// The leaf this is, to change it.
    pub(super) fn leaf_mut(&mut self) -> &mut Leaf {
        match self {
            Node::Leaf(leaf) => leaf,
            Node::Inner(_) => unreachable!("an inner node at level 0"),
        }
    }

    /// The inner node this is.
    pub(super) fn inner(&self) -> &Inner {
        match self {
            Node::Inner(inner) => inner,
            Node::Leaf(_) => unreachable!("a leaf above level 0"),
        }
    }

    /// The inner node this is, to change it.
    pub(super) fn inner_mut(&mut self) -> &mut Inner {
        match self {
            Node::Inner(inner) => inner,
            Node::Leaf(_) => unreachable!("a leaf above level 0"),
        }
    }

    /// Whether the keys of this node lie in `low .. high` (`None`: no upper limit). The first
    /// separator of an inner node is a lower bound only.
    pub(super) fn lies_within(&self, low: &Key, high: Option<&Key>) -> bool {
        let (first, last) = match self {
            Node::Leaf(leaf) if leaf.len() == 0 => return true,
            Node::Leaf(leaf) => (leaf.key(0), leaf.key(leaf.len() - 1)),
            Node::Inner(inner) => (*inner.key(0), *inner.key(inner.len() - 1)),
        };
        *low <= first && high.is_none_or(|high| last < *high)
    }
}

/// Writes the header fields common to both kinds of node.
pub(super) fn write_header(page: &mut Page, level: u8, count: usize) {
    page[..AT_VERSION].copy_from_slice(&MAGIC);
    page[AT_VERSION] = VERSION;
    page[AT_LEVEL] = level;
    write_count(page, count);
}

/// Sets the number of records or entries.
pub(super) fn write_count(page: &mut Page, count: usize) {
    write_u16(page, AT_COUNT, count);
}

/// The number of records or entries.
pub(super) fn read_count(page: &Page) -> usize {
    read_u16(page, AT_COUNT)
}

/// The level a page claims.
pub(super) fn read_level(page: &Page) -> u8 {
    page[AT_LEVEL]
}

/// Little-endian `u16` at a byte offset.
pub(super) fn read_u16(page: &Page, at: usize) -> usize {
    usize::from(u16::from_le_bytes([page[at], page[at + 1]]))
}

/// Stores a number of at most 4096 as a little-endian `u16`.
pub(super) fn write_u16(page: &mut Page, at: usize, value: usize) {
    debug_assert!(value <= BLOCK_SIZE);
    page[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
}

/// The value of a record, as a guard that keeps its leaf in memory. Dereferences to the bytes.
#[derive(Clone, Debug)]
pub struct Value {
    node: Arc<Node>,
    start: u16,
    len: u16,
}

impl Value {
    /// The value in slot `at` of a leaf.
    pub(super) fn new(node: Arc<Node>, at: usize) -> Value {
        let (start, len) = node.leaf().value_position(at);
        Value {
            node,
            start: start as u16,
            len: len as u16,
        }
    }
}

impl Deref for Value {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.node.leaf().page()[usize::from(self.start)..][..usize::from(self.len)]
    }
}
