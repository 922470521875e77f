//! Power cuts at every write and sync, with everything after the last sync torn or lost at random: the
//! file reopens at the last commit, or at the one that was under way.

mod common;

use common::Disk;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::sync::Arc;
use vmcache::{
    AtomicWrites, CommitMethod, Error, IndexFile, IndexOptions, Journal, JournalOptions, Result,
    Tree,
};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// How commits are made; both leave a file that the other can go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Journal,
    Atomic,
}

const KINDS: [Kind; 2] = [Kind::Journal, Kind::Atomic];

fn open(disk: &Disk, kind: Kind, frames: usize) -> Result<IndexFile> {
    let options = IndexOptions {
        cache_bytes: frames * 4096,
        file_bytes_max: 1 << 30,
        log_bytes: 40 * 4096,
        ..IndexOptions::default()
    };
    let journal = || {
        let logs = [disk.file(1), disk.file(2)];
        let log_bytes = options.log_bytes;
        Journal::open(disk.file(0), logs, JournalOptions { log_bytes })
    };
    if kind == Kind::Journal {
        return IndexFile::with_method(Arc::new(journal()?), options);
    }
    let mut emptied = None;
    if !disk.bytes(1).is_empty() || !disk.bytes(2).is_empty() {
        let journal = emptied.insert(journal()?);
        journal.close()?;
    }
    let writes = AtomicWrites::open(disk.atomic_file(), emptied.as_ref())?;
    IndexFile::with_method(Arc::new(writes), options)
}

#[test]
fn a_commit_by_atomic_writes_writes_the_pages_that_changed_and_no_other() {
    let disk = Disk::default();
    let mut last = String::new();
    for round in 0..3 {
        let index = open(&disk, Kind::Atomic, 64).unwrap();
        let tree = index.tree("t").unwrap();
        tree.set(b"key", b"first").unwrap();
        index.commit().unwrap();
        for number in 0..10 {
            let before = disk.operations();
            last = format!("{round} {number}");
            tree.set(b"key", last.as_bytes()).unwrap();
            index.commit().unwrap();
            let operations = disk.operations() - before;
            assert_eq!(operations, 2, "one page, and the commit");
        }
        index.close().unwrap();
        // The journal, which counts commits, goes on from there.
        let index = open(&disk, Kind::Journal, 64).unwrap();
        let tree = index.tree("t").unwrap();
        assert_eq!(tree.get(b"key").unwrap().as_deref(), Some(last.as_bytes()));
        tree.set(b"other", last.as_bytes()).unwrap();
        index.close().unwrap();
    }
    let index = open(&disk, Kind::Atomic, 64).unwrap();
    let tree = index.tree("t").unwrap();
    for key in [&b"key"[..], b"other"] {
        assert_eq!(tree.get(key).unwrap().as_deref(), Some(last.as_bytes()));
    }
}

/// What the file may hold when it is opened again.
#[derive(Default)]
struct Expected {
    committed: Model,
    /// The state that a commit under way would establish.
    maybe: Option<Model>,
    /// The file was created.
    created: bool,
}

/// Random changes with commits in between, until something fails or `steps` are done.
fn run(
    disk: &Disk,
    kind: Kind,
    seed: u64,
    frames: usize,
    steps: u32,
    expected: &mut Expected,
) -> Result<()> {
    let mut rng = StdRng::seed_from_u64(seed);
    let index = open(disk, kind, frames)?;
    expected.created = true;
    let tree = index.tree("t")?;
    let mut model = expected.committed.clone();
    for _ in 0..steps {
        change(&tree, &mut model, &mut rng)?;
        match rng.random_range(0..40) {
            0..=3 => {
                expected.maybe = Some(model.clone());
                index.commit()?;
                expected.committed = model.clone();
                expected.maybe = None;
            }
            4 => index.tidy()?,
            _ => {}
        }
    }
    expected.maybe = Some(model.clone());
    index.close()?;
    expected.committed = model;
    expected.maybe = None;
    Ok(())
}

fn change(tree: &Tree, model: &mut Model, rng: &mut StdRng) -> Result<()> {
    let key = format!("key {:04}", rng.random_range(0..400)).into_bytes();
    if rng.random_bool(0.3) {
        tree.remove(&key)?;
        model.remove(&key);
        return Ok(());
    }
    let len = if rng.random_bool(0.05) {
        rng.random_range(0..20_000)
    } else {
        rng.random_range(0..500)
    };
    let value = vec![rng.random(); len];
    tree.set(&key, &value)?;
    model.insert(key, value);
    Ok(())
}

fn contents(index: &IndexFile) -> Model {
    index
        .tree("t")
        .unwrap()
        .iter()
        .collect::<Result<_>>()
        .unwrap()
}

/// Opens what a cut left, and compares.
fn verify(disk: &Disk, kind: Kind, expected: &Expected, context: &str) {
    let index = match open(disk, kind, 64) {
        Ok(index) => index,
        Err(error) => panic!("{context}: {error}"),
    };
    let report = index
        .check()
        .unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!(report.pages_lost, 0, "{context}: {report:?}");
    let found = contents(&index);
    assert!(
        found == expected.committed || Some(&found) == expected.maybe.as_ref(),
        "{context}: {} entries, committed {}, maybe {:?}",
        found.len(),
        expected.committed.len(),
        expected.maybe.as_ref().map(BTreeMap::len)
    );
}

#[test]
fn the_file_reopens_at_the_last_commit_after_a_power_cut_at_every_write() {
    for kind in KINDS {
        for (seed, frames) in [(1, 16), (2, 64), (3, 2000)] {
            cut_everywhere(kind, seed, frames, &Disk::default(), &Model::new());
        }
    }
}

#[test]
fn nor_does_a_power_cut_find_anything_of_an_earlier_use_in_the_logs() {
    let (disk, mut expected) = (Disk::default(), Expected::default());
    run(&disk, Kind::Journal, 4, 64, 300, &mut expected).unwrap();
    // Closed, with logs that are full of commits which are not current any more.
    assert!(stale_batches(&disk.bytes(1)) > 3 && stale_batches(&disk.bytes(2)) > 3);
    for kind in KINDS {
        cut_everywhere(kind, 5, 64, &disk, &expected.committed);
    }
}

/// Descriptors in a log that are not of its current generation.
fn stale_batches(log: &[u8]) -> usize {
    let generation = &log[24..32];
    let blocks = log.chunks(4096).skip(1);
    blocks
        .filter(|block| &block[8..16] == b"vmcbatch" && &block[16..24] != generation)
        .count()
}

/// Cuts the power in every operation of a run that begins with what `before` has.
fn cut_everywhere(kind: Kind, seed: u64, frames: usize, before: &Disk, entries: &Model) {
    let expected = || Expected {
        committed: entries.clone(),
        ..Expected::default()
    };
    let disk = before.copy();
    run(&disk, kind, seed, frames, 300, &mut expected()).unwrap();
    let operations = disk.operations();
    assert!(
        operations > 60,
        "{operations} operations are too few to be of interest"
    );
    for cut in 1..=operations {
        let disk = before.copy();
        disk.cut_after(cut);
        let mut expected = expected();
        assert!(run(&disk, kind, seed, frames, 300, &mut expected).is_err());
        let context = format!("{kind:?}, seed {seed}, cut at {cut} of {operations}");
        let disk = disk.after_cut(seed << 32 | cut);
        // Whoever opens it next need not commit as it was committed.
        let next = KINDS[cut as usize % 2];
        verify(&disk, next, &expected, &context);
    }
}

#[test]
fn a_power_cut_in_recovery_loses_nothing_either() {
    for seed in 0..120 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut disk = Disk::default();
        let mut expected = Expected::default();
        for round in 0..4 {
            let kinds = [0; 4].map(|_| KINDS[rng.random_range(0..2)]);
            disk.cut_after(rng.random_range(1..120));
            _ = run(&disk, kinds[0], seed * 10 + round, 24, 100, &mut expected);
            disk = disk.after_cut(rng.random());
            // Opening alone, cut as well.
            disk.cut_after(rng.random_range(1..12));
            let opened = open(&disk, kinds[1], 24);
            if let Ok(index) = opened {
                // The commit under way when the power went either happened or did not; now it is settled.
                let found = contents(&index);
                let context = format!("seed {seed}, round {round}");
                let maybe = expected.maybe.take();
                assert!(
                    found == expected.committed || Some(&found) == maybe.as_ref(),
                    "{context}"
                );
                expected.committed = found;
            }
            disk = disk.after_cut(rng.random());
            let context = format!("seed {seed}, round {round}, {kinds:?}");
            verify(&disk, kinds[2], &expected, &context);
            if let Some(maybe) = expected.maybe.take()
                && contents(&open(&disk, kinds[3], 24).unwrap()) == maybe
            {
                expected.committed = maybe;
            }
        }
    }
}

#[test]
fn a_bulk_load_survives_once_committed_and_leaves_nothing_before() {
    // More pages than are written at once, and than the pool has frames.
    const COUNT: u32 = 12_000;
    let entries = || (0..COUNT).map(|number| Ok((number.to_be_bytes(), [number as u8; 100])));
    let run = |disk: &Disk, kind| -> Result<()> {
        let index = open(disk, kind, 32)?;
        index.tree("t")?.bulk_load(entries())?;
        index.commit()?;
        index.close()
    };
    for kind in KINDS {
        let disk = Disk::default();
        run(&disk, kind).unwrap();
        let operations = disk.operations();
        for cut in (1..=operations)
            .rev()
            .take(60)
            .chain((1..operations).step_by(17))
        {
            let disk = Disk::default();
            disk.cut_after(cut);
            assert!(run(&disk, kind).is_err());
            let index = open(&disk.after_cut(cut), kind, 64).unwrap();
            assert_eq!(index.check().unwrap().pages_lost, 0);
            let found = contents(&index).len();
            assert!(
                found == 0 || found == COUNT as usize,
                "cut at {cut}: {found}"
            );
        }
    }
}

#[test]
fn a_commit_of_more_pages_than_are_kept_in_memory_is_there_whole_or_not_at_all() {
    const COUNT: u32 = 80_000;
    let before = Disk::default();
    let index = open(&before, Kind::Journal, 4000).unwrap();
    let entries = (0..COUNT).map(|number| Ok((number.to_be_bytes(), [0; 100])));
    index.tree("t").unwrap().bulk_load(entries).unwrap();
    index.close().unwrap();
    let run = |disk: &Disk, kind| -> Result<()> {
        let index = open(disk, kind, 4000)?;
        let tree = index.tree("t")?;
        for number in 0..COUNT {
            tree.set(&number.to_be_bytes(), &[1; 100])?;
        }
        index.commit()
    };
    for kind in KINDS {
        let disk = before.copy();
        run(&disk, kind).unwrap();
        for cut in 1..=disk.operations() {
            let disk = before.copy();
            disk.cut_after(cut);
            // The last operation is a part of opening or of the commit, whose outcome may be there already.
            _ = run(&disk, kind);
            let index = open(&disk.after_cut(cut), kind, 4000).unwrap();
            let tree = index.tree("t").unwrap();
            let value = |number: u32| tree.get(&number.to_be_bytes()).unwrap().unwrap()[0];
            let found = value(0);
            assert!(
                (0..COUNT).all(|number| value(number) == found),
                "{kind:?}, cut at {cut}"
            );
            assert_eq!(index.check().unwrap().pages_lost, 0);
        }
    }
}

#[test]
fn failed_writes_lose_nothing_and_the_next_commit_has_it_all() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let disk = Disk::default();
        let index = open(&disk, Kind::Journal, 24).unwrap();
        let tree = index.tree("t").unwrap();
        let (mut model, mut failures) = (Model::new(), 0);
        disk.fail_writes(30, seed);
        for step in 0..600 {
            // A change that failed did not happen; a change that is reported to have happened did.
            let before = model.clone();
            if let Err(error) = change(&tree, &mut model, &mut rng) {
                assert!(matches!(error, Error::Io { .. }), "seed {seed}: {error}");
                model = before;
                failures += 1;
            }
            if step % 10 == 0 && index.commit().is_err() {
                failures += 1;
            }
        }
        disk.fail_writes(0, seed);
        assert!(failures > 10, "seed {seed}: {failures} failures");
        assert_eq!(contents(&index), model, "seed {seed}");
        index.commit().unwrap();
        drop((index, tree));
        let expected = Expected {
            committed: model,
            ..Expected::default()
        };
        let context = format!("seed {seed}");
        verify(&disk.after_cut(seed), Kind::Journal, &expected, &context);
    }
}

#[test]
fn a_failed_write_of_a_session_costs_nothing_while_all_pages_are_in_memory() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let disk = Disk::default();
        let index = open(&disk, Kind::Atomic, 4000).unwrap();
        let tree = index.tree("t").unwrap();
        let (mut model, mut failures) = (Model::new(), 0);
        disk.fail_writes(10, seed);
        for step in 0..400 {
            change(&tree, &mut model, &mut rng).unwrap();
            if step % 10 == 0 && index.commit().is_err() {
                failures += 1;
            }
        }
        disk.fail_writes(0, seed);
        assert!(failures > 3, "seed {seed}: {failures} failures");
        index.commit().unwrap();
        assert_eq!(contents(&index), model, "seed {seed}");
        drop((index, tree));
        let expected = Expected {
            committed: model,
            ..Expected::default()
        };
        let context = format!("seed {seed}");
        verify(&disk.after_cut(seed), Kind::Atomic, &expected, &context);
    }
}

#[test]
fn a_failed_write_of_a_session_that_pages_were_evicted_to_ends_commits() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let disk = Disk::default();
        let index = open(&disk, Kind::Atomic, 16).unwrap();
        let tree = index.tree("t").unwrap();
        let mut model = Model::new();
        for _ in 0..300 {
            change(&tree, &mut model, &mut rng).unwrap();
        }
        index.commit().unwrap();
        let committed = model.clone();
        for _ in 0..100 {
            change(&tree, &mut model, &mut rng).unwrap();
        }
        disk.fail_writes(100, seed);
        let mut steps = 0..1000;
        let failed = steps.find_map(|_| change(&tree, &mut model.clone(), &mut rng).err());
        let failed = failed.or_else(|| index.commit().err());
        assert!(failed.is_some(), "seed {seed}");
        disk.fail_writes(0, seed);
        let refused = index.commit();
        assert!(
            matches!(refused, Err(Error::Latched(_))),
            "seed {seed}: {refused:?}"
        );
        drop((index, tree));
        let expected = Expected {
            committed,
            ..Expected::default()
        };
        let context = format!("seed {seed}");
        verify(&disk.after_cut(seed), Kind::Atomic, &expected, &context);
    }
}
