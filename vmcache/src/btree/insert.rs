//! Insertion, replacement, and the splits that make room for them.

use super::descend::{Place, Taken, To, copy, latch};
use super::edit::{self, ENTRY_BYTES_MAX, NodeBuf, Stored};
use super::node::Node;
use super::overflow::{self, Reference};
use super::{
    Attempt, BTree, INLINE_BYTES_MAX, KEY_BYTES_MAX, Stop, VALUE_BYTES_MAX, damaged, retry,
};
use crate::error::{Error, Result};
use crate::page::{PageId, PageRead};
use crate::pool::Optimistic;
use crate::space::Space;

/// Refuses keys and values that are too long.
pub(crate) fn check_lengths(key: &[u8], value: &[u8]) -> Result<()> {
    if key.len() > KEY_BYTES_MAX {
        return Err(Error::KeyTooLong(key.len()));
    }
    if value.len() > VALUE_BYTES_MAX {
        return Err(Error::ValueTooLong(value.len()));
    }
    Ok(())
}

/// A value on its way into a leaf.
pub(super) enum NewValue<'a> {
    Inline(&'a [u8]),
    /// Already written to overflow pages.
    Overflow(Reference, [u8; 20]),
}

impl<'a> NewValue<'a> {
    /// Writes the value to overflow pages if it does not fit next to its key.
    pub(super) fn new(space: &Space, key: &[u8], value: &'a [u8]) -> Result<NewValue<'a>> {
        check_lengths(key, value)?;
        if value.len() <= INLINE_BYTES_MAX && key.len() + value.len() <= ENTRY_BYTES_MAX {
            return Ok(NewValue::Inline(value));
        }
        let reference = overflow::write(space, value)?;
        Ok(NewValue::Overflow(reference, reference.encode()))
    }

    pub(super) fn stored(&self) -> Stored<'_> {
        match self {
            NewValue::Inline(bytes) => Stored::inline(bytes),
            NewValue::Overflow(_, bytes) => Stored {
                bytes,
                overflow: true,
            },
        }
    }

    /// Gives the overflow pages back, as the value does not get into the tree.
    pub(super) fn abandon(&self, space: &Space) {
        if let NewValue::Overflow(reference, _) = self {
            overflow::free(space, *reference);
        }
    }
}

/// What became of an entry that was replaced or removed.
pub(super) struct Former {
    /// Its overflow pages.
    pub(super) overflow: Option<Reference>,
}

impl Former {
    /// The entry at `index` of a node that is about to lose it.
    pub(super) fn of(node: &NodeBuf, index: usize, page: PageId) -> Attempt<Former> {
        let node = node.node();
        let reference = node
            .is_overflow(index)
            .then(|| Reference::decode(&node.value(index)));
        Ok(Former {
            overflow: reference.transpose().map_err(damaged(page))?,
        })
    }

    pub(super) fn free(&self, space: &Space) {
        if let Some(reference) = self.overflow {
            overflow::free(space, reference);
        }
    }
}

/// Where to split a node.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cut {
    /// So that there is room for the key.
    ForKey,
    /// A leaf, before this slot, if it still has that.
    Before(usize),
}

/// An insertion that was done.
struct Inserted {
    /// What it replaced.
    former: Option<Former>,
    leaf: PageId,
    slot: usize,
}

impl BTree {
    /// Sets the value of `key`; true if the tree had one before.
    pub(crate) fn insert(&self, space: &Space, key: &[u8], value: &[u8]) -> Result<bool> {
        let value = NewValue::new(space, key, value)?;
        let mut waited = false;
        match retry(&space.pool, || {
            self.try_insert(space, key, value.stored(), &mut waited)
        }) {
            Ok(done) => {
                if let Some(at) = space.contention.note(done.leaf, done.slot, waited) {
                    // It would be good for others, but nothing depends on it.
                    _ = self.split(space, done.leaf, key, Cut::Before(at));
                }
                let Some(former) = done.former else {
                    return Ok(false);
                };
                former.free(space);
                Ok(true)
            }
            Err(error) => {
                value.abandon(space);
                Err(error)
            }
        }
    }

    fn try_insert(
        &self,
        space: &Space,
        key: &[u8],
        value: Stored<'_>,
        waited: &mut bool,
    ) -> Attempt<Inserted> {
        let leaf = self.descend(space, &To::Covering(key))?.node;
        let found = leaf.read(|view| Node(view).search(key))?;
        let mut page = latch(leaf).inspect_err(|_| *waited = true)?;
        if let Ok(slot) = found
            && let Some(at) = place_of_same(Node(&page.view()), slot, value)
        {
            page.put(at, value.bytes);
            return Ok(Inserted {
                former: Some(Former { overflow: None }),
                leaf: leaf.page(),
                slot,
            });
        }
        let mut node = NodeBuf::from_image(page.view().to_buf());
        if !node.node().covers(key) {
            return Err(damaged(leaf.page())(
                "it does not cover the keys that its parent says",
            ));
        }
        let (done, former) = match found {
            Ok(slot) => {
                let former = Former::of(&node, slot, leaf.page())?;
                (node.replace(slot, value), Some(former))
            }
            Err(slot) => (node.insert(slot, key, value), None),
        };
        if done {
            page.write(&node.image);
            let (Ok(slot) | Err(slot)) = found;
            return Ok(Inserted {
                former,
                leaf: leaf.page(),
                slot,
            });
        }
        drop(page);
        self.split(space, leaf.page(), key, Cut::ForKey)?;
        Err(Stop::Again)
    }

    /// Splits a node on the way to `key`, or a node above it that has no room for the separator.
    pub(super) fn split(&self, space: &Space, page: PageId, key: &[u8], cut: Cut) -> Attempt<()> {
        let Some(Place { node, parent }) = self.descend_to(space, &To::Covering(key), page)? else {
            return Ok(());
        };
        let image = copy(node)?;
        let halves = match cut {
            Cut::ForKey => edit::split(Node(&image), key).map_err(damaged(page))?,
            Cut::Before(at) => match edit::split_before(Node(&image), at) {
                Some(halves) => halves,
                None => return Ok(()),
            },
        };
        let Some((parent, index)) = parent else {
            return split_root(space, node, image.level(), halves);
        };
        let mut above = NodeBuf::from_image(copy(parent)?);
        let frame = space.pool.frame()?;
        let taken = Taken::new(space)?;
        let child = taken.page().0.to_le_bytes();
        if !above.insert(index, &halves.separator, Stored::inline(&child)) {
            drop((frame, taken));
            return self.split(space, parent.page(), key, Cut::ForKey);
        }
        // Every image was computed from the version that the upgrade requires; from here nothing fails.
        let (mut parent, mut right) = (latch(parent)?, latch(node)?);
        let mut left = space.pool.create_in(frame, taken.page())?;
        left.write(&halves.left.image);
        right.write(&halves.right.image);
        parent.write(&above.image);
        taken.linked();
        Ok(())
    }
}

/// Where the value of an entry is, if the new one can just be put over it.
fn place_of_same<P: PageRead>(node: Node<'_, P>, slot: usize, value: Stored<'_>) -> Option<usize> {
    let same = node.value_len(slot) == value.bytes.len();
    (same && !value.overflow && !node.is_overflow(slot)).then(|| node.value_at(slot))
}

/// Moves the root's contents to two new children.
fn split_root(space: &Space, root: Optimistic<'_>, level: u8, halves: edit::Halves) -> Attempt<()> {
    let level = level
        .checked_add(1)
        .ok_or("the tree is too high")
        .map_err(damaged(root.page()))?;
    let first = space.pool.frame()?;
    let second = match space.pool.frame_now() {
        Ok(frame) => frame,
        Err(Error::NoFrame) => {
            drop(first);
            space.pool.make_room()?;
            return Err(Stop::Again);
        }
        Err(error) => return Err(error.into()),
    };
    let (left, right) = (Taken::new(space)?, Taken::new(space)?);
    let mut top = NodeBuf::new(level, b"", None);
    let child = left.page().0.to_le_bytes();
    let fits = top.insert(0, &halves.separator, Stored::inline(&child));
    assert!(fits, "an empty node has room for one separator");
    top.set_last_child(right.page());
    let mut root = latch(root)?;
    space
        .pool
        .create_in(first, left.page())?
        .write(&halves.left.image);
    space
        .pool
        .create_in(second, right.page())?
        .write(&halves.right.image);
    root.write(&top.image);
    left.linked();
    right.linked();
    Ok(())
}
