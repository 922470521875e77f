//! `warren mkfs`: makes a filesystem, and the image file for it where there is none.

use std::path::Path;
use std::sync::Arc;

use zns_backend::{DeviceSpec, FileDevice, Geometry, ZoneId, ZonedDevice};

use super::device::Device;
use super::{CommandResult, Failure, Outcome, output};
use crate::size::HumanSize;
use crate::store::{FormatOptions, Store, StoreOptions};
use crate::types::BLOCK;
use crate::volume::Volume;

/// Fewest zones a filesystem works with: anchors, open zones of each class, and room to collect.
const ZONES_MIN: u64 = 16;
/// Zones an image has if nothing else is asked for, as long as they keep a sensible size.
const ZONES_WANTED: u64 = 256;
/// Smallest zone chosen, in bytes.
const ZONE_BYTES_MIN: u64 = 4 << 20;
/// Largest zone chosen, in bytes.
const ZONE_BYTES_MAX: u64 = 256 << 20;
/// Longest label, in bytes.
const LABEL_LEN_MAX: usize = 64;
/// Limits an emulated device is given, as common ZNS devices have them.
const MAX_OPEN: u32 = 16;
const MAX_ACTIVE: u32 = 32;
const MAX_APPEND_BLOCKS: u64 = 256;

/// Make a filesystem.
///
/// An image file that does not exist is created: give its --size, or --zones and --zone-size. An
/// existing image keeps its zones unless they are given anew with --force.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Image file or device
    device: String,
    /// Number of zones
    #[arg(long, value_name = "N")]
    zones: Option<u32>,
    /// Bytes per zone
    #[arg(long, value_name = "SIZE", value_parser = zns_backend::parse_size)]
    zone_size: Option<u64>,
    /// Writable bytes per zone [default: the zone size]
    #[arg(long, value_name = "SIZE", value_parser = zns_backend::parse_size)]
    zone_capacity: Option<u64>,
    /// Bytes in all
    #[arg(long, value_name = "SIZE", value_parser = zns_backend::parse_size)]
    size: Option<u64>,
    /// Name of the filesystem, at most 64 bytes
    #[arg(long, value_name = "LABEL", default_value = "")]
    label: String,
    /// Overwrite what is there
    #[arg(long)]
    force: bool,
}

/// The shape that was asked for, in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Shape {
    zones: Option<u32>,
    zone_size: Option<u64>,
    zone_capacity: Option<u64>,
    size: Option<u64>,
}

impl Shape {
    /// Whether anything was asked for.
    fn is_given(self) -> bool {
        self.zones.is_some()
            || self.zone_size.is_some()
            || self.zone_capacity.is_some()
            || self.size.is_some()
    }
}

pub(super) fn run(args: &Args) -> CommandResult {
    if args.label.len() > LABEL_LEN_MAX {
        let problem = format!("longer than {LABEL_LEN_MAX} bytes");
        return Err(Failure::usage("--label", problem));
    }
    let device = Device::parse(&args.device)?;
    let shape = Shape {
        zones: args.zones,
        zone_size: args.zone_size,
        zone_capacity: args.zone_capacity,
        size: args.size,
    };
    let opened = match &device.spec {
        DeviceSpec::Mem(_) => {
            return Err(Failure::usage(
                &device.name,
                "a memory device is formatted when it is mounted: \
                 warren mount mem:SIZE MOUNTPOINT",
            ));
        }
        DeviceSpec::File(path) => open_image(&device, path, shape, args.force)?,
        DeviceSpec::Nvme(_) | DeviceSpec::Xnvme(_) if shape.is_given() => {
            return Err(Failure::usage(
                &device.name,
                "the zones of a device are what they are: no --size, --zones, --zone-size or \
                 --zone-capacity",
            ));
        }
        DeviceSpec::Nvme(_) | DeviceSpec::Xnvme(_) => open_namespace(&device, args.force)?,
    };
    let opened = match device.timing {
        Some(timing) => timing.apply(opened),
        None => opened,
    };
    let options = FormatOptions {
        label: args.label.clone(),
        force: args.force,
    };
    Store::format(&opened, &options).map_err(|e| device.failure(e))?;
    make_root(&opened).map_err(|e| device.failure(e))?;
    let shape = *opened.geometry();
    let size = HumanSize(shape.capacity_bytes());
    let zone = HumanSize(shape.zone_capacity_bytes());
    let zones = shape.zones;
    output::print(&format!(
        "{}: {size} in {zones} zones of {zone}",
        device.name
    ));
    Ok(Outcome::Fine)
}

/// The first opening makes the root directory, so that the first mount may be read-only.
fn make_root(device: &Arc<dyn ZonedDevice>) -> crate::Result<()> {
    let options = StoreOptions {
        background: false,
        ..StoreOptions::default()
    };
    Volume::open(Arc::clone(device), &options)?.close()
}

/// Opens a namespace that may be formatted: what is in its zones may be somebody else's.
fn open_namespace(device: &Device, force: bool) -> Result<Arc<dyn ZonedDevice>, Failure> {
    let opened = device.open_waiting(false)?;
    if force {
        return Ok(opened);
    }
    let report = opened.report(ZoneId(0), opened.geometry().zones);
    let report = report.map_err(|e| device.failure(e))?;
    let written = report.iter().filter(|zone| zone.write_pointer > 0).count();
    if written > 0 {
        return Err(Failure::new(
            &device.name,
            format!("{written} of its zones hold something; --force overwrites it"),
        ));
    }
    Ok(opened)
}

fn open_image(
    device: &Device,
    path: &Path,
    shape: Shape,
    force: bool,
) -> Result<Arc<dyn ZonedDevice>, Failure> {
    let fail = |e| device.failure(e);
    let length = match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => return Err(Failure::new(&device.name, "is a directory")),
        Ok(found) => Some(found.len()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(Failure::new(&device.name, e)),
    };
    let given = shape.is_given();
    let create = |replace: bool| -> Result<Arc<dyn ZonedDevice>, Failure> {
        let geometry = geometry(shape, length.filter(|length| *length > 0))
            .map_err(|problem| Failure::usage(&device.name, problem))?;
        Ok(Arc::new(
            FileDevice::create(path, &geometry, replace).map_err(fail)?,
        ))
    };
    match length {
        None => create(false),
        // An empty file is as good as none.
        Some(0) => create(true),
        Some(_) if force && given => create(true),
        Some(_) => match FileDevice::open(path, false) {
            Ok(_) if given => Err(Failure::new(
                &device.name,
                "an image with zones of its own exists; --force makes a new one",
            )),
            Ok(image) => Ok(Arc::new(image)),
            Err(zns_backend::Error::BadImage(_)) if force => create(true),
            Err(zns_backend::Error::BadImage(_)) => Err(Failure::new(
                &device.name,
                "the file exists and is no image; --force overwrites it",
            )),
            Err(error) => Err(fail(error)),
        },
    }
}

/// Works out the geometry of a new image. `existing` is the size of the file it replaces, used if
/// no size is given.
fn geometry(shape: Shape, existing: Option<u64>) -> Result<Geometry, String> {
    let by_zones = shape
        .zones
        .zip(shape.zone_size)
        .map(|(zones, size)| {
            u64::from(zones)
                .checked_mul(size)
                .ok_or("the zones are too many and too large")
        })
        .transpose()?;
    let size = match (shape.size, by_zones) {
        (Some(size), Some(zones)) if zones > size => {
            return Err(format!(
                "the zones take {}, more than --size {}",
                HumanSize(zones),
                HumanSize(size)
            ));
        }
        (_, Some(zones)) => zones,
        (Some(size), None) => size,
        (None, None) => existing.ok_or(
            "the file does not exist: give --size, or --zones and --zone-size, to create it",
        )?,
    };
    let zone_size = match (shape.zone_size, shape.zones) {
        (Some(zone_size), _) => zone_size,
        (None, Some(zones)) => size / u64::from(zones.max(1)) / BLOCK * BLOCK,
        (None, None) => default_zone_size(size),
    };
    check_multiple("--zone-size", zone_size)?;
    let zones = match shape.zones {
        Some(zones) => zones,
        None => u32::try_from(size / zone_size).map_err(|_| "too many zones; give --zone-size")?,
    };
    if u64::from(zones) < ZONES_MIN {
        return Err(format!(
            "{zones} zones of {} are too few: at least {ZONES_MIN} are needed",
            HumanSize(zone_size)
        ));
    }
    let capacity = shape.zone_capacity.unwrap_or(zone_size);
    check_multiple("--zone-capacity", capacity)?;
    if capacity > zone_size {
        return Err(format!(
            "--zone-capacity {} is more than the zone size {}",
            HumanSize(capacity),
            HumanSize(zone_size)
        ));
    }
    let geometry = Geometry {
        block_size: BLOCK as u32,
        zones,
        zone_size: zone_size / BLOCK,
        zone_capacity: capacity / BLOCK,
        max_open: MAX_OPEN,
        max_active: MAX_ACTIVE,
        max_append: MAX_APPEND_BLOCKS,
    };
    geometry.validate().map_err(|e| e.to_string())?;
    Ok(geometry)
}

/// A power of two that gives about [`ZONES_WANTED`] zones; smaller for small devices, so that
/// there are enough zones to collect.
fn default_zone_size(size: u64) -> u64 {
    let ideal = (size / ZONES_WANTED).max(1);
    let power = if ideal.is_power_of_two() {
        ideal
    } else {
        1 << (ideal.ilog2() + 1)
    };
    let mut zone = power.clamp(ZONE_BYTES_MIN, ZONE_BYTES_MAX);
    while size / zone < ZONES_MIN && zone > BLOCK {
        zone /= 2;
    }
    zone
}

fn check_multiple(option: &str, bytes: u64) -> Result<(), String> {
    if bytes == 0 || !bytes.is_multiple_of(BLOCK) {
        return Err(format!("{option} {bytes} is no multiple of {BLOCK} bytes"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_size(size: u64) -> Shape {
        Shape {
            size: Some(size),
            ..Shape::default()
        }
    }

    #[test]
    fn zones_are_chosen_to_be_many_enough_and_of_sensible_size() {
        for (size, zones, zone_bytes) in [
            (64 << 20, 16, 4 << 20),
            (1 << 30, 256, 4 << 20),
            (3 << 30, 192, 16 << 20),
            (64 << 30, 256, 256 << 20),
            (1 << 40, 4096, 256 << 20),
        ] {
            let geometry = geometry(of_size(size), None).unwrap();
            assert_eq!(u64::from(geometry.zones), zones, "{size}");
            assert_eq!(geometry.zone_size * BLOCK, zone_bytes, "{size}");
        }
    }

    #[test]
    fn what_is_given_is_kept() {
        let shape = Shape {
            zones: Some(20),
            zone_size: Some(8 << 20),
            zone_capacity: Some(6 << 20),
            size: None,
        };
        let geometry = geometry(shape, None).unwrap();
        assert_eq!((geometry.zones, geometry.zone_size), (20, 2048));
        assert_eq!(geometry.zone_capacity, 1536);
    }

    #[test]
    fn impossible_shapes_are_refused() {
        let zones = |zones, zone_size, zone_capacity, size| Shape {
            zones,
            zone_size,
            zone_capacity,
            size,
        };
        for shape in [
            Shape::default(),
            of_size(1),
            of_size(4096),
            zones(Some(4), Some(1 << 20), None, None),
            zones(Some(0), Some(1 << 20), None, None),
            zones(Some(20), Some(1000), None, None),
            zones(Some(20), Some(1 << 20), Some(2 << 20), None),
            zones(Some(20), Some(1 << 20), Some(100), None),
            zones(Some(200), Some(1 << 20), None, Some(1 << 20)),
            zones(Some(u32::MAX), Some(u64::MAX), None, None),
            zones(None, Some(4096), None, Some(u64::MAX)),
            zones(Some(0), None, None, Some(1 << 30)),
        ] {
            assert!(geometry(shape, None).is_err(), "{shape:?}");
        }
    }
}
