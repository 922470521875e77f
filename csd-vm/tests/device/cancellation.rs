//! Executions that are called off: wherever they are they end soon, and nobody else's do.

use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use csd_vm::request::{Completion, Failure, Request};
use csd_vm::{Cancellation, DeviceConfig};

use crate::common::{Bench, PASSTHROUGH, Shape, both_engines, pattern, read, warren};

/// What any of these takes; the machine may be busy with other tests.
const SOON: Duration = Duration::from_millis(500);

const LOOP: &str = "volatile u64 n = 1; while (n) n |= 2; return 0;";

type Ended = Result<u64, Failure>;

fn submit(bench: &Bench, request: Request, cancellation: &Cancellation) -> Receiver<Ended> {
    let (sender, receiver) = channel();
    let done = Box::new(move |completion: Completion<'_>| {
        // Whoever does not care for the end has dropped the receiver.
        let _ = sender.send(completion.status);
    });
    let (device, activation) = (&bench.device, &bench.activation);
    device.submit_cancellable(activation, request, cancellation, done);
    receiver
}

fn slow(bench: &Bench) -> Request {
    let mut request = read(&bench.snapshot, 0, 4096);
    request.limits.time = Duration::from_secs(60);
    request.limits.output = 64 << 20;
    request.limits.blocks_read = u64::MAX;
    request
}

#[test]
fn what_runs_ends_in_loops_and_in_helpers() {
    let kernels = [
        LOOP,
        "while (1) warren_read(0, (void *)r->heap, 32 << 20); return 0;",
        "const void *p; while (1) { warren_map(0, -1ULL, &p); warren_unmap(); }",
        "const u8 *o = warren_reserve(16 << 20);
         while (1) { warren_emit(o + 4096, 16 << 20); warren_trim(16 << 20); }",
    ];
    for body in kernels {
        for config in both_engines() {
            let bench = Bench::with(&warren(body), &pattern(16 << 20), Shape::Contiguous, config);
            let cancellation = Cancellation::new();
            let ended = submit(&bench, slow(&bench), &cancellation);
            std::thread::sleep(Duration::from_millis(30));
            let begun = Instant::now();
            bench.device.cancel(&bench.activation, [&cancellation]);
            assert_eq!(ended.recv(), Ok(Err(Failure::Cancelled)), "{body}");
            assert!(begun.elapsed() < SOON, "{body}: {:?}", begun.elapsed());
        }
    }
}

#[test]
fn what_waits_ends_though_every_worker_is_busy_and_the_rest_goes_on_waiting() {
    let config = DeviceConfig {
        workers: 1,
        ..DeviceConfig::default()
    };
    let bench = Bench::with(&warren(LOOP), &pattern(4096), Shape::Contiguous, config);
    let (running, waiting, other) = (
        Cancellation::new(),
        Cancellation::new(),
        Cancellation::new(),
    );
    let runs = submit(&bench, slow(&bench), &running);
    while bench.device.counters().queued_now > 0 {
        std::thread::yield_now();
    }
    let mut brief = slow(&bench);
    brief.limits.time = Duration::from_millis(1);
    let waits = [
        submit(&bench, slow(&bench), &waiting),
        submit(&bench, slow(&bench), &waiting),
    ];
    let others = submit(&bench, brief, &other);
    let begun = Instant::now();
    bench.device.cancel(&bench.activation, [&waiting]);
    for waits in waits {
        assert_eq!(waits.recv(), Ok(Err(Failure::Cancelled)));
    }
    assert!(begun.elapsed() < SOON);
    assert!(runs.try_recv().is_err() && others.try_recv().is_err());
    assert_eq!(bench.device.counters().queued_now, 1);
    let late = submit(&bench, slow(&bench), &waiting);
    assert_eq!(late.recv(), Ok(Err(Failure::Cancelled)));
    bench.device.cancel(&bench.activation, [&running]);
    assert_eq!(runs.recv(), Ok(Err(Failure::Cancelled)));
    assert!(matches!(others.recv(), Ok(Err(Failure::TimedOut(_)))));
}

#[test]
fn what_is_submitted_later_does_not_begin() {
    let bench = Bench::new(&warren(PASSTHROUGH), &pattern(4096));
    let cancellation = Cancellation::new();
    bench.device.cancel(&bench.activation, [&cancellation]);
    let ended = submit(&bench, slow(&bench), &cancellation);
    assert_eq!(ended.recv(), Ok(Err(Failure::Cancelled)));
    let other = submit(&bench, slow(&bench), &Cancellation::new());
    assert_eq!(other.recv(), Ok(Ok(0)));
}

#[test]
fn a_cancellation_at_any_moment_is_never_missed_and_meets_nobody_else() {
    let bench = Bench::new(&warren(LOOP), &pattern(4096));
    let quick = bench
        .device
        .load(&warren(PASSTHROUGH))
        .expect("the kernel loads");
    let quick = bench.device.activate(&quick);
    for round in 0..300u32 {
        let cancellation = Cancellation::new();
        let ended = submit(&bench, slow(&bench), &cancellation);
        // From before the worker has the job to after the kernel runs.
        let until = Instant::now() + Duration::from_micros(u64::from(round % 100));
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        bench.device.cancel(&bench.activation, [&cancellation]);
        assert_eq!(ended.recv(), Ok(Err(Failure::Cancelled)), "round {round}");
        let output = bench.device.execute(&quick, slow(&bench));
        assert_eq!(output.map(|o| o.output.len()), Ok(4096), "round {round}");
    }
}
