//! Anonymous memory that is reserved in full and populated on first touch.
//!
//! The elements are atomics, so everything else in this crate reads and writes them in safe code, and
//! racing accesses are relaxed atomic ones: defined by the memory model, whatever they return. All
//! accesses to one mapping have the same width, as the model asks of racing atomics.

use crate::error::{Error, Result};
use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::ptr::{self, NonNull};
use zerocopy::FromZeros;

/// `len` elements of zero bytes, as one private mapping without swap reservation.
pub(super) struct Mapping<T> {
    start: NonNull<T>,
    len: usize,
    elements: PhantomData<T>,
}

// SAFETY: the mapping owns its memory, which is reached only as `&[T]`; so it may be sent and shared
// exactly when the elements may.
unsafe impl<T: Send> Send for Mapping<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Mapping<T> {}

impl<T: FromZeros> Mapping<T> {
    /// Reserves the address space; no memory is used before the first touch.
    pub(super) fn new(len: usize) -> Result<Mapping<T>> {
        let bytes = len
            .checked_mul(size_of::<T>())
            .filter(|&bytes| bytes > 0 && bytes <= isize::MAX as usize);
        let bytes = bytes.ok_or(Error::Option(
            "the largest file size does not fit the address space",
        ))?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no other memory.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(Error::io("reserve address space")(
                io::Error::last_os_error(),
            ));
        }
        // SAFETY: advice on the mapping just made. Huge pages would populate more than a frame at a
        // time and break the bound on memory; without the advice all is still correct.
        unsafe { libc::madvise(start, bytes, libc::MADV_NOHUGEPAGE) };
        let start = NonNull::new(start.cast()).expect("mmap returns no null pointer");
        Ok(Mapping {
            start,
            len,
            elements: PhantomData,
        })
    }

    /// Gives the memory of `range` back; it reads as zeros until written again.
    ///
    /// The range covers whole pages of the memory management unit. To other threads this is a series
    /// of stores of zero, so the caller keeps out those who would mind, as for any store.
    pub(super) fn discard(&self, range: Range<usize>) {
        let elements = &self[range];
        let bytes = size_of_val(elements);
        // SAFETY: the range is inside this mapping (slicing checked it). Its elements are valid as zero
        // bytes (`FromZeros`) and are only ever reached through shared references to atomics, for which
        // a store by somebody else, here the kernel, is an ordinary event.
        let failed = unsafe {
            libc::madvise(
                elements.as_ptr().cast_mut().cast(),
                bytes,
                libc::MADV_DONTNEED,
            )
        };
        assert!(
            failed == 0,
            "discarding frames of our own mapping: {}",
            io::Error::last_os_error()
        );
    }
}

impl<T> Deref for Mapping<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `start` is valid for `len` elements until drop, aligned to a page, and zero bytes or
        // what was stored since; `T: FromZeros` (required to construct) makes zeros valid. Elements
        // change only through interior mutability.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this start and length, and no reference into it
        // outlives `self`. Atomics need no destructor.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len * size_of::<T>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn discarded_memory_reads_as_zeros_and_its_neighbours_stay() {
        let mapping = Mapping::<AtomicU64>::new(3 * 512).unwrap();
        mapping
            .iter()
            .for_each(|word| word.store(7, Ordering::Relaxed));
        mapping.discard(512..1024);
        for (index, word) in mapping.iter().enumerate() {
            let expected = if (512..1024).contains(&index) { 0 } else { 7 };
            assert_eq!(word.load(Ordering::Relaxed), expected);
        }
    }

    #[test]
    fn a_terabyte_is_reserved_without_using_memory() {
        let mapping = Mapping::<AtomicU64>::new(1 << 37).unwrap();
        mapping[(1 << 37) - 1].store(1, Ordering::Relaxed);
    }
}
