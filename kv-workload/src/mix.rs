//! The loads: shares of operations, and which records they go to.

use crate::random::{Random, mix};
use crate::zipf::Zipf;

/// Ranks of the scrambled Zipfian distribution: more than there are records, as in YCSB, so that the
/// skew does not depend on their number.
const RANKS: u64 = 10_000_000_000;
/// Longest scan of load E.
const SCAN_MAX: u64 = 100;

/// A load. A to F are YCSB's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Workload {
    /// Half reads, half updates.
    A,
    /// 95 % reads, 5 % updates.
    B,
    /// Reads.
    C,
    /// 95 % reads, of the latest records most, 5 % inserts.
    D,
    /// 95 % scans of up to 100 records, 5 % inserts.
    E,
    /// Half reads, half reads of a value that is then updated.
    F,
    /// Updates.
    Updates,
}

/// A kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Of one record.
    Read,
    /// A new value of a record.
    Update,
    /// Of a new record.
    Insert,
    /// Of records in the order of keys.
    Scan,
    /// A read and an update of one record.
    ReadModifyWrite,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 5] = [
        Kind::Read,
        Kind::Update,
        Kind::Insert,
        Kind::Scan,
        Kind::ReadModifyWrite,
    ];

    /// In a word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Update => "update",
            Kind::Insert => "insert",
            Kind::Scan => "scan",
            Kind::ReadModifyWrite => "read-modify-write",
        }
    }
}

impl Workload {
    /// All of them.
    pub const ALL: [Workload; 7] = [
        Workload::A,
        Workload::B,
        Workload::C,
        Workload::D,
        Workload::E,
        Workload::F,
        Workload::Updates,
    ];

    /// A letter, or `updates`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Workload::A => "a",
            Workload::B => "b",
            Workload::C => "c",
            Workload::D => "d",
            Workload::E => "e",
            Workload::F => "f",
            Workload::Updates => "updates",
        }
    }

    /// The kind that most operations, or the first half, have, its percentage, and the other kind.
    fn shares(self) -> (Kind, u64, Kind) {
        match self {
            Workload::A => (Kind::Read, 50, Kind::Update),
            Workload::B => (Kind::Read, 95, Kind::Update),
            Workload::C => (Kind::Read, 100, Kind::Read),
            Workload::D => (Kind::Read, 95, Kind::Insert),
            Workload::E => (Kind::Scan, 95, Kind::Insert),
            Workload::F => (Kind::Read, 50, Kind::ReadModifyWrite),
            Workload::Updates => (Kind::Update, 100, Kind::Update),
        }
    }
}

/// Draws the operations of a thread.
pub(crate) struct Mix {
    shares: (Kind, u64, Kind),
    scrambled: Zipf,
    /// Of load D: how far back from the latest record.
    latest: Option<Zipf>,
}

impl Mix {
    /// Of a load on so many records.
    pub(crate) fn new(workload: Workload, records: u64) -> Mix {
        Mix {
            shares: workload.shares(),
            scrambled: Zipf::new(RANKS),
            latest: (workload == Workload::D).then(|| Zipf::new(records)),
        }
    }

    pub(crate) fn kind(&self, random: &mut Random) -> Kind {
        let (most, percent, others) = self.shares;
        match random.below(100) < percent {
            true => most,
            false => others,
        }
    }

    /// One of `count` records.
    pub(crate) fn record(&self, random: &mut Random, count: u64) -> u64 {
        match &self.latest {
            Some(zipf) => count - 1 - zipf.draw(random).min(count - 1),
            None => mix(self.scrambled.draw(random)) % count,
        }
    }

    pub(crate) fn scan_length(random: &mut Random) -> usize {
        1 + random.below(SCAN_MAX) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_have_the_shares_of_their_load() {
        for (workload, kind, percent) in [
            (Workload::A, Kind::Update, 50.0),
            (Workload::B, Kind::Update, 5.0),
            (Workload::C, Kind::Read, 100.0),
            (Workload::D, Kind::Insert, 5.0),
            (Workload::E, Kind::Scan, 95.0),
            (Workload::F, Kind::ReadModifyWrite, 50.0),
            (Workload::Updates, Kind::Update, 100.0),
        ] {
            let (mix, mut random) = (Mix::new(workload, 1000), Random::new(3, 4));
            let hits = (0..100_000).filter(|_| mix.kind(&mut random) == kind);
            let share = hits.count() as f64 / 1000.0;
            assert!((share - percent).abs() < 1.0, "{workload:?}: {share} %");
        }
    }

    #[test]
    fn load_d_reads_the_latest_and_the_others_records_all_over() {
        let mut random = Random::new(5, 6);
        let mut halves = |workload| {
            let mix = Mix::new(workload, 1000);
            let records: Vec<_> = (0..50_000).map(|_| mix.record(&mut random, 1000)).collect();
            assert!(records.iter().all(|&record| record < 1000));
            records.iter().filter(|&&record| record >= 500).count()
        };
        assert!(halves(Workload::D) > 40_000);
        assert!((15_000..35_000).contains(&halves(Workload::C)));
    }
}
