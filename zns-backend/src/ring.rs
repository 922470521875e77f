//! A device queue on io_uring, for any device whose requests are ring entries.
//!
//! Submissions take the submission lock, completions the completion lock; a waiter sleeps in the
//! kernel with only the latter, so both sides run at the same time. A request the device refuses
//! becomes a no-op in the ring, so that it wakes a sleeping waiter like any other completion.
//!
//! A device that does not keep the order of writes itself names the turn of each request
//! ([`Engine::turn`]), and requests of a zone run in lanes ([`crate::lanes`]).
//!
//! Invariant: a slot is in the free list, or its request waits in a lane, is in the ring, or is in
//! the hands of the one thread that moves it. Memory of a request stays with its slot until the
//! kernel is done.

use std::collections::VecDeque;
use std::io;

use io_uring::{IoUring, Submitter, cqueue, opcode, squeue};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::buffer::DmaBuffer;
use crate::device::{Completion, DeviceQueue, Request};
use crate::error::{Error, Result};
use crate::geometry::Lba;
use crate::lanes::{Lanes, Turn};

/// Deepest queue there is; a request for more gets this.
pub(crate) const DEPTH_MAX: u32 = 4096;

/// A request that the device refuses, with the buffer of a read.
pub(crate) struct Refused {
    pub(crate) error: Error,
    pub(crate) buffer: Option<DmaBuffer>,
}

/// The end of a request: what [`Completion`] says, without its token.
pub(crate) struct Ended {
    pub(crate) result: Result<Lba>,
    pub(crate) buffer: Option<DmaBuffer>,
}

/// What a device adds to the ring: how a request becomes entries, and what their results mean.
pub(crate) trait Engine: Send + Sync {
    /// Kind of submission entry.
    type Sqe: squeue::EntryMarker;
    /// Kind of completion entry.
    type Cqe: cqueue::EntryMarker;
    /// An accepted request, with its progress and its memory.
    type Work: Send;

    /// Registers files and buffers with a new ring.
    ///
    /// # Errors
    /// Why this ring is of no use.
    fn attach(&mut self, submitter: &Submitter<'_>) -> io::Result<()>;

    /// Decides on a request.
    fn accept(&self, request: Request) -> std::result::Result<Self::Work, Refused>;

    /// When it may run.
    fn turn(&self, work: &Self::Work) -> Turn;

    /// The entry for what is left of it. The memory it names belongs to `work`.
    fn entry(&self, work: &mut Self::Work) -> Self::Sqe;

    /// What a result means: more to do, or the end.
    fn advance(
        &self,
        work: Self::Work,
        event: &Self::Cqe,
    ) -> std::result::Result<Self::Work, Ended>;
}

enum Job<W> {
    Run(W),
    Refused(Refused),
}

struct InFlight<W> {
    token: u64,
    job: Job<W>,
}

struct Slots<W> {
    requests: Vec<Option<InFlight<W>>>,
    free: Vec<u32>,
    lanes: Lanes,
}

pub(crate) struct RingQueue<E: Engine> {
    ring: IoUring<E::Sqe, E::Cqe>,
    /// Held while an entry is pushed and handed to the kernel.
    submission: Mutex<()>,
    /// Held while completions are taken and while waiting for one; holds those taken already.
    completion: Mutex<VecDeque<Completion>>,
    slots: Mutex<Slots<E::Work>>,
    /// Belongs to `slots`: some became free, or the completion lock did.
    freed: Condvar,
    /// Dropped after the ring: it owns the memory that is registered there.
    engine: E,
}

/// The holder of the completion lock. Letting go of it wakes submitters that found no slot, so that
/// one of them can take completions in turn.
struct Taker<'a, E: Engine> {
    queue: &'a RingQueue<E>,
    ready: Option<MutexGuard<'a, VecDeque<Completion>>>,
}

impl<E: Engine> Taker<'_, E> {
    fn ready(&mut self) -> &mut VecDeque<Completion> {
        self.ready.as_mut().expect("held until dropped")
    }
}

impl<E: Engine> Drop for Taker<'_, E> {
    fn drop(&mut self) {
        if let Some(ready) = self.ready.take() {
            MutexGuard::unlock_fair(ready);
        }
        let _slots = self.queue.slots.lock();
        self.queue.freed.notify_all();
    }
}

impl<E: Engine> RingQueue<E> {
    /// A queue of the given depth.
    ///
    /// # Errors
    /// When the host has no io_uring for us, or not the kind that the engine needs.
    pub(crate) fn new(mut engine: E, depth: u32) -> io::Result<RingQueue<E>> {
        let depth = depth.clamp(1, DEPTH_MAX);
        let ring = IoUring::builder().build(depth)?;
        engine.attach(&ring.submitter())?;
        Ok(RingQueue {
            ring,
            submission: Mutex::new(()),
            completion: Mutex::new(VecDeque::new()),
            slots: Mutex::new(Slots {
                requests: (0..depth).map(|_| None).collect(),
                free: (0..depth).rev().collect(),
                lanes: Lanes::default(),
            }),
            freed: Condvar::new(),
            engine,
        })
    }

    fn turn(&self, job: &Job<E::Work>) -> Turn {
        match job {
            Job::Run(work) => self.engine.turn(work),
            Job::Refused(_) => Turn::Now,
        }
    }

    /// Hands the request in `slot` to the kernel.
    fn start(&self, slot: u32, mut request: InFlight<E::Work>) -> Result<()> {
        let mut entry = match &mut request.job {
            Job::Run(work) => self.engine.entry(work),
            Job::Refused(_) => opcode::Nop::new().build().into(),
        };
        squeue::EntryMarker::set_user_data(&mut entry, u64::from(slot));
        self.slots.lock().requests[slot as usize] = Some(request);
        let _submission = self.submission.lock();
        loop {
            // SAFETY: the submission lock makes this the only user of the submission side; the
            // memory the entry names belongs to the request in its slot until it completes.
            let pushed = unsafe { self.ring.submission_shared().push(&entry) };
            match self.ring.submit() {
                Ok(_) if pushed.is_ok() => return Ok(()),
                Ok(_) => {}
                Err(error) if is_passing(&error) => std::thread::yield_now(),
                Err(error) => return Err(Error::io("submitting to io_uring", error)),
            }
            if pushed.is_ok() {
                return self.hand_over();
            }
        }
    }

    /// Tries until the kernel has taken everything that was pushed.
    fn hand_over(&self) -> Result<()> {
        loop {
            match self.ring.submit() {
                Ok(_) => return Ok(()),
                Err(error) if is_passing(&error) => std::thread::yield_now(),
                Err(error) => return Err(Error::io("submitting to io_uring", error)),
            }
        }
    }

    /// Starts what waited in a lane.
    fn start_waiting(&self, slot: u32) -> Result<()> {
        let request = self.slots.lock().requests[slot as usize].take();
        request.map_or(Ok(()), |request| self.start(slot, request))
    }

    /// A free slot, waiting for a completion if there is none.
    ///
    /// Never blocks on the completion lock: its holder may sleep until something is submitted.
    fn take_slot(&self) -> Result<u32> {
        let mut slots = self.slots.lock();
        loop {
            if let Some(slot) = slots.free.pop() {
                return Ok(slot);
            }
            let Some(ready) = self.completion.try_lock() else {
                // Whoever takes completions frees slots, and says so here when it stops.
                self.freed.wait(&mut slots);
                continue;
            };
            drop(slots);
            let mut taker = Taker {
                queue: self,
                ready: Some(ready),
            };
            self.reap(taker.ready())?;
            // All slots are taken, so a completion is there or on its way.
            if self.slots.lock().free.is_empty() {
                self.sleep()?;
                self.reap(taker.ready())?;
            }
            drop(taker);
            slots = self.slots.lock();
        }
    }

    /// Blocks until the completion ring holds something. The caller has the completion lock.
    fn sleep(&self) -> Result<()> {
        /// IORING_ENTER_GETEVENTS
        const GET_EVENTS: u32 = 1;
        // SAFETY: asks for events only: nothing is submitted and no argument memory is passed.
        match unsafe {
            self.ring
                .submitter()
                .enter::<libc::sigset_t>(0, 1, GET_EVENTS, None)
        } {
            Ok(_) => Ok(()),
            Err(error) if is_passing(&error) => Ok(()),
            Err(error) => Err(Error::io("waiting for io_uring", error)),
        }
    }

    /// Takes everything out of the completion ring. The caller has the completion lock.
    fn reap(&self, ready: &mut VecDeque<Completion>) -> Result<()> {
        loop {
            // SAFETY: the completion lock makes this the only user of the completion side.
            let next = unsafe { self.ring.completion_shared().next() };
            let Some(event) = next else { return Ok(()) };
            let slot = cqueue::EntryMarker::user_data(&event) as u32;
            let Some(request) = self.slots.lock().requests[slot as usize].take() else {
                continue;
            };
            let turn = self.turn(&request.job);
            let token = request.token;
            match self.advance(request, &event) {
                Ok(unfinished) => self.start(slot, unfinished)?,
                Err(Ended { result, buffer }) => {
                    ready.push_back(Completion {
                        token,
                        result,
                        buffer,
                    });
                    for next in self.release(slot, turn) {
                        self.start_waiting(next)?;
                    }
                }
            }
        }
    }

    fn advance(
        &self,
        request: InFlight<E::Work>,
        event: &E::Cqe,
    ) -> std::result::Result<InFlight<E::Work>, Ended> {
        let token = request.token;
        match request.job {
            Job::Run(work) => self.engine.advance(work, event).map(|work| InFlight {
                token,
                job: Job::Run(work),
            }),
            Job::Refused(Refused { error, buffer }) => Err(Ended {
                result: Err(error),
                buffer,
            }),
        }
    }

    /// Frees a slot; answers those whose turn has come by that.
    fn release(&self, slot: u32, turn: Turn) -> Vec<u32> {
        let mut slots = self.slots.lock();
        slots.free.push(slot);
        self.freed.notify_one();
        slots.lanes.leave(turn)
    }

    /// Whether a new request may start; if not it waits in its slot.
    fn enter_lane(
        &self,
        slot: u32,
        request: InFlight<E::Work>,
        turn: Turn,
    ) -> Option<InFlight<E::Work>> {
        if turn == Turn::Now {
            return Some(request);
        }
        let mut slots = self.slots.lock();
        if slots.lanes.enter(slot, turn) {
            return Some(request);
        }
        slots.requests[slot as usize] = Some(request);
        None
    }

    fn in_flight(&self) -> usize {
        let slots = self.slots.lock();
        slots.requests.len() - slots.free.len()
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
    )
}

impl<E: Engine> DeviceQueue for RingQueue<E> {
    fn submit(&self, token: u64, request: Request) -> Result<()> {
        let slot = self.take_slot()?;
        let job = match self.engine.accept(request) {
            Ok(work) => Job::Run(work),
            Err(refused) => Job::Refused(refused),
        };
        let turn = self.turn(&job);
        match self.enter_lane(slot, InFlight { token, job }, turn) {
            Some(request) => self.start(slot, request),
            None => Ok(()),
        }
    }

    fn wait(&self, min: usize, out: &mut Vec<Completion>) -> Result<()> {
        let mut taken = 0;
        loop {
            let lock = match min {
                // Somebody asleep in there takes what arrives; with nothing asked for, that is that.
                0 => self.completion.try_lock(),
                _ => Some(self.completion.lock()),
            };
            let Some(ready) = lock else { return Ok(()) };
            let mut taker = Taker {
                queue: self,
                ready: Some(ready),
            };
            self.reap(taker.ready())?;
            if taker.ready().is_empty() && taken < min {
                self.sleep()?;
                self.reap(taker.ready())?;
            }
            taken += taker.ready().len();
            out.extend(taker.ready().drain(..));
            drop(taker);
            if taken >= min {
                return Ok(());
            }
        }
    }
}

impl<E: Engine> Drop for RingQueue<E> {
    fn drop(&mut self) {
        let mut ready = VecDeque::new();
        while self.in_flight() > 0 {
            if self.sleep().and_then(|()| self.reap(&mut ready)).is_err() {
                // The kernel may still use the buffers: better lost than given away.
                std::mem::forget(std::mem::take(&mut self.slots.lock().requests));
                return;
            }
        }
    }
}
