//! Anonymous memory that is reserved in full and populated on first touch.
//!
//! The elements are atomics, so everything else in this crate reads and writes them in safe code, and
//! racing accesses are relaxed atomic ones: defined by the memory model, whatever they return. All
//! accesses to one mapping have the same width, as the model asks of racing atomics.

use crate::error::{Error, Result};
use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use zerocopy::FromZeros;

/// `len` elements of zero bytes, as one private mapping without swap reservation.
pub(super) struct Mapping<T> {
    start: NonNull<T>,
    len: usize,
    /// This process, where the kernel tells, opened when it is needed first.
    process: OnceLock<Option<OwnedFd>>,
    /// The kernel does not discard several areas in one call.
    refused: AtomicBool,
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
            process: OnceLock::new(),
            refused: AtomicBool::new(false),
            elements: PhantomData,
        })
    }

    /// Gives the memory of ranges back; it reads as zeros until written again.
    ///
    /// The ranges cover whole pages of the memory management unit. To other threads this is a series
    /// of stores of zero, so the caller keeps out those who would mind, as for any store.
    pub(super) fn discard(&self, ranges: impl Iterator<Item = Range<usize>>) {
        let areas = ranges.map(|range| {
            let elements = &self[range];
            libc::iovec {
                iov_base: elements.as_ptr().cast_mut().cast(),
                iov_len: size_of_val(elements),
            }
        });
        let areas: Vec<_> = areas.collect();
        if areas.len() > 1 && self.discard_together(&areas) {
            return;
        }
        for area in areas {
            // SAFETY: the area is inside this mapping (slicing checked it). Its elements are valid as zero
            // bytes (`FromZeros`) and are only ever reached through shared references to atomics, for
            // which a store by somebody else, here the kernel, is an ordinary event.
            let failed = unsafe { libc::madvise(area.iov_base, area.iov_len, libc::MADV_DONTNEED) };
            assert!(
                failed == 0,
                "discarding frames of our own mapping: {}",
                io::Error::last_os_error()
            );
        }
    }

    /// Discards areas in one call, after which the other processors are told once; false where the kernel
    /// does not do that (before Linux 6.13), and then some areas may be discarded.
    fn discard_together(&self, areas: &[libc::iovec]) -> bool {
        let Some(process) = self.process.get_or_init(open_own_process) else {
            return false;
        };
        if self.refused.load(Ordering::Relaxed) {
            return false;
        }
        // SAFETY: the areas are as in `discard`. The descriptor is that of this process; in a child that
        // it forked the kernel refuses the call, as it discards no other process's memory.
        let done = unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                process.as_raw_fd(),
                areas.as_ptr(),
                areas.len(),
                libc::MADV_DONTNEED,
                0,
            )
        };
        let bytes: usize = areas.iter().map(|area| area.iov_len).sum();
        if done < 0 {
            self.refused.store(true, Ordering::Relaxed);
        }
        usize::try_from(done) == Ok(bytes)
    }
}

/// A descriptor of this process, which process_madvise(2) asks for.
fn open_own_process() -> Option<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) };
    let fd = i32::try_from(fd).ok().filter(|&fd| fd >= 0)?;
    // SAFETY: the descriptor was just opened, for nobody else.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
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
    use std::sync::atomic::AtomicU64;

    #[test]
    fn discarded_memory_reads_as_zeros_and_its_neighbours_stay() {
        for refused in [false, true] {
            let mapping = Mapping::<AtomicU64>::new(9 * 512).unwrap();
            mapping.refused.store(refused, Ordering::Relaxed);
            let fill = || {
                mapping
                    .iter()
                    .for_each(|word| word.store(7, Ordering::Relaxed));
            };
            let ranges = [512..1024, 1536..2560, 3072..3584];
            for count in 1..=ranges.len() {
                let ranges = &ranges[..count];
                fill();
                mapping.discard(ranges.iter().cloned());
                for (index, word) in mapping.iter().enumerate() {
                    let discarded = ranges.iter().any(|range| range.contains(&index));
                    let expected = if discarded { 0 } else { 7 };
                    assert_eq!(word.load(Ordering::Relaxed), expected);
                }
            }
        }
    }

    #[test]
    fn a_terabyte_is_reserved_without_using_memory() {
        let mapping = Mapping::<AtomicU64>::new(1 << 37).unwrap();
        mapping[(1 << 37) - 1].store(1, Ordering::Relaxed);
    }
}
