//! Cages that no kernel runs in at the moment.
//!
//! A cage is either its owner's (an activation's), warm, with everything the last execution left
//! there, or it is nobody's and wiped. It changes hands only through [`Instance::wipe`]. Compiled
//! code stays with a wiped cage, as it is bound to its address and holds nothing of an owner.
//!
//! Who is told of the end of an execution, which still has its output in the cage, asks for the next
//! one at once, and another worker may take that up before the cage is back. It waits for the cage:
//! all that the snapshot has been read of is mapped and verified in there.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::engine::cage::CageError;
use crate::execution::Instance;

/// Names an activation. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner(pub(crate) u64);

/// How long an execution waits for a cage that is about to come back: less than it takes to map and
/// verify a few MiB in another one.
const PATIENCE: Duration = Duration::from_millis(1);

/// The pool.
pub(crate) struct Pool {
    cages_max: usize,
    clean_max: usize,
    state: Mutex<State>,
    /// A cage that was about to come back has.
    returned: Condvar,
    pub(crate) made: AtomicU64,
    pub(crate) wiped: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Owned ones, least recently used first.
    warm: Vec<(Owner, Instance)>,
    clean: Vec<Instance>,
    /// Owners of cages that are about to come back, once for each.
    returning: Vec<Owner>,
    /// Cages that exist, those in use included.
    alive: usize,
}

/// A cage taken from the pool.
pub(crate) struct Taken {
    pub(crate) instance: Instance,
    /// Whether its owner has used it before.
    pub(crate) warm: bool,
}

impl Pool {
    /// An empty pool, for at most `cages_max` cages, of which `clean_max` wiped ones are kept.
    pub(crate) fn new(cages_max: usize, clean_max: usize) -> Pool {
        Pool {
            cages_max,
            clean_max,
            state: Mutex::new(State::default()),
            returned: Condvar::new(),
            made: AtomicU64::new(0),
            wiped: AtomicU64::new(0),
        }
    }

    /// A cage for `owner` to run the program with `hash` in: one of its own, else a wiped one
    /// (best with code for the program), else a new one, else, when there are enough, the one
    /// that another owner has not used for the longest time.
    pub(crate) fn take(&self, owner: Owner, hash: &[u8; 32]) -> Result<Taken, CageError> {
        let mut state = self.state.lock();
        let mut waits = true;
        loop {
            if let Some(at) = state.warm.iter().rposition(|(whose, _)| *whose == owner) {
                let (_, instance) = state.warm.remove(at);
                let warm = true;
                return Ok(Taken { instance, warm });
            }
            if !waits || !state.returning.contains(&owner) {
                break;
            }
            waits = !self.returned.wait_for(&mut state, PATIENCE).timed_out();
        }
        let compiled = state.clean.iter().position(|i| i.has_code_for(hash));
        if let Some(at) = compiled.or(state.clean.len().checked_sub(1)) {
            let instance = state.clean.swap_remove(at);
            return Ok(Taken {
                instance,
                warm: false,
            });
        }
        if state.alive >= self.cages_max && !state.warm.is_empty() {
            let (_, mut instance) = state.warm.remove(0);
            drop(state);
            if self.wipe(&mut instance) {
                return Ok(Taken {
                    instance,
                    warm: false,
                });
            }
            self.state.lock().alive -= 1;
            drop(instance);
            state = self.state.lock();
        }
        state.alive += 1;
        drop(state);
        self.make()
    }

    fn make(&self) -> Result<Taken, CageError> {
        let made = Instance::new();
        if made.is_err() {
            self.state.lock().alive -= 1;
        } else {
            self.made.fetch_add(1, Ordering::Relaxed);
        }
        let instance = made?;
        let warm = false;
        Ok(Taken { instance, warm })
    }

    /// A cage of `owner` is given back, or discarded, as soon as its output has been looked at.
    pub(crate) fn announce(&self, owner: Owner) {
        self.state.lock().returning.push(owner);
    }

    /// What was announced has happened.
    pub(crate) fn keep_word(&self, owner: Owner) {
        let mut state = self.state.lock();
        if let Some(at) = state.returning.iter().position(|whose| *whose == owner) {
            state.returning.swap_remove(at);
        }
        drop(state);
        self.returned.notify_all();
    }

    /// Gives a cage back, warm for its owner unless that has ended meanwhile.
    pub(crate) fn give_back(&self, owner: Owner, ended: &AtomicBool, instance: Instance) {
        let mut state = self.state.lock();
        if ended.load(Ordering::Acquire) {
            drop(state);
            self.recycle(instance);
        } else {
            state.warm.push((owner, instance));
        }
    }

    /// Wipes a cage for whoever comes next.
    pub(crate) fn recycle(&self, mut instance: Instance) {
        let wiped = self.wipe(&mut instance);
        let mut state = self.state.lock();
        if wiped && state.clean.len() < self.clean_max {
            state.clean.push(instance);
        } else {
            state.alive -= 1;
            drop(state);
            drop(instance);
        }
    }

    /// A cage that must not be used again.
    pub(crate) fn discard(&self, instance: Instance) {
        self.state.lock().alive -= 1;
        drop(instance);
    }

    /// `owner` has ended: takes its cages away, those in use when they are given back.
    pub(crate) fn retire(&self, owner: Owner, ended: &AtomicBool) {
        let mut state = self.state.lock();
        ended.store(true, Ordering::Release);
        let mut own = Vec::new();
        while let Some(at) = state.warm.iter().position(|(whose, _)| *whose == owner) {
            own.push(state.warm.remove(at).1);
        }
        drop(state);
        for instance in own {
            self.recycle(instance);
        }
    }

    fn wipe(&self, instance: &mut Instance) -> bool {
        self.wiped.fetch_add(1, Ordering::Relaxed);
        instance
            .wipe()
            .inspect_err(|error| tracing::error!(%error, "a cage could not be wiped"))
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner(1);

    #[test]
    fn a_cage_that_is_about_to_come_back_is_waited_for() {
        let pool = Pool::new(8, 8);
        let ended = AtomicBool::new(false);
        // On a busy machine it may come back too late.
        let waited = (0..50).any(|_| {
            let taken = pool.take(OWNER, &[0; 32]).unwrap();
            pool.announce(OWNER);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(PATIENCE / 20);
                    pool.give_back(OWNER, &ended, taken.instance);
                    pool.keep_word(OWNER);
                });
                let next = pool.take(OWNER, &[0; 32]).unwrap();
                let warm = next.warm;
                pool.discard(next.instance);
                warm
            })
        });
        assert!(waited);
    }

    #[test]
    fn a_cage_that_does_not_come_back_is_not_waited_for_long() {
        let pool = Pool::new(8, 8);
        pool.announce(OWNER);
        assert!(!pool.take(OWNER, &[0; 32]).unwrap().warm);
        pool.keep_word(OWNER);
        assert!(pool.state.lock().returning.is_empty());
    }
}
