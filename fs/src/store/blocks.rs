//! Reading file blocks: from the open chunk, from chunks in flight, from the device; verified.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use super::extent::{Backing, Extent, for_each_extent};
use super::open_chunk::OpenChunk;
use super::{Counters, Records, Store};
use crate::checksum;
use crate::error::{Error, Result};
use crate::types::{BLOCK, BLOCK_SIZE, Ino, Lba};

/// Consecutive blocks of a file that are consecutive on the device.
pub(super) struct Run {
    pub(super) lba: Lba,
    /// First block of the file.
    pub(super) start: u64,
    pub(super) crcs: Vec<u32>,
}

impl Store {
    /// Fills `buffer` with blocks of a file as `records` maps them. `open` is the open chunk if
    /// the caller has the head.
    pub(super) fn read_file_blocks(
        &self,
        records: &impl Records,
        open: Option<Option<&OpenChunk>>,
        ino: Ino,
        first: u64,
        buffer: &mut [u8],
    ) -> Result<()> {
        assert!(
            buffer.len().is_multiple_of(BLOCK_SIZE),
            "whole blocks are read"
        );
        let end = first + (buffer.len() / BLOCK_SIZE) as u64;
        let mut runs: Vec<Run> = Vec::new();
        let mut filled = first;
        let mut holes: Vec<(u64, u64)> = Vec::new();
        for_each_extent(records, ino, first, end, &mut |extent| {
            let Extent {
                start,
                len,
                backing,
            } = extent.slice(first, end);
            let Backing::Mapped { lba, crcs } = backing else {
                return ControlFlow::Continue(());
            };
            if start > filled {
                holes.push((filled, start));
            }
            filled = start + len;
            match runs.last_mut() {
                Some(run)
                    if run.start + run.crcs.len() as u64 == start
                        && run.lba.plus(run.crcs.len() as u64) == lba =>
                {
                    run.crcs.extend(crcs);
                }
                _ => runs.push(Run { lba, start, crcs }),
            }
            ControlFlow::Continue(())
        })?;
        if filled < end {
            holes.push((filled, end));
        }
        let bytes = |blocks: u64| blocks as usize * BLOCK_SIZE;
        for (from, to) in holes {
            buffer[bytes(from - first)..bytes(to - first)].fill(0);
        }
        let mut on_device = Vec::new();
        let (mut at, mut rest) = (first, buffer);
        for run in runs {
            let (_, from_run) = rest.split_at_mut(bytes(run.start - at));
            let (out, behind) = from_run.split_at_mut(bytes(run.crcs.len() as u64));
            (at, rest) = (run.start + run.crcs.len() as u64, behind);
            if !self.copy_from_memory(open, run.lba, out) {
                on_device.push((run, out));
            }
        }
        self.read_runs(ino, &mut on_device)
    }

    /// Fills memory with what the runs say, from the device, all at the same time.
    pub(super) fn read_runs(&self, ino: Ino, runs: &mut [(Run, &mut [u8])]) -> Result<()> {
        let mut reads: Vec<_> = runs
            .iter_mut()
            .map(|(run, out)| (run.lba, &mut **out))
            .collect();
        self.device.read_all(&mut reads).inspect_err(|error| {
            let starts: Vec<_> = runs.iter().map(|(run, _)| run.start * BLOCK).collect();
            tracing::error!("inode {ino} bytes {starts:?}: {error}");
        })?;
        runs.iter()
            .try_for_each(|(run, out)| self.verify(ino, run, out))
    }

    /// Compares what was read from the device with its checksums.
    fn verify(&self, ino: Ino, run: &Run, out: &[u8]) -> Result<()> {
        Counters::add(&self.counters.blocks_read, run.crcs.len() as u64);
        for (i, (block, crc)) in out.chunks_exact(BLOCK_SIZE).zip(&run.crcs).enumerate() {
            if checksum::crc32c(block) != *crc {
                Counters::add(&self.counters.checksum_errors, 1);
                let error = Error::BadBlock {
                    ino,
                    offset: (run.start + i as u64) * BLOCK,
                    lba: run.lba.plus(i as u64),
                };
                tracing::error!("{error}");
                return Err(error);
            }
        }
        Ok(())
    }

    /// Copies blocks that have not reached the device. A chunk becomes resident before it stops
    /// being the open one, and leaves memory only when it is on the device: looking in this order
    /// misses nothing.
    pub(super) fn copy_from_memory(
        &self,
        open: Option<Option<&OpenChunk>>,
        lba: Lba,
        out: &mut [u8],
    ) -> bool {
        match open {
            Some(chunk) => {
                if chunk.is_some_and(|chunk| chunk.copy_to(lba, out)) {
                    return true;
                }
            }
            None => {
                let start = self.open_range.0.load(Ordering::Acquire);
                let end = self.open_range.1.load(Ordering::Acquire);
                if (start..end).contains(&lba.0) {
                    let head = self.head.read();
                    if head
                        .open
                        .as_ref()
                        .is_some_and(|chunk| chunk.copy_to(lba, out))
                    {
                        return true;
                    }
                }
            }
        }
        self.writer.copy_resident(lba, out)
    }
}
