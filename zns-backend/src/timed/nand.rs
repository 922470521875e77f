//! When operations end on a NAND device: who waits for which part of it.
//!
//! A zone is striped over all dies in units that a die programs at a time. A write is done when its
//! data is in the write buffer, which is safe against power cuts; units that are complete go over
//! their channel to their die and leave the buffer when they are programmed, so a write waits when
//! the buffer is full of what the dies have not taken. A read waits for its die and its channel,
//! suspends a program there, and finds what is still in the buffer without them. Appends take the
//! controller for longer than writes.
//!
//! Left out: wear, errors, thermal limits, the time a suspended program spends longer in the buffer,
//! and units left incomplete for ever (they stay in the buffer, as on a device with a capacitor).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::profile::{Nanos, Profile};

#[derive(Clone, Copy, Default)]
struct Die {
    /// When it has programmed all it was given.
    program_end: Nanos,
    /// When it has read all it was asked for.
    read_end: Nanos,
}

/// A bus that carries one transfer at a time, each at the first gap from when its data is ready.
#[derive(Clone, Default)]
struct Channel {
    /// Transfers, from start to end.
    busy: BTreeMap<Nanos, Nanos>,
}

impl Channel {
    /// Takes `time` at or after `ready`, and returns the end. Nothing is asked for before `now`
    /// any more.
    fn carry(&mut self, now: Nanos, ready: Nanos, time: Nanos) -> Nanos {
        while let Some(first) = self.busy.first_entry()
            && *first.get() <= now
        {
            first.remove();
        }
        let before = self.busy.range(..=ready).next_back();
        let mut start = before.map_or(ready, |(_, end)| ready.max(*end));
        for (next, end) in self.busy.range(start..) {
            if start + time <= *next {
                break;
            }
            start = *end;
        }
        self.busy.insert(start, start + time);
        start + time
    }
}

/// A unit with data in the buffer.
#[derive(Clone, Copy)]
struct Buffered {
    bytes: u64,
    /// When it is programmed; `None` while it is incomplete.
    leaves: Option<Nanos>,
}

/// A part of a zone: bytes from its start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) zone: u32,
    pub(super) start: u64,
    pub(super) bytes: u64,
}

/// The state of a modelled device at times that never run backwards by more than a queue's depth.
pub(super) struct Nand {
    profile: Profile,
    controller_free: Nanos,
    channels: Vec<Channel>,
    dies: Vec<Die>,
    /// Bytes in the write buffer.
    buffered: u64,
    /// When complete units leave the buffer: time, zone, unit.
    leaving: BinaryHeap<Reverse<(Nanos, u32, u64)>>,
    /// What is in the buffer, by zone and unit.
    units: BTreeMap<(u32, u64), Buffered>,
}

impl Nand {
    pub(super) fn new(profile: Profile) -> Nand {
        Nand {
            profile,
            controller_free: 0,
            channels: vec![Channel::default(); profile.channels as usize],
            dies: vec![Die::default(); profile.dies() as usize],
            buffered: 0,
            leaving: BinaryHeap::new(),
            units: BTreeMap::new(),
        }
    }

    /// The die of a unit: zones begin on different ones.
    fn die_of(&self, zone: u32, unit: u64) -> usize {
        ((u64::from(zone).wrapping_mul(7) + unit) % u64::from(self.profile.dies())) as usize
    }

    fn channel_of(&self, die: usize) -> usize {
        die % self.profile.channels as usize
    }

    /// Takes `time` of the controller from `now` on, and returns when it is done with it.
    fn controller(&mut self, now: Nanos, time: Nanos) -> Nanos {
        self.controller_free = self.controller_free.max(now) + time;
        self.controller_free
    }

    /// Forgets units that have left the buffer by `now`.
    fn drain(&mut self, now: Nanos) {
        while let Some(Reverse((end, zone, unit))) = self.leaving.peek().copied() {
            if end > now {
                return;
            }
            self.leaving.pop();
            self.drop_unit((zone, unit), Some(end));
        }
    }

    /// Takes a unit out of the buffer if that is its state: a zone that was reset may have written
    /// it again.
    fn drop_unit(&mut self, key: (u32, u64), leaves: Option<Nanos>) {
        if self
            .units
            .get(&key)
            .is_some_and(|unit| unit.leaves == leaves)
            && let Some(unit) = self.units.remove(&key)
        {
            self.buffered -= unit.bytes;
        }
    }

    /// When `bytes` more fit into the buffer.
    fn room(&mut self, mut now: Nanos, bytes: u64) -> Nanos {
        self.drain(now);
        while self.buffered + bytes > self.profile.buffer_bytes {
            // Incomplete units alone never fill it: there is one for each open zone.
            let Some(Reverse((end, ..))) = self.leaving.peek().copied() else {
                return now;
            };
            now = now.max(end);
            self.drain(now);
        }
        now
    }

    /// When a write that starts at `now` is done.
    pub(super) fn write(&mut self, now: Nanos, range: Range) -> Nanos {
        let moved = self.controller(now, self.profile.transfer_of(range.bytes));
        self.store(moved, range) + self.profile.write_command
    }

    /// When an append that starts at `now` is done; the device has put it at `range`.
    pub(super) fn append(&mut self, now: Nanos, range: Range) -> Nanos {
        let time = self.profile.append_service + self.profile.transfer_of(range.bytes);
        let moved = self.controller(now, time);
        self.store(moved, range) + self.profile.append_command
    }

    /// Puts data into the buffer, and has what it completes programmed.
    fn store(&mut self, now: Nanos, range: Range) -> Nanos {
        let unit_bytes = self.profile.unit_bytes();
        let (mut at, end) = (range.start, range.start + range.bytes);
        let mut stored = now;
        while at < end {
            let unit = at / unit_bytes;
            let unit_end = (unit + 1) * unit_bytes;
            let part = unit_end.min(end) - at;
            stored = self.room(stored, part);
            self.buffered += part;
            let empty = Buffered {
                bytes: 0,
                leaves: None,
            };
            self.units.entry((range.zone, unit)).or_insert(empty).bytes += part;
            at += part;
            if at == unit_end {
                self.program(stored, range.zone, unit);
            }
        }
        stored
    }

    fn program(&mut self, now: Nanos, zone: u32, unit: u64) {
        let die = self.die_of(zone, unit);
        let channel = self.channel_of(die);
        let time = self.profile.on_channel(self.profile.unit_bytes());
        let moved = self.channels[channel].carry(now, now, time);
        let begin = moved
            .max(self.dies[die].program_end)
            .max(self.dies[die].read_end);
        let end = begin + self.profile.program;
        self.dies[die].program_end = end;
        if let Some(buffered) = self.units.get_mut(&(zone, unit)) {
            buffered.leaves = Some(end);
            self.leaving.push(Reverse((end, zone, unit)));
        }
    }

    /// When a read that starts at `now` is done.
    pub(super) fn read(&mut self, now: Nanos, range: Range) -> Nanos {
        self.drain(now);
        let (page_bytes, unit_bytes) = (self.profile.page_bytes, self.profile.unit_bytes());
        let (mut at, end) = (range.start, range.start + range.bytes);
        let mut done = now;
        while at < end {
            let part = ((at / page_bytes + 1) * page_bytes).min(end) - at;
            let unit = at / unit_bytes;
            if !self.units.contains_key(&(range.zone, unit)) {
                done = done.max(self.read_page(now, self.die_of(range.zone, unit), part));
            }
            at += part;
        }
        done + self.profile.read_command
    }

    fn read_page(&mut self, now: Nanos, die: usize, bytes: u64) -> Nanos {
        let begin = self.dies[die].read_end.max(now);
        let programming = self.dies[die].program_end > begin;
        let suspend = if programming { self.profile.suspend } else { 0 };
        let read = begin + suspend + self.profile.read;
        let channel = self.channel_of(die);
        let time = self.profile.on_channel(bytes);
        let moved = self.channels[channel].carry(now, read, time);
        // The register is taken until its page is on the channel.
        self.dies[die].read_end = moved;
        if programming {
            self.dies[die].program_end += moved - begin;
        }
        moved
    }

    /// When a flush is done.
    pub(super) fn flush(&mut self, now: Nanos) -> Nanos {
        now.max(self.controller_free) + self.profile.flush
    }

    /// When the reset of a zone with `written` of `capacity` bytes is done.
    pub(super) fn reset(&mut self, now: Nanos, zone: u32, written: u64, capacity: u64) -> Nanos {
        self.forget(zone);
        now + match written {
            0 => self.profile.reset_empty,
            _ => {
                let share = u128::from(self.profile.reset_full) * u128::from(written)
                    / u128::from(capacity.max(1));
                self.profile.reset_base + share as Nanos
            }
        }
    }

    /// When a zone with `left` bytes unwritten is finished: the device fills it.
    pub(super) fn finish(&mut self, now: Nanos, zone: u32, left: u64) -> Nanos {
        for (zone, unit) in self.incomplete(zone) {
            self.program(now, zone, unit);
        }
        now + self.profile.finish_base + Profile::time_at(left, self.profile.finish_rate)
    }

    /// When a zone is opened or closed.
    pub(super) fn transition(&mut self, now: Nanos) -> Nanos {
        now + self.profile.transition
    }

    /// What a zone has in the buffer is not wanted any more. Programs under way go on.
    fn forget(&mut self, zone: u32) {
        for key in self.incomplete(zone) {
            self.drop_unit(key, None);
        }
    }

    /// Units of a zone that wait for more data: one at most.
    fn incomplete(&self, zone: u32) -> Vec<(u32, u64)> {
        self.units
            .range((zone, 0)..=(zone, u64::MAX))
            .filter(|(_, unit)| unit.leaves.is_none())
            .map(|(key, _)| *key)
            .collect()
    }
}
