//! An index file whose every commit can be checked, for crash tests: `ledger run|check PATH [SEED]`.
//!
//! `run` goes on until it is killed. Between two commits it counts some counters up, whose values change
//! their length, and notes the number of the commit and the sum of all counters; after each commit it
//! says its number. `check` verifies the file, adds up, and says the last number, pages that are lost,
//! and how the file commits.

use std::io::Write;

use vmcache::{IndexFile, IndexOptions, Result, Tree};

/// More than the cache holds, so that pages leave memory before their commit.
const COUNTERS: u64 = 3000;

fn number(bytes: &[u8]) -> u64 {
    let head = bytes.first_chunk().copied().unwrap_or_default();
    u64::from_le_bytes(head)
}

fn value(count: u64, random: u64) -> Vec<u8> {
    let mut value = count.to_le_bytes().to_vec();
    value.resize(8 + random as usize % 700, count as u8);
    value
}

fn get(tree: &Tree, key: &[u8]) -> Result<u64> {
    Ok(tree.get(key)?.map_or(0, |bytes| number(&bytes)))
}

fn open(path: &str) -> Result<(IndexFile, Tree)> {
    let options = IndexOptions {
        cache_bytes: 64 * 4096,
        ..IndexOptions::default()
    };
    let index = IndexFile::open(path.as_ref(), options)?;
    let tree = index.tree("ledger")?;
    Ok((index, tree))
}

fn run(path: &str, seed: u64) -> Result<()> {
    let (index, tree) = open(path)?;
    let mut random = seed | 1;
    let (mut last, mut sum) = (get(&tree, b"last")?, get(&tree, b"sum")?);
    loop {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        for change in 0..random >> 20 & 0xff {
            let key = (random.rotate_left(change as u32) % COUNTERS).to_be_bytes();
            let count = get(&tree, &key)?;
            tree.set(&key, &value(count + 1, random >> (change % 40)))?;
            sum += 1;
        }
        last += 1;
        tree.set(b"last", &last.to_le_bytes())?;
        tree.set(b"sum", &sum.to_le_bytes())?;
        index.commit()?;
        println!("{last}");
        std::io::stdout().flush().expect("somebody listens");
    }
}

fn check(path: &str) -> Result<()> {
    let (index, tree) = open(path)?;
    let report = index.check()?;
    let (mut sum, mut noted, mut last) = (0, 0, 0);
    for entry in tree.iter() {
        match entry? {
            (key, value) if key == b"sum" => noted = number(&value),
            (key, value) if key == b"last" => last = number(&value),
            (_, value) => sum += number(&value),
        }
    }
    assert_eq!(sum, noted, "the counters are those of another commit");
    println!("{last} {} {}", report.pages_lost, index.commits_by());
    Ok(())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[1..] {
        ["run", path, seed] => run(path, seed.parse().expect("a number")),
        ["check", path] => check(path),
        _ => panic!("usage: ledger run PATH SEED | ledger check PATH"),
    }
}
