//! Shared commits.
//!
//! The first request that wants something durable makes its thread the leader: it seals the open
//! chunk, writes what is not on the device and flushes. Requests that come meanwhile leave a
//! completion and take no thread; their transactions gather in the next chunk, which the leader
//! commits for all of them when it is done. So the number of flushes per second stays what the
//! device can do, and their size grows with the load.
//!
//! A commit of one small chunk, with everything before it durable, is one operation where the device
//! can make a single write durable: nothing else is volatile that the chunk needs. It refers to earlier
//! chunks of the log, which are durable then, and to moved blocks, which were flushed before anything
//! mapped them. In all other cases the chunks are written and the device is flushed.
//!
//! *Anticipation.* A client that syncs after every so many transactions, always as many, gets its
//! commit started before the last of them is answered: the chunk is written while the answer travels
//! and the request to sync comes back, which then finds the commit under way. The rhythm must have
//! held [`STREAK_MIN`] times in a row; a deviation halves the count, so that a commit nobody asked for
//! is rare. The kernel's update of a file's times, which comes now and then, does not count
//! ([`super::Txn::accompanies`]).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use super::writer::Early;
use super::{Counters, Store};
use crate::error::{Error, Result};
use crate::types::Sequence;

/// Times a rhythm must have repeated to be trusted.
const STREAK_MIN: u32 = 4;
/// Repetitions that are remembered.
const STREAK_MAX: u32 = 16;
/// Longest rhythm, in transactions: longer ones gain nothing.
const RHYTHM_MAX: u32 = 4;

/// What happens when a commit has ended.
pub type Completion = Box<dyn FnOnce(Result<()>) + Send>;

#[derive(Default)]
struct State {
    leading: bool,
    /// Positions that are waited for, and who is told.
    waiting: Vec<(Sequence, Completion)>,
}

#[derive(Default)]
pub(super) struct Commits {
    /// Every chunk before this one is durable.
    durable: AtomicU64,
    state: Mutex<State>,
    ended: Condvar,
    pub(super) flushing: Mutex<()>,
    rhythm: Rhythm,
}

/// How many transactions there are between two requests to sync.
#[derive(Default)]
struct Rhythm {
    since: AtomicU32,
    expected: AtomicU32,
    streak: AtomicU32,
}

impl Rhythm {
    fn note_transaction(&self) {
        self.since.fetch_add(1, Ordering::Relaxed);
    }

    fn note_request(&self) {
        let since = self.since.swap(0, Ordering::Relaxed);
        let streak = self.streak.load(Ordering::Relaxed);
        if since == self.expected.load(Ordering::Relaxed) {
            self.streak
                .store((streak + 1).min(STREAK_MAX), Ordering::Relaxed);
        } else {
            self.streak.store(streak / 2, Ordering::Relaxed);
            if streak == 0 {
                self.expected.store(since, Ordering::Relaxed);
            }
        }
    }

    /// Whether a request to sync is what comes next.
    fn is_due(&self) -> bool {
        let since = self.since.load(Ordering::Relaxed);
        (1..=RHYTHM_MAX).contains(&since)
            && since == self.expected.load(Ordering::Relaxed)
            && self.streak.load(Ordering::Relaxed) >= STREAK_MIN
    }
}

impl Commits {
    pub(super) fn new(durable: u64) -> Commits {
        Commits {
            durable: AtomicU64::new(durable),
            ..Commits::default()
        }
    }

    /// Every chunk before this one is known to be durable.
    pub(super) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Every chunk before `sequence` has been written and flushed.
    pub(super) fn note_durable(&self, sequence: u64) {
        self.durable.fetch_max(sequence, Ordering::AcqRel);
    }

    /// A transaction has been committed to the log.
    pub(super) fn note_transaction(&self) {
        self.rhythm.note_transaction();
    }
}

impl Store {
    /// The first position that is not known to be durable.
    #[must_use]
    pub fn durable(&self) -> Sequence {
        Sequence(self.commits.durable())
    }

    /// Waits until everything up to `position` is durable.
    ///
    /// # Errors
    /// `CommitFailed` after a device error; the store is read-only then.
    pub fn sync(&self, position: Sequence) -> Result<()> {
        self.note_request();
        self.sync_unasked(position)
    }

    /// As [`Store::sync`] without waiting: `then` is called when it is done, on whichever thread
    /// ends the commit. If that is to be the caller's, this returns the lead to be taken.
    pub fn sync_then(&self, position: Sequence, then: Completion) -> Option<Lead<'_>> {
        self.note_request();
        if position < self.durable() {
            then(Ok(()));
            return None;
        }
        let mut state = self.commits.state.lock();
        state.waiting.push((position, then));
        self.take_lead(&mut state)
    }

    /// Starts the commit that is about to be asked for, if the rhythm says so. Called when a
    /// request that changed something is going to be answered; the caller answers it and then
    /// goes on with the lead.
    pub fn start_anticipated(&self) -> Option<Lead<'_>> {
        if !self.commits.rhythm.is_due() || self.is_read_only() {
            return None;
        }
        let mut lead = self.take_lead(&mut self.commits.state.lock())?;
        self.seal_open(&mut self.head.write());
        lead.early = self.writer.start_early(self.commits.durable());
        Some(lead)
    }

    fn take_lead(&self, state: &mut State) -> Option<Lead<'_>> {
        if state.leading {
            return None;
        }
        state.leading = true;
        Some(Lead {
            store: self,
            early: None,
        })
    }

    fn note_request(&self) {
        Counters::add(&self.counters.sync_calls, 1);
        self.commits.rhythm.note_request();
    }

    /// As [`Store::sync`], for the store's own purposes.
    pub(super) fn sync_unasked(&self, position: Sequence) -> Result<()> {
        let mut state = self.commits.state.lock();
        loop {
            if position < self.durable() {
                return Ok(());
            }
            if self.latched.lock().is_some() {
                return Err(Error::CommitFailed);
            }
            if let Some(lead) = self.take_lead(&mut state) {
                drop(state);
                lead.run();
                state = self.commits.state.lock();
            } else {
                self.commits.ended.wait(&mut state);
            }
        }
    }

    /// Seals the open chunk and makes everything durable; returns the sequence of the next chunk.
    fn commit_all(&self) -> Result<u64> {
        let next = {
            let mut head = self.head.write();
            self.seal_open(&mut head);
            head.next_sequence
        };
        let durable = self.commits.durable();
        if next > durable && !self.write_all_before(next, durable)? {
            self.flush_device()?;
        }
        Ok(next)
    }

    /// Flushes the device. One flush at a time: after one has failed none may succeed, since the
    /// device may have dropped what it could not write.
    pub(super) fn flush_device(&self) -> Result<()> {
        let _one_at_a_time = self.commits.flushing.lock();
        if self.latched.lock().is_some() {
            return Err(Error::CommitFailed);
        }
        self.latch("flush", self.device.flush().map_err(Error::from))
    }

    /// Writes every chunk before `sequence`; chunks whose write fails are sent elsewhere.
    pub(super) fn write_before(&self, sequence: u64) -> Result<()> {
        self.write_all_before(sequence, 0).map(drop)
    }

    /// As [`Store::write_before`], where every chunk before `durable` is durable. Answers whether
    /// there is nothing to flush any more.
    fn write_all_before(&self, sequence: u64, durable: u64) -> Result<bool> {
        let Some(last) = sequence.checked_sub(1) else {
            return Ok(false);
        };
        let mut failed = false;
        loop {
            match self.writer.drain(last, durable) {
                Ok(made_durable) => return Ok(made_durable && !failed),
                Err(_) => self.relocate_failed()?,
            }
            // What was sent elsewhere was written like anything else.
            failed = true;
        }
    }
}

/// The duty to commit for everybody who waits.
///
/// Dropping it undone means that the leader has panicked: nobody may wait for it for ever.
#[must_use = "everybody waits for the leader"]
pub struct Lead<'a> {
    store: &'a Store,
    /// The leader has a chunk in flight on the queue of its own.
    early: Option<Early>,
}

impl Lead<'_> {
    /// Commits until nobody waits. Waits for the device.
    pub fn run(mut self) {
        let mut outcome = match self
            .early
            .take()
            .map(|e| self.store.writer.finish_early(&e))
        {
            Some(Some(durable)) => self.settle(Ok(durable)),
            _ => self.commit(),
        };
        while self.answer(&outcome) {
            outcome = self.commit();
        }
        std::mem::forget(self);
    }

    fn commit(&self) -> Result<()> {
        self.settle(self.store.commit_all())
    }

    /// Notes what a commit has made durable, unless somebody has met an error meanwhile.
    fn settle(&self, durable: Result<u64>) -> Result<()> {
        let durable = self.store.latch("commit", durable)?;
        if self.store.latched.lock().is_some() {
            return Err(Error::CommitFailed);
        }
        self.store.commits.note_durable(durable);
        Counters::add(&self.store.counters.commits, 1);
        Ok(())
    }

    /// Answers those who wait for what is durable now, everybody if the commit failed. Ends the lead
    /// if nobody is left, and says whether somebody is.
    fn answer(&self, outcome: &Result<()>) -> bool {
        let commits = &self.store.commits;
        let mut state = commits.state.lock();
        let (done, waiting) = std::mem::take(&mut state.waiting)
            .into_iter()
            .partition::<Vec<_>, _>(|(at, _)| outcome.is_err() || *at < self.store.durable());
        state.leading = !waiting.is_empty();
        let more = state.leading;
        state.waiting = waiting;
        drop(state);
        commits.ended.notify_all();
        for (_, then) in done {
            then(outcome.as_ref().map(drop).map_err(|_| Error::CommitFailed));
        }
        more
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        self.store.latch_read_only("a commit panicked");
        let mut state = self.store.commits.state.lock();
        state.leading = false;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        self.store.commits.ended.notify_all();
        for (_, then) in waiting {
            then(Err(Error::CommitFailed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rhythm_is_trusted_after_it_repeated_and_not_when_it_alternates() {
        let rhythm = Rhythm::default();
        let step = |transactions| {
            for _ in 0..transactions {
                rhythm.note_transaction();
            }
            rhythm.note_request();
        };
        (0..=STREAK_MIN).for_each(|_| step(1));
        assert!(
            !rhythm.is_due(),
            "nothing has changed since the last request"
        );
        rhythm.note_transaction();
        assert!(rhythm.is_due());
        rhythm.note_transaction();
        assert!(
            !rhythm.is_due(),
            "another transaction came instead of a request"
        );
        rhythm.note_request();
        (0..10).for_each(|i| step(1 + i % 2));
        rhythm.note_transaction();
        assert!(!rhythm.is_due(), "the rhythm is gone");
    }
}
