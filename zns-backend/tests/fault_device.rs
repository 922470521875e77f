//! Planned faults, the write log, and the devices a power cut can leave.

use zns_backend::{
    CrashPoint, Error, Fault, FaultDevice, Geometry, Lba, LoggedOp, MemDevice, Survival, When,
    ZoneId, ZoneState, ZonedDevice,
};

const GEOMETRY: Geometry = Geometry {
    block_size: 512,
    zones: 4,
    zone_size: 32,
    zone_capacity: 24,
    max_open: 2,
    max_active: 2,
    max_append: 0,
};

fn device() -> FaultDevice {
    FaultDevice::new(MemDevice::new(GEOMETRY).expect("memory")).expect("device")
}

fn blocks(tag: u8, count: usize) -> Vec<u8> {
    vec![tag; count * 512]
}

fn pointer(device: &dyn ZonedDevice, zone: u32) -> (ZoneState, u64) {
    let info = device.report(ZoneId(zone), 1).expect("report")[0];
    (info.state, info.write_pointer)
}

/// First byte of each block below the write pointer.
fn tags(device: &dyn ZonedDevice, zone: u32) -> Vec<u8> {
    let count = pointer(device, zone).1;
    let start = GEOMETRY.zone_start(ZoneId(zone));
    (0..count)
        .map(|offset| {
            let mut block = blocks(0xFF, 1);
            device.read(start.plus(offset), &mut block).expect("read");
            assert!(
                block.iter().all(|&byte| byte == block[0]),
                "blocks are atomic"
            );
            block[0]
        })
        .collect()
}

#[test]
fn each_fault_does_what_it_says_to_the_operation_it_names() {
    let device = device();
    device.inject(When::Nth(1), Fault::FailWrite);
    device.inject(When::Nth(2), Fault::TearWrite { blocks: 1 });
    device.inject(When::Nth(3), Fault::LoseWrite);
    device.inject(When::Nth(0), Fault::FailFlush);
    device
        .write(Lba(0), &blocks(1, 1))
        .expect("the first write is fine");
    assert!(matches!(
        device.write(Lba(1), &blocks(2, 2)),
        Err(Error::Media(Lba(1)))
    ));
    assert_eq!(pointer(&device, 0).1, 1);
    assert!(matches!(
        device.write(Lba(1), &blocks(3, 2)),
        Err(Error::Media(Lba(1)))
    ));
    assert_eq!(pointer(&device, 0).1, 2);
    device
        .write(Lba(2), &blocks(4, 1))
        .expect("a lost write is acknowledged");
    assert_eq!(tags(&device, 0), [1, 3, 0]);
    assert!(device.flush().is_err());
    device.flush().expect("the second flush is fine");

    let (_, reads, _) = device.counts();
    device.inject(When::Nth(reads), Fault::FlipBit { bit: 9 });
    device.inject(When::Nth(reads + 1), Fault::FailRead);
    let mut block = blocks(0, 1);
    device.read(Lba(0), &mut block).expect("read");
    assert_eq!((block[0], block[1]), (1, 3));
    assert!(matches!(
        device.read(Lba(0), &mut block),
        Err(Error::Media(Lba(0)))
    ));
    device.inject(When::Zone(ZoneId(1)), Fault::FailWrite);
    assert!(device.append(ZoneId(1), &blocks(5, 1)).is_err());
    device
        .append(ZoneId(0), &blocks(5, 1))
        .expect("other zones are fine");
    device.clear_faults();
    device.append(ZoneId(1), &blocks(5, 1)).expect("append");
}

#[test]
fn power_cut_keeps_what_was_flushed_and_any_part_of_the_rest() {
    let device = device();
    device.write(Lba(0), &blocks(1, 2)).expect("write");
    device.flush().expect("flush");
    device.write(Lba(2), &blocks(2, 3)).expect("write");
    device.append(ZoneId(1), &blocks(3, 1)).expect("append");
    let log = device.log();
    assert_eq!(log.len(), 4);
    let after = |cut, survival| log.device_after(cut, survival).expect("rebuild");
    assert_eq!(
        tags(&after(CrashPoint::after(4), Survival::All), 0),
        [1, 1, 2, 2, 2]
    );
    assert_eq!(
        tags(&after(CrashPoint::after(4), Survival::None), 0),
        [1, 1]
    );
    assert_eq!(
        tags(&after(CrashPoint::after(1), Survival::None), 0),
        [0; 0]
    );
    let mut seen = std::collections::HashSet::new();
    for seed in 0..300 {
        for cut in [CrashPoint::after(3), CrashPoint::during(2)] {
            let found = after(cut, Survival::Seeded(seed));
            let again = after(cut, Survival::Seeded(seed));
            assert_eq!(
                tags(&found, 0),
                tags(&again, 0),
                "seed {seed} is deterministic"
            );
            let tags = tags(&found, 0);
            assert_eq!(tags[..2], [1, 1], "seed {seed}");
            assert!(
                tags[2..].iter().all(|&tag| tag == 0 || tag == 2),
                "seed {seed}: {tags:?}"
            );
            assert_eq!(pointer(&found, 1), (ZoneState::Empty, 0));
            seen.insert(tags);
        }
    }
    // No block more, or 1, 2, 3 blocks, each kept or lost.
    assert_eq!(seen.len(), 1 + 2 + 4 + 8);
    assert!(
        log.device_after(CrashPoint::during(4), Survival::All)
            .is_err()
    );
}

#[test]
fn completed_reset_is_never_undone_and_an_interrupted_one_may_be() {
    let device = device();
    device.write(Lba(0), &blocks(1, 24)).expect("write");
    device.flush().expect("flush");
    device.reset(ZoneId(0)).expect("reset");
    device.write(Lba(0), &blocks(2, 2)).expect("write");
    let log = device.log();
    let mut interrupted = std::collections::HashSet::new();
    for seed in 0..50 {
        let survival = Survival::Seeded(seed);
        let found = log
            .device_after(CrashPoint::after(4), survival)
            .expect("rebuild");
        assert!(
            tags(&found, 0).iter().all(|&tag| tag != 1),
            "old data next to new"
        );
        let found = log
            .device_after(CrashPoint::during(2), survival)
            .expect("rebuild");
        interrupted.insert(tags(&found, 0));
    }
    assert_eq!(interrupted.len(), 2);
    assert!(interrupted.contains(&vec![]) && interrupted.contains(&vec![1; 24]));
}

#[test]
fn rebuilt_devices_never_have_more_active_zones_than_the_limit() {
    let device = device();
    for zone in 0..4 {
        device.append(ZoneId(zone), &blocks(1, 24)).expect("fill");
    }
    let log = device.log();
    for seed in 0..100 {
        let found = log
            .device_after(CrashPoint::after(4), Survival::Seeded(seed))
            .expect("rebuild");
        let report = found.report(ZoneId(0), 4).expect("report");
        let closed = report
            .iter()
            .filter(|zone| zone.state == ZoneState::Closed)
            .count();
        assert!(closed <= 2, "seed {seed}");
    }
}

#[test]
fn rebuilt_device_works_and_leaves_the_log_alone() {
    let device = device();
    device.write(Lba(0), &blocks(1, 2)).expect("write");
    let log = device.log();
    let cut = CrashPoint::after(1);
    let rebuilt = log.device_after(cut, Survival::All).expect("rebuild");
    let rebuilt = FaultDevice::new(rebuilt).expect("device");
    rebuilt.write(Lba(2), &blocks(2, 1)).expect("write");
    assert_eq!(tags(&rebuilt, 0), [1, 1, 2]);
    rebuilt.reset(ZoneId(0)).expect("reset");
    let fresh = log.device_after(cut, Survival::All).expect("rebuild");
    assert_eq!(tags(&fresh, 0), [1, 1]);
    // The log of a device that had contents starts from them.
    let base = rebuilt
        .log()
        .device_after(CrashPoint::after(0), Survival::None)
        .expect("rebuild");
    assert_eq!(tags(&base, 0), [1, 1]);
    assert!(matches!(
        rebuilt.log().ops()[0],
        LoggedOp::Write { lba: Lba(2), .. }
    ));
    rebuilt.stop_log();
    assert!(rebuilt.log().is_empty());
}

#[test]
fn a_durable_write_outlives_a_power_cut_and_takes_nothing_else_along() {
    let device = device().with_durable_writes();
    device.write(Lba(0), &blocks(1, 2)).expect("write");
    device.write_durable(Lba(2), &blocks(2, 2)).expect("write");
    device.append(ZoneId(0), &blocks(3, 1)).expect("append");
    let log = device.log();
    let after = |cut, survival| {
        let left = log.device_after(cut, survival).expect("rebuild");
        tags(&left, 0)
    };
    assert_eq!(after(CrashPoint::after(3), Survival::None), [0, 0, 2, 2]);
    assert_eq!(after(CrashPoint::after(2), Survival::All), [1, 1, 2, 2]);
    let found = |cut| (0..100).map(move |seed| (cut, Survival::Seeded(seed)));
    let lost = |tags: &[u8]| tags.get(..2) == Some(&[0, 0]);
    let mut below = found(CrashPoint::after(2)).map(|(cut, seed)| after(cut, seed));
    assert!(
        below.all(|tags| tags[2..] == [2, 2]),
        "whatever else is lost"
    );
    let mut below = found(CrashPoint::after(2)).map(|(cut, seed)| after(cut, seed));
    assert!(below.any(|tags| lost(&tags)), "blocks before it may go");
    let mut torn = found(CrashPoint::during(1)).map(|(cut, seed)| after(cut, seed));
    assert!(
        torn.any(|tags| tags.len() < 4),
        "one under way promises nothing"
    );
}

#[test]
fn without_durable_writes_a_device_flushes_for_one() {
    let device = device();
    device.write(Lba(0), &blocks(1, 1)).expect("write");
    device.write_durable(Lba(1), &blocks(2, 1)).expect("write");
    let log = device.log();
    assert!(matches!(log.ops()[2], LoggedOp::Flush { covers: 2 }));
    let left = log.device_after(CrashPoint::after(3), Survival::None);
    assert_eq!(tags(&left.expect("rebuild"), 0), [1, 2]);
}

#[test]
fn a_torn_durable_write_is_as_lost_as_any() {
    let device = device().with_durable_writes();
    device.inject(When::Nth(0), Fault::TearWrite { blocks: 1 });
    assert!(device.write_durable(Lba(0), &blocks(1, 2)).is_err());
    let log = device.log();
    let left = log.device_after(CrashPoint::after(1), Survival::None);
    assert_eq!(tags(&left.expect("rebuild"), 0), [0; 0]);
}

#[test]
fn thousands_of_crash_points_of_a_busy_device_are_rebuilt_in_a_moment() {
    let geometry = Geometry {
        zones: 32,
        zone_size: 4096,
        zone_capacity: 4096,
        ..GEOMETRY
    };
    let device = FaultDevice::new(MemDevice::new(geometry).expect("memory")).expect("device");
    for op in 0..2000_u32 {
        let zone = ZoneId(op / 64);
        device.append(zone, &blocks(op as u8, 64)).expect("append");
        if op % 20 == 0 {
            device.flush().expect("flush");
        }
    }
    let log = device.log();
    let start = std::time::Instant::now();
    for cut in 0..log.len() {
        let survival = Survival::Seeded(cut as u64);
        log.device_after(CrashPoint::during(cut), survival)
            .expect("rebuild");
    }
    assert!(
        start.elapsed().as_secs() < 10,
        "{:?} for {} points",
        start.elapsed(),
        log.len()
    );
}
