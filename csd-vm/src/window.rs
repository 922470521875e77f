//! The snapshot in the window of a cage.
//!
//! Block `b` of the file lies at block `b - origin` of the window. A file that fits has origin 0
//! for good; for a larger one the window is moved when a kernel asks for what it does not reach
//! and has been given nothing since it started or since it gave the window back.
//!
//! Long pieces are mapped where the device has a source for them; short ones, and the block that
//! the snapshot ends in, are copied, so that nothing past the end is ever visible; holes are the
//! zero page. A block is checked against its CRC32C before the kernel first sees it. Blocks of a
//! snapshot do not change while it lives, so what is in the window stays checked, over executions,
//! as long as they are given the same snapshot.
//!
//! Where the storage is not in memory, pieces that are long or follow each other come from frames
//! ([`crate::frames`]), which are read ahead while a kernel goes through a file; a window that has as
//! many as it may have starts over, unless the kernel has been given addresses. What gets no frame is
//! mapped or copied through the caches of the operating system.
//!
//! Single blocks read here and there are copied straight to the kernel and leave no mapping;
//! sequential and long reads go through the window.

use std::collections::HashMap;
use std::os::raw::c_long;
use std::sync::Arc;

use zns_backend::{DmaBuffer, ZonedDevice};

use crate::block_set::BlockSet;
use crate::blocks::{ask_for, read_extent};
use crate::cancellation::Term;
use crate::cost;
use crate::engine::cage::{Access, Cage, CageError, CagePtr, Region};
use crate::extents::Resolved;
use crate::frames::{FRAME_BLOCKS, Forget, Frames, Pin};
use crate::mapping::{check_mapped, copy_extents, could_not_map, map_extent, mappable, touch};
use crate::request::{BLOCK_SIZE, Piece, SnapshotMap};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// From here on a piece is mapped, below it is copied: a mapping costs as much as a few copies,
/// and the number of mappings of a process is limited.
const MAP_BLOCKS_MIN: u64 = 16;

/// Blocks brought in at a time; the time is looked at in between.
const FILL_BLOCKS_MAX: u64 = 256;

/// Bytes copied at a time; the time is looked at in between.
const COPY_BYTES_MAX: u64 = 4 << 20;

/// Blocks a sequential read brings in at once.
const READ_AHEAD_BLOCKS: u64 = 128;

/// Blocks that the operating system is asked for beyond those that are brought in, while a file is
/// gone through in order: so that the device reads while the kernel computes.
const ADVISED_BLOCKS: u64 = 512;

/// Frames that are read ahead.
const AHEAD_FRAMES: u64 = 8;

/// How far behind the last blocks brought in those are that count as the next ones: a reader with
/// several requests under way has each in another cage.
const NEAR_BLOCKS: u64 = 4 * FRAME_BLOCKS;

/// References to a snapshot that the window and the request hold.
const OWN_REFERENCES: usize = 2;

/// Why the window does not show what was asked for.
#[derive(Debug)]
pub(crate) enum WindowError {
    /// It is in use for another part of the file.
    Full,
    /// The time was over on the way.
    TimedOut,
    /// Blocks cannot be read or are not what they were.
    Storage(String),
    /// Memory of the cage is not there, at this offset.
    Fault(u64),
    /// The operating system refused memory.
    Memory(String),
}

impl From<CageError> for WindowError {
    fn from(error: CageError) -> WindowError {
        WindowError::Memory(error.to_string())
    }
}

impl WindowError {
    /// The host does not say where blocks are.
    pub(crate) fn no_extents(first: u64, count: u64) -> WindowError {
        let last = first + count - 1;
        WindowError::Storage(format!(
            "the host gave no extents that cover blocks {first} to {last} of the file"
        ))
    }
}

type Result<T> = std::result::Result<T, WindowError>;

/// Where blocks come from, and for how long.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) storage: &'a dyn ZonedDevice,
    /// The device's own memory for its blocks, where it has some.
    pub(crate) frames: Option<&'a Frames>,
    pub(crate) term: Term<'a>,
}

/// A part of the file in the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapped {
    /// First byte, from the start of the window.
    pub(crate) at: u64,
    /// Bytes.
    pub(crate) len: u64,
}

/// What is in the window of one cage.
pub(crate) struct Window {
    snapshot: Option<Arc<dyn SnapshotMap>>,
    /// Bytes of the snapshot.
    size: u64,
    /// Block of the file that the window starts with.
    origin: u64,
    /// Blocks of the window.
    blocks: u64,
    /// Blocks of the window that are there and checked.
    present: BlockSet,
    /// Whether the kernel was given addresses in the window.
    lent: bool,
    /// The block after the last one read.
    next_read: u64,
    /// The block after the last ones brought in.
    next_fill: u64,
    /// The block after the last ones the operating system was asked for in advance.
    advised: u64,
    pieces: Vec<Piece>,
    resolved: Resolved,
    block: DmaBuffer,
    /// What of the window is mapped from frames, by the part of the file.
    pins: HashMap<u64, Pin>,
    /// Where the snapshot has frames.
    forget: Option<Forget>,
    /// Page faults of bringing blocks in.
    faults: c_long,
}

impl Window {
    pub(crate) fn new(cage: &Cage) -> Window {
        let blocks = cage.layout().span(Region::Window).len / BLOCK;
        Window {
            snapshot: None,
            size: 0,
            origin: 0,
            blocks,
            present: BlockSet::new(blocks),
            lent: false,
            next_read: u64::MAX,
            next_fill: 0,
            advised: 0,
            pieces: Vec::new(),
            resolved: Resolved::default(),
            block: DmaBuffer::new(BLOCK_SIZE),
            pins: HashMap::new(),
            forget: None,
            faults: 0,
        }
    }

    /// Page faults of bringing blocks in since this was asked last.
    pub(crate) fn take_faults(&mut self) -> c_long {
        std::mem::take(&mut self.faults)
    }

    /// An execution on `snapshot` begins. What the window has of it from before stays.
    pub(crate) fn begin(
        &mut self,
        cage: &mut Cage,
        snapshot: &Arc<dyn SnapshotMap>,
    ) -> std::result::Result<(), CageError> {
        self.lent = false;
        let same = self
            .snapshot
            .as_ref()
            .is_some_and(|s| Arc::ptr_eq(s, snapshot));
        if !same {
            self.forget(cage)?;
            self.snapshot = Some(Arc::clone(snapshot));
            self.size = snapshot.size();
        }
        Ok(())
    }

    /// Whether nobody refers to the snapshot but this window and `others` that are known of.
    pub(crate) fn holds_alone(&self, others: usize) -> bool {
        let snapshot = self.snapshot.as_ref();
        snapshot.is_some_and(|snapshot| Arc::strong_count(snapshot) <= 1 + others)
    }

    /// Empties the window and lets go of the snapshot.
    pub(crate) fn forget(&mut self, cage: &mut Cage) -> std::result::Result<(), CageError> {
        self.move_to(cage, 0)?;
        self.let_go();
        self.size = 0;
        self.next_read = u64::MAX;
        self.next_fill = 0;
        self.advised = 0;
        Ok(())
    }

    /// Forgets the snapshot, of which nothing is mapped.
    fn let_go(&mut self) {
        if let (Some(snapshot), Some(forget)) = (self.snapshot.take(), self.forget.take()) {
            forget.forget(&snapshot);
        }
    }

    /// The kernel gives back what it was lent.
    pub(crate) fn give_back(&mut self) {
        self.lent = false;
    }

    /// Brings `[offset, offset + size)` of the file, or as much of its beginning as the snapshot
    /// has and the window reaches, into the window and lends it to the kernel.
    pub(crate) fn map(
        &mut self,
        cage: &mut Cage,
        source: Source<'_>,
        offset: u64,
        size: u64,
    ) -> Result<Mapped> {
        let len = size.min(self.size.saturating_sub(offset));
        if len == 0 {
            return Ok(Mapped { at: 0, len: 0 });
        }
        let first = offset / BLOCK;
        if !self.reach(cage, first)? {
            return Err(WindowError::Full);
        }
        let at = offset - self.origin * BLOCK;
        let len = len.min(self.blocks * BLOCK - at);
        let count = (at + len).div_ceil(BLOCK) + self.origin - first;
        self.make_room(cage, source, count)?;
        self.ensure(cage, source, first, count)?;
        self.lent = true;
        Ok(Mapped { at, len })
    }

    /// Copies the bytes of the file from `offset` on to `to`, as many as the snapshot has, and
    /// returns how many that were.
    pub(crate) fn read(
        &mut self,
        cage: &mut Cage,
        source: Source<'_>,
        offset: u64,
        to: CagePtr,
    ) -> Result<u64> {
        let len = to.len().min(self.size.saturating_sub(offset));
        let mut done = 0;
        while done < len {
            if source.term.is_over() {
                return Err(WindowError::TimedOut);
            }
            let (at, left) = (offset + done, len - done);
            let target = |len| to.part(done, len).ok_or(WindowError::Fault(to.offset()));
            done += match self.read_through_window(cage, source, at, left)? {
                Some(part) => {
                    cage.copy(part, target(part.len())?)
                        .map_err(|fault| WindowError::Fault(fault.0))?;
                    part.len()
                }
                None => {
                    let within = (at % BLOCK) as usize;
                    let part = left.min(BLOCK - at % BLOCK);
                    let block = self.read_block(source, at / BLOCK)?;
                    let bytes = &block[within..within + part as usize];
                    cage.write_bytes(target(part)?, bytes)
                        .map_err(|fault| WindowError::Fault(fault.0))?;
                    part
                }
            };
            self.next_read = (offset + done).div_ceil(BLOCK);
        }
        Ok(done)
    }

    /// The bytes of the file from `offset` on, at most `len`, where they are in the window; they
    /// are brought in if that is worth it.
    fn read_through_window(
        &mut self,
        cage: &mut Cage,
        source: Source<'_>,
        offset: u64,
        len: u64,
    ) -> Result<Option<CagePtr>> {
        let first = offset / BLOCK;
        let blocks = (offset + len).div_ceil(BLOCK) - first;
        if self.present_from(first) == 0 {
            let wanted = match first == self.next_read {
                true => blocks.max(READ_AHEAD_BLOCKS),
                false => blocks,
            };
            if wanted < MAP_BLOCKS_MIN || !self.reach(cage, first)? {
                return Ok(None);
            }
            let end = self.size.div_ceil(BLOCK).min(self.origin + self.blocks);
            let wanted = wanted.min(end - first).min(FILL_BLOCKS_MAX);
            self.make_room(cage, source, wanted)?;
            self.ensure(cage, source, first, wanted)?;
        }
        let there = self.present_from(first) * BLOCK - offset % BLOCK;
        let at = cage.address(Region::Window) + offset - self.origin * BLOCK;
        let part = cage.check(at, len.min(there).min(COPY_BYTES_MAX), Access::Read);
        part.map(Some).ok_or(WindowError::Fault(at))
    }

    /// How many blocks from `first` of the file on are in the window.
    fn present_from(&self, first: u64) -> u64 {
        match first.checked_sub(self.origin) {
            Some(at) if at < self.blocks => self.present.run(at, self.blocks, true),
            _ => 0,
        }
    }

    /// Whether block `first` of the file has a place in the window, which is moved if it may be.
    fn reach(&mut self, cage: &mut Cage, first: u64) -> Result<bool> {
        if first >= self.origin && first - self.origin < self.blocks {
            return Ok(true);
        }
        if self.lent {
            return Ok(false);
        }
        let step = (self.blocks / 2).max(1);
        self.move_to(cage, first - first % step)?;
        Ok(true)
    }

    fn move_to(&mut self, cage: &mut Cage, origin: u64) -> std::result::Result<(), CageError> {
        if let Some(used) = self.present.bounds() {
            cage.clear_window(used.start * BLOCK, (used.end - used.start) * BLOCK)?;
            self.present.clear();
        }
        // Nothing shows them any more.
        self.pins.clear();
        self.origin = origin;
        Ok(())
    }

    /// Empties the window if it should not have as many frames more as `count` blocks can need.
    fn make_room(
        &mut self,
        cage: &mut Cage,
        source: Source<'_>,
        count: u64,
    ) -> std::result::Result<(), CageError> {
        let (Some(frames), Some(snapshot)) = (source.frames, &self.snapshot) else {
            return Ok(());
        };
        let needed = count.div_ceil(FRAME_BLOCKS) as usize + 1;
        let full = self.pins.len() + needed > frames.enough_for(&**snapshot);
        if full && !self.pins.is_empty() && !self.lent {
            self.move_to(cage, self.origin)?;
        }
        Ok(())
    }

    /// Shows blocks from block `at` of the window on, at most `count` of them, in a frame. Returns how
    /// many; 0 if they are better brought in otherwise.
    fn show_frame(
        &mut self,
        cage: &mut Cage,
        source: Source<'_>,
        at: u64,
        count: u64,
    ) -> Result<u64> {
        let (Some(frames), Some(snapshot)) = (source.frames, &self.snapshot) else {
            return Ok(0);
        };
        let first = self.origin + at;
        let near = first
            .checked_sub(self.next_fill)
            .is_some_and(|skipped| skipped < NEAR_BLOCKS);
        if !near && count < MAP_BLOCKS_MIN {
            return Ok(0);
        }
        let (part, within) = (first / FRAME_BLOCKS, first % FRAME_BLOCKS);
        // A snapshot that is only there for this request ends with it.
        if near && Arc::strong_count(snapshot) > OWN_REFERENCES {
            let parts = self.size.div_ceil(FRAME_BLOCKS * BLOCK);
            frames.read_ahead(snapshot, part + 1..(part + 1 + AHEAD_FRAMES).min(parts));
        }
        let pin = match self.pins.remove(&part) {
            Some(pin) => pin,
            None if self.pins.len() >= frames.per_window() => return Ok(0),
            None => match frames.take(snapshot, part, source.term) {
                Ok(Some(pin)) => pin,
                // Blocks that were not asked for may be what cannot be read.
                Ok(None) | Err(WindowError::Storage(_)) => return Ok(0),
                Err(error) => return Err(error),
            },
        };
        self.forget.get_or_insert_with(|| frames.forgetting());
        let shown = count.min(FRAME_BLOCKS - within);
        let (file, offset) = pin.source(within);
        let before = cost::faults();
        let mapped = cage.map_window(at * BLOCK, file, offset, shown * BLOCK, false);
        let touched = mapped.is_err() || touch(cage, at, shown);
        self.faults += cost::faults() - before;
        // Kept even if this failed: another part of it may be mapped.
        self.pins.insert(part, pin);
        match mapped {
            Ok(()) if touched => {
                self.next_fill = first + shown;
                Ok(shown)
            }
            Ok(()) => Err(WindowError::Fault(
                cage.address(Region::Window) + at * BLOCK,
            )),
            Err(error) => {
                could_not_map(&error, shown);
                Ok(0)
            }
        }
    }

    /// Brings the blocks of the file that are missing from `[first, first + count)`, all within
    /// reach, into the window.
    fn ensure(
        &mut self,
        cage: &mut Cage,
        source: Source<'_>,
        first: u64,
        count: u64,
    ) -> Result<()> {
        let mut at = first - self.origin;
        let end = at + count;
        while at < end {
            at += self.present.run(at, end, true);
            let missing = self.present.run(at, end, false).min(FILL_BLOCKS_MAX);
            if missing == 0 {
                break;
            }
            if source.term.is_over() {
                return Err(WindowError::TimedOut);
            }
            let shown = self.show_frame(cage, source, at, missing)?;
            if shown > 0 {
                self.present.insert(at, shown);
                at += shown;
                continue;
            }
            self.advise(source, self.origin + at, missing);
            let before = cost::faults();
            let filled = self.fill(cage, source, at, missing);
            self.faults += cost::faults() - before;
            if filled.is_err() {
                cage.clear_window(at * BLOCK, missing * BLOCK)?;
            }
            filled?;
            self.present.insert(at, missing);
            at += missing;
        }
        Ok(())
    }

    /// Has the operating system read on behind `count` blocks from `first` of the file on, which are
    /// about to be brought in, if these are the next ones; them too if nobody has asked for them, so
    /// that it reads what is needed first, and no more. Nothing depends on it: what goes wrong does
    /// so again, and is told, when the blocks are needed.
    fn advise(&mut self, source: Source<'_>, first: u64, count: u64) {
        let in_order = first == self.next_fill;
        let behind = first + count;
        self.next_fill = behind;
        if !in_order {
            // What was asked for elsewhere says nothing about what follows here.
            self.advised = 0;
            return;
        }
        let from = match self.advised > first {
            true => self.advised.max(behind),
            false => first,
        };
        let end = self.size.div_ceil(BLOCK).min(behind + ADVISED_BLOCKS);
        // In few large pieces.
        if from >= end || from.saturating_sub(behind) * 2 > ADVISED_BLOCKS {
            return;
        }
        if self.resolve(source, from, end - from).is_ok() {
            self.advised = end;
            for extent in &self.resolved.extents {
                if extent.blocks >= MAP_BLOCKS_MIN
                    && let Some(lba) = extent.lba
                    && let Ok(Some(place)) = source.storage.map_source(lba, extent.blocks)
                {
                    ask_for(&place, extent.blocks * BLOCK);
                }
            }
        }
    }

    /// Brings `count` blocks to block `at` of the window.
    fn fill(&mut self, cage: &mut Cage, source: Source<'_>, at: u64, count: u64) -> Result<()> {
        self.resolve(source, self.origin + at, count)?;
        let mut copied = 0;
        for extent in &self.resolved.extents {
            if extent.blocks >= MAP_BLOCKS_MIN
                && let Some(lba) = extent.lba
                && let Some(from) = mappable(source, lba, extent.blocks)?
                && map_extent(cage, source, at + extent.first, from, extent.blocks)
            {
                copy_extents(cage, source, at, copied..extent.first, &self.resolved)?;
                let sums = self.resolved.checksums(extent);
                check_mapped(cage, at + extent.first, lba, sums)?;
                copied = extent.first + extent.blocks;
            }
        }
        copy_extents(cage, source, at, copied..count, &self.resolved)
    }

    /// One block of the file, checked, with nothing past the end of the snapshot.
    fn read_block(&mut self, source: Source<'_>, block: u64) -> Result<&[u8]> {
        self.resolve(source, block, 1)?;
        let bytes = &mut self.block[..];
        for extent in &self.resolved.extents {
            read_extent(source.storage, extent, &self.resolved, bytes)?;
        }
        Ok(bytes)
    }

    /// Asks the host where `count` blocks from `first` of the file on are.
    fn resolve(&mut self, source: Source<'_>, first: u64, count: u64) -> Result<()> {
        let Some(snapshot) = &self.snapshot else {
            return Err(WindowError::Storage("there is no snapshot".into()));
        };
        self.pieces.clear();
        snapshot
            .resolve(first, count, &mut self.pieces)
            .map_err(WindowError::Storage)?;
        let end = self.size.saturating_sub(first.saturating_mul(BLOCK));
        let whole = (end / BLOCK).min(count);
        let geometry = source.storage.geometry();
        if self.resolved.set(&self.pieces, count, whole, geometry) {
            self.resolved.tail_bytes = (end % BLOCK) as usize;
            return Ok(());
        }
        Err(WindowError::no_extents(first, count))
    }
}

impl Drop for Window {
    /// The cage is gone, and with it what was mapped there.
    fn drop(&mut self) {
        self.pins.clear();
        self.let_go();
    }
}
