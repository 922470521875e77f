//! Versions that are kept, and blocks that are staged, while the device fills up: what they refer to cannot be
//! collected, nor what lies beside it, so space runs out long before the filesystem is full. Writers are refused then and nobody else: what is acknowledged stays,
//! the filesystem can be mounted again at any moment, and goes on when the versions are let go.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use warren_fs::catalog::{Key, Kind};
use warren_fs::store::extent::{Backing, for_each_extent};
use warren_fs::store::staged::Stage;
use warren_fs::store::{FormatOptions, PinnedView, Records, Store, StoreOptions};
use warren_fs::types::{BLOCK_SIZE, Ino};
use warren_fs::{Error, Result};
use zns_backend::{Geometry, MemDevice, ZonedDevice};

const FILES: u64 = 12;

/// Which write is the newest of each block of each file, 0 for a hole, and of each attribute.
#[derive(Clone)]
struct Model {
    blocks: Vec<Vec<u64>>,
    attributes: Vec<u64>,
}

fn device(zones: u32, capacity: u64) -> Arc<dyn ZonedDevice> {
    let geometry = Geometry {
        block_size: 4096,
        zones,
        zone_size: 512,
        zone_capacity: capacity,
        max_open: 8,
        max_active: 10,
        max_append: 0,
    };
    Arc::new(MemDevice::new(geometry).unwrap())
}

fn opened(device: &Arc<dyn ZonedDevice>) -> Arc<Store> {
    let options = StoreOptions {
        background: false,
        cache_bytes: 1 << 20,
        ..StoreOptions::default()
    };
    Store::open(Arc::clone(device), &options).unwrap()
}

fn block(tag: u64) -> Vec<u8> {
    (0..BLOCK_SIZE as u64 / 8)
        .flat_map(|i| ((tag << 32) ^ (i * u64::from(tag > 0))).to_le_bytes())
        .collect()
}

fn overwrite(store: &Store, file: u64, first: u64, count: u64, tag: u64) -> Result<()> {
    let mut txn = store.begin()?;
    txn.write_blocks(Ino(100 + file), first, &block(tag).repeat(count as usize))?;
    txn.commit().map(drop)
}

fn punch(store: &Store, file: u64, first: u64, count: u64) -> Result<()> {
    let mut txn = store.begin()?;
    txn.unmap_blocks(Ino(100 + file), first, count)?;
    txn.commit().map(drop)
}

fn attribute(at: u64) -> Key {
    // Far apart, so that many nodes change.
    Key::new(Ino(1_000 + at * 37 % 600), Kind::Xattr, 0)
}

fn set(store: &Store, from: u64, count: u64, tag: u64) -> Result<()> {
    let mut txn = store.begin()?;
    txn.claim_space(4)?;
    for at in from..from + count {
        txn.put(attribute(at), &[tag as u8; 800])?;
    }
    txn.commit().map(drop)
}

fn compare(store: &Store, model: &Model) {
    let view = store.view();
    for (file, tags) in model.blocks.iter().enumerate() {
        let mut found = vec![1; tags.len() * BLOCK_SIZE];
        view.read_blocks(Ino(100 + file as u64), 0, &mut found)
            .unwrap();
        for (at, (found, tag)) in found.chunks(BLOCK_SIZE).zip(tags).enumerate() {
            assert!(
                found == block(*tag),
                "file {file} block {at}: not write {tag}"
            );
        }
    }
    for (at, tag) in model.attributes.iter().enumerate() {
        let found = view.get(&attribute(at as u64)).unwrap();
        let want = (*tag > 0).then(|| vec![*tag as u8; 800]);
        assert_eq!(found.as_deref(), want.as_deref(), "attribute {at}");
    }
}

/// What a kept version has of a file is what it had when it was taken.
fn compare_kept(store: &Store, kept: &PinnedView, model: &Model, file: usize) {
    let tags = &model.blocks[file];
    let mut mapped = vec![None; tags.len()];
    let end = tags.len() as u64;
    for_each_extent(kept, Ino(100 + file as u64), 0, end, &mut |extent| {
        if let Backing::Mapped { lba, .. } = extent.backing {
            for i in 0..extent.len {
                mapped[(extent.start + i) as usize] = Some(lba.plus(i));
            }
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    for (at, (lba, tag)) in mapped.into_iter().zip(tags).enumerate() {
        assert_eq!(lba.is_some(), *tag > 0, "file {file} block {at}");
        if let Some(lba) = lba {
            let mut found = vec![0; BLOCK_SIZE];
            let lba = kept.on_device(lba).unwrap();
            store.device().read(lba, &mut found).unwrap();
            assert!(
                found == block(*tag),
                "kept file {file} block {at}: not write {tag}"
            );
        }
    }
}

fn run(seed: u64, steps: u64) {
    println!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let device = device(rng.random_range(24..32), rng.random_range(256..400));
    // Blocks of a file. All of them are two fifths of the smallest device to nine tenths.
    let length = rng.random_range(120..260);
    Store::format(&device, &FormatOptions::default()).unwrap();
    let mut store = opened(&device);
    let mut model = Model {
        blocks: vec![vec![0; length as usize]; FILES as usize],
        attributes: vec![0; 600],
    };
    let mut kept: Vec<(PinnedView, Model)> = Vec::new();
    let (mut refused, mut least) = (0, u64::MAX);
    for step in 1..=steps {
        let mut next = model.clone();
        let file = rng.random_range(0..FILES);
        let first = rng.random_range(0..length);
        let count = rng.random_range(1..=(length - first).min(60));
        let range = first as usize..(first + count) as usize;
        let outcome = match rng.random_range(0..10) {
            0..6 => {
                next.blocks[file as usize][range].fill(step);
                overwrite(&store, file, first, count, step)
            }
            6 => {
                next.blocks[file as usize][range].fill(0);
                let freed = punch(&store, file, first, count);
                assert!(freed.is_ok(), "step {step}: {freed:?}");
                freed
            }
            7..9 => {
                let from = rng.random_range(0..580);
                next.attributes[from..from + 20].fill(1 + step % 250);
                set(&store, from as u64, 20, 1 + step % 250)
            }
            _ => match rng.random_range(0..5) {
                0 => store.checkpoint(),
                3 | 4 => {
                    let stage = Stage(rng.random_range(0..2));
                    store.stage(stage, Ino(100 + file), &[(first, block(step))])
                }
                1 => store.collect(2).map(drop),
                _ => store.sync(store.position()),
            },
        };
        match outcome {
            Ok(()) => model = next,
            Err(Error::NoSpace) => refused += 1,
            Err(error) => panic!("step {step}: {error}"),
        }
        assert!(!store.is_read_only(), "step {step}");
        least = least.min(store.stats().groups["collector"]["free_zones"]);
        match rng.random_range(0..200) {
            0 | 1 if kept.len() < 3 => kept.push((store.pinned_view(), model.clone())),
            2 | 3 if !kept.is_empty() => drop(kept.remove(rng.random_range(0..kept.len()))),
            4 | 5 => drop(store.unstage(Stage(rng.random_range(0..2)), 0, u64::MAX)),
            6 => {
                // The process dies, and versions with it.
                store.sync(store.position()).unwrap();
                kept.clear();
                store.latch_read_only("the process died");
                store = opened(&device);
                compare(&store, &model);
            }
            _ => {}
        }
        if step % 16 == 0 {
            for (kept, then) in &kept {
                compare_kept(&store, kept, then, file as usize);
            }
        }
    }
    println!("seed {seed}: {refused} of {steps} refused, at least {least} zones free");
    assert!(least >= 1, "no zone left for a checkpoint");
    compare(&store, &model);
    drop(kept);
    for stage in 0..2 {
        store.unstage(Stage(stage), 0, u64::MAX);
    }
    for file in 0..FILES {
        overwrite(&store, file, 0, length, 7).unwrap();
        model.blocks[file as usize].fill(7);
    }
    compare(&store, &model);
    store.sync(store.position()).unwrap();
    let report = store.check(&mut |_, _| {}, &|_, _| {}).unwrap();
    assert_eq!(report.errors, Vec::<String>::new());
}

#[test]
fn with_versions_kept_and_blocks_staged_writers_are_refused_and_nothing_else_is() {
    for seed in 0..8 {
        run(seed, 2_000);
    }
}

/// Reads of other threads hold versions too, for a moment: who must wait for them waits, and is not refused.
#[test]
fn reads_under_way_refuse_nobody() {
    const ROUNDS: u64 = 1_500;
    let device = device(24, 256);
    Store::format(&device, &FormatOptions::default()).unwrap();
    let store = opened(&device);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let view = store.view();
                    std::thread::sleep(Duration::from_millis(2));
                    view.read_blocks(Ino(100), 0, &mut [0; BLOCK_SIZE]).unwrap();
                }
            });
        }
        // Ten times what the device holds.
        let outcome = (1..=ROUNDS).try_for_each(|round| {
            let first = round * 37 % 200 / 40 * 40;
            overwrite(&store, round % FILES, first, 40, round)
        });
        done.store(true, Ordering::Relaxed);
        assert!(outcome.is_ok(), "{outcome:?}");
    });
}
