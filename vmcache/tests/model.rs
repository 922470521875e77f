//! The page state machine under a model checker: every interleaving of a few threads, and every value
//! that the memory model lets a relaxed load return.

/// What the checker puts in place of `pool/sync.rs`.
mod sync {
    pub(super) use loom::sync::atomic::{AtomicU64, Ordering, fence};

    /// The checker explores waiting by itself; spinning would only add states.
    pub(super) fn spin() {}

    pub(super) fn park(_word: &AtomicU64, still: impl Fn() -> bool) {
        while still() {
            loom::thread::yield_now();
        }
    }

    pub(super) fn unpark_all(_word: &AtomicU64) {}
}

#[allow(dead_code, reason = "each model uses a part")]
#[path = "../src/pool/state.rs"]
mod state;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use state::{Latch, PageState};

/// A page of two words that always hold the same number.
struct Page {
    word: AtomicU64,
    data: [AtomicU64; 2],
}

impl Page {
    /// Resident, unlocked, both words zero.
    fn resident() -> Arc<Page> {
        let page = Page {
            word: AtomicU64::new(0),
            data: [AtomicU64::new(0), AtomicU64::new(0)],
        };
        let state = page.state();
        assert!(state.try_fault(state.load()));
        state.release_exclusive();
        Arc::new(page)
    }

    fn state(&self) -> PageState<'_> {
        PageState(&self.word)
    }

    fn lock_exclusive(&self) {
        let state = self.state();
        loop {
            let seen = state.load();
            if state.try_exclusive(seen) {
                return;
            }
            state.wait(seen);
        }
    }

    /// Adds one to both words, under the exclusive latch.
    fn increment(&self) {
        self.lock_exclusive();
        let [first, second] = [0, 1].map(|at: usize| self.data[at].load(Ordering::Relaxed));
        assert_eq!(first, second, "two exclusive latches at once");
        self.data[0].store(first + 1, Ordering::Relaxed);
        self.data[1].store(second + 1, Ordering::Relaxed);
        self.state().release_exclusive();
    }

    /// Both words, if reading them without a latch validates.
    fn read_optimistically(&self) -> Option<[u64; 2]> {
        let seen = self.state().load();
        if matches!(seen.latch(), Latch::Exclusive | Latch::Evicted) {
            return None;
        }
        let words = [0, 1].map(|at: usize| self.data[at].load(Ordering::Relaxed));
        self.state().validate(seen.version()).then_some(words)
    }
}

/// Runs every interleaving, or those with so many preemptions at most.
fn model(preemptions_max: Option<usize>, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions_max;
    builder.check(run);
}

#[test]
fn validated_optimistic_reads_are_never_torn() {
    model(None, || {
        let page = Page::resident();
        let writer = thread::spawn({
            let page = Arc::clone(&page);
            move || {
                page.increment();
                page.increment();
            }
        });
        for _ in 0..2 {
            if let Some([first, second]) = page.read_optimistically() {
                assert_eq!(first, second);
            }
        }
        writer.join().unwrap();
        assert_eq!(page.read_optimistically(), Some([2, 2]));
    });
}

#[test]
fn an_evicted_and_reloaded_page_does_not_validate_for_a_reader_from_before() {
    model(None, || {
        let page = Page::resident();
        let evictor = thread::spawn({
            let page = Arc::clone(&page);
            move || {
                let state = page.state();
                if state.try_mark(state.load()) && state.try_exclusive(state.load()) {
                    page.data
                        .iter()
                        .for_each(|word| word.store(0, Ordering::Relaxed));
                    state.release_evicted();
                    assert!(state.try_fault(state.load()));
                    page.data
                        .iter()
                        .for_each(|word| word.store(7, Ordering::Relaxed));
                    state.release_exclusive();
                }
            }
        });
        if let Some([first, second]) = page.read_optimistically() {
            assert_eq!(first, second);
        }
        evictor.join().unwrap();
    });
}

#[test]
fn a_page_that_is_evicted_right_after_it_was_read_does_not_validate_for_its_reader() {
    model(None, || {
        let page = Arc::new(Page {
            word: AtomicU64::new(0),
            data: [AtomicU64::new(0), AtomicU64::new(0)],
        });
        let evictor = thread::spawn({
            let page = Arc::clone(&page);
            move || {
                let state = page.state();
                let seen = state.load();
                if seen.latch() == Latch::Marked && state.try_exclusive(seen) {
                    page.data
                        .iter()
                        .for_each(|word| word.store(0, Ordering::Relaxed));
                    state.release_evicted();
                }
            }
        });
        let state = page.state();
        assert!(state.try_fault(state.load()));
        page.data
            .iter()
            .for_each(|word| word.store(7, Ordering::Relaxed));
        state.release_marked();
        if let Some(words) = page.read_optimistically() {
            assert_eq!(words, [7, 7]);
        }
        evictor.join().unwrap();
    });
}

#[test]
fn exclusive_latches_exclude_each_other_and_nobody_waits_for_ever() {
    model(None, || {
        let page = Page::resident();
        let other = thread::spawn({
            let page = Arc::clone(&page);
            move || page.increment()
        });
        page.increment();
        other.join().unwrap();
        assert_eq!(page.read_optimistically(), Some([2, 2]));
        assert_eq!(page.state().load().latch(), Latch::Unlocked);
    });
}

#[test]
fn a_shared_latch_keeps_changes_out_and_upgrades_only_when_alone() {
    model(Some(2), || {
        let page = Page::resident();
        let writer = thread::spawn({
            let page = Arc::clone(&page);
            move || page.increment()
        });
        let state = page.state();
        let seen = state.load();
        if state.try_shared(seen) {
            let [first, second] = [0, 1].map(|at: usize| page.data[at].load(Ordering::Relaxed));
            assert_eq!(first, second);
            if state.try_upgrade() {
                page.data
                    .iter()
                    .for_each(|word| word.store(first + 1, Ordering::Relaxed));
                state.release_exclusive();
            } else {
                state.release_shared();
            }
        }
        writer.join().unwrap();
        let [first, second] = page.read_optimistically().unwrap();
        assert!(first == second && (1..=2).contains(&first));
    });
}
