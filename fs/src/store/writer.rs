//! Sealed chunks on their way to the device.
//!
//! One lane per zone with at most one write in flight, so that writes reach a zone in order; lanes
//! run in parallel. Full chunks go through the device's queue; the thread that waits for a commit
//! writes what is left itself, which saves two thread switches on the path of fsync. Until a chunk
//! is on the device its blocks are read from here.
//!
//! A write that fails stays here, with everything behind it in its lane, until the store takes it
//! back with [`Writer::take_failed`] and sends it elsewhere.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};
use zns_backend::{Completion, DeviceQueue, Request, ZonedDevice};

use super::open_chunk::Sealed;
use crate::error::Result;
use crate::types::{Lba, ZoneId};

/// Requests in flight at once; more lanes than this are never open.
const QUEUE_DEPTH: u32 = 16;
/// Chunks up to this size are written by the thread that waits for them.
const INLINE_BLOCKS: u64 = 32;
/// Token that ends the reaper thread.
const STOP: u64 = u64::MAX;

#[derive(Default)]
struct Lane {
    busy: bool,
    waiting: VecDeque<Arc<Sealed>>,
    /// Nothing more will come: the device is to finish the zone when all is written.
    finish: bool,
}

#[derive(Default)]
struct State {
    lanes: HashMap<ZoneId, Lane>,
    /// By sequence: chunks that are not on the device yet.
    outstanding: BTreeMap<u64, Arc<Sealed>>,
    /// By address: chunks whose blocks are read from memory.
    resident: BTreeMap<Lba, Arc<Sealed>>,
    failed: Vec<Arc<Sealed>>,
    blocks: u64,
}

/// A write failed: [`Writer::take_failed`] has the chunks.
pub(super) struct WriteFailed;

/// A chunk that the leader of commits has in flight on a queue of its own.
pub(super) struct Early {
    sequence: u64,
    durable: bool,
}

pub(super) struct Writer {
    device: Arc<dyn ZonedDevice>,
    queue: Option<Box<dyn DeviceQueue>>,
    queue_broken: AtomicBool,
    /// For the chunk of a commit that is started early; used by the leader of commits alone.
    early: Option<Box<dyn DeviceQueue>>,
    /// [`ZonedDevice::has_durable_writes`] of the device.
    durable_writes: bool,
    state: Mutex<State>,
    changed: Condvar,
    resident_count: AtomicUsize,
}

impl Writer {
    /// A writer to `device`. Without `queued` every chunk is written by the thread that sealed it,
    /// in order: slower, and deterministic.
    pub(super) fn new(device: Arc<dyn ZonedDevice>, queued: bool) -> Result<Arc<Writer>> {
        let queue = if queued {
            Some(device.queue(QUEUE_DEPTH)?)
        } else {
            None
        };
        let early = if queued { Some(device.queue(1)?) } else { None };
        let writer = Arc::new(Writer {
            durable_writes: device.has_durable_writes(),
            device,
            queue,
            queue_broken: AtomicBool::new(false),
            early,
            state: Mutex::default(),
            changed: Condvar::new(),
            resident_count: AtomicUsize::new(0),
        });
        if queued {
            let reaper = Arc::clone(&writer);
            std::thread::Builder::new()
                .name("warren-writer".into())
                .spawn(move || reaper.reap())
                .map_err(|source| zns_backend::Error::Io {
                    context: "starting the writer thread".into(),
                    source,
                })?;
        }
        Ok(writer)
    }

    /// Ends the reaper thread.
    pub(super) fn stop(&self) {
        if let Some(queue) = &self.queue
            && let Err(error) = queue.submit(STOP, Request::Flush)
        {
            tracing::warn!("stopping the writer: {error}");
        }
    }

    /// Takes a sealed chunk. Called in the order of sequence numbers.
    pub(super) fn enqueue(&self, sealed: Arc<Sealed>) {
        let mut state = self.state.lock();
        state.blocks += sealed.blocks;
        state
            .outstanding
            .insert(sealed.sequence, Arc::clone(&sealed));
        state.resident.insert(sealed.lba, Arc::clone(&sealed));
        self.resident_count
            .store(state.resident.len(), Ordering::Release);
        state
            .lanes
            .entry(sealed.zone)
            .or_default()
            .waiting
            .push_back(sealed);
    }

    /// Whether nothing is on its way to `zone`.
    pub(super) fn is_idle(&self, zone: ZoneId) -> bool {
        self.state
            .lock()
            .lanes
            .get(&zone)
            .is_none_or(|l| !l.busy && l.waiting.is_empty())
    }

    /// Starts what can be started.
    pub(super) fn kick(&self) {
        loop {
            let mut state = self.state.lock();
            let Some(sealed) = State::startable(&mut state, u64::MAX) else {
                return;
            };
            drop(state);
            self.start(sealed, self.queue.is_none(), false);
        }
    }

    /// Starts the write of the next chunk on the queue of the leader, which passes the answer to
    /// [`Writer::finish_early`]. Every chunk before `durable` is durable; if the chunk is that one,
    /// it is made durable by its write.
    pub(super) fn start_early(&self, durable: u64) -> Option<Early> {
        let early = self.early.as_ref()?;
        let sealed = State::startable(&mut self.state.lock(), u64::MAX)?;
        let started = Early {
            sequence: sealed.sequence,
            durable: self.durable_writes && sealed.sequence == durable,
        };
        let request = Request::Write {
            lba: sealed.lba,
            data: Arc::clone(&sealed.buffer),
            blocks: sealed.blocks,
            durable: started.durable,
        };
        match early.submit(sealed.sequence, request) {
            Ok(()) => Some(started),
            Err(error) => {
                self.complete(&sealed, Err(error));
                None
            }
        }
    }

    /// Waits for the write that [`Writer::start_early`] has started. Answers the sequence of the
    /// chunk behind it if that write has made it durable, and so everything before it.
    pub(super) fn finish_early(&self, started: &Early) -> Option<u64> {
        let mut completions = Vec::new();
        if let Err(error) = self.early.as_ref()?.wait(1, &mut completions) {
            tracing::error!("the device queue is broken: {error}");
            self.give_up_queue();
            return None;
        }
        let written = completions.iter().all(|c| c.result.is_ok());
        for completion in completions {
            self.complete_token(completion);
        }
        (written && started.durable).then_some(started.sequence + 1)
    }

    /// Waits until at most `blocks` blocks are on their way.
    pub(super) fn wait_below(&self, blocks: u64) -> std::result::Result<(), WriteFailed> {
        let mut state = self.state.lock();
        while state.blocks > blocks && state.failed.is_empty() {
            if let Some(sealed) = State::startable(&mut state, u64::MAX) {
                drop(state);
                self.start(sealed, self.queue.is_none(), false);
                state = self.state.lock();
            } else {
                self.changed.wait(&mut state);
            }
        }
        if state.failed.is_empty() {
            Ok(())
        } else {
            Err(WriteFailed)
        }
    }

    /// Writes everything up to `sequence`. If that is one small chunk and all before it is durable,
    /// as `durable` says of every chunk before that, its write makes it durable too; answers whether
    /// it has, so that there is nothing to flush.
    pub(super) fn drain(
        &self,
        sequence: u64,
        durable: u64,
    ) -> std::result::Result<bool, WriteFailed> {
        let mut made_durable = false;
        let mut state = self.state.lock();
        loop {
            if !state.failed.is_empty() {
                return Err(WriteFailed);
            }
            if state
                .outstanding
                .keys()
                .next()
                .is_none_or(|first| *first > sequence)
            {
                return Ok(made_durable);
            }
            if let Some(sealed) = State::startable(&mut state, sequence) {
                drop(state);
                let inline = self.queue.is_none() || sealed.blocks <= INLINE_BLOCKS;
                made_durable = inline
                    && self.durable_writes
                    && sealed.sequence == sequence
                    && sequence == durable;
                self.start(sealed, inline, made_durable);
                state = self.state.lock();
            } else {
                self.changed.wait(&mut state);
            }
        }
    }

    /// Chunks whose write failed, and those that waited behind them, by sequence. The failed ones
    /// stay readable at their old address.
    pub(super) fn take_failed(&self) -> Vec<Arc<Sealed>> {
        let mut state = self.state.lock();
        let mut failed = std::mem::take(&mut state.failed);
        failed.sort_by_key(|sealed| sealed.sequence);
        for sealed in &failed {
            state.blocks = state.blocks.saturating_sub(sealed.blocks);
        }
        failed
    }

    /// Chunks that could not be sent elsewhere: whoever waits for them learns of it.
    pub(super) fn put_back_failed(&self, chunks: &[Arc<Sealed>]) {
        let mut state = self.state.lock();
        state.blocks += chunks.iter().map(|sealed| sealed.blocks).sum::<u64>();
        state.failed.extend_from_slice(chunks);
        drop(state);
        self.changed.notify_all();
    }

    /// Tells the device, once everything on its way to `zone` is written, that nothing more goes
    /// there.
    pub(super) fn finish_zone(&self, zone: ZoneId) {
        if let Some(lane) = self.state.lock().lanes.get_mut(&zone)
            && (lane.busy || !lane.waiting.is_empty())
        {
            lane.finish = true;
            return;
        }
        self.finish_now(zone);
    }

    fn finish_now(&self, zone: ZoneId) {
        if let Err(error) = self.device.finish(zone) {
            tracing::warn!("finishing zone {zone}: {error}");
        }
    }

    /// Takes a chunk whose zone is known to fail: readable, outstanding, and not to be written.
    pub(super) fn enqueue_failed(&self, sealed: &Arc<Sealed>) {
        let mut state = self.state.lock();
        state
            .outstanding
            .insert(sealed.sequence, Arc::clone(sealed));
        state.resident.insert(sealed.lba, Arc::clone(sealed));
        self.resident_count
            .store(state.resident.len(), Ordering::Release);
    }

    /// A chunk that failed is on the device elsewhere.
    pub(super) fn settle(&self, sequence: u64) {
        self.state.lock().outstanding.remove(&sequence);
        self.changed.notify_all();
    }

    /// Drops chunks that are on the device elsewhere and that no reader needs at `lba` any more.
    pub(super) fn forget_resident(&self, lba: Lba) {
        let mut state = self.state.lock();
        state.resident.remove(&lba);
        self.resident_count
            .store(state.resident.len(), Ordering::Release);
    }

    /// Copies blocks from `lba` on to `out` if they stand in a chunk that is kept in memory.
    pub(super) fn copy_resident(&self, lba: Lba, out: &mut [u8]) -> bool {
        if self.resident_count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let found = {
            let state = self.state.lock();
            state
                .resident
                .range(..=lba)
                .next_back()
                .map(|(_, sealed)| Arc::clone(sealed))
        };
        found.is_some_and(|sealed| sealed.copy_to(lba, out))
    }

    /// The chunk kept in memory that holds `lba`: its sequence number, and whether it is still on
    /// its way to the device.
    pub(super) fn resident_sequence(&self, lba: Lba) -> Option<(u64, bool)> {
        if self.resident_count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let state = self.state.lock();
        let (_, sealed) = state.resident.range(..=lba).next_back()?;
        (lba.0 - sealed.lba.0 < sealed.blocks).then(|| {
            let on_its_way = state.outstanding.contains_key(&sealed.sequence);
            (sealed.sequence, on_its_way)
        })
    }

    /// Writes a chunk, `inline` on the calling thread. Only such a write can be made `durable`.
    fn start(&self, sealed: Arc<Sealed>, inline: bool, durable: bool) {
        if inline || self.queue_broken.load(Ordering::Acquire) {
            let result = match durable {
                true => self.device.write_durable(sealed.lba, sealed.bytes()),
                false => self.device.write(sealed.lba, sealed.bytes()),
            };
            self.complete(&sealed, result.map(|()| sealed.lba));
            return;
        }
        let Some(queue) = &self.queue else { return };
        let request = Request::Write {
            lba: sealed.lba,
            data: Arc::clone(&sealed.buffer),
            blocks: sealed.blocks,
            durable: false,
        };
        if let Err(error) = queue.submit(sealed.sequence, request) {
            self.complete(&sealed, Err(error));
        }
    }

    /// Ends the write a queue was given; one that was given up meanwhile is nobody's any more.
    fn complete_token(&self, completion: Completion) {
        let sealed = self
            .state
            .lock()
            .outstanding
            .get(&completion.token)
            .cloned();
        if let Some(sealed) = sealed {
            self.complete(&sealed, completion.result);
        }
    }

    fn complete(&self, sealed: &Arc<Sealed>, result: zns_backend::Result<Lba>) {
        let mut state = self.state.lock();
        let lane = state.lanes.entry(sealed.zone).or_default();
        lane.busy = false;
        let mut finish = false;
        match result {
            Ok(_) => {
                if lane.waiting.is_empty() {
                    finish = lane.finish;
                    state.lanes.remove(&sealed.zone);
                }
                state.blocks = state.blocks.saturating_sub(sealed.blocks);
                state.outstanding.remove(&sealed.sequence);
                state.resident.remove(&sealed.lba);
                self.resident_count
                    .store(state.resident.len(), Ordering::Release);
            }
            Err(error) => {
                tracing::error!(
                    "writing {} blocks at LBA {}: {error}",
                    sealed.blocks,
                    sealed.lba
                );
                lane.finish = false;
                let behind: Vec<_> = lane.waiting.drain(..).collect();
                state.failed.push(Arc::clone(sealed));
                state.failed.extend(behind);
            }
        }
        drop(state);
        if finish {
            self.finish_now(sealed.zone);
        }
        self.changed.notify_all();
    }

    /// Takes everything in flight for failed, and writes without the queue from now on.
    fn give_up_queue(&self) {
        self.queue_broken.store(true, Ordering::Release);
        let in_flight: Vec<_> = {
            let state = self.state.lock();
            let waiting: HashSet<u64> = state
                .lanes
                .values()
                .flat_map(|l| &l.waiting)
                .map(|c| c.sequence)
                .collect();
            let failed: HashSet<u64> = state.failed.iter().map(|c| c.sequence).collect();
            state
                .outstanding
                .values()
                .filter(|c| !waiting.contains(&c.sequence) && !failed.contains(&c.sequence))
                .cloned()
                .collect()
        };
        for sealed in in_flight {
            self.complete(&sealed, Err(zns_backend::Error::Media(sealed.lba)));
        }
    }

    /// Body of the reaper thread.
    fn reap(&self) {
        let Some(queue) = &self.queue else { return };
        let mut completions: Vec<Completion> = Vec::new();
        loop {
            if let Err(error) = queue.wait(1, &mut completions) {
                tracing::error!("the device queue is broken: {error}");
                self.give_up_queue();
                return;
            }
            for completion in completions.drain(..) {
                if completion.token == STOP {
                    return;
                }
                self.complete_token(completion);
            }
            self.kick();
        }
    }
}

impl State {
    /// Takes the first chunk, of at most `sequence`, of an idle lane.
    fn startable(state: &mut State, sequence: u64) -> Option<Arc<Sealed>> {
        let lane = state
            .lanes
            .values_mut()
            .filter(|l| !l.busy && l.waiting.front().is_some_and(|c| c.sequence <= sequence))
            .min_by_key(|l| l.waiting[0].sequence)?;
        lane.busy = true;
        lane.waiting.pop_front()
    }
}
