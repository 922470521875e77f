//! Who still uses an inode: references of the kernel and open handles; orphans.
//!
//! An inode whose last name goes while somebody uses it becomes an orphan: its link count is 0 and
//! a marker `(0, Orphan, ino)` names it. It is reclaimed when the last user lets go of it, or at
//! the next mount. The order that makes this safe: the transaction that takes the last name notes
//! the orphan here *before* it commits; whoever lets go last and finds the note starts a
//! transaction, which waits for that one, and looks at the link count again.

use std::collections::HashMap;
use std::ops::ControlFlow;

use parking_lot::Mutex;

use super::types::Caller;
use super::{Volume, inode};
use crate::catalog::{Key, Kind};
use crate::error::{Error, Result};
use crate::format::record::{InodeRecord, Timestamp, encode_orphan};
use crate::store::extent::Extent;
use crate::store::{Records, Txn, View};
use crate::types::Ino;

const SHARDS: usize = 64;

/// Most extents one transaction deletes when it reclaims an inode, so that it holds nobody up.
const RECLAIM_EXTENTS: usize = 4096;

#[derive(Default)]
struct Use {
    references: u64,
    handles: u64,
    orphan: bool,
}

/// Uses of inodes, by inode.
pub(super) struct Handles {
    shards: Vec<Mutex<HashMap<Ino, Use>>>,
}

impl Handles {
    pub(super) fn new() -> Handles {
        Handles {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    fn shard(&self, ino: Ino) -> &Mutex<HashMap<Ino, Use>> {
        &self.shards[ino.0 as usize % SHARDS]
    }

    fn acquire(&self, ino: Ino, change: impl FnOnce(&mut Use)) {
        change(self.shard(ino).lock().entry(ino).or_default());
    }

    /// Applies `change`; true if that ended the last use of an orphan.
    fn release(&self, ino: Ino, change: impl FnOnce(&mut Use)) -> bool {
        let mut shard = self.shard(ino).lock();
        let Some(state) = shard.get_mut(&ino) else {
            return false;
        };
        change(state);
        if state.references > 0 || state.handles > 0 {
            return false;
        }
        shard.remove(&ino).is_some_and(|state| state.orphan)
    }

    fn in_use(&self, ino: Ino) -> bool {
        self.shard(ino)
            .lock()
            .get(&ino)
            .is_some_and(|state| state.references > 0 || state.handles > 0)
    }

    /// Notes that the inode has no name any more; false if nobody uses it either.
    fn orphaned(&self, ino: Ino) -> bool {
        match self.shard(ino).lock().get_mut(&ino) {
            Some(state) => {
                state.orphan = true;
                true
            }
            None => false,
        }
    }

    /// Notes an orphan that nobody uses yet.
    pub(super) fn born_orphaned(&self, ino: Ino) {
        self.acquire(ino, |state| state.orphan = true);
    }
}

/// What became of an inode that lost a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disposal {
    /// It has others, or it is an orphan in use.
    Stays,
    /// All its records are gone.
    Deleted,
    /// It is an orphan that is too large for one transaction and to be reclaimed after it.
    Reclaim,
}

fn orphan_key(ino: Ino) -> Key {
    Key::new(Ino(0), Kind::Orphan, ino.0)
}

/// Marks an inode as an orphan.
pub(super) fn put_orphan(txn: &mut Txn<'_>, ino: Ino) -> Result<()> {
    txn.put(orphan_key(ino), &encode_orphan())
}

/// Ends the orphanhood of an inode that gets a name. Its note among the handles stays and makes
/// the last user look once more; that costs less than getting the order right.
pub(super) fn adopt(txn: &mut Txn<'_>, ino: Ino) -> Result<()> {
    txn.delete(&orphan_key(ino))
}

/// Deletes every record of an inode.
fn delete_all(txn: &mut Txn<'_>, ino: Ino) -> Result<()> {
    txn.delete_range(&inode::key(ino), &Key::new(ino, Kind::Xattr, u64::MAX))?;
    inode::count_deleted(txn)
}

/// Brings what deleting an inode looks at into memory, before a transaction does it.
pub(super) fn read_ahead(view: &View<'_>, ino: Ino) -> Result<()> {
    reclaim_step(view, ino).map(drop)
}

/// The first up to [`RECLAIM_EXTENTS`] extents of an inode: where the last of them starts and how
/// many blocks they have; `None` if there are no more than that.
fn reclaim_step(records: &impl Records, ino: Ino) -> Result<Option<(u64, u64)>> {
    let (mut seen, mut last, mut blocks) = (0, 0, 0);
    let mut outcome = Ok(());
    records.scan(
        &Key::new(ino, Kind::Extent, 0),
        &Key::new(ino, Kind::Extent, u64::MAX),
        &mut |key, value| {
            seen += 1;
            if seen > RECLAIM_EXTENTS {
                return ControlFlow::Break(());
            }
            last = key.offset;
            match Extent::decode(&key, value) {
                Ok(extent) => blocks += extent.len,
                Err(error) => {
                    outcome = Err(error);
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        },
    )?;
    outcome?;
    Ok((seen > RECLAIM_EXTENTS).then_some((last, blocks)))
}

impl Volume {
    /// Counts a reference of the kernel to an inode (one per entry it is told of).
    pub fn remember(&self, ino: Ino) {
        self.handles.acquire(ino, |state| state.references += 1);
    }

    /// Drops `count` references; an inode without names, references and open handles is reclaimed.
    pub fn forget(&self, ino: Ino, count: u64) {
        let last = self.handles.release(ino, |state| {
            state.references = state.references.saturating_sub(count);
        });
        if last {
            self.reclaim_or_leave(ino);
        }
    }

    /// Counts an open handle of `ino` (file or directory). `truncate`: O_TRUNC.
    ///
    /// # Errors
    /// `NotFound`; with `truncate` those of a change of the size.
    pub fn open_handle(&self, caller: &Caller, ino: Ino, truncate: bool) -> Result<()> {
        // The count comes first: from then on the inode stays.
        self.handles.acquire(ino, |state| state.handles += 1);
        let opened = match truncate {
            true => self.truncate_on_open(caller, ino),
            false => inode::load(&self.store.view(), ino).map(drop),
        };
        if opened.is_err() {
            self.release(ino);
        }
        opened
    }

    /// Whether anybody has an open handle of `ino`.
    pub fn is_open(&self, ino: Ino) -> bool {
        let shard = self.handles.shard(ino).lock();
        shard.get(&ino).is_some_and(|state| state.handles > 0)
    }

    /// How many open handles of `ino` there are.
    pub fn open_handles(&self, ino: Ino) -> u64 {
        let shard = self.handles.shard(ino).lock();
        shard.get(&ino).map_or(0, |state| state.handles)
    }

    /// Drops a handle.
    pub fn release(&self, ino: Ino) {
        let last = self.handles.release(ino, |state| {
            state.handles = state.handles.saturating_sub(1);
        });
        if last {
            self.reclaim_or_leave(ino);
        }
    }

    /// Takes one name (of a directory: its only one) from an inode. After its last name it is
    /// deleted, or becomes an orphan if it is in use or large.
    pub(super) fn drop_link(
        &self,
        txn: &mut Txn<'_>,
        ino: Ino,
        inode: &mut InodeRecord,
        now: Timestamp,
    ) -> Result<Disposal> {
        inode.ctime = now;
        inode.nlink = match inode::is_directory(inode) {
            true => 0,
            false => inode.nlink.saturating_sub(1),
        };
        if inode.nlink > 0 {
            inode::save(txn, ino, inode)?;
            return Ok(Disposal::Stays);
        }
        let in_use = self.handles.orphaned(ino);
        // An extent has at least one block, so this bounds the number of extents.
        if !in_use && inode.blocks <= RECLAIM_EXTENTS as u64 {
            delete_all(txn, ino)?;
            return Ok(Disposal::Deleted);
        }
        inode::save(txn, ino, inode)?;
        put_orphan(txn, ino)?;
        Ok(match in_use {
            true => Disposal::Stays,
            false => Disposal::Reclaim,
        })
    }

    /// What is left to do once the transaction of [`Volume::drop_link`] is committed.
    pub(super) fn finish_disposal(&self, ino: Ino, disposal: Disposal) {
        match disposal {
            Disposal::Stays => {}
            Disposal::Deleted => self.positions.forget(ino),
            Disposal::Reclaim => self.reclaim_or_leave(ino),
        }
    }

    /// Reclaims the orphans that the last mount left.
    pub(super) fn reclaim_orphans(&self) -> Result<()> {
        let mut orphans = Vec::new();
        self.store.view().scan(
            &orphan_key(Ino(0)),
            &orphan_key(Ino(u64::MAX)),
            &mut |key, _| {
                orphans.push(Ino(key.offset));
                ControlFlow::Continue(())
            },
        )?;
        for &ino in &orphans {
            self.reclaim(ino)?;
        }
        if !orphans.is_empty() {
            tracing::info!(count = orphans.len(), "reclaimed orphaned inodes");
        }
        Ok(())
    }

    /// An orphan that cannot be reclaimed now stays one, and the next mount tries again.
    fn reclaim_or_leave(&self, ino: Ino) {
        match self.reclaim(ino) {
            Ok(()) | Err(Error::ReadOnly) => {}
            Err(error) => tracing::warn!(%ino, %error, "inode without a name is not reclaimed yet"),
        }
    }

    /// Deletes an orphan that nobody uses, a bounded number of extents per transaction.
    fn reclaim(&self, ino: Ino) -> Result<()> {
        while self.reclaim_some(ino)?.is_continue() {}
        Ok(())
    }

    fn reclaim_some(&self, ino: Ino) -> Result<ControlFlow<()>> {
        read_ahead(&self.store.view(), ino)?;
        let mut txn = self.store.begin()?;
        let mut inode = match inode::load(&txn, ino) {
            Err(Error::NotFound) => {
                txn.delete(&orphan_key(ino))?;
                txn.commit()?;
                return Ok(ControlFlow::Break(()));
            }
            other => other?,
        };
        if inode.nlink > 0 || self.handles.in_use(ino) {
            return Ok(ControlFlow::Break(()));
        }
        if let Some((last, blocks)) = reclaim_step(&txn, ino)? {
            let first = Key::new(ino, Kind::Extent, 0);
            txn.delete_range(&first, &Key::new(ino, Kind::Extent, last))?;
            inode.blocks = inode.blocks.saturating_sub(blocks);
            inode::save(&mut txn, ino, &inode)?;
            txn.commit()?;
            return Ok(ControlFlow::Continue(()));
        }
        delete_all(&mut txn, ino)?;
        txn.delete(&orphan_key(ino))?;
        txn.commit()?;
        self.positions.forget(ino);
        Ok(ControlFlow::Break(()))
    }
}
