//! Checking a whole tree, for `fsck` and for tests.
//!
//! Walks every node once, reports each to a visitor together with the records, and collects what is
//! wrong instead of stopping at it. A node that cannot be read or does not belong where it was found
//! is one problem; what is below it is skipped, as its records would be reported in wrong places
//! (and a forged tree could make the walk endless). What records mean, and whether two references
//! name the same address, is for the visitor to judge.

use std::sync::Arc;

use super::cache::NodeCache;
use super::key::Key;
use super::node::{Child, HEADER, Node, NodeRef};
use super::tree::Tree;
use crate::types::Lba;

/// What a check came across.
#[derive(Debug)]
pub enum CheckEvent<'a> {
    /// A node in its right place; followed by its records or by the nodes below it.
    Node {
        /// Distance from the leaves.
        level: u8,
        /// Lower bound of its keys.
        first_key: Key,
        /// Where it is on the device; `None`: only in memory.
        reference: Option<NodeRef>,
    },
    /// A record.
    Record {
        /// Its key.
        key: Key,
        /// Its value.
        value: &'a [u8],
    },
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Nodes visited.
    pub nodes: u64,
    /// Leaves among them.
    pub leaves: u64,
    /// Bytes in use in the leaves, headers included.
    pub leaf_bytes_used: u64,
    /// Records visited.
    pub records: u64,
    /// What is wrong, one line each.
    pub problems: Vec<String>,
}

impl Tree {
    /// Checks every node: readable, checksum, form, level, order, range. Tells `visit` about all
    /// that is good and returns what is not.
    pub fn check(&self, cache: &NodeCache, visit: &mut dyn FnMut(CheckEvent<'_>)) -> CheckReport {
        let mut walk = Walk {
            cache,
            visit,
            report: CheckReport::default(),
        };
        walk.child(&self.root, self.height - 1, &Key::MIN, None, true);
        walk.report
    }
}

struct Walk<'a> {
    cache: &'a NodeCache,
    visit: &'a mut dyn FnMut(CheckEvent<'_>),
    report: CheckReport,
}

impl Walk<'_> {
    fn child(&mut self, child: &Child, level: u8, low: &Key, high: Option<&Key>, is_root: bool) {
        let (node, reference) = match child {
            Child::Resident(node) => (Arc::clone(node), None),
            Child::Clean(reference) => match self.cache.load(*reference, level) {
                Ok(node) => (node, Some(*reference)),
                Err(error) => return self.report.problems.push(error.to_string()),
            },
        };
        if let Some(problem) = misplaced(&node, level, low, high, is_root) {
            let place = reference.map(|reference: NodeRef| reference.lba);
            return self.problem(place, level, low, &problem);
        }
        self.report.nodes += 1;
        (self.visit)(CheckEvent::Node {
            level,
            first_key: *low,
            reference,
        });
        match &*node {
            Node::Leaf(leaf) => {
                self.report.leaves += 1;
                self.report.leaf_bytes_used += (HEADER + leaf.used()) as u64;
                self.report.records += leaf.len() as u64;
                for at in 0..leaf.len() {
                    (self.visit)(CheckEvent::Record {
                        key: leaf.key(at),
                        value: leaf.value(at),
                    });
                }
            }
            Node::Inner(inner) => {
                for (at, child) in inner.children().iter().enumerate() {
                    let low = if at == 0 { low } else { inner.key(at) };
                    self.child(child, level - 1, low, inner.key_after(at).or(high), false);
                }
            }
        }
    }

    fn problem(&mut self, lba: Option<Lba>, level: u8, low: &Key, problem: &str) {
        let place = lba.map_or("in memory".into(), |lba| format!("at LBA {lba}"));
        let line = format!("catalog node {place} (level {level}, keys from {low}): {problem}");
        self.report.problems.push(line);
    }
}

fn misplaced(
    node: &Node,
    level: u8,
    low: &Key,
    high: Option<&Key>,
    is_root: bool,
) -> Option<String> {
    if node.level() != level {
        return Some(format!("level {}", node.level()));
    }
    if !node.lies_within(low, high) {
        return Some("keys outside the range its parent gives it".into());
    }
    match node {
        Node::Leaf(leaf) if leaf.len() == 0 && !is_root => Some("no records".into()),
        // Leaves from the device have been validated; those in memory have not.
        Node::Leaf(leaf) => leaf.validate().err(),
        Node::Inner(_) => None,
    }
}
