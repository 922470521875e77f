//! A device queue over libxnvme's.
//!
//! The library's queues belong to one thread at a time and never block: everything here happens under
//! one lock, and whoever waits polls, with the lock let go between attempts. A submission polls once
//! too, because engines that gather commands hand them over only then.
//!
//! Invariant: a slot is free, or its request waits in a lane ([`crate::lanes`]), is about to start, or
//! is in the library's hands. Memory of a request stays with its slot until the library is done.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::XnvmeDevice;
use super::library::{self, DEPTH_MAX};
use super::outcome::{is_passing, of_queued};
use crate::buffer::DmaBuffer;
use crate::device::{Completion, DeviceQueue, Request};
use crate::error::{Error, Result};
use crate::lanes::{Lanes, Turn};
use crate::nvme::command::{Direction, Failure};
use crate::nvme::request::Work;
use crate::ring::{Ended, Refused};

/// A waiting thread polls without pause for so long, longer than reads and short writes take on NAND,
/// then with pauses.
const AWAKE: Duration = Duration::from_micros(300);
const PAUSE: Duration = Duration::from_micros(50);

struct InFlight {
    token: u64,
    work: Work,
    turn: Turn,
    /// Memory of the device that stands for the request's own during a command.
    scratch: Option<DmaBuffer>,
}

struct State {
    queue: library::Queue,
    requests: Vec<Option<InFlight>>,
    free: Vec<u32>,
    lanes: Lanes,
    /// Slots of which the turn has come.
    starting: VecDeque<u32>,
    ended: Vec<library::Ended>,
    ready: VecDeque<Completion>,
}

impl State {
    fn is_idle(&self) -> bool {
        self.free.len() == self.requests.len()
    }
}

pub(super) struct XnvmeQueue {
    state: Mutex<State>,
    /// Something was submitted.
    submitted: Condvar,
    device: XnvmeDevice,
}

/// Paces somebody who polls.
struct Patience {
    since: Instant,
}

impl Patience {
    fn new() -> Patience {
        Patience {
            since: Instant::now(),
        }
    }

    /// Lets others have the lock, and perhaps the processor.
    fn pause(&self, state: &mut MutexGuard<'_, State>) {
        MutexGuard::unlocked(state, || {
            if self.since.elapsed() < AWAKE {
                thread::yield_now();
            } else {
                thread::sleep(PAUSE);
            }
        });
    }
}

impl XnvmeQueue {
    /// # Errors
    /// When the library has no such queue to give.
    pub(super) fn new(device: &XnvmeDevice, depth: u32) -> io::Result<XnvmeQueue> {
        let depth = depth.clamp(1, DEPTH_MAX);
        let queue = library::Queue::new(Arc::clone(device.handle()), depth)?;
        Ok(XnvmeQueue {
            state: Mutex::new(State {
                queue,
                requests: (0..depth).map(|_| None).collect(),
                free: (0..depth).rev().collect(),
                lanes: Lanes::default(),
                starting: VecDeque::new(),
                ended: Vec::with_capacity(depth as usize),
                ready: VecDeque::new(),
            }),
            submitted: Condvar::new(),
            device: device.clone(),
        })
    }

    /// Hands the next command of the request in `slot` to the library.
    fn hand_over(&self, state: &mut State, slot: u32) -> io::Result<()> {
        let namespace = self.device.namespace();
        let Some(request) = &mut state.requests[slot as usize] else {
            return Ok(());
        };
        let (command, span) = request.work.next(namespace);
        let len = span.len as usize;
        request.scratch = None;
        let mut address = span.address;
        if len > 0
            && span.slot.is_none()
            && let Some(mut memory) = namespace.channel.scratch(len)?
        {
            if command.direction() == Direction::ToController {
                // SAFETY: a span is valid for its length, and the request owns it.
                memory.copy_from_slice(unsafe { std::slice::from_raw_parts(address, len) });
            }
            address = memory.as_mut_ptr();
            request.scratch = Some(memory);
        }
        // SAFETY: the memory belongs to the request or is its scratch, which stay in the slot until the
        // library has told the end of the command, or for ever if it never does (see `drop`); it is the
        // device's own if that takes no other. The slot has no other command in flight.
        unsafe { state.queue.submit(slot, command, address, len) }
    }

    /// Starts what can start.
    fn start(&self, state: &mut State) {
        while let Some(slot) = state.starting.pop_front() {
            match self.hand_over(state, slot) {
                Ok(()) => {}
                Err(error) if is_passing(&error) => {
                    state.starting.push_front(slot);
                    return;
                }
                Err(error) => self.end(state, slot, |work| {
                    Err(work.failed(self.device.namespace(), Failure::Host(error)))
                }),
            }
        }
    }

    /// Takes the request out of `slot`, and puts it back to be continued or ends it, as `judge` says.
    fn end(
        &self,
        state: &mut State,
        slot: u32,
        judge: impl FnOnce(Work) -> std::result::Result<Work, Ended>,
    ) {
        let Some(InFlight {
            token, work, turn, ..
        }) = state.requests[slot as usize].take()
        else {
            return;
        };
        match judge(work) {
            Ok(work) => {
                state.requests[slot as usize] = Some(InFlight {
                    token,
                    work,
                    turn,
                    scratch: None,
                });
                state.starting.push_back(slot);
            }
            Err(Ended { result, buffer }) => {
                state.ready.push_back(Completion {
                    token,
                    result,
                    buffer,
                });
                state.free.push(slot);
                let next = state.lanes.leave(turn);
                state.starting.extend(next);
            }
        }
    }

    /// What the end of a command means for its request.
    fn advance(&self, state: &mut State, command: library::Ended) {
        let namespace = self.device.namespace();
        let engine = namespace.channel.handle.asynchronous();
        let request = state.requests[command.slot as usize].as_mut();
        let scratch = request.and_then(|request| request.scratch.take());
        self.end(state, command.slot, |mut work| {
            match of_queued(engine, command.field) {
                Ok(()) => {
                    if let Some(scratch) = scratch {
                        work.fill(namespace, &scratch);
                    }
                    work.succeeded(namespace, command.result)
                }
                Err(Failure::Host(error)) if is_passing(&error) => Ok(work),
                Err(failure) => Err(work.failed(namespace, failure)),
            }
        });
    }

    /// Takes what has ended and starts what can start.
    fn poll(&self, state: &mut State) -> Result<()> {
        self.start(state);
        let mut ended = std::mem::take(&mut state.ended);
        let polled = state.queue.poll(&mut ended);
        for command in ended.drain(..) {
            self.advance(state, command);
        }
        state.ended = ended;
        self.start(state);
        polled.map_err(|source| Error::io("polling a queue of libxnvme", source))
    }
}

impl DeviceQueue for XnvmeQueue {
    fn submit(&self, token: u64, request: Request) -> Result<()> {
        let accepted = Work::accept(self.device.namespace(), request);
        let mut state = self.state.lock();
        match accepted {
            Err(Refused { error, buffer }) => state.ready.push_back(Completion {
                token,
                result: Err(error),
                buffer,
            }),
            Ok(work) => {
                let patience = Patience::new();
                let slot = loop {
                    if let Some(slot) = state.free.pop() {
                        break slot;
                    }
                    self.poll(&mut state)?;
                    if state.free.is_empty() {
                        patience.pause(&mut state);
                    }
                };
                let turn = work.turn(self.device.namespace());
                state.requests[slot as usize] = Some(InFlight {
                    token,
                    work,
                    turn,
                    scratch: None,
                });
                if state.lanes.enter(slot, turn) {
                    state.starting.push_back(slot);
                }
                self.poll(&mut state)?;
            }
        }
        self.submitted.notify_all();
        Ok(())
    }

    fn wait(&self, min: usize, out: &mut Vec<Completion>) -> Result<()> {
        let mut taken = 0;
        let patience = Patience::new();
        let mut state = self.state.lock();
        loop {
            self.poll(&mut state)?;
            taken += state.ready.len();
            out.extend(state.ready.drain(..));
            if taken >= min {
                return Ok(());
            }
            if state.is_idle() {
                self.submitted.wait(&mut state);
            } else {
                patience.pause(&mut state);
            }
        }
    }
}

impl Drop for XnvmeQueue {
    fn drop(&mut self) {
        let patience = Patience::new();
        let mut state = self.state.lock();
        while !state.is_idle() {
            if self.poll(&mut state).is_err() {
                // The library may still use the memory: better lost than given away.
                std::mem::forget(std::mem::take(&mut state.requests));
                state.queue.abandon();
                return;
            }
            patience.pause(&mut state);
        }
    }
}
