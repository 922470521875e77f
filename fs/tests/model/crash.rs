//! Power cuts. After any of them the filesystem must be exactly what it was after some prefix of the
//! operations, never a shorter one than the last completed sync, and usable.
//!
//! Every second seed is on a device whose durable writes need no flush. One test cuts a fixed workload at every operation of the device, and during it, with everything,
//! nothing and chosen blocks of what was not flushed surviving; the other generates workloads with
//! cuts in them and goes on after each.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use warren_fs::fsck;
use warren_fs::types::Ino;
use warren_fs::volume::Volume;
use warren_fs::volume::types::Caller;
use zns_backend::{CrashPoint, FaultDevice, MemDevice, Survival, WriteLog, ZonedDevice};

use crate::reference::Reference;
use crate::reference::device::geometry;
use crate::reference::digest::{self, Tree};
use crate::reference::driver::{Pair, Trouble, store_options};
use crate::reference::generate::{Generator, Mix};
use crate::reference::minimise::{self, Failure, setting};
use crate::reference::ops::Op;

pub(crate) fn faulty(mib: u32) -> FaultDevice {
    let memory = MemDevice::new(geometry(mib)).expect("the geometry is possible");
    FaultDevice::new(memory).expect("a fresh device can be read")
}

fn hash_of(tree: &Tree) -> u64 {
    let mut hasher = DefaultHasher::new();
    tree.hash(&mut hasher);
    hasher.finish()
}

/// A workload, and what is known of it: state `n` is the one after `n` operations.
struct Recording {
    log: WriteLog,
    states: Vec<Reference>,
    hashes: Vec<u64>,
    /// Length of the device's log when operation `n` began.
    began: Vec<usize>,
    /// From this length of the log on, at least this state survives.
    promises: Vec<(usize, usize)>,
}

impl Recording {
    /// Runs `count` generated operations.
    fn make(seed: u64, count: usize, mix: Mix) -> Recording {
        // Every second workload on a device whose durable writes need no flush.
        let mut device = faulty(96);
        if seed.is_multiple_of(2) {
            device = device.with_durable_writes();
        }
        let mut pair =
            Pair::format(Arc::new(device.clone())).expect("a fresh device can be formatted");
        let mut generator = Generator::new(seed, mix);
        let mut recording = Recording {
            states: vec![pair.reference.clone()],
            hashes: Vec::new(),
            began: Vec::new(),
            promises: vec![(device.log().len(), 0)],
            log: device.log(),
        };
        for turn in 0..count {
            let op = generator.next(&pair.reference);
            recording.began.push(device.log().len());
            if let Err(trouble) = pair.apply(&op) {
                panic!("WARREN_SEED={seed}: operation {turn}, {op:?}: {trouble:?}");
            }
            recording.states.push(pair.reference.clone());
            recording.promise(&pair, &op, turn, device.log().len());
        }
        recording.hashes = recording
            .states
            .iter()
            .map(|state| hash_of(&digest::of_reference(state)))
            .collect();
        recording.log = device.log();
        recording
    }

    /// Notes what the completed operation `turn` promises.
    fn promise(&mut self, pair: &Pair, op: &Op, turn: usize, log_len: usize) {
        let state = match op {
            Op::Sync | Op::Remount => turn + 1,
            Op::Fsync { target } => match pair.find(target) {
                Ok(Some(both)) => self.last_change(both.0),
                _ => return,
            },
            _ => return,
        };
        self.promises.push((log_len, state));
    }

    /// The first state in which `ino` is as it is now.
    fn last_change(&self, ino: u64) -> usize {
        let now = self.states.last().and_then(|state| state.node(ino).ok());
        let as_now = |state: &Reference| match (now, state.node(ino)) {
            (Some(now), Ok(then)) => now.same_as(then),
            _ => false,
        };
        let differs = self.states.iter().rposition(|state| !as_now(state));
        differs.map_or(0, |state| state + 1)
    }

    /// States a cut after `completed` operations of the device may leave.
    fn possible(&self, completed: usize) -> std::ops::RangeInclusive<usize> {
        let kept = self.promises.iter().filter(|(len, _)| *len <= completed);
        let least = kept.map(|(_, state)| *state).max().unwrap_or(0);
        let most = self.began.iter().filter(|len| **len <= completed).count();
        least..=most
    }

    /// Cuts the power at `cut` and checks what is found then.
    fn check(
        &self,
        cut: CrashPoint,
        completed: usize,
        survival: Survival,
        use_it: bool,
    ) -> Result<(), String> {
        let device = self
            .log
            .device_after(cut, survival)
            .map_err(|e| e.to_string())?;
        let device: Arc<dyn ZonedDevice> = Arc::new(device);
        consistent(&device)?;
        let volume =
            Volume::open(Arc::clone(&device), &store_options()).map_err(|e| e.to_string())?;
        let tree = digest::of_volume(&volume).map_err(|e| format!("{e:?}"))?;
        let (found, possible) = (hash_of(&tree), self.possible(completed));
        if !possible.clone().any(|state| self.hashes[state] == found) {
            return Err(self.explain(&tree, found, possible));
        }
        if use_it {
            still_usable(volume, device)?;
        }
        Ok(())
    }

    fn explain(
        &self,
        tree: &Tree,
        found: u64,
        possible: std::ops::RangeInclusive<usize>,
    ) -> String {
        if let Some(state) = self.hashes.iter().position(|hash| *hash == found) {
            return format!("state {state} was found, possible are {possible:?}");
        }
        let nearest = possible.clone().map(|state| {
            let want = digest::of_reference(&self.states[state]);
            let differences = digest::differences(&want, tree);
            (differences.len(), state, differences)
        });
        let (_, state, differences) = nearest.min().unwrap_or_default();
        format!("no prefix was found (possible {possible:?}); nearest is {state}:\n{differences}")
    }
}

/// Nothing is wrong with what the cut left, down to the last block of data.
fn consistent(device: &Arc<dyn ZonedDevice>) -> Result<(), String> {
    let report = fsck::check(Arc::clone(device), true, &|_, _| {})
        .map_err(|e| format!("cannot be checked: {e}"))?;
    match report.errors.as_slice() {
        [] => Ok(()),
        errors => Err(format!("fsck: {}", errors.join("; "))),
    }
}

/// Makes a file, syncs it, mounts again and finds it.
fn still_usable(volume: Volume, device: Arc<dyn ZonedDevice>) -> Result<(), String> {
    let caller = Caller {
        uid: 0,
        gid: 0,
        pid: 1,
        umask: 0,
    };
    let (name, data) = (b"after the crash", vec![7; 50_000]);
    let work = |volume: &Volume| -> warren_fs::Result<()> {
        let made = volume.mknod(&caller, Ino::ROOT, name, libc::S_IFREG | 0o644, 0)?;
        volume.write(made.ino, 0, &data, false, None)?;
        volume.fsync(made.ino)
    };
    work(&volume).map_err(|e| format!("not usable: {e}"))?;
    // The daemon dies here, without a close.
    drop(volume);
    let again =
        Volume::open(device, &store_options()).map_err(|e| format!("not mountable again: {e}"))?;
    let mut out = Vec::new();
    let find = |out: &mut Vec<u8>| {
        let found = again.lookup(Ino::ROOT, name)?;
        again.read(found.ino, 0, data.len(), out)
    };
    find(&mut out).map_err(|e| format!("what was synced after the crash is lost: {e}"))?;
    if out != data {
        return Err("what was synced after the crash is wrong".to_owned());
    }
    Ok(())
}

/// Cuts a recording everywhere.
fn cut_everywhere(seed: u64, recording: &Recording) {
    let first = recording.promises[0].0;
    let last = recording.log.len();
    let next = AtomicUsize::new(first);
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let completed = next.fetch_add(1, Ordering::Relaxed);
                    if completed > last {
                        return;
                    }
                    cut_at(seed, recording, completed);
                }
            });
        }
    });
}

fn cut_at(seed: u64, recording: &Recording, completed: usize) {
    let chosen = Survival::Seeded(seed ^ completed as u64);
    let after = CrashPoint::after(completed);
    let mut cuts = vec![
        (after, Survival::All),
        (after, Survival::None),
        (after, chosen),
    ];
    if completed < recording.log.len() {
        cuts.push((CrashPoint::during(completed), chosen));
        cuts.push((
            CrashPoint::during(completed),
            Survival::Seeded(!seed ^ completed as u64),
        ));
    }
    for (turn, (cut, survival)) in cuts.into_iter().enumerate() {
        let use_it = (completed + turn).is_multiple_of(5);
        if let Err(problem) = recording.check(cut, completed, survival, use_it) {
            panic!(
                "WARREN_SEED={seed}: {cut:?} of {}, {survival:?}: {problem}",
                recording.log.len()
            );
        }
    }
}

/// Many small changes with syncs among them, and all kinds of upkeep.
pub(crate) const CRASH_MIX: Mix = Mix {
    write_max: 60_000,
    large_every: 10,
    sparse: true,
    upkeep_every: 12,
    crash_every: 0,
    compare_every: 0,
};

#[test]
fn a_power_cut_at_any_device_operation_leaves_a_prefix_and_all_that_was_synced() {
    let first = setting("WARREN_SEED", 1);
    for seed in first..first + 8 {
        let recording = Recording::make(seed, setting("WARREN_OPS", 400) as usize, CRASH_MIX);
        cut_everywhere(seed, &recording);
    }
}

/// A pair on a device whose power can be cut, and the states that a cut may go back to.
struct Crashing {
    pair: Pair,
    device: FaultDevice,
    since_sync: Vec<Reference>,
}

impl Crashing {
    fn new(durable_writes: bool) -> Crashing {
        let mut device = faulty(256);
        if durable_writes {
            device = device.with_durable_writes();
        }
        let pair = Pair::format(Arc::new(device.clone())).expect("a fresh device can be formatted");
        let since_sync = vec![pair.reference.clone()];
        Crashing {
            pair,
            device,
            since_sync,
        }
    }

    fn apply(&mut self, op: &Op) -> Result<(), Trouble> {
        if let Op::Crash { seed } = op {
            return self.crash(*seed);
        }
        self.pair.apply(op)?;
        if matches!(op, Op::Sync | Op::Remount) {
            self.since_sync.clear();
        }
        self.since_sync.push(self.pair.reference.clone());
        Ok(())
    }

    fn crash(&mut self, seed: u64) -> Result<(), Trouble> {
        let log = self.device.log();
        let left = log
            .device_after(CrashPoint::after(log.len()), Survival::Seeded(seed))
            .and_then(FaultDevice::new)
            .map_err(|e| Trouble::mismatch(e.to_string()))?;
        let left = match self.device.has_durable_writes() {
            true => left.with_durable_writes(),
            false => left,
        };
        let device: Arc<dyn ZonedDevice> = Arc::new(left.clone());
        let volume = Volume::open(Arc::clone(&device), &store_options())?;
        let found = digest::of_volume(&volume)?;
        let mut states = self.since_sync.iter().rev();
        let Some(state) = states.find(|state| digest::of_reference(state) == found) else {
            let newest = digest::of_reference(&self.pair.reference);
            let differences = digest::differences(&newest, &found);
            let said = format!(
                "no state since the last sync was found; against the newest:\n{differences}"
            );
            return Err(Trouble::mismatch(said));
        };
        self.pair = Pair::resume(device, volume, state.clone());
        self.device = left;
        self.since_sync = vec![self.pair.reference.clone()];
        Ok(())
    }
}

fn replay(ops: &[Op], durable_writes: bool) -> Result<(), Failure> {
    let mut crashing = Crashing::new(durable_writes);
    minimise::run(ops, |op| crashing.apply(op))
}

#[test]
fn generated_operations_go_on_after_power_cuts() {
    let mix = Mix {
        crash_every: 30,
        compare_every: 100,
        upkeep_every: 40,
        ..CRASH_MIX
    };
    let first = setting("WARREN_SEED", 301);
    for seed in first..first + 12 {
        let mut generator = Generator::new(seed, mix);
        let durable_writes = seed.is_multiple_of(2);
        let (mut crashing, mut ops) = (Crashing::new(durable_writes), Vec::new());
        for _ in 0..setting("WARREN_OPS", 1200) {
            let op = generator.next(&crashing.pair.reference);
            ops.push(op.clone());
            if let Err(failure) = minimise::run(&[op], |op| crashing.apply(op)) {
                let replay = |ops: &[Op]| replay(ops, durable_writes);
                panic!("{}", minimise::report(seed, ops, failure, replay));
            }
        }
    }
}
