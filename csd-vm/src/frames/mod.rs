//! The device's own memory for blocks: frames of [`FRAME_BLOCKS`] blocks, read past the caches of the
//! operating system, checked, and then mapped into the cages of whoever the snapshot belongs to.
//!
//! For storage whose blocks are not in memory anyway. Reading a frame takes one or two large requests
//! to the device, or as many as it lies in places, made at the same time, and none of what faulting as
//! many pages of a file costs; frames are used again, so nothing is allocated or cleared either. While
//! a kernel computes on one frame, threads fill the next ones ([`Frames::read_ahead`]).
//!
//! Invariants: a frame is mapped into a cage only while a [`Pin`] of it lives, which the cage's window
//! drops after it has unmapped it, and a frame with pins is never filled; every block of a ready frame
//! that the snapshot has was compared with its checksum, bytes past its end are zeros; a frame is found
//! by the snapshot that it was filled for, and by no other. The number of frames is fixed.
//!
//! Left out: frames that survive their snapshot. The blocks of another snapshot are other blocks as
//! far as the device knows.

mod memory;
mod table;

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use zns_backend::ZonedDevice;

use self::memory::Memory;
use self::table::{Ahead, Claim, Found, Table};
use crate::blocks::read_extents;
use crate::cancellation::Term;
use crate::extents::Resolved;
use crate::request::{BLOCK_SIZE, Piece, SnapshotMap};
use crate::window::WindowError;

/// Blocks of a frame.
pub(crate) const FRAME_BLOCKS: u64 = 128;
const FRAME_BYTES: usize = FRAME_BLOCKS as usize * BLOCK_SIZE;
/// Frames filled at once ahead of need: so that the storage has more than one request to do.
const FILLERS: usize = 3;
/// Frames that a cage has mapped of a snapshot that is too large for all of it to stay.
const PASSING_FRAMES: usize = 64;
/// How long somebody waits for a frame before the time is looked at.
const PATIENCE: Duration = Duration::from_millis(2);

struct Shared {
    storage: Arc<dyn ZonedDevice>,
    memory: Memory,
    state: Mutex<State>,
    /// A frame was filled, or could not be.
    filled: Condvar,
    /// There is something to fill ahead of need, or nothing will be any more.
    asked: Condvar,
}

struct State {
    table: Table,
    fillers: Vec<JoinHandle<()>>,
    stopping: bool,
}

/// The frames of a device.
pub(crate) struct Frames {
    shared: Arc<Shared>,
    frames_max: usize,
    per_window: usize,
}

/// A frame that is ready and stays what it is.
pub(crate) struct Pin {
    shared: Arc<Shared>,
    frame: usize,
}

/// A frame that is being filled. Dropped, it could not be.
struct Filling<'a> {
    shared: &'a Shared,
    claim: Claim,
}

impl Frames {
    /// Frames in `bytes` of memory at most. None if those are too few to be of use, or there is no
    /// such memory; kernels go without then.
    pub(crate) fn new(storage: &Arc<dyn ZonedDevice>, bytes: u64) -> Option<Frames> {
        let frames_max = usize::try_from(bytes).ok()? / FRAME_BYTES;
        if frames_max < 4 * FILLERS || storage.in_memory() {
            return None;
        }
        let memory = Memory::new(frames_max, FRAME_BYTES)
            .inspect_err(|error| tracing::warn!(%error, "no memory for blocks that kernels read"))
            .ok()?;
        let shared = Shared {
            storage: Arc::clone(storage),
            memory,
            state: Mutex::new(State {
                table: Table::new(frames_max),
                fillers: Vec::new(),
                stopping: false,
            }),
            filled: Condvar::new(),
            asked: Condvar::new(),
        };
        Some(Frames {
            shared: Arc::new(shared),
            frames_max,
            per_window: frames_max / 4 * 3,
        })
    }

    /// How many frames one cage may have mapped: not all of them, so that others get some.
    pub(crate) fn per_window(&self) -> usize {
        self.per_window
    }

    /// How many frames of a snapshot one cage should have mapped, if it can do with them: of one that
    /// is gone through without staying, few, so that others of it can stay.
    pub(crate) fn enough_for(&self, snapshot: &dyn SnapshotMap) -> usize {
        match table::is_large(snapshot, self.frames_max) {
            true => self.per_window.min(PASSING_FRAMES),
            false => self.per_window,
        }
    }

    /// The frame with part `index` of a snapshot, which is read unless it is there. None if all frames
    /// are in use.
    ///
    /// # Errors
    /// The blocks cannot be read or are not what they were; the time is over.
    pub(crate) fn take(
        &self,
        snapshot: &Arc<dyn SnapshotMap>,
        index: u64,
        term: Term<'_>,
    ) -> Result<Option<Pin>, WindowError> {
        let shared = &self.shared;
        let mut state = shared.state.lock();
        loop {
            match state.table.find(snapshot, index) {
                Found::Ready(frame) => {
                    let shared = Arc::clone(shared);
                    return Ok(Some(Pin { shared, frame }));
                }
                Found::Nowhere => return Ok(None),
                Found::Claimed(claim) => {
                    drop(state);
                    let filling = Filling { shared, claim };
                    if !filling.has_memory() {
                        return Ok(None);
                    }
                    filling.fill(&**snapshot, index)?;
                    return Ok(Some(filling.pinned(shared)));
                }
                Found::Filling => {
                    if term.is_over() {
                        return Err(WindowError::TimedOut);
                    }
                    shared.filled.wait_for(&mut state, PATIENCE);
                }
            }
        }
    }

    /// Has the parts of a snapshot filled that are nowhere yet, in this order and by others. Nothing
    /// depends on it: what goes wrong does so again, and is told, when the part is needed.
    pub(crate) fn read_ahead(&self, snapshot: &Arc<dyn SnapshotMap>, parts: Range<u64>) {
        let mut state = self.shared.state.lock();
        if state.stopping {
            return;
        }
        for index in parts {
            if state.table.ask_for(snapshot, index) {
                self.shared.asked.notify_one();
            }
        }
        if state.fillers.is_empty() {
            for _ in 0..FILLERS {
                let shared = Arc::clone(&self.shared);
                let filler = thread::Builder::new().name("csd-reader".into());
                match filler.spawn(move || shared.fill_ahead()) {
                    Ok(filler) => state.fillers.push(filler),
                    Err(error) => tracing::warn!(%error, "nothing is read ahead for kernels"),
                }
            }
        }
    }

    /// Nothing is filled ahead of need any more.
    pub(crate) fn stop(&self) {
        let fillers = {
            let mut state = self.shared.state.lock();
            state.stopping = true;
            std::mem::take(&mut state.fillers)
        };
        self.shared.asked.notify_all();
        for filler in fillers {
            if filler.thread().id() != thread::current().id() && filler.join().is_err() {
                tracing::error!("a thread that reads ahead panicked");
            }
        }
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Access to frames for windows, which let go of their snapshots after an execution.
#[derive(Clone)]
pub(crate) struct Forget(Arc<Shared>);

impl Frames {
    /// By which a snapshot is forgotten.
    pub(crate) fn forgetting(&self) -> Forget {
        Forget(Arc::clone(&self.shared))
    }
}

impl Forget {
    /// Lets go of what is held of a snapshot, and of what was to be.
    pub(crate) fn forget(&self, snapshot: &Arc<dyn SnapshotMap>) {
        let Shared { memory, state, .. } = &*self.0;
        let frames = {
            let mut state = state.lock();
            let provided = |frame| memory.is_provided(frame);
            state.table.forget(snapshot, provided)
        };
        // Huge pages go as a whole.
        for run in frames.chunk_by(|one, next| one + 1 == *next) {
            let run = run[0]..run[0] + run.len();
            if let Err(error) = memory.give_back(run.clone()) {
                tracing::debug!(%error, "memory of frames is kept");
            }
            state.lock().table.given_back(run);
        }
    }
}

impl Shared {
    /// What a thread does that reads ahead.
    fn fill_ahead(&self) {
        let mut state = self.state.lock();
        while !state.stopping {
            let Some(ahead) = state.table.next_ahead() else {
                self.asked.wait(&mut state);
                continue;
            };
            drop(state);
            // A panic of the host's leaves a frame that could not be filled.
            let filled = catch_unwind(AssertUnwindSafe(|| self.fill_one(ahead)));
            if filled.is_err() {
                tracing::error!("reading ahead panicked");
            }
            state = self.state.lock();
        }
    }

    fn fill_one(&self, ahead: Ahead) {
        let shared = self;
        let claim = ahead.claim;
        let filling = Filling { shared, claim };
        let Some(snapshot) = ahead.snapshot.upgrade() else {
            return;
        };
        if filling.has_memory() && filling.fill(&*snapshot, ahead.index).is_ok() {
            let lot = shared.memory.lot_of(claim.frame);
            filling.idle();
            // Frames that were never used are used in order: whoever comes to the next huge page finds
            // it there.
            shared.memory.provide_ahead(lot.end);
        }
    }
}

impl Filling<'_> {
    fn has_memory(&self) -> bool {
        let provided = self.shared.memory.provide(self.claim.frame);
        if let Err(error) = &provided {
            tracing::debug!(%error, "no memory for one more frame of blocks");
        }
        provided.is_ok()
    }

    /// Reads and checks part `index` of a snapshot. There is memory.
    fn fill(&self, snapshot: &dyn SnapshotMap, index: u64) -> Result<(), WindowError> {
        let storage = &*self.shared.storage;
        let first = index * FRAME_BLOCKS;
        let end = snapshot.size().saturating_sub(first * BLOCK_SIZE as u64);
        let blocks = end.div_ceil(BLOCK_SIZE as u64).min(FRAME_BLOCKS);
        let mut pieces: Vec<Piece> = Vec::new();
        snapshot
            .resolve(first, blocks, &mut pieces)
            .map_err(WindowError::Storage)?;
        let mut resolved = Resolved::default();
        let whole = (end / BLOCK_SIZE as u64).min(blocks);
        if !resolved.set(&pieces, blocks, whole, storage.geometry()) {
            return Err(WindowError::no_extents(first, blocks));
        }
        resolved.tail_bytes = (end % BLOCK_SIZE as u64) as usize;
        // SAFETY: there is memory (`has_memory`), and the frame is claimed: it is in no cage, and
        // whoever looks for it waits until the claim is over.
        let bytes = unsafe { self.shared.memory.bytes(self.claim.frame) };
        read_extents(storage, &resolved, bytes)
    }

    /// It has been filled, for the caller.
    fn pinned(self, shared: &Arc<Shared>) -> Pin {
        let frame = self.finish(1);
        let shared = Arc::clone(shared);
        Pin { shared, frame }
    }

    /// It has been filled, for nobody yet.
    fn idle(self) {
        self.finish(0);
    }

    fn finish(self, users: usize) -> usize {
        let filling = std::mem::ManuallyDrop::new(self);
        let frame = filling.claim.frame;
        filling.shared.state.lock().table.filled(frame, users);
        filling.shared.filled.notify_all();
        frame
    }
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        self.shared.state.lock().table.failed(self.claim);
        self.shared.filled.notify_all();
    }
}

impl Pin {
    /// The file that the frame can be mapped from, and the byte of it that block `block` of the frame
    /// is at.
    pub(crate) fn source(&self, block: u64) -> (BorrowedFd<'_>, u64) {
        let at = self.shared.memory.range(self.frame).start as u64 + block * BLOCK_SIZE as u64;
        (self.shared.memory.fd(), at)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.shared.state.lock().table.unpin(self.frame);
    }
}

#[cfg(test)]
mod tests;
