//! The behaviour every zoned device has to show, as checks that panic with what went wrong.
//!
//! Each check takes a fresh device. [`check_all`] makes one per check and needs a geometry with at
//! least eight zones, capacities of at least 24 blocks, `max_open` 3, `max_active` 4 and
//! `max_append` of at least 4 blocks. Not covered: durability, which is different for each device.

mod queue;

use std::sync::Arc;

use crate::{Error, Geometry, Lba, Result, ZoneId, ZoneState, ZonedDevice};

/// Geometries the suite is meant to be run with: both block sizes, capacity below and at the size.
#[must_use]
pub fn geometries() -> [Geometry; 4] {
    let base = Geometry {
        block_size: 4096,
        zones: 8,
        zone_size: 64,
        zone_capacity: 48,
        max_open: 3,
        max_active: 4,
        max_append: 16,
    };
    [
        base,
        Geometry {
            zone_capacity: 64,
            ..base
        },
        Geometry {
            block_size: 512,
            ..base
        },
        // Zones whose bytes are no multiple of a page.
        Geometry {
            block_size: 512,
            zone_size: 61,
            zone_capacity: 61,
            ..base
        },
    ]
}

/// Runs every check, each on a device of its own.
///
/// # Panics
/// When the device does not conform.
pub fn check_all(mut fresh: impl FnMut() -> Arc<dyn ZonedDevice>) {
    check_transitions(&*fresh());
    check_writes_and_reads(&*fresh());
    check_limits(&*fresh());
    check_bad_arguments(&*fresh());
    check_reads_across_zones(&*fresh());
    check_reads_together(&*fresh());
    check_map_source(&*fresh());
    queue::check_queue(&*fresh());
    for seed in 0..3 {
        check_against_model(&*fresh(), seed);
    }
}

const Z0: ZoneId = ZoneId(0);
const Z1: ZoneId = ZoneId(1);

/// Blocks that can be told apart by `tag` and their index.
#[must_use]
pub fn pattern(geometry: &Geometry, tag: u64, blocks: u64) -> Vec<u8> {
    let words_per_block = u64::from(geometry.block_size) / 8;
    (0..blocks * words_per_block)
        .flat_map(|word| {
            let mixed = (tag << 32 ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            (mixed ^ mixed >> 29).to_le_bytes()
        })
        .collect()
}

fn info(device: &dyn ZonedDevice, zone: ZoneId) -> (ZoneState, u64) {
    let report = device.report(zone, 1).expect("report");
    assert_eq!(report[0].zone, zone);
    assert_eq!(report[0].capacity, device.geometry().zone_capacity);
    (report[0].state, report[0].write_pointer)
}

fn read(device: &dyn ZonedDevice, lba: Lba, blocks: u64) -> Result<Vec<u8>> {
    let mut buf = vec![0xA5; blocks as usize * device.geometry().block_size as usize];
    device.read(lba, &mut buf).map(|()| buf)
}

fn put(device: &dyn ZonedDevice, lba: Lba, tag: u64, blocks: u64) -> Result<()> {
    device.write(lba, &pattern(device.geometry(), tag, blocks))
}

fn refused(outcome: Result<()>, from: ZoneState) {
    assert!(
        matches!(&outcome, Err(Error::InvalidTransition { from: named, .. }) if *named == from),
        "{outcome:?} from {from}"
    );
}

fn check_transitions(device: &dyn ZonedDevice) {
    let capacity = device.geometry().zone_capacity;
    assert_eq!(info(device, Z0), (ZoneState::Empty, 0));
    refused(device.close(Z0), ZoneState::Empty);
    device.reset(Z0).expect("resetting an empty zone");

    put(device, Lba(0), 1, 2).expect("write");
    assert_eq!(info(device, Z0), (ZoneState::ImplicitlyOpen, 2));
    device.open(Z0).expect("open");
    device.open(Z0).expect("open again");
    assert_eq!(info(device, Z0), (ZoneState::ExplicitlyOpen, 2));
    put(device, Lba(2), 2, 1).expect("write");
    assert_eq!(info(device, Z0), (ZoneState::ExplicitlyOpen, 3));
    device.close(Z0).expect("close");
    device.close(Z0).expect("close again");
    assert_eq!(info(device, Z0), (ZoneState::Closed, 3));
    put(device, Lba(3), 3, 1).expect("write");
    assert_eq!(info(device, Z0), (ZoneState::ImplicitlyOpen, 4));

    device.finish(Z0).expect("finish");
    device.finish(Z0).expect("finish again");
    assert_eq!(info(device, Z0), (ZoneState::Full, capacity));
    refused(device.open(Z0), ZoneState::Full);
    refused(device.close(Z0), ZoneState::Full);
    assert!(matches!(
        put(device, Lba(4), 0, 1),
        Err(Error::ZoneFull(Z0))
    ));
    assert!(matches!(
        device.append(Z0, &pattern(device.geometry(), 0, 1)),
        Err(Error::ZoneFull(Z0))
    ));
    let skipped = read(device, Lba(4), capacity - 4).expect("read what finishing skipped");
    assert!(
        skipped.iter().all(|&byte| byte == 0),
        "skipped blocks are zeroes"
    );

    device.reset(Z0).expect("reset");
    assert_eq!(info(device, Z0), (ZoneState::Empty, 0));
    assert!(matches!(
        read(device, Lba(0), 1),
        Err(Error::Unwritten { .. })
    ));
    device.finish(Z0).expect("finishing an empty zone");
    let zeroes = read(device, Lba(0), capacity).expect("read");
    assert!(zeroes.iter().all(|&byte| byte == 0), "old data came back");
    device.reset(Z0).expect("reset");
    device.open(Z0).expect("open");
    assert_eq!(info(device, Z0), (ZoneState::ExplicitlyOpen, 0));
}

fn check_writes_and_reads(device: &dyn ZonedDevice) {
    let geometry = *device.geometry();
    let capacity = geometry.zone_capacity;
    let start = geometry.zone_start(Z1);
    let data = pattern(&geometry, 7, capacity);
    let block = geometry.block_size as usize;
    let mut at = 0;
    let writes = [ZonedDevice::write, ZonedDevice::write_durable];
    for (turn, blocks) in [1, 3, 2, 5, capacity - 11].into_iter().enumerate() {
        let part = &data[at as usize * block..(at + blocks) as usize * block];
        writes[turn % 2](device, start.plus(at), part).expect("write at the pointer");
        at += blocks;
        assert_eq!(
            read(device, start, at).expect("read"),
            data[..at as usize * block]
        );
        if at < capacity {
            let outcome = read(device, start, at + 1);
            let expected = start.plus(at);
            assert!(
                matches!(outcome, Err(Error::Unwritten { write_pointer, .. }) if write_pointer == expected)
            );
        }
    }
    assert_eq!(info(device, Z1), (ZoneState::Full, capacity));
    let middle = read(device, start.plus(3), 5).expect("read from the middle");
    assert_eq!(middle, data[3 * block..8 * block]);
    // Slices that no direct I/O could take.
    let mut shifted = vec![0; 4 * block + 1];
    device
        .read(start.plus(2), &mut shifted[1..])
        .expect("read into an odd address");
    assert_eq!(shifted[1..], data[2 * block..6 * block]);
    device
        .write(Lba(0), &shifted[1..])
        .expect("write from an odd address");
    assert_eq!(read(device, Lba(0), 4).expect("read"), shifted[1..]);

    device.reset(Z1).expect("reset");
    let first = device.append(Z1, &data[..2 * block]).expect("append");
    let second = device
        .append(Z1, &data[2 * block..3 * block])
        .expect("append");
    assert_eq!((first, second), (start, start.plus(2)));
    assert_eq!(read(device, start, 3).expect("read"), data[..3 * block]);
    device.flush().expect("flush");
}

fn check_limits(device: &dyn ZonedDevice) {
    let geometry = *device.geometry();
    assert_eq!(
        (geometry.max_open, geometry.max_active),
        (3, 4),
        "the suite's geometry"
    );
    let block = pattern(&geometry, 1, 1);
    for zone in 0..3 {
        device.append(ZoneId(zone), &block).expect("append");
    }
    device
        .append(ZoneId(3), &block)
        .expect("append that closes the zone opened first");
    assert_eq!(info(device, Z0).0, ZoneState::Closed);
    assert_eq!(info(device, ZoneId(3)).0, ZoneState::ImplicitlyOpen);
    assert!(matches!(
        device.append(ZoneId(4), &block),
        Err(Error::TooManyActive(4))
    ));
    assert!(matches!(
        device.open(ZoneId(4)),
        Err(Error::TooManyActive(4))
    ));
    for zone in 0..3 {
        device
            .open(ZoneId(zone))
            .expect("explicit opens close implicitly open zones");
    }
    assert_eq!(info(device, ZoneId(3)).0, ZoneState::Closed);
    assert!(matches!(
        device.append(ZoneId(3), &block),
        Err(Error::TooManyOpen(3))
    ));
    assert!(matches!(device.open(ZoneId(3)), Err(Error::TooManyOpen(3))));
    device.finish(Z0).expect("finish");
    device
        .open(ZoneId(3))
        .expect("the finished zone gave its resources back");
    device
        .finish(ZoneId(5))
        .expect("finishing an empty zone needs no resources");
}

fn check_bad_arguments(device: &dyn ZonedDevice) {
    let geometry = *device.geometry();
    let block = geometry.block_size as usize;
    let beyond = ZoneId(geometry.zones);
    let end = geometry.zone_start(beyond);
    assert!(matches!(
        device.report(beyond, 1),
        Err(Error::OutOfRange(_))
    ));
    assert!(matches!(
        device.report(Z1, geometry.zones),
        Err(Error::OutOfRange(_))
    ));
    for act in [
        ZonedDevice::reset,
        ZonedDevice::finish,
        ZonedDevice::open,
        ZonedDevice::close,
    ] {
        assert!(matches!(act(device, beyond), Err(Error::OutOfRange(_))));
    }
    assert!(matches!(
        device.write(end, &vec![0; block]),
        Err(Error::OutOfRange(_))
    ));
    assert!(matches!(
        device.append(beyond, &vec![0; block]),
        Err(Error::OutOfRange(_))
    ));
    assert!(matches!(read(device, end, 1), Err(Error::OutOfRange(_))));
    assert!(matches!(
        read(device, Lba(u64::MAX), 1),
        Err(Error::OutOfRange(_))
    ));
    for len in [0, 1, block - 1, block + 1] {
        for write in [ZonedDevice::write, ZonedDevice::write_durable] {
            assert!(matches!(
                write(device, Lba(0), &vec![0; len]),
                Err(Error::BadLength(_))
            ));
        }
        assert!(matches!(
            device.append(Z0, &vec![0; len]),
            Err(Error::BadLength(_))
        ));
        assert!(matches!(
            device.read(Lba(0), &mut vec![0; len]),
            Err(Error::BadLength(_))
        ));
    }
    let too_long = (geometry.max_append + 1) as usize * block;
    assert!(matches!(
        device.append(Z0, &vec![0; too_long]),
        Err(Error::BadLength(_))
    ));

    put(device, Lba(0), 1, 4).expect("write");
    let data = pattern(&geometry, 1, 1);
    for write in [ZonedDevice::write, ZonedDevice::write_durable] {
        for lba in [0, 3, 5, 9] {
            let outcome = write(device, Lba(lba), &data);
            assert!(
                matches!(
                    outcome,
                    Err(Error::ZoneInvalidWrite {
                        write_pointer: Lba(4),
                        ..
                    })
                ),
                "{outcome:?}"
            );
        }
    }
    let outcome = put(device, Lba(4), 1, geometry.zone_capacity - 3);
    assert!(
        matches!(outcome, Err(Error::ZoneBoundary { .. })),
        "{outcome:?}"
    );
    assert_eq!(info(device, Z0), (ZoneState::ImplicitlyOpen, 4));
}

/// Many ranges at once: of every length, of several zones, over and over, some in memory that no
/// direct I/O could take.
fn check_reads_together(device: &dyn ZonedDevice) {
    let geometry = *device.geometry();
    let block = geometry.block_size as usize;
    let written = geometry.zone_capacity - 1;
    let data = [
        pattern(&geometry, 1, written),
        pattern(&geometry, 2, written),
    ];
    put(device, Lba(0), 1, written).expect("write");
    put(device, geometry.zone_start(Z1), 2, written).expect("write");
    device.read_all(&mut []).expect("read nothing");
    for shift in [0, 1] {
        let ranges = (0..100u64).map(|i| {
            let from = i * 7 % written;
            (i as usize % 2, from, 1 + i % 9 % (written - from))
        });
        let mut buffers: Vec<_> = ranges
            .clone()
            .map(|(_, _, blocks)| vec![0; blocks as usize * block + shift])
            .collect();
        let mut reads: Vec<_> = ranges
            .clone()
            .zip(&mut buffers)
            .map(|((zone, from, _), buffer)| {
                let start = geometry.zone_start(ZoneId(zone as u32));
                (start.plus(from), &mut buffer[shift..])
            })
            .collect();
        device.read_all(&mut reads).expect("read together");
        for ((zone, from, blocks), buffer) in ranges.zip(&buffers) {
            let expected = &data[zone][from as usize * block..(from + blocks) as usize * block];
            assert!(
                buffer[shift..] == *expected,
                "zone {zone}, {blocks} from {from}"
            );
        }
    }
    let (mut good, mut bad) = (vec![0; block], vec![0; block]);
    let reads = &mut [(Lba(0), &mut good[..]), (Lba(written), &mut bad[..])];
    let outcome = device.read_all(reads);
    assert!(
        matches!(outcome, Err(Error::Unwritten { .. })),
        "{outcome:?}"
    );
}

fn check_reads_across_zones(device: &dyn ZonedDevice) {
    let geometry = *device.geometry();
    let capacity = geometry.zone_capacity;
    put(device, Lba(0), 1, capacity).expect("fill");
    put(device, geometry.zone_start(Z1), 2, 3).expect("write");
    let across = read(device, Lba(capacity - 2), 4);
    if capacity < geometry.zone_size {
        assert!(matches!(across, Err(Error::ZoneBoundary { .. })));
        assert!(matches!(
            read(device, Lba(capacity), 1),
            Err(Error::ZoneBoundary { .. })
        ));
        let outcome = put(device, geometry.zone_start(Z1).plus(capacity), 1, 1);
        assert!(
            matches!(outcome, Err(Error::ZoneBoundary { .. })),
            "{outcome:?}"
        );
        return;
    }
    let block = geometry.block_size as usize;
    let mut expected = pattern(&geometry, 1, capacity)[(capacity as usize - 2) * block..].to_vec();
    expected.extend_from_slice(&pattern(&geometry, 2, 3)[..2 * block]);
    assert_eq!(
        across.expect("read from a full zone into the next"),
        expected
    );
    assert!(matches!(
        read(device, Lba(capacity - 2), 6),
        Err(Error::Unwritten { .. })
    ));
}

fn check_map_source(device: &dyn ZonedDevice) {
    let geometry = *device.geometry();
    let start = geometry.zone_start(Z1);
    assert!(
        device.map_source(start, 1).is_err(),
        "nothing to map above the write pointer"
    );
    for round in 0..3 {
        put(device, start.plus(round), round, 1).expect("write");
        let Some(source) = device.map_source(start, round + 1).expect("map source") else {
            return;
        };
        let file = std::fs::File::from(source.fd.try_clone_to_owned().expect("clone"));
        let mut found = vec![0; (round + 1) as usize * geometry.block_size as usize];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, source.offset).expect("read");
        assert_eq!(found, read(device, start, round + 1).expect("read"));
    }
    device.reset(Z1).expect("reset");
    put(device, start, 9, 1).expect("write");
    let source = device
        .map_source(start, 1)
        .expect("map source")
        .expect("mapped before");
    let file = std::fs::File::from(source.fd.try_clone_to_owned().expect("clone"));
    let mut found = vec![0; geometry.block_size as usize];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, source.offset).expect("read");
    assert_eq!(
        found,
        pattern(&geometry, 9, 1),
        "the mapping shows what was there before the reset"
    );
}

/// A random run against zones that are plain vectors.
fn check_against_model(device: &dyn ZonedDevice, seed: u64) {
    let geometry = *device.geometry();
    let block = geometry.block_size as usize;
    let capacity = geometry.zone_capacity;
    let mut model: Vec<Vec<u8>> = vec![Vec::new(); geometry.zones as usize];
    let mut state = seed
        .wrapping_mul(0x2545_F491_4F6C_DD1D)
        .wrapping_add(0x9E37_79B9);
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for step in 0..400 {
        let zone = ZoneId(random(4) as u32);
        let start = geometry.zone_start(zone);
        let data = &mut model[zone.0 as usize];
        let pointer = (data.len() / block) as u64;
        let context = format!("seed {seed}, step {step}, zone {zone}");
        match random(12) {
            0..6 => {
                let blocks = 1 + random(geometry.max_append.min(8));
                let bytes = pattern(&geometry, step, blocks);
                // Beyond a full zone without a gap lies the next zone.
                let outcome = if random(2) == 0 || pointer == geometry.zone_size {
                    device.append(zone, &bytes)
                } else {
                    device
                        .write(start.plus(pointer), &bytes)
                        .map(|()| start.plus(pointer))
                };
                match outcome {
                    Ok(lba) => {
                        assert_eq!(lba, start.plus(pointer), "{context}");
                        data.extend_from_slice(&bytes);
                    }
                    Err(Error::ZoneFull(_)) => assert_eq!(pointer, capacity, "{context}"),
                    Err(Error::ZoneBoundary { .. }) => {
                        assert!(pointer + blocks > capacity, "{context}");
                    }
                    Err(error) => panic!("{context}: {error}"),
                }
            }
            6 => {
                device.finish(zone).expect(&context);
                data.resize(capacity as usize * block, 0);
            }
            7 => {
                device.reset(zone).expect(&context);
                data.clear();
            }
            8 => device.flush().expect(&context),
            _ if pointer == 0 => {
                assert!(
                    matches!(read(device, start, 1), Err(Error::Unwritten { .. })),
                    "{context}"
                );
            }
            _ => {
                let first = random(pointer);
                let blocks = 1 + random(pointer - first);
                let bytes = read(device, start.plus(first), blocks).expect(&context);
                let range = first as usize * block..(first + blocks) as usize * block;
                assert_eq!(bytes, data[range], "{context}");
            }
        }
        let pointer = (model[zone.0 as usize].len() / block) as u64;
        assert_eq!(info(device, zone).1, pointer, "{context}");
    }
}
