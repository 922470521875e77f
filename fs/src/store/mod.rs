//! The transactional store: an ordered map and block data in one log on a zoned device.

pub mod extent;

use std::collections::{BTreeMap, HashMap};
use std::ops::{ControlFlow, Deref};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use zns_backend::ZonedDevice;

use crate::catalog::Key;
use crate::error::Result;
use crate::types::{BLOCK_SIZE, Ino, Lba, Sequence};

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Refuse every change.
    pub read_only: bool,
    /// Bound on catalog nodes kept in memory, in bytes.
    pub cache_bytes: usize,
    /// Run checkpoints, collection and timed commits on threads of the store. Tests switch this
    /// off and call them.
    pub background: bool,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            read_only: false,
            cache_bytes: 64 << 20,
            background: true,
        }
    }
}

/// How a filesystem is made.
#[derive(Clone, Debug, Default)]
pub struct FormatOptions {
    /// Name of the filesystem, at most 64 bytes.
    pub label: String,
    /// Overwrite a filesystem that is there.
    pub force: bool,
}

/// Space of the filesystem, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Blocks files and metadata can use.
    pub total: u64,
    /// Blocks in use or promised.
    pub used: u64,
}

/// A record value.
#[derive(Clone, Debug)]
pub struct Value(Vec<u8>);

impl Deref for Value {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// Reading the ordered map.
pub trait Records {
    /// The value of `key`.
    ///
    /// # Errors
    /// Device errors and corruption.
    fn get(&self, key: &Key) -> Result<Option<Value>>;

    /// The greatest record at or below `key`.
    ///
    /// # Errors
    /// Device errors and corruption.
    fn floor(&self, key: &Key) -> Result<Option<(Key, Value)>>;

    /// Visits the records of `[from, to]` in order until `visit` breaks.
    ///
    /// # Errors
    /// Device errors and corruption.
    fn scan(
        &self,
        from: &Key,
        to: &Key,
        visit: &mut dyn FnMut(Key, &[u8]) -> ControlFlow<()>,
    ) -> Result<()>;
}

#[derive(Default)]
struct State {
    map: BTreeMap<Key, Vec<u8>>,
    blocks: HashMap<u64, Vec<u8>>,
    next_lba: u64,
}

/// The store.
pub struct Store {
    device: Arc<dyn ZonedDevice>,
    state: Mutex<State>,
    next_ino: AtomicU64,
}

/// A consistent version of the map that stays as it is; reading it takes no lock, and what it
/// refers to is kept until it is dropped.
pub struct View<'a> {
    store: &'a Store,
    map: BTreeMap<Key, Vec<u8>>,
}

/// A transaction: all of it happens, or (dropped, failed or crashed before commit) nothing.
/// Transactions run one at a time; keep them short and let no I/O wait inside them.
pub struct Txn<'a> {
    state: MutexGuard<'a, State>,
    store: &'a Store,
    undo: Vec<(Key, Option<Vec<u8>>)>,
    committed: bool,
}

impl Store {
    /// Makes an empty store on `device`.
    ///
    /// # Errors
    /// `BadImage` when there is a filesystem already or the geometry is too small; device errors.
    pub fn format(device: &Arc<dyn ZonedDevice>, options: &FormatOptions) -> Result<()> {
        let _ = (device, options);
        Ok(())
    }

    /// Opens the store on `device` and recovers it to its newest consistent state.
    ///
    /// # Errors
    /// `BadImage`, corruption, device errors.
    pub fn open(device: Arc<dyn ZonedDevice>, options: &StoreOptions) -> Result<Store> {
        let _ = options;
        Ok(Store {
            device,
            state: Mutex::default(),
            next_ino: AtomicU64::new(1),
        })
    }

    /// The device below.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn ZonedDevice> {
        &self.device
    }

    /// The current version of everything.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        View {
            store: self,
            map: self.state.lock().map.clone(),
        }
    }

    /// Starts a transaction, waiting for its turn and for space to be collected if that is short.
    ///
    /// # Errors
    /// `ReadOnly`.
    pub fn begin(&self) -> Result<Txn<'_>> {
        Ok(Txn {
            state: self.state.lock(),
            store: self,
            undo: Vec::new(),
            committed: false,
        })
    }

    /// A fresh inode number; never given out again, not even after a crash that keeps the inode.
    pub fn allocate_ino(&self) -> Ino {
        Ino(self.next_ino.fetch_add(1, Ordering::Relaxed))
    }

    /// The position in the log after the newest committed transaction.
    #[must_use]
    pub fn position(&self) -> Sequence {
        Sequence(0)
    }

    /// Waits until everything up to `position` is durable.
    ///
    /// # Errors
    /// Device errors, after which the store is read-only.
    pub fn sync(&self, position: Sequence) -> Result<()> {
        let _ = position;
        Ok(())
    }

    /// Writes a checkpoint.
    ///
    /// # Errors
    /// Device errors.
    pub fn checkpoint(&self) -> Result<()> {
        Ok(())
    }

    /// Collects up to `zones` victim zones now; returns how many were emptied.
    ///
    /// # Errors
    /// Device errors.
    pub fn collect(&self, zones: usize) -> Result<usize> {
        let _ = zones;
        Ok(0)
    }

    /// Commits, writes a last checkpoint and stops the background threads.
    ///
    /// # Errors
    /// Device errors.
    pub fn close(&self) -> Result<()> {
        Ok(())
    }

    /// Space in use and in all.
    #[must_use]
    pub fn space(&self) -> Space {
        Space {
            total: 1 << 20,
            used: 0,
        }
    }
}

impl Records for View<'_> {
    fn get(&self, key: &Key) -> Result<Option<Value>> {
        Ok(self.map.get(key).cloned().map(Value))
    }

    fn floor(&self, key: &Key) -> Result<Option<(Key, Value)>> {
        Ok(self
            .map
            .range(..=key)
            .next_back()
            .map(|(k, v)| (*k, Value(v.clone()))))
    }

    fn scan(
        &self,
        from: &Key,
        to: &Key,
        visit: &mut dyn FnMut(Key, &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        for (k, v) in self.map.range(from..=to) {
            if visit(*k, v).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl View<'_> {
    /// Fills `buffer` (whole blocks) with the blocks of `ino` from `first` on; holes read as
    /// zeros. Every block is verified.
    ///
    /// # Errors
    /// `BadBlock` on a checksum mismatch, device errors.
    pub fn read_blocks(&self, ino: Ino, first: u64, buffer: &mut [u8]) -> Result<()> {
        buffer.fill(0);
        let count = (buffer.len() / BLOCK_SIZE) as u64;
        let state = self.store.state.lock();
        extent::for_each_extent(self, ino, first, first + count, &mut |e| {
            let e = e.slice(first, first + count);
            if let extent::Backing::Mapped { lba, .. } = &e.backing {
                for i in 0..e.len {
                    let at = (e.start - first + i) as usize * BLOCK_SIZE;
                    buffer[at..at + BLOCK_SIZE].copy_from_slice(&state.blocks[&(lba.0 + i)]);
                }
            }
            ControlFlow::Continue(())
        })
    }
}

impl Records for Txn<'_> {
    fn get(&self, key: &Key) -> Result<Option<Value>> {
        Ok(self.state.map.get(key).cloned().map(Value))
    }

    fn floor(&self, key: &Key) -> Result<Option<(Key, Value)>> {
        Ok(self
            .state
            .map
            .range(..=key)
            .next_back()
            .map(|(k, v)| (*k, Value(v.clone()))))
    }

    fn scan(
        &self,
        from: &Key,
        to: &Key,
        visit: &mut dyn FnMut(Key, &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        for (k, v) in self.state.map.range(from..=to) {
            if visit(*k, v).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl Txn<'_> {
    /// Sets the value of a record (at most `catalog::MAX_VALUE` = 960 bytes).
    ///
    /// # Errors
    /// Device errors; `NoSpace`.
    pub fn put(&mut self, key: Key, value: &[u8]) -> Result<()> {
        let old = self.state.map.insert(key, value.to_vec());
        self.undo.push((key, old));
        Ok(())
    }

    /// Removes a record if it is there.
    ///
    /// # Errors
    /// Device errors.
    pub fn delete(&mut self, key: &Key) -> Result<()> {
        if let Some(old) = self.state.map.remove(key) {
            self.undo.push((*key, Some(old)));
        }
        Ok(())
    }

    /// Removes the records of `[from, to]`; returns how many there were. One log record, whatever
    /// the number.
    ///
    /// # Errors
    /// Device errors.
    pub fn delete_range(&mut self, from: &Key, to: &Key) -> Result<u64> {
        let keys: Vec<Key> = self.state.map.range(from..=to).map(|(k, _)| *k).collect();
        for k in &keys {
            self.delete(k)?;
        }
        Ok(keys.len() as u64)
    }

    /// Fails unless `blocks` more blocks (of metadata or data) fit. Operations that only free
    /// space do not call this.
    ///
    /// # Errors
    /// `NoSpace`.
    pub fn claim_space(&mut self, blocks: u64) -> Result<()> {
        let _ = blocks;
        Ok(())
    }

    /// Reads whole blocks as [`View::read_blocks`] does, this transaction's own changes included.
    ///
    /// # Errors
    /// As [`View::read_blocks`].
    pub fn read_blocks(&self, ino: Ino, first: u64, buffer: &mut [u8]) -> Result<()> {
        buffer.fill(0);
        let count = (buffer.len() / BLOCK_SIZE) as u64;
        extent::for_each_extent(self, ino, first, first + count, &mut |e| {
            let e = e.slice(first, first + count);
            if let extent::Backing::Mapped { lba, .. } = &e.backing {
                for i in 0..e.len {
                    let at = (e.start - first + i) as usize * BLOCK_SIZE;
                    buffer[at..at + BLOCK_SIZE].copy_from_slice(&self.state.blocks[&(lba.0 + i)]);
                }
            }
            ControlFlow::Continue(())
        })
    }

    /// Puts blocks into the log and returns the runs they were given.
    fn append_blocks(&mut self, _: Ino, _: u64, data: &[u8], _: &[u32]) -> Result<Vec<(Lba, u64)>> {
        let start = self.state.next_lba;
        for block in data.chunks_exact(BLOCK_SIZE) {
            let lba = self.state.next_lba;
            self.state.blocks.insert(lba, block.to_vec());
            self.state.next_lba += 1;
        }
        Ok(vec![(Lba(start), (data.len() / BLOCK_SIZE) as u64)])
    }

    /// Makes the transaction happen; returns the position to [`Store::sync`] to for durability.
    ///
    /// # Errors
    /// `NoSpace`, device errors; then nothing has happened.
    pub fn commit(mut self) -> Result<Sequence> {
        self.committed = true;
        let _ = self.store;
        Ok(Sequence(0))
    }
}

impl Drop for Txn<'_> {
    fn drop(&mut self) {
        if !self.committed {
            for (key, old) in self.undo.drain(..).rev() {
                match old {
                    Some(value) => self.state.map.insert(key, value),
                    None => self.state.map.remove(&key),
                };
            }
        }
    }
}
