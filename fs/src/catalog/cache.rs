//! The node cache: clean nodes by address, bounded in bytes.
//!
//! Sharded by address; a hit takes a shared lock and sets a bit, a clock hand evicts. No lock is
//! held while the device reads; two readers that miss the same node may both read it, and the first
//! to come back wins. An entry carries the checksum it was read under, so that an address which was
//! reused never yields the old node, even if nobody called [`NodeCache::invalidate`].
//!
//! This is the one place where a node that comes from the device is verified.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::RwLock;

use super::node::{Node, NodeRef, Page};
use crate::checksum;
use crate::types::{BLOCK_SIZE, Lba};
use crate::{Error, Result};

/// Where nodes are read from.
pub trait NodeSource: Send + Sync {
    /// Reads the block at `lba`. The cache verifies what was read.
    ///
    /// # Errors
    /// Whatever the device answers.
    fn read_block(&self, lba: Lba, page: &mut Page) -> Result<()>;
}

impl<S: NodeSource + ?Sized> NodeSource for Arc<S> {
    fn read_block(&self, lba: Lba, page: &mut Page) -> Result<()> {
        (**self).read_block(lba, page)
    }
}

/// Counters of a [`NodeCache`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Loads answered from memory.
    pub hits: u64,
    /// Loads that read the device.
    pub misses: u64,
    /// Nodes dropped to make room.
    pub evictions: u64,
    /// Nodes held now.
    pub nodes: usize,
    /// Bytes those nodes take.
    pub bytes: usize,
    /// Most bytes they may take.
    pub capacity_bytes: usize,
}

/// A bounded cache of clean nodes over the device that holds them.
pub struct NodeCache {
    source: Box<dyn NodeSource>,
    shards: Box<[Shard]>,
    capacity_bytes: usize,
    bytes: AtomicUsize,
    hits: AtomicU64,
    misses: AtomicU64,
    evictions: AtomicU64,
}

#[derive(Default)]
struct Shard {
    ring: RwLock<Ring>,
}

/// Entries in clock order, and where each address is.
#[derive(Default)]
struct Ring {
    entries: Vec<Entry>,
    index: HashMap<Lba, usize, BuildHasherDefault<WordHasher>>,
    hand: usize,
    bytes: usize,
}

struct Entry {
    reference: NodeRef,
    node: Arc<Node>,
    used: AtomicBool,
}

/// Shards are of at least this size, so that each holds a meaningful share of a small cache.
const SHARD_MIN_BYTES: usize = 1 << 20;
const SHARDS_MAX: usize = 16;

impl NodeCache {
    /// A cache of at most `capacity_bytes` over `source`. A capacity below one node caches nothing.
    #[must_use]
    pub fn new(source: impl NodeSource + 'static, capacity_bytes: usize) -> NodeCache {
        let shards = (capacity_bytes / SHARD_MIN_BYTES).clamp(1, SHARDS_MAX);
        NodeCache {
            source: Box::new(source),
            shards: (0..shards).map(|_| Shard::default()).collect(),
            capacity_bytes,
            bytes: AtomicUsize::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
        }
    }

    /// Forgets the nodes in a range of addresses, because their zone is reset.
    pub fn invalidate(&self, range: Range<Lba>) {
        let blocks = range.end.0.saturating_sub(range.start.0);
        for shard in &self.shards {
            let mut ring = shard.ring.write();
            let stale: Vec<Lba> = if blocks < ring.entries.len() as u64 {
                (range.start.0..range.end.0)
                    .map(Lba)
                    .filter(|lba| ring.index.contains_key(lba))
                    .collect()
            } else {
                ring.index
                    .keys()
                    .filter(|lba| range.contains(lba))
                    .copied()
                    .collect()
            };
            for lba in stale {
                self.remove(&mut ring, lba);
            }
        }
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        CacheStats {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            evictions: self.evictions.load(Ordering::Relaxed),
            nodes: self
                .shards
                .iter()
                .map(|shard| shard.ring.read().entries.len())
                .sum(),
            bytes: self.bytes.load(Ordering::Relaxed),
            capacity_bytes: self.capacity_bytes,
        }
    }

    /// The node at `reference`, which must be of this level.
    pub(super) fn load(&self, reference: NodeRef, level: u8) -> Result<Arc<Node>> {
        let node = match self.lookup(reference) {
            Some(node) => {
                self.hits.fetch_add(1, Ordering::Relaxed);
                node
            }
            None => {
                self.misses.fetch_add(1, Ordering::Relaxed);
                let node = Arc::new(self.read(reference)?);
                self.insert(reference, &node);
                node
            }
        };
        if node.level() != level {
            return Err(corrupt(
                reference.lba,
                format!("level {} instead of {level}", node.level()),
            ));
        }
        Ok(node)
    }

    /// Adds a node that is known to be on the device.
    pub(super) fn insert(&self, reference: NodeRef, node: &Arc<Node>) {
        let room = self.capacity_bytes / self.shards.len();
        let bytes = node.memory_bytes();
        if bytes > room {
            return;
        }
        let mut ring = self.shard(reference.lba).ring.write();
        self.remove(&mut ring, reference.lba);
        while ring.bytes + bytes > room {
            self.evict(&mut ring);
        }
        let at = ring.entries.len();
        let used = AtomicBool::new(false);
        ring.entries.push(Entry {
            reference,
            node: Arc::clone(node),
            used,
        });
        ring.index.insert(reference.lba, at);
        ring.bytes += bytes;
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn shard(&self, lba: Lba) -> &Shard {
        &self.shards[(spread(lba.0) >> 40) as usize % self.shards.len()]
    }

    fn lookup(&self, reference: NodeRef) -> Option<Arc<Node>> {
        let ring = self.shard(reference.lba).ring.read();
        let entry = &ring.entries[*ring.index.get(&reference.lba)?];
        if entry.reference != reference {
            return None;
        }
        // A plain load first: a hot node's line stays shared between the cores.
        if !entry.used.load(Ordering::Relaxed) {
            entry.used.store(true, Ordering::Relaxed);
        }
        Some(Arc::clone(&entry.node))
    }

    fn read(&self, NodeRef { lba, crc }: NodeRef) -> Result<Node> {
        let mut page = Box::new([0; BLOCK_SIZE]);
        self.source.read_block(lba, &mut page)?;
        let found = checksum::crc32c(&page[..]);
        if found != crc {
            return Err(corrupt(
                lba,
                format!("checksum {found:08x} instead of {crc:08x}"),
            ));
        }
        Node::decode(page).map_err(|detail| corrupt(lba, detail))
    }

    /// Drops the next entry that was not used since the hand last passed it.
    fn evict(&self, ring: &mut Ring) {
        loop {
            let hand = ring.hand % ring.entries.len();
            ring.hand = hand + 1;
            let entry = &mut ring.entries[hand];
            if !std::mem::take(entry.used.get_mut()) {
                let lba = entry.reference.lba;
                self.remove(ring, lba);
                self.evictions.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
    }

    fn remove(&self, ring: &mut Ring, lba: Lba) {
        let Some(at) = ring.index.remove(&lba) else {
            return;
        };
        let bytes = ring.entries.swap_remove(at).node.memory_bytes();
        if let Some(moved) = ring.entries.get(at) {
            ring.index.insert(moved.reference.lba, at);
        }
        ring.bytes -= bytes;
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The error for a node that is not what it should be.
pub(super) fn corrupt(lba: Lba, detail: impl std::fmt::Display) -> Error {
    Error::Corrupt {
        what: "catalog node",
        detail: format!("LBA {lba}: {detail}"),
    }
}

fn spread(word: u64) -> u64 {
    word.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Hashes one word (an address of a block or of a node in memory); neither is chosen by an enemy
/// who could gain from collisions.
#[derive(Default)]
pub(super) struct WordHasher(u64);

impl Hasher for WordHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        // The table takes the low bits for the bucket and the high bits for the tag.
        let product = spread(self.0 ^ word);
        self.0 = product ^ (product >> 32);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
}
