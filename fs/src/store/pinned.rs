//! Versions that outlive a request, for readers that go to the device by themselves.
//!
//! A [`PinnedView`] is a [`super::View`] that owns its store. Who reads through it gets addresses
//! and not bytes, so it must be able to say that a block *is* on the device: a block of the open
//! chunk or of a chunk in flight is written first, and one whose write failed has another address
//! than its extent says.
//!
//! Blocks can also be placed for one reader alone ([`PinnedView::place`]): they are payload that no
//! record maps, dead from the start, and still they stay where they are, since their zone is kept
//! for this version.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::view::scan_tree;
use super::{Records, Reserve, Store, Value};
use crate::catalog::{Key, Tree};
use crate::checksum;
use crate::error::{Error, Result};
use crate::types::{BLOCK_SIZE, Ino, Lba};

/// Most times a block is looked for while chunks move under our eyes.
const ATTEMPTS: usize = 8;

/// A consistent version of the map that can be kept and sent between threads. While it lives,
/// everything it refers to stays where it is. Taking one costs a reference count.
pub struct PinnedView {
    store: Arc<Store>,
    tree: Tree,
    version: u64,
}

/// Where a block stands that has an address.
enum Residence {
    /// On the device, at its address.
    Device,
    /// In a chunk of this sequence number that is on its way.
    InFlight(u64),
    /// In a chunk that was sent elsewhere.
    Moved,
}

impl Store {
    /// The newest version of everything, to be kept.
    #[must_use]
    pub fn pinned_view(self: &Arc<Store>) -> PinnedView {
        let head = self.head.read();
        self.pins.keep(head.version);
        PinnedView {
            store: Arc::clone(self),
            tree: head.tree.clone(),
            version: head.version,
        }
    }

    fn residence(&self, lba: Lba) -> Residence {
        match self.writer.resident_sequence(lba) {
            None => Residence::Device,
            Some((sequence, true)) => Residence::InFlight(sequence),
            Some((_, false)) => Residence::Moved,
        }
    }

    /// Seals the open chunk if it holds `lba`.
    fn seal_chunk_of(&self, lba: Lba) {
        let start = self.open_range.0.load(Ordering::Acquire);
        let end = self.open_range.1.load(Ordering::Acquire);
        if !(start..end).contains(&lba.0) {
            return;
        }
        let mut head = self.head.write();
        let holds = |chunk: &super::OpenChunk| (chunk.start..chunk.end()).contains(&lba);
        if head.open.as_ref().is_some_and(holds) {
            self.seal_open(&mut head);
        }
        drop(head);
        self.writer.kick();
    }
}

impl PinnedView {
    /// Where on the device the blocks are whose first has the address `lba` by an extent of this
    /// version. Writes them if they have not been written yet.
    ///
    /// # Errors
    /// `CommitFailed` and device errors of writing them.
    pub fn on_device(&self, lba: Lba) -> Result<Lba> {
        let store = &self.store;
        for _ in 0..ATTEMPTS {
            store.seal_chunk_of(lba);
            match store.residence(lba) {
                Residence::Device => return Ok(lba),
                Residence::InFlight(sequence) => store.write_before(sequence + 1)?,
                Residence::Moved => {
                    if let Some(moved) = store.head.read().moved_to(lba) {
                        return Ok(moved);
                    }
                }
            }
        }
        Err(Error::CommitFailed)
    }

    /// Writes a block for readers of this view alone and returns where it is. `ino` is whose
    /// contents they are.
    ///
    /// # Errors
    /// `ReadOnly`, `NoSpace`; those of [`PinnedView::on_device`].
    pub fn place(&self, ino: Ino, block: &[u8; BLOCK_SIZE]) -> Result<Lba> {
        let store = &self.store;
        store.check_writable()?;
        let lba = {
            let mut head = store.head.write();
            store.admit(&head, Reserve::Kept)?;
            let chunk = store.open_chunk(&mut head, 1, 0, Reserve::Kept)?;
            let lba = chunk.push_data(ino, 0, block, &[checksum::crc32c(block)]);
            let zone = chunk.zone;
            head.zones.keep_for(zone, self.version);
            store.seal_open(&mut head);
            lba
        };
        store.writer.kick();
        self.on_device(lba)
    }

    /// Fills `buffer` (whole blocks) with the blocks of `ino` from `first` on, as
    /// [`super::View::read_blocks`] does.
    ///
    /// # Errors
    /// As there.
    pub fn read_blocks(&self, ino: Ino, first: u64, buffer: &mut [u8]) -> Result<()> {
        self.store.read_file_blocks(self, None, ino, first, buffer)
    }
}

impl Drop for PinnedView {
    fn drop(&mut self) {
        self.store.pins.let_go(self.version);
    }
}

impl Records for PinnedView {
    fn get(&self, key: &Key) -> Result<Option<Value>> {
        self.tree.get(&self.store.cache, key)
    }

    fn floor(&self, key: &Key) -> Result<Option<(Key, Value)>> {
        self.tree.floor(&self.store.cache, key)
    }

    fn scan(
        &self,
        from: &Key,
        to: &Key,
        visit: &mut dyn FnMut(Key, &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        scan_tree(&self.tree, &self.store.cache, from, to, visit)
    }
}
