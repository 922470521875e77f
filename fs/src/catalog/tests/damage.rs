//! Damaged and forged nodes: an error, never a panic, an endless loop or a wrong record.

use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::node::{Child, Node};
use super::super::{Key, NodeCache, NodeRef, Page, Tree};
use super::{Device, checked, key};
use crate::Error;
use crate::checksum;
use crate::types::{BLOCK_SIZE, Lba};

/// A tree of three levels, on the device.
fn built(device: &Arc<Device>) -> (NodeRef, u8) {
    let cache = device.cache(1000);
    let mut tree = Tree::empty();
    for number in 0..12_000 {
        let value = vec![number as u8; number as usize % 300];
        tree.put(&cache, key(number * 7), &value).unwrap();
    }
    let written = device.checkpoint(&mut tree, &cache);
    assert_eq!(written.height(), 3);
    (written.root(), written.height())
}

fn is_corrupt<T>(result: crate::Result<T>) -> bool {
    matches!(result, Err(Error::Corrupt { .. }))
}

/// Everything a tree can be asked to do; results do not matter, returning does.
fn exercise(tree: &Tree, cache: &NodeCache, rng: &mut ChaCha8Rng) {
    let mut tree = tree.clone();
    tree.check(cache, &mut |_| {});
    tree.range(cache, ..).flatten().for_each(drop);
    tree.range_back(cache, ..)
        .backward()
        .flatten()
        .for_each(drop);
    for _ in 0..50 {
        let at = key(rng.random_range(0..90_000));
        let _ = tree.get(cache, &at);
        let _ = tree.floor(cache, &at);
        let _ = tree.put(cache, at, &[3; 100]);
        let _ = tree.delete(cache, &key(rng.random_range(0..90_000)));
        let _ = tree.touch(cache, rng.random_range(0..4), &at, Lba(1003));
    }
    let mut last = None;
    let _ = tree.delete_range(cache, key(20_000)..=key(60_000), &mut |key, _| {
        last = Some(key);
    });
    let _ = tree.write_out(&mut |_, _| Ok(Lba(1)));
}

#[test]
fn a_block_that_rotted_is_reported_and_nothing_below_it_is_believed() {
    let device = Device::new();
    let (root, height) = built(&device);
    let total = checked(&Tree::from_root(root, height).unwrap(), &device.cache(10)).0;
    let lbas: Vec<Lba> = device.blocks.lock().keys().copied().collect();
    for (at, lba) in lbas.into_iter().enumerate().step_by(9) {
        let flip = |at: usize| device.blocks.lock().get_mut(&lba).unwrap()[at % BLOCK_SIZE] ^= 0x10;
        flip(at * 131);
        let (tree, cache) = (Tree::from_root(root, height).unwrap(), device.cache(10));
        let report = tree.check(&cache, &mut |_| {});
        assert_eq!(report.problems.len(), 1);
        assert!(
            report.problems[0].contains(&lba.to_string()),
            "{}",
            report.problems[0]
        );
        assert!(report.records < total.records);
        assert!(tree.range(&cache, ..).any(is_corrupt));
        assert!(tree.range_back(&cache, ..).backward().any(is_corrupt));
        flip(at * 131);
    }
}

#[test]
fn an_unreadable_neighbour_does_not_stop_a_deletion() {
    let device = Device::new();
    let cache = device.cache(1000);
    let mut tree = Tree::empty();
    (0..400).for_each(|number| drop(tree.put(&cache, key(number), &[1; 100]).unwrap()));
    device.checkpoint(&mut tree, &cache);
    let (_, nodes) = checked(&tree, &cache);
    let mut leaves: Vec<(Key, Lba)> = nodes
        .iter()
        .filter(|(_, info)| info.level == 0)
        .map(|(lba, info)| (info.first_key, *lba))
        .collect();
    leaves.sort();
    for spoilt in [leaves[1].1, leaves[3].1] {
        device.blocks.lock().get_mut(&spoilt).unwrap()[77] ^= 1;
        cache.invalidate(spoilt..spoilt.plus(1));
    }
    let mut at = leaves[2].0;
    while at < leaves[3].0 {
        assert!(tree.delete(&cache, &at).unwrap().is_some(), "{at}");
        at.offset += 1;
    }
    assert!(is_corrupt(tree.delete(&cache, &leaves[3].0)));
}

/// Writes a resident tree with some pages changed and every checksum right.
fn forge(child: &Child, low: Key, device: &Device, change: &mut dyn FnMut(&mut Page)) -> NodeRef {
    let Child::Resident(node) = child else {
        panic!("the tree is resident")
    };
    let mut page = match &**node {
        Node::Leaf(leaf) => Box::new(*leaf.page()),
        Node::Inner(inner) => {
            let low_of = |at: usize| if at == 0 { low } else { *inner.key(at) };
            let children = inner.children().iter().enumerate();
            let children: Vec<NodeRef> = children
                .map(|(at, child)| forge(child, low_of(at), device, change))
                .collect();
            inner.encode(&low, &children)
        }
    };
    change(&mut page);
    NodeRef {
        lba: device.write(&page),
        crc: checksum::crc32c(&page[..]),
    }
}

#[test]
fn forged_nodes_with_right_checksums_do_no_harm() {
    for seed in 0..60 {
        println!("seed {seed}");
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let device = Device::new();
        let cache = device.cache(1000);
        let mut tree = Tree::empty();
        (0..9000).for_each(|number| drop(tree.put(&cache, key(number * 9), &[1; 60]).unwrap()));
        let one_in = [3, 40, 150][rng.random_range(0..3)];
        let mut kept: Option<Page> = None;
        let root = forge(&tree.root, Key::MIN, &device, &mut |page| {
            if !rng.random_ratio(1, one_in) {
                return;
            }
            match rng.random_range(0..5) {
                // A field of the header.
                0 => page[rng.random_range(4..16)] = rng.random(),
                // A slot or an entry.
                1 => page[rng.random_range(16..1000)] ^= 1 << rng.random_range(0..8),
                // Keys that stay in order, in the wrong place.
                2 => page[16] = page[16].wrapping_add(rng.random_range(1..4)),
                // The same node in several places.
                3 => *page = *kept.get_or_insert(*page),
                _ => rng.fill(&mut page[6..]),
            }
        });
        let forged = Tree::from_root(root, tree.height()).unwrap();
        exercise(&forged, &device.cache(1000), &mut rng);
    }
}

#[test]
fn decoding_arbitrary_pages_never_panics_and_what_decodes_can_be_used() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let device = Device::new();
    built(&device);
    let pages: Vec<Page> = device.blocks.lock().values().map(|page| **page).collect();
    let (mut good, mut bad) = (0, 0);
    for round in 0..20_000 {
        let mut page = Box::new(pages[round % pages.len()]);
        for _ in 0..rng.random_range(1..4) {
            let end = if rng.random_bool(0.5) { 64 } else { BLOCK_SIZE };
            page[rng.random_range(0..end)] ^= 1 << rng.random_range(0..8);
        }
        match Node::decode(page) {
            Ok(Node::Leaf(mut leaf)) => {
                good += 1;
                (0..leaf.len()).for_each(|at| assert!(leaf.value(at).len() <= 960));
                let at = leaf.search(&key(500));
                if !leaf.put(at, &key(500), &[1; 700]) {
                    leaf.split_insert(at.unwrap_or_else(|at| at), &key(500), &[1; 700]);
                }
                leaf.validate().unwrap();
            }
            Ok(Node::Inner(inner)) => {
                good += 1;
                assert!(inner.search(&key(500)) < inner.len());
            }
            Err(_) => bad += 1,
        }
    }
    assert!(good > 1000 && bad > 1000, "{good} good, {bad} bad");
}

#[test]
fn a_root_of_impossible_height_is_refused() {
    let root = NodeRef {
        lba: Lba(5),
        crc: 0,
    };
    assert!(is_corrupt(Tree::from_root(root, 0)));
    assert!(is_corrupt(Tree::from_root(root, 13)));
    assert!(Tree::from_root(root, 12).is_ok());
}
