//! Sizes, holes and reserved space: truncation, fallocate, seeking, copying inside the daemon.

use super::file::{Edges, drop_inline, inline_to_block, load_inline, save_inline};
use super::types::{Caller, Seek, SetAttributes, Time};
use super::{METADATA_BLOCKS, Volume, inode, xattr};
use crate::error::{Error, Result};
use crate::format::record::{InodeRecord, MAX_INLINE};
use crate::store::Txn;
use crate::store::extent::{self, MAX_FILE_BLOCKS};
use crate::types::MAX_FILE_SIZE;
use crate::types::{BLOCK, BLOCK_SIZE, Ino};

/// Bytes that [`Volume::copy_range`] copies per transaction.
const COPY_STEP: u64 = 1 << 20;

/// What fallocate does to a range.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Allocation {
    /// Promises space for what has none.
    Reserve,
    /// Makes a hole.
    Punch,
    /// Makes zeros with space promised for them.
    Zero,
}

impl Allocation {
    /// The operation and whether the size stays as it is.
    fn from_mode(mode: i32) -> Result<(Allocation, bool)> {
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => Ok((Allocation::Reserve, keep_size)),
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => Ok((Allocation::Punch, true)),
            libc::FALLOC_FL_ZERO_RANGE => Ok((Allocation::Zero, keep_size)),
            _ => Err(Error::Unsupported("mode of fallocate")),
        }
    }
}

/// Zeroes bytes `[from, to)` of one block; a block without data stays without.
fn zero_within(
    txn: &mut Txn<'_>,
    ino: Ino,
    inode: &mut InodeRecord,
    (block, from, to): (u64, u64, u64),
    edges: &Edges,
) -> Result<()> {
    let Some(mut bytes) = edges.load(txn, ino, block)? else {
        return Ok(());
    };
    let range = &mut bytes[from as usize..to as usize];
    if range.iter().all(|&byte| byte == 0) {
        return Ok(());
    }
    range.fill(0);
    inode.blocks += txn.write_blocks(ino, block, &bytes)?;
    Ok(())
}

/// Makes a hole of the whole blocks in `[offset, end)` and zeroes the partial ones.
pub(super) fn punch(
    txn: &mut Txn<'_>,
    ino: Ino,
    inode: &mut InodeRecord,
    (offset, end): (u64, u64),
    edges: &Edges,
) -> Result<()> {
    let (first, last) = (offset.div_ceil(BLOCK), end / BLOCK);
    if first > last {
        let part = (last, offset % BLOCK, end % BLOCK);
        return zero_within(txn, ino, inode, part, edges);
    }
    let freed = txn.unmap_blocks(ino, first, last - first)?;
    inode.blocks = inode.blocks.saturating_sub(freed);
    if !offset.is_multiple_of(BLOCK) {
        zero_within(txn, ino, inode, (first - 1, offset % BLOCK, BLOCK), edges)?;
    }
    if !end.is_multiple_of(BLOCK) {
        zero_within(txn, ino, inode, (last, 0, end % BLOCK), edges)?;
    }
    Ok(())
}

/// Zeroes the part of `[offset, end)` that inline contents have.
fn punch_inline(
    txn: &mut Txn<'_>,
    ino: Ino,
    inode: &mut InodeRecord,
    (offset, end): (u64, u64),
) -> Result<()> {
    let mut bytes = load_inline(txn, ino, inode, inode.size as usize)?;
    let end = end.min(inode.size);
    if offset < end {
        bytes[offset as usize..end as usize].fill(0);
        save_inline(txn, ino, inode, &bytes)?;
    }
    Ok(())
}

/// Reserves what has no space in the blocks around `[offset, end)`.
fn reserve(
    txn: &mut Txn<'_>,
    ino: Ino,
    inode: &mut InodeRecord,
    (offset, end): (u64, u64),
) -> Result<()> {
    let first = offset / BLOCK;
    inode.blocks += txn.reserve_blocks(ino, first, end.div_ceil(BLOCK) - first)?;
    Ok(())
}

/// Changes the size of a regular file. `edges` has the block of the new end.
pub(super) fn set_size(
    txn: &mut Txn<'_>,
    ino: Ino,
    inode: &mut InodeRecord,
    size: u64,
    edges: &Edges,
) -> Result<()> {
    if size > MAX_FILE_SIZE {
        return Err(Error::TooLarge);
    }
    if inode.has(InodeRecord::INLINE) {
        if size == 0 {
            drop_inline(txn, ino, inode)?;
        } else if size > MAX_INLINE as u64 {
            inline_to_block(txn, ino, inode)?;
        } else if size < inode.size {
            let bytes = load_inline(txn, ino, inode, size as usize)?;
            save_inline(txn, ino, inode, &bytes)?;
        }
    } else if size <= inode.size && inode.blocks > 0 {
        let first = size.div_ceil(BLOCK);
        let freed = txn.unmap_blocks(ino, first, MAX_FILE_BLOCKS - first)?;
        inode.blocks = inode.blocks.saturating_sub(freed);
        if size < inode.size && !size.is_multiple_of(BLOCK) {
            let tail = (size / BLOCK, size % BLOCK, BLOCK);
            zero_within(txn, ino, inode, tail, edges)?;
        }
    }
    inode.size = size;
    Ok(())
}

impl Volume {
    /// O_TRUNC of an open.
    pub(super) fn truncate_on_open(&self, caller: &Caller, ino: Ino) -> Result<()> {
        let set = SetAttributes {
            size: Some(0),
            kill_privileges: caller.uid != 0,
            ..SetAttributes::default()
        };
        self.setattr(caller, ino, &set).map(drop)
    }

    /// fallocate(2) with mode 0, KEEP_SIZE, PUNCH_HOLE|KEEP_SIZE, ZERO_RANGE[|KEEP_SIZE]; others
    /// are Unsupported.
    ///
    /// # Errors
    /// `Invalid`, `TooLarge`, `Unsupported`, `NotFound`, `IsDirectory`, `NoSpace`; device errors.
    pub fn fallocate(
        &self,
        caller: &Caller,
        ino: Ino,
        offset: u64,
        len: u64,
        mode: i32,
    ) -> Result<()> {
        let (allocation, keep_size) = Allocation::from_mode(mode)?;
        if len == 0 {
            return Err(Error::Invalid("length of fallocate"));
        }
        let end = offset
            .checked_add(len)
            .filter(|end| *end <= MAX_FILE_SIZE)
            .ok_or(Error::TooLarge)?;
        let range = (offset, end);
        let edges = self.read_edges(ino, offset, end)?;
        let mut txn = self.store.begin()?;
        self.sessions.admit(ino)?;
        let mut inode = inode::load_file(&txn, ino)?;
        if allocation == Allocation::Punch {
            txn.frees();
        }
        if allocation == Allocation::Punch && inode.has(InodeRecord::INLINE) {
            punch_inline(&mut txn, ino, &mut inode, range)?;
        } else {
            if allocation != Allocation::Punch {
                txn.claim_space(METADATA_BLOCKS)?;
                inline_to_block(&mut txn, ino, &mut inode)?;
            }
            if allocation != Allocation::Reserve {
                punch(&mut txn, ino, &mut inode, range, &edges)?;
            }
            if allocation != Allocation::Punch {
                reserve(&mut txn, ino, &mut inode, range)?;
            }
        }
        let now = inode::to_timestamp(Time::now());
        inode.ctime = now;
        if allocation != Allocation::Reserve || (!keep_size && end > inode.size) {
            inode.mtime = now;
        }
        if !keep_size {
            inode.size = inode.size.max(end);
        }
        if caller.uid != 0 {
            inode::clear_set_id(&mut inode);
            xattr::drop_capability(&mut txn, ino, &mut inode)?;
        }
        inode::save(&mut txn, ino, &inode)?;
        self.commit(txn, &[ino])
    }

    /// The first offset from `offset` on that has data or that is in a hole. Reserved space is a
    /// hole; there is one at the end of every file.
    ///
    /// # Errors
    /// `NoOffset` at or behind the end of the file or if no data follows; `NotFound`,
    /// `IsDirectory`, `Invalid`; device errors.
    pub fn seek(&self, ino: Ino, offset: u64, whence: Seek) -> Result<u64> {
        let view = self.store.view();
        let inode = inode::load_file(&view, ino)?;
        if offset >= inode.size {
            return Err(Error::NoOffset);
        }
        let data = whence == Seek::Data;
        if inode.has(InodeRecord::INLINE) {
            return Ok(if data { offset } else { inode.size });
        }
        let (block, end) = (offset / BLOCK, inode.size.div_ceil(BLOCK));
        match extent::seek(&view, ino, block, end, data)? {
            Some(found) => Ok((found * BLOCK).max(offset)),
            None if data => Err(Error::NoOffset),
            None => Ok(inode.size),
        }
    }

    /// Copies a range between files inside the daemon; returns the bytes copied (short at end of
    /// file). Atomic per step of up to 1 MiB.
    ///
    /// # Errors
    /// `Invalid` if the ranges overlap in one file, and those of reading and writing; an error
    /// after the first step is a short copy.
    pub fn copy_range(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        len: u64,
    ) -> Result<u64> {
        let size = {
            let view = self.store.view();
            inode::load_file(&view, to)?;
            inode::load_file(&view, from)?.size
        };
        let len = len.min(size.saturating_sub(from_offset));
        if from == to && from_offset.abs_diff(to_offset) < len {
            return Err(Error::Invalid("ranges of a copy overlap"));
        }
        let mut copied = 0;
        let mut buffer = Vec::new();
        while copied < len {
            match self.copy_step(
                (from, from_offset + copied),
                (to, to_offset.saturating_add(copied)),
                len - copied,
                &mut buffer,
            ) {
                Ok(0) => break,
                Ok(step) => copied += step,
                Err(_) if copied > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(copied)
    }

    fn copy_step(
        &self,
        (from, from_offset): (Ino, u64),
        (to, to_offset): (Ino, u64),
        len: u64,
        buffer: &mut Vec<u8>,
    ) -> Result<u64> {
        // Steps end where a block of the target ends, so that no block is written twice.
        let step = len.min(COPY_STEP - to_offset % BLOCK_SIZE as u64);
        self.read(from, from_offset, step as usize, buffer)?;
        if !buffer.is_empty() {
            self.write(to, to_offset, buffer, false, Some(Time::now()))?;
        }
        Ok(buffer.len() as u64)
    }
}
