//! One key-value store under YCSB loads, in a process of its own, so that its memory can be limited.
//!
//! `load` makes a store in an empty directory and loads it, sorted, in the way the store offers for that.
//! `run` opens it and runs cells, LOAD:MODE:THREADS each, one after the other; it prints a line of JSON per
//! cell. In mode `durable` a write is durable before it is acknowledged, in mode `relaxed` all are within
//! [`SYNC_EVERY`]. Records inserted by a cell are known to the ones after it.

mod engines;

use clap::{Parser, Subcommand};
use engines::{Engine, Mode};
use kv_workload::{Kind, Plan, Problem, Records, Report, Until, Workload};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// How often what was written in mode `relaxed` is made durable.
const SYNC_EVERY: Duration = Duration::from_millis(200);

#[derive(Parser)]
#[command(about = "One key-value store under YCSB loads")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a store and load it
    Load(Target),
    /// Run loads on a store
    Run {
        #[command(flatten)]
        target: Target,
        /// LOAD:MODE:THREADS, e.g. a:relaxed:2
        #[arg(long = "cell", required = true)]
        cells: Vec<Cell>,
        /// Seconds per cell
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
        /// Seconds of reading before the first cell
        #[arg(long, default_value_t = 0.0)]
        warm: f64,
    },
}

#[derive(clap::Args)]
struct Target {
    /// vmcache, lmdb, redb, fjall or sled
    #[arg(long)]
    engine: String,
    /// Directory of the store
    #[arg(long)]
    dir: PathBuf,
    /// Records that are, or were, loaded
    #[arg(long)]
    records: u64,
    /// Bytes of a value
    #[arg(long, default_value_t = 100)]
    value_bytes: usize,
    /// Bytes of memory that the store is told to use
    #[arg(long)]
    pool: u64,
    /// Determines keys and operations
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// A measurement.
#[derive(Clone, Copy)]
struct Cell {
    workload: Workload,
    mode: Mode,
    threads: usize,
}

impl FromStr for Cell {
    type Err = String;

    fn from_str(text: &str) -> Result<Cell, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let [workload, mode, threads] = parts[..] else {
            return Err("a cell is LOAD:MODE:THREADS".into());
        };
        let workload = Workload::ALL
            .into_iter()
            .find(|known| known.name() == workload);
        let mode = match mode {
            "durable" => Mode::Durable,
            "relaxed" => Mode::Relaxed,
            _ => return Err("a mode is durable or relaxed".into()),
        };
        Ok(Cell {
            workload: workload.ok_or("a load is a..f or updates")?,
            mode,
            threads: threads.parse().map_err(|e| format!("{e}"))?,
        })
    }
}

impl Target {
    fn records(&self) -> Records {
        Records {
            loaded: self.records,
            value_bytes: self.value_bytes,
            seed: self.seed,
        }
    }

    /// Whether the data is larger than the memory for it.
    fn is_large(&self) -> bool {
        self.records * (kv_workload::KEY_BYTES + self.value_bytes) as u64 > self.pool
    }

    fn open(&self, mode: Mode) -> Result<Box<dyn Engine>, Problem> {
        let options = engines::Options {
            pool_bytes: self.pool,
            mode,
            is_large: self.is_large(),
        };
        engines::open(&self.engine, &self.dir, options)
    }

    /// Where it is noted how many records were inserted after loading.
    fn inserted_at(&self) -> PathBuf {
        self.dir.join("inserted")
    }
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Load(target) => load(&target),
        Command::Run {
            target,
            cells,
            seconds,
            warm,
        } => run(&target, &cells, seconds, warm),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("warren-kv-bench: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// Bytes that a directory takes on its filesystem.
fn disk_bytes(dir: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += match metadata.is_dir() {
            true => disk_bytes(&entry.path())?,
            false => metadata.blocks() * 512,
        };
    }
    Ok(bytes)
}

fn load(target: &Target) -> Result<(), Problem> {
    std::fs::create_dir_all(&target.dir)?;
    let begun = Instant::now();
    let engine = target.open(Mode::Relaxed)?;
    engine.load(target.records())?;
    engine.sync()?;
    let seconds = begun.elapsed().as_secs_f64();
    engine.close()?;
    std::fs::write(target.inserted_at(), "0")?;
    let report = json!({
        "engine": target.engine,
        "seconds": seconds,
        "records_per_s": target.records as f64 / seconds,
        "disk_bytes": disk_bytes(&target.dir)?,
    });
    println!("{report}");
    Ok(())
}

fn run(target: &Target, cells: &[Cell], seconds: f64, warm: f64) -> Result<(), Problem> {
    let mut inserted = std::fs::read_to_string(target.inserted_at())?
        .trim()
        .parse()?;
    for group in cells.chunk_by(|a, b| a.mode == b.mode) {
        let engine = target.open(group[0].mode)?;
        let measure = |cell: &Cell, seconds: f64, inserted: u64| {
            let writes = cell.workload != Workload::C;
            let plan = Plan {
                workload: cell.workload,
                records: target.records(),
                inserted,
                threads: cell.threads,
                until: Until::Elapsed(Duration::from_secs_f64(seconds)),
                seed: target.seed ^ inserted << 20 ^ cell.threads as u64,
                sync_every: (cell.mode == Mode::Relaxed && writes).then_some(SYNC_EVERY),
            };
            kv_workload::run(&*engine, &plan)
        };
        if warm > 0.0 {
            warm_up(&*engine, target, warm)?;
        }
        for cell in group {
            let read_before = read_bytes();
            let report = measure(cell, seconds, inserted)?;
            let read = read_bytes().zip(read_before).map(|(now, then)| now - then);
            inserted = report.inserted;
            std::fs::write(target.inserted_at(), inserted.to_string())?;
            println!("{}", described(target, cell, &report, read));
        }
        engine.close()?;
    }
    Ok(())
}

/// Reads what fits into the store's memory, or for a while.
fn warm_up(engine: &dyn Engine, target: &Target, seconds: f64) -> Result<(), Problem> {
    let records = target.records();
    let begun = Instant::now();
    let mut value = Vec::new();
    if !target.is_large() {
        for record in 0..records.loaded {
            engine.read(&records.key(record), &mut value)?;
        }
    }
    let left = Duration::from_secs_f64(seconds).saturating_sub(begun.elapsed());
    let plan = Plan {
        workload: Workload::C,
        records,
        inserted: 0,
        threads: 2,
        until: Until::Elapsed(left.max(Duration::from_millis(50))),
        seed: !target.seed,
        sync_every: None,
    };
    kv_workload::run(engine, &plan).map(drop)
}

/// Bytes that the process has had read from block devices, if the system tells.
fn read_bytes() -> Option<u64> {
    let io = std::fs::read_to_string("/proc/self/io").ok()?;
    let line = io
        .lines()
        .find_map(|line| line.strip_prefix("read_bytes: "))?;
    line.parse().ok()
}

fn described(target: &Target, cell: &Cell, report: &Report, read_bytes: Option<u64>) -> Value {
    let kinds = report.kinds.iter().map(|(kind, times)| {
        let times =
            json!({"operations": times.operations, "p50_us": times.p50_us, "p99_us": times.p99_us});
        (Kind::name(*kind).to_owned(), times)
    });
    json!({
        "engine": target.engine,
        "workload": cell.workload.name(),
        "mode": cell.mode.name(),
        "threads": cell.threads,
        "seconds": report.seconds,
        "operations_per_s": report.all.operations as f64 / report.seconds,
        "p50_us": report.all.p50_us,
        "p99_us": report.all.p99_us,
        "max_us": report.all.max_us,
        "read_bytes_per_operation": read_bytes.map(|bytes| bytes as f64 / report.all.operations as f64),
        "kinds": kinds.collect::<serde_json::Map<_, _>>(),
    })
}
