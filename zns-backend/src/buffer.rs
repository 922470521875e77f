//! Page-aligned buffers that devices can transfer from and to directly.
//!
//! A buffer may come from a device's registered pool ([`crate::ZonedDevice::buffer`]); dropping it
//! gives it back. The contents start as zeroes when fresh and as leftovers when recycled.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

/// Alignment of every buffer, enough for direct I/O on any device in use.
pub(crate) const ALIGNMENT: usize = 4096;

/// Takes back the registered buffers of a device.
pub(crate) trait BufferPool: Send + Sync {
    /// The registered slot `index` is free again.
    fn give_back(&self, index: u16);
}

enum Origin {
    Heap(Layout),
    Registered {
        index: u16,
        pool: Arc<dyn BufferPool>,
    },
}

/// An owned, page-aligned byte buffer.
pub struct DmaBuffer {
    ptr: NonNull<u8>,
    len: usize,
    origin: Origin,
}

// SAFETY: the buffer is plain memory owned by this value alone; a registered slot is handed out to
// one buffer at a time.
unsafe impl Send for DmaBuffer {}
// SAFETY: shared access only reads.
unsafe impl Sync for DmaBuffer {}

impl DmaBuffer {
    /// A zeroed buffer of `len` bytes from the heap.
    ///
    /// # Panics
    /// If `len` is zero.
    #[must_use]
    pub fn new(len: usize) -> DmaBuffer {
        assert!(len > 0, "a buffer has a length");
        let layout = Layout::from_size_align(len, ALIGNMENT).expect("length fits an allocation");
        // SAFETY: the layout has a non-zero size (asserted above).
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(raw) else {
            handle_alloc_error(layout)
        };
        DmaBuffer {
            ptr,
            len,
            origin: Origin::Heap(layout),
        }
    }

    /// A buffer over slot `index` of a registered pool.
    ///
    /// # Safety
    /// `ptr` is valid for `len` bytes as long as `pool` lives, and no other buffer uses the slot
    /// until it is given back.
    pub(crate) unsafe fn registered(
        ptr: NonNull<u8>,
        len: usize,
        index: u16,
        pool: Arc<dyn BufferPool>,
    ) -> DmaBuffer {
        DmaBuffer {
            ptr,
            len,
            origin: Origin::Registered { index, pool },
        }
    }

    /// Index of the registered buffer behind this one, if it has one.
    #[must_use]
    pub fn registered_index(&self) -> Option<u16> {
        match self.origin {
            Origin::Heap(_) => None,
            Origin::Registered { index, .. } => Some(index),
        }
    }
}

impl Drop for DmaBuffer {
    fn drop(&mut self) {
        match &self.origin {
            // SAFETY: allocated in `new` with this very layout and freed only here.
            Origin::Heap(layout) => unsafe { dealloc(self.ptr.as_ptr(), *layout) },
            Origin::Registered { index, pool } => pool.give_back(*index),
        }
    }
}

impl Deref for DmaBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `ptr` is valid for `len` initialised bytes while `self` lives.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for DmaBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl std::fmt::Debug for DmaBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DmaBuffer({} bytes)", self.len)
    }
}
