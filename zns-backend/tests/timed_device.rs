//! The modelled ZN540 against the published figures of the real one, and what timing must not
//! change. Run with `--nocapture` to see the table of `docs/devices.md`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use zns_backend::{
    Clock, DmaBuffer, Geometry, Lba, MemDevice, Profile, Request, TimedDevice, ZoneId, ZonedDevice,
};

const BLOCK: usize = 4096;
const MIB: u64 = 1 << 20;

/// The zones of a ZN540, fewer of them.
fn geometry() -> Geometry {
    Geometry {
        block_size: BLOCK as u32,
        zones: 16,
        zone_size: (2 << 30) / BLOCK as u64,
        zone_capacity: 1077 * MIB / BLOCK as u64,
        max_open: 14,
        max_active: 14,
        max_append: MIB / BLOCK as u64,
    }
}

fn device(clock: Clock) -> TimedDevice {
    let memory = MemDevice::new(geometry()).expect("the geometry is possible");
    TimedDevice::new(Arc::new(memory), Profile::ZN540, clock)
}

fn virtual_device() -> TimedDevice {
    device(Clock::Virtual)
}

/// Virtual time that `work` takes.
fn time_of(device: &TimedDevice, work: impl FnOnce(&TimedDevice)) -> Duration {
    let before = device.elapsed();
    work(device);
    device.elapsed() - before
}

fn fill(device: &TimedDevice, zone: ZoneId, bytes: u64) {
    let chunk = vec![7; MIB as usize];
    let start = device.geometry().zone_start(zone);
    for at in (0..bytes).step_by(chunk.len()) {
        let len = chunk.len().min((bytes - at) as usize);
        let lba = start.plus(at / BLOCK as u64);
        device.write(lba, &chunk[..len]).expect("write");
    }
}

/// Lets the buffer empty: what is in it is not read from flash.
fn settle(device: &TimedDevice) {
    (0..10).for_each(|_| device.reset(ZoneId(15)).expect("reset"));
}

/// Has `depth` requests under way until `count` have ended; per second.
fn rate_at_depth(
    device: &TimedDevice,
    depth: usize,
    count: u64,
    mut next: impl FnMut(u64) -> Request,
) -> f64 {
    let queue = device.queue(depth as u32).expect("queue");
    let mut done = Vec::new();
    let took = time_of(device, |_| {
        let mut submitted = 0;
        let mut ended = 0;
        while ended < count {
            while submitted < count && submitted - ended < depth as u64 {
                queue.submit(submitted, next(submitted)).expect("submit");
                submitted += 1;
            }
            queue.wait(1, &mut done).expect("wait");
            for completion in done.drain(..) {
                completion.result.expect("the request succeeds");
                ended += 1;
            }
        }
    });
    count as f64 / took.as_secs_f64()
}

fn microseconds(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1000.0
}

fn milliseconds(time: Duration) -> f64 {
    microseconds(time) / 1000.0
}

fn random_read(rng: &mut ChaCha8Rng) -> Request {
    let blocks = 256 * MIB / BLOCK as u64;
    Request::Read {
        lba: Lba(rng.random_range(0..blocks)),
        buffer: DmaBuffer::new(BLOCK),
    }
}

fn reset_after(bytes: u64) -> f64 {
    let device = virtual_device();
    if bytes == geometry().zone_capacity_bytes() {
        device.finish(ZoneId(0)).expect("finish");
    } else {
        fill(&device, ZoneId(0), bytes);
    }
    milliseconds(time_of(&device, |d| d.reset(ZoneId(0)).expect("reset")))
}

fn finish_after(bytes: u64) -> f64 {
    let device = virtual_device();
    fill(&device, ZoneId(0), bytes);
    milliseconds(time_of(&device, |d| d.finish(ZoneId(0)).expect("finish")))
}

#[test]
fn zn540_profile_is_within_a_tenth_of_the_published_figures() {
    let block = Arc::new(DmaBuffer::new(BLOCK));
    let capacity = geometry().zone_capacity_bytes();
    let quiet = virtual_device();
    fill(&quiet, ZoneId(0), 256 * MIB);
    settle(&quiet);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let single_read = time_of(&quiet, |d| {
        for _ in 0..1000 {
            let lba = Lba(rng.random_range(0..100_000) % (200 * MIB / BLOCK as u64));
            d.read(lba, &mut [0; BLOCK]).expect("read");
        }
    }) / 1000;
    let deep_reads = rate_at_depth(&quiet, 256, 100_000, |_| random_read(&mut rng));
    let single_write = time_of(&virtual_device(), |d| {
        (0..1000).for_each(|i| d.write(Lba(i), &block).expect("write"));
    }) / 1000;
    let single_append = time_of(&virtual_device(), |d| {
        for _ in 0..1000 {
            d.append(ZoneId(0), &block).expect("append");
        }
    }) / 1000;
    let busy = virtual_device();
    let large = Arc::new(DmaBuffer::new(128 << 10));
    let blocks = large.len() as u64 / BLOCK as u64;
    let large_writes = rate_at_depth(&busy, 4, 8192, |i| Request::Write {
        lba: Lba(i * blocks),
        data: Arc::clone(&large),
        blocks,
        durable: false,
    });
    let appends = rate_at_depth(&virtual_device(), 8, 100_000, |_| Request::Append {
        zone: ZoneId(0),
        data: Arc::clone(&block),
        blocks: 1,
    });
    let table = [
        ("4 KiB write, depth 1, us", 11.6, microseconds(single_write)),
        (
            "4 KiB append, depth 1, us",
            14.7,
            microseconds(single_append),
        ),
        (
            "4 KiB random read, depth 1, us",
            73.0,
            microseconds(single_read),
        ),
        (
            "4 KiB random reads, depth 256, k/s",
            437.0,
            deep_reads / 1e3,
        ),
        ("128 KiB writes, MiB/s", 1147.0, large_writes / 8.0),
        ("4 KiB appends, depth 8, k/s", 137.5, appends / 1e3),
        ("reset of an empty zone, ms", 1.6, reset_after(0)),
        (
            "reset of half a zone, ms",
            11.5,
            reset_after(capacity / 2 / MIB * MIB),
        ),
        ("reset of a full zone, ms", 16.5, reset_after(capacity)),
        (
            "finish after one page, ms",
            907.0,
            finish_after(BLOCK as u64),
        ),
        (
            "finish of half a zone, ms",
            457.0,
            finish_after(capacity / 2 / MIB * MIB),
        ),
        (
            "finish of all but a page, ms",
            2.6,
            finish_after(capacity - BLOCK as u64),
        ),
    ];
    println!("| figure | published | modelled |\n|---|--:|--:|");
    for (name, published, modelled) in table {
        println!("| {name} | {published:.1} | {modelled:.1} |");
    }
    for (name, published, modelled) in table {
        let off = (modelled / published - 1.0).abs();
        assert!(off <= 0.1, "{name}: {modelled:.2}, published {published}");
    }
}

#[test]
fn the_same_operations_take_the_same_virtual_time() {
    let run = || {
        let device = virtual_device();
        fill(&device, ZoneId(0), 16 * MIB);
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let rate = rate_at_depth(&device, 16, 2000, |i| match i % 4 {
            0 => Request::Append {
                zone: ZoneId(1 + (i / 4 % 3) as u32),
                data: Arc::new(DmaBuffer::new(4 * BLOCK)),
                blocks: 4,
            },
            _ => Request::Read {
                lba: Lba(rng.random_range(0..16 * MIB / BLOCK as u64)),
                buffer: DmaBuffer::new(BLOCK),
            },
        });
        (device.elapsed(), rate.to_bits())
    };
    assert_eq!(run(), run());
}

#[test]
fn reads_of_a_zone_that_is_written_suspend_programs_and_take_longer() {
    let quiet = virtual_device();
    fill(&quiet, ZoneId(0), 64 * MIB);
    let read = |d: &TimedDevice| d.read(Lba(0), &mut [0; BLOCK]).expect("read");
    settle(&quiet);
    let alone = time_of(&quiet, read);
    fill(&quiet, ZoneId(1), 64 * MIB);
    let beside = time_of(&quiet, read);
    assert!(
        beside > alone,
        "{beside:?} beside programs, {alone:?} alone"
    );
    assert!(beside < 3 * alone, "programs are suspended: {beside:?}");
}

#[test]
fn real_time_passes_for_the_caller() {
    let device = device(Clock::Real);
    let begun = Instant::now();
    device.reset(ZoneId(0)).expect("reset");
    assert!(begun.elapsed() >= Duration::from_micros(1600));
    let block = [1; BLOCK];
    let begun = Instant::now();
    (0..100).for_each(|i| device.write(Lba(i), &block).expect("write"));
    assert!(begun.elapsed() >= Duration::from_micros(1160));
    let mut back = [0; BLOCK];
    device.read(Lba(99), &mut back).expect("read");
    assert_eq!(back, block);
}

#[test]
fn the_tally_counts_operations_bytes_and_time_by_kind() {
    let device = virtual_device();
    let data = vec![1; 2 * BLOCK];
    device.write(Lba(0), &data).expect("write");
    let before_append = device.elapsed();
    device.append(ZoneId(1), &data[..BLOCK]).expect("append");
    let append = device.elapsed() - before_append;
    let mut out = vec![0; BLOCK];
    device.read(Lba(1), &mut out).expect("read");
    device.write(Lba(7), &data).expect_err("not at the pointer");
    device.flush().expect("flush");
    device.reset(ZoneId(0)).expect("reset");
    let tally = device.tally();
    let counted = |count: zns_backend::Count| (count.operations, count.bytes);
    assert_eq!(counted(tally.writes), (1, 2 * BLOCK as u64));
    assert_eq!(counted(tally.appends), (1, BLOCK as u64));
    assert_eq!(tally.appends.time, append);
    assert_eq!(counted(tally.reads), (1, BLOCK as u64));
    assert_eq!(counted(tally.flushes), (1, 0));
    assert_eq!(counted(tally.resets), (1, 2 * BLOCK as u64));
    let parts = [
        tally.writes,
        tally.appends,
        tally.reads,
        tally.flushes,
        tally.resets,
    ];
    let sum: Duration = parts.iter().map(|count| count.time).sum();
    assert_eq!(sum, device.elapsed(), "nothing overlapped");
}

#[test]
fn ranges_that_are_read_together_take_as_long_as_the_slowest() {
    let device = virtual_device();
    fill(&device, ZoneId(0), 64 * MIB);
    settle(&device);
    let starts: Vec<_> = (0..32).map(|i| Lba(i * 499)).collect();
    let mut blocks = vec![[0; BLOCK]; starts.len()];
    let mut reads: Vec<_> = starts
        .iter()
        .zip(&mut blocks)
        .map(|(lba, block)| (*lba, &mut block[..]))
        .collect();
    let together = time_of(&device, |d| d.read_all(&mut reads).expect("read"));
    let in_turn = time_of(&device, |d| {
        for (lba, block) in &mut reads {
            d.read(*lba, block).expect("read");
        }
    });
    assert!(
        4 * together < in_turn,
        "{together:?} together, {in_turn:?} in turn"
    );
}
