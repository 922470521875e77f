//! Contents of regular files: reading and writing.
//!
//! A file has one of two shapes. As long as it has no blocks and at most [`MAX_INLINE`] bytes, its
//! contents are the inline record, continued with zeros (no record: all zeros). Otherwise they are
//! its extents, continued with zeros. Growing beyond the bound or reserving space changes the
//! first shape to the second; only a truncation to nothing changes it back.
//!
//! Invariant: bytes of mapped blocks beyond the end of the file are zero. So growing a file needs
//! to look at no block, and a mapped page ends in zeros.

use super::types::Time;
use super::{METADATA_BLOCKS, Volume, allocate, inode, xattr};
use crate::catalog::{Key, Kind};
use crate::error::{Error, Result};
use crate::format::record::{InodeRecord, MAX_INLINE, decode_inline, encode_inline};
use crate::store::extent::{Backing, for_each_extent};
use crate::store::{Records, Txn, View};
use crate::types::MAX_FILE_SIZE;
use crate::types::{BLOCK, BLOCK_SIZE, Ino, Lba};
use std::ops::{ControlFlow, Range};

fn inline_key(ino: Ino) -> Key {
    Key::new(ino, Kind::Inline, 0)
}

/// The inline contents, zeros up to `len` behind them.
pub(super) fn load_inline(
    records: &impl Records,
    ino: Ino,
    inode: &InodeRecord,
    len: usize,
) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if inode.has(InodeRecord::INLINE) {
        let key = inline_key(ino);
        if let Some(value) = records.get(&key)? {
            bytes.extend_from_slice(decode_inline(&key, &value)?);
        }
    }
    bytes.resize(len, 0);
    Ok(bytes)
}

/// Makes `bytes` the inline contents.
pub(super) fn save_inline(
    txn: &mut Txn<'_>,
    ino: Ino,
    inode: &mut InodeRecord,
    bytes: &[u8],
) -> Result<()> {
    inode.set(InodeRecord::INLINE, true);
    txn.put(inline_key(ino), &encode_inline(bytes))
}

/// Removes the inline contents.
pub(super) fn drop_inline(txn: &mut Txn<'_>, ino: Ino, inode: &mut InodeRecord) -> Result<()> {
    inode.set(InodeRecord::INLINE, false);
    txn.delete(&inline_key(ino))
}

/// Moves inline contents into block 0.
pub(super) fn inline_to_block(txn: &mut Txn<'_>, ino: Ino, inode: &mut InodeRecord) -> Result<()> {
    if !inode.has(InodeRecord::INLINE) {
        return Ok(());
    }
    let block = load_inline(txn, ino, inode, BLOCK_SIZE)?;
    txn.claim_space(1 + METADATA_BLOCKS)?;
    inode.blocks += txn.write_blocks(ino, 0, &block)?;
    drop_inline(txn, ino, inode)
}

/// Address and checksum of a mapped block. Two blocks that agree in both hold the same bytes.
type Mapping = (Lba, u32);

fn mapping(records: &impl Records, ino: Ino, block: u64) -> Result<Option<Mapping>> {
    let mut found = None;
    for_each_extent(records, ino, block, block + 1, &mut |extent| {
        let extent = extent.slice(block, block + 1);
        if let Backing::Mapped { lba, crcs } = extent.backing {
            found = Some((lba, crcs[0]));
        }
        ControlFlow::Break(())
    })?;
    Ok(found)
}

/// Blocks that an operation changes in part, read before its transaction begins so that the
/// transaction need not wait for the device.
#[derive(Default)]
pub(super) struct Edges {
    blocks: Vec<(u64, Mapping, Vec<u8>)>,
}

impl Edges {
    /// Reads the block around `offset` ahead, unless the offset is a block's start or the block
    /// holds nothing before the end of the file.
    pub(super) fn read_ahead(
        &mut self,
        view: &View<'_>,
        ino: Ino,
        inode: &InodeRecord,
        offset: u64,
    ) -> Result<()> {
        let block = offset / BLOCK;
        if offset.is_multiple_of(BLOCK)
            || block * BLOCK >= inode.size
            || self.blocks.iter().any(|(known, ..)| *known == block)
        {
            return Ok(());
        }
        if let Some(mapping) = mapping(view, ino, block)? {
            let mut bytes = vec![0; BLOCK_SIZE];
            view.read_blocks(ino, block, &mut bytes)?;
            self.blocks.push((block, mapping, bytes));
        }
        Ok(())
    }

    /// What the block holds in the transaction; `None` if it is not mapped and reads as zeros.
    pub(super) fn load(&self, txn: &Txn<'_>, ino: Ino, block: u64) -> Result<Option<Vec<u8>>> {
        let Some(now) = mapping(txn, ino, block)? else {
            return Ok(None);
        };
        let ahead = self
            .blocks
            .iter()
            .find(|(b, m, _)| (*b, *m) == (block, now));
        if let Some((.., bytes)) = ahead {
            return Ok(Some(bytes.clone()));
        }
        let mut bytes = vec![0; BLOCK_SIZE];
        txn.read_blocks(ino, block, &mut bytes)?;
        Ok(Some(bytes))
    }
}

/// Writes `data` at `offset` into a file of the block shape.
fn write_extents(
    txn: &mut Txn<'_>,
    ino: Ino,
    inode: &mut InodeRecord,
    offset: u64,
    data: &[u8],
    edges: &Edges,
) -> Result<()> {
    let mut at = offset;
    let mut rest = data;
    while !rest.is_empty() {
        let block = at / BLOCK;
        let within = (at % BLOCK) as usize;
        let whole = rest.len() - rest.len() % BLOCK_SIZE;
        let len = if within == 0 && whole > 0 {
            inode.blocks +=
                txn.write_blocks_leaving(ino, block, &rest[..whole], METADATA_BLOCKS)?;
            whole
        } else {
            let len = rest.len().min(BLOCK_SIZE - within);
            // Behind the end of the file and in front of it there is nothing to keep.
            let covers = within == 0 && at + len as u64 >= inode.size;
            let mut bytes = match covers {
                true => None,
                false => edges.load(txn, ino, block)?,
            }
            .unwrap_or_else(|| vec![0; BLOCK_SIZE]);
            bytes[within..within + len].copy_from_slice(&rest[..len]);
            inode.blocks += txn.write_blocks_leaving(ino, block, &bytes, METADATA_BLOCKS)?;
            len
        };
        at += len as u64;
        rest = &rest[len..];
    }
    Ok(())
}

/// Writes `data` at `offset` in whichever shape the file has or gets, and extends it as needed.
fn write_bytes(
    txn: &mut Txn<'_>,
    ino: Ino,
    inode: &mut InodeRecord,
    offset: u64,
    data: &[u8],
    edges: &Edges,
) -> Result<()> {
    let end = offset + data.len() as u64;
    let new_size = inode.size.max(end);
    if inode.blocks == 0 && new_size <= MAX_INLINE as u64 {
        txn.claim_space(METADATA_BLOCKS)?;
        let mut bytes = load_inline(txn, ino, inode, new_size as usize)?;
        bytes[offset as usize..end as usize].copy_from_slice(data);
        save_inline(txn, ino, inode, &bytes)?;
    } else {
        inline_to_block(txn, ino, inode)?;
        write_extents(txn, ino, inode, offset, data, edges)?;
    }
    inode.size = new_size;
    Ok(())
}

impl Volume {
    /// Puts up to `size` bytes from `offset` into `out`, in place of what it held; short at end of
    /// file.
    ///
    /// # Errors
    /// `NotFound`, `IsDirectory`, `Invalid` for what is no regular file; `BadBlock`, device errors.
    /// `out` is empty then.
    pub fn read(&self, ino: Ino, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<()> {
        let outcome = self.read_with(ino, offset, size, |len| {
            // What `out` holds is overwritten: only what it lacks has to be made.
            out.truncate(len);
            out.resize(len, 0);
            out
        });
        let range = outcome.as_ref().map_or(0..0, Range::clone);
        out.truncate(range.end);
        out.drain(..range.start);
        outcome.map(|_| ())
    }

    /// Reads up to `size` bytes from `offset` into memory that `room` provides for a number of bytes,
    /// whole blocks as a rule, and tells where in it they are; short at end of file. Memory aligned
    /// as the device wants it spares a copy.
    ///
    /// # Errors
    /// As [`Volume::read`].
    pub fn read_with<'a>(
        &self,
        ino: Ino,
        offset: u64,
        size: usize,
        room: impl FnOnce(usize) -> &'a mut [u8],
    ) -> Result<Range<usize>> {
        let view = self.store.view();
        let inode = inode::load_file(&view, ino)?;
        let end = offset.saturating_add(size as u64).min(inode.size);
        if offset >= end {
            return Ok(0..0);
        }
        let len = (end - offset) as usize;
        if inode.has(InodeRecord::INLINE) {
            let bytes = load_inline(&view, ino, &inode, inode.size as usize)?;
            room(len).copy_from_slice(&bytes[offset as usize..end as usize]);
            return Ok(0..len);
        }
        let first = offset / BLOCK;
        let blocks = (end.div_ceil(BLOCK) - first) as usize;
        view.read_blocks(ino, first, room(blocks * BLOCK_SIZE))?;
        let head = (offset % BLOCK) as usize;
        Ok(head..head + len)
    }

    /// Writes all of `data` or fails. `kill_privileges`: clear set-user-ID, set-group-ID (if
    /// group-executable) and security.capability. `now`: None leaves the times alone (writeback
    /// caching: the kernel keeps them).
    ///
    /// # Errors
    /// `NotFound`, `IsDirectory`, `Invalid`, `TooLarge`, `NoSpace`; device errors.
    pub fn write(
        &self,
        ino: Ino,
        offset: u64,
        data: &[u8],
        kill_privileges: bool,
        now: Option<Time>,
    ) -> Result<()> {
        let end = offset
            .checked_add(data.len() as u64)
            .filter(|end| *end <= MAX_FILE_SIZE)
            .ok_or(Error::TooLarge)?;
        if data.is_empty() {
            return inode::load_file(&self.store.view(), ino).map(drop);
        }
        let edges = self.read_edges(ino, offset, end)?;
        let mut txn = self.store.begin()?;
        self.sessions.admit(ino)?;
        let mut inode = inode::load_file(&txn, ino)?;
        let before = inode.clone();
        write_bytes(&mut txn, ino, &mut inode, offset, data, &edges)?;
        if kill_privileges {
            inode::clear_set_id(&mut inode);
            xattr::drop_capability(&mut txn, ino, &mut inode)?;
        }
        if let Some(now) = now {
            inode::touch(&mut inode, inode::to_timestamp(now));
        }
        // Pages of the cache that replace others change nothing of the inode.
        if inode != before {
            inode::save(&mut txn, ino, &inode)?;
        }
        self.commit(txn, &[ino])
    }

    /// Makes `data`, continued with zeros, the contents of the `covered` bytes from `offset` on; if
    /// it is longer, it goes on behind them. The zeros take no space where they fill blocks.
    ///
    /// # Errors
    /// As [`Volume::write`].
    pub fn replace(
        &self,
        ino: Ino,
        offset: u64,
        covered: u64,
        data: &[u8],
        kill_privileges: bool,
    ) -> Result<()> {
        let end = offset
            .checked_add(covered)
            .filter(|end| *end <= MAX_FILE_SIZE)
            .ok_or(Error::TooLarge)?;
        let data_end = offset + data.len() as u64;
        let now = Time::now();
        if data_end >= end {
            return self.write(ino, offset, data, kill_privileges, Some(now));
        }
        let zeros_end = match covered <= 2 * BLOCK {
            true => end,
            false => data_end.next_multiple_of(BLOCK).min(end),
        };
        let mut padded = data.to_vec();
        padded.resize((zeros_end - offset) as usize, 0);
        if zeros_end == end {
            return self.write(ino, offset, &padded, kill_privileges, Some(now));
        }
        let edges = self.read_edges(ino, offset, end)?;
        let mut txn = self.store.begin()?;
        self.sessions.admit(ino)?;
        let mut inode = inode::load_file(&txn, ino)?;
        // The range is larger than what lives in the catalog.
        inline_to_block(&mut txn, ino, &mut inode)?;
        allocate::punch(&mut txn, ino, &mut inode, (zeros_end, end), &edges)?;
        write_extents(&mut txn, ino, &mut inode, offset, &padded, &edges)?;
        inode.size = inode.size.max(end);
        if kill_privileges {
            inode::clear_set_id(&mut inode);
            xattr::drop_capability(&mut txn, ino, &mut inode)?;
        }
        inode::touch(&mut inode, inode::to_timestamp(now));
        inode::save(&mut txn, ino, &inode)?;
        self.commit(txn, &[ino])
    }

    /// Writes all of `data` behind the end of the file, in one transaction, and returns where it
    /// begins.
    ///
    /// # Errors
    /// As [`Volume::write`].
    pub fn append(&self, ino: Ino, data: &[u8]) -> Result<u64> {
        let edges = {
            let view = self.store.view();
            let inode = inode::load_file(&view, ino)?;
            let mut edges = Edges::default();
            if inode.blocks > 0 {
                edges.read_ahead(&view, ino, &inode, inode.size)?;
            }
            edges
        };
        let mut txn = self.store.begin()?;
        self.sessions.admit(ino)?;
        let mut inode = inode::load_file(&txn, ino)?;
        let at = inode.size;
        if at + data.len() as u64 > MAX_FILE_SIZE {
            return Err(Error::TooLarge);
        }
        write_bytes(&mut txn, ino, &mut inode, at, data, &edges)?;
        inode::touch(&mut inode, inode::to_timestamp(Time::now()));
        inode::save(&mut txn, ino, &inode)?;
        self.commit(txn, &[ino])?;
        Ok(at)
    }

    /// Reads ahead the blocks that a change of `[offset, end)` changes in part.
    pub(super) fn read_edges(&self, ino: Ino, offset: u64, end: u64) -> Result<Edges> {
        if offset.is_multiple_of(BLOCK) && end.is_multiple_of(BLOCK) {
            return Ok(Edges::default());
        }
        let view = self.store.view();
        let inode = inode::load_file(&view, ino)?;
        let mut edges = Edges::default();
        if inode.blocks > 0 {
            edges.read_ahead(&view, ino, &inode, offset)?;
            if end < inode.size {
                edges.read_ahead(&view, ino, &inode, end)?;
            }
        }
        Ok(edges)
    }
}
