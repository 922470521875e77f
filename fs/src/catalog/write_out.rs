//! Writing a tree to the device, in two steps that writers need not stop for.
//!
//! 1. [`Tree::write_out`] takes a clone of the head and writes its resident nodes, children before
//!    parents. Which node got which address is noted beside the tree, not in the nodes: the head
//!    goes on treating them as resident. The [`WriteOut`] owns the clone, so the head copies a node
//!    it wants to change, and a node keeps its identity (its place in memory) meanwhile.
//! 2. When the checkpoint is durable, [`WriteOut::publish`] fills the cache (no lock needed) and
//!    [`Tree::adopt`] makes those nodes clean that the head still refers to, and says which of the
//!    written ones it does not.
//!
//! To abandon a checkpoint at any point, drop the [`WriteOut`]: no tree has noticed it, and the
//! addresses the sink handed out are dead.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use super::cache::{NodeCache, WordHasher};
use super::inner::Inner;
use super::key::Key;
use super::node::{Child, Node, NodeRef, Page};
use super::tree::Tree;
use crate::Result;
use crate::checksum;
use crate::types::Lba;

/// What a written node is. With its address, enough to ask later whether a tree still refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Distance from the leaves.
    pub level: u8,
    /// Lower bound of the keys in it.
    pub first_key: Key,
}

/// A tree that has been written.
pub struct WriteOut {
    /// Keeps every written node alive and shared.
    tree: Tree,
    root: NodeRef,
    /// In the order written; inner nodes as copies that refer to their children by address.
    nodes: Vec<(NodeRef, Arc<Node>)>,
    /// Index in `nodes` by the address in memory of the node that was written.
    index: HashMap<usize, usize, BuildHasherDefault<WordHasher>>,
}

/// Which of the written nodes a tree refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdoptReport {
    /// These are live; the tree will report them as retired when it stops referring to them.
    pub adopted: Vec<Lba>,
    /// These were replaced in the tree since it was cloned; it never refers to them.
    pub superseded: Vec<Lba>,
}

impl Tree {
    /// Writes all resident nodes of this tree (at least the root of a tree that was never written)
    /// through `sink`, which says where the block goes; children before parents.
    ///
    /// # Errors
    /// What `sink` answers; then nothing has happened to any tree.
    pub fn write_out(
        self,
        sink: &mut dyn FnMut(NodeInfo, &Page) -> Result<Lba>,
    ) -> Result<WriteOut> {
        let resident = self.dirty_nodes();
        let mut writer = Writer {
            sink,
            nodes: Vec::with_capacity(resident),
            index: HashMap::with_capacity_and_hasher(resident, BuildHasherDefault::default()),
        };
        let root = writer.write(&self.root, Key::MIN)?;
        let Writer { nodes, index, .. } = writer;
        Ok(WriteOut {
            tree: self,
            root,
            nodes,
            index,
        })
    }

    /// Makes the written nodes that this tree refers to clean. For the head the report is the live
    /// accounting; snapshots that outlive the checkpoint may adopt too, to free memory.
    pub fn adopt(&mut self, written: &WriteOut) -> AdoptReport {
        let mut adopted = vec![false; written.nodes.len()];
        written.adopt_below(&mut self.root, &mut adopted);
        let mut report = AdoptReport::default();
        for ((reference, _), adopted) in written.nodes.iter().zip(adopted) {
            let list = if adopted {
                &mut report.adopted
            } else {
                &mut report.superseded
            };
            list.push(reference.lba);
        }
        self.accounts.resident -= report.adopted.len();
        report
    }
}

impl WriteOut {
    /// Where the root is.
    #[must_use]
    pub fn root(&self) -> NodeRef {
        self.root
    }

    /// Levels of the tree.
    #[must_use]
    pub fn height(&self) -> u8 {
        self.tree.height()
    }

    /// How many nodes were written.
    #[must_use]
    pub fn nodes_written(&self) -> usize {
        self.nodes.len()
    }

    /// The tree that was written.
    #[must_use]
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Gives the written nodes to the cache. Call it when they can be read back, before
    /// [`Tree::adopt`], so that the tree finds them there.
    pub fn publish(&self, cache: &NodeCache) {
        for (reference, node) in &self.nodes {
            cache.insert(*reference, node);
        }
    }

    fn find(&self, node: &Arc<Node>) -> Option<usize> {
        self.index.get(&(Arc::as_ptr(node) as usize)).copied()
    }

    /// Makes clean what can be below `child`. Inner nodes that were not written are newer than the
    /// clone; they are changed in place, or copied if another clone shares them.
    fn adopt_below(&self, child: &mut Child, adopted: &mut [bool]) {
        let Child::Resident(node) = child else { return };
        if let Some(at) = self.find(node) {
            self.mark(node, adopted);
            *child = Child::Clean(self.nodes[at].0);
        } else if node.level() > 0 {
            for child in Arc::make_mut(node).inner_mut().children_mut() {
                self.adopt_below(child, adopted);
            }
        }
    }

    /// Marks a written node and all written nodes below it.
    fn mark(&self, node: &Arc<Node>, adopted: &mut [bool]) {
        if let Some(at) = self.find(node) {
            adopted[at] = true;
        }
        if let Node::Inner(inner) = &**node {
            for child in inner.children() {
                if let Child::Resident(node) = child {
                    self.mark(node, adopted);
                }
            }
        }
    }
}

struct Writer<'a> {
    sink: &'a mut dyn FnMut(NodeInfo, &Page) -> Result<Lba>,
    nodes: Vec<(NodeRef, Arc<Node>)>,
    index: HashMap<usize, usize, BuildHasherDefault<WordHasher>>,
}

impl Writer<'_> {
    /// Writes the resident nodes from `child` down. `low` is the lower bound of its keys.
    fn write(&mut self, child: &Child, low: Key) -> Result<NodeRef> {
        let node = match child {
            Child::Clean(reference) => return Ok(*reference),
            Child::Resident(node) => node,
        };
        let (reference, clean) = match &**node {
            Node::Leaf(leaf) => (self.emit(0, low, leaf.page())?, Arc::clone(node)),
            Node::Inner(inner) => {
                let children = self.write_children(inner, low)?;
                let page = inner.encode(&low, &children);
                let reference = self.emit(inner.level(), low, &page)?;
                (
                    reference,
                    Arc::new(Node::Inner(inner.with_clean_children(low, &children))),
                )
            }
        };
        self.index
            .insert(Arc::as_ptr(node) as usize, self.nodes.len());
        self.nodes.push((reference, clean));
        Ok(reference)
    }

    fn write_children(&mut self, inner: &Inner, low: Key) -> Result<Vec<NodeRef>> {
        let low_of = |at: usize| if at == 0 { low } else { *inner.key(at) };
        let children = inner.children().iter().enumerate();
        children
            .map(|(at, child)| self.write(child, low_of(at)))
            .collect()
    }

    fn emit(&mut self, level: u8, first_key: Key, page: &Page) -> Result<NodeRef> {
        let lba = (self.sink)(NodeInfo { level, first_key }, page)?;
        Ok(NodeRef {
            lba,
            crc: checksum::crc32c(page),
        })
    }
}
