//! Looking at memory in place that may turn out not to be there.

use std::ops::Range;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU64, compiler_fence};

use super::signals;

/// No address was missing.
const NONE: u64 = u64::MAX;

/// What a thread is looking at, and the first address that was not there. Atomics as signal
/// handlers of the thread access it too.
struct Inspection {
    start: AtomicU64,
    end: AtomicU64,
    missing: AtomicU64,
}

thread_local! {
    static INSPECTION: Inspection = const {
        Inspection {
            start: AtomicU64::new(0),
            end: AtomicU64::new(0),
            missing: AtomicU64::new(NONE),
        }
    };
}

/// Puts back what was being looked at before, also when the look panics.
struct Restore([u64; 3]);

impl Drop for Restore {
    fn drop(&mut self) {
        set(self.0);
    }
}

fn set(new: [u64; 3]) -> [u64; 3] {
    compiler_fence(SeqCst);
    let old = INSPECTION.with(|i| {
        let fields = [&i.start, &i.end, &i.missing];
        let old = fields.map(|field| field.load(Relaxed));
        fields
            .iter()
            .zip(new)
            .for_each(|(field, value)| field.store(value, Relaxed));
        old
    });
    compiler_fence(SeqCst);
    old
}

/// Lets `look` read the memory at `range`. Pages that are not there, or whose file ends before
/// them, become zeros, and the result is the address of the first of them.
///
/// # Safety
/// The range is a part of a window: nothing but mappings of files and blocks are there, no Rust
/// object, and nobody changes the mappings meanwhile.
pub(in crate::engine) unsafe fn inspect<R>(
    range: Range<u64>,
    look: impl FnOnce() -> R,
) -> Result<R, u64> {
    signals::install();
    let restore = Restore(set([range.start, range.end, NONE]));
    let result = look();
    compiler_fence(SeqCst);
    let missing = INSPECTION.with(|inspection| inspection.missing.load(Relaxed));
    drop(restore);
    match missing {
        NONE => Ok(result),
        address => Err(address),
    }
}

/// Whether a fault at `address` is of a look at it; if so, it is noted.
pub(super) fn note_missing(address: u64) -> bool {
    INSPECTION.with(|inspection| {
        let range = inspection.start.load(Relaxed)..inspection.end.load(Relaxed);
        if !range.contains(&address) {
            return false;
        }
        if inspection.missing.load(Relaxed) == NONE {
            inspection.missing.store(address, Relaxed);
        }
        true
    })
}
