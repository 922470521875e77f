//! Small requests: what a kernel adds to a read.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use warren_bench::percentile;

use crate::os::{self, Aligned};

/// Requests of one kind in a row.
const BATCH: usize = 100;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What to read: NAME=FILE, or NAME=FILE=VALUE with the value of an attribute to set before.
    #[arg(required = true)]
    kinds: Vec<String>,
    /// Requests of each.
    #[arg(long, default_value_t = 4000)]
    count: usize,
    /// Bytes of a request.
    #[arg(long, default_value_t = 4096)]
    bytes: usize,
}

struct Kind {
    name: String,
    file: File,
    size: u64,
    times: Vec<Duration>,
}

fn kind(text: &str) -> io::Result<Kind> {
    let mut parts = text.splitn(3, '=');
    let (Some(name), Some(path)) = (parts.next(), parts.next()) else {
        return Err(io::Error::other(format!("{text} is not NAME=FILE")));
    };
    let path = PathBuf::from(path);
    if let Some(value) = parts.next() {
        os::set(&path, os::READ_STREAM, value)?;
    }
    let file = os::open(&path, true)?;
    Ok(Kind {
        name: name.to_owned(),
        size: file.metadata()?.len(),
        file,
        times: Vec::new(),
    })
}

/// Medians in microseconds. The kinds take turns; every one goes over its file from place to place
/// in the same order.
pub(crate) fn run(arguments: &Arguments) -> io::Result<Value> {
    let mut kinds = Vec::new();
    for text in &arguments.kinds {
        kinds.push(kind(text)?);
    }
    let mut buffer = Aligned::new(arguments.bytes);
    let buffer = &mut buffer.bytes()[..arguments.bytes];
    for batch in 0..arguments.count.div_ceil(BATCH) {
        for kind in &mut kinds {
            for request in 0..BATCH {
                let place = (batch * BATCH + request) as u64 * 7919;
                let offset = place % (kind.size / arguments.bytes as u64) * arguments.bytes as u64;
                let begun = Instant::now();
                os::read_at(&kind.file, buffer, offset)?;
                kind.times.push(begun.elapsed());
            }
        }
    }
    let mut result = Map::new();
    for mut kind in kinds {
        kind.times.sort_unstable();
        let micros = |share| percentile(&kind.times, share).as_secs_f64() * 1e6;
        let times = json!({ "p50_us": micros(0.5), "p99_us": micros(0.99) });
        result.insert(kind.name, times);
    }
    Ok(Value::Object(result))
}
