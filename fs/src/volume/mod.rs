//! POSIX semantics over the transactional store: inodes, names, data, attributes.
//!
//! A [`Volume`] is a filesystem without a mount. It does no permission checks of its own beyond
//! those that only it can make (the kernel does them, `default_permissions`).
//!
//! Every operation is one transaction and so happens entirely or not at all; the exceptions are
//! [`Volume::copy_range`] (one transaction per step, as many writes would be) and the reclaiming
//! of large inodes without names. An operation first runs its checks on a view: that answers most
//! errors without a transaction and brings what it needs into memory. Then it begins, checks
//! again, changes and commits. Views are dropped before a transaction begins, because beginning
//! may wait for space whose collection waits for views.
//!
//! What lies where: `inode` (attributes), `directory` (entries), `namespace` and `rename` (names),
//! `file` (reading and writing), `allocate` (sizes, holes, reserved space), `attributes`
//! (setattr), `xattr` and `acl`, `snapshot` (files at a
//! moment), `handles` (uses and orphans), `durability` (fsync), `atomic` (writes that happen together).
//!
//! Access times change only by [`Volume::setattr`]: reads leave no trace (`noatime`).

mod acl;
mod allocate;
pub mod atomic;
mod attributes;
mod directory;
mod durability;
mod file;
mod handles;
mod inode;
mod namespace;
mod rename;
pub mod snapshot;
pub mod types;
mod xattr;

use std::sync::Arc;

use zns_backend::ZonedDevice;

use crate::error::{Error, Result};
use crate::format::record::InodeRecord;
use crate::store::{Store, StoreOptions};
use crate::types::Ino;
use atomic::Sessions;
use durability::Positions;
use handles::Handles;
use types::{Statistics, Time};

/// Blocks of metadata that an operation which adds something must find free. Generous: a name and
/// an inode are two small records, but each may split a node on every level.
const METADATA_BLOCKS: u64 = 4;

/// Inodes that a free block is taken to hold in statfs: there is no inode table to run out of.
const INODES_PER_FREE_BLOCK: u64 = 8;

/// A mountable filesystem.
pub struct Volume {
    store: Arc<Store>,
    handles: Handles,
    positions: Positions,
    sessions: Sessions,
}

impl Volume {
    /// Opens the filesystem on `device`, recovers it, creates the root directory if the store is
    /// fresh (owned by the user of this process), and reclaims orphans.
    ///
    /// # Errors
    /// Those of [`Store::open`]; device errors.
    pub fn open(device: Arc<dyn ZonedDevice>, options: &StoreOptions) -> Result<Volume> {
        let volume = Volume {
            store: Store::open(device, options)?,
            handles: Handles::new(),
            positions: Positions::new(),
            sessions: Sessions::new(options.atomic_memory_bytes),
        };
        if !options.read_only {
            volume.make_root()?;
            volume.reclaim_orphans()?;
        }
        Ok(volume)
    }

    /// The store below.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// What statfs(2) shows. The number of inodes that could still be made is an estimate.
    pub fn statfs(&self) -> Statistics {
        let space = self.store.space();
        let blocks_free = space.total.saturating_sub(space.used);
        let inodes_used = inode::count(&self.store.view()).unwrap_or_else(|error| {
            tracing::warn!(%error, "the number of inodes cannot be read");
            0
        });
        Statistics {
            blocks: space.total,
            blocks_free,
            inodes_used,
            inodes_free: blocks_free.saturating_mul(INODES_PER_FREE_BLOCK),
        }
    }

    /// Last commit and checkpoint; further changes fail.
    ///
    /// # Errors
    /// Device errors.
    pub fn close(&self) -> Result<()> {
        self.store.close()
    }

    fn make_root(&self) -> Result<()> {
        match inode::load(&self.store.view(), Ino::ROOT) {
            Err(Error::NotFound) => {}
            other => return other.map(drop),
        }
        let mut txn = self.store.begin()?;
        let now = inode::to_timestamp(Time::now());
        // SAFETY: geteuid and getegid read the credentials of the process; they take no arguments
        // and cannot fail.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        let root = InodeRecord {
            mode: libc::S_IFDIR | 0o755,
            nlink: 2,
            uid,
            gid,
            parent: Ino::ROOT.0,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            ..InodeRecord::default()
        };
        inode::save(&mut txn, Ino::ROOT, &root)?;
        inode::count_made(&mut txn)?;
        self.commit(txn, &[Ino::ROOT])
    }

    /// A number for a new inode. A store may count from 1, which is the root directory's.
    fn fresh_ino(&self) -> Ino {
        loop {
            let ino = self.store.allocate_ino();
            if ino > Ino::ROOT {
                return ino;
            }
        }
    }
}
