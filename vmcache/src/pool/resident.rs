//! The set of resident pages, which the clock hand passes over: open addressing, no locks.
//!
//! A page enters and leaves under its exclusive latch, so never twice at once. Slots are claimed and
//! cleared by compare-and-swap. A cleared slot becomes a tombstone, which the next page to probe it
//! takes; since a page never moves while it is in the set, probing for it may pass over anything.
//! With twice as many slots as frames, probes stay short.

use crate::page::PageId;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const FREE: u64 = 0;
const TOMBSTONE: u64 = u64::MAX;

/// The pages that have a frame.
pub(super) struct ResidentSet {
    /// Page number plus one, or [`FREE`], or [`TOMBSTONE`].
    slots: Box<[AtomicU64]>,
    hand: AtomicUsize,
}

impl ResidentSet {
    /// A set for at most `frames` pages.
    pub(super) fn new(frames: usize) -> ResidentSet {
        let slots = (2 * frames).next_power_of_two();
        ResidentSet {
            slots: (0..slots).map(|_| AtomicU64::new(FREE)).collect(),
            hand: AtomicUsize::new(0),
        }
    }

    /// Number of slots: a full turn of the clock.
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    fn probe(&self, page: PageId) -> impl Iterator<Item = &AtomicU64> {
        let mask = self.slots.len() - 1;
        // Fibonacci hashing: neighbours in the file land far apart.
        let home = (page.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) as usize;
        (0..self.slots.len()).map(move |step| &self.slots[(home + step) & mask])
    }

    /// Adds a page, whose exclusive latch the caller holds.
    pub(super) fn insert(&self, page: PageId) {
        for slot in self.probe(page) {
            let seen = slot.load(Ordering::Relaxed);
            if (seen == FREE || seen == TOMBSTONE)
                && slot
                    .compare_exchange(seen, page.0 + 1, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok()
            {
                return;
            }
        }
        unreachable!("the set has twice as many slots as there are frames");
    }

    /// Removes a page, whose exclusive latch the caller holds.
    pub(super) fn remove(&self, page: PageId) {
        let found = self
            .probe(page)
            .find(|slot| slot.load(Ordering::Relaxed) == page.0 + 1);
        found
            .expect("a resident page is in the set")
            .store(TOMBSTONE, Ordering::Relaxed);
    }

    /// Moves the clock hand over `count` slots and returns the pages in them.
    pub(super) fn advance(&self, count: usize) -> impl Iterator<Item = PageId> {
        let mask = self.slots.len() - 1;
        let from = self.hand.fetch_add(count, Ordering::Relaxed);
        (from..from.wrapping_add(count)).filter_map(move |at| {
            match self.slots[at & mask].load(Ordering::Relaxed) {
                FREE | TOMBSTONE => None,
                number => Some(PageId(number - 1)),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn one_turn_of_the_hand_meets_every_page_once_through_much_turnover() {
        let set = ResidentSet::new(100);
        let mut model = BTreeSet::new();
        for round in 0..20_000_u64 {
            let page = round * 7919 % 5000;
            if model.len() == 100 {
                let oldest = *model.iter().nth((round % 100) as usize).unwrap();
                model.remove(&oldest);
                set.remove(PageId(oldest));
            }
            if model.insert(page) {
                set.insert(PageId(page));
            }
        }
        let met: Vec<_> = set.advance(set.slots()).map(|page| page.0).collect();
        assert_eq!(met.len(), model.len());
        assert_eq!(met.into_iter().collect::<BTreeSet<_>>(), model);
    }
}
