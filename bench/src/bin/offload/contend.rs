//! Files to read, and writers that overwrite them.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use warren_bench::on_threads;

use crate::{kernels, os};

/// Bytes of a write.
const WRITE: usize = 128 << 10;
/// Bytes that a writer writes between two times of making them durable.
const SYNC: usize = 16 << 20;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The file.
    file: PathBuf,
    /// Threads that write.
    #[arg(long, default_value_t = 1)]
    threads: usize,
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
    on_threads(arguments.threads, |thread| {
        let file = OpenOptions::new().write(true).open(&arguments.file)?;
        let places = file.metadata()?.len() / WRITE as u64;
        let mut data = vec![0; WRITE];
        let (mut seed, mut unsynced) = (thread as u64, 0);
        loop {
            let began = os::now();
            if began >= until {
                return file.sync_data();
            }
            seed += arguments.threads as u64;
            kernels::fill(seed, &mut data[..64]);
            let place = u64::from_le_bytes(data[..8].try_into().expect("eight bytes")) % places;
            file.write_all_at(&data, place * WRITE as u64)?;
            unsynced += WRITE;
            if unsynced >= SYNC {
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
