//! Several transfers of one caller at the same time, in memory that the caller lends.
//!
//! A [`crate::DeviceQueue`] owns the memory of its requests, since they outlive the call that
//! submits them. Here the call stays until the kernel has let go of everything, so borrowed memory
//! will do. Rings are kept for the next caller; there are never more than there were callers at one
//! time.

use std::io;

use io_uring::{IoUring, cqueue, squeue};
use parking_lot::Mutex;

use crate::error::Result;
use crate::geometry::Lba;

/// Transfers in flight for one caller.
const DEPTH: u32 = 32;

/// The transfers of one call, numbered from 0.
pub(crate) trait Transfers<S, C> {
    /// How many there are.
    fn count(&self) -> usize;

    /// The entry for what is left of one. The memory it names is borrowed for as long as `self` is.
    fn entry(&mut self, index: usize) -> S;

    /// Takes a result; false if the transfer needs another entry.
    fn ended(&mut self, index: usize, event: &C) -> bool;
}

/// Cuts ranges of memory up into those of single transfers. `each` is told the first block and the
/// bytes of a range, and names the place and the length of its transfers, in order.
///
/// # Errors
/// That of `each`.
pub(crate) fn cut<'a, P>(
    reads: &'a mut [(Lba, &mut [u8])],
    mut each: impl FnMut(Lba, usize, &mut dyn FnMut(P, usize)) -> Result<()>,
) -> Result<Vec<(P, &'a mut [u8])>> {
    let mut transfers = Vec::with_capacity(reads.len());
    for (lba, buffer) in reads {
        let len = buffer.len();
        let mut rest = &mut **buffer;
        each(*lba, len, &mut |place, len| {
            let (memory, behind) = std::mem::take(&mut rest).split_at_mut(len);
            transfers.push((place, memory));
            rest = behind;
        })?;
    }
    Ok(transfers)
}

/// Idle rings.
pub(crate) struct Bursts<S: squeue::EntryMarker, C: cqueue::EntryMarker>(Mutex<Vec<IoUring<S, C>>>);

impl<S: squeue::EntryMarker, C: cqueue::EntryMarker> Bursts<S, C> {
    pub(crate) const fn new() -> Bursts<S, C> {
        Bursts(Mutex::new(Vec::new()))
    }

    /// Carries the transfers out.
    ///
    /// # Errors
    /// The host has no io_uring for us. None of the transfers was begun.
    pub(crate) fn run(&self, transfers: &mut impl Transfers<S, C>) -> io::Result<()> {
        let idle = self.0.lock().pop();
        let mut ring = idle.map_or_else(|| IoUring::builder().build(DEPTH), Ok)?;
        let mut unsent = (0..transfers.count()).rev().collect::<Vec<_>>();
        let mut in_flight = 0;
        while in_flight > 0 || !unsent.is_empty() {
            while in_flight < DEPTH
                && let Some(index) = unsent.pop()
            {
                let mut entry = transfers.entry(index);
                squeue::EntryMarker::set_user_data(&mut entry, index as u64);
                // SAFETY: the memory that the entry names is borrowed by `transfers`, which this
                // function holds until every entry has ended.
                let pushed = unsafe { ring.submission().push(&entry) };
                pushed.expect("as many entries as the ring has");
                in_flight += 1;
            }
            // Whatever this answers, the kernel may use the memory until the completions are there.
            if ring.submit_and_wait(1).is_err() {
                std::thread::yield_now();
            }
            for event in ring.completion() {
                in_flight -= 1;
                let index = cqueue::EntryMarker::user_data(&event) as usize;
                if !transfers.ended(index, &event) {
                    unsent.push(index);
                }
            }
        }
        self.0.lock().push(ring);
        Ok(())
    }
}
