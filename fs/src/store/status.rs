//! What a store tells of itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Store;
use super::checkpoint::class_of;
use crate::error::Result;
use crate::format::FORMAT_VERSION;
use crate::format::checkpoint::ZoneUse;
use crate::format::chunk::Class;
use crate::report::{Info, Stats, ZoneStatus};
use crate::types::ZoneId;

impl Store {
    /// Identity, shape and usage.
    #[must_use]
    pub fn info(&self) -> Info {
        let geometry = *self.device.geometry();
        let space = self.space();
        let head = self.head.read();
        let fsid = self.superblock.fsid;
        let hex: Vec<String> = fsid.iter().map(|byte| format!("{byte:02x}")).collect();
        let group = |range: std::ops::Range<usize>| hex[range].concat();
        Info {
            label: self.superblock.label(),
            uuid: [
                group(0..4),
                group(4..6),
                group(6..8),
                group(8..10),
                group(10..16),
            ]
            .join("-"),
            version: FORMAT_VERSION,
            created: self.superblock.created(),
            block_size: geometry.block_size,
            zones: geometry.zones,
            zone_size: geometry.zone_size,
            zone_capacity: geometry.zone_capacity,
            checkpoint: head.durable.number,
            sequence: head.next_sequence,
            used: space.used,
            total: space.total,
            clean: self.opened_clean,
        }
    }

    /// Counters since the store was opened, and its present state.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let c = &self.counters;
        let n = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let cache = self.cache.stats();
        let (views, kept) = self.pins.count();
        let head = self.head.read();
        let groups = [
            (
                "log",
                vec![
                    ("transactions", n(&c.transactions)),
                    ("sync_calls", n(&c.sync_calls)),
                    ("commits", n(&c.commits)),
                    ("chunks", n(&c.chunks)),
                    ("chunk_blocks", n(&c.chunk_blocks)),
                    ("data_blocks", n(&c.data_blocks)),
                    ("writes_relocated", n(&c.writes_relocated)),
                    ("chunks_replayed", n(&c.replayed)),
                    ("next_sequence", head.next_sequence),
                ],
            ),
            (
                "checkpoint",
                vec![
                    ("number", head.durable.number),
                    ("written", n(&c.checkpoints)),
                    ("node_blocks", n(&c.node_blocks)),
                    ("resident_nodes", head.tree.dirty_nodes() as u64),
                    ("log_blocks", head.log_blocks),
                ],
            ),
            (
                "collector",
                vec![
                    ("zones_collected", n(&c.zones_collected)),
                    ("blocks_moved", n(&c.blocks_moved)),
                    ("zones_reset", n(&c.zones_reset)),
                    ("free_zones", head.zones.free_count() as u64),
                    ("views", views as u64),
                    ("kept_versions", kept as u64),
                ],
            ),
            (
                "space",
                vec![
                    ("live_blocks", head.zones.live_total()),
                    ("reserved_blocks", head.reserved),
                    ("staged_blocks", head.staged.blocks()),
                    ("used_blocks", head.used()),
                    ("usable_blocks", head.usable(&self.limits)),
                ],
            ),
            (
                "cache",
                vec![
                    ("hits", cache.hits),
                    ("misses", cache.misses),
                    ("evictions", cache.evictions),
                    ("nodes", cache.nodes as u64),
                    ("bytes", cache.bytes as u64),
                    ("capacity_bytes", cache.capacity_bytes as u64),
                ],
            ),
            (
                "reads",
                vec![
                    ("device_blocks", n(&c.blocks_read)),
                    ("checksum_errors", n(&c.checksum_errors)),
                ],
            ),
        ];
        let named = |(name, value): (&str, u64)| (name.to_owned(), value);
        let groups: BTreeMap<_, _> = groups
            .into_iter()
            .map(|(group, counters)| (group.to_owned(), counters.into_iter().map(named).collect()))
            .collect();
        Stats { groups }
    }

    /// The zone table with what the device says of each zone.
    ///
    /// # Errors
    /// Device errors.
    pub fn zone_table(&self) -> Result<Vec<ZoneStatus>> {
        let report = self
            .device
            .report(ZoneId(0), self.device.geometry().zones)?;
        let head = self.head.read();
        let status = |info: zns_backend::ZoneInfo| {
            let zone = head.zones.get(info.zone);
            let class = match (zone.usage, class_of(zone.usage)) {
                (ZoneUse::Free, _) => "free",
                (ZoneUse::Anchor, _) => "anchor",
                (_, Some(Class::Hot)) => "hot",
                (_, Some(Class::Cold)) => "cold",
                (_, Some(Class::Node)) => "node",
                (_, None) => "retired",
            };
            ZoneStatus {
                zone: info.zone.0,
                state: info.state.to_string(),
                class: class.into(),
                write_pointer: info.write_pointer,
                capacity: info.capacity,
                live: zone.live,
                age: if zone.age == 0 {
                    0
                } else {
                    head.next_sequence.saturating_sub(zone.age)
                },
            }
        };
        Ok(report.into_iter().map(status).collect())
    }
}
