//! The memory mappings behind a cage, one function per thing asked of the operating system.
//!
//! Addresses are integers: nothing in a cage is a Rust object.

use std::ptr::null_mut;

use super::CageError;

/// Anonymous memory without a promise of backing store: pages come when they are touched.
const ANONYMOUS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// A range of addresses of our own, unmapped when dropped.
pub(super) struct Mapping {
    start: u64,
    len: u64,
}

impl Mapping {
    /// Inaccessible addresses.
    pub(super) fn reserve(len: u64) -> Result<Mapping, CageError> {
        // SAFETY: no address is asked for, so nothing that exists is replaced.
        let start =
            unsafe { libc::mmap(null_mut(), len as usize, libc::PROT_NONE, ANONYMOUS, -1, 0) };
        Mapping::of(start, len, "reserving the addresses of a cage")
    }

    /// Gives back all but `len` bytes at `start`.
    pub(super) fn trim(self, start: u64, len: u64) -> Mapping {
        let old = std::mem::ManuallyDrop::new(self);
        assert!(start >= old.start && start + len <= old.start + old.len);
        let (head, tail) = (start - old.start, old.start + old.len - (start + len));
        for (from, len) in [(old.start, head), (start + len, tail)] {
            if len > 0 {
                drop(Mapping { start: from, len });
            }
        }
        Mapping { start, len }
    }

    /// `len` bytes of shared memory, writable at the mapping returned and read-only at `twin`,
    /// where it replaces a part of a reservation.
    pub(super) fn shared_with(twin: u64, len: u64) -> Result<Mapping, CageError> {
        const WHAT: &str = "mapping the call area";
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: no address is asked for, so nothing that exists is replaced.
        let start = unsafe { libc::mmap(null_mut(), len as usize, writable, shared, -1, 0) };
        let host = Mapping::of(start, len, WHAT)?;
        let fixed = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: an old size of 0 maps the shared pages once more; the place is a part of the
        // reservation of the cage under construction, which nothing else uses.
        let second = unsafe { libc::mremap(start, 0, len as usize, fixed, twin as *mut ()) };
        if second == libc::MAP_FAILED {
            return Err(CageError::last(WHAT));
        }
        protect(twin, len, libc::PROT_READ)?;
        Ok(host)
    }

    fn of(start: *mut libc::c_void, len: u64, what: &'static str) -> Result<Mapping, CageError> {
        if start == libc::MAP_FAILED {
            return Err(CageError::last(what));
        }
        Ok(Mapping {
            start: start as u64,
            len,
        })
    }

    /// Its first address.
    pub(super) fn start(&self) -> u64 {
        self.start
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is ours and its owner is going away.
        unsafe { libc::munmap(self.start as *mut _, self.len as usize) };
    }
}

fn done(result: i32, what: &'static str) -> Result<(), CageError> {
    if result != 0 {
        return Err(CageError::last(what));
    }
    Ok(())
}

/// Sets the protection of pages of a cage.
pub(super) fn protect(at: u64, len: u64, protection: i32) -> Result<(), CageError> {
    // SAFETY: callers pass ranges of a cage they own exclusively, where no Rust object lives.
    let result = unsafe { libc::mprotect(at as *mut _, len as usize, protection) };
    done(result, "protecting pages of a cage")
}

/// Advises about pages of a cage.
pub(super) fn advise(at: u64, len: u64, advice: i32) -> Result<(), CageError> {
    // SAFETY: as in `protect`; the content that goes away is nobody's any more.
    let result = unsafe { libc::madvise(at as *mut _, len as usize, advice) };
    done(result, "giving back pages of a cage")
}

/// Gives back shared pages in all their mappings.
pub(super) fn remove(at: u64, len: u64) -> Result<(), CageError> {
    advise(at, len, libc::MADV_REMOVE)
}

/// Replaces what is mapped at a part of a cage by fresh anonymous memory.
pub(super) fn map_fixed(at: u64, len: u64, protection: i32) -> Result<(), CageError> {
    let flags = ANONYMOUS | libc::MAP_FIXED;
    map(at, len, protection, flags, -1, 0, "mapping pages of a cage")
}

/// Replaces what is mapped at a part of a cage by a part of a file, read-only.
pub(super) fn map_file(
    at: u64,
    len: u64,
    file: i32,
    offset: u64,
    populate: bool,
) -> Result<(), CageError> {
    let populate = if populate { libc::MAP_POPULATE } else { 0 };
    let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE | populate;
    let what = "mapping blocks into a cage";
    map(at, len, libc::PROT_READ, flags, file, offset, what)
}

fn map(
    at: u64,
    len: u64,
    protection: i32,
    flags: i32,
    file: i32,
    offset: u64,
    what: &'static str,
) -> Result<(), CageError> {
    if len == 0 {
        return Ok(());
    }
    // SAFETY: callers pass ranges of a cage they own exclusively, so that only mappings of the
    // cage itself are replaced.
    let mapped = unsafe {
        libc::mmap(
            at as *mut _,
            len as usize,
            protection,
            flags,
            file,
            offset as libc::off_t,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(CageError::last(what));
    }
    Ok(())
}

/// Which pages of a part of a cage are in memory: those that are not have not been touched.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn resident(at: u64, len: u64) -> Vec<bool> {
    let mut pages = vec![1u8; len.div_ceil(super::PAGE) as usize];
    if len > 0 {
        // SAFETY: there is a byte for each page of the range, which the call only asks about. Where it
        // fails, all pages count as being there.
        unsafe { libc::mincore(at as *mut _, len as usize, pages.as_mut_ptr()) };
    }
    pages.iter().map(|page| page & 1 != 0).collect()
}
