//! The block map of a file: extent records, and the operations that keep them disjoint.
//!
//! An extent record `(ino, Extent, first block)` covers `len` consecutive file blocks. It is either
//! *mapped* (an LBA run with one CRC32C per block, at most [`MAX_MAPPED`] blocks so that the record
//! fits a catalog node) or *reserved* (space promised by fallocate, reads as zeros, any length).
//! Invariant: the extents of a file never overlap; what no extent covers is a hole.

use std::ops::ControlFlow;

use super::{Records, Txn};
use crate::catalog::{Key, Kind};
use crate::checksum;
use crate::error::{Error, Result};
use crate::types::{BLOCK_SIZE, Ino, Lba, MAX_FILE_SIZE};

/// Most blocks in one mapped extent: 128 checksums make a record of 525 bytes.
pub const MAX_MAPPED: u64 = 128;

/// What stands behind the blocks of an extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Blocks in the log.
    Mapped {
        /// Address of the first block.
        lba: Lba,
        /// CRC32C of every block.
        crcs: Vec<u32>,
    },
    /// Space promised and not written.
    Reserved,
}

/// A run of file blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First file block.
    pub start: u64,
    /// Number of blocks, at least 1.
    pub len: u64,
    /// Where they are.
    pub backing: Backing,
}

const TAG_MAPPED: u8 = 1;
const TAG_RESERVED: u8 = 2;

impl Extent {
    /// First block behind the extent.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start + self.len
    }

    /// The record value: tag, length u32, and for a mapped extent the LBA u64 and the checksums
    /// u32 each; little-endian.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match &self.backing {
            Backing::Mapped { lba, crcs } => {
                let mut bytes = Vec::with_capacity(13 + 4 * crcs.len());
                bytes.push(TAG_MAPPED);
                bytes.extend_from_slice(&(self.len as u32).to_le_bytes());
                bytes.extend_from_slice(&lba.0.to_le_bytes());
                for crc in crcs {
                    bytes.extend_from_slice(&crc.to_le_bytes());
                }
                bytes
            }
            Backing::Reserved => {
                let mut bytes = vec![TAG_RESERVED];
                bytes.extend_from_slice(&self.len.to_le_bytes());
                bytes
            }
        }
    }

    /// The extent a record holds.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the value is no extent record.
    pub fn decode(key: &Key, value: &[u8]) -> Result<Extent> {
        let corrupt = || Error::Corrupt {
            what: "extent record",
            detail: format!("inode {} block {}", key.ino, key.offset),
        };
        let (&tag, rest) = value.split_first().ok_or_else(corrupt)?;
        let (len, backing) = match tag {
            TAG_MAPPED => {
                let (len, rest) = rest.split_first_chunk::<4>().ok_or_else(corrupt)?;
                let (lba, rest) = rest.split_first_chunk::<8>().ok_or_else(corrupt)?;
                let crcs: Vec<u32> = rest
                    .chunks_exact(4)
                    .map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]))
                    .collect();
                let len = u64::from(u32::from_le_bytes(*len));
                let lba = u64::from_le_bytes(*lba);
                if rest.len() != 4 * crcs.len()
                    || len != crcs.len() as u64
                    || len > MAX_MAPPED
                    || lba.checked_add(len).is_none()
                {
                    return Err(corrupt());
                }
                (
                    len,
                    Backing::Mapped {
                        lba: Lba(lba),
                        crcs,
                    },
                )
            }
            TAG_RESERVED => {
                let len: [u8; 8] = rest.try_into().map_err(|_| corrupt())?;
                (u64::from_le_bytes(len), Backing::Reserved)
            }
            _ => return Err(corrupt()),
        };
        if len == 0
            || key
                .offset
                .checked_add(len)
                .is_none_or(|end| end > MAX_FILE_BLOCKS)
        {
            return Err(corrupt());
        }
        Ok(Extent {
            start: key.offset,
            len,
            backing,
        })
    }

    /// The part of the extent in `[from, to)`, which overlaps it.
    #[must_use]
    pub fn slice(&self, from: u64, to: u64) -> Extent {
        let (from, to) = (from.max(self.start), to.min(self.end()));
        debug_assert!(from < to, "the slice overlaps the extent");
        let skip = from - self.start;
        let len = to - from;
        let backing = match &self.backing {
            Backing::Mapped { lba, crcs } => Backing::Mapped {
                lba: lba.plus(skip),
                crcs: crcs[skip as usize..(skip + len) as usize].to_vec(),
            },
            Backing::Reserved => Backing::Reserved,
        };
        Extent {
            start: from,
            len,
            backing,
        }
    }

    /// `self` and `next` as one extent, if `next` continues it in the file and in the log.
    fn merged(&self, next: &Extent) -> Option<Extent> {
        if self.end() != next.start {
            return None;
        }
        let backing = match (&self.backing, &next.backing) {
            (Backing::Mapped { lba: a, crcs: x }, Backing::Mapped { lba: b, crcs: y })
                if a.plus(self.len) == *b && self.len + next.len <= MAX_MAPPED =>
            {
                Backing::Mapped {
                    lba: *a,
                    crcs: [x.as_slice(), y].concat(),
                }
            }
            (Backing::Reserved, Backing::Reserved) => Backing::Reserved,
            _ => return None,
        };
        Some(Extent {
            start: self.start,
            len: self.len + next.len,
            backing,
        })
    }
}

/// Blocks of the largest file.
pub const MAX_FILE_BLOCKS: u64 = MAX_FILE_SIZE / BLOCK_SIZE as u64;

fn key(ino: Ino, block: u64) -> Key {
    Key::new(ino, Kind::Extent, block)
}

/// Calls `visit` with every extent of `ino` that overlaps the blocks `[from, to)`, in order.
///
/// # Errors
/// Device errors and [`Error::Corrupt`].
pub fn for_each_extent(
    records: &impl Records,
    ino: Ino,
    from: u64,
    to: u64,
    visit: &mut dyn FnMut(Extent) -> ControlFlow<()>,
) -> Result<()> {
    if from >= to {
        return Ok(());
    }
    let mut behind = from;
    if let Some((k, value)) = records.floor(&key(ino, from))?
        && k.ino == ino
        && k.kind == Kind::Extent
    {
        let extent = Extent::decode(&k, &value)?;
        if extent.end() > from {
            behind = extent.end();
            // Extents do not overlap, so this may be all there is.
            if visit(extent).is_break() || behind >= to {
                return Ok(());
            }
        }
    }
    let mut outcome = Ok(());
    records.scan(
        &key(ino, behind),
        &key(ino, to - 1),
        &mut |k, value| match Extent::decode(&k, value) {
            Ok(extent) => visit(extent),
            Err(error) => {
                outcome = Err(error);
                ControlFlow::Break(())
            }
        },
    )?;
    outcome
}

/// The first block at or after `block` and before `end` that is mapped (`data`) or not mapped
/// (`!data`); reserved space counts as a hole.
///
/// # Errors
/// Device errors and [`Error::Corrupt`].
pub fn seek(
    records: &impl Records,
    ino: Ino,
    block: u64,
    end: u64,
    data: bool,
) -> Result<Option<u64>> {
    let mut at = block;
    let mut found = None;
    for_each_extent(records, ino, block, end, &mut |extent| {
        let mapped = matches!(extent.backing, Backing::Mapped { .. });
        if data {
            if mapped {
                found = Some(extent.start.max(block));
                return ControlFlow::Break(());
            }
        } else if extent.start > at || !mapped {
            found = Some(at);
            return ControlFlow::Break(());
        } else {
            at = extent.end();
        }
        ControlFlow::Continue(())
    })?;
    if !data && found.is_none() && at < end {
        found = Some(at);
    }
    Ok(found)
}

/// What an extent record occupies, without decoding its checksums: the LBA if it is mapped, and
/// the number of blocks. Used to account for live blocks with every change of the map.
pub(super) fn footprint(value: &[u8]) -> Option<(Option<Lba>, u64)> {
    let (&tag, rest) = value.split_first()?;
    match tag {
        TAG_MAPPED => {
            let (len, rest) = rest.split_first_chunk::<4>()?;
            let lba = rest.first_chunk::<8>()?;
            Some((
                Some(Lba(u64::from_le_bytes(*lba))),
                u64::from(u32::from_le_bytes(*len)),
            ))
        }
        TAG_RESERVED => Some((None, u64::from_le_bytes(*rest.first_chunk::<8>()?))),
        _ => None,
    }
}

impl Txn<'_> {
    /// Writes whole blocks of a file, replacing what they held, and returns by how many blocks the
    /// file's allocation grew.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::TooLarge`], device errors.
    pub fn write_blocks(&mut self, ino: Ino, first: u64, data: &[u8]) -> Result<u64> {
        self.write_blocks_leaving(ino, first, data, 0)
    }

    /// As [`Txn::write_blocks`]; if the allocation grows, `spare` more blocks must be left.
    ///
    /// # Errors
    /// As [`Txn::write_blocks`].
    pub fn write_blocks_leaving(
        &mut self,
        ino: Ino,
        first: u64,
        data: &[u8],
        spare: u64,
    ) -> Result<u64> {
        assert!(
            data.len().is_multiple_of(BLOCK_SIZE),
            "whole blocks are written"
        );
        let count = (data.len() / BLOCK_SIZE) as u64;
        if first
            .checked_add(count)
            .is_none_or(|end| end > MAX_FILE_BLOCKS)
        {
            return Err(Error::TooLarge);
        }
        let replaced = self.unmap_blocks(ino, first, count)?;
        // What replaces other blocks takes room in the log too.
        self.claim_space(match count - replaced {
            0 => 0,
            more => more + spare,
        })?;
        let crcs: Vec<u32> = data
            .chunks_exact(BLOCK_SIZE)
            .map(checksum::crc32c)
            .collect();
        let mut at = 0;
        for (lba, run) in self.append_blocks(ino, first, data, &crcs)? {
            let mut left = run;
            let mut lba = lba;
            while left > 0 {
                let len = left.min(MAX_MAPPED);
                let crcs = crcs[at as usize..(at + len) as usize].to_vec();
                let extent = Extent {
                    start: first + at,
                    len,
                    backing: Backing::Mapped { lba, crcs },
                };
                self.insert(ino, extent)?;
                at += len;
                left -= len;
                lba = lba.plus(len);
            }
        }
        // Never negative: what was unmapped lay inside the range that is mapped now.
        Ok(count - replaced)
    }

    /// Promises space for the blocks `[first, first + count)` that have none yet, and returns how
    /// many that are.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::TooLarge`], device errors.
    pub fn reserve_blocks(&mut self, ino: Ino, first: u64, count: u64) -> Result<u64> {
        let end = first
            .checked_add(count)
            .filter(|end| *end <= MAX_FILE_BLOCKS)
            .ok_or(Error::TooLarge)?;
        let mut gaps = Vec::new();
        let mut at = first;
        for_each_extent(self, ino, first, end, &mut |extent| {
            if extent.start > at {
                gaps.push((at, extent.start - at));
            }
            at = extent.end();
            ControlFlow::Continue(())
        })?;
        if at < end {
            gaps.push((at, end - at));
        }
        let total = gaps.iter().map(|(_, len)| len).sum();
        self.claim_space(total)?;
        for (start, len) in gaps {
            self.insert(
                ino,
                Extent {
                    start,
                    len,
                    backing: Backing::Reserved,
                },
            )?;
        }
        Ok(total)
    }

    /// Makes a hole of the blocks `[first, first + count)` and returns how many of them had space.
    ///
    /// # Errors
    /// Device errors and [`Error::Corrupt`].
    pub fn unmap_blocks(&mut self, ino: Ino, first: u64, count: u64) -> Result<u64> {
        let end = first.saturating_add(count).min(MAX_FILE_BLOCKS);
        if first >= end {
            return Ok(0);
        }
        let (mut freed, mut begins) = (0, false);
        let mut edges = Vec::new();
        for_each_extent(self, ino, first, end, &mut |extent| {
            freed += extent.end().min(end) - extent.start.max(first);
            begins |= extent.start >= first;
            if extent.start < first || extent.end() > end {
                edges.push(extent);
            }
            ControlFlow::Continue(())
        })?;
        if freed == 0 {
            return Ok(0);
        }
        if begins {
            self.delete_range(&key(ino, first), &key(ino, end - 1))?;
        }
        for edge in edges {
            if edge.start < first {
                let head = edge.slice(edge.start, first);
                self.put(key(ino, head.start), &head.encode())?;
            }
            if edge.end() > end {
                let tail = edge.slice(end, edge.end());
                self.put(key(ino, tail.start), &tail.encode())?;
            }
        }
        Ok(freed)
    }

    /// Maps an extent over a hole, merging it with the one before it.
    pub(super) fn insert(&mut self, ino: Ino, mut extent: Extent) -> Result<()> {
        if extent.start > 0
            && let Some((k, value)) = self.floor(&key(ino, extent.start - 1))?
            && k.ino == ino
            && k.kind == Kind::Extent
        {
            let before = Extent::decode(&k, &value)?;
            if let Some(merged) = before.merged(&extent) {
                extent = merged;
            }
        }
        self.put(key(ino, extent.start), &extent.encode())
    }
}
