//! Whether the kernel is going to write times back behind the pages it is writing.
//!
//! Under the writeback cache an fsync is a request for the pages, one for the times if they have changed,
//! and the sync itself. A commit that is started early, before the sync is asked for, is to begin with
//! the last of what belongs to it. The kernel takes times from a clock that moves a few hundred times
//! a second (`CLOCK_REALTIME_COARSE`), so they have changed if that clock has moved since they were last
//! written back. A wrong guess costs one commit more, or one that is not started early.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::volume::types::Time;

/// The newest times that were written back.
#[derive(Default)]
pub(super) struct WrittenTimes(AtomicU64);

impl WrittenTimes {
    /// The kernel has written times back.
    pub(super) fn note(&self, mtime: Time) {
        let nanoseconds = u64::try_from(mtime.0).unwrap_or(0);
        self.0.store(nanoseconds, Ordering::Relaxed);
    }

    /// Whether pages that were changed just now are followed by times.
    pub(super) fn follow(&self) -> bool {
        self.0.load(Ordering::Relaxed) != coarse_now()
    }
}

/// The clock that files get their times from, in nanoseconds.
fn coarse_now() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes the structure it is given and nothing else.
    if unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &raw mut now) } != 0 {
        return 0;
    }
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_follow_once_for_each_step_of_the_clock() {
        let times = WrittenTimes::default();
        assert!(times.follow(), "nothing was written back yet");
        // The clock may move between two calls, and does not move for long.
        let still = (0..1000).any(|_| {
            times.note(Time(i128::from(coarse_now())));
            !times.follow()
        });
        assert!(still, "written back within this step");
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(times.follow(), "the clock has moved");
    }
}
