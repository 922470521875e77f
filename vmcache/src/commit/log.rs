//! One of the two files of a journal: where its images are, and room ahead of its end.
//!
//! A write that makes a file longer, or goes to blocks that were allocated and never written, changes
//! what the filesystem knows of the file, and the next sync has to make that durable too: in ext4
//! another write and another flush. So a log that becomes longer is filled with zeros well ahead of its
//! end, in steps that double with it, and a log that was used before is written over where it is. A
//! commit then is one write and one sync of nothing but data.
//!
//! Zeros are no batch, and what an earlier use left is of another generation: see [`super::record`].

use crate::page::{PAGE_BYTES, PageBuf, PageId};
use crate::storage::Storage;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use zerocopy::IntoBytes;

/// Fewest and most blocks of zeros at a time.
const AHEAD_BLOCKS_MIN: u64 = 16;
const AHEAD_BLOCKS_MAX: u64 = 256;
/// Never written to, so the system has one page of memory for all of them.
static ZEROS: [PageBuf; 64] = [PageBuf::ZEROED; 64];

/// One of the two log files.
pub(super) struct Log {
    pub(super) storage: Arc<dyn Storage>,
    /// Block of the latest image of each page.
    pub(super) index: RwLock<HashMap<PageId, u64>>,
    /// Held shared while images are read, exclusively while the log is emptied.
    pub(super) in_use: RwLock<()>,
    /// Blocks of the file, all of them written before. Changed by whoever has the journal's tail, or
    /// empties the log.
    blocks: AtomicU64,
}

impl Log {
    /// A log file with images in these blocks.
    ///
    /// # Errors
    /// Of the storage.
    pub(super) fn new(storage: Arc<dyn Storage>, index: HashMap<PageId, u64>) -> io::Result<Log> {
        let blocks = storage.len()? / PAGE_BYTES as u64;
        Ok(Log {
            storage,
            index: RwLock::new(index),
            in_use: RwLock::new(()),
            blocks: AtomicU64::new(blocks),
        })
    }

    /// Writes blocks from `at` on. Should they make the file longer, it is made long enough for what
    /// follows too, up to `goal` blocks.
    ///
    /// # Errors
    /// Of the storage.
    pub(super) fn write(&self, at: u64, blocks: &[PageBuf], goal: u64) -> io::Result<()> {
        self.storage
            .write_at(at * PAGE_BYTES as u64, blocks.as_bytes())?;
        let end = at + blocks.len() as u64;
        if end > self.blocks.load(Ordering::Relaxed) {
            let filled = self.fill(end, goal);
            self.blocks.store(end + filled, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Writes zeros behind the end of the file; returns how many blocks.
    fn fill(&self, end: u64, goal: u64) -> u64 {
        let ahead = end.clamp(AHEAD_BLOCKS_MIN, AHEAD_BLOCKS_MAX);
        let ahead = ahead.min(goal.saturating_sub(end));
        if ahead == 0 {
            return 0;
        }
        let mut starts = (end..end + ahead).step_by(ZEROS.len());
        let written = starts.try_for_each(|start| {
            let count = ZEROS.len().min((end + ahead - start) as usize);
            let zeros = ZEROS[..count].as_bytes();
            self.storage.write_at(start * PAGE_BYTES as u64, zeros)
        });
        match written {
            Ok(()) => ahead,
            // What was to be written is, and more is not needed: whatever is wrong will show.
            Err(error) => {
                tracing::debug!(%error, "could not fill the journal ahead");
                0
            }
        }
    }

    /// May cut the file off behind so many blocks.
    ///
    /// # Errors
    /// Of the storage.
    pub(super) fn shrink(&self, blocks: u64) -> io::Result<()> {
        self.storage.shrink(blocks * PAGE_BYTES as u64)?;
        self.blocks.fetch_min(blocks, Ordering::Relaxed);
        Ok(())
    }
}
