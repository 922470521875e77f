//! Loading, activating, many at once, shutting down.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::time::Duration;

use csd_vm::request::{Completion, Failure, Piece, SnapshotMap};
use csd_vm::{Device, DeviceConfig, LoadError};

use crate::common::{
    BLOCK, Bench, PASSTHROUGH, Shape, Writer, compile, mem, pattern, read, warren,
};

#[test]
fn objects_that_are_no_programs_are_told_from_those_that_are_refused() {
    let device = Device::new(mem(), DeviceConfig::default()).expect("device");
    for bytes in [
        &b""[..],
        b"#!/bin/sh",
        &[0x7f, b'E', b'L', b'F'],
        &[0; 5000],
    ] {
        let error = device.load(bytes).err();
        assert!(matches!(error, Some(LoadError::NotBpf(_))), "{error:?}");
    }
    for source in [
        "extern int nothing(void); int main() { return nothing(); }",
        "static int (*h)(void) = (void *)77; int main() { return h(); }",
        "#include <warren.h>\nint f(int x) { return x; } int g(int x) { return x; }",
    ] {
        let error = device.load(&compile(source)).err();
        assert!(
            matches!(error, Some(LoadError::Refused(_))),
            "{source}: {error:?}"
        );
    }
}

#[test]
fn a_program_is_linked_and_compiled_once_and_kept_for_later() {
    let device = Device::new(
        mem(),
        DeviceConfig {
            // One: a cage is free for the next execution only once its worker is done with it.
            workers: 1,
            cached_programs_max: 1,
            ..DeviceConfig::default()
        },
    )
    .expect("device");
    let file = Writer::new(&mem()).write(b"abc", Shape::Contiguous);
    let objects = [1, 2, 3, 4].map(|value| warren(&format!("return {value};")));
    for _ in 0..5 {
        let activation = device.activate(&device.load(&objects[0]).expect("loads"));
        let finished = device
            .execute(&activation, read(&file, 0, 0))
            .expect("runs");
        assert_eq!(finished.value, 1);
    }
    let counters = device.counters();
    assert_eq!(
        (counters.programs_linked, counters.program_cache_hits),
        (1, 4)
    );
    assert_eq!((counters.bindings, counters.cages_made), (1, 1));
    // When one is added, the cache forgets all but the last one of those nobody refers to.
    let held = device.load(&objects[0]).expect("loads");
    for object in &objects[1..] {
        drop(device.load(object).expect("loads"));
    }
    assert_eq!(device.counters().programs_linked, 4);
    drop(device.load(&objects[2]).expect("loads"));
    let again = device.load(&objects[0]).expect("loads");
    assert!(Arc::ptr_eq(&held, &again));
    assert_eq!(device.counters().programs_linked, 4);
    drop(device.load(&objects[1]).expect("loads"));
    assert_eq!(device.counters().programs_linked, 5);
}

#[test]
fn a_program_is_described() {
    let object = compile(
        "#include <warren.h>
         static const char text[] = \"hello\"; int counter = 7; int zero[100];
         __attribute__((noinline)) int twice(int x) { return x * 2 + zero[x]; }
         int main(const struct warren_request *r) {
             warren_emit(text, twice(counter++)); return 0;
         }",
    );
    let device = Device::new(mem(), DeviceConfig::default()).expect("device");
    let program = device.load(&object).expect("loads");
    let description = program.describe();
    assert_eq!(description.entry, "main");
    assert_eq!(description.functions.len(), 2);
    assert_eq!(description.helpers, ["warren_emit"]);
    assert_eq!(description.zeroed_bytes, 400);
    assert_eq!(description.initialised_bytes, 4);
    assert!(description.read_only_bytes >= 6);
    assert_eq!(description.hash.len(), 64);
    assert_eq!(program.object(), object);
}

#[test]
fn sixty_four_owners_run_their_own_kernels_at_once() {
    let storage = mem();
    let data = pattern(1 << 20);
    let file = Writer::new(&storage).write(&data, Shape::Fragmented);
    let config = DeviceConfig {
        workers: 2,
        // Fewer cages than owners: they are wiped and handed on under way.
        cages_max: 16,
        queue_depth: 4,
        ..DeviceConfig::default()
    };
    let device = Device::new(storage, config).expect("device");
    let barrier = Barrier::new(64);
    std::thread::scope(|scope| {
        for owner in 0..64u64 {
            let (device, file, data, barrier) = (&device, &file, &data, &barrier);
            scope.spawn(move || {
                let source = format!(
                    "static u64 calls = {owner};
                     const u8 *p;
                     s64 n = warren_map(r->offset, r->size, (const void **)&p);
                     u64 sum = calls++;
                     for (s64 i = 0; i < n; i++) sum = sum * {} + p[i];
                     warren_emit(&sum, 8);
                     return 0;",
                    2 * owner + 3
                );
                let program = device.load(&warren(&source)).expect("loads");
                let activation = device.activate(&program);
                barrier.wait();
                for round in 0..10 {
                    let (offset, size) = ((owner * 9973 + round * 77_777) % 900_000, 50_000);
                    let part = &data[offset as usize..][..size];
                    let expected = part.iter().fold(owner, |sum, byte| {
                        sum.wrapping_mul(2 * owner + 3)
                            .wrapping_add(u64::from(*byte))
                    });
                    let request = read(file, offset, size as u64);
                    let finished = device.execute(&activation, request).expect("runs");
                    assert_eq!(finished.output, expected.to_le_bytes(), "owner {owner}");
                }
                assert_eq!(activation.statistics().executions, 10);
            });
        }
    });
    let statistics = device.statistics();
    assert_eq!((statistics.executions, statistics.failures), (640, 0));
    assert_eq!(statistics.bytes_returned, 640 * 8);
    assert_eq!(statistics.bytes_not_moved, 640 * (50_000 - 8));
}

#[test]
fn one_owner_may_have_many_requests_under_way() {
    let bench = Bench::new(&warren(PASSTHROUGH), &pattern(1 << 20));
    let (sender, receiver) = mpsc::channel();
    for at in 0..200u64 {
        let sender = sender.clone();
        let done = Box::new(move |completion: Completion<'_>| {
            assert_eq!(completion.status, Ok(0));
            sender
                .send((at, completion.output.to_vec()))
                .expect("received");
        });
        let request = read(&bench.snapshot, at * 5000, 4999);
        bench.device.submit(&bench.activation, request, done);
    }
    let data = pattern(1 << 20);
    let mut seen = [false; 200];
    for (at, output) in receiver.iter().take(200) {
        assert!(output == data[at as usize * 5000..][..4999]);
        seen[at as usize] = true;
    }
    assert_eq!(seen, [true; 200]);
}

#[test]
fn every_request_is_answered_once_when_the_device_stops() {
    let slow = warren("volatile u64 n = 1; while (n) n |= 2; return 0;");
    let bench = Bench::new(&slow, b"x");
    let answers = Arc::new([const { AtomicU64::new(0) }; 40]);
    for at in 0..40 {
        let mut request = read(&bench.snapshot, 0, 1);
        request.limits.time = Duration::from_millis(100);
        let answers = Arc::clone(&answers);
        let done = Box::new(move |completion: Completion<'_>| {
            let failure = completion.status.expect_err("never ends");
            assert!(matches!(failure, Failure::TimedOut(_) | Failure::Stopped));
            answers[at].fetch_add(1, Ordering::SeqCst);
        });
        bench.device.submit(&bench.activation, request, done);
    }
    bench.device.shutdown();
    assert!(
        answers
            .iter()
            .all(|count| count.load(Ordering::SeqCst) == 1)
    );
    let late = bench
        .device
        .execute(&bench.activation, read(&bench.snapshot, 0, 1));
    assert!(matches!(late, Err((Failure::Stopped, _))));
    assert_eq!(bench.activation.statistics().executions, 41);
}

#[test]
fn a_kernel_that_calls_helpers_ends_when_the_device_stops() {
    let bench = Bench::new(&warren("u64 v; while (1) warren_argument(0, &v);"), b"x");
    let (sender, receiver) = mpsc::channel();
    let mut request = read(&bench.snapshot, 0, 1);
    request.limits.time = Duration::from_secs(600);
    let done = Box::new(move |completion: Completion<'_>| {
        sender.send(completion.status).expect("received");
    });
    bench.device.submit(&bench.activation, request, done);
    while bench.device.counters().queued_now > 0 {
        std::thread::yield_now();
    }
    bench.device.shutdown();
    assert_eq!(receiver.recv(), Ok(Err(Failure::Stopped)));
}

#[test]
fn the_last_reference_to_a_device_may_be_dropped_by_a_completion() {
    let Bench {
        device,
        snapshot,
        activation,
    } = Bench::new(&warren("return 0;"), b"x");
    let (sender, receiver) = mpsc::channel();
    let (start, started) = mpsc::channel::<()>();
    let own = Arc::clone(&device);
    let done = Box::new(move |_: Completion<'_>| {
        started.recv().expect("started");
        drop(own);
        sender.send(()).expect("received");
    });
    device.submit(&activation, read(&snapshot, 0, 1), done);
    drop(device);
    start.send(()).expect("waits");
    assert_eq!(receiver.recv_timeout(Duration::from_secs(5)), Ok(()));
}

#[test]
fn a_completion_that_panics_or_submits_does_not_stop_the_workers() {
    let config = DeviceConfig {
        workers: 1,
        queue_depth: 1,
        ..DeviceConfig::default()
    };
    let bench = Bench::with(&warren("return 0;"), b"x", Shape::Contiguous, config);
    let bench = Arc::new(bench);
    let request = || read(&bench.snapshot, 0, 1);
    let done = Box::new(|_: Completion<'_>| panic!("on purpose, by a test"));
    bench.device.submit(&bench.activation, request(), done);
    let (sender, receiver) = mpsc::channel();
    let (inner, file) = (Arc::clone(&bench), Arc::clone(&bench.snapshot));
    let done = Box::new(move |_: Completion<'_>| {
        for _ in 0..5 {
            let sender = sender.clone();
            let answer = Box::new(move |_: Completion<'_>| {
                let _ = sender.send(());
            });
            inner
                .device
                .submit(&inner.activation, read(&file, 0, 1), answer);
        }
    });
    bench.device.submit(&bench.activation, request(), done);
    assert_eq!(receiver.iter().take(5).count(), 5);
}

#[test]
fn a_snapshot_is_let_go_with_its_owner() {
    let bench = Bench::new(&warren(PASSTHROUGH), b"x");
    let alive = Arc::new(());
    let mut request = read(&bench.snapshot, 0, BLOCK as u64);
    request.snapshot = Arc::new(Watched {
        _alive: Arc::clone(&alive),
    });
    let held = Arc::clone(&request.snapshot);
    bench.run(request);
    drop(held);
    drop(bench.activation);
    wait_until_unique(&alive);
}

/// A hole that tells how long it is referred to.
struct Watched {
    _alive: Arc<()>,
}
impl SnapshotMap for Watched {
    fn size(&self) -> u64 {
        BLOCK as u64
    }
    fn resolve(&self, _: u64, blocks: u64, out: &mut Vec<Piece>) -> Result<(), String> {
        out.push(Piece::Hole { blocks });
        Ok(())
    }
}

fn wait_until_unique(alive: &Arc<()>) {
    let start = std::time::Instant::now();
    while Arc::strong_count(alive) > 1 {
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "the snapshot is still held"
        );
        std::thread::yield_now();
    }
}

#[test]
fn a_snapshot_of_one_request_only_is_let_go_at_its_end() {
    let bench = Bench::new(&warren(PASSTHROUGH), b"x");
    let alive = Arc::new(());
    let mut request = read(&bench.snapshot, 0, BLOCK as u64);
    request.snapshot = Arc::new(Watched {
        _alive: Arc::clone(&alive),
    });
    bench.run(request);
    wait_until_unique(&alive);
}

#[test]
fn mapped_blocks_stay_between_executions_on_one_snapshot() {
    struct Counting(AtomicU64);
    impl SnapshotMap for Counting {
        fn size(&self) -> u64 {
            64 << 20
        }
        fn resolve(&self, _: u64, blocks: u64, out: &mut Vec<Piece>) -> Result<(), String> {
            self.0.fetch_add(blocks, Ordering::SeqCst);
            out.push(Piece::Hole { blocks });
            Ok(())
        }
    }
    let config = DeviceConfig {
        workers: 1,
        ..DeviceConfig::default()
    };
    let bench = Bench::with(&warren(PASSTHROUGH), b"x", Shape::Contiguous, config);
    let counting = Arc::new(Counting(AtomicU64::new(0)));
    let pass = || {
        for offset in (0..8 << 20).step_by(512 << 10) {
            let mut request = read(&bench.snapshot, offset, 512 << 10);
            request.snapshot = Arc::clone(&counting) as Arc<dyn SnapshotMap>;
            bench.run(request);
        }
        counting.0.load(Ordering::SeqCst)
    };
    // Once to map them, and perhaps once more, a little further, to have them read in advance.
    let (blocks, ahead) = ((8 << 20) / BLOCK as u64, 1 << 10);
    let resolved = pass();
    assert!((blocks..=2 * blocks + ahead).contains(&resolved));
    for _ in 0..2 {
        assert_eq!(pass(), resolved);
    }
}
