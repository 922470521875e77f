//! Threads on the same keys, with the pool far too small, commits and tidying all the while, and a
//! history of who read what when.
//!
//! Every value carries a version from one global counter, noted before the write begins; after the write
//! returned, its version is the least that a later read of the key may return, unless the key's other
//! writes overlapped. With one writer per key and many readers, that makes reads checkable: a read must
//! return a version between the last one completed before it began and the last one begun before it
//! ended, and each reader must see versions of a key in order.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use vmcache::{IndexFile, IndexOptions, Tree, WriteBatch};

const KEYS: usize = 300;
const WRITERS: usize = 2;

/// Per key the version last begun and last completed.
struct History {
    begun: Vec<AtomicU64>,
    completed: Vec<AtomicU64>,
}

fn key(number: usize) -> Vec<u8> {
    format!("{:03}/{}", number, "k".repeat(number % 40)).into_bytes()
}

/// A value whose every part tells its version, of a length that takes overflow pages now and then.
fn value(number: usize, version: u64) -> Vec<u8> {
    let words = if version.is_multiple_of(17) {
        1500
    } else {
        1 + (version as usize + number) % 60
    };
    version.to_le_bytes().repeat(words)
}

/// The version of a value, which must be of one piece.
fn version(number: usize, found: &[u8]) -> u64 {
    let version = u64::from_le_bytes(found[..8].try_into().unwrap());
    assert_eq!(
        found,
        value(number, version),
        "a torn value of key {number}"
    );
    version
}

fn write(tree: &Tree, history: &History, writer: usize, seed: u64, rounds: u64) {
    let mut rng = StdRng::seed_from_u64(seed ^ writer as u64);
    let mut next = vec![1_u64; KEYS];
    for _ in 0..rounds {
        let number = rng.random_range(0..KEYS / WRITERS) * WRITERS + writer;
        let version = next[number];
        next[number] += 1;
        history.begun[number].store(version, Ordering::SeqCst);
        if rng.random_bool(0.3) {
            let mut batch = WriteBatch::new();
            batch
                .remove(key(number))
                .set(key(number), value(number, version));
            // A reader may find nothing in between: versions of batches are told by the key's presence.
            tree.apply(&batch).unwrap();
        } else {
            tree.set(&key(number), &value(number, version)).unwrap();
        }
        history.completed[number].store(version, Ordering::SeqCst);
    }
}

fn read(tree: &Tree, history: &History, seed: u64, stop: &AtomicBool) -> u64 {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut seen = vec![0; KEYS];
    let mut reads = 0;
    while !stop.load(Ordering::Relaxed) {
        reads += 1;
        if reads % 64 == 0 {
            scan(tree, history, rng.random());
            continue;
        }
        let number = rng.random_range(0..KEYS);
        let completed = history.completed[number].load(Ordering::SeqCst);
        let found = tree.get(&key(number)).unwrap();
        let begun = history.begun[number].load(Ordering::SeqCst);
        let Some(found) = found else { continue };
        let version = version(number, &found);
        assert!(
            (completed..=begun).contains(&version),
            "key {number}: {version} not in {completed}..={begun}"
        );
        assert!(
            version >= seen[number],
            "key {number}: {version} after {}",
            seen[number]
        );
        seen[number] = version;
    }
    reads
}

fn scan(tree: &Tree, history: &History, backward: bool) {
    let completed: Vec<_> = history
        .completed
        .iter()
        .map(|version| version.load(Ordering::SeqCst))
        .collect();
    let entries: Result<Vec<_>, _> = if backward {
        tree.iter().rev().collect()
    } else {
        tree.iter().collect()
    };
    let mut entries = entries.unwrap();
    if backward {
        entries.reverse();
    }
    assert!(entries.is_sorted_by(|a, b| a.0 < b.0));
    for (found_key, found) in entries {
        let number = std::str::from_utf8(&found_key[..3])
            .unwrap()
            .parse()
            .unwrap();
        assert_eq!(found_key, key(number));
        let version = version(number, &found);
        let begun = history.begun[number].load(Ordering::SeqCst);
        assert!(
            (completed[number]..=begun).contains(&version),
            "key {number} in a scan"
        );
    }
}

fn stress(frames: usize, seed: u64, rounds: u64) {
    println!("seed {seed}, {frames} frames");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let options = IndexOptions {
        cache_bytes: frames * 4096,
        file_bytes_max: 1 << 30,
        log_bytes: 1 << 20,
        ..IndexOptions::default()
    };
    let index = IndexFile::open(&path, options).unwrap();
    let tree = index.tree("t").unwrap();
    let versions = || (0..KEYS).map(|_| AtomicU64::new(0)).collect();
    let history = History {
        begun: versions(),
        completed: versions(),
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (tree, history, stop, index) = (&tree, &history, &stop, &index);
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| scope.spawn(move || write(tree, history, writer, seed, rounds)))
            .collect();
        let readers: Vec<_> = (0..2)
            .map(|reader| scope.spawn(move || read(tree, history, seed + reader, stop)))
            .collect();
        let committer = scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                index.commit().unwrap();
                index.tidy().unwrap();
                assert!(index.pool_stats().frames <= frames);
            }
        });
        let written: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        stop.store(true, Ordering::Relaxed);
        let reads: u64 = readers
            .into_iter()
            .map(|reader| reader.join().unwrap())
            .sum();
        committer.join().unwrap();
        written.into_iter().for_each(|writer| writer.unwrap());
        assert!(reads > 0);
    });
    let report = index.check().unwrap();
    assert_eq!(report.pages_lost, 0);
    drop(tree);
    index.close().unwrap();
    let index = IndexFile::open(&path, options).unwrap();
    assert_eq!(index.check().unwrap(), report);
    for entry in index.tree("t").unwrap().iter() {
        let (found_key, found) = entry.unwrap();
        let number: usize = std::str::from_utf8(&found_key[..3])
            .unwrap()
            .parse()
            .unwrap();
        assert_eq!(
            version(number, &found),
            history.completed[number].load(Ordering::SeqCst)
        );
    }
}

#[test]
fn reads_return_what_was_current_while_a_tiny_pool_evicts_all_the_time() {
    stress(16, 11, 1500);
    stress(40, 12, 3000);
}

#[test]
fn reads_return_what_was_current_while_everything_is_in_memory() {
    stress(4000, 13, 12_000);
}
