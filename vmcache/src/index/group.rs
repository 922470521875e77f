//! Group commit: those who want to commit while a commit is under way share the next one.

use crate::error::Result;
use parking_lot::{Condvar, Mutex};
use std::sync::{Arc, OnceLock};

/// The outcome of one commit, for everybody who waits for it.
type Outcome = Arc<OnceLock<Result<()>>>;

#[derive(Default)]
struct State {
    running: bool,
    /// The commit after the running one.
    next: Outcome,
}

/// Makes one commit of many requests.
#[derive(Default)]
pub(super) struct Group {
    state: Mutex<State>,
    finished: Condvar,
}

impl Group {
    /// Returns the outcome of a commit that began after this call did: by running `commit`, or from
    /// another thread that ran it.
    pub(super) fn commit(&self, commit: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut state = self.state.lock();
        let mine = Arc::clone(&state.next);
        loop {
            if let Some(outcome) = mine.get() {
                return outcome.clone();
            }
            if !state.running {
                break;
            }
            self.finished.wait(&mut state);
        }
        state.running = true;
        state.next = Outcome::default();
        drop(state);
        let _running = Running(self);
        let outcome = commit();
        mine.get_or_init(|| outcome).clone()
    }
}

/// Lets the next commit run when this one ends, be it by a panic.
struct Running<'g>(&'g Group);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.state.lock().running = false;
        self.0.finished.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn every_request_gets_a_commit_that_began_after_it_and_many_share_one() {
        let group = Group::default();
        let (written, durable, commits) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let mine = written.fetch_add(1, Ordering::SeqCst) + 1;
                        let flush = || {
                            let seen = written.load(Ordering::SeqCst);
                            std::thread::sleep(std::time::Duration::from_micros(300));
                            durable.store(seen, Ordering::SeqCst);
                            commits.fetch_add(1, Ordering::SeqCst);
                            Ok(())
                        };
                        group.commit(flush).unwrap();
                        assert!(durable.load(Ordering::SeqCst) >= mine);
                    }
                });
            }
        });
        let commits = commits.into_inner();
        assert!(commits < 300, "{commits} commits for 400 requests");
    }
}
