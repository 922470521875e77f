//! Limits: what each of them ends, and that nobody else notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use csd_vm::request::{Failure, Operation};
use csd_vm::{DeviceConfig, Tenant};

use crate::common::{Bench, PASSTHROUGH, Shape, both_engines, pattern, read, warren, write};

/// Kernels that never end, each in another way.
fn endless() -> Vec<(&'static str, Vec<u8>)> {
    let recursion = "
        #include <warren.h>
        __attribute__((noinline)) int down(u64 n) { if (n == 1) return 1; return down(n * 3) + 1; }
        int main(const struct warren_request *r) { return down(r->size * 2); }";
    vec![
        (
            "loop",
            warren("volatile u64 n = 1; while (n) n |= 2; return 0;"),
        ),
        (
            "helper",
            warren("u64 v; while (1) warren_argument(0, &v); return 0;"),
        ),
        (
            "map",
            warren("const void *p; while (1) { warren_map(0, -1ULL, &p); warren_unmap(); }"),
        ),
        (
            "read",
            warren("while (1) warren_read(0, (void *)r->heap, 32 << 20); return 0;"),
        ),
        (
            "emit",
            warren("while (1) { warren_emit((void *)r->heap, 16 << 20); warren_trim(16 << 20); }"),
        ),
        ("recursion", crate::common::compile(recursion)),
    ]
}

#[test]
fn endless_kernels_end_shortly_after_their_deadline() {
    let data = pattern(16 << 20);
    for (name, object) in endless() {
        for config in both_engines() {
            let interpret = config.interpret;
            let bench = Bench::with(&object, &data, Shape::Contiguous, config);
            let mut request = read(&bench.snapshot, 0, 4096);
            request.limits.time = Duration::from_millis(50);
            request.limits.output = 32 << 20;
            let start = Instant::now();
            let failure = bench.fail(request);
            let took = start.elapsed();
            let ended = match failure {
                Failure::TimedOut(time) => time == Duration::from_millis(50),
                Failure::StackOverflow => name == "recursion",
                _ => false,
            };
            assert!(ended, "{name} (interpreted: {interpret}): {failure}");
            // Ten times what is promised: the machine may be busy with other tests.
            assert!(took < Duration::from_millis(250), "{name}: {took:?}");
        }
    }
}

#[test]
fn endless_kernels_end_shortly_after_their_processor_time() {
    const LIMIT: Duration = Duration::from_millis(50);
    let data = pattern(16 << 20);
    for (name, object) in endless() {
        let bench = Bench::with(&object, &data, Shape::Contiguous, DeviceConfig::default());
        let mut request = read(&bench.snapshot, 0, 4096);
        request.limits.processor = Some(LIMIT);
        request.limits.output = 32 << 20;
        let start = Instant::now();
        let failure = bench.fail(request);
        let took = start.elapsed();
        let ended = match failure {
            Failure::ProcessorTime(time) => time == LIMIT,
            Failure::StackOverflow => name == "recursion",
            _ => false,
        };
        assert!(ended, "{name}: {failure}");
        assert!(took < Duration::from_secs(3), "{name}: {took:?}");
        let used = Duration::from_nanos(bench.activation.statistics().processor_ns);
        // As above, ten times what is promised.
        assert!(
            used < LIMIT + Duration::from_millis(200),
            "{name}: {used:?}"
        );
        assert!(used >= LIMIT || name == "recursion", "{name}: {used:?}");
    }
}

#[test]
fn kernels_of_others_run_while_slow_ones_hold_every_worker() {
    const SLOW: usize = 20;
    let config = DeviceConfig {
        workers: 2,
        ..DeviceConfig::default()
    };
    let slow = warren("volatile u64 n = 1; while (n) n |= 2; return 0;");
    let bench = Bench::with(&slow, &pattern(4096), Shape::Contiguous, config);
    let ended = Arc::new(AtomicUsize::new(0));
    let program = bench.device.load(&slow).expect("loads");
    // Many owners of one tenant, each with more than one request.
    let owners: Vec<_> = (0..SLOW / 2)
        .map(|_| bench.device.activate_for(&program, Tenant(7)))
        .collect();
    for turn in 0..SLOW {
        let mut request = read(&bench.snapshot, 0, 1);
        request.limits.time = Duration::from_secs(20);
        let ended = Arc::clone(&ended);
        let done = Box::new(move |_: csd_vm::request::Completion<'_>| {
            ended.fetch_add(1, Ordering::SeqCst);
        });
        bench.device.submit(&owners[turn / 2], request, done);
    }
    let program = bench.device.load(&warren(PASSTHROUGH)).expect("loads");
    let other = bench.device.activate_for(&program, Tenant(8));
    for _ in 0..5 {
        let mut request = read(&bench.snapshot, 0, 4096);
        request.limits.time = Duration::from_secs(20);
        assert!(bench.device.execute(&other, request).is_ok());
    }
    assert_eq!(
        ended.load(Ordering::SeqCst),
        0,
        "none of the slow kernels has ended"
    );
    assert!(bench.device.counters().workers_now <= 2 + 96);
    bench.device.shutdown();
    assert_eq!(ended.load(Ordering::SeqCst), SLOW);
}

#[test]
fn output_ends_at_its_limit() {
    let bench = Bench::new(&warren(PASSTHROUGH), &pattern(10_000));
    let mut request = read(&bench.snapshot, 0, 10_000);
    request.limits.output = 9_999;
    assert_eq!(bench.fail(request), Failure::Limit("output"));
    let mut request = read(&bench.snapshot, 0, 10_000);
    request.limits.output = 10_000;
    assert_eq!(bench.run(request).output.len(), 10_000);
}

#[test]
fn reading_ends_at_its_limit_whatever_helper_reads() {
    let mapping = warren(PASSTHROUGH);
    let reading = warren("warren_read(r->offset, (void *)r->heap, r->size); return 0;");
    for object in [mapping, reading] {
        let bench = Bench::new(&object, &pattern(5 * 4096));
        for (blocks, size, ends) in [(2, 8192, false), (2, 8193, true), (0, 1, true)] {
            let mut request = read(&bench.snapshot, 0, size);
            request.limits.blocks_read = blocks;
            let failed = bench.device.execute(&bench.activation, request).err();
            let expected = ends.then_some(Failure::Limit("blocks read"));
            assert_eq!(failed.map(|(failure, _)| failure), expected);
        }
    }
}

#[test]
fn appending_ends_at_its_limit() {
    let object = warren("warren_append((void *)r->heap, r->size); return 0;");
    let bench = Bench::new(&object, &pattern(10));
    for (blocks, size, ends) in [(1, 4096, false), (1, 4097, true), (0, 1, true)] {
        let mut request = write(&bench.snapshot, Operation::WriteEvent, 0, &vec![1; size]);
        request.limits.blocks_appended = blocks;
        let failed = bench.device.execute(&bench.activation, request).err();
        let expected = ends.then_some(Failure::Limit("blocks appended"));
        assert_eq!(failed.map(|(failure, _)| failure), expected);
    }
}

#[test]
fn heap_ends_at_its_limit_for_loads_and_helpers() {
    let store = warren("((volatile u8 *)r->heap)[r->size] = 1; return 0;");
    let helper = warren("warren_read(0, (u8 *)r->heap + r->size, 1); return 0;");
    for config in both_engines() {
        for object in [&store, &helper] {
            let bench = Bench::with(object, &pattern(10), Shape::Contiguous, config.clone());
            for (heap, at, ends) in [(8192, 8191, false), (8192, 8192, true), (0, 0, true)] {
                let mut request = read(&bench.snapshot, 0, at);
                request.limits.heap = heap;
                let ended = bench.device.execute(&bench.activation, request).is_err();
                assert_eq!(ended, ends, "{heap} {at}");
            }
        }
    }
}
