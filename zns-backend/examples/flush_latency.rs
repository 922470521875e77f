//! Latency of making 4 KiB durable, by a thread that waits: a write and a flush, or one durable write,
//! each as synchronous calls and through the device's queue. On an image file also against a
//! preallocated, already written file on the same filesystem with pwrite + fdatasync.
//!
//! `cargo run --release --example flush_latency -- [DIRECTORY | DEVICE] [COMMITS]`; a DEVICE has a
//! colon in its name (`nvme:/dev/ng0n1`) and loses what is in its first zone. Rounds of all contenders
//! alternate, so that the noise of a shared machine hits them alike. Printed are the least, which a
//! busy host changes little, and the median of all commits, and the median of the ratios to the first
//! contender, of whole rounds.

use std::error::Error;
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use zns_backend::{
    DmaBuffer, FileDevice, Geometry, Lba, Request, ZoneId, ZonedDevice, open_device,
};

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

/// How a block is made durable.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    queued: bool,
    durable: bool,
}

const WAYS: [Way; 4] = [
    Way {
        name: "write, flush",
        queued: false,
        durable: false,
    },
    Way {
        name: "durable write",
        queued: false,
        durable: true,
    },
    Way {
        name: "write, flush through the queue",
        queued: true,
        durable: false,
    },
    Way {
        name: "durable write through the queue",
        queued: true,
        durable: true,
    },
];

/// Microseconds of each of a number of commits.
fn each_us(commits: u64, mut commit: impl FnMut(u64) -> Outcome<()>) -> Outcome<Vec<f64>> {
    (0..commits)
        .map(|index| {
            let start = Instant::now();
            commit(index)?;
            Ok(start.elapsed().as_secs_f64() * 1e6)
        })
        .collect()
}

fn plain_file(path: &Path, commits: u64) -> Outcome<Vec<f64>> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    let file = options.custom_flags(libc::O_DIRECT).open(path)?;
    let (data, fill) = (DmaBuffer::new(BLOCK), DmaBuffer::new(1 << 20));
    for piece in 0..(commits * BLOCK as u64).div_ceil(1 << 20) {
        file.write_all_at(&fill, piece << 20)?;
    }
    file.sync_all()?;
    each_us(commits, |index| {
        file.write_all_at(&data, index * BLOCK as u64)?;
        Ok(file.sync_data()?)
    })
}

fn on_device(device: &dyn ZonedDevice, way: Way, commits: u64) -> Outcome<Vec<f64>> {
    device.reset(ZoneId(0))?;
    device.flush()?;
    let data = Arc::new(device.buffer(BLOCK));
    if !way.queued {
        return each_us(commits, |index| {
            if way.durable {
                return Ok(device.write_durable(Lba(index), &data)?);
            }
            device.write(Lba(index), &data)?;
            Ok(device.flush()?)
        });
    }
    let queue = device.queue(8)?;
    let mut done = Vec::new();
    let mut wait_for = |token, request| -> Outcome<()> {
        queue.submit(token, request)?;
        queue.wait(1, &mut done)?;
        done.drain(..)
            .try_for_each(|completion| Ok(completion.result.map(drop)?))
    };
    each_us(commits, |index| {
        let write = Request::Write {
            lba: Lba(index),
            data: Arc::clone(&data),
            blocks: 1,
            durable: way.durable,
        };
        wait_for(0, write)?;
        if way.durable {
            return Ok(());
        }
        wait_for(1, Request::Flush)
    })
}

fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Prints what each contender took, round by round.
fn print(contenders: &[(&str, Vec<Vec<f64>>)]) {
    let total = |round: &Vec<f64>| round.iter().sum::<f64>();
    for (name, rounds) in contenders {
        let all = || rounds.iter().flatten().copied();
        let first = contenders[0].1.iter().map(total);
        let ratio = median(first.zip(rounds).map(|(first, own)| total(own) / first));
        println!(
            "{name:<34} least {:>8.1} us, median {:>8.1} us, {ratio:.2} of the first",
            all().fold(f64::INFINITY, f64::min),
            median(all())
        );
    }
}

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let place = arguments.next().unwrap_or_else(|| ".".into());
    let commits = arguments.next().map_or(Ok(2000), |text| text.parse())?;
    let mut contenders: Vec<(&str, Vec<Vec<f64>>)> = Vec::new();
    let directory = match place.contains(':') {
        true => None,
        false => Some(tempfile::tempdir_in(&place)?),
    };
    let device: Arc<dyn ZonedDevice> = match &directory {
        Some(directory) => {
            contenders.push(("plain file, write, fdatasync", Vec::new()));
            let image = directory.path().join("device.img");
            let device = FileDevice::create(image, &GEOMETRY, false)?;
            println!("direct I/O: {}", device.is_direct());
            Arc::new(device)
        }
        None => open_device(&place, false)?,
    };
    contenders.extend(WAYS.map(|way| (way.name, Vec::new())));
    let commits = commits.min(device.geometry().zone_capacity);
    for _ in 0..ROUNDS {
        let mut rounds = contenders.iter_mut().map(|(_, rounds)| rounds);
        if let Some(directory) = &directory
            && let Some(rounds) = rounds.next()
        {
            rounds.push(plain_file(&directory.path().join("plain"), commits)?);
        }
        for (rounds, way) in rounds.zip(WAYS) {
            rounds.push(on_device(&*device, way, commits)?);
        }
    }
    print(&contenders);
    Ok(())
}
