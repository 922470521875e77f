//! The tree against a model, with pools so small that almost every step evicts something.

use super::*;
use crate::pool::{FRAMES_MIN, InPlace, PoolOptions};
use crate::space::Allocator;
use crate::storage::MemoryStorage;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, HashSet};
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn space(frames_max: usize) -> Space {
    let store = Arc::new(InPlace::new(MemoryStorage::default()));
    let options = PoolOptions {
        frames_max,
        pages_max: 1 << 20,
        check: check_page,
    };
    let pool = BufferPool::new(store, options).unwrap();
    Space::new(pool, Allocator::new(1 << 20), 1)
}

/// Keys of very different lengths, many with long common prefixes.
fn random_key(rng: &mut StdRng, range: u32) -> Vec<u8> {
    let number = rng.random_range(0..range);
    let mut key = match number % 5 {
        0 => Vec::new(),
        1 => b"a".repeat(1000),
        2 => b"warren/warren/".to_vec(),
        3 => vec![number as u8; (number % 300) as usize],
        _ => vec![0, 0],
    };
    key.extend_from_slice(&number.to_be_bytes());
    key
}

fn random_value(rng: &mut StdRng) -> Vec<u8> {
    let len = match rng.random_range(0..20) {
        0 => rng.random_range(0..30_000),
        1..=3 => rng.random_range(0..1200),
        _ => rng.random_range(0..60),
    };
    let byte: u8 = rng.random();
    (0..len).map(|at: usize| byte ^ (at / 11) as u8).collect()
}

fn check(space: &Space, tree: BTree, model: &Model) -> TreeStats {
    let mut seen = HashSet::new();
    let stats = tree.check(space, &mut seen).unwrap();
    assert_eq!(stats.entries, model.len() as u64);
    assert_eq!(
        seen.len() as u64 + 2,
        space.pages.used_count(),
        "every page is in the tree or free"
    );
    stats
}

fn all(space: &Space, tree: BTree, span: Span, backward: bool) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut cursor = Cursor::new(tree, span);
    let step = |cursor: &mut Cursor| {
        if backward {
            cursor.next_back(space)
        } else {
            cursor.next(space)
        }
    };
    std::iter::from_fn(|| step(&mut cursor).unwrap()).collect()
}

/// The first `count` entries, one at least, as a visitor sees them.
fn visited(space: &Space, tree: BTree, span: Span, count: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut seen = Vec::new();
    let visit = |key: &[u8], value: &[u8]| {
        seen.push((key.to_vec(), value.to_vec()));
        match seen.len() < count {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    };
    Cursor::new(tree, span).for_each(space, visit).unwrap();
    seen
}

fn compare_scans(space: &Space, tree: BTree, model: &Model, rng: &mut StdRng, range: u32) {
    let (a, b) = (random_key(rng, range), random_key(rng, range));
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    let spans = [
        (Bound::Unbounded, Bound::Unbounded),
        (Bound::Included(low.clone()), Bound::Excluded(high.clone())),
        (Bound::Excluded(low.clone()), Bound::Included(high)),
        (Bound::Unbounded, Bound::Included(low)),
    ];
    for (lower, upper) in spans {
        if matches!((&lower, &upper), (Bound::Excluded(a), Bound::Included(b)) if a == b) {
            continue;
        }
        let span = Span {
            lower: lower.clone(),
            upper: upper.clone(),
        };
        let expected: Vec<_> = model
            .range((lower, upper))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        assert_eq!(all(space, tree, span.clone(), false), expected);
        assert_eq!(visited(space, tree, span.clone(), usize::MAX), expected);
        for count in [0, 1, rng.random_range(0..range) as usize] {
            let mut seen = Vec::new();
            let cursor = Cursor::new(tree, span.clone()).up_to(count);
            let visit = |key: &[u8], value: &[u8]| {
                seen.push((key.to_vec(), value.to_vec()));
                ControlFlow::Continue(())
            };
            cursor.for_each(space, visit).unwrap();
            assert_eq!(seen, expected[..count.min(expected.len())]);
        }
        let some = expected.len().div_ceil(3);
        assert_eq!(visited(space, tree, span.clone(), some), expected[..some]);
        let mut backward = all(space, tree, span, true);
        backward.reverse();
        assert_eq!(backward, expected);
    }
}

#[test]
fn random_operations_match_a_sorted_map_in_pools_of_any_size() {
    for (seed, frames, range) in [
        (1, FRAMES_MIN, 300),
        (2, 40, 3000),
        (3, 400, 20_000),
        (4, FRAMES_MIN, 40),
    ] {
        println!("seed {seed}, {frames} frames, keys of {range}");
        let mut rng = StdRng::seed_from_u64(seed);
        let space = space(frames);
        let tree = BTree::create(&space).unwrap();
        let mut model = Model::new();
        for step in 0..6000 {
            let key = random_key(&mut rng, range);
            // Phases of growth and of shrinkage.
            let grows = if step / 1500 % 2 == 0 { 7 } else { 2 };
            match rng.random_range(0..10) {
                0 => {
                    let mut value = b"kept".to_vec();
                    let found = tree.get(&space, &key, &mut value).unwrap();
                    assert_eq!(
                        found.then(|| value[4..].to_vec()),
                        model.get(&key).cloned(),
                        "step {step}"
                    );
                    assert!(value.starts_with(b"kept"));
                }
                choice if choice <= grows => {
                    let value = random_value(&mut rng);
                    let replaced = tree.insert(&space, &key, &value).unwrap();
                    assert_eq!(replaced, model.insert(key, value).is_some(), "step {step}");
                }
                _ => {
                    let removed = tree.remove(&space, &key).unwrap();
                    assert_eq!(removed, model.remove(&key).is_some(), "step {step}");
                }
            }
            if step % 997 == 0 {
                check(&space, tree, &model);
                compare_scans(&space, tree, &model, &mut rng, range);
            }
            assert!(space.pool.stats().frames <= frames);
        }
        compare_scans(&space, tree, &model, &mut rng, range);
        for key in std::mem::take(&mut model).into_keys() {
            assert!(tree.remove(&space, &key).unwrap());
        }
        let stats = check(&space, tree, &model);
        assert_eq!(
            (stats.height, space.pages.used_count()),
            (1, 3),
            "an emptied tree is one page"
        );
    }
}

#[test]
fn keys_and_values_of_the_greatest_lengths_fit_in_any_order() {
    for seed in 0..6 {
        let mut rng = StdRng::seed_from_u64(seed);
        let space = space(64);
        let tree = BTree::create(&space).unwrap();
        let mut model = Model::new();
        for _ in 0..600 {
            // Separators get as long as the keys: these differ in their last bytes only, in groups.
            let mut key = vec![rng.random_range(0..6); KEY_BYTES_MAX];
            key[KEY_BYTES_MAX - 2..].copy_from_slice(&rng.random_range(0..200_u16).to_be_bytes());
            key.truncate(rng.random_range(KEY_BYTES_MAX - 1..=KEY_BYTES_MAX));
            let value = vec![7; rng.random_range(0..=INLINE_BYTES_MAX + 1)];
            tree.insert(&space, &key, &value).unwrap();
            model.insert(key, value);
        }
        check(&space, tree, &model);
        compare_scans(&space, tree, &model, &mut rng, 10);
    }
    let space = space(64);
    let tree = BTree::create(&space).unwrap();
    assert!(matches!(
        tree.insert(&space, &[0; KEY_BYTES_MAX + 1], b""),
        Err(Error::KeyTooLong(1025))
    ));
}

#[test]
fn ascending_insertion_fills_pages_and_separators_are_short() {
    let long_prefix = b"a common beginning of some length/".as_slice();
    for prefix in [b"".as_slice(), long_prefix, &[7; 200]] {
        let space = space(200);
        let tree = BTree::create(&space).unwrap();
        let mut model = Model::new();
        for number in 0..20_000_u32 {
            let key = [prefix, &number.to_be_bytes(), b"/and an end"].concat();
            tree.insert(&space, &key, b"value").unwrap();
            model.insert(key, b"value".to_vec());
        }
        let stats = check(&space, tree, &model);
        let bytes = stats.leaf_pages * PAGE_BYTES as u64;
        assert!(stats.leaf_bytes as f64 > 0.9 * bytes as f64, "{stats:?}");
        assert!(stats.inner_pages * 40 < stats.leaf_pages, "{stats:?}");
    }
}

#[test]
fn bulk_load_builds_the_tree_that_the_entries_describe() {
    for (seed, count) in [(1, 0), (2, 1), (3, 50), (4, 3000), (5, 20_000)] {
        let mut rng = StdRng::seed_from_u64(seed);
        let space = space(32);
        let tree = BTree::create(&space).unwrap();
        let mut model = Model::new();
        for _ in 0..count {
            model.insert(random_key(&mut rng, 1 << 20), random_value(&mut rng));
        }
        std::thread::scope(|scope| {
            let mut load = BulkLoad::new(tree, &space, scope).unwrap();
            model
                .iter()
                .try_for_each(|(key, value)| load.push(key, value))
                .unwrap();
            load.finish().unwrap();
        });
        check(&space, tree, &model);
        compare_scans(&space, tree, &model, &mut rng, 1 << 20);
    }
}

#[test]
fn a_bulk_load_that_fails_leaves_the_tree_empty_and_no_page_behind() {
    let space = space(32);
    let tree = BTree::create(&space).unwrap();
    for value_bytes in [100, 2000] {
        std::thread::scope(|scope| {
            let mut load = BulkLoad::new(tree, &space, scope).unwrap();
            for number in 0..20_000_u32 {
                load.push(&number.to_be_bytes(), &[1; 2000][..value_bytes])
                    .unwrap();
            }
            assert!(matches!(load.push(b"", b""), Err(Error::BulkLoad(_))));
        });
        check(&space, tree, &Model::new());
    }
}

#[test]
fn a_bulk_load_puts_as_many_entries_into_a_leaf_as_fit() {
    let mut rng = StdRng::seed_from_u64(6);
    let space = space(200);
    let tree = BTree::create(&space).unwrap();
    let entries: Model = (0..20_000)
        .map(|_| (rng.random::<[u8; 16]>().to_vec(), vec![7; 100]))
        .collect();
    std::thread::scope(|scope| {
        let mut load = BulkLoad::new(tree, &space, scope).unwrap();
        for (key, value) in &entries {
            load.push(key, value).unwrap();
        }
        load.finish().unwrap();
    });
    check(&space, tree, &entries);
    let mut entries = entries.iter().peekable();
    while let Some((first, _)) = entries.peek() {
        let leaf = tree.descend(&space, &descend::To::Covering(first)).unwrap();
        let mut leaf = NodeBuf::from_image(descend::copy(leaf.node).unwrap());
        let count = leaf.node().count();
        (0..count).for_each(|_| _ = entries.next());
        if let Some((next, value)) = entries.peek() {
            assert!(leaf.node().upper().unwrap() <= **next);
            assert!(
                !leaf.insert(count, next, edit::Stored::inline(value)),
                "{count}"
            );
        }
    }
}

#[test]
fn threads_on_their_own_keys_never_disturb_each_other() {
    for (seed, frames) in [(1, 24), (2, 60), (3, 1000)] {
        println!("seed {seed}, {frames} frames");
        let space = space(frames);
        let tree = BTree::create(&space).unwrap();
        let models: Vec<Model> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4_u8)
                .map(|worker| {
                    let space = &space;
                    scope.spawn(move || work(space, tree, worker, seed))
                })
                .collect();
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap())
                .collect()
        });
        let model: Model = models.into_iter().flatten().collect();
        check(&space, tree, &model);
        let span = Span {
            lower: Bound::Unbounded,
            upper: Bound::Unbounded,
        };
        assert!(all(&space, tree, span, false).into_iter().eq(model));
    }
}

#[test]
fn leaves_can_be_split_anywhere_and_the_tree_stays_sound() {
    let mut rng = StdRng::seed_from_u64(5);
    let space = space(64);
    let tree = BTree::create(&space).unwrap();
    let mut model = Model::new();
    for _ in 0..2000 {
        let (key, value) = (random_key(&mut rng, 4000), random_value(&mut rng));
        tree.insert(&space, &key, &value).unwrap();
        model.insert(key.clone(), value);
        let leaf = tree
            .descend(&space, &descend::To::Covering(&key))
            .unwrap()
            .node
            .page();
        let cut = insert::Cut::Before(rng.random_range(0..10));
        assert!(matches!(
            tree.split(&space, leaf, &key, cut),
            Ok(()) | Err(Stop::Busy(_) | Stop::Again)
        ));
    }
    check(&space, tree, &model);
    compare_scans(&space, tree, &model, &mut rng, 4000);
}

/// Changes keys that end in the worker's number, interleaved with everybody else's, checking each step.
fn work(space: &Space, tree: BTree, worker: u8, seed: u64) -> Model {
    let mut rng = StdRng::seed_from_u64(seed << 8 | u64::from(worker));
    let mut model = Model::new();
    for step in 0..3000 {
        let mut key = random_key(&mut rng, 500);
        key.push(worker);
        match rng.random_range(0..10) {
            0..=3 => {
                let value = random_value(&mut rng);
                assert_eq!(
                    tree.insert(space, &key, &value).unwrap(),
                    model.insert(key, value).is_some()
                );
            }
            4..=6 => assert_eq!(
                tree.remove(space, &key).unwrap(),
                model.remove(&key).is_some()
            ),
            7..=8 => {
                let mut value = Vec::new();
                let found = tree.get(space, &key, &mut value).unwrap();
                assert_eq!(found.then_some(value), model.get(&key).cloned());
            }
            _ if step % 8 == 0 => {
                let own = |(key, _): &(Vec<u8>, Vec<u8>)| key.last() == Some(&worker);
                let span = Span {
                    lower: Bound::Excluded(key.clone()),
                    upper: Bound::Unbounded,
                };
                let mut scanned = all(space, tree, span, step % 16 == 0);
                if step % 16 == 0 {
                    scanned.reverse();
                }
                assert!(scanned.is_sorted_by(|a, b| a.0 < b.0));
                let expected = model.range((Bound::Excluded(key), Bound::Unbounded));
                assert!(
                    scanned
                        .into_iter()
                        .filter(own)
                        .eq(expected.map(|(k, v)| (k.clone(), v.clone())))
                );
            }
            _ => {}
        }
    }
    model
}
