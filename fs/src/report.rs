//! What the filesystem reports about itself, as plain data: for the command line, for the control
//! socket, and as JSON for scripts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Told how much of how much is done, in units of the work at hand.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// A line of the zone table. Quantities are blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneStatus {
    /// Number of the zone.
    pub zone: u32,
    /// State the device reports.
    pub state: String,
    /// What the zone is used for: `anchor`, `hot`, `cold`, `node`, `free` or `retired`.
    pub class: String,
    /// Blocks written.
    pub write_pointer: u64,
    /// Blocks that can be written.
    pub capacity: u64,
    /// Blocks that are still in use.
    pub live: u64,
    /// Age of the zone's data: chunks written to the log since its newest one.
    pub age: u64,
}

/// What a filesystem is and how full it is. Sizes and space are blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Name given at creation.
    pub label: String,
    /// Identity, in the usual notation.
    pub uuid: String,
    /// Version of the on-disk format.
    pub version: u32,
    /// Seconds since 1970 when it was made.
    pub created: i64,
    /// Bytes per block.
    pub block_size: u32,
    /// Zones of the device.
    pub zones: u32,
    /// Address space of a zone.
    pub zone_size: u64,
    /// Writable blocks of a zone.
    pub zone_capacity: u64,
    /// Number of the newest checkpoint.
    pub checkpoint: u64,
    /// Sequence number of the newest chunk.
    pub sequence: u64,
    /// Blocks in use.
    pub used: u64,
    /// Blocks in all.
    pub total: u64,
    /// Whether the last mount ended with a checkpoint, so that nothing has to be recovered.
    pub clean: bool,
}

/// Counters since the mount, by group and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stats {
    /// Group, name, value.
    pub groups: BTreeMap<String, BTreeMap<String, u64>>,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsckReport {
    /// What is wrong, one line each; empty if nothing is.
    pub errors: Vec<String>,
    /// How much was checked, by kind: files, directories, blocks.
    pub checked: BTreeMap<String, u64>,
}

/// What reading all live blocks found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// Blocks read and verified.
    pub blocks: u64,
    /// Damage, one line each.
    pub errors: Vec<String>,
}
