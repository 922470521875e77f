//! The queue's part of the suite.

use std::sync::Arc;

use super::{Z1, pattern, read};
use crate::{DeviceQueue, DmaBuffer, Lba, Request, ZoneId, ZonedDevice};

/// A buffer of the device that holds `bytes`.
fn filled(device: &dyn ZonedDevice, bytes: &[u8]) -> Arc<DmaBuffer> {
    let mut buffer = device.buffer(bytes.len());
    buffer.copy_from_slice(bytes);
    Arc::new(buffer)
}

/// Requests of a part of the suite.
const ROUNDS: u64 = 20;
/// Added to the numbers of appends.
const APPEND: u64 = 100;
/// The number of a flush.
const FLUSH: u64 = 1000;

pub(super) fn check_queue(device: &dyn ZonedDevice) {
    let queue = device.queue(8).expect("queue");
    let mut done = Vec::new();
    queue
        .wait(0, &mut done)
        .expect("taking nothing does not wait");
    assert!(done.is_empty());
    check_queued_writes(device, &*queue);
    check_queued_reads(device, &*queue);
    check_queued_refusals(device, &*queue);
    check_large_transfers(device);
    check_queue_threads(device);
}

/// More than the depth, with none taken in between: ordered writes to one zone, appends to another,
/// from registered and from plain memory.
fn check_queued_writes(device: &dyn ZonedDevice, queue: &dyn DeviceQueue) {
    let geometry = device.geometry();
    for index in 0..ROUNDS {
        let bytes = pattern(geometry, index, 1);
        let data = if index % 3 == 0 {
            let mut plain = DmaBuffer::new(bytes.len());
            plain.copy_from_slice(&bytes);
            Arc::new(plain)
        } else {
            filled(device, &bytes)
        };
        let write = Request::Write {
            lba: Lba(index),
            data: Arc::clone(&data),
            blocks: 1,
            durable: index.is_multiple_of(4),
        };
        queue.submit(index, write).expect("submit");
        let append = Request::Append {
            zone: Z1,
            data,
            blocks: 1,
        };
        queue.submit(APPEND + index, append).expect("submit");
    }
    let mut done = Vec::new();
    queue.wait(2 * ROUNDS as usize, &mut done).expect("wait");
    assert_eq!(done.len(), 2 * ROUNDS as usize);
    let mut appended = Vec::new();
    for completion in done {
        let lba = completion.result.expect("write or append");
        let index = completion.token % APPEND;
        if completion.token < APPEND {
            assert_eq!(lba, Lba(index));
        } else {
            appended.push(lba);
        }
        let found = read(device, lba, 1).expect("read");
        assert_eq!(found, pattern(geometry, index, 1));
    }
    // In whatever order: appends in flight together take what place they get.
    appended.sort_unstable();
    let start = geometry.zone_start(Z1);
    assert!(
        appended
            .into_iter()
            .eq((0..ROUNDS).map(|block| start.plus(block))),
        "each append has a place of its own, without gaps"
    );
}

/// Reads of what [`check_queued_writes`] wrote, behind a flush, into registered and into plain memory.
fn check_queued_reads(device: &dyn ZonedDevice, queue: &dyn DeviceQueue) {
    let geometry = device.geometry();
    let block = geometry.block_size as usize;
    queue.submit(FLUSH, Request::Flush).expect("submit");
    for index in 0..ROUNDS {
        let buffer = if index % 2 == 0 {
            device.buffer(block)
        } else {
            DmaBuffer::new(block)
        };
        let lba = Lba(index);
        queue
            .submit(index, Request::Read { lba, buffer })
            .expect("submit");
    }
    let mut done = Vec::new();
    queue.wait(ROUNDS as usize + 1, &mut done).expect("wait");
    for completion in done {
        assert!(completion.result.is_ok(), "{completion:?}");
        if completion.token != FLUSH {
            let buffer = completion.buffer.expect("the buffer of a read comes back");
            assert_eq!(*buffer, *pattern(geometry, completion.token, 1));
        }
    }
}

/// What the device refuses completes with an error, and with the buffer that it came with.
fn check_queued_refusals(device: &dyn ZonedDevice, queue: &dyn DeviceQueue) {
    let geometry = device.geometry();
    let data = filled(device, &pattern(geometry, 0, 1));
    let refused = [
        Request::Write {
            lba: Lba(ROUNDS + 1),
            data: Arc::clone(&data),
            blocks: 1,
            durable: true,
        },
        Request::Write {
            lba: Lba(ROUNDS),
            data: Arc::clone(&data),
            blocks: 2,
            durable: false,
        },
        Request::Append {
            zone: ZoneId(geometry.zones),
            data,
            blocks: 1,
        },
        Request::Read {
            lba: Lba(ROUNDS),
            buffer: device.buffer(geometry.block_size as usize),
        },
    ];
    let mut done = Vec::new();
    for (token, request) in (0..).zip(refused) {
        let is_read = matches!(request, Request::Read { .. });
        queue
            .submit(token, request)
            .expect("refusals complete, they do not fail to submit");
        queue.wait(1, &mut done).expect("wait");
        let completion = done.pop().expect("completion");
        assert!(completion.result.is_err(), "{completion:?}");
        assert_eq!(
            (completion.token, completion.buffer.is_some()),
            (token, is_read)
        );
    }
}

/// Whole zones in one request, also across zones where that is allowed.
fn check_large_transfers(device: &dyn ZonedDevice) {
    let geometry = *device.geometry();
    let queue = device.queue(1).expect("queue");
    let mut done = Vec::new();
    let capacity = geometry.zone_capacity;
    let mut expected = Vec::new();
    for zone in [ZoneId(2), ZoneId(3)] {
        let bytes = pattern(&geometry, u64::from(zone.0), capacity);
        let (lba, data) = (geometry.zone_start(zone), filled(device, &bytes));
        queue
            .submit(
                0,
                Request::Write {
                    lba,
                    data,
                    blocks: capacity,
                    durable: zone == ZoneId(2),
                },
            )
            .expect("submit");
        expected.extend(bytes);
    }
    let whole = if capacity == geometry.zone_size { 2 } else { 1 };
    expected.truncate(whole * capacity as usize * geometry.block_size as usize);
    queue.wait(2, &mut done).expect("wait");
    // From the start, and from within, so that pieces end where nothing is aligned.
    for skipped in [0, 3] {
        let expected = &expected[skipped * geometry.block_size as usize..];
        let lba = geometry.zone_start(ZoneId(2)).plus(skipped as u64);
        let buffer = device.buffer(expected.len());
        queue
            .submit(1, Request::Read { lba, buffer })
            .expect("submit");
        queue.wait(1, &mut done).expect("wait");
        for completion in done.drain(..) {
            assert!(completion.result.is_ok(), "{completion:?}");
            if let Some(buffer) = completion.buffer {
                assert_eq!(*buffer, *expected);
            }
        }
    }
}

/// One thread submits more than fits, another takes completions.
fn check_queue_threads(device: &dyn ZonedDevice) {
    const READS: usize = 200;
    let queue = device.queue(4).expect("queue");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut done = Vec::new();
            while done.len() < READS {
                queue.wait(1, &mut done).expect("wait");
            }
            let mut tokens: Vec<u64> = done.iter().map(|completion| completion.token).collect();
            tokens.sort_unstable();
            assert!(
                tokens.into_iter().eq(0..READS as u64),
                "each completion once"
            );
        });
        for token in 0..READS as u64 {
            // Every third is refused: it has to wake the waiter as well.
            let lba = Lba(if token % 3 == 0 { u64::MAX } else { token % 4 });
            let buffer = device.buffer(device.geometry().block_size as usize);
            queue
                .submit(token, Request::Read { lba, buffer })
                .expect("submit");
        }
    });
}
