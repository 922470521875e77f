//! The key-value store on real files: handles, closing, and a process killed at any moment.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use vmcache::{CommitKind, IndexFile, IndexOptions, Kv, WriteBatch};

const SMALL: IndexOptions = IndexOptions {
    cache_bytes: 64 * 4096,
    file_bytes_max: 1 << 30,
    log_bytes: 256 << 10,
    commits: CommitKind::Automatic,
};

const fn is_send_and_sync<T: Send + Sync>() {}
const _: () = is_send_and_sync::<Kv>();
const _: () = is_send_and_sync::<IndexFile>();
const _: () = is_send_and_sync::<vmcache::Tree>();
const _: () = is_send_and_sync::<vmcache::Range>();

#[test]
fn the_last_handle_to_go_commits_and_closes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let kv = Kv::open(&path, SMALL).unwrap();
    std::thread::scope(|scope| {
        for worker in 0..4_u32 {
            let kv = kv.clone();
            scope.spawn(move || {
                for number in 0..500_u32 {
                    kv.set(&(number * 4 + worker).to_be_bytes(), &[worker as u8; 200])
                        .unwrap();
                    if number % 50 == 0 {
                        kv.commit().unwrap();
                    }
                }
            });
        }
    });
    assert!(Kv::open(&path, SMALL).is_err(), "the file is in use");
    drop(kv);
    let kv = Kv::open(&path, SMALL).unwrap();
    assert_eq!(kv.scan::<&[u8]>(..).count(), 2000);
    assert_eq!(
        kv.scan(100_u32.to_be_bytes()..=200_u32.to_be_bytes())
            .rev()
            .count(),
        101
    );
    assert!(kv.remove(&7_u32.to_be_bytes()).unwrap() && !kv.remove(&7_u32.to_be_bytes()).unwrap());
    assert_eq!(kv.check().unwrap().trees[0].1.entries, 1999);
    kv.close().unwrap();
    // Closing left everything in the file itself: it needs its journal no more.
    for which in 0..2 {
        std::fs::remove_file(dir.path().join(format!("store-journal-{which}"))).unwrap();
    }
    assert_eq!(
        Kv::open(&path, SMALL).unwrap().scan::<&[u8]>(..).count(),
        1999
    );
}

#[test]
fn trees_of_a_file_are_independent_and_committed_together() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let index = IndexFile::open(&path, SMALL).unwrap();
    for number in 0..20_u8 {
        let tree = index.tree(&format!("tree {number}")).unwrap();
        tree.set(b"name", &[number]).unwrap();
    }
    assert!(index.tree("").is_err() && index.tree(&"x".repeat(48)).is_err());
    index.commit().unwrap();
    index.tree("tree 3").unwrap().set(b"name", b"lost").unwrap();
    drop(index);
    let index = IndexFile::open(&path, SMALL).unwrap();
    for number in 0..20_u8 {
        let tree = index.tree(&format!("tree {number}")).unwrap();
        assert_eq!(tree.get(b"name").unwrap(), Some(vec![number]));
    }
    assert_eq!(index.tree_names().len(), 20);
    assert_eq!(index.check().unwrap().pages_lost, 0);
}

/// Set in the process that is to be killed.
const VICTIM: &str = "VMCACHE_TEST_VICTIM";
/// Keys that every batch changes.
const BATCH: u32 = 40;

/// Not a test by itself: commits batch after batch until it is killed, telling after each.
#[test]
fn victim() {
    let Ok(path) = std::env::var(VICTIM) else {
        return;
    };
    let kv = Kv::open(Path::new(&path), SMALL).unwrap();
    let first = round_of(&kv).unwrap_or(0) + 1;
    for round in first.. {
        let mut batch = WriteBatch::new();
        for key in 0..BATCH {
            let len = if key == 7 {
                10_000
            } else {
                (round * 31 + key) as usize % 700 + 4
            };
            let mut value = vec![key as u8; len];
            value[..4].copy_from_slice(&round.to_le_bytes());
            batch.set(key.to_be_bytes(), value);
        }
        kv.apply(&batch).unwrap();
        kv.commit().unwrap();
        println!("\ncommitted {round}");
    }
}

/// The round of which the store has the batch, all of it.
fn round_of(kv: &Kv) -> Option<u32> {
    let round = |value: &[u8]| u32::from_le_bytes(value[..4].try_into().unwrap());
    let rounds: Vec<_> = (0..BATCH)
        .filter_map(|key| {
            kv.get(&key.to_be_bytes())
                .unwrap()
                .map(|value| round(&value))
        })
        .collect();
    assert!(
        rounds.is_empty() || rounds.len() == BATCH as usize,
        "a part of a batch"
    );
    assert!(
        rounds.windows(2).all(|pair| pair[0] == pair[1]),
        "parts of batches: {rounds:?}"
    );
    rounds.first().copied()
}

#[test]
fn a_killed_process_loses_no_commit_and_no_part_of_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let mut last = 0;
    for kill in 0..8_u64 {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--nocapture"])
            .env(VICTIM, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(victim.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let committed = |line: String| {
            line.strip_prefix("committed ")
                .and_then(|round| round.parse().ok())
        };
        last = lines
            .by_ref()
            .find_map(committed)
            .expect("the victim commits");
        std::thread::sleep(Duration::from_millis(40 + kill * 23));
        victim.kill().unwrap();
        victim.wait().unwrap();
        last = lines.filter_map(committed).last().unwrap_or(last);
        let kv = Kv::open(&path, SMALL).unwrap();
        let found: u32 = round_of(&kv).expect("something was committed");
        assert!(
            found == last || found == last + 1,
            "kill {kill}: {found} after {last} was committed"
        );
        assert_eq!(kv.check().unwrap().pages_lost, 0);
        kv.close().unwrap();
    }
    assert!(last > 20, "{last} commits are too few to be of interest");
}
