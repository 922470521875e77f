//! A B-tree for keys and values of variable length, without a latch on the way down.
//!
//! Optimistic lock coupling (Leis, Haubenschild, Neumann 2019): a traversal notes a node's version,
//! finds the child, notes the child's version, and then validates the node; so at that moment the child
//! was the right one. Whoever changes latches only what it changes, by upgrading from the version it
//! has read, so computed images are current by construction; if anything moved, the operation starts
//! again. Nobody waits for a frame, for the medium or for another latch with a latch held, so latches
//! cannot form a cycle: a failed upgrade lets go of everything, waits for that page, and starts again.
//!
//! The root keeps its page for life: when it splits, its contents move to two new children.
//!
//! An error of reading a page reached through a parent counts only if the parent still validates; a
//! reader with an old version may well reach a page that has been given back since.
//!
//! Leaves out: merging across parents.

mod bulk;
mod check;
mod contention;
mod descend;
mod edit;
mod insert;
mod node;
mod overflow;
mod remove;
mod scan;
mod writer;

pub(crate) use bulk::BulkLoad;
pub use check::TreeStats;
pub(crate) use contention::Contention;
pub(crate) use insert::check_lengths;
pub(crate) use overflow::{Reference, free_again};
pub(crate) use scan::{Cursor, Span};

use crate::error::{Error, Result};
use crate::page::{Kind, PAGE_BYTES, PageBuf, PageId};
use crate::pool::{BufferPool, Changed};
use crate::space::Space;
use edit::{ENTRY_BYTES_MAX, NodeBuf};

/// Longest key.
pub const KEY_BYTES_MAX: usize = 1024;
/// Longest value that is kept next to its key; less when the key is longer than 968 bytes.
pub const INLINE_BYTES_MAX: usize = PAGE_BYTES / 4;
/// Longest value.
pub const VALUE_BYTES_MAX: usize = 1 << 30;

/// A tree, by the page of its root. All of its operations may run in many threads at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BTree {
    pub(crate) root: PageId,
}

/// Why an attempt at an operation did not succeed.
#[derive(Debug)]
enum Stop {
    /// Something moved: start again.
    Again,
    /// A latch was taken: start again once it may have ended.
    Busy(PageId),
    Failed(Error),
}

type Attempt<T> = std::result::Result<T, Stop>;

impl From<Changed> for Stop {
    fn from(_: Changed) -> Stop {
        Stop::Again
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Failed(error)
    }
}

/// Repeats an attempt until it succeeds or fails for good. The attempt holds no latch when it returns.
fn retry<T>(pool: &BufferPool, mut attempt: impl FnMut() -> Attempt<T>) -> Result<T> {
    let mut attempts = 0_u32;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(Stop::Failed(error)) => return Err(error),
            Err(Stop::Busy(page)) => pool.wait_unlatched(page),
            Err(Stop::Again) => {}
        }
        attempts += 1;
        if attempts.is_multiple_of(8) {
            std::thread::yield_now();
        }
    }
}

/// A node's image is damaged in a way that its checksum does not show.
fn damaged(page: PageId) -> impl Fn(&'static str) -> Stop {
    move |what| Stop::Failed(Error::damaged(page, what))
}

/// What the pool checks on every page that it reads.
pub(crate) fn check_page(page: PageId, image: &PageBuf) -> Result<()> {
    use crate::page::PageRead;
    match image.kind() {
        kind if kind == Kind::Node as u8 => {
            node::check_image(image).map_err(|what| Error::damaged(page, what))
        }
        kind if kind == Kind::Overflow as u8 => {
            overflow::check_image(image).map_err(|what| Error::damaged(page, what))
        }
        kind if kind == Kind::Meta as u8 || kind == Kind::Bitmap as u8 => Ok(()),
        _ => Err(Error::damaged(page, "it is of no known kind")),
    }
}

impl BTree {
    /// Makes an empty tree.
    pub(crate) fn create(space: &Space) -> Result<BTree> {
        let root = space.pages.take()?;
        match space.pool.create(root) {
            Ok(mut page) => page.write(&NodeBuf::new(0, b"", None).image),
            Err(error) => {
                space.pages.give(root);
                return Err(error);
            }
        }
        Ok(BTree { root })
    }

    /// Appends the value of `key` to `out`; false if the tree does not have the key.
    pub(crate) fn get(&self, space: &Space, key: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        let start = out.len();
        let mut stale = None;
        retry(&space.pool, || {
            out.truncate(start);
            let leaf = self.descend(space, &descend::To::Covering(key))?.node;
            let found = leaf.read(|view| {
                let node = node::Node(view);
                node.search(key).ok().map(|index| {
                    node.append_value(index, out);
                    node.is_overflow(index)
                })
            })?;
            match found {
                None => Ok(false),
                Some(false) => Ok(true),
                Some(true) => {
                    let reference =
                        Reference::decode(&out[start..]).map_err(damaged(leaf.page()))?;
                    out.truncate(start);
                    overflow::read_again(space, reference, &mut stale, out).map(|()| true)
                }
            }
        })
    }
}

#[cfg(test)]
mod tests;
