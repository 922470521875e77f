//! The memory that frames lie in: a file without a name, mapped writable for the host; cages map
//! parts of it read-only.
//!
//! Nothing is promised in advance: what is used is asked for ([`Memory::provide`]), so that a machine
//! without memory is an error here and not a signal at the first access. It comes in huge pages where
//! the system has some, [`LOT`] bytes at a time: allocating, clearing, faulting and unmapping small
//! ones took a processor longer than a disk takes to read as much. Where huge pages are slow, they are
//! left alone for a while: a guest whose host takes free memory back ("free page reporting") pays
//! for each page again, in huge pages for all of them, in small ones only for those it had not.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::ptr::null_mut;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::cost;

/// Bytes of a huge page.
pub(super) const LOT: usize = 2 << 20;

/// Processor time of a huge page from which on small ones are no slower.
const SLOW: Duration = Duration::from_millis(1);

/// Lots that are made of small pages after a slow huge one; twice as many after the next, and so on.
const PAUSE_MIN: u32 = 256;
const PAUSE_MAX: u32 = 4096;

/// Bytes of a page.
const PAGE: usize = 4096;

/// The file and its mapping.
pub(super) struct Memory {
    file: File,
    /// At a multiple of [`LOT`].
    start: *mut u8,
    len: usize,
    /// Bytes of a unit, in which memory is given back.
    unit: usize,
    /// The units that have memory.
    provided: Vec<AtomicBool>,
    /// Held by whoever provides a huge page.
    providing: Mutex<HugePages>,
}

/// Whether to try for huge pages.
struct HugePages {
    /// The system has some at all.
    there: bool,
    /// So many lots are made of small ones before the next try.
    pause: u32,
    /// How long the next pause is.
    next_pause: u32,
}

impl HugePages {
    fn are_due(&mut self) -> bool {
        let due = self.there && self.pause == 0;
        self.pause = self.pause.saturating_sub(1);
        due
    }

    /// One has taken so long.
    fn took(&mut self, time: Duration) {
        if time < SLOW {
            self.next_pause = PAUSE_MIN;
            return;
        }
        self.pause = self.next_pause;
        self.next_pause = (self.next_pause * 2).min(PAUSE_MAX);
    }
}

// SAFETY: the mapping belongs to the value and is valid on every thread; whoever asks for bytes of it
// promises that nobody else has them (`bytes`).
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Addresses for `units` of `unit` bytes, whole pages of which a lot is a multiple; none of them
    /// takes memory yet.
    pub(super) fn new(units: usize, unit: usize) -> io::Result<Memory> {
        assert!(LOT.is_multiple_of(unit) && unit.is_multiple_of(PAGE));
        let len = units * unit;
        // SAFETY: the name ends with a zero byte.
        let fd = unsafe { libc::memfd_create(c"csd-frames".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len as u64)?;
        Ok(Memory {
            start: map_aligned(&file, len)?,
            file,
            len,
            unit,
            provided: (0..units).map(|_| AtomicBool::new(false)).collect(),
            providing: Mutex::new(HugePages {
                there: true,
                pause: 0,
                next_pause: PAUSE_MIN,
            }),
        })
    }

    /// The bytes of a unit.
    pub(super) fn range(&self, unit: usize) -> Range<usize> {
        unit * self.unit..(unit + 1) * self.unit
    }

    /// Whether a unit has memory.
    pub(super) fn is_provided(&self, unit: usize) -> bool {
        self.provided[unit].load(Acquire)
    }

    /// Has memory behind a unit, which is the caller's, and behind those next to it if it comes in a huge
    /// page.
    pub(super) fn provide(&self, unit: usize) -> io::Result<()> {
        if self.is_provided(unit) || self.provide_lot(unit, self.providing.lock()) {
            return Ok(());
        }
        self.allocate(0, self.range(unit))?;
        self.provided[unit].store(true, Release);
        Ok(())
    }

    /// Has a huge page behind a unit that may be needed soon, unless somebody is about to have one.
    /// Nothing depends on it.
    pub(super) fn provide_ahead(&self, unit: usize) {
        if unit < self.provided.len()
            && !self.is_provided(unit)
            && let Some(providing) = self.providing.try_lock()
        {
            self.provide_lot(unit, providing);
        }
    }

    /// Has a huge page behind the lot that a unit is in; tells whether the unit has memory then.
    fn provide_lot(&self, unit: usize, mut huge: MutexGuard<'_, HugePages>) -> bool {
        if self.is_provided(unit) {
            return true;
        }
        let lot = self.lot_of(unit);
        let whole =
            lot.end <= self.provided.len() && !lot.clone().any(|unit| self.is_provided(unit));
        let done = whole && huge.are_due() && self.provide_huge(lot.start * self.unit, &mut huge);
        if done {
            lot.for_each(|unit| self.provided[unit].store(true, Release));
        }
        done
    }

    /// The units of the lot that a unit is in.
    pub(super) fn lot_of(&self, unit: usize) -> Range<usize> {
        let per_lot = LOT / self.unit;
        let first = unit - unit % per_lot;
        first..first + per_lot
    }

    /// Puts a huge page behind a lot that has no memory. Tells whether there was one: it is no matter of
    /// the settings for shared memory, but of Linux 6.1 and of free memory in one piece.
    fn provide_huge(&self, at: usize, huge: &mut HugePages) -> bool {
        // A lot that is all holes is not collapsed.
        if self.allocate(0, at..at + PAGE).is_err() {
            return false;
        }
        let begun = cost::processor();
        // SAFETY: within the mapping, as it is a whole lot of the file; what is read there stays what
        // it was.
        let done = unsafe { libc::madvise(self.start.add(at).cast(), LOT, libc::MADV_COLLAPSE) };
        let error = io::Error::last_os_error();
        huge.took(cost::processor().saturating_sub(begun));
        if done != 0 && error.raw_os_error() == Some(libc::EINVAL) {
            tracing::debug!("kernels have no huge pages for the blocks they read");
            huge.there = false;
        }
        done == 0
    }

    /// Gives the memory behind consecutive units back, which nobody refers to; what was in there is
    /// gone.
    pub(super) fn give_back(&self, units: Range<usize>) -> io::Result<()> {
        let _providing = self.providing.lock();
        let bytes = units.start * self.unit..units.end * self.unit;
        self.allocate(
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            bytes,
        )?;
        for unit in units {
            self.provided[unit].store(false, Release);
        }
        Ok(())
    }

    fn allocate(&self, mode: libc::c_int, range: Range<usize>) -> io::Result<()> {
        let offset = |at: usize| libc::off_t::try_from(at).map_err(io::Error::other);
        let (at, len) = (offset(range.start)?, offset(range.len())?);
        // SAFETY: changes a file of our own; no reference into the range exists (`bytes`).
        match unsafe { libc::fallocate(self.file.as_raw_fd(), mode, at, len) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The bytes of a unit.
    ///
    /// # Safety
    /// It was provided and not given back since, and nobody else refers to any of it, or reads it in
    /// a cage, as long as the result lives.
    #[expect(
        clippy::mut_from_ref,
        reason = "exclusive by the promise of the caller"
    )]
    pub(super) unsafe fn bytes(&self, unit: usize) -> &mut [u8] {
        let range = self.range(unit);
        assert!(range.end <= self.len);
        // SAFETY: within the mapping, which lives as long as `self`, as was just checked; memory is
        // behind it and nobody else refers to it, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// As if the system had none.
    #[cfg(test)]
    pub(super) fn refuse_huge_pages(&self) {
        self.providing.lock().there = false;
    }

    /// What the operating system knows of the file.
    #[cfg(test)]
    pub(super) fn metadata(&self) -> io::Result<std::fs::Metadata> {
        self.file.metadata()
    }

    /// The file, to be mapped.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Maps a file, writable, at a multiple of [`LOT`].
fn map_aligned(file: &File, len: usize) -> io::Result<*mut u8> {
    let (nowhere, addresses) = (libc::PROT_NONE, len + LOT);
    let reserved = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: no address is asked for, so nothing that exists is replaced.
    let start = unsafe { libc::mmap(null_mut(), addresses, nowhere, reserved, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let before = start.align_offset(LOT);
    let (access, shared) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_SHARED | libc::MAP_FIXED,
    );
    // SAFETY: all of it within the addresses that were just reserved and are nobody else's: the file
    // replaces `len` of them, and those before and behind it are given back.
    unsafe {
        let at = start.byte_add(before);
        let mapped = libc::mmap(at, len, access, shared, file.as_raw_fd(), 0);
        if mapped == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            libc::munmap(start, addresses);
            return Err(error);
        }
        if before > 0 {
            libc::munmap(start, before);
        }
        libc::munmap(at.byte_add(len), LOT - before);
        Ok(at.cast())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing refers to it without a borrow of `self`.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_that_are_slow_are_tried_ever_more_rarely_until_they_are_fast() {
        let mut huge = HugePages {
            there: true,
            pause: 0,
            next_pause: PAUSE_MIN,
        };
        let mut pause = || {
            let before = (0..).take_while(|_| !huge.are_due()).count();
            huge.took(SLOW);
            before
        };
        let pauses = [(); 7].map(|()| pause());
        assert_eq!(pauses, [0, 256, 512, 1024, 2048, 4096, 4096]);
        assert!((0..4096).all(|_| !huge.are_due()) && huge.are_due());
        huge.took(SLOW / 2);
        assert!(huge.are_due());
        huge.took(SLOW);
        assert_eq!((0..).take_while(|_| !huge.are_due()).count(), 256);
    }
}
