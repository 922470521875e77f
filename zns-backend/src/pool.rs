//! Buffers of a device's own kind: one stretch of memory cut into equal slots, handed out as
//! [`DmaBuffer`]s. The pool belongs to the device; every ring registers the same memory, so a
//! buffer is fixed for all of them.
//!
//! Invariant: a slot is either in the free list or behind exactly one buffer.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::buffer::{BufferPool, DmaBuffer};

/// Bytes of a slot.
pub(crate) const SLOT_BYTES: usize = 1 << 20;
/// Number of slots.
pub(crate) const SLOTS: u16 = 32;

/// Bytes of all slots.
pub(crate) const POOL_BYTES: usize = SLOT_BYTES * SLOTS as usize;

/// Memory for a pool, given back when dropped.
///
/// # Safety
/// [`Memory::base`] always answers the same address, page-aligned and valid for [`POOL_BYTES`]
/// initialised bytes that nothing else uses while the value lives.
pub(crate) unsafe trait Memory: Send + Sync {
    /// Where it starts.
    fn base(&self) -> NonNull<u8>;
}

/// Plain memory; pages are only taken from the host when they are first used.
struct Mapping(NonNull<u8>);

impl Mapping {
    fn new() -> io::Result<Mapping> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh anonymous mapping, no existing memory is replaced.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), POOL_BYTES, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping(base))
    }
}

// SAFETY: an address; what it leads to is governed by the pool.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

// SAFETY: the mapping has this length, reads as zeroes at first and lasts until the drop.
unsafe impl Memory for Mapping {
    fn base(&self) -> NonNull<u8> {
        self.0
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; the pool and its buffers are gone.
        unsafe { libc::munmap(self.0.as_ptr().cast(), POOL_BYTES) };
    }
}

pub(crate) struct Pool {
    memory: Box<dyn Memory>,
    free: Mutex<Vec<u16>>,
}

impl Pool {
    /// A pool of plain memory.
    pub(crate) fn new() -> io::Result<Arc<Pool>> {
        Ok(Pool::over(Mapping::new()?))
    }

    /// A pool of the given memory.
    pub(crate) fn over(memory: impl Memory + 'static) -> Arc<Pool> {
        Arc::new(Pool {
            memory: Box::new(memory),
            free: Mutex::new((0..SLOTS).rev().collect()),
        })
    }

    /// A registered buffer of `len` bytes, if a slot is free and large enough.
    pub(crate) fn take(self: &Arc<Pool>, len: usize) -> Option<DmaBuffer> {
        if len == 0 || len > SLOT_BYTES {
            return None;
        }
        let index = self.free.lock().pop()?;
        let pool = Arc::clone(self) as Arc<dyn BufferPool>;
        // SAFETY: the slot is within the memory, which lives as long as the pool; it just left the
        // free list, so that no other buffer has it.
        Some(unsafe { DmaBuffer::registered(self.slot(index), len, index, pool) })
    }

    fn slot(&self, index: u16) -> NonNull<u8> {
        // SAFETY: the index is below SLOTS, so the address is within the memory.
        unsafe { self.memory.base().add(usize::from(index) * SLOT_BYTES) }
    }

    /// Whether all of `data` lies in the pool's memory.
    #[cfg(feature = "xnvme")]
    pub(crate) fn contains(&self, data: &[u8]) -> bool {
        let base = self.memory.base().addr().get();
        let start = data.as_ptr().addr();
        start >= base && start + data.len() <= base + POOL_BYTES
    }

    /// The slots as a ring wants them, in parts of `part` bytes, a divisor of [`SLOT_BYTES`]: part
    /// `n` of slot `index` is number `index * (SLOT_BYTES / part) + n`.
    pub(crate) fn io_vectors(&self, part: usize) -> Vec<libc::iovec> {
        (0..SLOTS)
            .flat_map(|index| (0..SLOT_BYTES / part).map(move |n| (index, n * part)))
            .map(|(index, offset)| libc::iovec {
                iov_base: self.slot(index).as_ptr().wrapping_add(offset).cast(),
                iov_len: part,
            })
            .collect()
    }

    /// The index of the slot behind `buffer`, if it is one of this pool.
    pub(crate) fn index_of(&self, buffer: &DmaBuffer) -> Option<u16> {
        let index = buffer.registered_index()?;
        (index < SLOTS && std::ptr::eq(buffer.as_ptr(), self.slot(index).as_ptr())).then_some(index)
    }
}

impl BufferPool for Pool {
    fn give_back(&self, index: u16) {
        self.free.lock().push(index);
    }
}
