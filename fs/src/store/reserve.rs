//! Who may use the last zones.
//!
//! What the log has is more than what can be in use: a few free zones are kept for the collector, which writes
//! before it frees, and for checkpoints, without which nothing is freed at all. Usually what is dead comes
//! back when it is needed, and the count of blocks in use is all that writers have to look at. Where dead
//! blocks stay - a version that is kept refers to them, or staged blocks lie beside them - zones run out
//! long before that count says so, and it is here that writers are stopped.

use super::{Head, Store};
use crate::error::{Error, Result};
use crate::format::chunk::{CHUNK_BLOCKS, Class};

/// Whether a transaction may use the last free zones, which are the collector's and the checkpoints'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reserve {
    /// It takes none of them.
    Kept,
    /// One of them, where no hot zone is open; but none that a checkpoint may need.
    Used,
}

impl Store {
    /// Free zones that a checkpoint of all resident nodes takes at most. Nothing else may: without one,
    /// zones that have become empty cannot be reset, nor the filesystem be mounted after a crash.
    pub(super) fn checkpoint_zones(&self, head: &Head) -> usize {
        let capacity = self.device.geometry().zone_capacity;
        let nodes = capacity - capacity.div_ceil(CHUNK_BLOCKS);
        head.tree.dirty_nodes() / nodes as usize + 1
    }

    /// Whether a transaction may add to the log. While the reserve is in use and what is dead cannot be
    /// freed, since versions are kept, blocks staged, or empty zones read, one that keeps off the reserve may
    /// only do so as long as half a zone is left that is open: that is what the collector has to free zones with.
    pub(super) fn admit(&self, head: &Head, reserve: Reserve) -> Result<()> {
        let half = self.device.geometry().zone_capacity / 2;
        let spared = || {
            head.zones.free_count() >= self.limits.keep_zones || head.zones.room(Class::Hot) >= half
        };
        let held = || {
            let empty = || head.reclaimable(head.durable.version, |_, _| false);
            self.holds_dead_blocks(head) || !empty().is_empty()
        };
        match reserve {
            Reserve::Kept if !spared() && held() => Err(Error::NoSpace),
            _ => Ok(()),
        }
    }

    /// Whether a transaction that was admitted may add what takes space. Where dead blocks stay that stops
    /// a zone before the reserve, so that there is room to unlink and truncate. A collection under way gives
    /// back what it takes: meanwhile there are the zones that are open.
    pub(super) fn admit_growth(&self, head: &Head) -> Result<()> {
        let whole = self.device.geometry().zone_capacity;
        let spared = head.zones.free_count() > self.limits.keep_zones
            || (head.collecting && head.zones.room(Class::Hot) >= whole);
        match spared || !self.holds_dead_blocks(head) {
            true => Ok(()),
            false => Err(Error::NoSpace),
        }
    }

    /// Whether what is dead may stay for as long as somebody likes.
    fn holds_dead_blocks(&self, head: &Head) -> bool {
        self.pins.newest_kept().is_some() || head.staged.blocks() > 0
    }
}
