//! Deletion, and keeping nodes filled.
//!
//! A node that loses its last record or child goes, without its neighbours being read. One that
//! falls below a quarter is merged with a neighbour, or shares with it when both do not fit one
//! node. That is an optimisation: a neighbour that cannot be read is left alone and the node stays
//! small.

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::cache::{NodeCache, corrupt};
use super::inner::Inner;
use super::key::Key;
use super::leaf::Leaf;
use super::node::{Child, Node};
use super::tree::{Accounts, Path, Tree, make_resident};
use crate::Result;
use crate::types::Lba;

impl Tree {
    /// Deletes a record; returns the value it had.
    ///
    /// # Errors
    /// As [`Tree::get`]; the tree is unchanged then.
    pub fn delete(&mut self, cache: &NodeCache, key: &Key) -> Result<Option<Vec<u8>>> {
        let mut old = None;
        let path = self.trace(cache, key, 0)?;
        self.delete_in_leaf(cache, path, &(*key..=*key), &mut |_, value| {
            old = Some(value.to_vec())
        });
        Ok(old)
    }

    /// Deletes all records in a range, a leaf at a time, and tells `on_deleted` about each, in
    /// ascending order. Returns how many there were.
    ///
    /// # Errors
    /// As [`Tree::get`]. The tree is unchanged then, although `on_deleted` may have been called.
    pub fn delete_range(
        &mut self,
        cache: &NodeCache,
        range: RangeInclusive<Key>,
        on_deleted: &mut dyn FnMut(Key, &[u8]),
    ) -> Result<u64> {
        if range.is_empty() {
            return Ok(0);
        }
        let path = self.trace(cache, range.start(), 0)?;
        if path.high.is_none_or(|high| high > *range.end()) {
            return Ok(self.delete_in_leaf(cache, path, &range, on_deleted) as u64);
        }
        let savepoint = self.savepoint();
        let deleted = self.delete_leaves(cache, range, on_deleted);
        if deleted.is_err() {
            self.roll_back(savepoint);
        }
        deleted
    }

    fn delete_leaves(
        &mut self,
        cache: &NodeCache,
        range: RangeInclusive<Key>,
        on_deleted: &mut dyn FnMut(Key, &[u8]),
    ) -> Result<u64> {
        let (mut from, to) = range.into_inner();
        let mut deleted = 0;
        loop {
            let path = self.trace(cache, &from, 0)?;
            let high = path.high;
            deleted += self.delete_in_leaf(cache, path, &(from..=to), on_deleted) as u64;
            match high {
                Some(high) if high <= from => {
                    return Err(corrupt(Lba(0), "separators out of order"));
                }
                Some(high) if high <= to => from = high,
                _ => return Ok(deleted),
            }
        }
    }

    /// Deletes the records of one leaf that lie in `range`; the path leads to the leaf. Returns how
    /// many; a leaf without any is not made resident.
    fn delete_in_leaf(
        &mut self,
        cache: &NodeCache,
        mut path: Path,
        range: &RangeInclusive<Key>,
        on_deleted: &mut dyn FnMut(Key, &[u8]),
    ) -> usize {
        let (from, to, count) = {
            let leaf = self.traced_leaf(&path);
            let from = leaf.search(range.start()).unwrap_or_else(|at| at);
            let to = leaf.search(range.end()).map_or_else(|at| at, |at| at + 1);
            (from..to).for_each(|at| on_deleted(leaf.key(at), leaf.value(at)));
            (from, to, leaf.len())
        };
        if from == to {
            return 0;
        }
        let whole = to - from == count;
        let mut removal = Removal {
            from,
            to,
            whole,
            path: &mut path,
            accounts: &mut self.accounts,
            cache,
        };
        let emptied = removal.below(&mut self.root, self.height - 1);
        if emptied {
            self.accounts.release(&self.root);
            self.root = self.accounts.adopt_new(Node::Leaf(Leaf::new()));
            self.height = 1;
        }
        self.lower_root();
        to - from
    }

    /// The leaf at the end of a path.
    fn traced_leaf<'a>(&'a self, path: &'a Path) -> &'a Leaf {
        if let Some(node) = &path.loaded[0] {
            return node.leaf();
        }
        let mut child = &self.root;
        loop {
            match child {
                Child::Resident(node) => match &**node {
                    Node::Leaf(leaf) => return leaf,
                    Node::Inner(inner) => {
                        child = inner.child(usize::from(path.index[usize::from(inner.level())]));
                    }
                },
                Child::Clean(_) => unreachable!("clean nodes on the path are loaded"),
            }
        }
    }

    /// Replaces a root with one child by the child.
    fn lower_root(&mut self) {
        while let Child::Resident(node) = &self.root {
            let Node::Inner(inner) = &**node else { return };
            if inner.len() > 1 {
                return;
            }
            let child = inner.child(0).clone();
            self.accounts.release(&self.root);
            self.root = child;
            self.height -= 1;
        }
    }
}

/// A removal of slots `from .. to` of a leaf on its way down.
struct Removal<'a> {
    from: usize,
    to: usize,
    whole: bool,
    path: &'a mut Path,
    accounts: &'a mut Accounts,
    cache: &'a NodeCache,
}

impl Removal<'_> {
    /// Removes below `child`; returns whether nothing is left there, so that the reference has to go.
    fn below(&mut self, child: &mut Child, level: u8) -> bool {
        if level == 0 && self.whole {
            return true;
        }
        let loaded = self.path.loaded[usize::from(level)].take();
        let node = make_resident(child, loaded, self.accounts);
        if level == 0 {
            node.leaf_mut().remove(self.from, self.to);
            return false;
        }
        let inner = node.inner_mut();
        let at = usize::from(self.path.index[usize::from(level)]);
        if self.below(inner.child_mut(at), level - 1) {
            self.accounts.release(&inner.remove(at));
            return inner.len() == 0;
        }
        self.refill(inner, at);
        false
    }

    /// Merges child `at`, which was just changed, with a neighbour if it has become small.
    fn refill(&mut self, inner: &mut Inner, at: usize) {
        match inner.child(at) {
            Child::Resident(node) if node.underfull() && inner.len() > 1 => {}
            _ => return,
        }
        let left = left_of_pair(inner, at);
        let (Ok(left_loaded), Ok(right_loaded)) =
            (self.load(inner, left), self.load(inner, left + 1))
        else {
            return;
        };
        let separator = *inner.key(left + 1);
        let right = inner.remove(left + 1);
        self.accounts.release(&right);
        let right = match (right, right_loaded) {
            (Child::Resident(node), _) | (Child::Clean(_), Some(node)) => node,
            (Child::Clean(_), None) => unreachable!("clean children are loaded"),
        };
        let rest = match make_resident(inner.child_mut(left), left_loaded, self.accounts) {
            Node::Leaf(leaf) => leaf
                .absorb(right.leaf())
                .map(|rest| (rest.key(0), Node::Leaf(rest))),
            Node::Inner(node) => node
                .absorb(separator, right.inner())
                .map(|(separator, rest)| (separator, Node::Inner(rest))),
        };
        if let Some((separator, rest)) = rest {
            let rest = self.accounts.adopt_new(rest);
            let split = inner.insert_after(left, separator, rest);
            debug_assert!(split.is_none(), "a child was removed just before");
        }
    }

    /// Child `at`, if it is clean; an error if it cannot be had or does not belong there.
    fn load(&self, inner: &Inner, at: usize) -> Result<Option<Arc<Node>>> {
        let Child::Clean(reference) = inner.child(at) else {
            return Ok(None);
        };
        let node = self.cache.load(*reference, inner.level() - 1)?;
        let low = if at == 0 { &Key::MIN } else { inner.key(at) };
        if !node.lies_within(low, inner.key_after(at)) {
            return Err(corrupt(
                reference.lba,
                "keys outside the range its parent gives it",
            ));
        }
        Ok(Some(node))
    }
}

/// The left of the two neighbours to merge, one of which is `at`. Prefers to change a node that is
/// resident anyway.
fn left_of_pair(inner: &Inner, at: usize) -> usize {
    let right_is_resident =
        at + 1 < inner.len() && matches!(inner.child(at + 1), Child::Resident(_));
    match at.checked_sub(1) {
        None => at,
        Some(left) if matches!(inner.child(left), Child::Resident(_)) => left,
        Some(_) if right_is_resident => at,
        Some(left) => left,
    }
}
