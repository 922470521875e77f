//! The transactional store: an ordered map and file blocks in one log on a zoned device.
//!
//! The log is the write-ahead log of the map. A [`Txn`] changes the tree in memory and, at commit,
//! appends the same changes to the *open chunk*; file blocks enter the chunk when they are written
//! and are addressed from then on. A full chunk is sealed and written; [`Store::sync`] seals and
//! writes what there is and flushes the device. A checkpoint writes the nodes of the tree that are
//! newer than the one before and a record of where the root is.
//!
//! Locks, in the order they are taken: `maintenance` (checkpoints and collection, one at a time) ->
//! `head` (the newest version; a transaction holds it for writing) -> the writer's own. `flushing` is
//! held while the device flushes, never together with `head`. The leader of a commit holds no other
//! lock during I/O. A [`View`] takes `head` for reading for an instant and no lock afterwards.
//!
//! Invariants:
//! 1. Transactions are recorded in chunks of class *hot* in the order in which they changed the tree; the
//!    sequence numbers of hot chunks have no gap.
//! 2. What a transaction refers to lies in an earlier chunk of the log, in its own, or in a chunk
//!    that was flushed before (moved blocks, nodes).
//! 3. A zone is reset only if no durable checkpoint, no log behind it and no [`View`] refers to it.

mod anchor;
mod background;
mod blocks;
mod check;
mod checkpoint;
mod collector;
mod commit;
pub mod extent;
mod open_chunk;
mod pinned;
mod recovery;
mod relocate;
mod reserve;
mod scan;
pub mod staged;
mod status;
mod txn;
mod view;
mod writer;
mod zones;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use zns_backend::ZonedDevice;

use crate::catalog::{Key, NodeCache, NodeSource, Page, Tree};
use crate::error::{Error, Result};
use crate::format::chunk::{CHUNK_BLOCKS, Class};
use crate::format::superblock::Superblock;
use crate::types::{BLOCK_SIZE, Ino, Lba, Sequence, ZoneId};

pub use crate::catalog::Value;
use anchor::Anchors;
use background::Background;
use commit::Commits;
pub use commit::{Completion, Lead};
use open_chunk::{OpenChunk, Sealed};
pub use pinned::PinnedView;
use relocate::Ghost;
use reserve::Reserve;
use staged::Staged;
pub use txn::Txn;
use view::Pins;
pub use view::View;
use writer::Writer;
use zones::{ANCHORS, ZoneTable};

/// Fewest zones a filesystem can live on.
pub const ZONES_MIN: u32 = 12;
/// Fewest blocks of capacity per zone.
pub const ZONE_CAPACITY_MIN: u64 = CHUNK_BLOCKS;
/// Zones besides the hot ones that are active at once: anchor, cold, node, and one being finished.
const OTHER_ACTIVE: u32 = 4;
/// Most hot zones written in parallel.
const STRIPES_MAX: u32 = 4;
/// Blocks on their way to the device before writers wait.
const IN_FLIGHT_MAX: u64 = 32 * CHUNK_BLOCKS;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Refuse every change; the device is not written at all.
    pub read_only: bool,
    /// Bound on catalog nodes kept in memory, in bytes.
    pub cache_bytes: usize,
    /// Bound on what one atomic write keeps in memory, in bytes, before it goes to the log.
    pub atomic_memory_bytes: usize,
    /// Run checkpoints, collection and timed commits on threads of the store. Tests switch this
    /// off and call them.
    pub background: bool,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            read_only: false,
            cache_bytes: 64 << 20,
            atomic_memory_bytes: 4 << 20,
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

/// The newest version of everything.
struct Head {
    tree: Tree,
    zones: ZoneTable,
    /// The hot chunk being filled.
    open: Option<OpenChunk>,
    /// Hot zone that took the last chunk.
    last_zone: Option<ZoneId>,
    /// Number of transactions so far; names the version of the tree.
    version: u64,
    /// Sequence number of the open chunk.
    next_sequence: u64,
    /// Blocks promised to files and not written.
    reserved: u64,
    /// Newest durable checkpoint.
    durable: Mark,
    /// Hot blocks written since then.
    log_blocks: u64,
    /// Chunks rewritten elsewhere so far.
    relocations: u64,
    /// Chunks that were rewritten elsewhere and that old versions know by their old address.
    ghosts: Vec<Ghost>,
    /// Blocks in the log that no record maps yet.
    staged: Staged,
    /// Whether a collection is under way.
    collecting: bool,
}

/// What a checkpoint contains.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    number: u64,
    version: u64,
}

/// Sizes derived from the geometry once.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Hot zones written in parallel.
    stripes: usize,
    /// Free zones only the collector and checkpoints may use.
    keep_zones: usize,
    /// Free zones below which writers collect before they go on.
    low_zones: usize,
    /// Free zones up to which the background collector works ahead.
    high_zones: usize,
    /// Resident nodes at which a checkpoint is due.
    dirty_nodes: usize,
    /// Blocks that can be live.
    usable_blocks: u64,
}

/// Counters since the store was opened.
#[derive(Default)]
struct Counters {
    transactions: AtomicU64,
    commits: AtomicU64,
    sync_calls: AtomicU64,
    chunks: AtomicU64,
    chunk_blocks: AtomicU64,
    data_blocks: AtomicU64,
    checkpoints: AtomicU64,
    node_blocks: AtomicU64,
    zones_collected: AtomicU64,
    blocks_moved: AtomicU64,
    zones_reset: AtomicU64,
    blocks_read: AtomicU64,
    checksum_errors: AtomicU64,
    writes_relocated: AtomicU64,
    replayed: AtomicU64,
}

impl Counters {
    fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

/// The store.
pub struct Store {
    device: Arc<dyn ZonedDevice>,
    superblock: Superblock,
    options: StoreOptions,
    limits: Limits,
    cache: NodeCache,
    head: RwLock<Head>,
    /// First block of and behind the open chunk, so that readers need not ask the head.
    open_range: (AtomicU64, AtomicU64),
    writer: Arc<Writer>,
    commits: Commits,
    pins: Pins,
    anchors: Mutex<Anchors>,
    maintenance: Mutex<()>,
    background: Background,
    next_ino: AtomicU64,
    /// Why the store takes no more changes.
    latched: Mutex<Option<String>>,
    read_only: AtomicBool,
    /// The last unmount was clean and nothing has been logged behind it.
    opened_clean: bool,
    /// Acknowledged data that recovery could not find. Only a read-only store has any.
    damage: Option<String>,
    counters: Counters,
}

/// Reads catalog nodes from the device.
struct DeviceNodes(Arc<dyn ZonedDevice>);

impl NodeSource for DeviceNodes {
    fn read_block(&self, lba: Lba, page: &mut Page) -> Result<()> {
        Ok(self.0.read(lba, page)?)
    }
}

impl Limits {
    fn new(device: &dyn ZonedDevice, cache_bytes: usize) -> Result<Limits> {
        let geometry = device.geometry();
        if geometry.block_size as usize != BLOCK_SIZE {
            return Err(Error::BadImage(format!(
                "the device has blocks of {} bytes, WarrenFS needs {BLOCK_SIZE}",
                geometry.block_size
            )));
        }
        if geometry.zones < ZONES_MIN || geometry.zone_capacity < ZONE_CAPACITY_MIN {
            return Err(Error::BadImage(format!(
                "{} zones of {} blocks: WarrenFS needs at least {ZONES_MIN} zones of {ZONE_CAPACITY_MIN}",
                geometry.zones, geometry.zone_capacity
            )));
        }
        let active = [geometry.max_open, geometry.max_active]
            .into_iter()
            .filter(|limit| *limit > 0)
            .min()
            .unwrap_or(u32::MAX);
        if active <= OTHER_ACTIVE {
            return Err(Error::BadImage(format!(
                "the device allows {active} open zones, WarrenFS needs {}",
                OTHER_ACTIVE + 1
            )));
        }
        let zones = (geometry.zones - ANCHORS) as usize;
        let capacity = geometry.zone_capacity;
        let stripes = (active - OTHER_ACTIVE)
            .min(STRIPES_MAX)
            .min((geometry.zones / 16).max(1)) as usize;
        let dirty_nodes = (cache_bytes / BLOCK_SIZE / 2).clamp(64, capacity as usize);
        // While a batch of victims is moved: two zones for the copies, one for nodes, one for the
        // transactions that map the copies if no hot zone is open.
        let keep_zones = 4;
        let low_zones = keep_zones + 1;
        let high_zones = low_zones + (zones / 20).max(1);
        // Partly filled zones: those open for hot, cold and node chunks, and the next of each kind.
        let writable = (zones - keep_zones - stripes - 3) as u64 * capacity;
        Ok(Limits {
            stripes,
            keep_zones,
            low_zones,
            high_zones,
            dirty_nodes,
            usable_blocks: writable - writable / 16,
        })
    }
}

impl Head {
    /// The chunk that has, or will have, the newest transaction.
    fn position(&self) -> Sequence {
        let open = self.open.as_ref().is_some_and(|chunk| !chunk.is_empty());
        Sequence(if open {
            self.next_sequence
        } else {
            self.next_sequence - 1
        })
    }

    /// Blocks in use: live on the device, promised, staged, or resident and bound for the next checkpoint.
    fn used(&self) -> u64 {
        self.zones.live_total()
            + self.reserved
            + self.staged.blocks()
            + self.tree.dirty_nodes() as u64
    }

    /// Blocks that can be in use: those of retired zones are lost.
    fn usable(&self, limits: &Limits) -> u64 {
        limits
            .usable_blocks
            .saturating_sub(self.zones.retired_blocks())
    }

    /// Accounts for the nodes the tree has let go of. They stay readable to older versions.
    fn settle_retired(&mut self) -> Result<()> {
        let version = self.version;
        for lba in self.tree.take_retired() {
            self.zones.debit(lba, 1, version)?;
        }
        Ok(())
    }
}

impl Store {
    /// The device below.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn ZonedDevice> {
        &self.device
    }

    /// Identity and label.
    #[must_use]
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Whether changes are refused.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Acquire)
    }

    /// A fresh inode number; never given out again, not even after a crash that keeps the inode.
    pub fn allocate_ino(&self) -> Ino {
        Ino(self.next_ino.fetch_add(1, Ordering::Relaxed))
    }

    /// Highest inode number given out so far plus one.
    #[must_use]
    pub fn next_ino(&self) -> u64 {
        self.next_ino.load(Ordering::Relaxed)
    }

    /// The position in the log after the newest committed transaction.
    #[must_use]
    pub fn position(&self) -> Sequence {
        self.head.read().position()
    }

    /// Space in use and in all.
    #[must_use]
    pub fn space(&self) -> Space {
        let head = self.head.read();
        Space {
            total: head.usable(&self.limits),
            used: head.used(),
        }
    }

    /// Takes no more changes from now on.
    pub fn latch_read_only(&self, why: &str) {
        self.read_only.store(true, Ordering::Release);
        let mut latched = self.latched.lock();
        if latched.is_none() {
            tracing::error!("read-only from now on: {why}");
            *latched = Some(why.to_owned());
        }
    }

    fn check_writable(&self) -> Result<()> {
        if self.is_read_only() {
            Err(Error::ReadOnly)
        } else {
            Ok(())
        }
    }

    /// Passes an error on and latches read-only: for steps after which memory and device would
    /// part ways.
    fn latch<T>(&self, what: &str, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            self.latch_read_only(&format!("{what}: {error}"));
        }
        result
    }

    /// Commits, writes a last checkpoint and stops the background threads. The store refuses
    /// changes afterwards; closing twice is harmless.
    ///
    /// # Errors
    /// Device errors.
    pub fn close(&self) -> Result<()> {
        self.background.stop();
        let result = if self.is_read_only() {
            Ok(())
        } else {
            self.checkpoint_final()
        };
        self.read_only.store(true, Ordering::Release);
        self.writer.stop();
        result
    }

    /// Opens a chunk in a hot zone if none is open that has room for `blocks` payload blocks or, if
    /// zero, for a transaction of `bytes`.
    fn open_chunk<'h>(
        &self,
        head: &'h mut Head,
        blocks: u64,
        bytes: usize,
        reserve: Reserve,
    ) -> Result<&'h mut OpenChunk> {
        let fits = |chunk: &OpenChunk| chunk.room() >= blocks && chunk.fits_transaction(bytes);
        if !head.open.as_ref().is_some_and(fits) {
            self.seal_open(head);
            let mut attempts = 0;
            while !head.open.as_ref().is_some_and(fits) {
                if let Some(unfit) = head.open.take() {
                    // Too little is left in this zone, or the transaction is larger than any chunk.
                    head.zones.seal(unfit.zone, head.version + 1);
                    self.writer.finish_zone(unfit.zone);
                }
                attempts += 1;
                if attempts > self.limits.stripes + 2 {
                    self.publish_open_range(None);
                    return Err(Error::TooLarge);
                }
                let zone = self.pick_hot_zone(head, reserve)?;
                let start = head.zones.next_lba(zone);
                let limit = head.zones.remaining(zone).min(CHUNK_BLOCKS);
                let buffer = self.device.buffer(CHUNK_BLOCKS as usize * BLOCK_SIZE);
                head.open = Some(OpenChunk::new(Class::Hot, zone, start, limit, buffer));
            }
            self.publish_open_range(head.open.as_ref());
        }
        head.open.as_mut().ok_or(Error::NoSpace)
    }

    fn publish_open_range(&self, open: Option<&OpenChunk>) {
        let (start, end) = open.map_or((u64::MAX, 0), |chunk| (chunk.start.0, chunk.end().0));
        // A reader that sees a mixture asks the head needlessly or, as the chunk is already among
        // the resident ones when its range goes, finds it there.
        self.open_range.1.store(end, Ordering::Release);
        self.open_range.0.store(start, Ordering::Release);
    }

    /// The zone for the next hot chunk: the last one if it is idle (small commits stay together),
    /// another idle one, a new one while there are fewer than the stripes, any.
    fn pick_hot_zone(&self, head: &mut Head, reserve: Reserve) -> Result<ZoneId> {
        let open = head.zones.open_zones(Class::Hot);
        let keep = match reserve {
            Reserve::Used if open.is_empty() => self.checkpoint_zones(head),
            _ => self.limits.keep_zones,
        };
        let idle = |zone: &ZoneId| self.writer.is_idle(*zone);
        let zone = head
            .last_zone
            .filter(|zone| open.contains(zone) && idle(zone))
            .or_else(|| open.iter().copied().find(idle))
            .or_else(|| {
                let more = open.len() < self.limits.stripes;
                more.then(|| head.zones.take_free(Class::Hot, keep, head.version))
                    .flatten()
            })
            .or_else(|| {
                let next = open
                    .iter()
                    .copied()
                    .find(|zone| Some(*zone) > head.last_zone);
                next.or_else(|| open.first().copied())
            })
            .ok_or(Error::NoSpace)?;
        head.last_zone = Some(zone);
        Ok(zone)
    }

    /// Seals the open chunk, if there is anything in it, and hands it to the writer.
    fn seal_open(&self, head: &mut Head) {
        if head.open.as_ref().is_some_and(|chunk| !chunk.is_empty())
            && let Some((sealed, used_up)) = self.seal_unqueued(head)
        {
            let zone = sealed.zone;
            self.writer.enqueue(sealed);
            if used_up {
                self.writer.finish_zone(zone);
            }
            self.publish_open_range(None);
        }
    }

    /// Seals the open chunk; says too whether its zone is now used up with blocks left over. The
    /// caller gives it to the writer before it lets go of the head.
    fn seal_unqueued(&self, head: &mut Head) -> Option<(Arc<Sealed>, bool)> {
        let chunk = head.open.take()?;
        let sequence = head.next_sequence;
        head.next_sequence += 1;
        let durable = self.commits.durable();
        let sealed = chunk.seal(&self.superblock.fsid, sequence, durable);
        // The next version, since the chunk may hold blocks of a transaction that is going on: its
        // zone is not reset before a checkpoint whose log begins behind the chunk.
        let used_up = head
            .zones
            .advance(sealed.zone, sealed.blocks, sequence, head.version + 1);
        head.log_blocks += sealed.blocks;
        Counters::add(&self.counters.chunks, 1);
        Counters::add(&self.counters.chunk_blocks, sealed.blocks);
        Some((Arc::new(sealed), used_up))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.background.stop_detached();
        self.writer.stop();
    }
}
