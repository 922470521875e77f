//! The tree: lookups, insertion, and what the collector needs.
//!
//! A mutation first *traces* the path to its leaf, reading every node that is not in memory, and
//! only then changes anything; from that point on it cannot fail. Accounts of what it made resident
//! and what it retired are kept beside the root, so that the recursion can hold both.

use std::sync::Arc;

use super::cache::{NodeCache, corrupt};
use super::cursor::Cursor;
use super::inner::{Inner, MAX_FANOUT};
use super::key::Key;
use super::leaf::{Leaf, MAX_VALUE};
use super::node::{Child, Node, NodeRef, Value};
use crate::types::Lba;
use crate::{Error, Result};

/// Most levels of a tree, leaves included. A quarter-full tree of this height holds more records
/// than a device has bytes.
pub const MAX_HEIGHT: usize = 12;

/// An ordered map from [`Key`] to at most [`MAX_VALUE`] bytes.
///
/// A clone is a snapshot: O(1), and nothing done to one shows in the other. A clone starts without
/// retired addresses: they belong to the tree that stopped referring to them.
#[derive(Debug)]
pub struct Tree {
    pub(super) root: Child,
    pub(super) height: u8,
    pub(super) accounts: Accounts,
}

/// A state of a tree to return to: see [`Tree::savepoint`].
#[derive(Debug)]
pub struct Savepoint {
    tree: Tree,
    retired: usize,
}

/// What a tree knows about its nodes without visiting them.
#[derive(Debug)]
pub(super) struct Accounts {
    /// Resident nodes the tree refers to.
    pub(super) resident: usize,
    /// Addresses of clean nodes it referred to since the list was last taken.
    pub(super) retired: Vec<Lba>,
}

impl Accounts {
    /// Books that the tree no longer refers to `child`.
    pub(super) fn release(&mut self, child: &Child) {
        match child {
            Child::Clean(reference) => self.retired.push(reference.lba),
            Child::Resident(_) => self.resident -= 1,
        }
    }

    /// Books and makes a reference to a node that is new.
    pub(super) fn adopt_new(&mut self, node: Node) -> Child {
        self.resident += 1;
        Child::Resident(Arc::new(node))
    }
}

/// The way from the root to a node, with the clean nodes on it loaded.
pub(super) struct Path {
    /// By level: which child the way takes.
    pub(super) index: [u8; MAX_HEIGHT],
    /// By level: the node, where it is clean.
    pub(super) loaded: [Option<Arc<Node>>; MAX_HEIGHT],
    /// Range of keys of the node at the end.
    low: Key,
    /// Its end, exclusive.
    pub(super) high: Option<Key>,
}

const _: () = assert!(MAX_FANOUT <= u8::MAX as usize);

impl Path {
    fn new() -> Path {
        Path {
            index: [0; MAX_HEIGHT],
            loaded: [const { None }; MAX_HEIGHT],
            low: Key::MIN,
            high: None,
        }
    }

    /// Notes the step from `inner` towards `key`; returns the child.
    fn step<'a>(&mut self, inner: &'a Inner, key: &Key) -> &'a Child {
        let at = inner.search(key);
        self.index[usize::from(inner.level())] = at as u8;
        // The first child begins where the node begins, whatever its separator says.
        if at > 0 {
            self.low = *inner.key(at);
        }
        if let Some(high) = inner.key_after(at) {
            self.high = Some(*high);
        }
        inner.child(at)
    }
}

impl Clone for Tree {
    fn clone(&self) -> Tree {
        let accounts = Accounts {
            resident: self.accounts.resident,
            retired: Vec::new(),
        };
        Tree {
            root: self.root.clone(),
            height: self.height,
            accounts,
        }
    }
}

impl Default for Tree {
    fn default() -> Tree {
        Tree::empty()
    }
}

impl Tree {
    /// A tree without records.
    #[must_use]
    pub fn empty() -> Tree {
        let mut accounts = Accounts {
            resident: 0,
            retired: Vec::new(),
        };
        let root = accounts.adopt_new(Node::Leaf(Leaf::new()));
        Tree {
            root,
            height: 1,
            accounts,
        }
    }

    /// The tree whose root a checkpoint names. Reads nothing.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a height that no tree has.
    pub fn from_root(root: NodeRef, height: u8) -> Result<Tree> {
        if height == 0 || usize::from(height) > MAX_HEIGHT {
            return Err(corrupt(
                root.lba,
                format_args!("root of a tree of height {height}"),
            ));
        }
        let accounts = Accounts {
            resident: 0,
            retired: Vec::new(),
        };
        Ok(Tree {
            root: Child::Clean(root),
            height,
            accounts,
        })
    }

    /// Levels, leaves included; at least 1.
    #[must_use]
    pub fn height(&self) -> u8 {
        self.height
    }

    /// How many nodes of this tree are only in memory. O(1).
    #[must_use]
    pub fn dirty_nodes(&self) -> usize {
        self.accounts.resident
    }

    /// Hands over the addresses of the nodes on the device that this tree stopped referring to
    /// since the last call. Each is reported once.
    #[must_use]
    pub fn take_retired(&mut self) -> Vec<Lba> {
        std::mem::take(&mut self.accounts.retired)
    }

    /// Marks the present state, O(1), so that several operations can be undone together. Until it is
    /// dropped, nodes are copied before they are changed, as for any clone.
    #[must_use]
    pub fn savepoint(&self) -> Savepoint {
        Savepoint {
            tree: self.clone(),
            retired: self.accounts.retired.len(),
        }
    }

    /// Returns to a state of this tree. Neither [`Tree::take_retired`] nor [`Tree::adopt`] may have
    /// been called since.
    pub fn roll_back(&mut self, savepoint: Savepoint) {
        let Savepoint { tree, retired } = savepoint;
        debug_assert!(retired <= self.accounts.retired.len());
        self.root = tree.root;
        self.height = tree.height;
        self.accounts.resident = tree.accounts.resident;
        self.accounts.retired.truncate(retired);
    }

    /// The value of a key.
    ///
    /// # Errors
    /// Of the device; [`Error::Corrupt`] for a node that is not what had been written.
    pub fn get(&self, cache: &NodeCache, key: &Key) -> Result<Option<Value>> {
        let leaf = self.leaf_of(cache, key)?;
        let at = leaf.leaf().search(key);
        Ok(at.ok().map(|at| Value::new(leaf, at)))
    }

    /// The record with the greatest key that is not above `key`.
    ///
    /// # Errors
    /// As [`Tree::get`].
    pub fn floor(&self, cache: &NodeCache, key: &Key) -> Result<Option<(Key, Value)>> {
        let leaf = self.leaf_of(cache, key)?;
        let after = match leaf.leaf().search(key) {
            Ok(at) => at + 1,
            Err(at) => at,
        };
        if let Some(at) = after.checked_sub(1) {
            return Ok(Some((leaf.leaf().key(at), Value::new(leaf, at))));
        }
        self.range_back(cache, ..=*key).prev().transpose()
    }

    /// Stores a record; returns the value the key had.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a value above [`MAX_VALUE`] bytes; else as [`Tree::get`]. The tree is
    /// unchanged then.
    pub fn put(&mut self, cache: &NodeCache, key: Key, value: &[u8]) -> Result<Option<Vec<u8>>> {
        if value.len() > MAX_VALUE {
            return Err(Error::Invalid("catalog value too long"));
        }
        let mut path = self.trace(cache, &key, 0)?;
        self.check_growth(&path)?;
        let mut put = Put {
            key,
            value,
            path: &mut path,
            accounts: &mut self.accounts,
            old: None,
        };
        let split = put.below(&mut self.root, self.height - 1);
        let old = put.old;
        if let Some((separator, right)) = split {
            let right = self.accounts.adopt_new(right);
            let left = self.root.clone();
            let root = Inner::new(self.height, Key::MIN, left, separator, right);
            self.root = self.accounts.adopt_new(Node::Inner(root));
            self.height += 1;
        }
        Ok(old)
    }

    /// Whether the node on `level` on the way to `first_key` is the one at `lba`.
    ///
    /// # Errors
    /// As [`Tree::get`].
    pub fn references(
        &self,
        cache: &NodeCache,
        level: u8,
        first_key: &Key,
        lba: Lba,
    ) -> Result<bool> {
        if level >= self.height {
            return Ok(false);
        }
        let mut at = self.height - 1;
        let mut child = &self.root;
        let mut reference = loop {
            match child {
                Child::Clean(reference) => break *reference,
                Child::Resident(_) if at == level => return Ok(false),
                Child::Resident(node) => child = node.inner().child(node.inner().search(first_key)),
            }
            at -= 1;
        };
        while at > level {
            let node = cache.load(reference, at)?;
            reference = clean(node.inner().child(node.inner().search(first_key)));
            at -= 1;
        }
        Ok(reference.lba == lba)
    }

    /// If the tree refers to the node at `lba` (see [`Tree::references`]), makes it and its
    /// ancestors resident, so that the next checkpoint writes them elsewhere; the addresses they had
    /// are retired. Returns whether it did.
    ///
    /// # Errors
    /// As [`Tree::get`]; the tree is unchanged then.
    pub fn touch(
        &mut self,
        cache: &NodeCache,
        level: u8,
        first_key: &Key,
        lba: Lba,
    ) -> Result<bool> {
        if !self.references(cache, level, first_key, lba)? {
            return Ok(false);
        }
        let mut path = self.trace(cache, first_key, level)?;
        let mut at = usize::from(self.height) - 1;
        let mut child = &mut self.root;
        loop {
            let node = make_resident(child, path.loaded[at].take(), &mut self.accounts);
            if at == usize::from(level) {
                return Ok(true);
            }
            child = node.inner_mut().child_mut(usize::from(path.index[at]));
            at -= 1;
        }
    }

    /// The leaf a key belongs to.
    fn leaf_of(&self, cache: &NodeCache, key: &Key) -> Result<Arc<Node>> {
        let mut level = self.height - 1;
        let mut child = &self.root;
        let mut reference = loop {
            match child {
                Child::Clean(reference) => break *reference,
                Child::Resident(node) if level == 0 => return Ok(Arc::clone(node)),
                Child::Resident(node) => child = node.inner().child(node.inner().search(key)),
            }
            level -= 1;
        };
        loop {
            let node = cache.load(reference, level)?;
            if level == 0 {
                return Ok(node);
            }
            reference = clean(node.inner().child(node.inner().search(key)));
            level -= 1;
        }
    }

    /// The way to the node on `stop` that `key` belongs to, every clean node on it loaded and
    /// checked against the range its ancestors give it.
    pub(super) fn trace(&self, cache: &NodeCache, key: &Key, stop: u8) -> Result<Path> {
        let mut path = Path::new();
        let mut level = self.height - 1;
        let mut child = &self.root;
        let mut reference = loop {
            match child {
                Child::Clean(reference) => break *reference,
                Child::Resident(_) if level == stop => return Ok(path),
                Child::Resident(node) => child = path.step(node.inner(), key),
            }
            level -= 1;
        };
        loop {
            let node = cache.load(reference, level)?;
            if !node.lies_within(&path.low, path.high.as_ref()) {
                return Err(corrupt(
                    reference.lba,
                    "keys outside the range its parent gives it",
                ));
            }
            let next = (level > stop).then(|| clean(path.step(node.inner(), key)));
            path.loaded[usize::from(level)] = Some(node);
            match next {
                Some(next) => reference = next,
                None => return Ok(path),
            }
            level -= 1;
        }
    }

    /// Refuses to split the root of a tree that is as high as trees can be. No sequence of
    /// operations gets there, but a forged image might.
    fn check_growth(&self, path: &Path) -> Result<()> {
        let top = usize::from(self.height) - 1;
        if top + 1 < MAX_HEIGHT {
            return Ok(());
        }
        let fanout = match (&self.root, &path.loaded[top]) {
            (Child::Resident(node), _) | (Child::Clean(_), Some(node)) => node.len(),
            (Child::Clean(_), None) => unreachable!("the path of a clean root is loaded"),
        };
        if fanout < MAX_FANOUT {
            return Ok(());
        }
        Err(Error::Corrupt {
            what: "catalog",
            detail: format!("tree of height {MAX_HEIGHT} is full"),
        })
    }

    /// A cursor over a range, placed before its first record.
    pub fn range<'c>(
        &self,
        cache: &'c NodeCache,
        range: impl std::ops::RangeBounds<Key>,
    ) -> Cursor<'c> {
        Cursor::at_start(self, cache, &range)
    }

    /// A cursor over a range, placed behind its last record.
    pub fn range_back<'c>(
        &self,
        cache: &'c NodeCache,
        range: impl std::ops::RangeBounds<Key>,
    ) -> Cursor<'c> {
        Cursor::at_end(self, cache, &range)
    }
}

/// The reference that a child of a clean node is.
pub(super) fn clean(child: &Child) -> NodeRef {
    match child {
        Child::Clean(reference) => *reference,
        Child::Resident(_) => unreachable!("a clean node has only clean children"),
    }
}

/// The node behind `child`, owned by this tree alone. A clean one, which the caller has `loaded`,
/// becomes resident.
pub(super) fn make_resident<'a>(
    child: &'a mut Child,
    loaded: Option<Arc<Node>>,
    accounts: &mut Accounts,
) -> &'a mut Node {
    if let Child::Clean(reference) = child {
        let node = loaded.expect("clean nodes on the path are loaded");
        accounts.retired.push(reference.lba);
        accounts.resident += 1;
        *child = Child::Resident(node);
    }
    match child {
        Child::Resident(node) => Arc::make_mut(node),
        Child::Clean(_) => unreachable!("it was just made resident"),
    }
}

/// An insertion on its way down.
struct Put<'a> {
    key: Key,
    value: &'a [u8],
    path: &'a mut Path,
    accounts: &'a mut Accounts,
    old: Option<Vec<u8>>,
}

impl Put<'_> {
    /// Inserts below `child`; returns the right half, with its separator, if it had to split.
    fn below(&mut self, child: &mut Child, level: u8) -> Option<(Key, Node)> {
        let loaded = self.path.loaded[usize::from(level)].take();
        let node = make_resident(child, loaded, self.accounts);
        if level == 0 {
            return self.in_leaf(node.leaf_mut());
        }
        let inner = node.inner_mut();
        let at = usize::from(self.path.index[usize::from(level)]);
        let (separator, right) = self.below(inner.child_mut(at), level - 1)?;
        let right = self.accounts.adopt_new(right);
        let (separator, right) = inner.insert_after(at, separator, right)?;
        Some((separator, Node::Inner(right)))
    }

    fn in_leaf(&mut self, leaf: &mut Leaf) -> Option<(Key, Node)> {
        let at = leaf.search(&self.key);
        if let Ok(at) = at {
            self.old = Some(leaf.value(at).to_vec());
        }
        if leaf.put(at, &self.key, self.value) {
            return None;
        }
        let right = leaf.split_insert(at.unwrap_or_else(|at| at), &self.key, self.value);
        Some((right.key(0), Node::Leaf(right)))
    }
}
