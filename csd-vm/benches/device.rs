//! What an execution costs and how fast kernels run: `cargo bench -p csd-vm`.
//!
//! Prints medians of a few rounds, next to what plain Rust does with the same bytes in memory.
//! With a directory as argument, also reads a file of an image there that is not in the page
//! cache.

#[allow(dead_code)]
#[path = "../tests/device/common.rs"]
mod common;

use std::hint::black_box;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use common::{PASSTHROUGH, Shape, Snapshot, Writer, compile, pattern, read, warren};
use csd_vm::request::{Completion, Request};
use csd_vm::{Activation, Device, DeviceConfig};
use zns_backend::{FileDevice, Geometry, MemDevice, ZonedDevice};

const FILE_BYTES: usize = 64 << 20;
const REQUEST_BYTES: u64 = 512 << 10;
const ROUNDS: usize = 7;

fn main() {
    let geometry = Geometry::for_size(1 << 30).expect("geometry");
    let storage: Arc<dyn ZonedDevice> = Arc::new(MemDevice::new(geometry).expect("memory"));
    let data = pattern(FILE_BYTES);
    let file = Writer::new(&storage).write(&data, Shape::Contiguous);
    let device = Device::new(storage, DeviceConfig::default()).expect("device");
    overhead(&device, &file);
    attach(&device, &file);
    deadlines(&device, &file);
    native(&data);
    for (name, object) in kernels() {
        warm(&device, &file, name, &object);
    }
    let directory = std::env::args().nth(1).filter(|arg| !arg.starts_with('-'));
    if let Some(directory) = directory {
        cold(&directory, &data);
    }
}

fn kernels() -> Vec<(&'static str, Vec<u8>)> {
    let over_words = |body: &str, end: &str| {
        warren(&format!(
            "u64 done = 0, sum = 0; const u8 *p;
             u32 *bins = (u32 *)r->heap;
             for (int i = 0; i < 256; i++) bins[i] = 0;
             while (done < r->size) {{
                 s64 n = warren_map(r->offset + done, r->size - done, (const void **)&p);
                 if (n <= 0) return n;
                 {body}
                 done += n;
             }}
             {end} return 0;"
        ))
    };
    vec![
        ("passthrough", warren(PASSTHROUGH)),
        (
            "sum",
            over_words(
                "for (const u32 *w = (const u32 *)p, *e = w + n / 4; w < e; w++) sum += *w;",
                "warren_emit(&sum, 8);",
            ),
        ),
        (
            "histogram",
            over_words(
                "for (s64 i = 0; i < n; i++) bins[p[i]]++;",
                "warren_emit(bins, 1024);",
            ),
        ),
        ("flufflefs passthrough", flufflefs_passthrough()),
    ]
}

fn flufflefs_passthrough() -> Vec<u8> {
    compile(
        "#include <opencsd.h>
         int main() {
             struct flfs_call *call = 0;
             bpf_get_call_info((void **)&call);
             uint64_t *lba = (uint64_t *)call;
             find_data_lba(&lba, 0);
             uint64_t zone_size = bpf_get_zone_size(), zone, sector, size;
             uint8_t *heap;
             bpf_get_mem_info((void **)&heap, &size);
             uint64_t limit = call->dims.size < call->ino.size ? call->dims.size : call->ino.size;
             for (uint64_t done = 0; done < limit; done += 4096, lba++) {
                 lba_to_position(*lba, zone_size, &zone, &sector);
                 bpf_read(zone, sector, 0, 4096, heap + done);
             }
             bpf_return_data(heap, limit);
             return 0;
         }",
    )
}

fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort_unstable();
    samples[samples.len() / 2]
}

fn rate(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / (1 << 20) as f64 / time.as_secs_f64()
}

/// Executes as a filesystem does, which sends the output on from where it is.
fn run(device: &Device, activation: &Activation, request: Request) {
    let (sender, receiver) = mpsc::sync_channel(1);
    let done = Box::new(move |completion: Completion<'_>| {
        black_box(completion.output);
        let _ = sender.send(completion.status);
    });
    device.submit(activation, request, done);
    receiver.recv().expect("answered").expect("succeeds");
}

fn overhead(device: &Device, file: &Arc<Snapshot>) {
    let program = device.load(&warren("return 0;")).expect("loads");
    let activation = device.activate(&program);
    let (mut total, mut run, mut queued) = (vec![], vec![], vec![]);
    for _ in 0..20_000 {
        let start = Instant::now();
        let finished = device
            .execute(&activation, read(file, 0, 4096))
            .expect("runs");
        total.push(start.elapsed());
        run.push(Duration::from_nanos(finished.usage.run_ns));
        queued.push(Duration::from_nanos(finished.usage.queued_ns));
    }
    let (total, run, queued) = (median(total), median(run), median(queued));
    println!("empty kernel: {total:?} to submit and wait, {queued:?} to its start, {run:?} in it");
    let count = 50_000;
    let (sender, receiver) = mpsc::channel();
    let start = Instant::now();
    for _ in 0..count {
        let sender = sender.clone();
        let done = Box::new(move |_: Completion<'_>| {
            let _ = sender.send(());
        });
        device.submit(&activation, read(file, 0, 4096), done);
    }
    receiver.iter().take(count).for_each(drop);
    let each = start.elapsed() / count as u32;
    println!("empty kernel, queue kept full: {each:?} each");
}

fn attach(device: &Device, file: &Arc<Snapshot>) {
    // About 10 KiB of object.
    let filler: String = (0..120)
        .map(|i| format!("if (r->size == {i}77) v ^= r->offset * {i}31;\n"))
        .collect();
    let kernel = |seed: usize| {
        let body = format!("u64 v = {seed}; {filler} warren_emit(&v, 8); return 0;");
        warren(&body)
    };
    let objects: Vec<_> = (0..9).map(kernel).collect();
    let size = objects[0].len();
    let mut times = vec![];
    for object in &objects {
        let start = Instant::now();
        let program = device.load(object).expect("loads");
        let activation = device.activate(&program);
        times.push(start.elapsed());
        device
            .execute(&activation, read(file, 0, 4096))
            .expect("runs");
    }
    println!("attach of {size} bytes, cold: {:?}", median(times));
    let (mut attach, mut detach, mut first) = (vec![], vec![], vec![]);
    for _ in 0..200 {
        let start = Instant::now();
        let program = device.load(&objects[8]).expect("loads");
        let activation = device.activate(&program);
        attach.push(start.elapsed());
        let start = Instant::now();
        device
            .execute(&activation, read(file, 0, 4096))
            .expect("runs");
        first.push(start.elapsed());
        let start = Instant::now();
        drop(activation);
        detach.push(start.elapsed());
    }
    let (attach, first, detach) = (median(attach), median(first), median(detach));
    println!("attach, cached: {attach:?}, first execution: {first:?}, detach: {detach:?}");
}

/// How long kernels that never end go on after their deadline.
fn deadlines(device: &Device, file: &Arc<Snapshot>) {
    let time = Duration::from_millis(20);
    for (name, body) in [
        ("loop", "volatile u64 n = 1; while (n) n |= 2; return 0;"),
        (
            "loop of helpers",
            "u64 v; while (1) warren_argument(0, &v);",
        ),
        (
            "loop of long reads",
            "while (1) warren_read(0, (void *)r->heap, 64 << 20);",
        ),
    ] {
        let activation = device.activate(&device.load(&warren(body)).expect("loads"));
        let late = (0..20).map(|_| {
            let mut request = read(file, 0, 4096);
            request.limits.time = time;
            let (_, usage) = device.execute(&activation, request).expect_err("endless");
            Duration::from_nanos(usage.run_ns).saturating_sub(time)
        });
        println!(
            "{name}: ended at most {:?} late",
            late.max().unwrap_or_default()
        );
    }
}

fn native(data: &[u8]) {
    let mut out = vec![0u8; REQUEST_BYTES as usize];
    let time = |f: &mut dyn FnMut(&[u8])| {
        let rounds = (0..ROUNDS).map(|_| {
            let start = Instant::now();
            data.chunks(REQUEST_BYTES as usize).for_each(&mut *f);
            start.elapsed()
        });
        rate(data.len(), median(rounds.collect()))
    };
    let copy = time(&mut |chunk| black_box(&mut out).copy_from_slice(chunk));
    let sum = time(&mut |chunk| {
        let words = chunk.chunks_exact(4);
        let words = words.map(|w| u64::from(u32::from_le_bytes([w[0], w[1], w[2], w[3]])));
        black_box(words.sum::<u64>());
    });
    let histogram = time(&mut |chunk| {
        let mut bins = [0u32; 256];
        chunk.iter().for_each(|byte| bins[usize::from(*byte)] += 1);
        black_box(bins);
    });
    let crc = time(&mut |chunk| {
        black_box(crc32c::crc32c(chunk));
    });
    println!("native MiB/s: copy {copy:.0}, sum {sum:.0}, histogram {histogram:.0}, CRC {crc:.0}");
}

fn warm(device: &Device, file: &Arc<Snapshot>, name: &str, object: &[u8]) {
    let program = device.load(object).expect("loads");
    let activation = device.activate(&program);
    let pass = || {
        let start = Instant::now();
        for offset in (0..FILE_BYTES as u64).step_by(REQUEST_BYTES as usize) {
            run(device, &activation, read(file, offset, REQUEST_BYTES));
        }
        start.elapsed()
    };
    let first = rate(FILE_BYTES, pass());
    let before = activation.statistics().run_ns;
    let rounds: Vec<_> = (0..ROUNDS).map(|_| pass()).collect();
    let in_kernel = (activation.statistics().run_ns - before) / ROUNDS as u64;
    println!(
        "{name}: {:.0} MiB/s warm, {:.0} in the kernel alone, {first:.0} on the first pass",
        rate(FILE_BYTES, median(rounds)),
        rate(FILE_BYTES, Duration::from_nanos(in_kernel)),
    );
}

fn cold(directory: &str, data: &[u8]) {
    let path = std::path::Path::new(directory).join("csd-vm-bench.img");
    let geometry = Geometry::for_size(256 << 20).expect("geometry");
    let image = FileDevice::create(&path, &geometry, true).expect("image");
    let storage: Arc<dyn ZonedDevice> = Arc::new(image);
    let file = Writer::new(&storage).write(data, Shape::Contiguous);
    storage.flush().expect("flushed");
    let device = Device::new(storage, DeviceConfig::default()).expect("device");
    for (name, object) in kernels() {
        let program = device.load(&object).expect("loads");
        let mut rounds = vec![];
        for _ in 0..ROUNDS {
            evict(&path);
            let activation = device.activate(&program);
            let start = Instant::now();
            for offset in (0..data.len() as u64).step_by(REQUEST_BYTES as usize) {
                run(&device, &activation, read(&file, offset, REQUEST_BYTES));
            }
            rounds.push(start.elapsed());
        }
        println!("{name}: {:.0} MiB/s cold", rate(data.len(), median(rounds)));
    }
    drop(device);
    std::fs::remove_file(&path).expect("removed");
}

/// Drops the file from the page cache, once the cages of the round before have let go of it:
/// mapped pages stay.
fn evict(path: &std::path::Path) {
    use std::os::fd::AsRawFd;
    std::thread::sleep(Duration::from_millis(50));
    let file = std::fs::File::open(path).expect("opened");
    // SAFETY: only gives the kernel advice about a descriptor that is open.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}
