//! The zone state machine of the NVMe Zoned Namespace Command Set (1.1, section 2.1.1.3), pure: no
//! I/O, no locks. Every emulated device decides by it what an operation may do.
//!
//! Choices where the specification leaves one:
//! - A write or an open that finds the open limit reached closes the zone that has been implicitly
//!   open for the longest time; with none to close the answer is Too Many Open Zones. The active
//!   limit is checked before the open limit.
//! - Finishing a zone moves its write pointer to its capacity. The blocks it skipped read as
//!   zeroes, as deallocated blocks do.
//! - Closing an explicitly open zone that holds nothing leaves it closed; a power cycle makes such a
//!   zone empty.
//! - The address range between capacity and size answers Zone Boundary Error.
//!
//! Invariants: `open <= max_open` and `active <= max_active` where those limits exist; an empty zone
//! has write pointer 0, a full one has it at the capacity.

use std::collections::VecDeque;

use crate::device::{ZoneInfo, ZoneState};
use crate::error::{Error, Result};
use crate::geometry::{Geometry, Lba, ZoneId};

/// A zone management action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Open,
    Close,
    Finish,
    Reset,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Action::Open => "open",
            Action::Close => "close",
            Action::Finish => "finish",
            Action::Reset => "reset",
        }
    }
}

/// State and write pointer of one zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Zone {
    pub(crate) state: ZoneState,
    /// Blocks from the start of the zone.
    pub(crate) write_pointer: u64,
}

impl Zone {
    pub(crate) const EMPTY: Zone = Zone {
        state: ZoneState::Empty,
        write_pointer: 0,
    };

    fn is_open(self) -> bool {
        matches!(
            self.state,
            ZoneState::ImplicitlyOpen | ZoneState::ExplicitlyOpen
        )
    }

    fn is_active(self) -> bool {
        self.is_open() || self.state == ZoneState::Closed
    }

    /// The zone after the power went and came back.
    pub(crate) fn after_power_cycle(self) -> Zone {
        match (self.is_active(), self.write_pointer) {
            (true, 0) => Zone::EMPTY,
            (true, _) => Zone {
                state: ZoneState::Closed,
                ..self
            },
            (false, _) => self,
        }
    }

    /// Why no zone of this geometry can be like this.
    pub(crate) fn contradiction(self, geometry: &Geometry) -> Option<String> {
        let Zone {
            state,
            write_pointer,
        } = self;
        let capacity = geometry.zone_capacity;
        let fits = match state {
            ZoneState::Empty => write_pointer == 0,
            ZoneState::Full => write_pointer == capacity,
            ZoneState::ReadOnly | ZoneState::Offline => write_pointer <= capacity,
            ZoneState::ImplicitlyOpen => write_pointer > 0 && write_pointer < capacity,
            ZoneState::ExplicitlyOpen | ZoneState::Closed => write_pointer < capacity,
        };
        (!fits).then(|| format!("{state} with write pointer {write_pointer} of {capacity}"))
    }
}

/// All zones of a device.
#[derive(Clone, Debug)]
pub(crate) struct ZoneTable {
    geometry: Geometry,
    zones: Vec<Zone>,
    open: u32,
    active: u32,
    /// Implicitly open zones, the one opened first in front.
    implicit: VecDeque<ZoneId>,
}

/// What an accepted operation did besides: the implicitly open zone that had to be closed for it.
pub(crate) type AlsoClosed = Option<ZoneId>;

impl ZoneTable {
    /// A table of empty zones.
    pub(crate) fn new(geometry: Geometry) -> ZoneTable {
        let zones = vec![Zone::EMPTY; geometry.zones as usize];
        ZoneTable {
            geometry,
            zones,
            open: 0,
            active: 0,
            implicit: VecDeque::new(),
        }
    }

    /// A table of given zones as they are after a power cycle.
    ///
    /// # Errors
    /// A description of the zone that contradicts itself, or of the limit that is exceeded.
    pub(crate) fn restore(
        geometry: Geometry,
        zones: Vec<Zone>,
    ) -> std::result::Result<ZoneTable, String> {
        for (index, zone) in zones.iter().enumerate() {
            if let Some(contradiction) = zone.contradiction(&geometry) {
                return Err(format!("zone {index} is {contradiction}"));
            }
        }
        let zones: Vec<Zone> = zones.into_iter().map(Zone::after_power_cycle).collect();
        let active = zones.iter().filter(|zone| zone.is_active()).count() as u32;
        if geometry.max_active != 0 && active > geometry.max_active {
            return Err(format!(
                "{active} zones are active, the limit is {}",
                geometry.max_active
            ));
        }
        Ok(ZoneTable {
            geometry,
            zones,
            open: 0,
            active,
            implicit: VecDeque::new(),
        })
    }

    pub(crate) fn zone(&self, zone: ZoneId) -> Zone {
        self.zones[zone.0 as usize]
    }

    /// Checks that a zone exists.
    pub(crate) fn check_zone(geometry: &Geometry, zone: ZoneId) -> Result<()> {
        if zone.0 >= geometry.zones {
            return Err(Error::OutOfRange(geometry.zone_start(zone)));
        }
        Ok(())
    }

    pub(crate) fn info(&self, zone: ZoneId) -> ZoneInfo {
        let Zone {
            state,
            write_pointer,
        } = self.zone(zone);
        ZoneInfo {
            zone,
            state,
            write_pointer,
            capacity: self.geometry.zone_capacity,
        }
    }

    /// Accepts a write of `blocks` blocks at `lba` and advances the write pointer.
    pub(crate) fn write(&mut self, lba: Lba, blocks: u64) -> Result<AlsoClosed> {
        let also_closed = self.check_write(lba, blocks)?;
        self.advance(lba, blocks, also_closed);
        Ok(also_closed)
    }

    /// Whether [`ZoneTable::write`] would accept.
    pub(crate) fn check_write(&self, lba: Lba, blocks: u64) -> Result<AlsoClosed> {
        let id = self.geometry.zone_of(lba);
        if id.0 >= self.geometry.zones {
            return Err(Error::OutOfRange(lba));
        }
        self.check_writable(id)?;
        let write_pointer = self.zone(id).write_pointer;
        let offset = self.geometry.offset_of(lba);
        if offset != write_pointer && offset < self.geometry.zone_capacity {
            let write_pointer = self.geometry.zone_start(id).plus(write_pointer);
            return Err(Error::ZoneInvalidWrite { lba, write_pointer });
        }
        self.check_room(id, lba, blocks)
    }

    /// Accepts an append of `blocks` blocks and answers where they go.
    pub(crate) fn append(&mut self, id: ZoneId, blocks: u64) -> Result<(Lba, AlsoClosed)> {
        let (lba, also_closed) = self.check_append(id, blocks)?;
        self.advance(lba, blocks, also_closed);
        Ok((lba, also_closed))
    }

    /// What [`ZoneTable::append`] would answer.
    pub(crate) fn check_append(&self, id: ZoneId, blocks: u64) -> Result<(Lba, AlsoClosed)> {
        Self::check_zone(&self.geometry, id)?;
        self.check_writable(id)?;
        let lba = self
            .geometry
            .zone_start(id)
            .plus(self.zone(id).write_pointer);
        Ok((lba, self.check_room(id, lba, blocks)?))
    }

    fn check_writable(&self, id: ZoneId) -> Result<()> {
        match self.zone(id).state {
            ZoneState::Full => Err(Error::ZoneFull(id)),
            ZoneState::ReadOnly => Err(Error::ZoneReadOnly(id)),
            ZoneState::Offline => Err(Error::ZoneOffline(id)),
            ZoneState::Empty
            | ZoneState::ImplicitlyOpen
            | ZoneState::ExplicitlyOpen
            | ZoneState::Closed => Ok(()),
        }
    }

    fn check_room(&self, id: ZoneId, lba: Lba, blocks: u64) -> Result<AlsoClosed> {
        let end = self.geometry.offset_of(lba).checked_add(blocks);
        if end.is_none_or(|end| end > self.geometry.zone_capacity) {
            return Err(Error::ZoneBoundary { lba, blocks });
        }
        self.open_resource(id)
    }

    /// Moves the write pointer over an accepted write.
    fn advance(&mut self, lba: Lba, blocks: u64, also_closed: AlsoClosed) {
        let id = self.geometry.zone_of(lba);
        if let Some(other) = also_closed {
            self.set(other, ZoneState::Closed);
        }
        if !self.zone(id).is_open() {
            self.set(id, ZoneState::ImplicitlyOpen);
        }
        let end = self.geometry.offset_of(lba) + blocks;
        self.zones[id.0 as usize].write_pointer = end;
        if end == self.geometry.zone_capacity {
            self.set(id, ZoneState::Full);
        }
    }

    /// Whether `id` can be open, and which zone has to be closed for it.
    fn open_resource(&self, id: ZoneId) -> Result<AlsoClosed> {
        let Geometry {
            max_open,
            max_active,
            ..
        } = self.geometry;
        if self.zone(id).is_open() {
            return Ok(None);
        }
        if max_active != 0 && self.active >= max_active && !self.zone(id).is_active() {
            return Err(Error::TooManyActive(max_active));
        }
        if max_open == 0 || self.open < max_open {
            return Ok(None);
        }
        self.implicit
            .front()
            .map(|&oldest| Some(oldest))
            .ok_or(Error::TooManyOpen(max_open))
    }

    /// Accepts a zone management action.
    pub(crate) fn act(&mut self, id: ZoneId, action: Action) -> Result<AlsoClosed> {
        use ZoneState::{Closed, Empty, ExplicitlyOpen, Full, ImplicitlyOpen};
        Self::check_zone(&self.geometry, id)?;
        let from = self.zone(id).state;
        let mut also_closed = None;
        match (action, from) {
            (Action::Open, ExplicitlyOpen)
            | (Action::Close, Closed)
            | (Action::Finish, Full)
            | (Action::Reset, Empty) => {}
            (Action::Open, ImplicitlyOpen) => self.set(id, ExplicitlyOpen),
            (Action::Open, Empty | Closed) => {
                also_closed = self.open_resource(id)?;
                if let Some(other) = also_closed {
                    self.set(other, Closed);
                }
                self.set(id, ExplicitlyOpen);
            }
            (Action::Close, ImplicitlyOpen | ExplicitlyOpen) => self.set(id, Closed),
            (Action::Finish, Empty | ImplicitlyOpen | ExplicitlyOpen | Closed) => {
                self.set(id, Full);
                self.zones[id.0 as usize].write_pointer = self.geometry.zone_capacity;
            }
            (Action::Reset, ImplicitlyOpen | ExplicitlyOpen | Closed | Full) => {
                self.set(id, Empty);
                self.zones[id.0 as usize].write_pointer = 0;
            }
            _ => {
                return Err(Error::InvalidTransition {
                    zone: id,
                    from,
                    action: action.name(),
                });
            }
        }
        Ok(also_closed)
    }

    /// Whether a zone could be reset now.
    pub(crate) fn check_reset(&self, id: ZoneId) -> Result<()> {
        Self::check_zone(&self.geometry, id)?;
        let from = self.zone(id).state;
        if matches!(from, ZoneState::ReadOnly | ZoneState::Offline) {
            let action = Action::Reset.name();
            return Err(Error::InvalidTransition {
                zone: id,
                from,
                action,
            });
        }
        Ok(())
    }

    /// The medium of a zone failed: it is read-only or offline from now on.
    pub(crate) fn fail(&mut self, id: ZoneId, state: ZoneState) -> Result<()> {
        Self::check_zone(&self.geometry, id)?;
        let from = self.zone(id).state;
        match (from, state) {
            (ZoneState::Offline, ZoneState::ReadOnly)
            | (
                _,
                ZoneState::Empty
                | ZoneState::ImplicitlyOpen
                | ZoneState::ExplicitlyOpen
                | ZoneState::Closed
                | ZoneState::Full,
            ) => Err(Error::InvalidTransition {
                zone: id,
                from,
                action: "failure",
            }),
            (_, ZoneState::ReadOnly | ZoneState::Offline) => {
                self.set(id, state);
                Ok(())
            }
        }
    }

    /// Changes a state and keeps the accounts.
    fn set(&mut self, id: ZoneId, state: ZoneState) {
        let zone = &mut self.zones[id.0 as usize];
        let before = *zone;
        zone.state = state;
        let after = *zone;
        self.open = self.open + u32::from(after.is_open()) - u32::from(before.is_open());
        self.active = self.active + u32::from(after.is_active()) - u32::from(before.is_active());
        // Only the open limit ever asks who was opened first.
        if self.geometry.max_open == 0 {
            return;
        }
        if before.state == ZoneState::ImplicitlyOpen {
            self.implicit.retain(|&other| other != id);
        }
        if after.state == ZoneState::ImplicitlyOpen {
            self.implicit.push_back(id);
        }
    }
}

/// Checks a read of `blocks` blocks from `lba` against the zones it touches.
///
/// A read may run from a full zone into the next only where capacity equals size.
pub(crate) fn check_read(
    geometry: &Geometry,
    zone_at: impl Fn(ZoneId) -> Zone,
    lba: Lba,
    blocks: u64,
) -> Result<()> {
    let end = lba.0.checked_add(blocks).ok_or(Error::OutOfRange(lba))?;
    if lba.0 >= geometry.blocks() || end > geometry.blocks() {
        return Err(Error::OutOfRange(lba));
    }
    let mut at = lba;
    while at.0 < end {
        let id = geometry.zone_of(at);
        let start = geometry.zone_start(id);
        let Zone {
            state,
            write_pointer,
        } = zone_at(id);
        if state == ZoneState::Offline {
            return Err(Error::ZoneOffline(id));
        }
        let until = (end - start.0).min(geometry.zone_size);
        if until > geometry.zone_capacity {
            return Err(Error::ZoneBoundary { lba, blocks });
        }
        if until > write_pointer {
            return Err(Error::Unwritten {
                lba,
                write_pointer: start.plus(write_pointer),
            });
        }
        at = start.plus(until);
    }
    Ok(())
}

#[cfg(test)]
#[path = "zone_state_tests.rs"]
mod tests;
