//! Which frame holds what, and which may be taken for something else. No I/O, no memory: the state
//! behind the lock of [`super::Frames`].
//!
//! A frame is free, is being filled for its one claimant, waits to be filled ahead of need, or is
//! ready: then any number of cages may have it mapped (`users`), and with none it is idle. A frame of
//! a snapshot that was forgotten (`of` is none) holds nothing that can be found; it is free as soon as
//! nobody uses it.
//!
//! Of the idle frames the one goes first that has been so for the longest time. Where a snapshot is
//! larger than all frames, those of it that were used once go before them, but for every 32nd: going
//! through such a file again and again would otherwise find nothing, and so finds what was read first.
//! (The bimodal insertion of Qureshi and others, Adaptive Insertion Policies for High Performance
//! Caching, ISCA 2007; which snapshots need it is known from their size.)

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Weak};

use crate::request::SnapshotMap;

/// Frames that keep their memory when nothing is in them.
const KEPT_FRAMES: usize = 16;
/// Frames that may wait to be filled ahead of need.
const QUEUED_MAX: usize = 64;
/// Of so many frames of a large snapshot one is kept though it was used once: what is used changes.
const KEPT_ONE_IN: u64 = 32;

/// A part of a snapshot, as long as a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Which snapshot: its address, which no other has while the table knows it.
    file: usize,
    /// Counted from its start.
    pub(super) index: u64,
}

impl Part {
    pub(super) fn of(snapshot: &Arc<dyn SnapshotMap>, index: u64) -> Part {
        let file = Arc::as_ptr(snapshot).cast::<()>() as usize;
        Part { file, index }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// To be filled ahead of need.
    Queued,
    Filling,
    Ready,
}

struct Frame {
    of: Option<Part>,
    state: State,
    users: usize,
    /// It was used since it was filled, and again.
    used: bool,
    again: bool,
    /// Its place among the idle ones.
    idle_at: i64,
}

/// What the table has of a snapshot. The reference keeps its address from being used again.
struct Contents {
    snapshot: Weak<dyn SnapshotMap>,
    /// It is larger than what there is for it.
    large: bool,
    frames: HashMap<u64, usize>,
}

/// A frame that whoever has this is to fill.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    pub(super) frame: usize,
}

/// What the table knows of a part.
pub(super) enum Found {
    /// It is in this frame, which has one more user now.
    Ready(usize),
    /// Somebody fills a frame with it.
    Filling,
    /// The caller is to fill this frame with it.
    Claimed(Claim),
    /// It is nowhere, and no frame can be had.
    Nowhere,
}

/// Something to fill ahead of need.
pub(super) struct Ahead {
    pub(super) snapshot: Weak<dyn SnapshotMap>,
    pub(super) index: u64,
    pub(super) claim: Claim,
}

pub(super) struct Table {
    frames: Vec<Frame>,
    frames_max: usize,
    free: Vec<usize>,
    /// By their places: the first goes first.
    idle: BTreeMap<i64, usize>,
    /// Frames that became idle so far, those to go first and the others.
    idled: (u64, u64),
    files: HashMap<usize, Contents>,
    queue: VecDeque<(Part, usize)>,
}

impl Table {
    pub(super) fn new(frames_max: usize) -> Table {
        Table {
            frames: Vec::new(),
            frames_max,
            free: Vec::new(),
            idle: BTreeMap::new(),
            idled: (0, 0),
            files: HashMap::new(),
            queue: VecDeque::new(),
        }
    }

    /// Looks for a part, for somebody who needs it now.
    pub(super) fn find(&mut self, snapshot: &Arc<dyn SnapshotMap>, index: u64) -> Found {
        let part = Part::of(snapshot, index);
        let Some(frame) = self.frame_of(part) else {
            return match self.claim(snapshot, part) {
                Some(claim) => Found::Claimed(claim),
                None => Found::Nowhere,
            };
        };
        match self.frames[frame].state {
            State::Ready => {
                let found = &mut self.frames[frame];
                if found.users == 0 {
                    self.idle.remove(&found.idle_at);
                }
                found.again |= found.used;
                found.used = true;
                found.users += 1;
                Found::Ready(frame)
            }
            State::Queued => {
                // It is needed before its turn.
                self.queue.retain(|(_, queued)| *queued != frame);
                self.frames[frame].state = State::Filling;
                Found::Claimed(Claim { frame })
            }
            State::Filling | State::Free => Found::Filling,
        }
    }

    /// Queues a part that is nowhere yet. Tells whether there is one more in the queue.
    pub(super) fn ask_for(&mut self, snapshot: &Arc<dyn SnapshotMap>, index: u64) -> bool {
        let part = Part::of(snapshot, index);
        if self.frame_of(part).is_some() || self.queue.len() >= QUEUED_MAX {
            return false;
        }
        let Some(claim) = self.claim(snapshot, part) else {
            return false;
        };
        self.frames[claim.frame].state = State::Queued;
        self.queue.push_back((part, claim.frame));
        true
    }

    /// The next part to fill ahead of need.
    pub(super) fn next_ahead(&mut self) -> Option<Ahead> {
        let (part, frame) = self.queue.pop_front()?;
        // Parts of what is forgotten leave the queue with it.
        let contents = self.files.get(&part.file)?;
        self.frames[frame].state = State::Filling;
        Some(Ahead {
            snapshot: Weak::clone(&contents.snapshot),
            index: part.index,
            claim: Claim { frame },
        })
    }

    /// A claimed frame has been filled, for so many users.
    pub(super) fn filled(&mut self, frame: usize, users: usize) {
        let filled = &mut self.frames[frame];
        filled.state = State::Ready;
        filled.users = users;
        filled.used = users > 0;
        filled.again = false;
        if users == 0 {
            self.rest(frame);
        }
    }

    /// A claimed frame could not be filled.
    pub(super) fn failed(&mut self, claim: Claim) {
        self.detach(claim.frame);
        self.release(claim.frame);
    }

    /// A frame has one user less.
    pub(super) fn unpin(&mut self, frame: usize) {
        self.frames[frame].users -= 1;
        if self.frames[frame].users == 0 {
            self.rest(frame);
        }
    }

    /// Forgets what is held of a snapshot. Returns the frames whose memory is to be given back, of
    /// those that have some, in ascending order; they are free when that is
    /// [done](Table::given_back).
    pub(super) fn forget(
        &mut self,
        snapshot: &Arc<dyn SnapshotMap>,
        provided: impl Fn(usize) -> bool,
    ) -> Vec<usize> {
        let file = Part::of(snapshot, 0).file;
        let Some(contents) = self.files.remove(&file) else {
            return Vec::new();
        };
        self.queue.retain(|(part, _)| part.file != file);
        for frame in contents.frames.into_values() {
            let forgotten = &mut self.frames[frame];
            forgotten.of = None;
            match forgotten.state {
                State::Ready if forgotten.users == 0 => {
                    self.idle.remove(&forgotten.idle_at);
                    self.release(frame);
                }
                State::Queued => self.release(frame),
                _ => {}
            }
        }
        // The first ones are kept, and used first: what memory there is lies together.
        self.free.sort_unstable();
        // Those that were provided with their neighbours and never used come after all others.
        let never_used = self.frames.len()..self.frames_max;
        let mut kept = never_used.take_while(|frame| provided(*frame)).count();
        let mut surplus = |frame: &mut usize| {
            kept += usize::from(provided(*frame));
            provided(*frame) && kept > KEPT_FRAMES
        };
        let given_back = self.free.extract_if(.., |frame| surplus(frame)).collect();
        self.free.reverse();
        given_back
    }

    /// The memory of frames that [`Table::forget`] named has been given back, or kept.
    pub(super) fn given_back(&mut self, frames: Range<usize>) {
        self.free.splice(..0, frames.rev());
    }

    fn frame_of(&self, part: Part) -> Option<usize> {
        let contents = self.files.get(&part.file)?;
        contents.frames.get(&part.index).copied()
    }

    /// A frame to be filled with a part: a free one, a new one, or the one that is idle longest.
    fn claim(&mut self, snapshot: &Arc<dyn SnapshotMap>, part: Part) -> Option<Claim> {
        let frame = match self.free.pop() {
            Some(frame) => frame,
            None if self.frames.len() < self.frames_max => {
                self.frames.push(Frame {
                    of: None,
                    state: State::Free,
                    users: 0,
                    used: false,
                    again: false,
                    idle_at: 0,
                });
                self.frames.len() - 1
            }
            None => {
                let (_, frame) = self.idle.pop_first()?;
                self.detach(frame);
                frame
            }
        };
        let contents = self.files.entry(part.file).or_insert_with(|| Contents {
            snapshot: Arc::downgrade(snapshot),
            large: is_large(&**snapshot, self.frames_max),
            frames: HashMap::new(),
        });
        contents.frames.insert(part.index, frame);
        let claimed = &mut self.frames[frame];
        claimed.of = Some(part);
        claimed.state = State::Filling;
        Some(Claim { frame })
    }

    /// What was in a frame cannot be found any more.
    fn detach(&mut self, frame: usize) {
        let Some(part) = self.frames[frame].of.take() else {
            return;
        };
        if let Some(contents) = self.files.get_mut(&part.file) {
            contents.frames.remove(&part.index);
            if contents.frames.is_empty() {
                self.files.remove(&part.file);
            }
        }
    }

    /// Nobody uses a frame any more that is ready.
    fn rest(&mut self, frame: usize) {
        let Some(part) = self.frames[frame].of else {
            return self.release(frame);
        };
        let large = self.files.get(&part.file).is_some_and(|file| file.large);
        let resting = &mut self.frames[frame];
        let (first, last) = &mut self.idled;
        resting.idle_at = if large && resting.used && !resting.again {
            *first += 1;
            match first.is_multiple_of(KEPT_ONE_IN) {
                false => -first.cast_signed(),
                true => next(last),
            }
        } else {
            next(last)
        };
        self.idle.insert(resting.idle_at, frame);
    }

    fn release(&mut self, frame: usize) {
        self.frames[frame].state = State::Free;
        self.free.push(frame);
    }
}

fn next(count: &mut u64) -> i64 {
    *count += 1;
    count.cast_signed()
}

/// Whether so many frames are too few for a snapshot, as others and what is read ahead need some.
pub(super) fn is_large(snapshot: &dyn SnapshotMap, frames: usize) -> bool {
    snapshot.size().div_ceil(super::FRAME_BYTES as u64) > (frames / 4 * 3) as u64
}
