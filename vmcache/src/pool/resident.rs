//! The set of resident pages, which the clock hand passes over: open addressing, no locks.
//!
//! A page enters and leaves under its exclusive latch, so never twice at once. Slots are claimed and
//! cleared by compare-and-swap. A cleared slot becomes a tombstone, which the next page to probe it
//! takes; since a page never moves while it is in the set, probing for it may pass over anything.
//! With twice as many slots as frames, probes stay short.
//!
//! A slot also has the page's heat: in how many of the last turns of the hand it was used, in effect.
//! Only the hand changes it; of two hands that meet the same page at once one is not counted.

use crate::page::PageId;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const FREE: u64 = 0;
const TOMBSTONE: u64 = u64::MAX;
const HEAT_SHIFT: u32 = 56;
const NUMBER_MASK: u64 = (1 << HEAT_SHIFT) - 1;

/// A heat above all others: the page came into memory without being used, or as part of one use, which
/// the first pass of the hand does not count.
const FRESH: u8 = 0x7f;
/// What a page gains in a turn in which it was used, and the most that it has. It loses one in others.
const GAIN: u8 = 4;
const HEAT_MAX: u8 = 15;

/// How a page comes into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// For somebody who reads it now: evicted at the hand's next pass if that is all.
    Read,
    /// Ahead of its use, or made: the next pass spares it, and counts no use before it.
    Ahead,
}

/// The pages that have a frame.
pub(super) struct ResidentSet {
    /// Page number plus one, and above it the heat; or [`FREE`], or [`TOMBSTONE`].
    slots: Box<[AtomicU64]>,
    hand: AtomicUsize,
}

/// A page that the hand has met.
#[derive(Clone, Copy)]
pub(super) struct Met<'s> {
    pub(super) page: PageId,
    slot: &'s AtomicU64,
    seen: u64,
}

impl Met<'_> {
    fn heat(&self) -> u8 {
        (self.seen >> HEAT_SHIFT) as u8
    }

    /// Changes the heat unless the page has left meanwhile.
    fn set_heat(&self, heat: u8) {
        let new = (self.seen & NUMBER_MASK) | u64::from(heat) << HEAT_SHIFT;
        _ = self
            .slot
            .compare_exchange(self.seen, new, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The page was used since the hand met it last.
    pub(super) fn warm(&self) {
        self.set_heat(match self.heat() {
            FRESH => 0,
            heat => (heat + GAIN).min(HEAT_MAX),
        });
    }

    /// The page was not used since then. Takes so much of its heat away, and returns whether it had any.
    pub(super) fn cool(&self, loss: u8) -> bool {
        match self.heat() {
            0 => return false,
            FRESH => self.set_heat(0),
            heat => self.set_heat(heat.saturating_sub(loss)),
        }
        true
    }
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
    pub(super) fn insert(&self, page: PageId, entry: Entry) {
        let heat = match entry {
            Entry::Read => 0,
            Entry::Ahead => FRESH,
        };
        let new = (page.0 + 1) | u64::from(heat) << HEAT_SHIFT;
        for slot in self.probe(page) {
            let seen = slot.load(Ordering::Relaxed);
            if (seen == FREE || seen == TOMBSTONE)
                && slot
                    .compare_exchange(seen, new, Ordering::Relaxed, Ordering::Relaxed)
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
            .find(|slot| slot.load(Ordering::Relaxed) & NUMBER_MASK == page.0 + 1);
        found
            .expect("a resident page is in the set")
            .store(TOMBSTONE, Ordering::Relaxed);
    }

    /// Moves the clock hand over `count` slots and returns the pages in them.
    pub(super) fn advance(&self, count: usize) -> impl Iterator<Item = Met<'_>> {
        let mask = self.slots.len() - 1;
        let from = self.hand.fetch_add(count, Ordering::Relaxed);
        (from..from.wrapping_add(count)).filter_map(move |at| {
            let slot = &self.slots[at & mask];
            match slot.load(Ordering::Relaxed) {
                FREE | TOMBSTONE => None,
                seen => Some(Met {
                    page: PageId((seen & NUMBER_MASK) - 1),
                    slot,
                    seen,
                }),
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
                let entry = [Entry::Read, Entry::Ahead][(round % 2) as usize];
                set.insert(PageId(page), entry);
            }
            set.advance(3).for_each(|met| met.warm());
        }
        let met: Vec<_> = set.advance(set.slots()).map(|met| met.page.0).collect();
        assert_eq!(met.len(), model.len());
        assert_eq!(met.into_iter().collect::<BTreeSet<_>>(), model);
    }

    #[test]
    fn heat_grows_with_use_up_to_its_bound_and_is_lost_turn_by_turn() {
        let set = ResidentSet::new(4);
        let met = || set.advance(set.slots()).next().unwrap();
        set.insert(PageId(7), Entry::Read);
        assert!(!met().cool(1));
        (0..3).for_each(|_| met().warm());
        let turns = (0..).take_while(|_| met().cool(1)).count();
        assert_eq!(turns, 3 * usize::from(GAIN));
        (0..20).for_each(|_| met().warm());
        assert_eq!(met().heat(), HEAT_MAX);
        assert!(met().cool(10) && met().cool(10) && !met().cool(10));
        assert_eq!(met().page, PageId(7));
    }

    #[test]
    fn a_page_that_came_ahead_of_its_use_is_spared_once_and_its_first_use_not_counted() {
        for used in [false, true] {
            let set = ResidentSet::new(4);
            set.insert(PageId(7), Entry::Ahead);
            let met = set.advance(set.slots()).next().unwrap();
            match used {
                true => met.warm(),
                false => assert!(met.cool(1)),
            }
            assert_eq!(set.advance(set.slots()).next().unwrap().heat(), 0);
        }
    }
}
