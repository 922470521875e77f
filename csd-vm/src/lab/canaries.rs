//! Pages of a pattern next to a cage, as near as its guards allow.

use std::ops::Range;

use crate::engine::cage::{Cage, PAGE};

/// Bytes on either side.
const BYTES: u64 = 4 * PAGE;
/// What they hold.
const PATTERN: u8 = 0x5a;

/// Mapped as long as this lives. Where something else is mapped already, there is none.
pub(super) struct Canaries(Vec<Range<u64>>);

impl Canaries {
    pub(super) fn around(cage: &Cage) -> Canaries {
        let around = cage.reserved();
        let places = [around.start - BYTES, around.end];
        let ranges = places.map(|at| at..at + BYTES);
        Canaries(ranges.into_iter().filter(map).collect())
    }

    /// Whether all is as it was.
    pub(super) fn check(&self) -> Result<(), String> {
        for range in &self.0 {
            // SAFETY: mapped readable until dropped; a program that writes there, which this is to
            // find, does not run now.
            let bytes =
                unsafe { std::slice::from_raw_parts(range.start as *const u8, BYTES as usize) };
            if let Some(at) = bytes.iter().position(|byte| *byte != PATTERN) {
                return Err(format!(
                    "byte {at} of the pages at {:#x} changed",
                    range.start
                ));
            }
        }
        Ok(())
    }
}

impl Drop for Canaries {
    fn drop(&mut self) {
        for range in &self.0 {
            // SAFETY: mapped by `around`, used by nobody else.
            unsafe { libc::munmap(range.start as *mut _, BYTES as usize) };
        }
    }
}

/// Maps a range of free addresses; tells whether they were.
fn map(range: &Range<u64>) -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let wanted = range.start as *mut libc::c_void;
    // SAFETY: nothing that exists is replaced.
    let at = unsafe { libc::mmap(wanted, BYTES as usize, access, flags, -1, 0) };
    if at != wanted {
        return false;
    }
    // SAFETY: just mapped writable, ours.
    unsafe { at.cast::<u8>().write_bytes(PATTERN, BYTES as usize) };
    true
}
