//! Power cuts at every write and sync, with everything after the last sync torn or lost at random: the
//! file reopens at the last commit, or at the one that was under way.

mod common;

use common::Disk;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::sync::Arc;
use vmcache::{Error, IndexFile, IndexOptions, Journal, JournalOptions, Result, Tree};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn open(disk: &Disk, frames: usize) -> Result<IndexFile> {
    let options = IndexOptions {
        cache_bytes: frames * 4096,
        file_bytes_max: 1 << 30,
        log_bytes: 40 * 4096,
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
fn run(disk: &Disk, seed: u64, frames: usize, steps: u32, expected: &mut Expected) -> Result<()> {
    let mut rng = StdRng::seed_from_u64(seed);
    let index = open(disk, frames)?;
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
fn verify(disk: &Disk, expected: &Expected, context: &str) {
    let index = match open(disk, 64) {
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
    for (seed, frames) in [(1, 16), (2, 64), (3, 2000)] {
        let disk = Disk::default();
        run(&disk, seed, frames, 300, &mut Expected::default()).unwrap();
        let operations = disk.operations();
        assert!(
            operations > 60,
            "{operations} operations are too few to be of interest"
        );
        for cut in 1..=operations {
            let disk = Disk::default();
            disk.cut_after(cut);
            let mut expected = Expected::default();
            assert!(run(&disk, seed, frames, 300, &mut expected).is_err());
            let context = format!("seed {seed}, cut at {cut} of {operations}");
            let disk = disk.after_cut(seed << 32 | cut);
            verify(&disk, &expected, &context);
        }
    }
}

#[test]
fn a_power_cut_in_recovery_loses_nothing_either() {
    for seed in 0..120 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut disk = Disk::default();
        let mut expected = Expected::default();
        for round in 0..4 {
            disk.cut_after(rng.random_range(1..120));
            _ = run(&disk, seed * 10 + round, 24, 100, &mut expected);
            disk = disk.after_cut(rng.random());
            // Opening alone, cut as well.
            disk.cut_after(rng.random_range(1..12));
            let opened = open(&disk, 24);
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
            verify(&disk, &expected, &format!("seed {seed}, round {round}"));
            if let Some(maybe) = expected.maybe.take()
                && contents(&open(&disk, 24).unwrap()) == maybe
            {
                expected.committed = maybe;
            }
        }
    }
}

#[test]
fn a_bulk_load_survives_once_committed_and_leaves_nothing_before() {
    let entries = || (0..3000_u32).map(|number| Ok((number.to_be_bytes(), [number as u8; 100])));
    let run = |disk: &Disk| -> Result<()> {
        let index = open(disk, 32)?;
        index.tree("t")?.bulk_load(entries())?;
        index.commit()?;
        index.close()
    };
    let disk = Disk::default();
    run(&disk).unwrap();
    let operations = disk.operations();
    for cut in (1..=operations)
        .rev()
        .take(60)
        .chain((1..operations).step_by(17))
    {
        let disk = Disk::default();
        disk.cut_after(cut);
        assert!(run(&disk).is_err());
        let index = open(&disk.after_cut(cut), 64).unwrap();
        assert_eq!(index.check().unwrap().pages_lost, 0);
        let found = contents(&index).len();
        assert!(found == 0 || found == 3000, "cut at {cut}: {found}");
    }
}

#[test]
fn failed_writes_lose_nothing_and_the_next_commit_has_it_all() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let disk = Disk::default();
        let index = open(&disk, 24).unwrap();
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
        verify(&disk.after_cut(seed), &expected, &format!("seed {seed}"));
    }
}
