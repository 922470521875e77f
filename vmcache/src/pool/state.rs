//! The state word of a page: eight bits of state, 56 bits of version.
//!
//! ```text
//!  63        62..56                                  55..0
//! [waiters] [0 evicted | 1 unlocked | 2 marked |    [version: counts the ends of exclusive latches]
//!            3 exclusive | 4.. shared by n-3]
//! ```
//!
//! Zero is an evicted page, so fresh memory needs no initialisation. A marked page is an unlocked one
//! that the clock has passed: evicted at its next pass unless somebody reads it before. An optimistic
//! reader notes the version, reads, and is right if afterwards the version is the same and nobody holds
//! the page exclusively.
//!
//! Memory order, as for every sequence lock: the holder of an exclusive latch acquires it, issues a
//! release fence, and stores data relaxed; the reader loads data relaxed, issues an acquire fence, and
//! loads the word again. If a load of the reader saw a store of the holder, the fences synchronise and
//! the reader's last load sees the latch (or a later version), so it does not validate.
//!
//! A thread that finds the page latched spins for a moment, sets the waiters bit and parks; whoever
//! ends the latch clears the bit with the same store and wakes all. The park re-examines the word under
//! the parking lot's own lock, which the waker takes after its store, so no wake-up is lost.

use super::sync::{AtomicU64, Ordering, fence, park, spin, unpark_all};

const STATE_SHIFT: u32 = 56;
const VERSION_MASK: u64 = (1 << STATE_SHIFT) - 1;
const WAITERS: u64 = 1 << 63;

const EVICTED: u64 = 0;
const UNLOCKED: u64 = 1;
const MARKED: u64 = 2;
const EXCLUSIVE: u64 = 3;
pub(super) const SHARED_BY_NONE: u64 = 3;
pub(super) const SHARED_MAX: u64 = 127;

/// Rounds of spinning before a thread parks: about as long as a change to a page takes.
const SPINS: u32 = 40;

/// What a state word says about latches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Latch {
    Evicted,
    Unlocked,
    Marked,
    Exclusive,
    Shared(u64),
}

/// A value that a state word had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word(u64);

impl Word {
    pub(super) fn latch(self) -> Latch {
        match (self.0 & !WAITERS) >> STATE_SHIFT {
            EVICTED => Latch::Evicted,
            UNLOCKED => Latch::Unlocked,
            MARKED => Latch::Marked,
            EXCLUSIVE => Latch::Exclusive,
            count => Latch::Shared(count - SHARED_BY_NONE),
        }
    }

    pub(super) fn version(self) -> u64 {
        self.0 & VERSION_MASK
    }

    fn has_waiters(self) -> bool {
        self.0 & WAITERS != 0
    }

    fn with_state(self, state: u64) -> Word {
        Word(self.0 & (VERSION_MASK | WAITERS) | state << STATE_SHIFT)
    }

    /// The next version, in `state`, with no waiters.
    fn next(self, state: u64) -> Word {
        Word((self.0 + 1) & VERSION_MASK | state << STATE_SHIFT)
    }
}

/// The state word of one page.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageState<'a>(pub(super) &'a AtomicU64);

impl PageState<'_> {
    #[inline]
    pub(super) fn load(self) -> Word {
        Word(self.0.load(Ordering::Acquire))
    }

    /// Whether everything read since `version` was noted, with no exclusive latch, is of one piece.
    #[inline]
    pub(super) fn validate(self, version: u64) -> bool {
        fence(Ordering::Acquire);
        let word = Word(self.0.load(Ordering::Relaxed));
        word.version() == version && !matches!(word.latch(), Latch::Exclusive | Latch::Evicted)
    }

    #[inline]
    fn change(self, seen: Word, new: Word) -> bool {
        self.0
            .compare_exchange(seen.0, new.0, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    fn enter_exclusive(self, seen: Word) -> bool {
        let entered = self.change(seen, seen.with_state(EXCLUSIVE));
        // Orders the latch before the data that its holder stores: see the module's text.
        fence(Ordering::Release);
        entered
    }

    /// Latches an unlocked or marked page exclusively, if the word is still `seen`.
    pub(super) fn try_exclusive(self, seen: Word) -> bool {
        matches!(seen.latch(), Latch::Unlocked | Latch::Marked) && self.enter_exclusive(seen)
    }

    /// Latches an evicted page exclusively, to bring it in.
    pub(super) fn try_fault(self, seen: Word) -> bool {
        seen.latch() == Latch::Evicted && self.enter_exclusive(seen)
    }

    /// Turns the only shared latch into an exclusive one.
    pub(super) fn try_upgrade(self) -> bool {
        let seen = self.load();
        seen.latch() == Latch::Shared(1) && self.enter_exclusive(seen)
    }

    /// Latches a resident page shared, if the word is still `seen`.
    ///
    /// Refused while somebody waits, so that readers in turn do not keep a writer out.
    pub(super) fn try_shared(self, seen: Word) -> bool {
        !seen.has_waiters() && self.try_shared_before_waiters(seen)
    }

    /// [`PageState::try_shared`] for those who cannot wait for the waiters.
    pub(super) fn try_shared_before_waiters(self, seen: Word) -> bool {
        let count = match seen.latch() {
            Latch::Unlocked | Latch::Marked => 0,
            Latch::Shared(count) if SHARED_BY_NONE + count < SHARED_MAX => count,
            _ => return false,
        };
        self.change(seen, seen.with_state(SHARED_BY_NONE + count + 1))
    }

    /// Marks an unlocked page for eviction at the clock's next pass.
    pub(super) fn try_mark(self, seen: Word) -> bool {
        seen.latch() == Latch::Unlocked && self.change(seen, seen.with_state(MARKED))
    }

    /// Takes the mark off again, since the page is in use.
    pub(super) fn try_unmark(self, seen: Word) -> bool {
        seen.latch() == Latch::Marked && self.change(seen, seen.with_state(UNLOCKED))
    }

    /// Ends an exclusive latch; the page stays resident.
    pub(super) fn release_exclusive(self) {
        self.end_exclusive(UNLOCKED);
    }

    /// Ends the exclusive latch under which a page was read for somebody: resident, and marked until it is
    /// used again.
    pub(super) fn release_marked(self) {
        self.end_exclusive(MARKED);
    }

    /// Ends an exclusive latch; the page is no longer, or did not become, resident.
    pub(super) fn release_evicted(self) {
        self.end_exclusive(EVICTED);
    }

    fn end_exclusive(self, state: u64) {
        let mut seen = Word(self.0.load(Ordering::Relaxed));
        debug_assert_eq!(seen.latch(), Latch::Exclusive);
        // Only the waiters bit can change under an exclusive latch.
        while let Err(now) = self.0.compare_exchange_weak(
            seen.0,
            seen.next(state).0,
            Ordering::Release,
            Ordering::Relaxed,
        ) {
            seen = Word(now);
        }
        self.wake_if(seen.has_waiters());
    }

    /// Ends a shared latch.
    pub(super) fn release_shared(self) {
        let mut seen = Word(self.0.load(Ordering::Relaxed));
        loop {
            let Latch::Shared(count) = seen.latch() else {
                unreachable!("a shared latch is held")
            };
            let new = match count {
                1 => Word(seen.with_state(UNLOCKED).0 & !WAITERS),
                _ => seen.with_state(SHARED_BY_NONE + count - 1),
            };
            match self
                .0
                .compare_exchange_weak(seen.0, new.0, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return self.wake_if(count == 1 && seen.has_waiters()),
                Err(now) => seen = Word(now),
            }
        }
    }

    /// Returns once the word may differ from `seen`; at once if that was not latched.
    #[cold]
    pub(super) fn wait(self, seen: Word) {
        if !matches!(seen.latch(), Latch::Exclusive | Latch::Shared(_)) {
            return;
        }
        for _ in 0..SPINS {
            spin();
            if self.load() != seen {
                return;
            }
        }
        let waiting = Word(seen.0 | WAITERS);
        if seen != waiting && !self.change(seen, waiting) {
            return;
        }
        park(self.0, || self.0.load(Ordering::Relaxed) == waiting.0);
    }

    fn wake_if(self, waiters: bool) {
        if waiters {
            unpark_all(self.0);
        }
    }
}
