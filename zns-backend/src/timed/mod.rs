//! A device that takes as long as NAND would.
//!
//! [`TimedDevice`] stacks on any device: the one below keeps the data and the zone states, a model
//! of channels, dies, write buffer and zone management ([`Profile`]) says when each operation ends.
//! With [`Clock::Real`], callers wait until then; if the device below is slower than the model, it
//! shows. With [`Clock::Virtual`], nobody waits: [`TimedDevice::elapsed`] tells how long everything
//! would have taken, whatever the host's speed, and the same operations always take as long. A
//! virtual clock stands still between operations, so what callers compute costs nothing, and
//! operations of a queue overlap while those of synchronous calls do only if threads make them at
//! the same time.

mod argument;
mod nand;
mod profile;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::device::{Completion, DeviceQueue, MapSource, Request, ZoneInfo, ZonedDevice};
use crate::error::Result;
use crate::geometry::{Geometry, Lba, ZoneId};
use crate::queue::execute;
pub use argument::Timing;
use nand::{Nand, Range};
use profile::Nanos;
pub use profile::Profile;

/// The last stretch of a wait is spent awake: sleeping is good for some 50 us, not for less.
const AWAKE: Duration = Duration::from_micros(80);

/// Which time passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Callers wait.
    Real,
    /// Only [`TimedDevice::elapsed`] moves.
    Virtual,
}

/// A device with the times of a [`Profile`]. Clones are handles of the same device.
#[derive(Clone)]
pub struct TimedDevice(Arc<Inner>);

struct Inner {
    device: Arc<dyn ZonedDevice>,
    profile: Profile,
    clock: Clock,
    began: Instant,
    model: Mutex<Model>,
}

struct Model {
    nand: Nand,
    /// The virtual time.
    now: Nanos,
    tally: Tally,
}

/// Operations of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// How many.
    pub operations: u64,
    /// Bytes transferred; of resets those that were written, of finishes those left unwritten.
    pub bytes: u64,
    /// From the start to the end of each, added up: more than the time that has passed if they
    /// overlap.
    pub time: Duration,
}

impl Count {
    fn add(&mut self, bytes: u64, time: Nanos) {
        self.operations += 1;
        self.bytes += bytes;
        self.time += Duration::from_nanos(time);
    }
}

/// What a [`TimedDevice`] has carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Reads.
    pub reads: Count,
    /// Writes at the write pointer.
    pub writes: Count,
    /// Appends.
    pub appends: Count,
    /// Flushes.
    pub flushes: Count,
    /// Resets of zones.
    pub resets: Count,
    /// Zones finished.
    pub finishes: Count,
    /// Zones opened and closed explicitly.
    pub transitions: Count,
}

impl TimedDevice {
    /// Wraps `device`, on which nothing is under way.
    #[must_use]
    pub fn new(device: Arc<dyn ZonedDevice>, profile: Profile, clock: Clock) -> TimedDevice {
        TimedDevice(Arc::new(Inner {
            device,
            profile,
            clock,
            began: Instant::now(),
            model: Mutex::new(Model {
                nand: Nand::new(profile),
                now: 0,
                tally: Tally::default(),
            }),
        }))
    }

    /// Time since the device was made: as the clock has it.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        match self.0.clock {
            Clock::Real => self.0.began.elapsed(),
            Clock::Virtual => Duration::from_nanos(self.0.model.lock().now),
        }
    }

    /// What has been asked of the device since it was made, and how long that took.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.0.model.lock().tally
    }

    fn now(&self, model: &Model) -> Nanos {
        match self.0.clock {
            Clock::Virtual => model.now,
            Clock::Real => self.0.began.elapsed().as_nanos() as Nanos,
        }
    }

    /// When an operation on `bytes` bytes that starts now ends; it is counted where `count` says.
    fn plan(
        &self,
        count: impl FnOnce(&mut Tally) -> &mut Count,
        bytes: usize,
        end: impl FnOnce(&mut Nand, Nanos) -> Nanos,
    ) -> Nanos {
        let mut model = self.0.model.lock();
        let now = self.now(&model);
        let end = end(&mut model.nand, now);
        count(&mut model.tally).add(bytes as u64, end - now);
        end
    }

    /// Lets the time pass until `end`.
    fn pass(&self, end: Nanos) {
        match self.0.clock {
            Clock::Virtual => {
                let mut model = self.0.model.lock();
                model.now = model.now.max(end);
            }
            Clock::Real => {
                let end = Duration::from_nanos(end);
                let left = end.saturating_sub(self.0.began.elapsed());
                if left > AWAKE {
                    thread::sleep(left - AWAKE);
                }
                while self.0.began.elapsed() < end {
                    std::hint::spin_loop();
                }
            }
        }
    }

    fn range(&self, lba: Lba, bytes: usize) -> Range {
        let geometry = self.geometry();
        Range {
            zone: geometry.zone_of(lba).0,
            start: geometry.offset_of(lba) * u64::from(geometry.block_size),
            bytes: bytes as u64,
        }
    }

    /// Blocks written to a zone, as bytes; unknown if it cannot be reported.
    fn written(&self, zone: ZoneId) -> u64 {
        let report = self.0.device.report(zone, 1);
        let info = report.ok().and_then(|zones| zones.first().copied());
        info.map_or(0, |info| info.write_pointer) * u64::from(self.geometry().block_size)
    }

    /// When a request that starts now ends; `result` is what the device below said.
    fn plan_request(&self, shape: Shape, result: &Result<Lba>) -> Nanos {
        let Ok(lba) = result else {
            return self.now(&self.0.model.lock());
        };
        let range = |bytes| self.range(*lba, bytes);
        match shape {
            Shape::Read(bytes) => {
                self.plan(|t| &mut t.reads, bytes, |n, now| n.read(now, range(bytes)))
            }
            Shape::Write(bytes) => self.plan(
                |t| &mut t.writes,
                bytes,
                |n, now| n.write(now, range(bytes)),
            ),
            Shape::Append(bytes) => self.plan(
                |t| &mut t.appends,
                bytes,
                |n, now| n.append(now, range(bytes)),
            ),
            Shape::Flush => self.plan(|t| &mut t.flushes, 0, Nand::flush),
        }
    }

    fn timed(&self, shape: Shape, result: Result<Lba>) -> Result<Lba> {
        let end = self.plan_request(shape, &result);
        self.pass(end);
        result
    }
}

/// What a request does, without its data.
#[derive(Clone, Copy)]
enum Shape {
    Read(usize),
    Write(usize),
    Append(usize),
    Flush,
}

impl Shape {
    fn of(request: &Request, block_size: usize) -> Shape {
        match request {
            Request::Read { buffer, .. } => Shape::Read(buffer.len()),
            Request::Write { blocks, .. } => Shape::Write(*blocks as usize * block_size),
            Request::Append { blocks, .. } => Shape::Append(*blocks as usize * block_size),
            Request::Flush => Shape::Flush,
        }
    }
}

impl ZonedDevice for TimedDevice {
    fn geometry(&self) -> &Geometry {
        self.0.device.geometry()
    }

    fn report(&self, first: ZoneId, count: u32) -> Result<Vec<ZoneInfo>> {
        self.0.device.report(first, count)
    }

    fn read(&self, lba: Lba, buf: &mut [u8]) -> Result<()> {
        let result = self.0.device.read(lba, buf).map(|()| lba);
        self.timed(Shape::Read(buf.len()), result).map(drop)
    }

    fn read_all(&self, reads: &mut [(Lba, &mut [u8])]) -> Result<()> {
        self.0.device.read_all(reads)?;
        let end =
            |(lba, buf): &(Lba, &mut [u8])| self.plan_request(Shape::Read(buf.len()), &Ok(*lba));
        // They begin together, and the last to end is waited for.
        self.pass(reads.iter().map(end).max().unwrap_or(0));
        Ok(())
    }

    fn write(&self, lba: Lba, data: &[u8]) -> Result<()> {
        let result = self.0.device.write(lba, data).map(|()| lba);
        self.timed(Shape::Write(data.len()), result).map(drop)
    }

    /// Takes as long as any write: the write buffer of the model is safe against power cuts.
    fn write_durable(&self, lba: Lba, data: &[u8]) -> Result<()> {
        let result = self.0.device.write_durable(lba, data).map(|()| lba);
        self.timed(Shape::Write(data.len()), result).map(drop)
    }

    fn has_durable_writes(&self) -> bool {
        self.0.device.has_durable_writes()
    }

    fn append(&self, zone: ZoneId, data: &[u8]) -> Result<Lba> {
        let result = self.0.device.append(zone, data);
        self.timed(Shape::Append(data.len()), result)
    }

    fn reset(&self, zone: ZoneId) -> Result<()> {
        let written = self.written(zone);
        let capacity = self.geometry().zone_capacity_bytes();
        self.0.device.reset(zone)?;
        let reset = |nand: &mut Nand, now| nand.reset(now, zone.0, written, capacity);
        self.pass(self.plan(|t| &mut t.resets, written as usize, reset));
        Ok(())
    }

    fn finish(&self, zone: ZoneId) -> Result<()> {
        let left = self.geometry().zone_capacity_bytes() - self.written(zone);
        self.0.device.finish(zone)?;
        let finish = |nand: &mut Nand, now| nand.finish(now, zone.0, left);
        self.pass(self.plan(|t| &mut t.finishes, left as usize, finish));
        Ok(())
    }

    fn open(&self, zone: ZoneId) -> Result<()> {
        self.0.device.open(zone)?;
        self.pass(self.plan(|t| &mut t.transitions, 0, |nand, now| nand.transition(now)));
        Ok(())
    }

    fn close(&self, zone: ZoneId) -> Result<()> {
        self.0.device.close(zone)?;
        self.pass(self.plan(|t| &mut t.transitions, 0, |nand, now| nand.transition(now)));
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let result = self.0.device.flush().map(|()| Lba(0));
        self.timed(Shape::Flush, result).map(drop)
    }

    fn queue(&self, depth: u32) -> Result<Box<dyn DeviceQueue>> {
        Ok(Box::new(TimedQueue {
            device: self.clone(),
            depth: depth.max(1) as usize,
            state: Mutex::default(),
            submitted: Condvar::new(),
        }))
    }

    fn in_memory(&self) -> bool {
        self.0.device.in_memory()
    }

    /// Blocks can be mapped as below; reading them there takes no time of the model.
    fn map_source(&self, lba: Lba, blocks: u64) -> Result<Option<MapSource<'_>>> {
        self.0.device.map_source(lba, blocks)
    }

    fn describe(&self) -> String {
        let timing = Timing {
            profile: self.0.profile,
            clock: self.0.clock,
        };
        format!("{}{timing}", self.0.device.describe())
    }
}

/// A completion and when it comes; of two at one time, the one submitted first.
struct Pending {
    end: Nanos,
    number: u64,
    completion: Completion,
}

impl PartialEq for Pending {
    fn eq(&self, other: &Pending) -> bool {
        self.number == other.number
    }
}

impl Eq for Pending {}

impl PartialOrd for Pending {
    fn partial_cmp(&self, other: &Pending) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Pending {
    fn cmp(&self, other: &Pending) -> std::cmp::Ordering {
        (self.end, self.number).cmp(&(other.end, other.number))
    }
}

#[derive(Default)]
struct QueueState {
    running: BinaryHeap<Reverse<Pending>>,
    ended: Vec<Completion>,
    /// Submissions so far.
    number: u64,
}

/// Requests that overlap in the time of the model. The device below carries each out as it is
/// submitted.
struct TimedQueue {
    device: TimedDevice,
    depth: usize,
    state: Mutex<QueueState>,
    submitted: Condvar,
}

impl TimedQueue {
    /// The state with what has ended by now among the ended.
    fn state(&self) -> MutexGuard<'_, QueueState> {
        let mut state = self.state.lock();
        let now = self.device.now(&self.device.0.model.lock());
        while state.running.peek().is_some_and(|p| p.0.end <= now) {
            let ended = state.running.pop();
            state.ended.extend(ended.map(|p| p.0.completion));
        }
        state
    }
}

impl DeviceQueue for TimedQueue {
    fn submit(&self, token: u64, request: Request) -> Result<()> {
        let shape = Shape::of(&request, self.device.geometry().block_bytes());
        let mut state = self.state();
        while state.running.len() >= self.depth
            && let Some(first) = state.running.peek().map(|p| p.0.end)
        {
            drop(state);
            self.device.pass(first);
            state = self.state();
        }
        let completion = execute(&*self.device.0.device, token, request);
        let end = self.device.plan_request(shape, &completion.result);
        let number = state.number;
        state.number += 1;
        state.running.push(Reverse(Pending {
            end,
            number,
            completion,
        }));
        self.submitted.notify_all();
        Ok(())
    }

    fn wait(&self, min: usize, out: &mut Vec<Completion>) -> Result<()> {
        let mut taken = 0;
        let mut state = self.state();
        loop {
            taken += state.ended.len();
            out.append(&mut state.ended);
            if taken >= min {
                return Ok(());
            }
            if let Some(first) = state.running.peek().map(|p| p.0.end) {
                drop(state);
                self.device.pass(first);
            } else {
                self.submitted.wait(&mut state);
                drop(state);
            }
            state = self.state();
        }
    }
}
