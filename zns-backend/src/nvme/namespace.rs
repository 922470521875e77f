//! A zoned namespace behind any [`Channel`]: geometry, zone reports, what can be read, and commands
//! that wait.
//!
//! The device is the authority: what it refuses is refused, with the error that the emulated devices
//! give. Kept here is one word per zone, up to where it can be read, because controllers differ in
//! what they answer above a write pointer (zeroes, old data, an error) and this crate promises an
//! error. The word follows every command that changes a zone, queued ones included ([`super::request`]);
//! nobody else may write to the namespace meanwhile, which whoever opens it has to see to.
//!
//! A transfer is cut at what the caller says one request may carry, at MDTS and at zone ends; appends
//! cannot be cut, `max_append` says how long they may be (ZASL).
//!
//! Assumptions about the hardware, all checked at opening: zones all have the same capacity; blocks
//! carry no metadata and no end-to-end protection. Not checked: that skipped blocks of a finished
//! zone read as zeroes (the filesystem does not read them).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::command::{Channel, Command, Failure, Identify, ZoneAction};
use super::status::{self, Attempt};
use super::wire::{
    self, IDENTIFY_BYTES, IdentifyController, IdentifyNamespace, REPORT_ENTRY_BYTES,
    ZonedController, ZonedNamespace,
};
use crate::buffer::DmaBuffer;
use crate::device::{ZoneInfo, ZoneState};
use crate::error::{Error, Result};
use crate::geometry::{Geometry, Lba, ZoneId};
use crate::pool::{Pool, SLOT_BYTES};
use crate::shared_zones::{blocks_in, by_zone};
use crate::zone_state::{Zone, ZoneTable, check_read};

/// Smallest unit that MDTS and ZASL can count in. Where the controller's is larger, this is careful.
const LIMIT_UNIT_BYTES: u64 = 4096;
/// Bytes of a report asked for at once.
const REPORT_BYTES: usize = 64 << 10;
/// Word of a zone that cannot be read at all.
const OFFLINE: u64 = u64::MAX;

pub(crate) struct Namespace<C> {
    /// For messages: `nvme:/dev/ng0n1`.
    pub(crate) name: String,
    pub(crate) channel: C,
    read_only: bool,
    pub(crate) geometry: Geometry,
    has_volatile_cache: bool,
    /// Longest transfer of one command, a power of two of bytes and at most [`SLOT_BYTES`].
    pub(crate) transfer_bytes_max: u64,
    /// Per zone: blocks from its start that can be read, or [`OFFLINE`].
    readable: Vec<AtomicU64>,
    /// Memory that the channel or its queues prefer.
    pub(crate) pool: Option<Arc<Pool>>,
}

impl<C: Channel> Namespace<C> {
    /// The namespace behind `channel`, of which one request may carry `request_bytes_max`.
    ///
    /// # Errors
    /// [`Error::BadImage`] in one line if it is no zoned namespace, or one that cannot be worked
    /// with; [`Error::Io`].
    pub(crate) fn open(
        channel: C,
        name: String,
        request_bytes_max: u64,
        pool: Option<Arc<Pool>>,
        read_only: bool,
    ) -> Result<Namespace<C>> {
        let odd = |reason| Error::BadImage(format!("{name}: {reason}"));
        let controller: IdentifyController = identify(&channel, Identify::Controller, &name)?;
        let namespace: IdentifyNamespace = identify(&channel, Identify::Namespace, &name)?;
        let zoned: ZonedNamespace = identify(&channel, Identify::ZonedNamespace, &name)?;
        let zasl = identify::<ZonedController>(&channel, Identify::ZonedController, &name)?.zasl;
        let mut geometry = wire::geometry(&namespace, &zoned).map_err(odd)?;
        let block_bytes = u64::from(geometry.block_size);
        let request_max = request_bytes_max.min(limit_bytes(controller.mdts));
        let append_max = request_max.min(limit_bytes(zasl));
        geometry.max_append = append_max / block_bytes;
        let slot = SLOT_BYTES as u64;
        let transfer_bytes_max = 1 << request_max.clamp(1, slot).ilog2();
        if transfer_bytes_max < block_bytes || geometry.max_append == 0 {
            return Err(odd(format!(
                "a request of {request_max} bytes is shorter than a block of {block_bytes}"
            )));
        }
        let mut opened = Namespace {
            name: name.clone(),
            channel,
            read_only,
            geometry,
            has_volatile_cache: controller.has_volatile_cache(),
            transfer_bytes_max,
            readable: Vec::new(),
            pool,
        };
        opened.survey().map_err(|error| match error {
            Error::BadImage(reason) => odd(reason),
            other => other,
        })?;
        Ok(opened)
    }

    /// Reads all zones at opening: their capacity, which has to be one, and how far each is written.
    fn survey(&mut self) -> Result<()> {
        let zones = self.geometry.zones;
        let report = self.report(ZoneId(0), zones)?;
        let Some(first) = report.first() else {
            return Err(Error::BadImage("it has no zones".into()));
        };
        self.geometry.zone_capacity = first.capacity;
        if let Some(other) = report.iter().find(|zone| zone.capacity != first.capacity) {
            return Err(Error::BadImage(format!(
                "zone {} has a capacity of {} blocks, the first one of {}",
                other.zone, other.capacity, first.capacity
            )));
        }
        self.geometry.validate()?;
        self.readable = report
            .iter()
            .map(|zone| AtomicU64::new(readable(zone)))
            .collect();
        Ok(())
    }

    pub(crate) fn report(&self, first: ZoneId, count: u32) -> Result<Vec<ZoneInfo>> {
        let end = first
            .0
            .checked_add(count)
            .filter(|&end| end <= self.geometry.zones);
        let end = end.ok_or(Error::OutOfRange(self.geometry.zone_start(first)))?;
        let wanted = (count as usize + 1) * REPORT_ENTRY_BYTES;
        let limit = REPORT_BYTES.min(self.transfer_bytes_max as usize);
        let mut data = DmaBuffer::new(
            wanted
                .next_multiple_of(LIMIT_UNIT_BYTES as usize)
                .min(limit),
        );
        let mut found = Vec::with_capacity(count as usize);
        let mut next = first.0;
        while next < end {
            let start = self.geometry.zone_start(ZoneId(next));
            let command = Command::report(start, data.len());
            let attempt = Attempt {
                action: "reporting zones",
                lba: start,
                blocks: 0,
            };
            self.channel
                .receive(command, &mut data)
                .map_err(|failure| self.error(failure, attempt))?;
            let zones = wire::parse_report(&data, ZoneId(next), &self.geometry)?;
            if zones.is_empty() {
                return Err(Error::BadImage(format!("no report of zone {next}")));
            }
            next += zones.len() as u32;
            found.extend(zones);
        }
        found.truncate(count as usize);
        Ok(found)
    }

    /// One zone as the device has it now. Refreshes what is known of it.
    fn look(&self, zone: ZoneId) -> Result<ZoneInfo> {
        let report = self.report(zone, 1)?;
        let info = report
            .into_iter()
            .next()
            .ok_or(Error::OutOfRange(self.geometry.zone_start(zone)))?;
        if let Some(word) = self.readable.get(zone.0 as usize) {
            word.store(readable(&info), Ordering::Release);
        }
        Ok(info)
    }

    /// The error of a command that did not succeed.
    pub(crate) fn error(&self, failure: Failure, attempt: Attempt) -> Error {
        let status = match failure {
            Failure::Refused(status) => status,
            Failure::Host(source) => {
                let Attempt { action, lba, .. } = attempt;
                return Error::io(format!("{action} at LBA {lba} of {}", self.name), source);
            }
        };
        let zone = self.geometry.zone_of(attempt.lba);
        let found = if status.needs_report() {
            self.look(zone).ok()
        } else {
            None
        };
        status::error(status, attempt, &self.geometry, &self.name, found)
    }

    fn check_writable(&self) -> Result<()> {
        if self.read_only {
            return Err(Error::ReadOnlyDevice(self.name.clone()));
        }
        Ok(())
    }

    fn check_zone(&self, zone: ZoneId) -> Result<()> {
        self.check_writable()?;
        ZoneTable::check_zone(&self.geometry, zone)
    }

    pub(crate) fn check_read(&self, lba: Lba, blocks: u64) -> Result<()> {
        let zone_at = |zone: ZoneId| match self.readable[zone.0 as usize].load(Ordering::Acquire) {
            OFFLINE => Zone {
                state: ZoneState::Offline,
                write_pointer: 0,
            },
            write_pointer => Zone {
                state: ZoneState::Closed,
                write_pointer,
            },
        };
        check_read(&self.geometry, zone_at, lba, blocks)
    }

    /// Checks what the device would see too late: a write that is cut in pieces must not fail at
    /// the last of them.
    pub(crate) fn check_write(&self, lba: Lba, blocks: u64) -> Result<()> {
        let zone = self.geometry.zone_of(lba);
        self.check_writable()?;
        if zone.0 >= self.geometry.zones {
            return Err(Error::OutOfRange(lba));
        }
        let end = self.geometry.offset_of(lba).checked_add(blocks);
        if end.is_some_and(|end| end <= self.geometry.zone_capacity) {
            return Ok(());
        }
        Err(status::refusal(
            self.look(zone)?,
            &self.geometry,
            lba,
            blocks,
        ))
    }

    pub(crate) fn check_append(&self, zone: ZoneId, blocks: u64) -> Result<()> {
        self.check_zone(zone)?;
        if blocks > self.geometry.max_append {
            let bytes = blocks.saturating_mul(u64::from(self.geometry.block_size));
            return Err(Error::BadLength(bytes as usize));
        }
        Ok(())
    }

    pub(crate) fn bytes(&self, blocks: u64) -> u64 {
        blocks * u64::from(self.geometry.block_size)
    }

    /// Blocks of the next piece of a transfer that has `left` blocks to go from `lba` on.
    pub(crate) fn piece_blocks(&self, lba: Lba, left: u64) -> u64 {
        let in_zone = self.geometry.zone_size - self.geometry.offset_of(lba);
        let per_command = self.transfer_bytes_max / u64::from(self.geometry.block_size);
        left.min(in_zone).min(per_command)
    }

    /// Blocks from `lba` on are written.
    pub(crate) fn written(&self, lba: Lba, blocks: u64) {
        let end = self.geometry.offset_of(lba) + blocks;
        let zone = self.geometry.zone_of(lba);
        if let Some(word) = self.readable.get(zone.0 as usize) {
            word.fetch_max(end, Ordering::AcqRel);
        }
    }

    /// Whether a transfer of `bytes` from `lba` on is no longer than one command can be.
    pub(crate) fn takes_one_command(&self, lba: Lba, bytes: usize) -> bool {
        let blocks = bytes as u64 / u64::from(self.geometry.block_size);
        self.piece_blocks(lba, blocks) == blocks
    }

    /// Calls `each` with (first block, range of bytes) of every command that a transfer takes.
    pub(crate) fn in_pieces(
        &self,
        lba: Lba,
        blocks: u64,
        mut each: impl FnMut(Lba, std::ops::Range<usize>) -> Result<()>,
    ) -> Result<()> {
        by_zone(&self.geometry, lba, blocks, |at, part| {
            let mut done = part.start;
            while done < part.end {
                let from = at.plus(done - part.start);
                let piece = self.piece_blocks(from, part.end - done);
                each(
                    from,
                    self.bytes(done) as usize..self.bytes(done + piece) as usize,
                )?;
                done += piece;
            }
            Ok(())
        })
    }

    pub(crate) fn act(&self, zone: ZoneId, action: ZoneAction) -> Result<()> {
        self.check_zone(zone)?;
        let lba = self.geometry.zone_start(zone);
        let attempt = Attempt {
            action: action.name(),
            lba,
            blocks: 0,
        };
        self.channel
            .send(Command::manage(lba, action), &[])
            .map_err(|failure| self.error(failure, attempt))?;
        let word = &self.readable[zone.0 as usize];
        match action {
            ZoneAction::Reset => word.store(0, Ordering::Release),
            ZoneAction::Finish => word.store(self.geometry.zone_capacity, Ordering::Release),
            ZoneAction::Open | ZoneAction::Close => {}
        }
        Ok(())
    }

    pub(crate) fn read(&self, lba: Lba, buf: &mut [u8]) -> Result<()> {
        let blocks = blocks_in(&self.geometry, buf.len())?;
        self.check_read(lba, blocks)?;
        self.in_pieces(lba, blocks, |at, bytes| {
            let blocks = blocks_in(&self.geometry, bytes.len())?;
            let attempt = Attempt {
                action: "reading",
                lba: at,
                blocks,
            };
            let done = self
                .channel
                .receive(Command::read(at, blocks), &mut buf[bytes]);
            done.map(drop)
                .map_err(|failure| self.error(failure, attempt))
        })
    }

    /// `durable`: also when the power goes right after.
    pub(crate) fn write(&self, lba: Lba, data: &[u8], durable: bool) -> Result<()> {
        let blocks = blocks_in(&self.geometry, data.len())?;
        self.check_write(lba, blocks)?;
        self.in_pieces(lba, blocks, |at, bytes| {
            let blocks = blocks_in(&self.geometry, bytes.len())?;
            let attempt = Attempt {
                action: "writing",
                lba: at,
                blocks,
            };
            self.channel
                .send(self.write_command(at, blocks, durable), &data[bytes])
                .map_err(|failure| self.error(failure, attempt))?;
            self.written(at, blocks);
            Ok(())
        })
    }

    /// What is written without a volatile cache needs no Force Unit Access to be durable.
    pub(crate) fn write_command(&self, lba: Lba, blocks: u64, durable: bool) -> Command {
        Command::write(lba, blocks, durable && self.has_volatile_cache)
    }

    pub(crate) fn append(&self, zone: ZoneId, data: &[u8]) -> Result<Lba> {
        let blocks = blocks_in(&self.geometry, data.len())?;
        self.check_append(zone, blocks)?;
        let start = self.geometry.zone_start(zone);
        let attempt = Attempt {
            action: "appending",
            lba: start,
            blocks,
        };
        let lba = self
            .channel
            .send(Command::append(start, blocks), data)
            .map_err(|failure| self.error(failure, attempt))?;
        self.written(Lba(lba), blocks);
        Ok(Lba(lba))
    }

    pub(crate) fn flush(&self) -> Result<()> {
        if !self.has_volatile_cache {
            return Ok(());
        }
        let attempt = Attempt {
            action: "flushing",
            lba: Lba(0),
            blocks: 0,
        };
        let done = self.channel.send(Command::FLUSH, &[]);
        done.map(drop)
            .map_err(|failure| self.error(failure, attempt))
    }

    /// A buffer that the channel or its queues prefer, if one is free.
    pub(crate) fn buffer(&self, len: usize) -> DmaBuffer {
        let registered = self.pool.as_ref().and_then(|pool| pool.take(len));
        registered.unwrap_or_else(|| DmaBuffer::new(len))
    }
}

/// Bytes that an exponent of MDTS or ZASL allows; 0 is no limit.
fn limit_bytes(exponent: u8) -> u64 {
    if exponent == 0 {
        return u64::MAX;
    }
    LIMIT_UNIT_BYTES
        .checked_shl(u32::from(exponent))
        .filter(|&bytes| bytes > 0)
        .unwrap_or(u64::MAX)
}

/// Asks for an Identify structure.
fn identify<T: FromBytes + KnownLayout + Immutable>(
    channel: &impl Channel,
    what: Identify,
    name: &str,
) -> Result<T> {
    let mut data = DmaBuffer::new(IDENTIFY_BYTES);
    match channel.receive(Command::identify(what), &mut data) {
        Ok(_) => {}
        Err(Failure::Refused(status)) if status.is_unsupported() => {
            return Err(Error::BadImage(format!(
                "{name} is no zoned namespace (it refuses Identify {what:?})"
            )));
        }
        Err(Failure::Refused(status)) => {
            return Err(Error::BadImage(format!(
                "{name} refuses Identify {what:?}: {status}"
            )));
        }
        Err(Failure::Host(source)) => {
            return Err(Error::io(format!("identifying {name}"), source));
        }
    }
    T::read_from_bytes(&data)
        .map_err(|_| Error::BadImage(format!("{name}: Identify {what:?} has another length")))
}

fn readable(info: &ZoneInfo) -> u64 {
    match info.state {
        ZoneState::Offline => OFFLINE,
        _ => info.write_pointer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfer_limits_are_powers_of_the_smallest_page() {
        assert_eq!(limit_bytes(0), u64::MAX);
        assert_eq!(limit_bytes(5), 128 << 10);
        assert_eq!(limit_bytes(7), 512 << 10);
        assert_eq!(limit_bytes(200), u64::MAX);
    }
}
