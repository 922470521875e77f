//! Shared commits.
//!
//! The first thread that wants something durable becomes the leader: it seals the open chunk,
//! writes what is not on the device and flushes. Whoever comes meanwhile waits; their transactions
//! gather in the next chunk, and the first of them to wake leads the next commit for all. So the
//! number of flushes per second stays what the device can do, and their size grows with the load.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use super::{Counters, Store};
use crate::error::{Error, Result};
use crate::types::Sequence;

#[derive(Default)]
pub(super) struct Commits {
    /// Whether somebody leads a commit.
    leading: Mutex<bool>,
    ended: Condvar,
    /// Every chunk before this one is durable.
    durable: AtomicU64,
}

impl Commits {
    pub(super) fn new(durable: u64) -> Commits {
        Commits {
            leading: Mutex::new(false),
            ended: Condvar::new(),
            durable: AtomicU64::new(durable),
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
}

impl Store {
    /// Waits until everything up to `position` is durable.
    ///
    /// # Errors
    /// Device errors, after which the store is read-only.
    pub fn sync(&self, position: Sequence) -> Result<()> {
        Counters::add(&self.counters.sync_calls, 1);
        let mut leading = self.commits.leading.lock();
        loop {
            if self.is_durable(position) {
                return Ok(());
            }
            if self.latched.lock().is_some() {
                return Err(Error::ReadOnly);
            }
            if !*leading {
                break;
            }
            self.commits.ended.wait(&mut leading);
        }
        *leading = true;
        drop(leading);
        let outcome = self.latch("commit", self.commit_all());
        if let Ok(durable) = &outcome {
            self.commits.note_durable(*durable);
        }
        *self.commits.leading.lock() = false;
        self.commits.ended.notify_all();
        outcome.map(drop)
    }

    /// Whether everything up to `position` is durable already.
    #[must_use]
    pub fn is_durable(&self, position: Sequence) -> bool {
        self.commits.durable() > position.0
    }

    /// Seals the open chunk and makes everything durable; returns the sequence of the next chunk.
    fn commit_all(&self) -> Result<u64> {
        let next = {
            let mut head = self.head.write();
            self.seal_open(&mut head);
            head.next_sequence
        };
        self.write_before(next)?;
        self.device.flush()?;
        Counters::add(&self.counters.commits, 1);
        Ok(next)
    }

    /// Writes every chunk before `sequence`; chunks whose write fails are sent elsewhere.
    pub(super) fn write_before(&self, sequence: u64) -> Result<()> {
        if sequence == 0 {
            return Ok(());
        }
        while self.writer.drain(sequence - 1).is_err() {
            self.relocate_failed()?;
        }
        Ok(())
    }
}
