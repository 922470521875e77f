//! The log files of the journal are used again and again: they do not grow with each commit, and what an
//! earlier use left in them is never taken for a commit.

mod common;

use common::Disk;
use std::sync::Arc;
use vmcache::{IndexFile, IndexOptions, Journal, JournalOptions, Result};

/// Blocks of a log at which it is sealed.
const LOG_BLOCKS: u64 = 200;
/// Where a header and a descriptor have their generation.
const HEADER_GENERATION: std::ops::Range<usize> = 24..32;
const BATCH_GENERATION: std::ops::Range<usize> = 16..24;

fn open(disk: &Disk) -> Result<IndexFile> {
    let options = IndexOptions {
        cache_bytes: 64 * 4096,
        file_bytes_max: 1 << 26,
        log_bytes: LOG_BLOCKS * 4096,
        ..IndexOptions::default()
    };
    let log_bytes = options.log_bytes;
    let logs = [disk.file(1), disk.file(2)];
    let journal = Journal::open(disk.file(0), logs, JournalOptions { log_bytes })?;
    IndexFile::with_method(Arc::new(journal), options)
}

/// Commits the numbers of a range one by one: each as large as any other.
fn commit_each(index: &IndexFile, numbers: std::ops::Range<u32>) {
    let tree = index.tree("t").unwrap();
    for number in numbers {
        tree.set(b"key", &number.to_le_bytes()).unwrap();
        index.commit().unwrap();
        index.tidy().unwrap();
    }
}

fn value(index: &IndexFile) -> Option<u32> {
    let value = index.tree("t").unwrap().get(b"key").unwrap();
    value.map(|value| u32::from_le_bytes(value.try_into().unwrap()))
}

/// A closed file in whose logs many commits were; the last number that was committed.
fn used() -> (Disk, u32) {
    let disk = Disk::default();
    let index = open(&disk).unwrap();
    commit_each(&index, 0..60);
    // Closing empties the active log, so twice leaves both with their commits of before.
    index.close().unwrap();
    let index = open(&disk).unwrap();
    commit_each(&index, 60..200);
    index.close().unwrap();
    (disk, 199)
}

fn descriptors(log: &[u8]) -> impl Iterator<Item = &[u8]> {
    let blocks = log.chunks(4096).skip(1);
    blocks.filter(|block| &block[8..16] == b"vmcbatch")
}

#[test]
fn a_log_grows_in_steps_and_not_with_each_commit_and_at_last_not_at_all() {
    let disk = Disk::default();
    let index = open(&disk).unwrap();
    let grown = || disk.extensions(1) + disk.extensions(2);
    let commits = 300;
    // Three blocks each: both logs are filled and used again.
    commit_each(&index, 0..commits);
    let filling = grown();
    assert!(
        (4..30).contains(&filling),
        "{filling} of {commits} commits made a log longer"
    );
    commit_each(&index, commits..4 * commits);
    assert_eq!(grown(), filling, "logs that were full once do not grow");
}

#[test]
fn of_a_log_that_is_used_again_only_the_commits_of_this_use_count() {
    let (closed, last) = used();
    for which in [1, 2] {
        let stale = descriptors(&closed.bytes(which)).count();
        assert!(stale > 20, "log {which} has {stale} batches of before");
    }
    for commits in 0..40 {
        let disk = closed.copy();
        let index = open(&disk).unwrap();
        // Batches as long as those of before: behind the last one a batch of before begins.
        commit_each(&index, 1000..1000 + commits);
        drop(index);
        let expected = if commits == 0 { last } else { 999 + commits };
        let index = open(&disk.after_cut(u64::from(commits))).unwrap();
        assert_eq!(value(&index), Some(expected), "after {commits} commits");
        assert_eq!(index.check().unwrap().pages_lost, 0);
    }
}

#[test]
fn without_the_headers_logs_go_on_with_a_generation_that_was_never_there() {
    let (disk, last) = used();
    let generations: Vec<Vec<u8>> = [1, 2]
        .into_iter()
        .flat_map(|which| {
            let log = disk.bytes(which);
            let stale: Vec<_> = descriptors(&log)
                .map(|block| block[BATCH_GENERATION].to_vec())
                .collect();
            stale
        })
        .collect();
    for damaged in [vec![1], vec![2], vec![1, 2]] {
        let disk = disk.copy();
        for &which in &damaged {
            disk.flip_byte(which, 100, 1);
        }
        let index = open(&disk).unwrap();
        assert_eq!(value(&index), Some(last), "headers {damaged:?}");
        drop(index);
        for which in [1, 2] {
            let generation = disk.bytes(which)[HEADER_GENERATION].to_vec();
            assert!(!generations.contains(&generation), "headers {damaged:?}");
        }
        assert_eq!(value(&open(&disk).unwrap()), Some(last));
    }
}

#[test]
fn a_medium_that_refuses_room_ahead_takes_commits_all_the_same() {
    for seed in 0..10 {
        let disk = Disk::default();
        let index = open(&disk).unwrap();
        let tree = index.tree("t").unwrap();
        disk.fail_writes(50, seed);
        let (mut committed, mut failed) = (0, 0);
        for number in 0..100_u32 {
            tree.set(b"key", &number.to_le_bytes()).unwrap();
            match index.commit() {
                Ok(()) => committed = number,
                Err(_) => failed += 1,
            }
        }
        assert!(
            failed > 10 && committed > 50,
            "seed {seed}: {failed} failed"
        );
        disk.fail_writes(0, seed);
        drop((index, tree));
        let found = value(&open(&disk.after_cut(seed)).unwrap());
        // What failed after the last commit may have happened.
        assert!(
            found >= Some(committed),
            "seed {seed}: {found:?}, committed {committed}"
        );
    }
}
