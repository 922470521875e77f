//! Tests of the catalog as a whole, and what they share: a device in memory that can fail, and a
//! bookkeeper that knows which addresses the head must refer to.

mod cache;
mod damage;
mod model;
mod nodes;
mod sharing;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::{
    CheckEvent, CheckReport, Key, Kind, NodeCache, NodeInfo, NodeSource, Page, Tree, WriteOut,
};
use crate::types::{BLOCK_SIZE, Ino, Lba};
use crate::{Error, Result};

type Model = BTreeMap<Key, Vec<u8>>;

/// Blocks in memory. Fails every read while `broken` is set.
#[derive(Default)]
struct Device {
    blocks: Mutex<HashMap<Lba, Box<Page>>>,
    broken: AtomicBool,
}

impl NodeSource for Device {
    fn read_block(&self, lba: Lba, page: &mut Page) -> Result<()> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(Error::Invalid("injected"));
        }
        let blocks = self.blocks.lock();
        let block = blocks
            .get(&lba)
            .ok_or(Error::Device(zns_backend::Error::OutOfRange(lba)))?;
        page.copy_from_slice(&block[..]);
        Ok(())
    }
}

impl Device {
    fn new() -> Arc<Device> {
        Arc::default()
    }

    fn write(&self, page: &Page) -> Lba {
        let mut blocks = self.blocks.lock();
        let lba = Lba(1000 + blocks.len() as u64);
        blocks.insert(lba, Box::new(*page));
        lba
    }

    fn cache(self: &Arc<Device>, nodes: usize) -> NodeCache {
        NodeCache::new(Arc::clone(self), nodes * (BLOCK_SIZE + 4096))
    }

    /// Writes a clone of `tree` out.
    fn write_out(&self, tree: &Tree) -> WriteOut {
        tree.clone()
            .write_out(&mut |_, page| Ok(self.write(page)))
            .unwrap()
    }

    /// A whole checkpoint: written, published, adopted.
    fn checkpoint(&self, tree: &mut Tree, cache: &NodeCache) -> WriteOut {
        let written = self.write_out(tree);
        written.publish(cache);
        tree.adopt(&written);
        written
    }
}

fn key(number: u64) -> Key {
    Key::new(Ino(number >> 8), Kind::Extent, number & 0xff)
}

fn contents(tree: &Tree, cache: &NodeCache) -> Model {
    let records = tree.range(cache, ..);
    records
        .map(|record| record.map(|(key, value)| (key, value.to_vec())).unwrap())
        .collect()
}

/// Checks the form of a tree; returns the report and the nodes on the device.
fn checked(tree: &Tree, cache: &NodeCache) -> (CheckReport, HashMap<Lba, NodeInfo>) {
    let mut nodes = HashMap::new();
    let mut resident = 0;
    let report = tree.check(cache, &mut |event| {
        if let CheckEvent::Node {
            level,
            first_key,
            reference,
        } = event
        {
            match reference {
                Some(reference) => {
                    let twice = nodes.insert(reference.lba, NodeInfo { level, first_key });
                    assert!(
                        twice.is_none(),
                        "LBA {} is referred to twice",
                        reference.lba
                    );
                }
                None => resident += 1,
            }
        }
    });
    assert_eq!(report.problems, Vec::<String>::new());
    assert_eq!(tree.dirty_nodes(), resident, "count of resident nodes");
    (report, nodes)
}

/// The addresses the head must refer to: adopted and not retired.
#[derive(Default)]
struct Books {
    live: HashSet<Lba>,
}

impl Books {
    fn retire(&mut self, head: &mut Tree) {
        for lba in head.take_retired() {
            assert!(
                self.live.remove(&lba),
                "LBA {lba} retired twice or never adopted"
            );
        }
    }

    fn adopt(&mut self, head: &mut Tree, written: &WriteOut, all: &HashSet<Lba>) {
        self.retire(head);
        let report = head.adopt(written);
        let count = report.adopted.len() + report.superseded.len();
        let named: HashSet<Lba> = report
            .adopted
            .iter()
            .chain(&report.superseded)
            .copied()
            .collect();
        assert_eq!(
            (&named, count),
            (all, all.len()),
            "every written node is reported once"
        );
        for lba in report.adopted {
            assert!(self.live.insert(lba), "LBA {lba} adopted twice");
        }
    }

    fn check(&mut self, head: &mut Tree, cache: &NodeCache) {
        self.retire(head);
        let (_, nodes) = checked(head, cache);
        assert_eq!(nodes.keys().copied().collect::<HashSet<_>>(), self.live);
    }
}
