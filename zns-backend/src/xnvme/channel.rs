//! Commands that wait, and the memory they need.
//!
//! The kernel takes any memory. A driver in user space takes only what libxnvme allocated for the
//! device: the device's buffers are of that kind ([`Pool`]), and everything else is copied through
//! such memory here and in queues.

use std::io;
use std::sync::Arc;

use super::library::{Block, Handle};
use crate::buffer::{BufferPool, DmaBuffer};
use crate::nvme::command::{Channel, Command, Direction, Failure};
use crate::pool::{Memory, POOL_BYTES, Pool, SLOT_BYTES};

/// Where the data of synchronous commands passes.
pub(super) struct Link {
    pub(super) handle: Arc<Handle>,
    /// Memory of the device, if that takes no other.
    pool: Option<Arc<Pool>>,
}

/// The memory of a pool.
struct PoolBlock(Block);

// SAFETY: the block has this length, zeroed, and is the pool's alone until it is dropped.
unsafe impl Memory for PoolBlock {
    fn base(&self) -> std::ptr::NonNull<u8> {
        self.0.base()
    }
}

/// The memory of a buffer outside the pool, freed with it.
struct Single {
    _block: Block,
}

impl BufferPool for Single {
    fn give_back(&self, _: u16) {}
}

impl Link {
    /// `user_space`: whether the device takes only memory of its own.
    ///
    /// # Errors
    /// When there is no such memory.
    pub(super) fn new(handle: Handle, user_space: bool) -> io::Result<Link> {
        let handle = Arc::new(handle);
        let pool = user_space
            .then(|| Block::new(&handle, POOL_BYTES).map(|block| Pool::over(PoolBlock(block))))
            .transpose()?;
        Ok(Link { handle, pool })
    }

    pub(super) fn pool(&self) -> Option<Arc<Pool>> {
        self.pool.clone()
    }

    /// Memory of the device for a command of which the data is elsewhere; none where any will do.
    pub(super) fn scratch(&self, len: usize) -> io::Result<Option<DmaBuffer>> {
        let Some(pool) = &self.pool else {
            return Ok(None);
        };
        if let Some(buffer) = pool.take(len) {
            return Ok(Some(buffer));
        }
        let block = Block::new(&self.handle, len.max(SLOT_BYTES))?;
        let base = block.base();
        let owner = Arc::new(Single { _block: block });
        // SAFETY: the block is at least this long and lives until its owner does; nothing else uses
        // it.
        Ok(Some(unsafe { DmaBuffer::registered(base, len, 0, owner) }))
    }

    /// As [`Link::scratch`] for data that may be in memory of the device already.
    fn scratch_for(&self, data: &[u8]) -> Result<Option<DmaBuffer>, Failure> {
        let is_own = |pool: &Arc<Pool>| pool.contains(data);
        if data.is_empty() || self.pool.as_ref().is_some_and(is_own) {
            return Ok(None);
        }
        self.scratch(data.len()).map_err(Failure::Host)
    }
}

impl Channel for Link {
    fn receive(&self, command: Command, data: &mut [u8]) -> Result<u64, Failure> {
        assert_eq!(command.direction(), Direction::FromController);
        let mut scratch = self.scratch_for(data)?;
        let target: &mut [u8] = match &mut scratch {
            Some(scratch) => scratch,
            None => data,
        };
        // SAFETY: `target` can be written for its whole length until the call returns, and is memory
        // of the device if need be.
        let result = unsafe { self.handle.pass(command, target.as_mut_ptr(), target.len()) }?;
        if let Some(scratch) = scratch {
            data.copy_from_slice(&scratch);
        }
        Ok(result)
    }

    fn send(&self, command: Command, data: &[u8]) -> Result<u64, Failure> {
        assert!(
            data.is_empty() || command.direction() == Direction::ToController,
            "the data of a command that takes some"
        );
        let mut scratch = self.scratch_for(data)?;
        let source: &[u8] = match &mut scratch {
            Some(scratch) => {
                scratch.copy_from_slice(data);
                scratch
            }
            None => data,
        };
        let address = match source.len() {
            0 => std::ptr::null_mut(),
            _ => source.as_ptr().cast_mut(),
        };
        // SAFETY: the command only reads memory; `source` is readable for its whole length until the
        // call returns, and memory of the device if need be.
        unsafe { self.handle.pass(command, address, source.len()) }
    }
}
