//! Batches of transfers through io_uring, waited for as a whole.
//!
//! Invariant: when [`Ring::read`] or [`Ring::write`] returns, no transfer is in flight, whatever
//! failed; only then may the kernel's pointers into the caller's buffers go stale. A ring on which the
//! kernel refused a submission may still hold entries and is thrown away.
//!
//! Leaves out registered files and buffers: batches are rare next to the device time they take.

use super::{ReadOp, WriteOp};
use io_uring::{IoUring, opcode, squeue, types};
use parking_lot::Mutex;
use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Entries of a ring; longer batches go in several rounds.
const DEPTH: usize = 64;

/// Rings that are not in use at the moment. Each thread in need takes one or makes one.
#[derive(Default)]
pub(super) struct Rings {
    idle: Mutex<Vec<Ring>>,
    refused: AtomicBool,
}

impl fmt::Debug for Rings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rings({} idle)", self.idle.lock().len())
    }
}

impl Rings {
    /// A ring, or none where the kernel or its policy offers none.
    pub(super) fn take(&self) -> Option<Ring> {
        if let Some(ring) = self.idle.lock().pop() {
            return Some(ring);
        }
        if self.refused.load(Ordering::Relaxed) {
            return None;
        }
        match IoUring::new(DEPTH as u32) {
            Ok(ring) => Some(Ring { ring: Some(ring) }),
            Err(error) => {
                tracing::info!(%error, "no io_uring, transfers go one by one");
                self.refused.store(true, Ordering::Relaxed);
                None
            }
        }
    }

    pub(super) fn give_back(&self, ring: Option<Ring>) {
        self.idle.lock().extend(ring);
    }
}

/// One ring, in the hands of one thread.
pub(super) struct Ring {
    ring: Option<IoUring>,
}

/// Bytes transferred per operation, and the ring unless it must not be used again.
type Outcome = (Vec<io::Result<usize>>, Option<Ring>);

impl Ring {
    pub(super) fn read(&mut self, fd: RawFd, reads: &mut [ReadOp<'_>]) -> Outcome {
        let entries = reads.iter_mut().map(|read| {
            let len = u32::try_from(read.into.len()).expect("a transfer is shorter than 4 GiB");
            opcode::Read::new(types::Fd(fd), read.into.as_mut_ptr(), len)
                .offset(read.offset)
                .build()
        });
        self.run(entries.collect())
    }

    pub(super) fn write(&mut self, fd: RawFd, writes: &[WriteOp<'_>]) -> Outcome {
        let entries = writes.iter().map(|write| {
            let len = u32::try_from(write.from.len()).expect("a transfer is shorter than 4 GiB");
            opcode::Write::new(types::Fd(fd), write.from.as_ptr(), len)
                .offset(write.offset)
                .build()
        });
        self.run(entries.collect())
    }

    /// Runs the entries and returns once none is in flight.
    fn run(&mut self, entries: Vec<squeue::Entry>) -> Outcome {
        let mut results: Vec<io::Result<usize>> = entries
            .iter()
            .map(|_| Err(io::Error::other("the transfer was not submitted")))
            .collect();
        let mut ring = self
            .ring
            .take()
            .expect("a ring is used once and given back");
        let mut healthy = true;
        for (round, chunk) in entries.chunks(DEPTH).enumerate() {
            if healthy {
                healthy = run_round(&mut ring, chunk, &mut results[round * DEPTH..]);
            }
        }
        (results, healthy.then_some(Ring { ring: Some(ring) }))
    }
}

/// Runs at most DEPTH entries; false when the ring must not be used again.
fn run_round(
    ring: &mut IoUring,
    entries: &[squeue::Entry],
    results: &mut [io::Result<usize>],
) -> bool {
    for (index, entry) in entries.iter().enumerate() {
        let entry = entry.clone().user_data(index as u64);
        // SAFETY: the buffers behind the entry belong to the caller's operations, which are borrowed
        // until `run` returns, and this function leaves only when nothing is in flight.
        unsafe {
            ring.submission()
                .push(&entry)
                .expect("the ring has room for DEPTH entries")
        };
    }
    let mut pending = entries.len();
    let mut healthy = true;
    while pending > 0 {
        if healthy && let Err(error) = ring.submit_and_wait(pending) {
            let again = [libc::EINTR, libc::EAGAIN, libc::EBUSY];
            if !error
                .raw_os_error()
                .is_some_and(|code| again.contains(&code))
            {
                tracing::warn!(%error, "io_uring refused a batch");
                // What the kernel has not taken never starts, since this ring is dropped.
                pending -= ring.submission().len();
                healthy = false;
            }
        }
        let before = pending;
        for completion in ring.completion() {
            results[completion.user_data() as usize] = match completion.result() {
                code if code < 0 => Err(io::Error::from_raw_os_error(-code)),
                bytes => Ok(bytes as usize),
            };
            pending -= 1;
        }
        if !healthy && pending == before && pending > 0 {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    healthy
}
