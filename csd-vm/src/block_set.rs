//! A set of block numbers below a bound, as a bitmap.

use std::ops::Range;

/// The set.
#[derive(Debug)]
pub(crate) struct BlockSet {
    words: Vec<u64>,
    /// One range around all members.
    bounds: Option<Range<u64>>,
}

impl BlockSet {
    /// The empty set of numbers below `len`.
    pub(crate) fn new(len: u64) -> BlockSet {
        BlockSet {
            words: vec![0; len.div_ceil(64) as usize],
            bounds: None,
        }
    }

    /// One range around all members; none if there are none.
    pub(crate) fn bounds(&self) -> Option<Range<u64>> {
        self.bounds.clone()
    }

    /// Takes all members out.
    pub(crate) fn clear(&mut self) {
        if let Some(bounds) = self.bounds.take() {
            let words = bounds.start / 64..bounds.end.div_ceil(64);
            self.words[words.start as usize..words.end as usize].fill(0);
        }
    }

    /// Adds `count` (not 0) numbers from `first` on.
    pub(crate) fn insert(&mut self, first: u64, count: u64) {
        let end = first + count;
        let mut at = first;
        while at < end {
            let bits = (64 - at % 64).min(end - at);
            let mask = (u64::MAX >> (64 - bits)) << (at % 64);
            self.words[(at / 64) as usize] |= mask;
            at += bits;
        }
        self.bounds = Some(match &self.bounds {
            None => first..end,
            Some(bounds) => bounds.start.min(first)..bounds.end.max(end),
        });
    }

    /// How many numbers from `from` on, below `end`, are all members, or all not.
    pub(crate) fn run(&self, from: u64, end: u64, members: bool) -> u64 {
        let mut at = from;
        while at < end {
            let word = self.words[(at / 64) as usize];
            let word = if members { !word } else { word } >> (at % 64);
            let left = 64 - at % 64;
            let same = u64::from(word.trailing_zeros()).min(left);
            at += same;
            if same < left {
                break;
            }
        }
        at.min(end).saturating_sub(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_agree_with_a_plain_set() {
        let mut set = BlockSet::new(300);
        let mut plain = [false; 300];
        for (first, count) in [(0, 1), (63, 2), (100, 130), (299, 1), (230, 1)] {
            set.insert(first, count);
            plain[first as usize..(first + count) as usize].fill(true);
        }
        for from in 0..300 {
            for end in [from, from + 1, 200.max(from), 300] {
                for members in [false, true] {
                    let range = &plain[from as usize..end.min(300) as usize];
                    let expected = range.iter().take_while(|&&is| is == members).count();
                    assert_eq!(set.run(from, end.min(300), members), expected as u64);
                }
            }
        }
        assert_eq!(set.bounds(), Some(0..300));
        set.clear();
        assert_eq!((set.run(0, 300, false), set.bounds()), (300, None));
    }
}
