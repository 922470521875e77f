//! The records: key and value of each number.
//!
//! Keys are spread evenly at random over all 16-byte strings, as YCSB's hashed keys are, and yet known in
//! order without sorting: record i of those loaded lies at random within the i-th of as many equal parts.
//! Records inserted later lie anywhere.

use crate::random::{Random, mix};

/// Bytes of a key.
pub const KEY_BYTES: usize = 16;

/// The records of a store.
#[derive(Clone, Copy, Debug)]
pub struct Records {
    /// Records loaded at first, numbered from zero.
    pub loaded: u64,
    /// Bytes of a value, at least 8.
    pub value_bytes: usize,
    /// Determines the keys.
    pub seed: u64,
}

impl Records {
    /// The key of a record.
    #[must_use]
    pub fn key(&self, record: u64) -> [u8; KEY_BYTES] {
        let random = mix(mix(self.seed) ^ record);
        let place = match record < self.loaded {
            true => {
                let part = u64::MAX / self.loaded;
                record * part + random % part
            }
            false => random,
        };
        let mut key = [0; KEY_BYTES];
        key[..8].copy_from_slice(&place.to_be_bytes());
        // Makes keys unique.
        key[8..].copy_from_slice(&record.to_be_bytes());
        key
    }

    /// Fills `value` with a new value of a record: its number, and bytes that do not compress.
    pub(crate) fn fill(&self, record: u64, random: &mut Random, value: &mut Vec<u8>) {
        value.clear();
        value.extend_from_slice(&record.to_le_bytes());
        while value.len() < self.value_bytes {
            value.extend_from_slice(&random.next().to_le_bytes());
        }
        value.truncate(self.value_bytes);
    }

    /// Whether a value can be the record's.
    #[must_use]
    pub fn is_value_of(&self, record: u64, value: &[u8]) -> bool {
        value.len() == self.value_bytes && value.starts_with(&record.to_le_bytes())
    }

    /// The records to load, in the order of their keys.
    pub fn sorted(self) -> impl Iterator<Item = ([u8; KEY_BYTES], Vec<u8>)> {
        let mut random = Random::new(self.seed, u64::MAX);
        (0..self.loaded).map(move |record| {
            let mut value = Vec::with_capacity(self.value_bytes + 8);
            self.fill(record, &mut random, &mut value);
            (self.key(record), value)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn loaded_keys_ascend_and_all_keys_differ() {
        for loaded in [1, 2, 3, 1000, 65_537] {
            let records = Records {
                loaded,
                value_bytes: 30,
                seed: 7,
            };
            let keys: Vec<_> = records.sorted().map(|(key, _)| key).collect();
            assert!(keys.is_sorted_by(|a, b| a < b), "{loaded}");
            let all: BTreeSet<_> = (0..2 * loaded).map(|record| records.key(record)).collect();
            assert_eq!(all.len() as u64, 2 * loaded);
        }
    }

    #[test]
    fn values_tell_whose_they_are() {
        let records = Records {
            loaded: 10,
            value_bytes: 21,
            seed: 7,
        };
        for (record, (_, value)) in records.sorted().enumerate() {
            assert!(records.is_value_of(record as u64, &value));
            assert!(!records.is_value_of(record as u64 + 1, &value));
            assert!(!records.is_value_of(record as u64, &value[1..]));
        }
    }
}
