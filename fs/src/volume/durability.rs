//! Which position of the log an inode's last change has, so that fsync waits for no more.
//!
//! Positions that are durable already are dropped when a shard grows. One that is full of others
//! drops them too and remembers the newest of them for all: fsync may then wait for more than it
//! had to, never for less.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::Volume;
use crate::error::Result;
use crate::store::{Completion, Lead, Txn};
use crate::types::{Ino, Sequence};

const SHARDS: usize = 64;
const SHARD_INODES: usize = 4096;

#[derive(Default)]
struct Shard {
    last_change: HashMap<Ino, Sequence>,
    /// At or above the position of every inode that was dropped from the map.
    others: Option<Sequence>,
}

impl Shard {
    fn prune(&mut self, durable: Sequence) {
        self.last_change.retain(|_, position| *position >= durable);
        if self.last_change.len() > SHARD_INODES / 2 {
            let newest = self.last_change.drain().map(|(_, position)| position);
            self.others = newest.max().max(self.others);
        }
    }
}

/// Positions of last changes.
pub(super) struct Positions {
    shards: Vec<Mutex<Shard>>,
}

impl Positions {
    pub(super) fn new() -> Positions {
        Positions {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    fn shard(&self, ino: Ino) -> &Mutex<Shard> {
        &self.shards[ino.0 as usize % SHARDS]
    }

    /// Notes a change of `ino`; everything before `durable` is durable.
    fn changed(&self, ino: Ino, position: Sequence, durable: Sequence) {
        let mut shard = self.shard(ino).lock();
        let known = shard.last_change.entry(ino).or_insert(position);
        *known = position.max(*known);
        if shard.last_change.len() > SHARD_INODES {
            shard.prune(durable);
        }
    }

    /// The position to wait for; `None` if all is durable.
    fn pending(&self, ino: Ino, durable: Sequence) -> Option<Sequence> {
        let shard = self.shard(ino).lock();
        let position = shard.last_change.get(&ino).copied().or(shard.others)?;
        (position >= durable).then_some(position)
    }

    /// Drops an inode that is gone.
    pub(super) fn forget(&self, ino: Ino) {
        self.shard(ino).lock().last_change.remove(&ino);
    }
}

impl Volume {
    /// Commits a transaction that changed `inodes`.
    pub(super) fn commit(&self, txn: Txn<'_>, inodes: &[Ino]) -> Result<()> {
        let position = txn.commit()?;
        for &ino in inodes {
            self.positions.changed(ino, position, self.store.durable());
        }
        Ok(())
    }

    /// Makes all changes of `ino` durable.
    ///
    /// # Errors
    /// Device errors, after which the filesystem is read-only.
    pub fn fsync(&self, ino: Ino) -> Result<()> {
        let Some(position) = self.positions.pending(ino, self.store.durable()) else {
            return Ok(());
        };
        self.store.sync(position)
    }

    /// As [`Volume::fsync`] without waiting: `then` is called with the outcome, on whichever thread
    /// ends the commit. If that is to be the caller's, this returns the lead to be taken.
    pub fn fsync_then(&self, ino: Ino, then: Completion) -> Option<Lead<'_>> {
        match self.positions.pending(ino, self.store.durable()) {
            Some(position) => self.store.sync_then(position, then),
            None => {
                then(Ok(()));
                None
            }
        }
    }

    /// Starts the commit that is likely to be asked for once a change is answered. The caller
    /// answers and then goes on with the lead, if there is one.
    pub fn anticipate_fsync(&self) -> Option<Lead<'_>> {
        self.store.start_anticipated()
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// Device errors, after which the filesystem is read-only.
    pub fn sync(&self) -> Result<()> {
        let position = self.store.position();
        self.store.sync(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unchanged_and_durable_inodes_wait_for_nothing() {
        let positions = Positions::new();
        assert_eq!(positions.pending(Ino(5), Sequence(1)), None);
        positions.changed(Ino(5), Sequence(7), Sequence(1));
        positions.changed(Ino(5), Sequence(6), Sequence(1));
        assert_eq!(positions.pending(Ino(5), Sequence(7)), Some(Sequence(7)));
        assert_eq!(positions.pending(Ino(5), Sequence(8)), None);
    }

    #[test]
    fn inodes_that_a_full_shard_dropped_still_wait_for_their_change() {
        let positions = Positions::new();
        let count = 2 * (SHARDS * SHARD_INODES) as u64;
        for ino in 1..=count {
            positions.changed(Ino(ino), Sequence(ino), Sequence(0));
        }
        for ino in 1..=count {
            assert!(positions.pending(Ino(ino), Sequence(0)).unwrap() >= Sequence(ino));
        }
        let held: usize = positions
            .shards
            .iter()
            .map(|shard| shard.lock().last_change.len())
            .sum();
        assert!(held <= SHARDS * SHARD_INODES);
    }
}
