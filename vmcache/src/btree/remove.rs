//! Removal, and the merges that keep nodes from running empty.
//!
//! A merge is done when two neighbours under one parent fit into one page with room to spare. It is an
//! improvement, not a duty: if latches are taken it is tried a few times and then left to a later
//! removal.

use super::descend::{Place, To, copy, latch};
use super::edit::{self, NodeBuf};
use super::insert::Former;
use super::node::Node;
use super::{Attempt, BTree, Stop, retry};
use crate::error::Result;
use crate::page::{PAGE_BYTES, PageId, PageRead};
use crate::pool::{Exclusive, Optimistic};
use crate::space::Space;

/// A node with fewer bytes of entries is merged with a neighbour.
const UNDERFULL_BYTES: usize = PAGE_BYTES / 4;
/// Attempts at a merge.
const MERGE_ATTEMPTS: usize = 4;

impl BTree {
    /// Removes `key`; false if the tree does not have it.
    pub(crate) fn remove(&self, space: &Space, key: &[u8]) -> Result<bool> {
        let removed = retry(&space.pool, || self.try_remove(space, key))?;
        let Some((former, underfull)) = removed else {
            return Ok(false);
        };
        former.free(space);
        let mut next = underfull;
        while let Some(page) = next {
            next = self.merge(space, page, key);
        }
        Ok(true)
    }

    /// Removes the entry; what it was, and its leaf if that has become underfull.
    fn try_remove(&self, space: &Space, key: &[u8]) -> Attempt<Option<(Former, Option<PageId>)>> {
        let Place { node: leaf, parent } = self.descend(space, &To::Covering(key))?;
        let Ok(index) = leaf.read(|view| Node(view).search(key))? else {
            return Ok(None);
        };
        let mut page = latch(leaf)?;
        let mut node = NodeBuf::from_image(page.view().to_buf());
        let former = Former::of(&node, index, leaf.page())?;
        node.remove(index);
        page.write(&node.image);
        let underfull = parent.is_some() && node.node().payload() < UNDERFULL_BYTES;
        Ok(Some((former, underfull.then_some(leaf.page()))))
    }

    /// Merges a node on the way to `key` with a neighbour if it can; the node to look at next, which is
    /// the union as long as that is underfull itself, and then the parent.
    fn merge(&self, space: &Space, page: PageId, key: &[u8]) -> Option<PageId> {
        for _ in 0..MERGE_ATTEMPTS {
            match self.try_merge(space, page, key) {
                Ok(next) => return next,
                Err(Stop::Again) => {}
                Err(Stop::Busy(page)) => space.pool.wait_unlatched(page),
                Err(Stop::Failed(error)) => {
                    tracing::debug!(%error, page = page.0, "a merge was left out");
                    return None;
                }
            }
        }
        None
    }

    fn try_merge(&self, space: &Space, page: PageId, key: &[u8]) -> Attempt<Option<PageId>> {
        let place = self.descend_to(space, &To::Covering(key), page)?;
        let Some(Place {
            node,
            parent: Some((parent, index)),
        }) = place
        else {
            return Ok(None);
        };
        let above = Above {
            node: NodeBuf::from_image(copy(parent)?),
            guard: parent,
        };
        let right = (index < above.node.node().count()).then_some(index + 1);
        for sibling_index in [right, index.checked_sub(1)].into_iter().flatten() {
            let sibling = space
                .pool
                .optimistic(above.node.node().child(sibling_index));
            parent.check()?;
            let sibling = sibling?;
            let (left, right) = if sibling_index > index {
                (node, sibling)
            } else {
                (sibling, node)
            };
            let separator = above.node.node().key(index.min(sibling_index));
            if let Some(union) = edit::merge(Node(&copy(left)?), &separator, Node(&copy(right)?)) {
                return self.join(space, above, index.min(sibling_index), [left, right], union);
            }
        }
        Ok(above.next_if_underfull(self.root))
    }

    /// Puts the union of two neighbours into the right one's page.
    fn join(
        &self,
        space: &Space,
        mut above: Above<'_>,
        left_index: usize,
        [left, right]: [Optimistic<'_>; 2],
        union: NodeBuf,
    ) -> Attempt<Option<PageId>> {
        let mut parent = latch(above.guard)?;
        let (left, mut right) = (latch(left)?, latch(right)?);
        if parent.page() == self.root && above.node.node().count() == 1 {
            // The only two children of the root: their union takes its place.
            parent.write(&union.image);
            drop_node(space, left);
            drop_node(space, right);
            return Ok(None);
        }
        above.node.remove(left_index);
        right.write(&union.image);
        parent.write(&above.node.image);
        drop_node(space, left);
        let underfull = union.node().payload() < UNDERFULL_BYTES;
        Ok(if underfull {
            Some(right.page())
        } else {
            above.next_if_underfull(self.root)
        })
    }
}

/// The parent of nodes to be merged.
struct Above<'p> {
    node: NodeBuf,
    guard: Optimistic<'p>,
}

impl Above<'_> {
    fn next_if_underfull(&self, root: PageId) -> Option<PageId> {
        let underfull = self.guard.page() != root && self.node.node().payload() < UNDERFULL_BYTES;
        underfull.then_some(self.guard.page())
    }
}

/// Gives back the page of a node that nothing refers to any more.
fn drop_node(space: &Space, node: Exclusive<'_>) {
    let page = node.page();
    node.discard();
    space.pages.give(page);
}
