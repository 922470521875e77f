//! Statistics of executions, per activation and of the whole device.
//!
//! Counters are independent of one another: a reader may see an execution counted before its
//! bytes are. They only grow.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::request::{Failure, Usage};

/// What executions did and cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Statistics {
    /// Executions that ended, however they did.
    pub executions: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// Those of the failures that ran out of time.
    pub timeouts: u64,
    /// Wall time in kernels, in nanoseconds.
    pub run_ns: u64,
    /// Processor time in kernels, in nanoseconds.
    pub processor_ns: u64,
    /// Time spent waiting for a worker, in nanoseconds.
    pub queued_ns: u64,
    /// Bytes of snapshots read or mapped.
    pub bytes_read: u64,
    /// Bytes given back to the host.
    pub bytes_returned: u64,
    /// Bytes appended.
    pub bytes_appended: u64,
    /// Calls of helpers.
    pub helper_calls: u64,
    /// Bytes that the host would have had to move and did not: read less returned, summed over
    /// the executions that succeeded.
    pub bytes_not_moved: u64,
}

/// [`Statistics`] being counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    executions: AtomicU64,
    failures: AtomicU64,
    timeouts: AtomicU64,
    run_ns: AtomicU64,
    processor_ns: AtomicU64,
    queued_ns: AtomicU64,
    bytes_read: AtomicU64,
    bytes_returned: AtomicU64,
    bytes_appended: AtomicU64,
    helper_calls: AtomicU64,
    bytes_not_moved: AtomicU64,
}

impl Counters {
    /// Counts one execution.
    pub(crate) fn count(&self, failure: Option<&Failure>, usage: &Usage) {
        add(&self.executions, 1);
        match failure {
            None => {
                let kept = usage.bytes_read.saturating_sub(usage.bytes_returned);
                add(&self.bytes_not_moved, kept);
            }
            Some(failure) => {
                add(&self.failures, 1);
                let timed_out = matches!(failure, Failure::TimedOut(_) | Failure::ProcessorTime(_));
                add(&self.timeouts, u64::from(timed_out));
            }
        }
        add(&self.run_ns, usage.run_ns);
        add(&self.processor_ns, usage.processor_ns);
        add(&self.queued_ns, usage.queued_ns);
        add(&self.bytes_read, usage.bytes_read);
        add(&self.bytes_returned, usage.bytes_returned);
        add(&self.bytes_appended, usage.bytes_appended);
        add(&self.helper_calls, usage.helper_calls);
    }

    pub(crate) fn snapshot(&self) -> Statistics {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Statistics {
            executions: get(&self.executions),
            failures: get(&self.failures),
            timeouts: get(&self.timeouts),
            run_ns: get(&self.run_ns),
            processor_ns: get(&self.processor_ns),
            queued_ns: get(&self.queued_ns),
            bytes_read: get(&self.bytes_read),
            bytes_returned: get(&self.bytes_returned),
            bytes_appended: get(&self.bytes_appended),
            helper_calls: get(&self.helper_calls),
            bytes_not_moved: get(&self.bytes_not_moved),
        }
    }
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

/// What the device itself did: its caches and its queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct DeviceCounters {
    /// Objects linked and validated.
    pub programs_linked: u64,
    /// Loads answered from the cache.
    pub program_cache_hits: u64,
    /// Times that a compiled program was bound to a cage.
    pub bindings: u64,
    /// Executions that began in a cage their owner had warm.
    pub warm_starts: u64,
    /// Cages made so far.
    pub cages_made: u64,
    /// Cages wiped so far.
    pub cages_wiped: u64,
    /// Requests waiting now.
    pub queued_now: u64,
    /// Worker threads now, those that relieve long kernels included.
    pub workers_now: u64,
}
