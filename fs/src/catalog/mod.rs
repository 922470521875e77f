//! The catalog: one ordered map from [`Key`] to a small value that holds all metadata.
//!
//! It is a copy-on-write B+tree. A node is one device block and never changes once it is on the
//! device or visible to another tree: a mutation copies the nodes on the path from the leaf to the
//! root that it cannot prove to own alone (their `Arc` is shared) and changes the copies. Cloning a
//! [`Tree`] copies its root pointer, so a snapshot is O(1), readers need no lock, and a writer never
//! waits for a reader. (Ohad Rodeh, "B-trees, Shadowing, and Clones", ACM TOS 3(4), 2008, describes
//! the family; here the reference counts of `Arc` take the place of counts on the device.)
//!
//! Three places hold a node:
//!
//! * *resident*: in memory only, newer than the last checkpoint; reached through its parent's `Arc`;
//! * *clean*: on the device; the parent holds address and CRC32C ([`NodeRef`]), and memory may hold
//!   a copy in the bounded [`NodeCache`]. Everything below a clean node is clean;
//! * *being written*: resident, and at the same time listed in a [`WriteOut`], which owns a clone of
//!   the tree, so that the head copies such nodes instead of changing them. [`Tree::adopt`] turns
//!   them clean once the checkpoint is durable; dropping the [`WriteOut`] forgets it ever happened.
//!
//! Invariants:
//!
//! 1. A key separates: child `i` of an inner node holds the keys from separator `i` up to, not
//!    including, separator `i + 1`. The first separator of a node is not consulted: its child takes
//!    everything below the second.
//! 2. All leaves have the same depth; a node's level (leaf = 0) is stored in it and checked.
//! 3. The range of a node that is on the device only ever grows while a tree refers to it, so the
//!    `(level, first key)` it was written under ([`NodeInfo`]) finds it for as long as it is live.
//! 4. A tree reports the address of every clean node it stops referring to exactly once
//!    ([`Tree::take_retired`]); operations that fail report none and change nothing.
//!
//! Left out: parent and sibling pointers (they would make every copy spread), a lower bound on fill
//! (a node whose neighbour cannot be read stays small), concurrent writers to one tree (the log
//! serialises transactions), prefix compression, read-ahead, and everything about where nodes go.

mod cache;
mod check;
mod cursor;
mod delete;
mod inner;
mod key;
mod leaf;
mod node;
#[cfg(test)]
mod tests;
mod tree;
mod write_out;

pub use cache::{CacheStats, NodeCache, NodeSource};
pub use check::{CheckEvent, CheckReport};
pub use cursor::Cursor;
pub use inner::MAX_FANOUT;
pub use key::{Key, Kind};
pub use leaf::MAX_VALUE;
pub use node::{NodeRef, Page, Value};
pub use tree::{MAX_HEIGHT, Savepoint, Tree};
pub use write_out::{AdoptReport, NodeInfo, WriteOut};
