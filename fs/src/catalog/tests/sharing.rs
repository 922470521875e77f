//! Clones, checkpoints and readers that overlap with writers.

use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use parking_lot::RwLock;

use super::super::{CheckEvent, Key, MAX_FANOUT, MAX_VALUE, NodeInfo, Tree};
use super::{Device, Model, checked, contents, key};
use crate::Error;
use crate::types::Lba;

#[test]
fn an_empty_tree_has_a_root_to_write_and_to_load() {
    let device = Device::new();
    let cache = device.cache(10);
    let mut tree = Tree::empty();
    assert_eq!(tree.dirty_nodes(), 1);
    let written = device.checkpoint(&mut tree, &cache);
    assert_eq!(
        (
            written.nodes_written(),
            written.height(),
            tree.dirty_nodes()
        ),
        (1, 1, 0)
    );
    let loaded = Tree::from_root(written.root(), 1).unwrap();
    assert!(loaded.get(&cache, &key(1)).unwrap().is_none());
    assert!(loaded.floor(&cache, &Key::MAX).unwrap().is_none());
    assert!(loaded.range(&cache, ..).next().is_none());
    assert!(loaded.range_back(&cache, ..).prev().is_none());
}

#[test]
fn a_tree_that_did_not_change_writes_nothing() {
    let device = Device::new();
    let cache = device.cache(100);
    let mut tree = Tree::empty();
    (0..5000).for_each(|number| drop(tree.put(&cache, key(number), &[1; 40]).unwrap()));
    let root = device.checkpoint(&mut tree, &cache).root();
    assert!(tree.delete(&cache, &key(1 << 30)).unwrap().is_none());
    assert_eq!(
        tree.delete_range(&cache, key(6000)..=key(7000), &mut |_, _| {})
            .unwrap(),
        0
    );
    let again = device.write_out(&tree);
    assert_eq!((again.nodes_written(), again.root()), (0, root));
}

#[test]
fn one_change_rewrites_one_path() {
    let device = Device::new();
    let cache = device.cache(10_000);
    let mut tree = Tree::empty();
    (0..30_000).for_each(|number| drop(tree.put(&cache, key(number), &[1; 40]).unwrap()));
    device.checkpoint(&mut tree, &cache);
    tree.put(&cache, key(777), &[2; 40]).unwrap();
    assert_eq!(tree.take_retired().len(), 3);
    assert_eq!(device.checkpoint(&mut tree, &cache).nodes_written(), 3);
}

#[test]
fn children_are_written_before_their_parents() {
    let device = Device::new();
    let cache = device.cache(10);
    let mut tree = Tree::empty();
    (0..30_000).for_each(|number| drop(tree.put(&cache, key(number), &[1; 40]).unwrap()));
    let mut open = [0_usize; 4];
    tree.write_out(&mut |NodeInfo { level, .. }, page| {
        let level = usize::from(level);
        open[level] += 1;
        if level > 0 {
            assert!((1..=MAX_FANOUT).contains(&open[level - 1]));
            open[level - 1] = 0;
        }
        Ok(device.write(page))
    })
    .unwrap();
    assert_eq!(open, [0, 0, 1, 0]);
}

#[test]
fn nodes_replaced_while_they_were_written_are_superseded() {
    let device = Device::new();
    let cache = device.cache(1000);
    let mut tree = Tree::empty();
    (0..5000).for_each(|number| drop(tree.put(&cache, key(number), &[1; 40]).unwrap()));
    let written = device.write_out(&tree);
    tree.put(&cache, key(40), &[2; 40]).unwrap();
    let report = tree.adopt(&written);
    assert_eq!(
        report.superseded.len(),
        usize::from(tree.height()),
        "the path that was changed"
    );
    assert_eq!(
        report.adopted.len() + report.superseded.len(),
        written.nodes_written()
    );
    assert_eq!(
        tree.take_retired(),
        [],
        "the head never referred to them on the device"
    );
    let (_, nodes) = checked(&tree, &cache);
    assert_eq!(nodes.len(), report.adopted.len());
    assert!(report.adopted.iter().all(|lba| nodes.contains_key(lba)));
}

#[test]
fn an_abandoned_checkpoint_leaves_no_trace() {
    let device = Device::new();
    let cache = device.cache(1000);
    let mut tree = Tree::empty();
    (0..5000).for_each(|number| drop(tree.put(&cache, key(number), &[1; 40]).unwrap()));
    let dirty = tree.dirty_nodes();
    let mut left = 10;
    let failed = tree.clone().write_out(&mut |_, _| {
        left -= 1;
        if left == 0 {
            Err(Error::NoSpace)
        } else {
            Ok(Lba(left))
        }
    });
    assert!(matches!(failed, Err(Error::NoSpace)));
    drop(device.write_out(&tree));
    assert_eq!(
        (tree.dirty_nodes(), checked(&tree, &cache).1.len()),
        (dirty, 0)
    );
    tree.put(&cache, key(3), &[2; 40]).unwrap();
    assert_eq!(tree.take_retired(), []);
    assert_eq!(device.checkpoint(&mut tree, &cache).nodes_written(), dirty);
}

#[test]
fn ascending_keys_fill_their_leaves() {
    let device = Device::new();
    let cache = device.cache(10);
    let fill = |tree: &Tree| {
        let report = checked(tree, &cache).0;
        report.leaf_bytes_used as f64 / (report.leaves * 4096) as f64
    };
    let mut one = Tree::empty();
    (0..20_000).for_each(|number| drop(one.put(&cache, key(number), &[1; 40]).unwrap()));
    assert!(fill(&one) > 0.95, "{}", fill(&one));
    // Four files that grow in turn, with others behind them.
    let mut four = Tree::empty();
    for number in 0..20_000 {
        four.put(
            &cache,
            Key {
                offset: number / 4,
                ..key((number % 4) << 8)
            },
            &[1; 40],
        )
        .unwrap();
    }
    assert!(fill(&four) > 0.85, "{}", fill(&four));
}

#[test]
fn a_value_may_be_as_long_as_promised_and_no_longer() {
    let cache = Device::new().cache(10);
    let mut tree = Tree::empty();
    for number in 0..100 {
        tree.put(&cache, key(number * 37 % 100), &[number as u8; MAX_VALUE])
            .unwrap();
    }
    assert!(matches!(
        tree.put(&cache, key(0), &[0; MAX_VALUE + 1]),
        Err(Error::Invalid(_))
    ));
    assert_eq!(checked(&tree, &cache).0.records, 100);
    assert_eq!(
        tree.get(&cache, &key(0)).unwrap().as_deref(),
        Some(&[0; MAX_VALUE][..])
    );
}

#[test]
fn deleting_everything_leaves_one_empty_leaf() {
    let device = Device::new();
    let cache = device.cache(1000);
    let mut tree = Tree::empty();
    for whole in [false, true] {
        (0..30_000).for_each(|number| drop(tree.put(&cache, key(number), &[1; 40]).unwrap()));
        device.checkpoint(&mut tree, &cache);
        let mut visited = 0;
        tree.check(&cache, &mut |event| {
            visited += usize::from(matches!(event, CheckEvent::Node { .. }))
        });
        if whole {
            assert_eq!(
                tree.delete_range(&cache, Key::MIN..=Key::MAX, &mut |_, _| {})
                    .unwrap(),
                30_000
            );
        } else {
            (0..30_000).for_each(|at| {
                assert!(
                    tree.delete(&cache, &key(at * 7 % 30_000))
                        .unwrap()
                        .is_some()
                )
            });
        }
        assert_eq!((tree.height(), tree.dirty_nodes()), (1, 1));
        assert_eq!(tree.take_retired().len(), visited);
    }
}

#[test]
fn a_range_that_ends_at_the_first_record_of_a_leaf_takes_that_record() {
    let device = Device::new();
    let cache = device.cache(1000);
    let mut tree = Tree::empty();
    (0..2000).for_each(|number| drop(tree.put(&cache, key(number), &[1; 40]).unwrap()));
    device.checkpoint(&mut tree, &cache);
    let (_, nodes) = checked(&tree, &cache);
    for info in nodes
        .values()
        .filter(|info| info.level == 0 && info.first_key != Key::MIN)
    {
        let mut tree = tree.clone();
        let mut last = None;
        let mut note = |key, _: &[u8]| last = Some(key);
        tree.delete_range(&cache, key(0)..=info.first_key, &mut note)
            .unwrap();
        assert_eq!(last, Some(info.first_key));
        assert!(
            tree.range(&cache, ..)
                .all(|record| record.unwrap().0 > info.first_key)
        );
    }
}

#[test]
fn a_cursor_respects_every_kind_of_bound_at_both_ends() {
    let cache = Device::new().cache(0);
    let mut tree = Tree::empty();
    let mut model = Model::new();
    for number in (0..1000).step_by(2) {
        tree.put(&cache, key(number), &[1; 40]).unwrap();
        model.insert(key(number), vec![1; 40]);
    }
    let bounds = |number| {
        [
            Bound::Unbounded,
            Bound::Included(key(number)),
            Bound::Excluded(key(number)),
        ]
    };
    for (from, to) in [(0, 998), (1, 997), (300, 301), (300, 302), (999, 2000)] {
        for range in bounds(from)
            .into_iter()
            .flat_map(|from| bounds(to).map(|to| (from, to)))
        {
            let mut expected: Vec<Key> = model.range(range).map(|(key, _)| *key).collect();
            let forward = tree.range(&cache, range).map(|record| record.unwrap().0);
            assert_eq!(forward.collect::<Vec<_>>(), expected, "{range:?}");
            assert!(tree.range(&cache, range).prev().is_none(), "{range:?}");
            expected.reverse();
            let backward = tree.range_back(&cache, range).backward();
            assert_eq!(
                backward.map(|record| record.unwrap().0).collect::<Vec<_>>(),
                expected
            );
            assert!(tree.range_back(&cache, range).next().is_none(), "{range:?}");
        }
    }
}

#[test]
fn deletion_keeps_the_tree_compact() {
    let cache = Device::new().cache(10);
    let mut tree = Tree::empty();
    (0..40_000).for_each(|number| drop(tree.put(&cache, key(number), &[1; 40]).unwrap()));
    (0..40_000)
        .filter(|at| at % 20 != 0)
        .for_each(|at| drop(tree.delete(&cache, &key(at)).unwrap()));
    let report = checked(&tree, &cache).0;
    assert_eq!(report.records, 2000);
    assert!(
        report.leaf_bytes_used > report.leaves * 4096 / 5,
        "{report:?}"
    );
}

#[test]
fn readers_need_no_lock_while_a_writer_writes_and_checkpoints() {
    let device = Device::new();
    let cache = device.cache(20);
    let head = RwLock::new(Tree::empty());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    // Every state has the records 0 .. n for some n, and stays what it is.
                    let tree = head.read().clone();
                    let model = contents(&tree, &cache);
                    assert!(model.keys().copied().eq((0..model.len() as u64).map(key)));
                    assert_eq!(contents(&tree, &cache), model);
                    for (key, value) in model.iter().step_by(17) {
                        assert_eq!(tree.get(&cache, key).unwrap().as_deref(), Some(&value[..]));
                    }
                }
            });
        }
        for number in 0..6000 {
            head.write()
                .put(&cache, key(number), &number.to_le_bytes())
                .unwrap();
            if number % 200 == 0 {
                let snapshot = head.read().clone();
                let written = snapshot
                    .write_out(&mut |_, page| Ok(device.write(page)))
                    .unwrap();
                written.publish(&cache);
                head.write().adopt(&written);
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    let expected: Model = (0..6000_u64)
        .map(|at| (key(at), at.to_le_bytes().to_vec()))
        .collect();
    assert_eq!(contents(&head.read(), &cache), expected);
}
