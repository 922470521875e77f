//! The page state word in one thread, and waiting in several; `tests/model.rs` has every interleaving.

use super::state::{Latch, PageState, SHARED_BY_NONE, SHARED_MAX};
use super::sync::{AtomicU64, Ordering};

fn unlocked(word: &AtomicU64) -> PageState<'_> {
    let state = PageState(word);
    assert!(state.try_fault(state.load()));
    state.release_exclusive();
    state
}

#[test]
fn fresh_memory_is_an_evicted_page_of_version_zero() {
    let word = AtomicU64::new(0);
    let state = PageState(&word);
    assert_eq!(
        (state.load().latch(), state.load().version()),
        (Latch::Evicted, 0)
    );
    assert!(!state.try_exclusive(state.load()) && !state.try_shared(state.load()));
}

#[test]
fn only_the_end_of_an_exclusive_latch_changes_the_version() {
    let word = AtomicU64::new(0);
    let state = unlocked(&word);
    let version = state.load().version();
    assert!(state.try_shared(state.load()) && state.try_shared(state.load()));
    assert_eq!(state.load().latch(), Latch::Shared(2));
    assert!(state.validate(version) && !state.try_upgrade());
    state.release_shared();
    state.release_shared();
    assert!(state.try_mark(state.load()) && state.validate(version));
    assert!(state.try_unmark(state.load()) && state.validate(version));
    assert!(state.try_exclusive(state.load()) && !state.validate(version));
    state.release_exclusive();
    assert!(!state.validate(version) && state.validate(version + 1));
}

#[test]
fn shared_latches_are_counted_up_to_the_field_and_refused_beyond() {
    let word = AtomicU64::new(0);
    let state = unlocked(&word);
    let held = (0..1000)
        .take_while(|_| state.try_shared(state.load()))
        .count();
    assert_eq!(held as u64, SHARED_MAX - SHARED_BY_NONE);
    (0..held).for_each(|_| state.release_shared());
    assert_eq!(state.load().latch(), Latch::Unlocked);
}

#[test]
fn waiters_wake_when_the_latch_ends_and_counters_under_it_do_not_race() {
    let word = AtomicU64::new(0);
    let state = unlocked(&word);
    let total = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..2000 {
                    let mut seen = state.load();
                    while !state.try_exclusive(seen) {
                        state.wait(seen);
                        seen = state.load();
                    }
                    let value = total.load(Ordering::Relaxed);
                    if round % 64 == 0 {
                        std::thread::yield_now();
                    }
                    total.store(value + 1, Ordering::Relaxed);
                    state.release_exclusive();
                }
            });
        }
    });
    assert_eq!(total.into_inner(), 8000);
    assert_eq!(state.load().latch(), Latch::Unlocked);
}
