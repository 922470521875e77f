//! Cursors: ordered iteration in both directions.
//!
//! A cursor stands in a gap between records; [`Cursor::next`] yields the record behind the gap and
//! steps over it, [`Cursor::prev`] the one before it. It holds the root it was made from, so what it
//! sees is the tree at that moment, whatever happens to the tree since; and the nodes from the root
//! to its leaf, so that a step is O(1) and k records cost O(log n + k).
//!
//! After an error a cursor yields nothing more.

use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use super::cache::{NodeCache, corrupt};
use super::inner::Inner;
use super::key::Key;
use super::node::{Child, Node, Value};
use super::tree::Tree;
use crate::Result;
use crate::types::Lba;

/// A place between the records of a tree, limited to a range of keys.
pub struct Cursor<'c> {
    cache: &'c NodeCache,
    root: Child,
    height: u8,
    lower: Bound<Key>,
    upper: Bound<Key>,
    state: State,
    /// From the root down: node and child taken; for the leaf, the slot behind the gap.
    stack: Vec<(Arc<Node>, usize)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    AtStart,
    AtEnd,
    Placed,
    Failed,
}

impl<'c> Cursor<'c> {
    pub(super) fn at_start(
        tree: &Tree,
        cache: &'c NodeCache,
        range: &impl RangeBounds<Key>,
    ) -> Self {
        Cursor::new(tree, cache, range, State::AtStart)
    }

    pub(super) fn at_end(tree: &Tree, cache: &'c NodeCache, range: &impl RangeBounds<Key>) -> Self {
        Cursor::new(tree, cache, range, State::AtEnd)
    }

    fn new(tree: &Tree, cache: &'c NodeCache, range: &impl RangeBounds<Key>, state: State) -> Self {
        Cursor {
            cache,
            root: tree.root.clone(),
            height: tree.height,
            lower: range.start_bound().cloned(),
            upper: range.end_bound().cloned(),
            state,
            stack: Vec::new(),
        }
    }

    /// Steps back over the record before the gap and returns it; `None` at the start of the range.
    pub fn prev(&mut self) -> Option<Result<(Key, Value)>> {
        let record = self.place().and_then(|()| self.step_back());
        self.latch(record)
    }

    /// The records from the gap back to the start of the range, in descending order.
    pub fn backward(mut self) -> impl Iterator<Item = Result<(Key, Value)>> {
        std::iter::from_fn(move || self.prev())
    }

    fn latch(&mut self, record: Result<Option<(Key, Value)>>) -> Option<Result<(Key, Value)>> {
        if record.is_err() {
            self.state = State::Failed;
        }
        record.transpose()
    }

    /// Goes to the end of the range where the cursor is to start.
    fn place(&mut self) -> Result<()> {
        let (key, behind) = match self.state {
            State::Placed | State::Failed => return Ok(()),
            State::AtStart => match self.lower {
                Bound::Included(key) => (key, false),
                Bound::Excluded(key) => (key, true),
                Bound::Unbounded => (Key::MIN, false),
            },
            State::AtEnd => match self.upper {
                Bound::Included(key) => (key, true),
                Bound::Excluded(key) => (key, false),
                Bound::Unbounded => (Key::MAX, true),
            },
        };
        self.dive(self.root.clone(), self.height - 1, |inner| {
            inner.search(&key)
        })?;
        if let Some((node, gap)) = self.stack.last_mut() {
            *gap = match node.leaf().search(&key) {
                Ok(at) => at + usize::from(behind),
                Err(at) => at,
            };
        }
        self.state = State::Placed;
        Ok(())
    }

    fn step(&mut self) -> Result<Option<(Key, Value)>> {
        if self.state == State::Failed {
            return Ok(None);
        }
        let Some((node, gap)) = self.stack.last() else {
            return Ok(None);
        };
        if *gap == node.len() && !self.next_leaf()? {
            return Ok(None);
        }
        let Some((node, gap)) = self.stack.last_mut() else {
            return Ok(None);
        };
        let key = node.leaf().key(*gap);
        if !below(&self.upper, &key) {
            return Ok(None);
        }
        let value = Value::new(Arc::clone(node), *gap);
        *gap += 1;
        Ok(Some((key, value)))
    }

    fn step_back(&mut self) -> Result<Option<(Key, Value)>> {
        if self.state == State::Failed {
            return Ok(None);
        }
        let Some((_, gap)) = self.stack.last() else {
            return Ok(None);
        };
        if *gap == 0 && !self.previous_leaf()? {
            return Ok(None);
        }
        let Some((node, gap)) = self.stack.last_mut() else {
            return Ok(None);
        };
        let key = node.leaf().key(*gap - 1);
        if !above(&self.lower, &key) {
            return Ok(None);
        }
        *gap -= 1;
        Ok(Some((key, Value::new(Arc::clone(node), *gap))))
    }

    /// Goes to the start of the next leaf; stays and returns `false` if there is none.
    fn next_leaf(&mut self) -> Result<bool> {
        let inner = &self.stack[..self.stack.len() - 1];
        let Some(turn) = inner.iter().rposition(|(node, at)| at + 1 < node.len()) else {
            return Ok(false);
        };
        let left = self.boundary_leaf();
        self.stack.truncate(turn + 1);
        self.descend(turn, 1, |_| 0)?;
        self.check_order(&left, &self.boundary_leaf())?;
        Ok(true)
    }

    /// Goes to the end of the previous leaf; stays and returns `false` if there is none.
    fn previous_leaf(&mut self) -> Result<bool> {
        let inner = &self.stack[..self.stack.len() - 1];
        let Some(turn) = inner.iter().rposition(|(_, at)| *at > 0) else {
            return Ok(false);
        };
        let right = self.boundary_leaf();
        self.stack.truncate(turn + 1);
        self.descend(turn, -1, |inner| inner.len() - 1)?;
        self.check_order(&self.boundary_leaf(), &right)?;
        if let Some((node, gap)) = self.stack.last_mut() {
            *gap = node.len();
        }
        Ok(true)
    }

    fn boundary_leaf(&self) -> Arc<Node> {
        Arc::clone(&self.stack.last().expect("a placed cursor has a leaf").0)
    }

    /// Moves the turning point by one child and goes down from there.
    fn descend(&mut self, turn: usize, by: isize, pick: impl Fn(&Inner) -> usize) -> Result<()> {
        let (node, at) = &mut self.stack[turn];
        *at = at.wrapping_add_signed(by);
        let child = node.inner().child(*at).clone();
        let level = node.level() - 1;
        self.dive(child, level, pick)
    }

    /// Pushes the nodes from `child` down to a leaf; the gap is at the leaf's start.
    fn dive(&mut self, child: Child, level: u8, pick: impl Fn(&Inner) -> usize) -> Result<()> {
        let (mut child, mut level) = (child, level);
        loop {
            let node = match child {
                Child::Resident(node) => node,
                Child::Clean(reference) => self.cache.load(reference, level)?,
            };
            if level == 0 {
                self.stack.push((node, 0));
                return Ok(());
            }
            let at = pick(node.inner());
            child = node.inner().child(at).clone();
            self.stack.push((node, at));
            level -= 1;
        }
    }

    /// A forged tree must not send a cursor in circles: neighbouring leaves hold records, in order.
    fn check_order(&self, left: &Node, right: &Node) -> Result<()> {
        let (left, right) = (left.leaf(), right.leaf());
        if left.len() > 0 && right.len() > 0 && left.key(left.len() - 1) < right.key(0) {
            return Ok(());
        }
        let lba = match self.stack.iter().rev().nth(1) {
            Some((parent, at)) => match parent.inner().child(*at) {
                Child::Clean(reference) => reference.lba,
                Child::Resident(_) => Lba(0),
            },
            None => Lba(0),
        };
        Err(corrupt(
            lba,
            "empty leaf, or keys that do not follow those of the neighbouring leaf",
        ))
    }
}

impl Iterator for Cursor<'_> {
    type Item = Result<(Key, Value)>;

    /// Steps over the record behind the gap and returns it; `None` at the end of the range.
    fn next(&mut self) -> Option<Self::Item> {
        let record = self.place().and_then(|()| self.step());
        self.latch(record)
    }
}

fn below(upper: &Bound<Key>, key: &Key) -> bool {
    match upper {
        Bound::Included(upper) => key <= upper,
        Bound::Excluded(upper) => key < upper,
        Bound::Unbounded => true,
    }
}

fn above(lower: &Bound<Key>, key: &Key) -> bool {
    match lower {
        Bound::Included(lower) => key >= lower,
        Bound::Excluded(lower) => key > lower,
        Bound::Unbounded => true,
    }
}
