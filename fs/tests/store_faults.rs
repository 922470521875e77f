//! The store on devices that fail or run out of zones: what was acknowledged stays, nobody waits for
//! ever, and the zones that nothing is wrong with stay in use.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use warren_fs::catalog::{Key, Kind};
use warren_fs::store::extent::{Backing, for_each_extent};
use warren_fs::store::{FormatOptions, PinnedView, Records, Store, StoreOptions};
use warren_fs::types::{BLOCK_SIZE, Ino};
use warren_fs::{Error, Result};
use zns_backend::{Fault, FaultDevice, Geometry, Lba, MemDevice, When, ZoneId, ZonedDevice};

/// A device of zones that take `capacity` blocks.
fn device(zones: u32, capacity: u64) -> FaultDevice {
    let geometry = Geometry {
        block_size: 4096,
        zones,
        zone_size: 512,
        zone_capacity: capacity,
        max_open: 8,
        max_active: 10,
        max_append: 0,
    };
    FaultDevice::new(MemDevice::new(geometry).unwrap()).unwrap()
}

fn shared(device: &FaultDevice) -> Arc<dyn ZonedDevice> {
    Arc::new(device.clone())
}

fn options(background: bool) -> StoreOptions {
    StoreOptions {
        background,
        cache_bytes: 1 << 20,
        ..StoreOptions::default()
    }
}

fn formatted(device: &FaultDevice, background: bool) -> Arc<Store> {
    Store::format(&shared(device), &FormatOptions::default()).unwrap();
    Store::open(shared(device), &options(background)).unwrap()
}

fn reopened(device: &FaultDevice) -> Arc<Store> {
    Store::open(shared(device), &options(false)).unwrap()
}

fn blocks(tag: u64, count: u64) -> Vec<u8> {
    let words = (0..count * BLOCK_SIZE as u64 / 8).map(|i| tag << 32 ^ i);
    words.flat_map(u64::to_le_bytes).collect()
}

fn write(store: &Store, ino: u64, first: u64, tag: u64, count: u64) -> Result<()> {
    let mut txn = store.begin()?;
    txn.write_blocks(Ino(ino), first, &blocks(tag, count))?;
    txn.commit().map(drop)
}

fn put(store: &Store, ino: u64, offset: u64, value: &[u8]) -> Result<()> {
    let mut txn = store.begin()?;
    txn.put(Key::new(Ino(ino), Kind::Xattr, offset), value)?;
    txn.commit().map(drop)
}

fn read(store: &Store, ino: u64, first: u64, count: u64) -> Vec<u8> {
    let mut found = vec![1; (count as usize) * BLOCK_SIZE];
    store
        .view()
        .read_blocks(Ino(ino), first, &mut found)
        .unwrap();
    found
}

fn sound(store: &Store) {
    let report = store.check(&mut |_, _| {}, &|_, _| {}).unwrap();
    assert_eq!(report.errors, Vec::<String>::new());
    assert_eq!(store.scrub(&|_, _| {}).errors, Vec::<String>::new());
}

fn retired(store: &Store) -> usize {
    let zones = store.zone_table().unwrap();
    zones.iter().filter(|zone| zone.class == "retired").count()
}

/// Runs `body` on a thread; panics if it takes too long, as one does who waits for ever.
fn in_time<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || done.send(body()));
    ended
        .recv_timeout(Duration::from_secs(20))
        .expect("it ends")
}

#[test]
fn a_checkpoint_whose_chunk_had_to_go_elsewhere_refers_to_where_it_went() {
    for fault in [Fault::FailWrite, Fault::TearWrite { blocks: 2 }] {
        for close in [false, true] {
            let device = device(24, 400);
            let store = formatted(&device, false);
            write(&store, 100, 0, 1, 40).unwrap();
            device.inject(When::Nth(device.counts().0), fault);
            if close {
                store.close().unwrap();
            } else {
                store.checkpoint().unwrap();
            }
            assert_eq!(store.stats().groups["log"]["writes_relocated"], 1);
            drop(store);
            let store = reopened(&device);
            assert!(read(&store, 100, 0, 40) == blocks(1, 40), "{fault:?}");
            sound(&store);
        }
    }
}

#[test]
fn zones_of_an_aborted_transaction_are_not_reset_while_the_log_runs_through_them() {
    let device = device(24, 256);
    let store = formatted(&device, false);
    put(&store, 7, 0, b"before").unwrap();
    // Dead data that is kept from being collected, until three zones are left to write to.
    let kept = store.pinned_view();
    while store.stats().groups["collector"]["free_zones"] > 8 {
        write(&store, 100, 0, 1, 250).unwrap();
    }
    store.checkpoint().unwrap();
    let mut txn = store.begin().unwrap();
    let failed = txn.write_blocks(Ino(50), 0, &blocks(2, 2_000));
    assert!(matches!(failed, Err(Error::NoSpace)), "{failed:?}");
    drop(txn);
    drop(kept);
    store.sync(store.position()).unwrap();
    store.collect(1).unwrap();
    // The log goes on behind the chunks of the transaction that failed.
    put(&store, 7, 1, b"after").unwrap();
    store.sync(store.position()).unwrap();
    store.latch_read_only("the process died");
    let recovered = reopened(&device);
    let view = recovered.view();
    for (offset, want) in [(0, &b"before"[..]), (1, b"after")] {
        let found = view.get(&Key::new(Ino(7), Kind::Xattr, offset)).unwrap();
        assert_eq!(found.as_deref(), Some(want));
    }
    sound(&recovered);
}

#[test]
fn a_transaction_too_large_for_the_rest_of_a_zone_costs_no_zone() {
    let device = device(24, 400);
    let store = formatted(&device, false);
    // One zone is written at a time on a device this small. 255 blocks fill its first chunk; the
    // next one takes the zone to a few blocks from its end while the first is not yet written.
    let mut txn = store.begin().unwrap();
    txn.write_blocks(Ino(100), 0, &blocks(1, 390)).unwrap();
    for offset in 0..100 {
        txn.put(Key::new(Ino(9), Kind::Xattr, offset), &[3; 900])
            .unwrap();
    }
    txn.commit().unwrap();
    let position = store.position();
    store.sync(position).unwrap();
    assert_eq!(retired(&store), 0);
    assert_eq!(store.stats().groups["log"]["writes_relocated"], 0);
    assert!(read(&store, 100, 0, 390) == blocks(1, 390));
    sound(&store);
    let recovered = reopened(&device);
    assert!(read(&recovered, 100, 0, 390) == blocks(1, 390));
}

#[test]
fn when_no_zone_takes_a_chunk_everybody_gets_an_error_and_nobody_waits() {
    for background in [false, true] {
        let device = device(24, 400);
        let store = formatted(&device, background);
        put(&store, 5, 0, b"kept").unwrap();
        let position = store.position();
        store.sync(position).unwrap();
        device.inject(When::Always, Fault::FailWrite);
        // Long enough for all threads to wait for the same chunk.
        device.inject(When::Always, Fault::Delay(Duration::from_millis(5)));
        put(&store, 5, 1, b"lost").unwrap();
        in_time({
            let store = Arc::clone(&store);
            move || {
                std::thread::scope(|scope| {
                    for turn in 0..4 {
                        let store = &store;
                        scope.spawn(move || match turn % 2 {
                            0 => assert!(store.sync(store.position()).is_err()),
                            _ => assert!(store.checkpoint().is_err()),
                        });
                    }
                });
                assert!(store.is_read_only());
                assert!(store.sync(store.position()).is_err());
                store.close().unwrap();
            }
        });
        drop(store);
        device.clear_faults();
        let store = reopened(&device);
        let view = store.view();
        let kept = view.get(&Key::new(Ino(5), Kind::Xattr, 0)).unwrap();
        assert_eq!(kept.as_deref(), Some(&b"kept"[..]));
    }
}

#[test]
fn a_failed_flush_is_never_acknowledged_later() {
    let device = device(24, 400);
    let store = formatted(&device, false);
    put(&store, 5, 0, b"value").unwrap();
    let position = store.position();
    device.inject(When::Nth(device.counts().2), Fault::FailFlush);
    assert!(store.sync(position).is_err());
    // The cache of the device may have dropped what it could not write: a second flush proves nothing.
    assert!(matches!(store.sync(position), Err(Error::CommitFailed)));
    assert!(position >= store.durable());
    assert!(matches!(put(&store, 5, 1, b"value"), Err(Error::ReadOnly)));
}

#[test]
fn the_collector_survives_a_zone_that_takes_no_copies_and_a_victim_it_cannot_read() {
    for fault in [Fault::FailWrite, Fault::FailRead] {
        let device = device(24, 400);
        let store = formatted(&device, false);
        for file in 0..10 {
            write(&store, 100 + file, 0, file, 380).unwrap();
        }
        for file in 0..10 {
            let mut txn = store.begin().unwrap();
            txn.unmap_blocks(Ino(100 + file), 0, 300).unwrap();
            txn.commit().unwrap();
        }
        store.checkpoint().unwrap();
        let (writes, reads, _) = device.counts();
        let next = if fault == Fault::FailWrite {
            writes
        } else {
            reads + 2
        };
        device.inject(When::Nth(next), fault);
        let freed = store.collect(2).unwrap();
        assert!(freed > 0, "{fault:?}");
        for file in 0..10 {
            let want = &blocks(file, 380)[300 * BLOCK_SIZE..];
            assert!(
                read(&store, 100 + file, 300, 80) == want,
                "{fault:?}, file {file}"
            );
        }
        sound(&store);
    }
}

/// What writers of the stress have done: of each file the number of the newest write, and of the newest
/// that was synced.
struct Progress {
    newest: [AtomicU64; Progress::FILES as usize],
    synced: [AtomicU64; Progress::FILES as usize],
    stop: AtomicBool,
}

impl Progress {
    const FILES: u64 = 4;
    /// Blocks of a file; each write covers all of them.
    const BLOCKS: u64 = 64;

    fn write(&self, store: &Store, file: u64, mut rng: ChaCha8Rng) {
        for tag in 1..=120 {
            // Some transactions are given up halfway.
            if rng.random_ratio(1, 8) {
                let mut txn = store.begin().unwrap();
                txn.write_blocks(Ino(file + 100), 0, &blocks(9_999, 300))
                    .unwrap();
                continue;
            }
            write(store, file + 100, 0, tag, Self::BLOCKS).unwrap();
            self.newest[file as usize].store(tag, Ordering::Release);
            if rng.random_ratio(1, 4) {
                store.sync(store.position()).unwrap();
                self.synced[file as usize].store(tag, Ordering::Release);
            }
        }
    }

    fn tidy(&self, store: &Store, mut rng: ChaCha8Rng) {
        while !self.stop.load(Ordering::Acquire) {
            match rng.random_range(0..3) {
                0 => store.checkpoint().unwrap(),
                1 => drop(store.collect(1).unwrap()),
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn read(&self, store: &Store, mut rng: ChaCha8Rng) {
        while !self.stop.load(Ordering::Acquire) {
            let file = rng.random_range(0..Self::FILES);
            whole_write(store, file, &self.newest[file as usize]);
        }
    }
}

/// Reads a file, which has to be as one write left it, that of the number in `at_least` or a later one.
fn whole_write(store: &Store, file: u64, at_least: &AtomicU64) {
    let at_least = at_least.load(Ordering::Acquire);
    let found = read(store, file + 100, 0, Progress::BLOCKS);
    // One number per word, so that a block says which write it comes from.
    let tag = u64::from_le_bytes(found[..8].try_into().unwrap()) >> 32;
    assert!(tag >= at_least, "file {file}: write {tag} after {at_least}");
    let want = match tag {
        0 => vec![0; found.len()],
        _ => blocks(tag, Progress::BLOCKS),
    };
    assert!(found == want, "file {file}: a mixture of writes");
}

fn inject_six_faults(device: &FaultDevice, rng: &mut ChaCha8Rng) {
    for _ in 0..6 {
        let nth = device.counts().0 + rng.random_range(5..400);
        let fault = if rng.random() {
            Fault::FailWrite
        } else {
            Fault::TearWrite {
                blocks: rng.random_range(1..20),
            }
        };
        device.inject(When::Nth(nth), fault);
    }
}

fn stress(seed: u64) {
    let device = device(40, 400);
    device.stop_log();
    let store = formatted(&device, true);
    inject_six_faults(&device, &mut ChaCha8Rng::seed_from_u64(seed));
    let progress = Progress {
        newest: [const { AtomicU64::new(0) }; Progress::FILES as usize],
        synced: [const { AtomicU64::new(0) }; Progress::FILES as usize],
        stop: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        let (store, progress) = (&store, &progress);
        let writers: Vec<_> = (0..Progress::FILES)
            .map(|file| {
                let rng = ChaCha8Rng::seed_from_u64(seed * 100 + file);
                scope.spawn(move || progress.write(store, file, rng))
            })
            .collect();
        scope.spawn(move || progress.tidy(store, ChaCha8Rng::seed_from_u64(seed + 7)));
        scope.spawn(move || progress.read(store, ChaCha8Rng::seed_from_u64(seed + 8)));
        let ended: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        progress.stop.store(true, Ordering::Release);
        for writer in ended {
            writer.unwrap();
        }
    });
    store.sync(store.position()).unwrap();
    sound(&store);
    write(&store, 200, 0, 1, 300).unwrap();
    // It dies without a close.
    store.latch_read_only("the end of the test");
    drop(store);
    device.clear_faults();
    let store = reopened(&device);
    for (file, synced) in (0..).zip(&progress.synced) {
        whole_write(&store, file, synced);
    }
    sound(&store);
}

#[test]
fn readers_writers_checkpoints_and_collections_at_once_on_a_failing_device() {
    for seed in 1..=4 {
        println!("seed {seed}");
        in_time(move || stress(seed));
    }
}

#[test]
fn a_log_with_a_hole_before_what_was_durable_is_not_written_to() {
    let device = device(24, 400);
    let store = formatted(&device, false);
    let zone = ZoneId(2);
    put(&store, 5, 0, b"first").unwrap();
    store.sync(store.position()).unwrap();
    // The next chunk never reaches the medium, and the device lies about it.
    device.inject(When::Nth(device.counts().0), Fault::LoseWrite);
    for round in 1..4 {
        put(&store, 5, round, b"more").unwrap();
        store.sync(store.position()).unwrap();
    }
    store.latch_read_only("the process died");
    drop(store);
    assert!(device.report(zone, 1).unwrap()[0].write_pointer > 0);
    let refused = Store::open(shared(&device), &options(false)).err();
    let Some(Error::Corrupt {
        what: "log",
        detail,
    }) = refused
    else {
        panic!("{refused:?}");
    };
    assert!(detail.contains("was durable once"), "{detail}");
    let read_only = StoreOptions {
        read_only: true,
        ..options(false)
    };
    let store = Store::open(shared(&device), &read_only).unwrap();
    let report = store.check(&mut |_, _| {}, &|_, _| {}).unwrap();
    assert!(
        report
            .errors
            .iter()
            .any(|e| e.contains("the log is damaged")),
        "{:?}",
        report.errors
    );
    let view = store.view();
    let first = view.get(&Key::new(Ino(5), Kind::Xattr, 0)).unwrap();
    assert_eq!(first.as_deref(), Some(&b"first"[..]));
    assert!(
        device
            .read(Lba(u64::MAX), &mut vec![0; BLOCK_SIZE])
            .is_err()
    );
}

#[test]
fn zones_that_failed_do_not_use_up_the_zones_that_may_be_active() {
    let device = device(64, 400);
    let store = formatted(&device, false);
    for round in 0..20 {
        // Each leaves a zone behind that is partly written.
        device.inject(When::Nth(device.counts().0), Fault::TearWrite { blocks: 3 });
        write(&store, 100, 0, round, 40).unwrap();
        store.sync(store.position()).unwrap();
    }
    assert_eq!(retired(&store), 20);
    assert!(read(&store, 100, 0, 40) == blocks(19, 40));
    sound(&store);
}

/// The blocks of a file in a kept version, read from the device at the addresses it gives.
fn from_device(store: &Store, kept: &PinnedView, ino: u64, count: u64) -> Vec<u8> {
    let mut bytes = vec![0; count as usize * BLOCK_SIZE];
    let mut mapped = Vec::new();
    for_each_extent(kept, Ino(ino), 0, count, &mut |extent| {
        if let Backing::Mapped { lba, .. } = extent.backing {
            mapped.push((extent.start as usize, extent.len as usize, lba));
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    for (start, len, lba) in mapped {
        let lba = kept.on_device(lba).unwrap();
        let part = &mut bytes[start * BLOCK_SIZE..(start + len) * BLOCK_SIZE];
        store.device().read(lba, part).unwrap();
    }
    bytes
}

#[test]
fn a_kept_version_finds_blocks_whose_write_failed_where_they_went() {
    for fault in [Fault::FailWrite, Fault::TearWrite { blocks: 2 }] {
        let device = device(24, 400);
        let store = formatted(&device, false);
        write(&store, 100, 0, 1, 40).unwrap();
        let kept = store.pinned_view();
        device.inject(When::Nth(device.counts().0), fault);
        let found = from_device(&store, &kept, 100, 40);
        assert!(found == blocks(1, 40), "{fault:?}");
        assert_eq!(retired(&store), 1, "{fault:?}: the write has failed");
        for round in 0..40 {
            write(&store, 100, 0, round, 200).unwrap();
            store.collect(1).unwrap();
            let found = from_device(&store, &kept, 100, 40);
            assert!(found == blocks(1, 40), "{fault:?} round {round}");
        }
        drop(kept);
        sound(&store);
    }
}

/// Files of one zone each, the parts of a file that are overwritten at a time, and the blocks of each.
const FILES: u64 = 12;
const PARTS: u64 = 20;
const PART: u64 = 20;

/// The file and the block that a round overwrites from: the first parts of all files, then the second
/// ones, and so on.
fn overwritten(round: u64) -> (u64, u64) {
    (100 + round % FILES, round / FILES % PARTS * PART)
}

fn overwrite(store: &Store, round: u64) -> Result<()> {
    let (ino, first) = overwritten(round);
    write(store, ino, first, 1 + round, PART)
}

#[test]
fn a_writer_that_found_no_zone_collects_again_when_no_version_is_kept_any_more() {
    let device = device(24, 400);
    let store = formatted(&device, false);
    for file in 0..FILES {
        write(&store, 100 + file, 0, 0, 400).unwrap();
    }
    store.checkpoint().unwrap();
    // What it refers to, in part dead, is in most of the zones and cannot be collected.
    let kept = store.pinned_view();
    let refused = (0..).filter_map(|round| overwrite(&store, round).err());
    for error in refused.take(40) {
        assert!(matches!(error, Error::NoSpace), "{error}");
    }
    drop(kept);
    // More than all zones hold.
    let rounds = 3 * FILES * PARTS;
    for round in 0..rounds {
        let outcome = overwrite(&store, round);
        assert!(outcome.is_ok(), "round {round}: {outcome:?}");
    }
    for round in rounds - FILES * PARTS..rounds {
        let (ino, first) = overwritten(round);
        let found = read(&store, ino, first, PART);
        assert!(found == blocks(1 + round, PART), "round {round}");
    }
    store.sync(store.position()).unwrap();
    sound(&store);
}
