//! Registered buffers of a device: one mapping cut into equal slots, handed out as
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

pub(crate) struct Pool {
    base: NonNull<u8>,
    free: Mutex<Vec<u16>>,
}

// SAFETY: the memory is only reached through the buffers, each of which owns its slot.
unsafe impl Send for Pool {}
// SAFETY: as above; the free list has a lock.
unsafe impl Sync for Pool {}

impl Pool {
    /// A pool of fresh memory; pages are only taken from the host when they are first used.
    pub(crate) fn new() -> io::Result<Arc<Pool>> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh anonymous mapping, no existing memory is replaced.
        let base = unsafe {
            let len = SLOT_BYTES * usize::from(SLOTS);
            libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Arc::new(Pool {
            base,
            free: Mutex::new((0..SLOTS).rev().collect()),
        }))
    }

    /// A registered buffer of `len` bytes, if a slot is free and large enough.
    pub(crate) fn take(self: &Arc<Pool>, len: usize) -> Option<DmaBuffer> {
        if len == 0 || len > SLOT_BYTES {
            return None;
        }
        let index = self.free.lock().pop()?;
        let pool = Arc::clone(self) as Arc<dyn BufferPool>;
        // SAFETY: the slot is within the mapping, which lives as long as the pool; it just left the
        // free list, so that no other buffer has it.
        Some(unsafe { DmaBuffer::registered(self.slot(index), len, index, pool) })
    }

    fn slot(&self, index: u16) -> NonNull<u8> {
        // SAFETY: the index is below SLOTS, so the address is within the mapping.
        unsafe { self.base.add(usize::from(index) * SLOT_BYTES) }
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

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; every buffer held a reference to the pool.
        unsafe { libc::munmap(self.base.as_ptr().cast(), SLOT_BYTES * usize::from(SLOTS)) };
    }
}
