//! The memory of a program: [`REACH`] bytes of addresses, aligned to as many.
//!
//! Compiled code takes the lower 32 bits of every address it loads from or stores to and counts
//! from the base; absolute pointers into the cage and plain offsets both work. Nothing else is
//! mapped in the cage than its regions ([`Layout`]), with the protections the program is to have,
//! and a guard follows the last byte, so whatever a program does touches memory of its own or faults.
//!
//! Invariants: the pages of the call area, the window and the read-only data are never writable
//! at their address in the cage (the host writes the call area through a second mapping); what
//! [`Cage::check`] accepts is mapped, window excepted; after [`Cage::wipe`] no byte of an earlier
//! program or request is left.
//!
//! What it leaves out: which blocks are in the window, and pooling. It does no I/O.

mod layout;
mod memory;
mod pointer;

use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use self::layout::GUARD;
pub use self::layout::{CageConfig, CageError, Layout, PAGE, REACH, Region, Span};
use self::memory::{Mapping, advise, map_file, map_fixed, protect, remove};
pub use self::pointer::{Access, CageFault, CagePtr, DataImage};
use super::guard;

/// A part of the window that is being filled, unmapped unless that succeeds: also when it panics,
/// the program never finds it writable.
struct Unfinished {
    start: u64,
    len: u64,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let unmapped = map_fixed(self.start, self.len, libc::PROT_NONE);
        unmapped.expect("a range that was just mapped can be unmapped");
    }
}

static LIVE: AtomicUsize = AtomicUsize::new(0);

/// Below this, clearing bytes is cheaper than giving pages back.
const CLEAR_BYTES_MAX: u64 = 128 << 10;

/// The memory of a program.
pub struct Cage {
    memory: Mapping,
    base: u64,
    layout: Layout,
    /// Bytes of each region that are mapped, whole pages.
    accessible: [u64; 6],
    /// Bytes of the data region that the program cannot write.
    read_only: u64,
    /// The call area once more, writable.
    call: Mapping,
    call_used: u64,
    /// What of the window has been mapped, one range around all of it.
    window_used: Range<u64>,
}

impl std::fmt::Debug for Cage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cage")
            .field("base", &format_args!("{:#x}", self.base))
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}

impl Cage {
    /// A cage with the regions of `config`, all of them zero, no static data, an empty window.
    ///
    /// # Errors
    /// [`CageError`]: too large, or no address space.
    pub fn new(config: &CageConfig) -> Result<Cage, CageError> {
        let layout = Layout::new(config)?;
        let memory = Mapping::reserve(2 * REACH + 2 * GUARD)?;
        let base = (memory.start() + GUARD).next_multiple_of(REACH);
        let memory = memory.trim(base - GUARD, REACH + 2 * GUARD);
        for region in [Region::Stack, Region::Heap, Region::Output] {
            let span = layout.span(region);
            protect(
                base + span.start,
                span.len,
                libc::PROT_READ | libc::PROT_WRITE,
            )?;
        }
        let span = layout.span(Region::Call);
        let call = Mapping::shared_with(base + span.start, span.len)?;
        let mut accessible = Region::ALL.map(|region| layout.span(region).len);
        accessible[Region::Data as usize] = 0;
        LIVE.fetch_add(1, Ordering::Relaxed);
        Ok(Cage {
            memory,
            base,
            layout,
            accessible,
            read_only: 0,
            call,
            call_used: 0,
            window_used: 0..0,
        })
    }

    /// How many cages there are in the process.
    #[must_use]
    pub fn live() -> usize {
        LIVE.load(Ordering::Relaxed)
    }

    /// Address of its first byte, as programs know it.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Where its regions are.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Address of the first byte of `region`, as programs know it.
    #[must_use]
    pub fn address(&self, region: Region) -> u64 {
        self.base + self.layout.span(region).start
    }

    /// Bytes of `region` that are accessible.
    #[must_use]
    pub fn accessible(&self, region: Region) -> u64 {
        self.accessible[region as usize]
    }

    /// Takes `pointer` as compiled code does and tells the range of `len` bytes there if it lies
    /// wholly in one region and allows `access`. Within the window the pages may be unmapped:
    /// accesses then give a [`CageFault`]. Nothing is wrong with no bytes at any place.
    #[must_use]
    pub fn check(&self, pointer: u64, len: u64, access: Access) -> Option<CagePtr> {
        let offset = pointer & (REACH - 1);
        let found = CagePtr { offset, len };
        if len == 0 {
            return Some(found);
        }
        let region = self.layout.region_of(offset)?;
        let span = self.layout.span(region);
        let within = offset - span.start;
        if len > self.accessible(region).checked_sub(within)? {
            return None;
        }
        let allowed = match (access, region) {
            (Access::Read, _) | (_, Region::Stack | Region::Heap | Region::Output) => true,
            (Access::Write, Region::Data) => within >= self.read_only,
            (Access::Write, Region::Call | Region::Window) => false,
        };
        allowed.then_some(found)
    }

    /// Reads what is at `from` into `to`, which is as long.
    ///
    /// # Errors
    /// [`CageFault`]: pages of the window that are not there.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn read_bytes(&self, from: CagePtr, to: &mut [u8]) -> Result<(), CageFault> {
        assert_eq!(from.len, to.len() as u64, "a read of another length");
        let source = self.pointer(from)?;
        // SAFETY: `to` is writable for its length. `source` is within the cage for as many bytes
        // (`pointer`), which no Rust object lives in; unmapped pages there fail the copy.
        let copied = unsafe { guard::copy(to.as_mut_ptr(), source, to.len()) };
        copied.then_some(()).ok_or(CageFault(from.offset))
    }

    /// Writes `bytes` to `to`, which is as long.
    ///
    /// # Errors
    /// [`CageFault`]: `to` was checked for reading only, or for another cage.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn write_bytes(&mut self, to: CagePtr, bytes: &[u8]) -> Result<(), CageFault> {
        assert_eq!(to.len, bytes.len() as u64, "a write of another length");
        let target = self.pointer(to)?;
        // SAFETY: `bytes` is readable; `target` is within the cage (`pointer`), exclusively ours
        // by `&mut self`; pages that are unmapped or read-only there fail the copy.
        let copied = unsafe { guard::copy(target, bytes.as_ptr(), bytes.len()) };
        copied.then_some(()).ok_or(CageFault(to.offset))
    }

    /// Copies `from` to `to`, which is as long and does not overlap it.
    ///
    /// # Errors
    /// [`CageFault`]: pages that are not there or not writable, or ranges that overlap.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn copy(&mut self, from: CagePtr, to: CagePtr) -> Result<(), CageFault> {
        assert_eq!(from.len, to.len, "a copy of another length");
        if from.offset < to.offset + to.len && to.offset < from.offset + from.len {
            return Err(CageFault(to.offset));
        }
        let (source, target) = (self.pointer(from)?, self.pointer(to)?);
        // SAFETY: both are within the cage (`pointer`), do not overlap, and are not borrowed by
        // anyone else while `self` is; pages without the access fail the copy.
        let copied = unsafe { guard::copy(target, source, to.len as usize) };
        copied.then_some(()).ok_or(CageFault(from.offset))
    }

    /// The bytes at `at`, in place. Not for the window, whose files others may change.
    #[must_use]
    pub fn bytes(&self, at: CagePtr) -> Option<&[u8]> {
        let pointer = self.in_private_memory(at, Access::Read)?;
        // SAFETY: the range is mapped anonymous memory of the cage (`in_private_memory`), initialised
        // by the operating system, and cannot be written while `self` is borrowed: programs run
        // under `&mut Cage` only.
        Some(unsafe { std::slice::from_raw_parts(pointer, at.len as usize) })
    }

    /// The bytes at `at`, to be changed in place.
    #[must_use]
    pub fn bytes_mut(&mut self, at: CagePtr) -> Option<&mut [u8]> {
        let pointer = self.in_private_memory(at, Access::Write)?;
        // SAFETY: as in `bytes`; checked for writing, hence mapped writable, and exclusive by
        // `&mut self`.
        Some(unsafe { std::slice::from_raw_parts_mut(pointer, at.len as usize) })
    }

    /// Lets `look` have the bytes at `at` of the window in place, such as to check their sums.
    /// Bytes that are not there, or whose file was cut off, look like zeros.
    ///
    /// # Errors
    /// [`CageFault`]: there were such bytes, or `at` is not of the window.
    pub fn look<R>(&self, at: CagePtr, look: impl FnOnce(&[u8]) -> R) -> Result<R, CageFault> {
        let checked = self.check(at.offset, at.len, Access::Read).is_some();
        let region = self.layout.region_of(at.offset);
        if !checked || at.is_empty() || region != Some(Region::Window) {
            return Err(CageFault(at.offset));
        }
        let start = self.base + at.offset;
        // SAFETY: the range is within the window, whose mappings change under `&mut self` only. The
        // bytes can be read all of them: `inspect` puts zeros where they cannot. They are blocks of
        // a snapshot, which nobody writes to while it is mapped.
        let looked = unsafe {
            guard::inspect(start..start + at.len, || {
                look(std::slice::from_raw_parts(
                    start as *const u8,
                    at.len as usize,
                ))
            })
        };
        looked.map_err(|address| CageFault(address - self.base))
    }

    /// A text of at most `max` bytes that ends before a zero byte, at `pointer` of the program.
    /// Without a zero byte, as much as is there.
    #[must_use]
    pub fn text(&self, pointer: u64, max: usize) -> Option<Vec<u8>> {
        let offset = pointer & (REACH - 1);
        let region = self.layout.region_of(offset)?;
        let within = offset - self.layout.span(region).start;
        let there = self.accessible(region).checked_sub(within);
        let len = there.filter(|len| *len > 0)?.min(max as u64);
        let mut text = Vec::new();
        while (text.len() as u64) < len {
            // A page at a time: what follows the text need not be there.
            let at = offset + text.len() as u64;
            let part = (PAGE - at % PAGE).min(len - text.len() as u64);
            let start = text.len();
            text.resize(start + part as usize, 0);
            let from = CagePtr {
                offset: at,
                len: part,
            };
            self.read_bytes(from, &mut text[start..]).ok()?;
            if let Some(end) = text[start..].iter().position(|byte| *byte == 0) {
                text.truncate(start + end);
                break;
            }
        }
        Some(text)
    }

    /// Writes `bytes` into the call area from byte `at` on. What was written before elsewhere
    /// stays.
    ///
    /// # Errors
    /// [`CageError::Range`]: it does not fit.
    pub fn write_call(&mut self, at: u64, bytes: &[u8]) -> Result<(), CageError> {
        let len = bytes.len() as u64;
        self.call_area(at, len)?.copy_from_slice(bytes);
        Ok(())
    }

    /// The `len` bytes of the call area from byte `at` on, to be filled in by the host. Programs
    /// see them at [`Region::Call`], read-only.
    ///
    /// # Errors
    /// [`CageError::Range`]: they do not fit.
    pub fn call_area(&mut self, at: u64, len: u64) -> Result<&mut [u8], CageError> {
        let end = self.within(Region::Call, at, len)?;
        self.call_used = self.call_used.max(end);
        // SAFETY: `within` has checked the range, the second mapping is as long as the region and
        // writable, and the only other view of it belongs to the cage, whose programs and readers
        // need a borrow of `self` of their own.
        Ok(unsafe {
            std::slice::from_raw_parts_mut((self.call.start() + at) as *mut u8, len as usize)
        })
    }

    /// Lets programs have the first `bytes` of the heap or the output, in whole pages, and takes
    /// away the rest with what is in there. For no other region.
    ///
    /// # Errors
    /// [`CageError`]: more than the region has, or the system refused.
    pub fn limit(&mut self, region: Region, bytes: u64) -> Result<(), CageError> {
        assert!(matches!(region, Region::Heap | Region::Output));
        let wanted = bytes.next_multiple_of(PAGE);
        self.within(region, 0, wanted)?;
        let (start, now) = (self.address(region), self.accessible(region));
        if wanted > now {
            let writable = libc::PROT_READ | libc::PROT_WRITE;
            protect(start + now, wanted - now, writable)?;
        } else if wanted < now {
            map_fixed(start + wanted, now - wanted, libc::PROT_NONE)?;
        }
        self.accessible[region as usize] = wanted;
        Ok(())
    }

    /// Puts the static data of a program in place of what was in the data region.
    ///
    /// # Errors
    /// [`CageError::Range`]: it does not fit into the region.
    pub fn place_data(&mut self, image: &DataImage<'_>) -> Result<(), CageError> {
        let start = self.address(Region::Data);
        let read_only = image.read_only_pages();
        let bytes = image.writable_bytes().unwrap_or(u64::MAX);
        let writable = bytes.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX);
        let total = read_only.saturating_add(writable);
        self.within(Region::Data, 0, total)?;
        self.remove_data()?;
        if total == 0 {
            return Ok(());
        }
        protect(start, total, libc::PROT_READ | libc::PROT_WRITE)?;
        // SAFETY: `total` bytes from `start` on are mapped writable since just now and borrowed by
        // nobody; both parts fit into it.
        unsafe {
            let to = start as *mut u8;
            to.copy_from_nonoverlapping(image.read_only.as_ptr(), image.read_only.len());
            let to = (start + read_only) as *mut u8;
            to.copy_from_nonoverlapping(image.initialised.as_ptr(), image.initialised.len());
        }
        if read_only > 0 {
            protect(start, read_only, libc::PROT_READ)?;
        }
        self.read_only = read_only;
        self.accessible[Region::Data as usize] = total;
        Ok(())
    }

    /// Gives .data and .bss of the program whose data was placed last the contents they had at
    /// first.
    ///
    /// # Errors
    /// [`CageError`]: another shape than what was placed, or the system refused.
    pub fn reset_data(&mut self, image: &DataImage<'_>) -> Result<(), CageError> {
        let read_only = image.read_only_pages();
        let bytes = image.writable_bytes().unwrap_or(u64::MAX);
        let placed = self.accessible(Region::Data);
        let total = bytes
            .checked_next_multiple_of(PAGE)
            .and_then(|b| b.checked_add(read_only));
        if read_only != self.read_only || total != Some(placed) {
            return Err(CageError::Range {
                region: Region::Data,
                start: read_only,
                len: bytes,
            });
        }
        let start = self.address(Region::Data) + read_only;
        let len = placed - read_only;
        if len > CLEAR_BYTES_MAX {
            advise(start, len, libc::MADV_DONTNEED)?;
        }
        // SAFETY: the writable part of the data region, `len` bytes, is mapped since `place_data`
        // and borrowed by nobody; .data is not longer than that.
        unsafe {
            let (to, data) = (start as *mut u8, image.initialised);
            to.copy_from_nonoverlapping(data.as_ptr(), data.len());
            if len <= CLEAR_BYTES_MAX {
                to.add(data.len()).write_bytes(0, len as usize - data.len());
            }
        }
        Ok(())
    }

    /// Maps `len` bytes of `file` from `file_offset` on to byte `at` of the window, read-only and
    /// shared; all of them whole pages. With `populate` the pages are looked up now, all at once.
    /// What was there is replaced.
    ///
    /// # Errors
    /// [`CageError`]: not whole pages of the window, or a file that cannot be mapped.
    pub fn map_window(
        &mut self,
        at: u64,
        file: BorrowedFd<'_>,
        file_offset: u64,
        len: u64,
        populate: bool,
    ) -> Result<(), CageError> {
        self.use_window(at, len)?;
        let to = self.address(Region::Window) + at;
        map_file(to, len, file.as_raw_fd(), file_offset, populate)
    }

    /// Puts `len` fresh bytes at byte `at` of the window and lets `fill` write them; programs see
    /// them read-only. For devices whose blocks cannot be mapped.
    ///
    /// # Errors
    /// [`CageError`], outer: not whole pages of the window, or no memory. What `fill` says, inner:
    /// the range is then unmapped.
    pub fn fill_window<E>(
        &mut self,
        at: u64,
        len: u64,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Result<(), E>, CageError> {
        self.use_window(at, len)?;
        let to = self.address(Region::Window) + at;
        map_fixed(to, len, libc::PROT_READ | libc::PROT_WRITE)?;
        let unfinished = Unfinished { start: to, len };
        // SAFETY: fresh anonymous memory, mapped writable just now, borrowed by nobody else.
        let filled = fill(unsafe { std::slice::from_raw_parts_mut(to as *mut u8, len as usize) });
        if filled.is_ok() {
            protect(to, len, libc::PROT_READ)?;
            std::mem::forget(unfinished);
        }
        Ok(filled)
    }

    /// Unmaps `len` bytes from byte `at` of the window on.
    ///
    /// # Errors
    /// [`CageError`]: not whole pages of the window, or the system refused.
    pub fn clear_window(&mut self, at: u64, len: u64) -> Result<(), CageError> {
        self.within_pages(Region::Window, at, len)?;
        if len > 0 {
            map_fixed(self.address(Region::Window) + at, len, libc::PROT_NONE)?;
        }
        Ok(())
    }

    /// Takes away everything a program could have written or seen: stack, heap, output, static
    /// data, call area and window. All of it reads as zeros afterwards, or is unmapped.
    ///
    /// # Errors
    /// [`CageError`]: the system refused; the cage must not be used for another owner then.
    pub fn wipe(&mut self) -> Result<(), CageError> {
        for region in [Region::Stack, Region::Heap, Region::Output] {
            let len = self.accessible(region);
            if len > 0 {
                advise(self.address(region), len, libc::MADV_DONTNEED)?;
            }
        }
        self.remove_data()?;
        if self.call_used > CLEAR_BYTES_MAX {
            remove(self.call.start(), self.call_used.next_multiple_of(PAGE))?;
        } else {
            let used = self.call_used;
            self.call_area(0, used)?.fill(0);
        }
        self.call_used = 0;
        let used = std::mem::take(&mut self.window_used);
        self.clear_window(used.start, used.end - used.start)
    }

    /// The addresses nothing else can be mapped at: the cage and the guards around it.
    #[cfg(any(test, feature = "fuzzing"))]
    #[must_use]
    pub fn reserved(&self) -> Range<u64> {
        self.base - GUARD..self.base + REACH + GUARD
    }

    /// Bytes of a region that take memory.
    #[cfg(test)]
    pub(crate) fn resident(&self, region: Region) -> u64 {
        let pages = memory::resident(self.address(region), self.accessible(region));
        pages.iter().filter(|page| **page).count() as u64 * PAGE
    }

    /// The pages with anything but zeros of all regions but the window, by their offsets.
    #[cfg(any(test, feature = "fuzzing"))]
    #[must_use]
    pub fn contents(&self) -> Vec<(u64, Vec<u8>)> {
        let mut pages = Vec::new();
        for region in [
            Region::Data,
            Region::Call,
            Region::Stack,
            Region::Heap,
            Region::Output,
        ] {
            let len = match region {
                Region::Call => self.call_used.next_multiple_of(PAGE),
                _ => self.accessible(region),
            };
            let start = self.layout.span(region).start;
            let resident = memory::resident(self.base + start, len);
            for number in (0..len / PAGE).filter(|number| resident[*number as usize]) {
                let at = CagePtr {
                    offset: start + number * PAGE,
                    len: PAGE,
                };
                let bytes = self.bytes(at).unwrap_or_default();
                if bytes.iter().any(|byte| *byte != 0) {
                    pages.push((at.offset, bytes.to_vec()));
                }
            }
        }
        pages
    }

    fn remove_data(&mut self) -> Result<(), CageError> {
        let placed = self.accessible(Region::Data);
        if placed > 0 {
            map_fixed(self.address(Region::Data), placed, libc::PROT_NONE)?;
        }
        self.accessible[Region::Data as usize] = 0;
        self.read_only = 0;
        Ok(())
    }

    fn use_window(&mut self, at: u64, len: u64) -> Result<(), CageError> {
        let end = self.within_pages(Region::Window, at, len)?;
        let used = &self.window_used;
        self.window_used = match used.is_empty() {
            true => at..end,
            false => used.start.min(at)..used.end.max(end),
        };
        Ok(())
    }

    fn within(&self, region: Region, start: u64, len: u64) -> Result<u64, CageError> {
        let end = start.checked_add(len);
        end.filter(|end| *end <= self.layout.span(region).len)
            .ok_or(CageError::Range { region, start, len })
    }

    fn within_pages(&self, region: Region, start: u64, len: u64) -> Result<u64, CageError> {
        if !start.is_multiple_of(PAGE) || !len.is_multiple_of(PAGE) {
            return Err(CageError::Range { region, start, len });
        }
        self.within(region, start, len)
    }

    /// Where `at` is in memory, all of it in the cage even if it was checked for a larger one.
    fn pointer(&self, at: CagePtr) -> Result<*mut u8, CageFault> {
        let end = at.offset.checked_add(at.len).filter(|end| *end <= REACH);
        end.map(|_| (self.base + at.offset) as *mut u8)
            .ok_or(CageFault(at.offset))
    }

    fn in_private_memory(&self, at: CagePtr, access: Access) -> Option<*mut u8> {
        let at = self.check(at.offset, at.len, access)?;
        if at.is_empty() {
            return Some(std::ptr::dangling_mut());
        }
        let private = self.layout.region_of(at.offset) != Some(Region::Window);
        private.then_some((self.base + at.offset) as *mut u8)
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        debug_assert!(self.memory.start() < self.base);
        LIVE.fetch_sub(1, Ordering::Relaxed);
    }
}
