//! Runs a load in threads and measures each operation.
//!
//! The clock is read once per operation: an operation's time is that since the end of the one before, so
//! that drawing the operation is part of it, some tens of nanoseconds for every store alike.

use crate::mix::{Kind, Mix, Workload};
use crate::random::Random;
use crate::records::Records;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Condvar, Mutex, PoisonError};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

/// Longest time that the histograms tell, in nanoseconds.
const LATENCY_NS_MAX: u64 = 100_000_000_000;

/// What a store, or a check of it, failed with.
pub type Problem = Box<dyn std::error::Error + Send + Sync>;

/// A key-value store under load, from many threads at once.
pub trait Store: Sync {
    /// Replaces `out` by the value of `key`; false if there is none.
    ///
    /// # Errors
    /// Of the store.
    fn read(&self, key: &[u8], out: &mut Vec<u8>) -> Result<bool, Problem>;

    /// Sets the value of `key`, durably if the store is so set.
    ///
    /// # Errors
    /// Of the store.
    fn write(&self, key: &[u8], value: &[u8]) -> Result<(), Problem>;

    /// Calls `visit` with up to `count` entries from `from` on, in the order of their keys.
    ///
    /// # Errors
    /// Of the store.
    fn scan(
        &self,
        from: &[u8],
        count: usize,
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<(), Problem>;

    /// Makes durable what was written, where [`Store::write`] did not.
    ///
    /// # Errors
    /// Of the store.
    fn sync(&self) -> Result<(), Problem>;
}

/// When a run ends.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// After so many operations.
    Operations(u64),
    /// After this time.
    Elapsed(Duration),
}

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The load.
    pub workload: Workload,
    /// Records of the store.
    pub records: Records,
    /// Of them, those that earlier runs inserted.
    pub inserted: u64,
    /// Threads, at least one.
    pub threads: usize,
    /// When it ends.
    pub until: Until,
    /// Determines the operations.
    pub seed: u64,
    /// Calls [`Store::sync`] this often, from a thread of its own.
    pub sync_every: Option<Duration>,
}

/// Times of operations.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// Operations.
    pub operations: u64,
    /// Median, microseconds.
    pub p50_us: f64,
    /// 99th percentile, microseconds.
    pub p99_us: f64,
    /// Longest, microseconds.
    pub max_us: f64,
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct Report {
    /// From the first operation to the end of the last.
    pub seconds: f64,
    /// All operations.
    pub all: Latency,
    /// Those of each kind.
    pub kinds: Vec<(Kind, Latency)>,
    /// Records inserted by this run and those before.
    pub inserted: u64,
    /// Entries that scans returned.
    pub scanned: u64,
}

impl Latency {
    fn of(times: &Histogram<u64>) -> Latency {
        let us = |ns: u64| ns as f64 / 1e3;
        Latency {
            operations: times.len(),
            p50_us: us(times.value_at_quantile(0.5)),
            p99_us: us(times.value_at_quantile(0.99)),
            max_us: us(times.max()),
        }
    }
}

/// What one thread measured.
#[derive(Default)]
struct Times {
    kinds: BTreeMap<Kind, Histogram<u64>>,
    scanned: u64,
}

/// What the threads share.
struct Shared<'r, S: ?Sized> {
    store: &'r S,
    plan: &'r Plan,
    /// Number of the next record to insert.
    next: AtomicU64,
    /// One of them failed.
    stop: AtomicBool,
    begun: Barrier,
}

/// Runs a load.
///
/// # Errors
/// Of the store; a value that is not there or another record's.
pub fn run<S: Store + ?Sized>(store: &S, plan: &Plan) -> Result<Report, Problem> {
    let shared = &Shared {
        store,
        plan,
        next: AtomicU64::new(plan.records.loaded + plan.inserted),
        stop: AtomicBool::new(false),
        begun: Barrier::new(plan.threads + 1),
    };
    let ended = &(Mutex::new(false), Condvar::new());
    let (times, seconds) = std::thread::scope(|scope| {
        let syncing = plan
            .sync_every
            .map(|every| scope.spawn(move || sync_regularly(store, every, ended)));
        let workers: Vec<_> = (0..plan.threads as u64)
            .map(|thread| scope.spawn(move || shared.work(thread)))
            .collect();
        shared.begun.wait();
        let begun = Instant::now();
        let times: Vec<_> = workers.into_iter().map(outcome).collect();
        let seconds = begun.elapsed().as_secs_f64();
        *ended.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        ended.1.notify_all();
        syncing.map_or(Ok(()), outcome)?;
        let times = times.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok::<_, Problem>((times, seconds))
    })?;
    let inserted = shared.next.load(Ordering::Relaxed) - plan.records.loaded;
    Ok(report(&times, seconds, inserted))
}

fn outcome<T>(thread: ScopedJoinHandle<'_, Result<T, Problem>>) -> Result<T, Problem> {
    let joined = thread.join();
    joined.unwrap_or_else(|_| Err("a thread of the load panicked".into()))
}

/// Syncs until the run has ended.
fn sync_regularly<S: Store + ?Sized>(
    store: &S,
    every: Duration,
    (ended, changed): &(Mutex<bool>, Condvar),
) -> Result<(), Problem> {
    let mut guard = ended.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let waited = changed.wait_timeout_while(guard, every, |ended| !*ended);
        guard = waited.unwrap_or_else(PoisonError::into_inner).0;
        if *guard {
            return Ok(());
        }
        drop(guard);
        store.sync()?;
        guard = ended.lock().unwrap_or_else(PoisonError::into_inner);
    }
}

fn report(threads: &[Times], seconds: f64, inserted: u64) -> Report {
    let mut all = histogram();
    let mut kinds: BTreeMap<Kind, Histogram<u64>> = BTreeMap::new();
    for (&kind, times) in threads.iter().flat_map(|thread| &thread.kinds) {
        *kinds.entry(kind).or_insert_with(histogram) += times;
        all += times;
    }
    let kinds = kinds
        .iter()
        .map(|(&kind, times)| (kind, Latency::of(times)));
    Report {
        seconds,
        all: Latency::of(&all),
        kinds: kinds.collect(),
        inserted,
        scanned: threads.iter().map(|thread| thread.scanned).sum(),
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(LATENCY_NS_MAX, 3).expect("the bounds make sense")
}

impl<S: Store + ?Sized> Shared<'_, S> {
    /// One thread of the load.
    fn work(&self, thread: u64) -> Result<Times, Problem> {
        let threads = self.plan.threads as u64;
        let (operations, time) = match self.plan.until {
            Until::Operations(all) => (all / threads + u64::from(thread < all % threads), None),
            Until::Elapsed(time) => (u64::MAX, Some(time)),
        };
        let mix = Mix::new(self.plan.workload, self.plan.records.loaded);
        let mut client = Client {
            shared: self,
            random: Random::new(self.plan.seed, thread),
            mix,
            value: Vec::new(),
            scanned: 0,
        };
        let mut times = Times::default();
        self.begun.wait();
        let begun = Instant::now();
        let mut last = begun;
        for _ in 0..operations {
            let late = time.is_some_and(|time| last.duration_since(begun) >= time);
            if late || self.stop.load(Ordering::Relaxed) {
                break;
            }
            let kind = client.mix.kind(&mut client.random);
            if let Err(problem) = client.operate(kind) {
                self.stop.store(true, Ordering::Relaxed);
                return Err(problem);
            }
            let now = Instant::now();
            let taken = now.duration_since(last).as_nanos() as u64;
            let times = times.kinds.entry(kind).or_insert_with(histogram);
            times.saturating_record(taken);
            last = now;
        }
        times.scanned = client.scanned;
        Ok(times)
    }
}

/// A thread's access to the store.
struct Client<'s, 'r, S: ?Sized> {
    shared: &'s Shared<'r, S>,
    random: Random,
    mix: Mix,
    value: Vec<u8>,
    scanned: u64,
}

impl<S: Store + ?Sized> Client<'_, '_, S> {
    fn operate(&mut self, kind: Kind) -> Result<(), Problem> {
        if kind == Kind::Insert {
            let record = self.shared.next.fetch_add(1, Ordering::Relaxed);
            return self.write(record);
        }
        let plan = self.shared.plan;
        // Each thread may have one that it is inserting.
        let begun = self.shared.next.load(Ordering::Relaxed);
        let present = begun.saturating_sub(plan.threads as u64);
        let present = present.max(plan.records.loaded);
        let record = self.mix.record(&mut self.random, present);
        match kind {
            Kind::Read => self.read(record),
            Kind::Update | Kind::Insert => self.write(record),
            Kind::ReadModifyWrite => self.read(record).and_then(|()| self.write(record)),
            Kind::Scan => self.scan(record),
        }
    }

    fn read(&mut self, record: u64) -> Result<(), Problem> {
        let Shared { store, plan, .. } = self.shared;
        let found = store.read(&plan.records.key(record), &mut self.value)?;
        // A record that another thread took long to insert may not be there yet.
        let may_miss = record >= plan.records.loaded + plan.inserted;
        match found {
            true if plan.records.is_value_of(record, &self.value) => Ok(()),
            true => Err(format!("record {record} has another value").into()),
            false if may_miss => Ok(()),
            false => Err(format!("record {record} is not there").into()),
        }
    }

    fn write(&mut self, record: u64) -> Result<(), Problem> {
        let Shared { store, plan, .. } = self.shared;
        let key = plan.records.key(record);
        plan.records.fill(record, &mut self.random, &mut self.value);
        store.write(&key, &self.value)
    }

    fn scan(&mut self, record: u64) -> Result<(), Problem> {
        let Shared { store, plan, .. } = self.shared;
        let mut from = plan.records.key(record);
        let (count, value_bytes) = (Mix::scan_length(&mut self.random), plan.records.value_bytes);
        let (mut found, mut sound) = (0, true);
        store.scan(&from.clone(), count, &mut |key, value| {
            sound &= key >= from.as_slice() && value.len() == value_bytes;
            from.copy_from_slice(key);
            found += 1;
        })?;
        self.scanned += found;
        let enough = found > 0 || record >= plan.records.loaded;
        match sound && enough && found <= count as u64 {
            true => Ok(()),
            false => Err(format!("a scan of {count} from record {record} went wrong").into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store that is right, or loses what is written after a while.
    struct Model {
        entries: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
        syncs: AtomicU64,
        forgets: bool,
    }

    impl Model {
        fn new(records: Records, forgets: bool) -> Model {
            let sorted = records.sorted().map(|(key, value)| (key.to_vec(), value));
            Model {
                entries: Mutex::new(sorted.collect()),
                syncs: AtomicU64::new(0),
                forgets,
            }
        }
    }

    impl Store for Model {
        fn read(&self, key: &[u8], out: &mut Vec<u8>) -> Result<bool, Problem> {
            let entries = self.entries.lock().unwrap();
            out.clear();
            Ok(entries
                .get(key)
                .map(|value| out.extend_from_slice(value))
                .is_some())
        }

        fn write(&self, key: &[u8], value: &[u8]) -> Result<(), Problem> {
            let mut entries = self.entries.lock().unwrap();
            match self.forgets {
                true => entries.remove(key),
                false => entries.insert(key.to_vec(), value.to_vec()),
            };
            Ok(())
        }

        fn scan(
            &self,
            from: &[u8],
            count: usize,
            visit: &mut dyn FnMut(&[u8], &[u8]),
        ) -> Result<(), Problem> {
            let entries = self.entries.lock().unwrap();
            let range = entries.range(from.to_vec()..).take(count);
            range.for_each(|(key, value)| visit(key, value));
            Ok(())
        }

        fn sync(&self) -> Result<(), Problem> {
            self.syncs.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    fn plan(workload: Workload, threads: usize) -> Plan {
        Plan {
            workload,
            records: Records {
                loaded: 500,
                value_bytes: 40,
                seed: 1,
            },
            inserted: 0,
            threads,
            until: Until::Operations(2001),
            seed: 2,
            sync_every: None,
        }
    }

    #[test]
    fn every_load_does_its_operations_in_any_number_of_threads() {
        for workload in Workload::ALL {
            for threads in [1, 3] {
                let plan = plan(workload, threads);
                let store = Model::new(plan.records, false);
                let report = run(&store, &plan).unwrap();
                assert_eq!(report.all.operations, 2001);
                let kinds = report.kinds.iter().map(|(_, times)| times.operations);
                assert_eq!(kinds.sum::<u64>(), 2001);
                let entries = store.entries.lock().unwrap().len() as u64;
                assert_eq!(entries, 500 + report.inserted, "{workload:?}");
            }
        }
    }

    #[test]
    fn a_run_that_follows_another_knows_what_that_inserted() {
        let mut plan = plan(Workload::D, 2);
        let store = Model::new(plan.records, false);
        for seed in 0..4 {
            plan.seed = seed;
            plan.inserted = run(&store, &plan).unwrap().inserted;
        }
        assert_eq!(
            store.entries.lock().unwrap().len() as u64,
            500 + plan.inserted
        );
    }

    #[test]
    fn a_store_that_loses_values_is_found_out() {
        let plan = plan(Workload::A, 2);
        let store = Model::new(plan.records, true);
        assert!(
            run(&store, &plan)
                .unwrap_err()
                .to_string()
                .contains("is not there")
        );
    }

    #[test]
    fn runs_end_after_their_time_and_sync_meanwhile() {
        let mut plan = plan(Workload::B, 2);
        plan.until = Until::Elapsed(Duration::from_millis(100));
        plan.sync_every = Some(Duration::from_millis(5));
        let store = Model::new(plan.records, false);
        let report = run(&store, &plan).unwrap();
        assert!((0.09..5.0).contains(&report.seconds), "{}", report.seconds);
        assert!(store.syncs.into_inner() >= 2);
    }
}
