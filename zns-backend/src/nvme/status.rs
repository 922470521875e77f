//! NVMe status codes, and the errors they become.
//!
//! A status says what, not where: the zone's state and write pointer that an error names come from a
//! report made after the refusal.

use std::{fmt, io};

use crate::device::{ZoneInfo, ZoneState};
use crate::error::Error;
use crate::geometry::{Geometry, Lba, ZoneId};

/// A status field without its phase bit (base 3.3.3.2.1): code in bits 7:0, type in bits 10:8, then
/// retry delay, more, and do-not-retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) u16);

// Types and codes as (type << 8 | code).
const INVALID_OPCODE: u16 = 0x001;
const INVALID_FIELD: u16 = 0x002;
const INVALID_NAMESPACE: u16 = 0x00B;
const LBA_OUT_OF_RANGE: u16 = 0x080;
const NAMESPACE_WRITE_PROTECTED: u16 = 0x020;
const ZONE_BOUNDARY: u16 = 0x1B8;
const ZONE_FULL: u16 = 0x1B9;
const ZONE_READ_ONLY: u16 = 0x1BA;
const ZONE_OFFLINE: u16 = 0x1BB;
const ZONE_INVALID_WRITE: u16 = 0x1BC;
const TOO_MANY_ACTIVE: u16 = 0x1BD;
const TOO_MANY_OPEN: u16 = 0x1BE;
const INVALID_TRANSITION: u16 = 0x1BF;
const WRITE_FAULT: u16 = 0x280;
const UNRECOVERED_READ: u16 = 0x281;
const GUARD_CHECK: u16 = 0x282;
const REFERENCE_CHECK: u16 = 0x284;
const UNWRITTEN: u16 = 0x287;

impl Status {
    /// Type and code, without what concerns retries.
    fn code(self) -> u16 {
        self.0 & 0x7FF
    }

    /// Whether nothing is wrong.
    #[cfg(any(feature = "xnvme", test))]
    pub(crate) fn is_success(self) -> bool {
        self.code() == 0
    }

    /// Whether the specification leaves the meaning to the vendor.
    #[cfg(any(feature = "xnvme", test))]
    pub(crate) fn is_vendor_specific(self) -> bool {
        self.code() >> 8 == 7
    }

    /// The code within its type.
    #[cfg(any(feature = "xnvme", test))]
    pub(crate) fn code_of_type(self) -> u16 {
        self.code() & 0xFF
    }

    /// Whether the controller does not know the command or one of its fields.
    pub(crate) fn is_unsupported(self) -> bool {
        matches!(
            self.code(),
            INVALID_OPCODE | INVALID_FIELD | INVALID_NAMESPACE
        )
    }

    /// Whether the error will name the zone's state or write pointer.
    pub(crate) fn needs_report(self) -> bool {
        matches!(
            self.code(),
            ZONE_INVALID_WRITE | INVALID_TRANSITION | UNWRITTEN
        )
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, code) = (self.code() >> 8, self.code() & 0xFF);
        write!(f, "NVMe status type {kind:#x}, code {code:#04x}")
    }
}

/// What was asked of the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    /// In words: "writing", "reset".
    pub(crate) action: &'static str,
    /// First block; the start of the zone for appends and zone actions.
    pub(crate) lba: Lba,
    /// Length; 0 for zone actions.
    pub(crate) blocks: u64,
}

/// The error a status means. `found` is the zone as reported after the refusal, if that was asked.
pub(crate) fn error(
    status: Status,
    attempt: Attempt,
    geometry: &Geometry,
    device: &str,
    found: Option<ZoneInfo>,
) -> Error {
    let Attempt {
        action,
        lba,
        blocks,
    } = attempt;
    let zone = geometry.zone_of(lba);
    let start = geometry.zone_start(zone);
    let write_pointer = start.plus(found.map_or(0, |info| info.write_pointer));
    match status.code() {
        LBA_OUT_OF_RANGE => Error::OutOfRange(lba),
        ZONE_BOUNDARY => Error::ZoneBoundary { lba, blocks },
        ZONE_FULL => Error::ZoneFull(zone),
        ZONE_READ_ONLY => Error::ZoneReadOnly(zone),
        ZONE_OFFLINE => Error::ZoneOffline(zone),
        ZONE_INVALID_WRITE => Error::ZoneInvalidWrite { lba, write_pointer },
        TOO_MANY_ACTIVE => Error::TooManyActive(geometry.max_active),
        TOO_MANY_OPEN => Error::TooManyOpen(geometry.max_open),
        INVALID_TRANSITION => Error::InvalidTransition {
            zone,
            from: found.map_or(ZoneState::Offline, |info| info.state),
            action,
        },
        UNWRITTEN => Error::Unwritten { lba, write_pointer },
        NAMESPACE_WRITE_PROTECTED => Error::ReadOnlyDevice(device.into()),
        WRITE_FAULT | UNRECOVERED_READ | GUARD_CHECK..=REFERENCE_CHECK => Error::Media(lba),
        _ => Error::io(
            format!("{action} at LBA {lba} of {device}"),
            io::Error::other(status.to_string()),
        ),
    }
}

/// Why a zone as reported does not take a write of `blocks` blocks at `lba` that leaves its
/// capacity. In the order of the emulated devices: state, place, room.
pub(crate) fn refusal(found: ZoneInfo, geometry: &Geometry, lba: Lba, blocks: u64) -> Error {
    let zone: ZoneId = found.zone;
    let offset = geometry.offset_of(lba);
    match found.state {
        ZoneState::Full => Error::ZoneFull(zone),
        ZoneState::ReadOnly => Error::ZoneReadOnly(zone),
        ZoneState::Offline => Error::ZoneOffline(zone),
        ZoneState::Empty
        | ZoneState::ImplicitlyOpen
        | ZoneState::ExplicitlyOpen
        | ZoneState::Closed
            if offset != found.write_pointer && offset < geometry.zone_capacity =>
        {
            let write_pointer = geometry.zone_start(zone).plus(found.write_pointer);
            Error::ZoneInvalidWrite { lba, write_pointer }
        }
        _ => Error::ZoneBoundary { lba, blocks },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry {
        block_size: 4096,
        zones: 8,
        zone_size: 64,
        zone_capacity: 48,
        max_open: 3,
        max_active: 4,
        max_append: 16,
    };

    /// As Linux hands it over: with the do-not-retry bit.
    fn mapped(status: u16) -> String {
        let attempt = Attempt {
            action: "write",
            lba: Lba(70),
            blocks: 5,
        };
        let found = ZoneInfo {
            zone: ZoneId(1),
            state: ZoneState::Closed,
            write_pointer: 2,
            capacity: 48,
        };
        let status = Status(status | 0x4000);
        format!(
            "{:?}",
            error(status, attempt, &GEOMETRY, "nvme:x", Some(found))
        )
    }

    #[test]
    fn every_zone_status_becomes_the_error_of_its_name() {
        for (status, expected) in [
            (0x080, "OutOfRange(Lba(70))"),
            (0x1B8, "ZoneBoundary { lba: Lba(70), blocks: 5 }"),
            (0x1B9, "ZoneFull(ZoneId(1))"),
            (0x1BA, "ZoneReadOnly(ZoneId(1))"),
            (0x1BB, "ZoneOffline(ZoneId(1))"),
            (
                0x1BC,
                "ZoneInvalidWrite { lba: Lba(70), write_pointer: Lba(66) }",
            ),
            (0x1BD, "TooManyActive(4)"),
            (0x1BE, "TooManyOpen(3)"),
            (
                0x1BF,
                "InvalidTransition { zone: ZoneId(1), from: Closed, action: \"write\" }",
            ),
            (0x287, "Unwritten { lba: Lba(70), write_pointer: Lba(66) }"),
            (0x280, "Media(Lba(70))"),
            (0x281, "Media(Lba(70))"),
            (0x020, "ReadOnlyDevice(\"nvme:x\")"),
        ] {
            assert_eq!(mapped(status), expected, "{status:#x}");
        }
    }

    #[test]
    fn an_unknown_status_is_named_by_its_numbers() {
        let text = mapped(0x70F);
        assert!(
            text.contains("type 0x7, code 0x0f") && text.contains("0x46"),
            "{text}"
        );
    }

    #[test]
    fn a_write_beyond_the_capacity_is_refused_as_emulated_devices_do() {
        let zone = |state, write_pointer| ZoneInfo {
            zone: ZoneId(0),
            state,
            write_pointer,
            capacity: 48,
        };
        let refused = |found, lba| refusal(found, &GEOMETRY, Lba(lba), 50);
        let open = zone(ZoneState::ImplicitlyOpen, 4);
        assert!(matches!(refused(open, 4), Error::ZoneBoundary { .. }));
        assert!(matches!(refused(open, 5), Error::ZoneInvalidWrite { .. }));
        assert!(matches!(refused(open, 50), Error::ZoneBoundary { .. }));
        let full = zone(ZoneState::Full, 48);
        assert!(matches!(refused(full, 4), Error::ZoneFull(_)));
        let offline = zone(ZoneState::Offline, 0);
        assert!(matches!(refused(offline, 0), Error::ZoneOffline(_)));
    }
}
