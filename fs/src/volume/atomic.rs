//! Atomic writes: changes of one file's contents that happen together, at a commit, or not at all.
//!
//! A *session* belongs to one owner (an open handle) and one file. What its owner writes is pending: in
//! memory, and beyond a bound staged in the log ([`crate::store::staged`]). Everybody else sees the file
//! as it is committed. The commit is one transaction that maps all of it, so it is atomic for readers of
//! the volume and for crashes as every operation is; nothing of a session that ends in another way was
//! ever part of the file.
//!
//! While a session lasts nobody else changes the contents of the file: that fails with `Busy`. So the
//! pending blocks, which are whole ones, never carry old bytes over somebody's newer ones.
//!
//! Locks: a session's own, then whatever its reading and committing takes. The map of sessions is
//! looked at under the store's head.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::file::{drop_inline, inline_to_block, load_inline, save_inline};
use super::types::{Attributes, Time};
use super::{METADATA_BLOCKS, Volume, allocate, inode, xattr};
use crate::error::{Error, Result};
use crate::format::record::{InodeRecord, MAX_INLINE};
use crate::store::staged::Stage;
use crate::store::{Store, Txn};
use crate::types::{BLOCK, BLOCK_SIZE, Ino, MAX_FILE_SIZE};

/// Blocks all sessions together keep in memory, 64 MiB, before each stages what it has beyond 1 MiB.
const TOTAL_MEMORY_BLOCKS_MAX: usize = 16 << 10;
/// Most blocks a session changes: 1 GiB. Their extents become one transaction.
pub const SESSION_BLOCKS_MAX: u64 = 1 << 18;
/// Most blocks staged at a time, so that a transaction is short.
const STAGE_BLOCKS: usize = 256;

/// The length of a file whose session is just starting.
const UNKNOWN: u64 = u64::MAX;

/// Who a session belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner(pub u64);

type Block = Box<[u8; BLOCK_SIZE]>;

struct Session {
    stage: Stage,
    /// Pending blocks in memory; none of them is staged.
    memory: BTreeMap<u64, Block>,
    /// How many blocks are staged.
    staged: u64,
    /// Length of the file as the session has it.
    size: u64,
    /// What is committed from here on was cut off in the session.
    cut: u64,
    changed: bool,
    kill_privileges: bool,
    /// A write failed: there is nothing whole to commit.
    failed: bool,
    /// Committed or aborted, while somebody was waiting for its lock.
    ended: bool,
}

/// A session as the map has it.
#[derive(Clone)]
struct Entry {
    owner: Owner,
    session: Arc<Mutex<Session>>,
    /// The session's length, for whoever asks for attributes.
    size: Arc<AtomicU64>,
}

/// All sessions.
#[derive(Default)]
pub(super) struct Sessions {
    map: Mutex<HashMap<Ino, Entry>>,
    /// Entries of the map, so that nobody locks it while there is none.
    count: AtomicUsize,
    stages: AtomicU64,
    /// Blocks that sessions have in memory.
    memory_blocks: AtomicUsize,
    /// Blocks one session keeps in memory before it stages them.
    memory_blocks_max: usize,
}

impl Sessions {
    /// No sessions yet; each will keep up to `memory_bytes` in memory.
    pub(super) fn new(memory_bytes: usize) -> Sessions {
        Sessions {
            memory_blocks_max: (memory_bytes / BLOCK_SIZE).max(1),
            ..Sessions::default()
        }
    }

    fn get(&self, ino: Ino) -> Option<Entry> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.map.lock().get(&ino).cloned()
    }

    fn of(&self, ino: Ino, owner: Owner) -> Option<Entry> {
        self.get(ino).filter(|entry| entry.owner == owner)
    }

    /// Fails if the contents of `ino` may change by a session's commit alone. To be asked inside of
    /// the transaction that changes them.
    pub(super) fn admit(&self, ino: Ino) -> Result<()> {
        match self.get(ino) {
            None => Ok(()),
            Some(_) => Err(Error::Busy("an atomic write of the file is under way")),
        }
    }

    /// The length that a session gives the file is shown to everybody: the kernel has one for all.
    pub(super) fn adjust(&self, attributes: &mut Attributes) {
        if let Some(entry) = self.get(attributes.ino) {
            let size = entry.size.load(Ordering::Relaxed);
            if size != UNKNOWN {
                attributes.size = size;
            }
        }
    }

    fn end(&self, ino: Ino, session: &Session) {
        let left = session.memory.len();
        self.memory_blocks.fetch_sub(left, Ordering::Relaxed);
        let mut map = self.map.lock();
        map.remove(&ino);
        self.count.store(map.len(), Ordering::Release);
    }
}

impl Session {
    fn new(stage: Stage, size: u64) -> Session {
        Session {
            stage,
            memory: BTreeMap::new(),
            staged: 0,
            size,
            cut: u64::MAX,
            changed: false,
            kill_privileges: false,
            failed: false,
            ended: false,
        }
    }

    /// Whether the session has anything else in the blocks from `first` on and before `end` than what is
    /// committed, or zeros behind its end.
    fn changes(&self, store: &Store, first: u64, end: u64) -> bool {
        self.cut < end * BLOCK
            || self.memory.range(first..end).next().is_some()
            || (self.staged > 0 && store.is_staged(self.stage, first, end))
    }

    /// Lays what is pending over committed contents: `blocks` holds those from `first` on.
    fn overlay(&self, store: &Store, ino: Ino, first: u64, blocks: &mut [u8]) -> Result<()> {
        let cut = self.cut.saturating_sub(first * BLOCK);
        if let Some(gone) = blocks.get_mut(usize::try_from(cut).unwrap_or(usize::MAX)..) {
            gone.fill(0);
        }
        for (block, out) in (first..).zip(blocks.chunks_exact_mut(BLOCK_SIZE)) {
            if let Some(pending) = self.memory.get(&block) {
                out.copy_from_slice(&pending[..]);
            } else if self.staged > 0 {
                store.read_staged(self.stage, ino, block, out)?;
            }
        }
        Ok(())
    }
}

/// Fills `out` (whole blocks) with the committed contents from block `first` on, zeros behind the end.
fn read_committed(store: &Store, ino: Ino, first: u64, out: &mut [u8]) -> Result<()> {
    let view = store.view();
    let inode = inode::load_file(&view, ino)?;
    if !inode.has(InodeRecord::INLINE) {
        return view.read_blocks(ino, first, out);
    }
    out.fill(0);
    if first == 0 {
        let bytes = load_inline(&view, ino, &inode, BLOCK_SIZE)?;
        out[..BLOCK_SIZE].copy_from_slice(&bytes);
    }
    Ok(())
}

/// Pending blocks in memory as runs of consecutive ones, each no longer than `max` blocks.
fn runs(memory: &BTreeMap<u64, Block>, max: usize) -> Vec<(u64, Vec<u8>)> {
    let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
    for (&block, bytes) in memory {
        match runs.last_mut() {
            Some((first, run))
                if *first + (run.len() / BLOCK_SIZE) as u64 == block
                    && run.len() < max * BLOCK_SIZE =>
            {
                run.extend_from_slice(&bytes[..]);
            }
            _ => runs.push((block, bytes.to_vec())),
        }
    }
    runs
}

impl Volume {
    /// Starts a session of `owner`, who has the file open for writing.
    ///
    /// # Errors
    /// `Busy` if another owner has one, `Invalid` if this one has; `ReadOnly`, `NotFound`,
    /// `IsDirectory`, `Invalid` for what is no regular file; device errors.
    pub fn start_atomic(&self, ino: Ino, owner: Owner) -> Result<()> {
        if self.store.is_read_only() {
            return Err(Error::ReadOnly);
        }
        let mut map = self.sessions.map.lock();
        if let Some(entry) = map.get(&ino) {
            return Err(match entry.owner == owner {
                true => Error::Invalid("an atomic write was started already"),
                false => Error::Busy("somebody else's atomic write is under way"),
            });
        }
        let stage = Stage(self.sessions.stages.fetch_add(1, Ordering::Relaxed));
        // Locked before others can find it, so that its first user waits for the length.
        let session = Arc::new(Mutex::new(Session::new(stage, 0)));
        let mut fresh = session.lock();
        let size = Arc::new(AtomicU64::new(UNKNOWN));
        let entry = Entry {
            owner,
            session: Arc::clone(&session),
            size: Arc::clone(&size),
        };
        map.insert(ino, entry);
        self.sessions.count.store(map.len(), Ordering::Release);
        drop(map);
        // From here on nobody else changes the contents.
        match inode::load_file(&self.store.view(), ino) {
            Ok(inode) => {
                fresh.size = inode.size;
                size.store(inode.size, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => {
                self.sessions.end(ino, &fresh);
                Err(error)
            }
        }
    }

    /// Whose session a file has.
    pub fn atomic_owner(&self, ino: Ino) -> Option<Owner> {
        self.sessions.get(ino).map(|entry| entry.owner)
    }

    /// As [`Volume::write`], to be part of the session; false, and nothing done, if `owner` has none.
    ///
    /// # Errors
    /// `TooLarge` beyond [`SESSION_BLOCKS_MAX`]; `NoSpace`; device
    /// errors. A session with a failed write cannot be committed.
    pub fn write_atomic(
        &self,
        ino: Ino,
        owner: Owner,
        offset: u64,
        data: &[u8],
        kill_privileges: bool,
    ) -> Result<bool> {
        let Some(entry) = self.sessions.of(ino, owner) else {
            return Ok(false);
        };
        let mut session = entry.session.lock();
        if session.ended {
            return Ok(false);
        }
        let outcome = self.write_pending(ino, &mut session, offset, data);
        session.failed |= outcome.is_err();
        session.changed |= !data.is_empty();
        session.kill_privileges |= kill_privileges;
        entry.size.store(session.size, Ordering::Relaxed);
        outcome.map(|()| true)
    }

    fn write_pending(
        &self,
        ino: Ino,
        session: &mut Session,
        offset: u64,
        data: &[u8],
    ) -> Result<()> {
        let end = offset
            .checked_add(data.len() as u64)
            .filter(|end| *end <= MAX_FILE_SIZE)
            .ok_or(Error::TooLarge)?;
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let (block, within) = (at / BLOCK, (at % BLOCK) as usize);
            let len = rest.len().min(BLOCK_SIZE - within);
            self.make_pending(ino, session, block, len < BLOCK_SIZE)?[within..within + len]
                .copy_from_slice(&rest[..len]);
            at += len as u64;
            rest = &rest[len..];
            self.bound_memory(ino, session)?;
        }
        if !data.is_empty() {
            session.size = session.size.max(end);
        }
        Ok(())
    }

    /// A pending block in memory; `keep`: with what the session has in its place.
    fn make_pending<'s>(
        &self,
        ino: Ino,
        session: &'s mut Session,
        block: u64,
        keep: bool,
    ) -> Result<&'s mut Block> {
        if !session.memory.contains_key(&block) {
            let mut bytes = Box::new([0; BLOCK_SIZE]);
            if keep {
                if block * BLOCK < session.size.min(session.cut) {
                    read_committed(&self.store, ino, block, &mut bytes[..])?;
                }
                session.overlay(&self.store, ino, block, &mut bytes[..])?;
            }
            if session.staged > 0 {
                self.unstage(session, block, block + 1);
            }
            if session.memory.len() as u64 + session.staged >= SESSION_BLOCKS_MAX {
                return Err(Error::TooLarge);
            }
            session.memory.insert(block, bytes);
            self.sessions.memory_blocks.fetch_add(1, Ordering::Relaxed);
        }
        session
            .memory
            .get_mut(&block)
            .ok_or(Error::Invalid("a block that was just made"))
    }

    fn unstage(&self, session: &mut Session, first: u64, end: u64) {
        session.staged -= self.store.unstage(session.stage, first, end);
    }

    /// Stages what is in memory if that is too much.
    fn bound_memory(&self, ino: Ino, session: &mut Session) -> Result<()> {
        let total = self.sessions.memory_blocks.load(Ordering::Relaxed);
        if session.memory.len() < self.sessions.memory_blocks_max
            && (total < TOTAL_MEMORY_BLOCKS_MAX || session.memory.len() < STAGE_BLOCKS)
        {
            return Ok(());
        }
        while !session.memory.is_empty() {
            let next = session.memory.keys().nth(STAGE_BLOCKS).copied();
            let mut rest = next.map_or_else(BTreeMap::new, |next| session.memory.split_off(&next));
            let runs = runs(&session.memory, STAGE_BLOCKS);
            if let Err(error) = self.store.stage(session.stage, ino, &runs) {
                session.memory.append(&mut rest);
                return Err(error);
            }
            let blocks = std::mem::replace(&mut session.memory, rest).len();
            session.staged += blocks as u64;
            let total = &self.sessions.memory_blocks;
            total.fetch_sub(blocks, Ordering::Relaxed);
        }
        Ok(())
    }

    /// As [`Volume::read_with`], of the file as the session has it; `None`, and nothing read, if `owner`
    /// has none.
    ///
    /// # Errors
    /// `BadBlock`, device errors.
    pub fn read_atomic<'a>(
        &self,
        ino: Ino,
        owner: Owner,
        offset: u64,
        size: usize,
        room: impl FnOnce(usize) -> &'a mut [u8],
    ) -> Result<Option<Range<usize>>> {
        let Some(entry) = self.sessions.of(ino, owner) else {
            return Ok(None);
        };
        let session = entry.session.lock();
        if session.ended {
            return Ok(None);
        }
        let end = offset.saturating_add(size as u64).min(session.size);
        if offset >= end {
            return Ok(Some(0..0));
        }
        let (first, behind) = (offset / BLOCK, end.div_ceil(BLOCK));
        let out = room((behind - first) as usize * BLOCK_SIZE);
        if session.changes(&self.store, first, behind) {
            let pending = session.memory.range(first..behind).count() as u64;
            // What is in memory alone needs nothing of the file.
            if pending < behind - first {
                read_committed(&self.store, ino, first, out)?;
            }
            session.overlay(&self.store, ino, first, out)?;
        } else {
            // Nobody waits for the device with the session locked: what changes the blocks meanwhile is
            // a write at the same time, or a commit, of which a view shows all or nothing.
            drop(session);
            read_committed(&self.store, ino, first, out)?;
        }
        let head = (offset % BLOCK) as usize;
        Ok(Some(head..head + (end - offset) as usize))
    }

    /// Changes the size of the file, as a part of the session; false, and nothing done, if `owner` has
    /// none.
    ///
    /// # Errors
    /// `TooLarge`; device errors.
    pub fn truncate_atomic(&self, ino: Ino, owner: Owner, size: u64) -> Result<bool> {
        if size > MAX_FILE_SIZE {
            return Err(Error::TooLarge);
        }
        let Some(entry) = self.sessions.of(ino, owner) else {
            return Ok(false);
        };
        let mut session = entry.session.lock();
        let session = &mut *session;
        if session.ended {
            return Ok(false);
        }
        if size < session.size {
            let (first, within) = (size.div_ceil(BLOCK), (size % BLOCK) as usize);
            let gone = session.memory.split_off(&first).len();
            let total = &self.sessions.memory_blocks;
            total.fetch_sub(gone, Ordering::Relaxed);
            self.unstage(session, first, u64::MAX);
            session.cut = session.cut.min(size);
            let pending = session.memory.contains_key(&(size / BLOCK)) || session.staged > 0;
            if within > 0 && pending {
                let outcome = self.make_pending(ino, session, size / BLOCK, true);
                if let Err(error) = outcome.map(|block| block[within..].fill(0)) {
                    session.failed = true;
                    return Err(error);
                }
            }
        }
        session.size = size;
        session.changed = true;
        entry.size.store(size, Ordering::Relaxed);
        Ok(true)
    }

    /// Ends the session and makes everything in it happen, in one transaction; answers whether there
    /// was anything. [`Volume::fsync`] makes that durable.
    ///
    /// # Errors
    /// `Invalid` if there is no session. With any other error the session has ended too, and nothing of
    /// it has happened.
    pub fn commit_atomic(&self, ino: Ino, owner: Owner) -> Result<bool> {
        const NONE: Error = Error::Invalid("no atomic write was started");
        let entry = self.sessions.of(ino, owner).ok_or(NONE)?;
        let mut session = entry.session.lock();
        if session.ended {
            return Err(NONE);
        }
        let outcome = self.commit_session(ino, &session);
        self.end_atomic(ino, &mut session);
        outcome.map(|()| session.changed)
    }

    fn end_atomic(&self, ino: Ino, session: &mut Session) {
        session.ended = true;
        if session.staged > 0 {
            self.unstage(session, 0, u64::MAX);
        }
        self.sessions.end(ino, session);
    }

    fn commit_session(&self, ino: Ino, session: &Session) -> Result<()> {
        if session.failed {
            return Err(Error::AtomicWriteLost);
        }
        if !session.changed {
            return Ok(());
        }
        let runs = runs(&session.memory, usize::MAX / BLOCK_SIZE);
        let edges = self.read_edges(ino, session.cut, u64::MAX)?;
        let mut txn = self.store.begin()?;
        let mut inode = inode::load_file(&txn, ino)?;
        txn.claim_space(METADATA_BLOCKS + runs.len() as u64 / 8)?;
        if session.cut < inode.size {
            allocate::set_size(&mut txn, ino, &mut inode, session.cut, &edges)?;
        }
        if inode.blocks == 0 && session.size <= MAX_INLINE as u64 && session.staged == 0 {
            let mut bytes = load_inline(&txn, ino, &inode, session.size as usize)?;
            if let Some(block) = session.memory.get(&0) {
                bytes.copy_from_slice(&block[..session.size as usize]);
            }
            match bytes.is_empty() && inode.has(InodeRecord::INLINE) {
                true => drop_inline(&mut txn, ino, &mut inode)?,
                false if bytes.is_empty() => {}
                false => save_inline(&mut txn, ino, &mut inode, &bytes)?,
            }
        } else {
            map_session(&mut txn, ino, &mut inode, session.stage, &runs)?;
        }
        inode.size = session.size;
        if session.kill_privileges {
            inode::clear_set_id(&mut inode);
            xattr::drop_capability(&mut txn, ino, &mut inode)?;
        }
        // Under the writeback cache the kernel has times of its own, which it writes some time later.
        inode::touch(&mut inode, inode::to_timestamp(Time::now()));
        inode::save(&mut txn, ino, &inode)?;
        self.commit(txn, &[ino])
    }

    /// Ends the session of `owner` and forgets what is in it; answers the length that the file had in
    /// it, `None` if there is no session.
    pub fn abort_atomic(&self, ino: Ino, owner: Owner) -> Option<u64> {
        let entry = self.sessions.of(ino, owner)?;
        let mut session = entry.session.lock();
        if session.ended {
            return None;
        }
        self.end_atomic(ino, &mut session);
        Some(session.size)
    }
}

/// Maps the blocks of a session in a file that has, or gets, the block shape.
fn map_session(
    txn: &mut Txn<'_>,
    ino: Ino,
    inode: &mut InodeRecord,
    stage: Stage,
    runs: &[(u64, Vec<u8>)],
) -> Result<()> {
    inline_to_block(txn, ino, inode)?;
    for (first, data) in runs {
        inode.blocks += txn.write_blocks(ino, *first, data)?;
    }
    inode.blocks += txn.map_staged(stage, ino)?;
    Ok(())
}
