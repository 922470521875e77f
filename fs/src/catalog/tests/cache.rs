//! The node cache: bounded, exact about what it holds, and never stale.

use std::sync::Arc;

use super::super::node::{Child, Node};
use super::super::{NodeRef, Tree};
use super::{Device, contents, key};
use crate::types::Lba;

fn leaves(device: &Device, count: u64) -> Vec<NodeRef> {
    (0..count)
        .map(|number| {
            let mut tree = Tree::empty();
            tree.put(&Device::new().cache(0), key(number), &[1])
                .unwrap();
            device.write_out(&tree).root()
        })
        .collect()
}

#[test]
fn it_never_holds_more_than_it_may() {
    let device = Device::new();
    let references = leaves(&device, 100);
    let cache = device.cache(10);
    for reference in &references {
        cache.load(*reference, 0).unwrap();
        assert!(cache.stats().bytes <= cache.stats().capacity_bytes);
    }
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses), (0, 100));
    assert!(stats.nodes >= 10);
    assert_eq!(stats.evictions as usize + stats.nodes, 100);
    let none = device.cache(0);
    none.load(references[0], 0).unwrap();
    assert_eq!(none.stats().nodes, 0);
}

#[test]
fn a_node_in_use_outlasts_a_scan() {
    let device = Device::new();
    let references = leaves(&device, 200);
    let cache = device.cache(10);
    for reference in &references[1..] {
        cache.load(references[0], 0).unwrap();
        cache.load(*reference, 0).unwrap();
    }
    assert_eq!(cache.stats().misses, 200, "the hot node was read once");
}

#[test]
fn invalidated_nodes_are_read_again() {
    let device = Device::new();
    let references = leaves(&device, 50);
    let cache = device.cache(100);
    references
        .iter()
        .for_each(|reference| drop(cache.load(*reference, 0).unwrap()));
    cache.invalidate(references[10].lba..references[20].lba);
    assert_eq!(cache.stats().nodes, 40);
    cache.invalidate(references[20].lba..Lba(u64::MAX));
    assert_eq!(cache.stats().nodes, 10);
    references
        .iter()
        .for_each(|reference| drop(cache.load(*reference, 0).unwrap()));
    assert_eq!((cache.stats().hits, cache.stats().misses), (10, 90));
    cache.invalidate(Lba(9)..Lba(3));
    assert_eq!(cache.stats().nodes, 50);
}

#[test]
fn a_reused_address_does_not_yield_the_old_node() {
    let device = Device::new();
    let references = leaves(&device, 2);
    let cache = device.cache(100);
    cache.load(references[0], 0).unwrap();
    let page = device.blocks.lock()[&references[1].lba].clone();
    device.blocks.lock().insert(references[0].lba, page);
    let reused = NodeRef {
        lba: references[0].lba,
        crc: references[1].crc,
    };
    assert_eq!(cache.load(reused, 0).unwrap().leaf().key(0), key(1));
    assert!(cache.load(references[0], 0).is_err());
    assert!(cache.load(reused, 1).is_err(), "level");
}

#[test]
fn what_is_published_pins_nothing_else() {
    let device = Device::new();
    let cache = device.cache(1000);
    let mut tree = Tree::empty();
    (0..5000).for_each(|number| drop(tree.put(&cache, key(number), &[1; 40]).unwrap()));
    let Child::Resident(root) = &tree.root else {
        panic!()
    };
    let Child::Resident(leaf) = root.inner().child(0) else {
        panic!()
    };
    let leaf = Arc::downgrade(leaf);
    let root = Arc::downgrade(root);
    let written = device.checkpoint(&mut tree, &cache);
    assert_eq!(cache.stats().nodes, written.nodes_written());
    drop(written);
    assert_eq!(
        (root.strong_count(), leaf.strong_count()),
        (0, 1),
        "the leaf is in the cache alone"
    );
    let root = cache
        .load(
            match tree.root {
                Child::Clean(root) => root,
                _ => panic!(),
            },
            1,
        )
        .unwrap();
    assert!(
        matches!(&*root, Node::Inner(inner) if inner.children().iter().all(|child| matches!(child, Child::Clean(_))))
    );
    cache.invalidate(Lba(0)..Lba(u64::MAX));
    assert_eq!((leaf.strong_count(), cache.stats().bytes), (0, 0));
    assert_eq!(contents(&tree, &cache).len(), 5000);
}
