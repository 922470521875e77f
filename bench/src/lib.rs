//! What the load generators share.

use std::io;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// Runs `work(thread)` on `threads` threads at once and returns how long the slowest took.
///
/// # Errors
/// The first error of any thread.
pub fn on_threads(
    threads: usize,
    work: impl Fn(usize) -> io::Result<()> + Sync,
) -> io::Result<Duration> {
    let start = Barrier::new(threads + 1);
    std::thread::scope(|scope| {
        let spawn = |thread| {
            let (start, work) = (&start, &work);
            scope.spawn(move || {
                start.wait();
                work(thread)
            })
        };
        let workers: Vec<_> = (0..threads).map(spawn).collect();
        start.wait();
        let begun = Instant::now();
        for worker in workers {
            worker
                .join()
                .map_err(|_| io::Error::other("a load thread panicked"))??;
        }
        Ok(begun.elapsed())
    })
}

/// The value below which `share` (0 to 1) of the sorted `values` lie; zero of none.
#[must_use]
pub fn percentile(values: &[Duration], share: f64) -> Duration {
    let last = values.len().saturating_sub(1);
    let at = (last as f64 * share).round() as usize;
    values.get(at).copied().unwrap_or_default()
}
