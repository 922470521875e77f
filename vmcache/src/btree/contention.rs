//! Which leaves are fought over, and where to split them (after Alhomssi and Leis, "Contention and Space
//! Management in B-Trees", CIDR 2021).
//!
//! Two hot keys in one leaf make their writers wait for each other for no reason but neighbourhood. So a
//! leaf on which writers had to wait is watched: if during some updates waiting was frequent and the
//! updates went to different entries, it is split between them. Not so if all went to one entry, which no
//! split would help.
//!
//! The watch is a small table of hints, a word per entry, with relaxed loads and stores: counts may get
//! lost between threads, which only delays a split. A leaf on which nobody waits costs one load.

use crate::page::PageId;
use std::sync::atomic::{AtomicU64, Ordering};

/// Leaves that can be watched at once.
const ENTRIES: usize = 256;
/// Updates after which a watched leaf is judged.
const PERIOD: u64 = 128;
/// Of these so many had to wait for the leaf to be split.
const WAITED_MIN: u64 = PERIOD / 16;

/// The leaves being watched.
pub(crate) struct Contention {
    watches: [AtomicU64; ENTRIES],
}

/// An entry: the page's number (its low bits), updates, those that waited, and the last one's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Watch {
    page: u32,
    updates: u64,
    waited: u64,
    slot: usize,
}

impl Watch {
    fn decode(word: u64) -> Watch {
        Watch {
            page: (word >> 32) as u32,
            updates: word >> 24 & 0xff,
            waited: word >> 16 & 0xff,
            slot: (word & 0xffff) as usize,
        }
    }

    fn encode(self) -> u64 {
        u64::from(self.page) << 32 | self.updates << 24 | self.waited << 16 | self.slot as u64
    }
}

impl Contention {
    pub(crate) fn new() -> Contention {
        Contention {
            watches: [const { AtomicU64::new(0) }; ENTRIES],
        }
    }

    /// Notes an update of the entry at `slot` of a leaf, which had to wait or not; the slot before which
    /// the leaf should be split, if it should.
    pub(super) fn note(&self, page: PageId, slot: usize, waited: bool) -> Option<usize> {
        let entry = &self.watches[page.0 as usize % ENTRIES];
        let before = Watch::decode(entry.load(Ordering::Relaxed));
        let is_watched = before.page == page.0 as u32 && before.updates > 0;
        if !is_watched && !waited {
            return None;
        }
        let known = if is_watched {
            before
        } else {
            Watch {
                page: page.0 as u32,
                updates: 0,
                waited: 0,
                slot,
            }
        };
        let now = Watch {
            updates: known.updates + 1,
            waited: known.waited + u64::from(waited),
            slot,
            ..known
        };
        if now.updates < PERIOD {
            entry.store(now.encode(), Ordering::Relaxed);
            return None;
        }
        entry.store(0, Ordering::Relaxed);
        let should = now.waited >= WAITED_MIN && slot != known.slot;
        should.then_some(slot.max(known.slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The split points that a pattern of updates leads to.
    fn splits(slots: &[usize], waits_every: usize) -> Vec<usize> {
        let contention = Contention::new();
        let updates = (0..1000).zip(slots.iter().cycle());
        updates
            .filter_map(|(update, &slot)| {
                contention.note(PageId(7), slot, update % waits_every == 0)
            })
            .collect()
    }

    #[test]
    fn a_leaf_is_split_between_hot_entries_and_only_then() {
        assert!(splits(&[3, 9], 4).iter().all(|&at| at == 9) && !splits(&[3, 9], 4).is_empty());
        assert!(splits(&[5], 2).is_empty(), "one hot entry");
        assert!(splits(&[3, 9], 100).is_empty(), "hardly anybody waits");
        assert!(
            splits(&[3, 9], usize::MAX).is_empty(),
            "nobody waits after the first"
        );
    }

    #[test]
    fn watches_decode_to_what_was_encoded() {
        let watch = Watch {
            page: 0xfedc_ba98,
            updates: 127,
            waited: 126,
            slot: 337,
        };
        assert_eq!(Watch::decode(watch.encode()), watch);
    }
}
