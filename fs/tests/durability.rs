//! Ways to lose what was synced, each tried on a device that remembers its write log.
//!
//! The cases of `docs/crash-model.md` that random workloads do not reach, because they need a full
//! device, a failed flush, a medium that wears out or a flipped bit at one particular moment.

use std::sync::Arc;

use warren_fs::Result;
use warren_fs::catalog::{Key, Kind};
use warren_fs::store::{FormatOptions, Records, Store, StoreOptions};
use warren_fs::types::{BLOCK_SIZE, Ino};
use zns_backend::{
    CrashPoint, Fault, FaultDevice, Geometry, Lba, LoggedOp, MemDevice, Survival, When, ZoneId,
    ZoneState, ZonedDevice,
};

const FILE: Ino = Ino(100);

fn geometry() -> Geometry {
    Geometry {
        block_size: 4096,
        zones: 16,
        zone_size: 256,
        zone_capacity: 256,
        max_open: 8,
        max_active: 10,
        max_append: 0,
    }
}

fn open(device: &FaultDevice) -> Result<Arc<Store>> {
    let options = StoreOptions {
        background: false,
        cache_bytes: 1 << 20,
        ..StoreOptions::default()
    };
    Store::open(Arc::new(device.clone()), &options)
}

fn formatted() -> FaultDevice {
    let device = FaultDevice::new(MemDevice::new(geometry()).unwrap()).unwrap();
    let shared: Arc<dyn ZonedDevice> = Arc::new(device.clone());
    Store::format(&shared, &FormatOptions::default()).unwrap();
    device
}

fn key(offset: u64) -> Key {
    Key::new(Ino(1), Kind::Entry, offset)
}

/// One synced transaction that sets a record.
fn put(store: &Store, offset: u64) {
    let mut txn = store.begin().unwrap();
    txn.put(key(offset), b"synced").unwrap();
    let position = txn.commit().unwrap();
    store.sync(position).unwrap();
}

fn holds(store: &Store, offset: u64) -> bool {
    store.view().get(&key(offset)).unwrap().is_some()
}

fn write(store: &Store, first: u64, blocks: usize) -> Result<()> {
    let mut txn = store.begin()?;
    txn.write_blocks(FILE, first, &vec![7; blocks * BLOCK_SIZE])?;
    txn.commit().map(drop)
}

/// The device after a power cut now that keeps nothing which was not flushed.
fn power_cut(device: &FaultDevice) -> FaultDevice {
    let log = device.log();
    let left = log.device_after(CrashPoint::after(log.len()), Survival::None);
    FaultDevice::new(left.unwrap()).unwrap()
}

/// A copy of the device with one bit of one block inverted.
fn with_flipped_bit(device: &FaultDevice, lba: Lba, bit: usize) -> FaultDevice {
    let geometry = *device.geometry();
    let copy = MemDevice::new(geometry).unwrap();
    for info in device.report(ZoneId(0), geometry.zones).unwrap() {
        if info.write_pointer == 0 {
            continue;
        }
        let start = geometry.zone_start(info.zone);
        let mut bytes = vec![0; info.write_pointer as usize * BLOCK_SIZE];
        device.read(start, &mut bytes).unwrap();
        if geometry.zone_of(lba) == info.zone {
            bytes[(lba.0 - start.0) as usize * BLOCK_SIZE + bit / 8] ^= 1 << (bit % 8);
        }
        copy.write(start, &bytes).unwrap();
    }
    FaultDevice::new(copy).unwrap()
}

/// The last write in the log that starts in one of the zones.
fn last_write(device: &FaultDevice, zones: impl Fn(ZoneId) -> bool) -> (usize, Lba) {
    let geometry = *device.geometry();
    let log = device.log();
    let found = log
        .ops()
        .iter()
        .enumerate()
        .rev()
        .find_map(|(at, op)| match op {
            LoggedOp::Write { lba, .. } if zones(geometry.zone_of(*lba)) => Some((at, *lba)),
            _ => None,
        });
    found.unwrap()
}

#[test]
fn zone_filled_by_a_transaction_that_ran_out_of_space_stays_until_the_next_checkpoint() {
    let device = formatted();
    let store = open(&device).unwrap();
    // Fill up with blocks that die, until the collector is about to be needed.
    while store
        .zone_table()
        .unwrap()
        .iter()
        .filter(|z| z.class == "free")
        .count()
        > 6
    {
        write(&store, 0, 200).unwrap();
    }
    store.checkpoint().unwrap();
    // More than the zones a writer may take: it fails after having filled some.
    assert!(write(&store, 1000, 900).is_err());
    store.sync(store.position()).unwrap();
    store.collect(1).unwrap();
    put(&store, 1);
    let store = open(&power_cut(&device)).unwrap();
    assert!(holds(&store, 1), "a completed sync is lost");
}

#[test]
fn found_checkpoint_is_durable_before_a_zone_is_reset_because_of_it() {
    let device = formatted();
    let store = open(&device).unwrap();
    write(&store, 0, 600).unwrap();
    put(&store, 1);
    store.checkpoint().unwrap();
    let mut txn = store.begin().unwrap();
    txn.unmap_blocks(FILE, 0, 600).unwrap();
    txn.commit().unwrap();
    // The process is killed when the record is written and not flushed.
    let flushes = device.counts().2;
    device.inject(When::Nth(flushes + 1), Fault::FailFlush);
    assert!(store.checkpoint().is_err());
    drop(store);
    let store = open(&device).unwrap();
    store.collect(1).unwrap();
    drop(store);
    let store = open(&power_cut(&device)).expect("the filesystem can be mounted");
    assert!(holds(&store, 1));
    let mut data = vec![0; 600 * BLOCK_SIZE];
    store
        .view()
        .read_blocks(FILE, 0, &mut data)
        .expect("either checkpoint is whole");
}

#[test]
fn failed_flush_of_the_collector_ends_all_changes() {
    let device = formatted();
    let store = open(&device).unwrap();
    for first in 0..5 {
        write(&store, first * 100, 200).unwrap();
    }
    store.checkpoint().unwrap();
    // Written before the flush that fails, which may have dropped it.
    let mut txn = store.begin().unwrap();
    txn.put(key(1), b"unsynced").unwrap();
    txn.commit().unwrap();
    let flushes = device.counts().2;
    device.inject(When::Nth(flushes), Fault::FailFlush);
    let _ = store.collect(3);
    assert!(device.counts().2 > flushes, "the collector has flushed");
    assert!(store.is_read_only(), "a flush failed and changes go on");
}

#[test]
fn chunks_in_a_zone_that_became_read_only_are_recovered() {
    let device = formatted();
    let store = open(&device).unwrap();
    put(&store, 1);
    drop(store);
    let (_, lba) = last_write(&device, |zone| zone.0 > 1);
    device
        .fail_zone(device.geometry().zone_of(lba), ZoneState::ReadOnly)
        .unwrap();
    let store = open(&device).unwrap();
    assert!(holds(&store, 1), "what can still be read is lost");
}

#[test]
fn zone_with_a_torn_tail_is_given_back_by_the_collector() {
    let device = formatted();
    let store = open(&device).unwrap();
    write(&store, 0, 100).unwrap();
    put(&store, 1);
    write(&store, 50, 60).unwrap();
    put(&store, 2);
    let (at, _) = last_write(&device, |zone| zone.0 > 1);
    // The last chunk's blocks are lost and its zone's write pointer is behind them.
    let mut torn = None;
    for seed in 0..1000 {
        let left = device
            .log()
            .device_after(CrashPoint::after(at + 1), Survival::Seeded(seed));
        let left = FaultDevice::new(left.unwrap()).unwrap();
        let store = open(&left).unwrap();
        if !holds(&store, 2)
            && left
                .log()
                .ops()
                .iter()
                .any(|op| matches!(op, LoggedOp::Finish { .. }))
        {
            torn = Some(store);
            break;
        }
    }
    let store = torn.expect("some cut leaves a torn chunk");
    store.collect(8).unwrap();
    let table = store.zone_table().unwrap();
    let retired = table.iter().filter(|zone| zone.class == "retired").count();
    assert_eq!(retired, 0, "a power cut has cost zones for good");
}

fn refused_or_whole(device: &FaultDevice, records: std::ops::Range<u64>, damage: &str) {
    if let Ok(store) = open(device) {
        for offset in records {
            assert!(
                holds(&store, offset),
                "{damage}: record {offset} was synced and is silently gone"
            );
        }
    }
}

/// A device whose newest checkpoint is the first record of its anchor zone, and on which the log of
/// the checkpoint before it has been reset.
fn with_history_that_only_the_newest_checkpoint_knows() -> FaultDevice {
    let device = formatted();
    let store = open(&device).unwrap();
    put(&store, 1);
    let anchor = || device.report(ZoneId(0), 1).unwrap()[0].write_pointer;
    while anchor() < geometry().zone_capacity {
        store.checkpoint().unwrap();
    }
    // Fills zones that the checkpoint knows as free, and dies.
    write(&store, 0, 600).unwrap();
    write(&store, 0, 600).unwrap();
    put(&store, 2);
    store.checkpoint().unwrap();
    store.collect(1).unwrap();
    device
}

#[test]
fn flipped_bit_in_the_newest_checkpoint_is_noticed() {
    let device = with_history_that_only_the_newest_checkpoint_knows();
    let (_, record) = last_write(&device, |zone| zone.0 < 2);
    refused_or_whole(&with_flipped_bit(&device, record, 1000), 1..3, "checkpoint");
}

#[test]
fn flipped_bit_in_the_newest_superblock_is_noticed() {
    let device = with_history_that_only_the_newest_checkpoint_knows();
    let (_, record) = last_write(&device, |zone| zone.0 < 2);
    let superblock = geometry().zone_start(geometry().zone_of(record));
    refused_or_whole(
        &with_flipped_bit(&device, superblock, 1000),
        1..3,
        "superblock",
    );
}

#[test]
fn flipped_bit_in_a_chunk_before_other_synced_chunks_is_noticed() {
    let device = formatted();
    let store = open(&device).unwrap();
    for offset in 1..6 {
        put(&store, offset);
    }
    let log = device.log();
    let geometry = geometry();
    let hot: Vec<Lba> = log
        .ops()
        .iter()
        .filter_map(|op| match op {
            LoggedOp::Write { lba, .. } if geometry.zone_of(*lba).0 > 1 => Some(*lba),
            _ => None,
        })
        .collect();
    let chunk = hot[hot.len() - 3];
    refused_or_whole(&with_flipped_bit(&device, chunk, 100), 1..6, "chunk header");
}

#[test]
fn nothing_is_acknowledged_after_a_failed_flush() {
    let device = formatted();
    let store = open(&device).unwrap();
    let mut txn = store.begin().unwrap();
    txn.put(key(1), b"lost by the flush").unwrap();
    let position = txn.commit().unwrap();
    device.inject(When::Nth(device.counts().2), Fault::FailFlush);
    assert!(store.sync(position).is_err());
    let (send, outcome) = std::sync::mpsc::channel();
    let then = move |outcome: Result<()>| send.send(outcome.is_ok()).unwrap();
    if let Some(lead) = store.sync_then(position, Box::new(then)) {
        lead.run();
    }
    assert!(
        !outcome.recv().unwrap(),
        "the next flush says nothing about it"
    );
}

/// Flushes of the device that `work` takes.
fn flushes_of(device: &FaultDevice, work: impl FnOnce()) -> u64 {
    let before = device.counts().2;
    work();
    device.counts().2 - before
}

#[test]
fn a_commit_behind_nothing_volatile_is_one_durable_write_and_survives() {
    let device = formatted().with_durable_writes();
    let store = open(&device).unwrap();
    assert_eq!(
        flushes_of(&device, || (1..4).for_each(|n| put(&store, n))),
        0
    );
    let after = open(&power_cut(&device)).unwrap();
    assert!((1..4).all(|n| holds(&after, n)));
}

#[test]
fn a_commit_behind_a_chunk_that_is_written_and_volatile_flushes() {
    let device = formatted().with_durable_writes();
    let store = open(&device).unwrap();
    put(&store, 1);
    // More than a chunk: the first is on the device before anybody asks, and not durable.
    write(&store, 0, 300).unwrap();
    assert_eq!(flushes_of(&device, || put(&store, 2)), 1);
    let after = open(&power_cut(&device)).unwrap();
    let mut data = vec![0; 300 * BLOCK_SIZE];
    after.view().read_blocks(FILE, 0, &mut data).unwrap();
    assert!(holds(&after, 2) && data.iter().all(|&byte| byte == 7));
}

#[test]
fn a_cut_anywhere_among_full_chunks_and_durable_writes_keeps_what_was_synced() {
    let device = formatted().with_durable_writes();
    let store = open(&device).unwrap();
    let begun = device.log().len();
    let promises: Vec<usize> = (0..6)
        .map(|round| {
            // Every second commit has a chunk before it that is written and volatile.
            write(&store, round * 300, if round % 2 == 0 { 300 } else { 2 }).unwrap();
            put(&store, round);
            device.log().len()
        })
        .collect();
    let log = device.log();
    for completed in begun..=log.len() {
        let mut cuts = vec![CrashPoint::after(completed)];
        if completed < log.len() {
            cuts.push(CrashPoint::during(completed));
        }
        let chosen = (0..4).map(|seed| Survival::Seeded(seed + completed as u64));
        for survival in chosen.chain([Survival::None, Survival::All]) {
            for cut in &cuts {
                let left = log.device_after(*cut, survival).unwrap();
                let left = open(&FaultDevice::new(left).unwrap()).unwrap();
                for (round, promised) in (0..).zip(&promises) {
                    let kept = *promised > completed || holds(&left, round);
                    assert!(kept, "{cut:?}, {survival:?}: commit {round} is lost");
                }
            }
        }
    }
}

#[test]
fn a_durable_write_that_fails_is_sent_elsewhere_and_flushed() {
    let device = formatted().with_durable_writes();
    let store = open(&device).unwrap();
    put(&store, 1);
    for blocks in 0..2 {
        let fault = match blocks {
            0 => Fault::FailWrite,
            _ => Fault::TearWrite { blocks },
        };
        device.inject(When::Nth(device.counts().0), fault);
        let offset = 2 + blocks;
        assert_eq!(flushes_of(&device, || put(&store, offset)), 1, "{fault:?}");
        assert!(holds(&open(&power_cut(&device)).unwrap(), offset));
    }
    assert_eq!(
        flushes_of(&device, || put(&store, 9)),
        0,
        "and goes on as before"
    );
    assert!(holds(&open(&power_cut(&device)).unwrap(), 9));
}

#[test]
fn a_commit_started_early_with_a_durable_write_answers_without_a_flush() {
    let device = formatted().with_durable_writes();
    let options = StoreOptions {
        cache_bytes: 1 << 20,
        ..StoreOptions::default()
    };
    let store = Store::open(Arc::new(device.clone()), &options).unwrap();
    let before = device.counts().2;
    let mut early = 0;
    for offset in 1..40 {
        let mut txn = store.begin().unwrap();
        txn.put(key(offset), b"synced").unwrap();
        let position = txn.commit().unwrap();
        if let Some(lead) = store.start_anticipated() {
            lead.run();
            early += 1;
            assert!(position < store.durable(), "durable before anybody asks");
        }
        store.sync(position).unwrap();
    }
    assert!(early > 20, "the rhythm was noticed {early} times");
    assert_eq!(device.counts().2, before);
    assert!((1..40).all(|n| holds(&open(&power_cut(&device)).unwrap(), n)));
}

#[test]
fn newest_checkpoint_is_found_whichever_of_its_copies_is_damaged() {
    let device = with_history_that_only_the_newest_checkpoint_knows();
    let (_, record) = last_write(&device, |zone| zone.0 < 2);
    for (block, bit) in [(0, 1000), (1, 1000), (0, 32_700), (1, 32_700)] {
        let damaged = with_flipped_bit(&device, record.plus(block), bit);
        let store = open(&damaged).expect("one copy is sound");
        assert!(holds(&store, 1) && holds(&store, 2), "{block} {bit}");
    }
}

#[test]
fn chunk_that_a_second_zone_tore_too_is_read_from_the_third() {
    for blocks in 1..5 {
        let device = formatted();
        let store = open(&device).unwrap();
        write(&store, 0, 8).unwrap();
        let writes = device.counts().0;
        device.inject(When::Nth(writes), Fault::TearWrite { blocks });
        device.inject(When::Nth(writes + 1), Fault::TearWrite { blocks });
        put(&store, 1);
        assert_eq!(device.counts().0, writes + 3, "the third write succeeded");
        let store = open(&power_cut(&device)).unwrap();
        assert!(holds(&store, 1));
        let mut data = vec![0; 8 * BLOCK_SIZE];
        store.view().read_blocks(FILE, 0, &mut data).unwrap();
        assert!(data.iter().all(|byte| *byte == 7), "{blocks} blocks stored");
    }
}
