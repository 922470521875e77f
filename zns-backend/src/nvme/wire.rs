//! The data structures that commands return, byte for byte, and what this crate reads from them.
//!
//! Section numbers are those of the NVM Express Base Specification 2.0, the NVM Command Set
//! Specification 1.0 and the Zoned Namespace Command Set Specification 1.1. Everything is
//! little-endian. Deliberately absent: fields nobody here looks at, which stand as bytes in between.

use std::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::device::{ZoneInfo, ZoneState};
use crate::error::{Error, Result};
use crate::geometry::{Geometry, ZoneId};

/// Bytes of every Identify structure.
pub(super) const IDENTIFY_BYTES: usize = 4096;

/// Identify Controller (base 5.17.2, CNS 01h).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct IdentifyController {
    vid: U16,
    ssvid: U16,
    serial: [u8; 20],
    model: [u8; 40],
    firmware: [u8; 8],
    rab: u8,
    ieee: [u8; 3],
    cmic: u8,
    /// Largest transfer: `1 << mdts` pages of the controller's minimum size; 0 is no limit.
    pub(super) mdts: u8,
    between: [u8; 447],
    /// Bit 0: there is a volatile write cache.
    vwc: u8,
    rest: [u8; 3570],
}

const _: () = assert!(size_of::<IdentifyController>() == IDENTIFY_BYTES);
const _: () = assert!(offset_of!(IdentifyController, mdts) == 77);
const _: () = assert!(offset_of!(IdentifyController, vwc) == 525);

impl IdentifyController {
    pub(super) fn has_volatile_cache(&self) -> bool {
        self.vwc & 1 != 0
    }
}

/// A format of logical blocks (NVM 4.1.5.1).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct LbaFormat {
    metadata_bytes: U16,
    /// Block size as a power of two.
    data_size: u8,
    performance: u8,
}

const FORMATS: usize = 64;

/// Identify Namespace (NVM 4.1.5.1, CNS 00h).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct IdentifyNamespace {
    /// Blocks of address space.
    nsze: U64,
    ncap: U64,
    nuse: U64,
    nsfeat: u8,
    nlbaf: u8,
    /// Bits 3:0 and 6:5: index of the format in use.
    flbas: u8,
    mc: u8,
    dpc: u8,
    /// Bits 2:0: type of end-to-end protection.
    dps: u8,
    between: [u8; 98],
    formats: [LbaFormat; FORMATS],
    rest: [u8; 3712],
}

const _: () = assert!(size_of::<IdentifyNamespace>() == IDENTIFY_BYTES);
const _: () = assert!(offset_of!(IdentifyNamespace, flbas) == 26);
const _: () = assert!(offset_of!(IdentifyNamespace, formats) == 128);

impl IdentifyNamespace {
    fn format_index(&self) -> usize {
        let flbas = usize::from(self.flbas);
        flbas & 0xF | (flbas >> 5 & 3) << 4
    }
}

/// Zoned part of Identify Controller (ZNS 4.1.5.2, CNS 06h, CSI 02h).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct ZonedController {
    /// Largest append: `1 << zasl` pages of the controller's minimum size; 0 means as for transfers.
    pub(super) zasl: u8,
    rest: [u8; 4095],
}

const _: () = assert!(size_of::<ZonedController>() == IDENTIFY_BYTES);

/// What a block format means for zones (ZNS 4.1.5.1).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ZoneFormat {
    /// Blocks of address space per zone.
    zone_size: U64,
    descriptor_extension: u8,
    reserved: [u8; 7],
}

/// Zoned part of Identify Namespace (ZNS 4.1.5.1, CNS 05h, CSI 02h).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct ZonedNamespace {
    zoc: U16,
    ozcs: U16,
    /// Active zones allowed, less one; all ones is no limit.
    mar: U32,
    /// Open zones allowed, less one; all ones is no limit.
    mor: U32,
    between: [u8; 2804],
    formats: [ZoneFormat; FORMATS],
    vendor: [u8; 256],
}

const _: () = assert!(size_of::<ZonedNamespace>() == IDENTIFY_BYTES);
const _: () = assert!(offset_of!(ZonedNamespace, mar) == 4);
const _: () = assert!(offset_of!(ZonedNamespace, formats) == 2816);

/// A limit that is stored less one, with all ones for none; 0 is none in a [`Geometry`].
fn limit(less_one: U32) -> u32 {
    less_one.get().wrapping_add(1)
}

/// Head of a zone report (ZNS 3.4.2).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct ReportHeader {
    zones: U64,
    reserved: [u8; 56],
}

/// A zone in a report (ZNS 3.4.2).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct ZoneDescriptor {
    /// Bits 3:0; 2 is a zone that has to be written sequentially, the only type there is.
    kind: u8,
    /// Bits 7:4.
    state: u8,
    attributes: u8,
    attributes_information: u8,
    reserved: [u8; 4],
    capacity: U64,
    start: U64,
    /// An LBA; means nothing in zones that are full, read-only or offline.
    write_pointer: U64,
    reserved_too: [u8; 32],
}

/// Bytes of the head of a report, and of each zone in it.
pub(super) const REPORT_ENTRY_BYTES: usize = 64;
const _: () = assert!(size_of::<ReportHeader>() == REPORT_ENTRY_BYTES);
const _: () = assert!(size_of::<ZoneDescriptor>() == REPORT_ENTRY_BYTES);

const SEQUENTIAL_WRITE_REQUIRED: u8 = 2;

impl ZoneDescriptor {
    /// The zone state (ZNS 3.4.2: ZS).
    fn state(&self) -> Option<ZoneState> {
        Some(match self.state >> 4 {
            0x1 => ZoneState::Empty,
            0x2 => ZoneState::ImplicitlyOpen,
            0x3 => ZoneState::ExplicitlyOpen,
            0x4 => ZoneState::Closed,
            0xD => ZoneState::ReadOnly,
            0xE => ZoneState::Full,
            0xF => ZoneState::Offline,
            _ => return None,
        })
    }

    /// What it says of `zone`, which it has to be about. A read-only zone can be read up to its
    /// capacity, so that is where its write pointer is said to be.
    fn info(&self, zone: ZoneId, geometry: &Geometry) -> std::result::Result<ZoneInfo, String> {
        let start = geometry.zone_start(zone).0;
        let state = self
            .state()
            .ok_or_else(|| format!("zone {zone} has the unknown state {:#x}", self.state))?;
        if self.kind & 0xF != SEQUENTIAL_WRITE_REQUIRED {
            return Err(format!("zone {zone} is of the unknown type {}", self.kind));
        }
        if self.start.get() != start {
            let found = self.start.get();
            return Err(format!("zone {zone} starts at {found:#x}, not {start:#x}"));
        }
        let capacity = self.capacity.get();
        let write_pointer = match state {
            ZoneState::Empty | ZoneState::Offline => 0,
            ZoneState::Full | ZoneState::ReadOnly => capacity,
            ZoneState::ImplicitlyOpen | ZoneState::ExplicitlyOpen | ZoneState::Closed => self
                .write_pointer
                .get()
                .checked_sub(start)
                .filter(|&offset| offset <= capacity)
                .ok_or_else(|| format!("zone {zone} has its write pointer elsewhere"))?,
        };
        Ok(ZoneInfo {
            zone,
            state,
            write_pointer,
            capacity,
        })
    }
}

/// Reads a report that begins with zone `first`.
///
/// # Errors
/// [`Error::BadImage`] naming the zone and what is odd about it.
pub(super) fn parse_report(
    bytes: &[u8],
    first: ZoneId,
    geometry: &Geometry,
) -> Result<Vec<ZoneInfo>> {
    let short = || Error::BadImage("a zone report ends within its head".into());
    let (header, rest) = ReportHeader::ref_from_prefix(bytes).map_err(|_| short())?;
    let room = rest.len() / REPORT_ENTRY_BYTES;
    let count = usize::try_from(header.zones.get()).map_or(room, |zones| zones.min(room));
    let zones = rest
        .chunks_exact(REPORT_ENTRY_BYTES)
        .take(count)
        .map(ZoneDescriptor::ref_from_bytes);
    zones
        .zip(first.0..)
        .map(|(descriptor, zone)| {
            let descriptor = descriptor.map_err(|_| short())?;
            descriptor
                .info(ZoneId(zone), geometry)
                .map_err(Error::BadImage)
        })
        .collect()
}

/// The geometry that the Identify structures and the capacity of the first zone describe.
/// `max_append` is left open.
///
/// # Errors
/// What cannot be worked with, in words.
pub(super) fn geometry(
    namespace: &IdentifyNamespace,
    zoned: &ZonedNamespace,
) -> std::result::Result<Geometry, String> {
    let index = namespace.format_index();
    let format = &namespace.formats[index];
    if format.metadata_bytes.get() != 0 {
        let bytes = format.metadata_bytes.get();
        return Err(format!("its blocks carry {bytes} bytes of metadata each"));
    }
    if namespace.dps & 7 != 0 {
        return Err("it uses end-to-end protection".into());
    }
    let block_size = 1_u32
        .checked_shl(u32::from(format.data_size))
        .ok_or_else(|| format!("its block size is 2^{}", format.data_size))?;
    let zone_size = zoned.formats[index].zone_size.get();
    if zone_size == 0 {
        return Err("its zones have no size".into());
    }
    let zones = u32::try_from(namespace.nsze.get() / zone_size)
        .map_err(|_| "it has too many zones".to_owned())?;
    Ok(Geometry {
        block_size,
        zones,
        zone_size,
        zone_capacity: zone_size,
        max_open: limit(zoned.mor),
        max_active: limit(zoned.mar),
        max_append: 0,
    })
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
