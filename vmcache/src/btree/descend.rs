//! The way from the root to a node.

use super::node::Node;
use super::{Attempt, BTree, Stop, damaged};
use crate::error::Error;
use crate::page::{Kind, PageBuf, PageId, PageRead};
use crate::pool::{Exclusive, Optimistic};
use crate::space::Space;

/// What a scan has read together with a leaf that is not in memory.
pub(super) struct Ahead {
    /// Leaves before the leaf, and not behind it.
    pub(super) backward: bool,
    /// How many, as far as they have the same parent.
    pub(super) count: usize,
    /// Set when the leaf was not in memory.
    pub(super) missed: bool,
}

/// Which leaf to go to.
#[derive(Debug, Clone, Copy)]
pub(super) enum To<'a> {
    /// The one that covers the key.
    Covering(&'a [u8]),
    /// The one that covers the keys just below the key.
    Below(&'a [u8]),
    /// The last one.
    Last,
}

impl To<'_> {
    #[inline]
    fn choose<P: PageRead>(&self, node: Node<'_, P>) -> usize {
        match self {
            To::Covering(key) => node.child_index(key),
            To::Below(key) => node.child_index_below(key),
            To::Last => node.count(),
        }
    }
}

/// A node and how it was reached.
pub(super) struct Place<'p> {
    pub(super) node: Optimistic<'p>,
    /// The parent and the child's index in it; none for the root.
    pub(super) parent: Option<(Optimistic<'p>, usize)>,
}

impl BTree {
    /// Goes to a leaf.
    #[inline]
    pub(super) fn descend<'p>(&self, space: &'p Space, to: &To<'_>) -> Attempt<Place<'p>> {
        let found = self.descend_until(space, to, |_| false, None)?;
        found.ok_or(Stop::Again)
    }

    /// Goes to a leaf and reads it together with others that a scan comes to next.
    pub(super) fn descend_ahead<'p>(
        &self,
        space: &'p Space,
        to: &To<'_>,
        ahead: &mut Ahead,
    ) -> Attempt<Place<'p>> {
        let found = self.descend_until(space, to, |_| false, Some(ahead))?;
        found.ok_or(Stop::Again)
    }

    /// Goes towards a leaf until it meets `page`; none if the way no longer passes there.
    pub(super) fn descend_to<'p>(
        &self,
        space: &'p Space,
        to: &To<'_>,
        page: PageId,
    ) -> Attempt<Option<Place<'p>>> {
        let place = self.descend_until(space, to, |node| node == page, None)?;
        Ok(place.filter(|place| place.node.page() == page))
    }

    /// Goes towards a leaf until it is there or `stop` says so.
    #[inline]
    fn descend_until<'p>(
        &self,
        space: &'p Space,
        to: &To<'_>,
        stop: impl Fn(PageId) -> bool,
        mut ahead: Option<&mut Ahead>,
    ) -> Attempt<Option<Place<'p>>> {
        let mut place = Place {
            node: space.pool.optimistic(self.root)?,
            parent: None,
        };
        let mut level_expected = None;
        loop {
            let (kind, level, index, child) = place.node.read(|view| {
                let node = Node(view);
                match node.is_leaf() {
                    true => (view.kind(), 0, 0, PageId(0)),
                    false => {
                        let index = to.choose(node);
                        (view.kind(), view.level(), index, node.child(index))
                    }
                }
            })?;
            if kind != Kind::Node as u8 || level_expected.is_some_and(|expected| expected != level)
            {
                // The node has just validated; if its parent does too, this is what the file says.
                if let Some((parent, _)) = place.parent {
                    parent.check()?;
                }
                return Err(damaged(place.node.page())(
                    "it is not the node its parent refers to",
                ));
            }
            if level == 0 || stop(place.node.page()) {
                return Ok(Some(place));
            }
            level_expected = Some(level - 1);
            if level == 1
                && let Some(ahead) = ahead.as_deref_mut()
                && !space.pool.is_resident(child)
            {
                ahead.missed = true;
                space.pool.prefetch(&children(place.node, index, ahead)?);
            }
            let node = enter(space, place.node, child)?;
            place = Place {
                node,
                parent: Some((place.node, index)),
            };
        }
    }
}

/// A child of a node and those that a scan comes to next.
fn children(node: Optimistic<'_>, index: usize, ahead: &Ahead) -> Attempt<Vec<PageId>> {
    let children = node.read(|view| {
        let node = Node(view);
        let all = match ahead.backward {
            false => index..(index + ahead.count).min(node.count()) + 1,
            true => index.saturating_sub(ahead.count)..index + 1,
        };
        all.map(|at| node.child(at)).collect()
    });
    Ok(children?)
}

/// Reads the child of a node, and validates the node afterwards, whether that worked or not.
fn enter<'p>(space: &'p Space, parent: Optimistic<'p>, child: PageId) -> Attempt<Optimistic<'p>> {
    let entered = space.pool.optimistic(child);
    parent.check()?;
    Ok(entered?)
}

/// Latches a node for change, if it is still as it was read.
pub(super) fn latch<'p>(node: Optimistic<'p>) -> Attempt<Exclusive<'p>> {
    node.upgrade().map_err(|_| Stop::Busy(node.page()))
}

/// A validated copy of a node, structurally sound as the pool checked it.
pub(super) fn copy(node: Optimistic<'_>) -> Attempt<PageBuf> {
    Ok(node.read(|view| view.to_buf())?)
}

/// A page that was taken but is not linked yet: given back when dropped.
pub(super) struct Taken<'p> {
    space: &'p Space,
    page: Option<PageId>,
}

impl<'p> Taken<'p> {
    pub(super) fn new(space: &'p Space) -> Result<Taken<'p>, Error> {
        Ok(Taken {
            space,
            page: Some(space.pages.take()?),
        })
    }

    pub(super) fn page(&self) -> PageId {
        self.page.expect("set until linked")
    }

    /// The page is part of the tree now.
    pub(super) fn linked(mut self) {
        self.page = None;
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(page) = self.page {
            self.space.pages.give(page);
        }
    }
}
