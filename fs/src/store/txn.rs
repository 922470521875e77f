//! Transactions: changes of the map and new file blocks, all or nothing.
//!
//! A change is made in the tree at once, so that the transaction reads its own writes, and noted
//! twice: for the log and for undoing it. File blocks go into the open chunk at once as well; blocks
//! of a transaction that is undone are dead payload.

use std::ops::ControlFlow;

use parking_lot::RwLockWriteGuard;

use super::extent::footprint;
use super::view::{self, scan_tree};
use super::{Counters, Head, IN_FLIGHT_MAX, Records, Reserve, Store, Value};
use crate::catalog::{Key, Kind};
use crate::error::{Error, Result};
use crate::format::chunk::{CHUNK_BLOCKS, Op, Transaction};
use crate::format::encode_into;
use crate::types::{BLOCK_SIZE, Ino, Lba, Sequence};

/// Bytes of an encoded transaction beyond which it is divided. A part fits any chunk of a zone that has
/// half a chunk left.
const PART_BYTES_MAX: usize = CHUNK_BLOCKS as usize / 2 * BLOCK_SIZE;

/// A transaction: all of it happens, or (dropped, failed or crashed before commit) nothing.
/// Transactions run one at a time; keep them short and let no I/O wait inside them.
pub struct Txn<'a> {
    store: &'a Store,
    /// `None` only while the transaction ends.
    head: Option<RwLockWriteGuard<'a, Head>>,
    ops: Vec<Op>,
    undo: Vec<(Key, Option<Vec<u8>>)>,
    /// Sequence number of the open chunk when the transaction began.
    first_chunk: u64,
    reserve: Reserve,
    /// Counts in the rhythm of requests to sync.
    counts: bool,
    frees: bool,
}

impl Store {
    /// Starts a transaction, waiting for its turn and for space to be collected if that is short.
    ///
    /// # Errors
    /// `ReadOnly`; `NoSpace` when nothing more can be collected; device errors of a collection that was
    /// needed.
    pub fn begin(&self) -> Result<Txn<'_>> {
        debug_assert!(!view::is_held(), "a transaction begun under a view");
        self.check_writable()?;
        if self.writer.wait_below(IN_FLIGHT_MAX).is_err() {
            self.latch("moving failed writes", self.relocate_failed())?;
        }
        loop {
            self.make_room()?;
            match self.begin_at_once(Reserve::Kept) {
                Err(Error::NoSpace) if self.may_be_admitted()? => {}
                outcome => return outcome,
            }
        }
    }

    /// Starts a transaction of the collector, which frees space and so cannot wait for some.
    pub(super) fn begin_collecting(&self) -> Result<Txn<'_>> {
        self.begin_at_once(Reserve::Used)
    }

    fn begin_at_once(&self, reserve: Reserve) -> Result<Txn<'_>> {
        let head = self.head.write();
        self.check_writable()?;
        self.admit(&head, reserve)?;
        Ok(Txn {
            store: self,
            first_chunk: head.next_sequence,
            head: Some(head),
            ops: Vec::new(),
            undo: Vec::new(),
            reserve,
            counts: true,
            frees: false,
        })
    }
}

/// A transaction as it stands in the log: in one part unless it is very long.
fn encode_parts(next_ino: u64, ops: Vec<Op>) -> Vec<Vec<u8>> {
    let encode = |ops| {
        let mut bytes = Vec::with_capacity(256);
        encode_into(&mut bytes, &Transaction { next_ino, ops });
        bytes
    };
    let mut parts = Vec::new();
    let (mut part, mut bytes) = (Vec::new(), 0);
    for op in ops {
        let len = op.encoded_len_max();
        if bytes + len > PART_BYTES_MAX {
            parts.push(encode(std::mem::take(&mut part)));
            bytes = 0;
        }
        bytes += len;
        part.push(op);
    }
    parts.push(encode(part));
    parts
}

/// Changes the live counts from what `old` occupied to what `new` occupies.
///
/// # Errors
/// `Corrupt` if either is no possible place.
pub(super) fn account(
    head: &mut Head,
    key: &Key,
    old: Option<&[u8]>,
    new: Option<&[u8]>,
) -> Result<()> {
    if key.kind != Kind::Extent {
        return Ok(());
    }
    if let Some((lba, blocks)) = new.and_then(footprint) {
        match lba {
            Some(lba) => head.zones.credit(lba, blocks)?,
            None => {
                head.reserved =
                    head.reserved
                        .checked_add(blocks)
                        .ok_or_else(|| Error::Corrupt {
                            what: "extent record",
                            detail: format!("inode {} block {}", key.ino, key.offset),
                        })?;
            }
        }
    }
    if let Some((lba, blocks)) = old.and_then(footprint) {
        match lba {
            Some(lba) => head.zones.debit(lba, blocks, head.version + 1)?,
            None => head.reserved = head.reserved.saturating_sub(blocks),
        }
    }
    Ok(())
}

impl Txn<'_> {
    fn head(&self) -> &Head {
        self.head
            .as_deref()
            .expect("a live transaction holds the head")
    }

    pub(super) fn head_mut(&mut self) -> &mut Head {
        self.head
            .as_deref_mut()
            .expect("a live transaction holds the head")
    }

    /// Sets the value of a record (at most `catalog::MAX_VALUE` bytes).
    ///
    /// # Errors
    /// Device errors.
    pub fn put(&mut self, key: Key, value: &[u8]) -> Result<()> {
        let store = self.store;
        let head = self.head_mut();
        let old = head.tree.put(&store.cache, key, value)?;
        let accounted = account(head, &key, old.as_deref(), Some(value));
        self.undo.push((key, old));
        self.ops.push(Op::Put {
            key: key.into(),
            value: value.to_vec(),
        });
        accounted
    }

    /// Removes a record if it is there.
    ///
    /// # Errors
    /// Device errors.
    pub fn delete(&mut self, key: &Key) -> Result<()> {
        let store = self.store;
        let head = self.head_mut();
        if let Some(old) = head.tree.delete(&store.cache, key)? {
            let accounted = account(head, key, Some(&old), None);
            self.undo.push((*key, Some(old)));
            self.ops.push(Op::Delete { key: (*key).into() });
            accounted?;
        }
        Ok(())
    }

    /// Removes the records of `[from, to]`; returns how many there were. One log record, whatever
    /// the number.
    ///
    /// # Errors
    /// Device errors.
    pub fn delete_range(&mut self, from: &Key, to: &Key) -> Result<u64> {
        let store = self.store;
        let mut removed: Vec<(Key, Option<Vec<u8>>)> = Vec::new();
        let head = self.head_mut();
        let count = head
            .tree
            .delete_range(&store.cache, *from..=*to, &mut |key, value| {
                removed.push((key, Some(value.to_vec())));
            })?;
        let accounted = removed
            .iter()
            .try_for_each(|(key, value)| account(head, key, value.as_deref(), None));
        self.undo.append(&mut removed);
        accounted?;
        if count > 0 {
            self.ops.push(Op::DeleteRange {
                from: (*from).into(),
                to: (*to).into(),
            });
        }
        Ok(count)
    }

    /// This transaction belongs to the one before it, or comes now and then: it does not count in the
    /// rhythm by which commits are anticipated.
    pub fn accompanies(&mut self) {
        self.counts = false;
    }

    /// This transaction frees space, even if it writes blocks: it may use the room that is left for those.
    pub fn frees(&mut self) {
        self.frees = true;
    }

    /// Fails unless `blocks` more blocks (of metadata or data) fit. Operations that only free
    /// space do not call this.
    ///
    /// # Errors
    /// `NoSpace`.
    pub fn claim_space(&mut self, blocks: u64) -> Result<()> {
        if self.reserve == Reserve::Kept && !self.frees {
            self.store.admit_growth(self.head())?;
        }
        if blocks > 0 && self.head().used() + blocks > self.head().usable(&self.store.limits) {
            return Err(Error::NoSpace);
        }
        Ok(())
    }

    /// Reads whole blocks as [`super::View::read_blocks`] does, this transaction's own changes
    /// included.
    ///
    /// # Errors
    /// As [`super::View::read_blocks`].
    pub fn read_blocks(&self, ino: Ino, first: u64, buffer: &mut [u8]) -> Result<()> {
        let open = self.head().open.as_ref();
        self.store
            .read_file_blocks(self, Some(open), ino, first, buffer)
    }

    /// Puts blocks into the log and returns the runs they were given.
    pub(super) fn append_blocks(
        &mut self,
        ino: Ino,
        first: u64,
        data: &[u8],
        crcs: &[u32],
    ) -> Result<Vec<(Lba, u64)>> {
        let (store, reserve) = (self.store, self.reserve);
        let head = self.head_mut();
        let mut runs = Vec::new();
        let mut at = 0;
        while at < crcs.len() {
            let chunk = store.open_chunk(head, 1, 0, reserve)?;
            let n = (crcs.len() - at).min(chunk.room() as usize);
            let bytes = &data[at * BLOCK_SIZE..(at + n) * BLOCK_SIZE];
            let lba = chunk.push_data(ino, first + at as u64, bytes, &crcs[at..at + n]);
            runs.push((lba, n as u64));
            at += n;
            if chunk.room() == 0 {
                store.seal_open(head);
            }
        }
        Counters::add(&store.counters.data_blocks, crcs.len() as u64);
        Ok(runs)
    }

    /// Makes the transaction happen; returns the position to [`Store::sync`] to for durability.
    ///
    /// # Errors
    /// `NoSpace`, device errors; then nothing has happened.
    pub fn commit(mut self) -> Result<Sequence> {
        let (store, counts) = (self.store, self.counts);
        if !self.ops.is_empty() {
            let ops = std::mem::take(&mut self.ops);
            let parts = encode_parts(store.next_ino(), ops);
            let reserve = self.reserve;
            let head = self.head_mut();
            let last = parts.len() - 1;
            for (at, part) in parts.iter().enumerate() {
                // If there is no chunk for a part, those before it are never continued.
                let chunk = store.open_chunk(head, 0, part.len(), reserve)?;
                chunk.push_part(part, at == 0, at == last);
                if at < last {
                    store.seal_open(head);
                }
            }
            head.version += 1;
            // The log has the transaction already.
            store.latch("committing", head.settle_retired())?;
            store.publish_pressure(head);
            Counters::add(&store.counters.transactions, 1);
        }
        self.undo.clear();
        let position = self.head().position();
        self.let_go();
        store.background.note_commit();
        if counts {
            store.commits.note_transaction();
        }
        Ok(position)
    }

    /// Releases the head and starts the writes of the chunks that filled up.
    fn let_go(&mut self) {
        let sealed = self.head().next_sequence != self.first_chunk;
        self.head = None;
        if sealed {
            self.store.writer.kick();
        }
    }

    /// Takes all changes back, newest first. Every node it needs is in memory, since the change
    /// put it there.
    fn roll_back(&mut self) -> Result<()> {
        let store = self.store;
        let undo = std::mem::take(&mut self.undo);
        let head = self.head_mut();
        for (key, old) in undo.into_iter().rev() {
            let replaced = match &old {
                Some(value) => head.tree.put(&store.cache, key, value)?,
                None => head.tree.delete(&store.cache, &key)?,
            };
            account(head, &key, replaced.as_deref(), old.as_deref())?;
        }
        head.version += 1;
        head.settle_retired()
    }
}

impl Drop for Txn<'_> {
    fn drop(&mut self) {
        let Some(head) = &self.head else { return };
        let sealed = head.next_sequence != self.first_chunk;
        if self.undo.is_empty() && !sealed {
            return;
        }
        // Also if only chunks were sealed: their zones may be reset after a version yet to come.
        if let Err(error) = self.roll_back() {
            self.store
                .latch_read_only(&format!("undoing a transaction: {error}"));
        }
        if sealed {
            // The chunks took zones, and a collection can have them back.
            self.store.note_collection(true);
            self.store.publish_pressure(self.head());
        }
        self.let_go();
    }
}

impl Records for Txn<'_> {
    fn get(&self, key: &Key) -> Result<Option<Value>> {
        self.head().tree.get(&self.store.cache, key)
    }

    fn floor(&self, key: &Key) -> Result<Option<(Key, Value)>> {
        self.head().tree.floor(&self.store.cache, key)
    }

    fn scan(
        &self,
        from: &Key,
        to: &Key,
        visit: &mut dyn FnMut(Key, &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        scan_tree(&self.head().tree, &self.store.cache, from, to, visit)
    }
}
