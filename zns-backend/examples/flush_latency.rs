//! Latency of 4 KiB write + flush: the file device, synchronous and through its queue, against a
//! preallocated, already written file on the same filesystem with pwrite + fdatasync.
//!
//! `cargo run --release --example flush_latency -- [DIRECTORY] [COMMITS]`. Rounds of all contenders
//! alternate, so that the noise of a shared machine hits them alike; the median round counts.

use std::error::Error;
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use zns_backend::{DmaBuffer, FileDevice, Geometry, Lba, Request, ZoneId, ZonedDevice};

type Outcome<T> = Result<T, Box<dyn Error>>;

const BLOCK: usize = 4096;
const ROUNDS: usize = 7;
const GEOMETRY: Geometry = Geometry {
    block_size: BLOCK as u32,
    zones: 8,
    zone_size: 16384,
    zone_capacity: 16384,
    max_open: 0,
    max_active: 0,
    max_append: 0,
};

fn per_commit_us(commits: u64, mut commit: impl FnMut(u64) -> Outcome<()>) -> Outcome<f64> {
    let start = Instant::now();
    for index in 0..commits {
        commit(index)?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / commits as f64)
}

fn plain_file(path: &Path, commits: u64, data: &DmaBuffer) -> Outcome<f64> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    let file = options.custom_flags(libc::O_DIRECT).open(path)?;
    let fill = DmaBuffer::new(1 << 20);
    for piece in 0..(commits * BLOCK as u64).div_ceil(1 << 20) {
        file.write_all_at(&fill, piece << 20)?;
    }
    file.sync_all()?;
    per_commit_us(commits, |index| {
        file.write_all_at(data, index * BLOCK as u64)?;
        Ok(file.sync_data()?)
    })
}

fn synchronous(device: &FileDevice, commits: u64, data: &DmaBuffer) -> Outcome<f64> {
    device.reset(ZoneId(0))?;
    device.flush()?;
    per_commit_us(commits, |index| {
        device.write(Lba(index), data)?;
        Ok(device.flush()?)
    })
}

fn queued(device: &FileDevice, commits: u64) -> Outcome<f64> {
    device.reset(ZoneId(1))?;
    device.flush()?;
    let queue = device.queue(8)?;
    let data = Arc::new(device.buffer(BLOCK));
    let start = device.geometry().zone_start(ZoneId(1));
    let mut done = Vec::new();
    per_commit_us(commits, |index| {
        let data = Arc::clone(&data);
        queue.submit(
            0,
            Request::Write {
                lba: start.plus(index),
                data,
                blocks: 1,
                durable: false,
            },
        )?;
        queue.wait(1, &mut done)?;
        queue.submit(1, Request::Flush)?;
        queue.wait(1, &mut done)?;
        done.drain(..)
            .try_for_each(|completion| completion.result.map(drop))?;
        Ok(())
    })
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().unwrap_or_else(|| ".".into());
    let commits = arguments.next().map_or(Ok(2000), |text| text.parse())?;
    let directory = tempfile::tempdir_in(directory)?;
    let device = FileDevice::create(directory.path().join("device.img"), &GEOMETRY, false)?;
    let data = DmaBuffer::new(BLOCK);
    let mut figures = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        figures[0].push(plain_file(&directory.path().join("plain"), commits, &data)?);
        figures[1].push(synchronous(&device, commits, &data)?);
        figures[2].push(queued(&device, commits)?);
    }
    let [plain, synchronous, queued] = figures.map(median);
    println!("direct I/O: {}", device.is_direct());
    println!("plain file, write + fdatasync: {plain:.1} us per commit");
    println!(
        "device, write + flush:         {synchronous:.1} us ({:.2}x)",
        synchronous / plain
    );
    println!(
        "device, queue:                 {queued:.1} us ({:.2}x)",
        queued / plain
    );
    Ok(())
}
