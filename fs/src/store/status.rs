//! What a store tells of itself.

use std::sync::atomic::Ordering;

use super::Store;

impl Store {
    /// Counters since the store was opened and the present state, by name.
    #[must_use]
    pub fn statistics(&self) -> Vec<(&'static str, u64)> {
        let c = &self.counters;
        let n = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let cache = self.cache.stats();
        let head = self.head.read();
        vec![
            ("transactions", n(&c.transactions)),
            ("sync_calls", n(&c.commit_waiters)),
            ("commits", n(&c.commits)),
            ("chunks_written", n(&c.chunks)),
            ("chunk_blocks_written", n(&c.chunk_blocks)),
            ("data_blocks_written", n(&c.data_blocks)),
            ("checkpoints", n(&c.checkpoints)),
            ("node_blocks_written", n(&c.node_blocks)),
            ("zones_collected", n(&c.zones_collected)),
            ("blocks_moved", n(&c.blocks_moved)),
            ("zones_reset", n(&c.zones_reset)),
            ("blocks_read", n(&c.blocks_read)),
            ("checksum_errors", n(&c.checksum_errors)),
            ("writes_relocated", n(&c.writes_relocated)),
            ("chunks_replayed", n(&c.replayed)),
            ("cache_hits", cache.hits),
            ("cache_misses", cache.misses),
            ("cache_bytes", cache.bytes as u64),
            ("cache_capacity_bytes", cache.capacity_bytes as u64),
            ("resident_nodes", head.tree.dirty_nodes() as u64),
            ("log_blocks", head.log_blocks),
            ("free_zones", head.zones.free_count() as u64),
            ("live_blocks", head.zones.live_total()),
            ("reserved_blocks", head.reserved),
            ("used_blocks", head.used()),
            ("usable_blocks", self.limits.usable_blocks),
            ("views", self.pins.count() as u64),
            ("checkpoint", head.durable.number),
            ("next_sequence", head.next_sequence),
            ("next_ino", self.next_ino()),
        ]
    }
}
