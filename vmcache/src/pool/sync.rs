//! What the page state machine needs of threads, in one place so that a model checker can stand in: see
//! `tests/model.rs`.

pub(super) use std::hint::spin_loop as spin;
pub(super) use std::sync::atomic::{AtomicU64, Ordering, fence};

use parking_lot_core::{DEFAULT_PARK_TOKEN, DEFAULT_UNPARK_TOKEN};

fn key(word: &AtomicU64) -> usize {
    std::ptr::from_ref(word).addr()
}

/// Sleeps until [`unpark_all`] for the word, unless `still` says that there is no reason to. It is asked
/// under a lock that `unpark_all` takes too.
pub(super) fn park(word: &AtomicU64, still: impl Fn() -> bool) {
    // SAFETY: the key is the address of a word of the pool's own mapping, which nobody else parks on; the
    // callbacks neither panic nor use the parking lot.
    unsafe {
        parking_lot_core::park(key(word), still, || {}, |_, _| {}, DEFAULT_PARK_TOKEN, None);
    }
}

/// Wakes everybody who sleeps for the word.
pub(super) fn unpark_all(word: &AtomicU64) {
    // SAFETY: as in `park`.
    unsafe { parking_lot_core::unpark_all(key(word), DEFAULT_UNPARK_TOKEN) };
}
