//! What happens without being asked: timed commits, checkpoints, collection ahead of need; and the
//! same work done by a writer when it can no longer wait.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::checkpoint::LOG_BLOCKS_MAX;
use super::{Head, Reserve, Store};
use crate::error::Result;
use crate::format::chunk::{CHUNK_BLOCKS, Class};

/// Longest time a change stays volatile without anybody asking for more, as on ext4.
const COMMIT_INTERVAL: Duration = Duration::from_secs(5);
/// Longest time between checkpoints of a store that changes.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(60);
/// How often the thread looks around.
const TICK: Duration = Duration::from_millis(500);
/// Transactions after which a collection that freed nothing is tried again.
const FUTILE_PAUSE: u64 = 256;

/// Longest time a writer waits for a view to let go of zones, and how often it looks.
const VIEW_PATIENCE: Duration = Duration::from_secs(2);
const VIEW_PAUSE: Duration = Duration::from_millis(5);

#[derive(Default)]
struct Signal {
    stop: Mutex<bool>,
    wake: Condvar,
}

/// How urgent background work is; written at every commit, read without a lock.
#[derive(Default)]
pub(super) struct Pressure {
    free_zones: AtomicUsize,
    dirty_nodes: AtomicUsize,
    log_blocks: AtomicU64,
    version: AtomicU64,
    /// Version at which collecting was of no use, plus one.
    futile: AtomicU64,
    /// What [`Store::kept`] was then.
    futile_kept: AtomicU64,
}

#[derive(Default)]
pub(super) struct Background {
    signal: Arc<Signal>,
    thread: Mutex<Option<JoinHandle<()>>>,
    dirty: AtomicBool,
    pub(super) pressure: Pressure,
}

impl Background {
    /// A transaction has been committed.
    pub(super) fn note_commit(&self) {
        if !self.dirty.load(Ordering::Relaxed) {
            self.dirty.store(true, Ordering::Relaxed);
        }
    }

    fn wake(&self) {
        self.signal.wake.notify_one();
    }

    /// Ends the thread and waits for it.
    pub(super) fn stop(&self) {
        self.stop_detached();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the background thread panicked");
        }
    }

    /// Tells the thread to end.
    pub(super) fn stop_detached(&self) {
        *self.signal.stop.lock() = true;
        self.signal.wake.notify_one();
    }
}

impl Store {
    /// Starts the thread that keeps `store` in order for as long as it exists.
    pub(super) fn start_background(store: &Arc<Store>) -> Result<()> {
        let weak = Arc::downgrade(store);
        let signal = Arc::clone(&store.background.signal);
        let thread = std::thread::Builder::new()
            .name("warren-background".into())
            .spawn(move || run(&weak, &signal))
            .map_err(|source| zns_backend::Error::Io {
                context: "starting the background thread".into(),
                source,
            })?;
        *store.background.thread.lock() = Some(thread);
        Ok(())
    }

    pub(super) fn publish_pressure(&self, head: &Head) {
        let pressure = &self.background.pressure;
        pressure
            .free_zones
            .store(head.zones.free_count(), Ordering::Relaxed);
        pressure
            .dirty_nodes
            .store(head.tree.dirty_nodes(), Ordering::Relaxed);
        pressure
            .log_blocks
            .store(head.log_blocks, Ordering::Relaxed);
        pressure.version.store(head.version, Ordering::Relaxed);
        if self.options.background && (self.checkpoint_due() || self.collection_due()) {
            self.background.wake();
        }
    }

    fn checkpoint_due(&self) -> bool {
        let pressure = &self.background.pressure;
        pressure.dirty_nodes.load(Ordering::Relaxed) >= self.limits.dirty_nodes
            || pressure.log_blocks.load(Ordering::Relaxed) >= LOG_BLOCKS_MAX
    }

    fn collection_due(&self) -> bool {
        self.background.pressure.free_zones.load(Ordering::Relaxed) < self.limits.high_zones
            && !self.collecting_is_futile()
    }

    fn collecting_is_futile(&self) -> bool {
        let pressure = &self.background.pressure;
        let futile = pressure.futile.load(Ordering::Relaxed);
        futile > 0 && pressure.version.load(Ordering::Relaxed) + 1 < futile + FUTILE_PAUSE
    }

    /// The newest version that is kept, plus one; zero if none is. What was there at that version cannot be
    /// collected.
    fn kept(&self) -> u64 {
        self.pins.newest_kept().map_or(0, |version| version + 1)
    }

    /// Whether the next transaction finds no zone, and something has changed since a collection was of
    /// no use, or a version was let go: then another one is worth its while.
    fn is_stuck(&self) -> bool {
        let pressure = &self.background.pressure;
        let unchanged = pressure.version.load(Ordering::Relaxed) + 1;
        if pressure.futile.load(Ordering::Relaxed) == unchanged
            && pressure.futile_kept.load(Ordering::Relaxed) <= self.kept()
        {
            return false;
        }
        let head = self.head.read();
        let room = head.zones.room(Class::Hot);
        let (free, keep) = (head.zones.free_count(), self.limits.keep_zones);
        free < keep || (free == keep && room < 2 * CHUNK_BLOCKS)
    }

    /// Notes whether a collection gained anything.
    pub(super) fn note_collection(&self, gained: bool) {
        let pressure = &self.background.pressure;
        let futile = match gained {
            true => 0,
            false => pressure.version.load(Ordering::Relaxed) + 1,
        };
        pressure.futile_kept.store(self.kept(), Ordering::Relaxed);
        pressure.futile.store(futile, Ordering::Relaxed);
    }

    /// What a writer has to do itself before it adds to the log: a checkpoint if too many nodes
    /// are resident or the log is too long, a collection if free zones run out.
    pub(super) fn make_room(&self) -> Result<()> {
        let pressure = &self.background.pressure;
        // With a thread at work the writer steps in only when that falls behind.
        let slack = if self.options.background { 2 } else { 1 };
        let late = || {
            pressure.dirty_nodes.load(Ordering::Relaxed) >= slack * self.limits.dirty_nodes
                || pressure.log_blocks.load(Ordering::Relaxed) >= slack as u64 * LOG_BLOCKS_MAX
        };
        if late() {
            let _one_at_a_time = self.maintenance.lock();
            if late() {
                self.checkpoint_locked()?;
            }
        }
        if self.collecting_helps() {
            let _one_at_a_time = self.maintenance.lock();
            while self.collecting_helps() {
                self.collect_locked(1)?;
            }
        }
        if pressure.free_zones.load(Ordering::Relaxed) <= self.limits.keep_zones {
            self.wait_for_views()?;
        }
        Ok(())
    }

    /// Whether free zones are short and a collection may gain some.
    fn collecting_helps(&self) -> bool {
        self.background.pressure.free_zones.load(Ordering::Relaxed) <= self.limits.low_zones
            && (!self.collecting_is_futile() || self.is_stuck())
    }

    /// For a transaction that was not admitted: waits for the collection that is under way, if one is, and
    /// says whether there is a point in trying again.
    ///
    /// # Errors
    /// Device errors.
    pub(super) fn may_be_admitted(&self) -> Result<bool> {
        let _one_at_a_time = self.maintenance.lock();
        self.reclaim()?;
        let admitted = self.admit(&self.head.read(), Reserve::Kept).is_ok();
        Ok(admitted || self.collecting_helps())
    }

    /// Zones that are empty and cannot be reset because somebody still reads an older version come
    /// free when that view ends; a writer that has no other zone waits for it, within reason.
    fn wait_for_views(&self) -> Result<()> {
        let since = Instant::now();
        while since.elapsed() < VIEW_PATIENCE {
            {
                let _one_at_a_time = self.maintenance.lock();
                if self.reclaim()? > 0 {
                    self.note_collection(true);
                }
                let head = self.head.read();
                // A version that is kept may be kept for ever.
                let kept = |from, before| self.pins.any_kept_within(from, before);
                let none_waits = head.reclaimable(head.durable.version, kept).is_empty();
                if none_waits || head.zones.free_count() > self.limits.keep_zones {
                    return Ok(());
                }
            }
            std::thread::sleep(VIEW_PAUSE);
        }
        Ok(())
    }
}

fn run(weak: &Weak<Store>, signal: &Signal) {
    let mut last_commit = Instant::now();
    let mut last_checkpoint = Instant::now();
    let mut checkpointed = 0;
    loop {
        {
            let mut stop = signal.stop.lock();
            if !*stop {
                signal.wake.wait_for(&mut stop, TICK);
            }
            if *stop {
                return;
            }
        }
        let Some(store) = weak.upgrade() else { return };
        if store.is_read_only() {
            continue;
        }
        let outcome = store.look_around(&mut last_commit, &mut last_checkpoint, &mut checkpointed);
        if let Err(error) = outcome {
            tracing::error!("background work: {error}");
        }
    }
}

impl Store {
    fn look_around(
        &self,
        last_commit: &mut Instant,
        last_checkpoint: &mut Instant,
        checkpointed: &mut u64,
    ) -> Result<()> {
        if last_commit.elapsed() >= COMMIT_INTERVAL
            && self.background.dirty.swap(false, Ordering::Relaxed)
        {
            *last_commit = Instant::now();
            self.sync_unasked(self.position())?;
        }
        let version = self.background.pressure.version.load(Ordering::Relaxed);
        let old = last_checkpoint.elapsed() >= CHECKPOINT_INTERVAL && version != *checkpointed;
        if old || self.checkpoint_due() {
            self.checkpoint()?;
            *last_checkpoint = Instant::now();
            *checkpointed = version;
        }
        if self.collection_due() {
            let _one_at_a_time = self.maintenance.lock();
            while self.collection_due() && !*self.background.signal.stop.lock() {
                self.collect_locked(1)?;
            }
        }
        Ok(())
    }
}
