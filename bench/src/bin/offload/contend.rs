//! Files to read, and writers that overwrite them.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use warren_bench::on_threads;

use crate::{kernels, os};

/// Bytes of a write.
const WRITE: usize = 128 << 10;
/// Bytes that a writer writes between two times of making them durable.
const SYNC: usize = 16 << 20;
/// The same where a rate is given.
const SYNC_PACED: usize = 4 << 20;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The file.
    file: PathBuf,
    /// Threads that write.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// MiB per second that all of them write together at most; otherwise as much as they can.
    #[arg(long)]
    rate: Option<f64>,
    /// Only counts what is written between these two times of the monotonic clock, in nanoseconds,
    /// and goes on until the second.
    #[arg(long, num_args = 2, value_names = ["FROM", "UNTIL"])]
    between: Vec<u64>,
}

/// Creates a file of pseudo-random bytes.
pub(crate) fn create(path: &Path, bytes: u64) -> io::Result<Value> {
    let mut file = File::create(path)?;
    let mut chunk = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let len = left.min(chunk.len() as u64) as usize;
        kernels::fill(left, &mut chunk[..len]);
        file.write_all(&chunk[..len])?;
        left -= len as u64;
    }
    file.sync_all()?;
    Ok(json!({ "bytes": bytes }))
}

pub(crate) fn run(arguments: &Arguments) -> io::Result<Value> {
    let [from, until] = arguments.between[..] else {
        return Err(io::Error::other("--between is missing"));
    };
    let counted = AtomicU64::new(0);
    let pause = arguments.rate.map(|rate| {
        let bytes_per_second = rate * (1 << 20) as f64 / arguments.threads as f64;
        (WRITE as f64 / bytes_per_second * 1e9) as u64
    });
    let sync = if pause.is_some() { SYNC_PACED } else { SYNC };
    on_threads(arguments.threads, |thread| {
        let file = OpenOptions::new().write(true).open(&arguments.file)?;
        let places = file.metadata()?.len() / WRITE as u64;
        let mut data = vec![0; WRITE];
        let (mut seed, mut unsynced) = (thread as u64, 0);
        // Not all at the same moment.
        let mut turn = os::now() + pause.unwrap_or(0) * thread as u64 / arguments.threads as u64;
        loop {
            if let Some(pause) = pause {
                let early = turn.saturating_sub(os::now());
                std::thread::sleep(Duration::from_nanos(early));
                turn += pause;
            }
            let began = os::now();
            if began >= until {
                return file.sync_data();
            }
            seed += arguments.threads as u64;
            kernels::fill(seed, &mut data[..64]);
            let place = u64::from_le_bytes(data[..8].try_into().expect("eight bytes")) % places;
            file.write_all_at(&data, place * WRITE as u64)?;
            unsynced += WRITE;
            if unsynced >= sync {
                file.sync_data()?;
                unsynced = 0;
            }
            if began >= from {
                counted.fetch_add(WRITE as u64, Ordering::Relaxed);
            }
        }
    })?;
    Ok(json!({ "bytes": counted.into_inner() }))
}
