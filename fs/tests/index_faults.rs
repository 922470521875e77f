//! Index files of vmcache on a mount whose device loses its power, or fails.
//!
//! The mount is a real one over a [`FaultDevice`], served by threads of this process. After any cut the
//! file must be exactly what it was after some commit: none before the last that had returned, none
//! after the last that had begun. Seeds are printed; `WARREN_SEED` repeats a run.
//!
//! Needs `/dev/fuse` and the right to mount; without them the tests say so and pass.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use tempfile::TempDir;
use vmcache::{CommitKind, IndexFile, IndexOptions, Tree};
use warren_fs::fsck;
use warren_fs::fuse::options::MountOptions;
use warren_fs::fuse::session;
use warren_fs::offload::{Offload, Options};
use warren_fs::store::{FormatOptions, Store, StoreOptions};
use warren_fs::volume::Volume;
use zns_backend::{
    CrashPoint, Fault, FaultDevice, Geometry, MemDevice, Survival, When, ZonedDevice,
};

/// Commits of a recorded workload.
const COMMITS: usize = 24;
/// Power cuts in it, at places that the seed determines.
const CUTS: usize = 20;
/// Keys there are; with their values more than the pool holds.
const KEYS: u64 = 1500;

fn can_mount() -> bool {
    let device = File::options().read(true).write(true).open("/dev/fuse");
    let can = device.is_ok() && nix::unistd::geteuid().is_root();
    if !can {
        eprintln!("SKIPPED: no /dev/fuse, or not root");
    }
    can
}

fn seed() -> u64 {
    let given = std::env::var("WARREN_SEED").ok();
    let seed = given.and_then(|text| text.parse().ok()).unwrap_or(0x1DE5);
    eprintln!("WARREN_SEED={seed}");
    seed
}

/// A device mounted in a directory of its own, by a thread that lives as long as the mount.
struct Mount {
    dir: PathBuf,
    daemon: Option<JoinHandle<()>>,
    _base: TempDir,
}

impl Mount {
    fn new(device: Arc<dyn ZonedDevice>) -> Mount {
        let base = TempDir::new().unwrap();
        let dir = base.path().to_path_buf();
        let (ready, mounted) = channel();
        let daemon = thread::spawn({
            let dir = dir.clone();
            move || {
                session::block_signals().unwrap();
                let volume = Volume::open(device, &StoreOptions::default()).unwrap();
                let volume = Arc::new(volume);
                let offload = Offload::new(Arc::clone(&volume), Options::default()).unwrap();
                let options = MountOptions::default();
                let mounted =
                    session::mount_volume(Arc::clone(&volume), &offload, "faulty", &dir, &options);
                let mounted = mounted.unwrap();
                ready.send(()).unwrap();
                mounted.serve().unwrap();
                offload.shutdown();
                // A store that has met a failed flush says so once more.
                if let Err(error) = volume.close() {
                    eprintln!("closing the volume: {error}");
                }
            }
        });
        mounted.recv().expect("the mount is ready");
        Mount {
            dir,
            daemon: Some(daemon),
            _base: base,
        }
    }

    fn index(&self) -> PathBuf {
        self.dir.join("index")
    }

    fn unmount(mut self) {
        // The kernel lets go of a file a moment after the last transfer of a ring has ended.
        let begun = Instant::now();
        while let Err(error) = umount2(&self.dir, MntFlags::empty()) {
            assert_eq!(error, Errno::EBUSY);
            assert!(begun.elapsed() < Duration::from_secs(10), "busy for ever");
            thread::sleep(Duration::from_millis(5));
        }
        let daemon = self.daemon.take().expect("mounted until now");
        daemon.join().expect("the daemon ended well");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            // A test has failed: whatever holds the mount is not waited for.
            let _ = umount2(&self.dir, MntFlags::MNT_DETACH);
            drop(daemon);
        }
    }
}

fn faulty() -> FaultDevice {
    let geometry = Geometry {
        block_size: 4096,
        zones: 96,
        zone_size: 512,
        zone_capacity: 512,
        max_open: 14,
        max_active: 14,
        max_append: 256,
    };
    let device = FaultDevice::new(MemDevice::new(geometry).unwrap()).unwrap();
    let shared: Arc<dyn ZonedDevice> = Arc::new(device.clone());
    Store::format(&shared, &FormatOptions::default()).unwrap();
    device
}

/// What an index file should hold: of each key how often it was written.
type State = BTreeMap<u64, u64>;

/// An index file, and what it holds.
struct Writer {
    index: IndexFile,
    tree: Tree,
    state: State,
    rng: ChaCha8Rng,
}

fn open(path: &Path, commits: CommitKind) -> vmcache::Result<(IndexFile, Tree)> {
    let options = IndexOptions {
        cache_bytes: 64 * 4096,
        log_bytes: 1 << 20,
        commits,
        ..IndexOptions::default()
    };
    let index = IndexFile::open(path, options)?;
    let tree = index.tree("counters")?;
    Ok((index, tree))
}

fn value(key: u64, count: u64) -> Vec<u8> {
    let len = 8 + (key * 31 + count * 97) as usize % 600;
    let mut value = count.to_le_bytes().to_vec();
    value.resize(len, (key ^ count) as u8);
    value
}

impl Writer {
    fn new(path: &Path, commits: CommitKind, seed: u64) -> Writer {
        let (index, tree) = open(path, commits).expect("the file can be made");
        let by = match commits {
            CommitKind::Automatic => "atomic writes",
            CommitKind::Journal => "journal",
        };
        assert!(index.commits_by().contains(by), "{}", index.commits_by());
        Writer {
            index,
            tree,
            state: State::new(),
            rng: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    /// Some changes; `state` has them whether they succeed or not.
    fn change(&mut self) -> vmcache::Result<()> {
        for _ in 0..20 + self.rng.next_u32() % 180 {
            let key = self.rng.next_u64() % KEYS;
            if self.rng.next_u32().is_multiple_of(5) {
                self.state.remove(&key);
                self.tree.remove(&key.to_be_bytes())?;
            } else {
                let count = self.state.get(&key).map_or(1, |count| count + 1);
                self.state.insert(key, count);
                self.tree.set(&key.to_be_bytes(), &value(key, count))?;
            }
        }
        Ok(())
    }

    fn change_and_commit(&mut self) -> vmcache::Result<()> {
        self.change()?;
        self.index.commit()
    }
}

/// What an index file holds; it is checked, and so is each value.
fn contents(path: &Path, commits: CommitKind) -> State {
    let (index, tree) = open(path, commits).expect("the file opens");
    index.check().expect("the file is sound");
    let mut state = State::new();
    for entry in tree.iter() {
        let (key, found) = entry.expect("an entry can be read");
        let key = u64::from_be_bytes(key.try_into().expect("a key of ours"));
        let count = u64::from_le_bytes(*found.first_chunk().expect("a value of ours"));
        assert_eq!(found, value(key, count), "the value of {key}");
        state.insert(key, count);
    }
    state
}

/// Which of the states it is, if it is one of those that may be.
fn find(found: &State, states: &[State], possible: RangeInclusive<usize>) -> Result<usize, String> {
    let is = states.iter().position(|state| state == found);
    match is.filter(|state| possible.contains(state)) {
        Some(state) => Ok(state),
        None => Err(format!("found state {is:?} instead of one of {possible:?}")),
    }
}

fn survives_power_cuts(commits: CommitKind) {
    let seed = seed();
    let device = faulty();
    let mount = Mount::new(Arc::new(device.clone()));
    let mut writer = Writer::new(&mount.index(), commits, seed);
    writer.index.commit().expect("the empty file is committed");
    let mut states = vec![State::new()];
    // Lengths of the device's log when each state's commit began, and when it had returned.
    let (mut began, mut returned) = (vec![0], vec![device.log().len()]);
    for _ in 0..COMMITS {
        began.push(device.log().len());
        writer.change_and_commit().expect("nothing fails");
        states.push(writer.state.clone());
        returned.push(device.log().len());
    }
    let log = device.log();
    drop(writer);
    mount.unmount();

    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 1);
    let mut seen = Vec::new();
    for cut in 0..CUTS {
        let first = returned[0];
        let at = first + rng.next_u64() as usize % (log.len() - first);
        let survival = match cut % 4 {
            0 => Survival::None,
            1 => Survival::All,
            _ => Survival::Seeded(rng.next_u64()),
        };
        let context = format!("WARREN_SEED={seed}, cut {cut} during operation {at}, {survival:?}");
        let left = log.device_after(CrashPoint::during(at), survival).unwrap();
        let left: Arc<dyn ZonedDevice> = Arc::new(left);
        let mount = Mount::new(Arc::clone(&left));
        let found = contents(&mount.index(), commits);
        mount.unmount();
        let least = returned.iter().rposition(|len| *len <= at).unwrap_or(0);
        let most = began.iter().rposition(|len| *len <= at).unwrap_or(0);
        match find(&found, &states, least..=most) {
            Ok(state) => seen.push(state),
            Err(problem) => panic!("{context}: {problem}"),
        }
        sound(&left, &context);
    }
    seen.sort_unstable();
    seen.dedup();
    assert!(
        seen.len() > CUTS / 4,
        "the cuts were all of a place: {seen:?}"
    );
}

fn sound(device: &Arc<dyn ZonedDevice>, context: &str) {
    let report = fsck::check(Arc::clone(device), true, &|_, _| {}).expect(context);
    assert!(report.errors.is_empty(), "{context}: {:?}", report.errors);
}

#[test]
fn an_index_file_that_commits_by_atomic_writes_is_at_a_commit_after_any_power_cut() {
    if can_mount() {
        survives_power_cuts(CommitKind::Automatic);
    }
}

#[test]
fn an_index_file_with_a_journal_is_at_a_commit_after_any_power_cut() {
    if can_mount() {
        survives_power_cuts(CommitKind::Journal);
    }
}

/// Has writes or flushes of the device fail in the middle of a workload.
fn survives_failures(commits: CommitKind, fault: Fault) {
    let seed = seed();
    let device = faulty();
    let mount = Mount::new(Arc::new(device.clone()));
    let mut writer = Writer::new(&mount.index(), commits, seed);
    let mut states = vec![State::new()];
    let mut last_returned = 0;
    for turn in 0..COMMITS {
        if turn == COMMITS / 2 {
            let (writes, _, flushes) = device.counts();
            let next = match fault {
                Fault::FailFlush => flushes,
                _ => writes,
            };
            device.inject(When::Nth(next), fault);
        }
        let outcome = writer.change_and_commit();
        states.push(writer.state.clone());
        match outcome {
            Ok(()) => last_returned = states.len() - 1,
            Err(_) => break,
        }
    }
    drop(writer);
    mount.unmount();
    device.clear_faults();

    let context = format!("WARREN_SEED={seed}, {fault:?}, {commits:?}");
    let device: Arc<dyn ZonedDevice> = Arc::new(device);
    let mount = Mount::new(Arc::clone(&device));
    let found = contents(&mount.index(), commits);
    mount.unmount();
    let possible = last_returned..=states.len() - 1;
    find(&found, &states, possible).unwrap_or_else(|problem| panic!("{context}: {problem}"));
    sound(&device, &context);
    if fault == Fault::FailFlush {
        assert!(last_returned < COMMITS, "{context}: nothing was refused");
    } else {
        assert_eq!(last_returned, COMMITS, "{context}: writes go elsewhere");
    }
}

#[test]
fn an_index_file_goes_on_when_a_write_of_the_device_fails() {
    if can_mount() {
        for commits in [CommitKind::Automatic, CommitKind::Journal] {
            survives_failures(commits, Fault::FailWrite);
            survives_failures(commits, Fault::TearWrite { blocks: 1 });
        }
    }
}

#[test]
fn an_index_file_says_that_a_flush_of_the_device_failed_and_reopens_at_a_commit() {
    if can_mount() {
        for commits in [CommitKind::Automatic, CommitKind::Journal] {
            survives_failures(commits, Fault::FailFlush);
        }
    }
}
