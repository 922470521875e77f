//! Identify structures and a zone report as recorded from QEMU's controller, and altered ones.

use super::*;

/// One structure of the recording.
fn recorded(name: &str) -> Vec<u8> {
    let mut bytes = vec![0; IDENTIFY_BYTES];
    let lines = include_str!("recorded.txt").lines();
    let of_it = lines
        .skip_while(|line| line.strip_prefix("= ") != Some(name))
        .skip(1)
        .take_while(|line| !line.starts_with('='));
    for line in of_it {
        let (offset, digits) = line.split_once(' ').expect("offset and bytes");
        let offset = usize::from_str_radix(offset, 16).expect("offset");
        for (index, pair) in digits.as_bytes().chunks(2).enumerate() {
            let pair = std::str::from_utf8(pair).expect("digits");
            bytes[offset + index] = u8::from_str_radix(pair, 16).expect("byte");
        }
    }
    assert!(
        bytes.iter().any(|&byte| byte != 0),
        "no recording of {name}"
    );
    bytes
}

fn namespace() -> IdentifyNamespace {
    IdentifyNamespace::read_from_bytes(&recorded("namespace")).expect("length")
}

fn zoned() -> ZonedNamespace {
    ZonedNamespace::read_from_bytes(&recorded("zoned-namespace")).expect("length")
}

fn recorded_geometry() -> Geometry {
    geometry(&namespace(), &zoned()).expect("recorded geometry")
}

#[test]
fn recorded_identify_structures_give_the_geometry_qemu_was_asked_for() {
    assert_eq!(
        recorded_geometry(),
        Geometry {
            block_size: 4096,
            zones: 8,
            zone_size: 64,
            zone_capacity: 64,
            max_open: 3,
            max_active: 4,
            max_append: 0,
        }
    );
    let controller = IdentifyController::read_from_bytes(&recorded("controller")).expect("length");
    assert_eq!(
        (controller.mdts, controller.has_volatile_cache()),
        (3, true)
    );
    let zoned = ZonedController::read_from_bytes(&recorded("zoned-controller")).expect("length");
    assert_eq!(zoned.zasl, 2);
}

#[test]
fn recorded_report_gives_every_state_and_write_pointer() {
    use ZoneState::{Closed, Empty, ExplicitlyOpen, Full, ImplicitlyOpen};
    let report = parse_report(
        &recorded("report")[..6 * 64],
        ZoneId(0),
        &recorded_geometry(),
    );
    let report = report.expect("recorded report");
    let found: Vec<_> = report
        .iter()
        .map(|zone| (zone.zone.0, zone.state, zone.write_pointer, zone.capacity))
        .collect();
    assert_eq!(
        found,
        [
            (0, ImplicitlyOpen, 3, 48),
            (1, ExplicitlyOpen, 0, 48),
            (2, Closed, 1, 48),
            (3, Full, 48, 48),
            (4, Empty, 0, 48),
        ]
    );
}

#[test]
fn no_limit_is_read_as_none() {
    let mut zoned = zoned();
    (zoned.mar, zoned.mor) = (U32::new(u32::MAX), U32::new(u32::MAX));
    let geometry = geometry(&namespace(), &zoned).expect("geometry");
    assert_eq!((geometry.max_active, geometry.max_open), (0, 0));
}

#[test]
fn namespaces_that_cannot_be_worked_with_are_refused_by_the_reason() {
    let refused = |alter: &dyn Fn(&mut IdentifyNamespace, &mut ZonedNamespace)| {
        let (mut namespace, mut zoned) = (namespace(), zoned());
        alter(&mut namespace, &mut zoned);
        geometry(&namespace, &zoned).expect_err("refused")
    };
    // Format 5 has 8 bytes of metadata, format 32 + 4 is undefined: blocks of 1 byte, no zones.
    let reason = refused(&|namespace, _| namespace.flbas = 5);
    assert!(reason.contains("8 bytes of metadata"), "{reason}");
    let reason = refused(&|namespace, _| namespace.dps = 1);
    assert!(reason.contains("protection"), "{reason}");
    let reason = refused(&|namespace, _| namespace.flbas = 0x44);
    assert!(reason.contains("no size"), "{reason}");
    let reason = refused(&|namespace, _| namespace.formats[4].data_size = 200);
    assert!(reason.contains("2^200"), "{reason}");
    let reason = refused(&|namespace, _| namespace.nsze = U64::new(u64::MAX));
    assert!(reason.contains("too many zones"), "{reason}");
}

#[test]
fn odd_reports_are_refused_and_short_ones_read_as_far_as_they_go() {
    let geometry = recorded_geometry();
    let good = recorded("report");
    let with = |offset: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[offset] = byte;
        parse_report(&bytes[..6 * 64], ZoneId(0), &geometry)
    };
    for (offset, byte, reason) in [
        (64, 1, "type"),
        (65, 0x50, "unknown state"),
        (64 + 16, 9, "starts at"),
        (64 + 24, 200, "write pointer elsewhere"),
        (128 + 24, 1, "write pointer elsewhere"),
    ] {
        let error = with(offset, byte).expect_err(reason).to_string();
        assert!(error.contains(reason), "{error} does not name: {reason}");
    }
    // The head counts all zones there are; only three of them fit here.
    let three = parse_report(&good[..4 * 64 + 10], ZoneId(0), &geometry).expect("report");
    assert_eq!(three.len(), 3);
    assert!(parse_report(&good[..63], ZoneId(0), &geometry).is_err());
    let every_zone_misplaced = parse_report(&good[..6 * 64], ZoneId(1), &geometry);
    assert!(every_zone_misplaced.is_err());
}
