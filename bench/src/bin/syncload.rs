//! Durability load: each thread appends 4 KiB to a file of its own and fsyncs, over and over; prints
//! the rate and the latencies as JSON.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use parking_lot::Mutex;
use warren_bench::{on_threads, percentile};

/// Appends and fsyncs on several threads.
#[derive(Parser)]
struct Arguments {
    /// Directory to work in.
    dir: PathBuf,
    /// Threads, each with a file of its own.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// How long.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Bytes per write.
    #[arg(long, default_value_t = 4096)]
    bytes: usize,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    let latencies = Mutex::new(Vec::new());
    let path = |thread| arguments.dir.join(format!("syncload-{thread}"));
    let took = on_threads(arguments.threads, |thread| {
        let mut file = File::create(path(thread))?;
        let own = append_and_sync(&mut file, &arguments)?;
        latencies.lock().extend(own);
        Ok(())
    })?;
    for thread in 0..arguments.threads {
        std::fs::remove_file(path(thread))?;
    }
    let mut all = latencies.into_inner();
    all.sort_unstable();
    let micros = |share| percentile(&all, share).as_micros() as u64;
    println!(
        "{}",
        serde_json::json!({
            "ops_per_s": (all.len() as f64 / took.as_secs_f64()).round(),
            "p50_us": micros(0.5),
            "p99_us": micros(0.99),
            "p999_us": micros(0.999),
            "max_us": micros(1.0),
        })
    );
    Ok(())
}

fn append_and_sync(file: &mut File, arguments: &Arguments) -> io::Result<Vec<Duration>> {
    let data = vec![b's'; arguments.bytes];
    let until = Instant::now() + Duration::from_secs(arguments.seconds);
    let mut latencies = Vec::new();
    while Instant::now() < until {
        let begun = Instant::now();
        file.write_all(&data)?;
        file.sync_data()?;
        latencies.push(begun.elapsed());
    }
    Ok(latencies)
}
