//! Which position of the log an inode's last change has, so that fsync waits for no more.
//!
//! Positions that are durable already are dropped when a shard grows. One that is full of others
//! drops them too and remembers the newest of them for all: fsync may then wait for more than it
//! had to, never for less.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::Volume;
use crate::error::Result;
use crate::store::Txn;
use crate::types::{Ino, Sequence};

const SHARDS: usize = 64;
const SHARD_INODES: usize = 4096;

#[derive(Default)]
struct Shard {
    last_change: HashMap<Ino, Sequence>,
    /// At or above the position of every inode that was dropped from the map.
    others: Option<Sequence>,
}

/// Positions of last changes.
pub(super) struct Positions {
    shards: Vec<Mutex<Shard>>,
    /// Everything below this position is durable.
    durable_end: AtomicU64,
}

impl Positions {
    pub(super) fn new() -> Positions {
        Positions {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            durable_end: AtomicU64::new(0),
        }
    }

    fn shard(&self, ino: Ino) -> &Mutex<Shard> {
        &self.shards[ino.0 as usize % SHARDS]
    }

    fn changed(&self, ino: Ino, position: Sequence) {
        let mut shard = self.shard(ino).lock();
        let known = shard.last_change.entry(ino).or_insert(position);
        *known = position.max(*known);
        if shard.last_change.len() > SHARD_INODES {
            self.prune(&mut shard);
        }
    }

    fn prune(&self, shard: &mut Shard) {
        shard
            .last_change
            .retain(|_, position| !self.is_durable(*position));
        if shard.last_change.len() > SHARD_INODES / 2 {
            let newest = shard.last_change.drain().map(|(_, position)| position);
            shard.others = newest.max().max(shard.others);
        }
    }

    /// The position to wait for; `None` if all is durable.
    fn pending(&self, ino: Ino) -> Option<Sequence> {
        let shard = self.shard(ino).lock();
        let position = shard.last_change.get(&ino).copied().or(shard.others)?;
        (!self.is_durable(position)).then_some(position)
    }

    fn is_durable(&self, position: Sequence) -> bool {
        position.0 < self.durable_end.load(Ordering::Acquire)
    }

    fn synced(&self, position: Sequence) {
        self.durable_end
            .fetch_max(position.0.saturating_add(1), Ordering::AcqRel);
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
            self.positions.changed(ino, position);
        }
        Ok(())
    }

    /// Makes all changes of `ino` durable.
    ///
    /// # Errors
    /// Device errors, after which the filesystem is read-only.
    pub fn fsync(&self, ino: Ino) -> Result<()> {
        let Some(position) = self.positions.pending(ino) else {
            return Ok(());
        };
        self.store.sync(position)?;
        self.positions.synced(position);
        Ok(())
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// Device errors, after which the filesystem is read-only.
    pub fn sync(&self) -> Result<()> {
        let position = self.store.position();
        self.store.sync(position)?;
        self.positions.synced(position);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unchanged_and_durable_inodes_wait_for_nothing() {
        let positions = Positions::new();
        assert_eq!(positions.pending(Ino(5)), None);
        positions.changed(Ino(5), Sequence(7));
        positions.changed(Ino(5), Sequence(6));
        assert_eq!(positions.pending(Ino(5)), Some(Sequence(7)));
        positions.synced(Sequence(7));
        assert_eq!(positions.pending(Ino(5)), None);
    }

    #[test]
    fn inodes_that_a_full_shard_dropped_still_wait_for_their_change() {
        let positions = Positions::new();
        let count = 2 * (SHARDS * SHARD_INODES) as u64;
        for ino in 1..=count {
            positions.changed(Ino(ino), Sequence(ino));
        }
        for ino in 1..=count {
            assert!(positions.pending(Ino(ino)).unwrap() >= Sequence(ino));
        }
        let held: usize = positions
            .shards
            .iter()
            .map(|shard| shard.lock().last_change.len())
            .sum();
        assert!(held <= SHARDS * SHARD_INODES);
    }
}
