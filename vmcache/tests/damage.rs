//! Damaged files: an error that says so, never a panic, a hang or wrong data.

mod common;

use common::Disk;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use vmcache::{Error, IndexFile, IndexOptions, Journal, JournalOptions, PAGE_BYTES, Result};

const ENTRIES: u32 = 4000;

fn open(disk: &Disk) -> Result<IndexFile> {
    let options = IndexOptions {
        cache_bytes: 64 * 4096,
        file_bytes_max: 1 << 26,
        log_bytes: 1 << 20,
        ..IndexOptions::default()
    };
    let logs = [disk.file(1), disk.file(2)];
    let journal = Journal::open(
        disk.file(0),
        logs,
        JournalOptions {
            log_bytes: options.log_bytes,
        },
    )?;
    IndexFile::with_method(Arc::new(journal), options)
}

fn key(number: u32) -> Vec<u8> {
    format!("some/common/prefix/{number:06}").into_bytes()
}

fn value(number: u32) -> Vec<u8> {
    vec![
        number as u8;
        if number.is_multiple_of(500) {
            9000
        } else {
            20 + number as usize % 70
        }
    ]
}

/// A closed file of three levels, with overflow pages.
fn sound() -> Disk {
    let disk = Disk::default();
    let index = open(&disk).unwrap();
    let tree = index.tree("t").unwrap();
    for number in 0..ENTRIES {
        tree.set(
            &key(number * 7919 % ENTRIES),
            &value(number * 7919 % ENTRIES),
        )
        .unwrap();
    }
    drop(tree);
    index.close().unwrap();
    disk
}

/// Uses everything that there is; what is returned without error must be right unless `hostile`.
fn use_all(disk: &Disk, rng: &mut StdRng, hostile: bool) -> Result<()> {
    let index = open(disk)?;
    let tree = index.tree("t")?;
    let mut outcome = Ok(());
    for _ in 0..60 {
        let number = rng.random_range(0..ENTRIES);
        match tree.get(&key(number)) {
            Ok(found) => assert!(
                hostile || found == Some(value(number)),
                "wrong data for {number}"
            ),
            Err(error) => outcome = Err(error),
        }
    }
    for backward in [false, true] {
        let next = |range: &mut vmcache::Range| {
            if backward {
                range.next_back()
            } else {
                range.next()
            }
        };
        let mut range = tree.iter();
        let mut count = 0;
        while let Some(entry) = next(&mut range) {
            count += 1;
            match entry {
                Ok((found_key, found)) if !hostile => {
                    let number = if backward { ENTRIES - count } else { count - 1 };
                    assert!(
                        found_key == key(number) && found == value(number),
                        "wrong data for {number}"
                    );
                }
                Ok(_) => assert!(count < 1_000_000, "a scan without an end"),
                Err(error) => outcome = Err(error),
            }
        }
        assert!(hostile || outcome.is_err() || count == ENTRIES);
    }
    if let Err(error) = index.check() {
        outcome = Err(error);
    }
    for _ in 0..60 {
        let number = rng.random_range(0..ENTRIES);
        let changed = match rng.random_bool(0.5) {
            true => tree.set(&key(number), &value(number)),
            false => tree.remove(&key(number)),
        };
        if let Err(error) = changed {
            outcome = Err(error);
        }
    }
    index.commit()?;
    outcome
}

#[test]
fn any_flipped_bit_is_an_error_and_never_wrong_data() {
    let original = sound().bytes(0);
    let pages = original.len() / PAGE_BYTES;
    let mut refused = 0;
    for seed in 0..150 {
        let mut rng = StdRng::seed_from_u64(seed);
        let disk = Disk::default();
        disk.set_bytes(0, original.clone());
        let at = rng.random_range(0..pages) * PAGE_BYTES + rng.random_range(0..PAGE_BYTES);
        disk.flip_byte(0, at, 1 << rng.random_range(0..8));
        match use_all(&disk, &mut rng, false) {
            Ok(()) => {}
            Err(Error::Damaged { .. } | Error::Format(_)) => refused += 1,
            Err(other) => panic!("seed {seed}: {other}"),
        }
    }
    // Some pages are free, and their contents nobody's.
    assert!(refused > 100, "{refused} of 150 noticed");
}

#[test]
fn pages_with_forged_checksums_are_survived() {
    let original = sound().bytes(0);
    let pages = original.len() / PAGE_BYTES;
    for seed in 0..400 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut bytes = original.clone();
        for _ in 0..rng.random_range(1..4) {
            let page = rng.random_range(0..pages);
            let image = &mut bytes[page * PAGE_BYTES..][..PAGE_BYTES];
            forge(image, &original, &mut rng);
            image[8..16].copy_from_slice(&(page as u64).to_le_bytes());
            let crc = crc32c::crc32c(&image[4..]);
            image[..4].copy_from_slice(&crc.to_le_bytes());
        }
        let disk = Disk::default();
        disk.set_bytes(0, bytes);
        println!("seed {seed}");
        _ = use_all(&disk, &mut rng, true);
    }
}

fn forge(image: &mut [u8], original: &[u8], rng: &mut StdRng) {
    match rng.random_range(0..4) {
        // Header fields and slots, where lengths and offsets are.
        0 => {
            for _ in 0..rng.random_range(1..4) {
                image[rng.random_range(4..120)] = rng.random();
            }
        }
        1 => {
            for _ in 0..rng.random_range(1..50) {
                image[rng.random_range(4..PAGE_BYTES)] ^= 1 << rng.random_range(0..8);
            }
        }
        // Another page in its place.
        2 => {
            let other = rng.random_range(0..original.len() / PAGE_BYTES);
            image.copy_from_slice(&original[other * PAGE_BYTES..][..PAGE_BYTES]);
        }
        _ => rng.fill(image),
    }
}

#[test]
fn a_journal_of_another_file_or_with_a_part_missing_is_refused() {
    let disk = Disk::default();
    let index = open(&disk).unwrap();
    let tree = index.tree("t").unwrap();
    for number in 0..ENTRIES {
        tree.set(&key(number), &value(number)).unwrap();
        if number % 100 == 0 {
            index.commit().unwrap();
        }
    }
    index.commit().unwrap();
    drop((index, tree));
    let mixed = |file: &Disk, logs: [Option<&Disk>; 2]| {
        let mixed = Disk::default();
        mixed.set_bytes(0, file.bytes(0));
        for (which, log) in logs.into_iter().enumerate() {
            mixed.set_bytes(
                which + 1,
                log.map_or(Vec::new(), |log| log.bytes(which + 1)),
            );
        }
        open(&mixed).map(drop)
    };
    assert!(mixed(&disk, [Some(&disk), Some(&disk)]).is_ok());
    let other = sound();
    assert!(matches!(
        mixed(&other, [Some(&disk), Some(&disk)]),
        Err(Error::Format(_))
    ));
    // One of the logs has the commits that the other one follows on.
    let without = [
        mixed(&disk, [None, Some(&disk)]),
        mixed(&disk, [Some(&disk), None]),
    ];
    assert!(
        without
            .iter()
            .any(|opened| matches!(opened, Err(Error::Format(_)))),
        "{without:?}"
    );
}
