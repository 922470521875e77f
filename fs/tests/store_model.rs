//! Random transactions on the store and on a model; checkpoints, collections and reopening between.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use warren_fs::catalog::{Key, Kind};
use warren_fs::store::{FormatOptions, Records, Store, StoreOptions, View};
use warren_fs::types::{BLOCK_SIZE, Ino};
use zns_backend::{Geometry, MemDevice, ZonedDevice};

const FILES: u64 = 6;
const FILE_BLOCKS: u64 = 400;

fn device() -> Arc<dyn ZonedDevice> {
    let geometry = Geometry {
        block_size: 4096,
        zones: 24,
        zone_size: 512,
        zone_capacity: 400,
        max_open: 8,
        max_active: 10,
        max_append: 0,
    };
    Arc::new(MemDevice::new(geometry).unwrap())
}

fn options() -> StoreOptions {
    StoreOptions {
        background: false,
        cache_bytes: 1 << 20,
        ..StoreOptions::default()
    }
}

#[derive(Clone, Default)]
struct Model {
    records: BTreeMap<Key, Vec<u8>>,
    blocks: BTreeMap<(u64, u64), u64>,
}

fn block(tag: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_SIZE];
    for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(tag.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ i as u64).to_le_bytes());
    }
    bytes
}

fn compare(view: &View<'_>, model: &Model) {
    let mut found = BTreeMap::new();
    for kind in [Kind::Inode, Kind::Entry, Kind::Xattr] {
        for ino in 0..20 {
            let (from, to) = (
                Key::new(Ino(ino), kind, 0),
                Key::new(Ino(ino), kind, u64::MAX),
            );
            view.scan(&from, &to, &mut |key, value| {
                found.insert(key, value.to_vec());
                ControlFlow::Continue(())
            })
            .unwrap();
        }
    }
    assert_eq!(found, model.records);
    for ino in 0..FILES {
        let mut data = vec![1; FILE_BLOCKS as usize * BLOCK_SIZE];
        view.read_blocks(Ino(100 + ino), 0, &mut data).unwrap();
        for (at, got) in data.chunks_exact(BLOCK_SIZE).enumerate() {
            let tag = model.blocks.get(&(ino, at as u64));
            let want = tag.map_or(vec![0; BLOCK_SIZE], |t| block(*t));
            assert!(got == want, "file {ino} block {at}");
        }
    }
}

fn transaction(rng: &mut ChaCha8Rng, store: &Store, model: &mut Model, tag: &mut u64) {
    let mut txn = store.begin().unwrap();
    let mut next = model.clone();
    for _ in 0..rng.random_range(1..6) {
        let kind = [Kind::Inode, Kind::Entry, Kind::Xattr][rng.random_range(0..3)];
        let key = Key::new(Ino(rng.random_range(0..20)), kind, rng.random_range(0..40));
        let ino = rng.random_range(0..FILES);
        let first = rng.random_range(0..FILE_BLOCKS - 1);
        let count = rng.random_range(1..=40.min(FILE_BLOCKS - first));
        match rng.random_range(0..10) {
            0..4 => {
                let value = vec![rng.random(); rng.random_range(0..900)];
                txn.put(key, &value).unwrap();
                next.records.insert(key, value);
            }
            4 => {
                txn.delete(&key).unwrap();
                next.records.remove(&key);
            }
            5 => {
                let to = Key::new(key.ino, key.kind, key.offset + 10);
                txn.delete_range(&key, &to).unwrap();
                next.records.retain(|k, _| *k < key || *k > to);
            }
            6 | 7 => {
                let mut data = Vec::new();
                for i in 0..count {
                    *tag += 1;
                    data.extend(block(*tag));
                    next.blocks.insert((ino, first + i), *tag);
                }
                txn.write_blocks(Ino(100 + ino), first, &data).unwrap();
                let mut back = vec![0; data.len()];
                txn.read_blocks(Ino(100 + ino), first, &mut back).unwrap();
                assert!(back == data, "a transaction reads its own writes");
            }
            8 => {
                txn.unmap_blocks(Ino(100 + ino), first, count).unwrap();
                next.blocks
                    .retain(|(f, b), _| *f != ino || *b < first || *b >= first + count);
            }
            _ => {
                txn.reserve_blocks(Ino(100 + ino), first, count).unwrap();
            }
        }
    }
    if rng.random_range(0..5) == 0 {
        drop(txn);
    } else {
        txn.commit().unwrap();
        *model = next;
    }
}

fn run(seed: u64, steps: usize, options: &StoreOptions) {
    println!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let device = device();
    Store::format(&device, &FormatOptions::default()).unwrap();
    let mut store = Store::open(Arc::clone(&device), options).unwrap();
    let mut model = Model::default();
    let mut tag = 0;
    for step in 0..steps {
        transaction(&mut rng, &store, &mut model, &mut tag);
        match rng.random_range(0..60) {
            0 => store.checkpoint().unwrap(),
            1 => {
                store.collect(rng.random_range(1..4)).unwrap();
            }
            2 => store.sync(store.position()).unwrap(),
            3 => {
                store.close().unwrap();
                drop(store);
                store = Store::open(Arc::clone(&device), options).unwrap();
            }
            4 => {
                // The process dies right after a sync.
                store.sync(store.position()).unwrap();
                drop(store);
                store = Store::open(Arc::clone(&device), options).unwrap();
                let report = store.check(&mut |_, _| {}, &|_, _| {}).unwrap();
                assert_eq!(report.errors, Vec::<String>::new());
            }
            5 => {
                let view = store.view();
                let before = model.clone();
                // On another thread: one that has a view begins no transaction.
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        for _ in 0..10 {
                            transaction(&mut rng, &store, &mut model, &mut tag);
                        }
                        store.checkpoint().unwrap();
                        store.collect(2).unwrap();
                    });
                });
                compare(&view, &before);
            }
            _ => {}
        }
        if step % 50 == 0 {
            compare(&store.view(), &model);
        }
    }
    compare(&store.view(), &model);
    store.close().unwrap();
    drop(store);
    let store = Store::open(device, options).unwrap();
    compare(&store.view(), &model);
    let report = store.check(&mut |_, _| {}, &|_, _| {}).unwrap();
    assert_eq!(report.errors, Vec::<String>::new());
}

#[test]
fn random_transactions_agree_with_the_model() {
    let base: u64 = std::env::var("WARREN_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(1);
    for seed in base..base + 6 {
        run(seed, 600, &options());
    }
}

#[test]
fn random_transactions_with_background_threads_agree_with_the_model() {
    run(
        77,
        600,
        &StoreOptions {
            background: true,
            ..options()
        },
    );
}
