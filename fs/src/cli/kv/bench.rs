//! `warren kv bench`: a YCSB load on a store of its own.

use std::path::Path;
use std::time::{Duration, Instant};

use kv_workload::{IndexStore, Kind, Latency, Plan, Records, Report, Until, Workload};
use serde::Serialize;
use vmcache::Kv;

use super::{Memory, failed};
use crate::cli::{CommandResult, Failure, Outcome, output};

/// How often a store that is not durable with each write commits.
const COMMIT_EVERY: Duration = Duration::from_secs(1);
/// Least bytes of a value: it begins with its record's number.
const VALUE_BYTES_MIN: u64 = 8;

/// Measure a YCSB load on a new index file.
///
/// Loads records, runs the load, tells rate and times of the operations, and removes the file. Keys have
/// 16 bytes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Index file to make
    file: std::path::PathBuf,
    /// Records to load at first
    #[arg(long, value_name = "N", default_value_t = 100_000,
          value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    records: u64,
    /// Operations to measure
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    operations: u64,
    /// a: half updates, b: 5 % updates, c: reads, d: reads of the latest and 5 % inserts, e: scans and
    /// 5 % inserts, f: half read-modify-writes
    #[arg(
        long,
        value_name = "A..F",
        value_enum,
        ignore_case = true,
        default_value = "a"
    )]
    workload: Load,
    /// Threads
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Bytes of a value, at least 8
    #[arg(long, value_name = "SIZE", default_value = "100", value_parser = value_size)]
    value_size: u64,
    /// Commit every write before it is acknowledged, instead of all of them once a second
    #[arg(long)]
    durable: bool,
    /// Determines keys and operations
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    memory: Memory,
    /// Leave the file there
    #[arg(long)]
    keep: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A load by its letter.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Load {
    A,
    B,
    C,
    D,
    E,
    F,
}

impl From<Load> for Workload {
    fn from(load: Load) -> Workload {
        match load {
            Load::A => Workload::A,
            Load::B => Workload::B,
            Load::C => Workload::C,
            Load::D => Workload::D,
            Load::E => Workload::E,
            Load::F => Workload::F,
        }
    }
}

fn value_size(text: &str) -> Result<u64, String> {
    let size = zns_backend::parse_size(text).map_err(|e| e.to_string())?;
    match (VALUE_BYTES_MIN..=vmcache::VALUE_BYTES_MAX as u64).contains(&size) {
        true => Ok(size),
        false => Err("a value has from 8 bytes to 1 GiB".into()),
    }
}

#[derive(Debug, Serialize)]
struct Times {
    operations: u64,
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
}

#[derive(Debug, Serialize)]
struct Shown {
    workload: &'static str,
    records: u64,
    threads: u16,
    durable: bool,
    load_seconds: f64,
    seconds: f64,
    operations_per_s: f64,
    all: Times,
    kinds: std::collections::BTreeMap<&'static str, Times>,
}

impl From<Latency> for Times {
    fn from(latency: Latency) -> Times {
        Times {
            operations: latency.operations,
            p50_us: latency.p50_us,
            p99_us: latency.p99_us,
            max_us: latency.max_us,
        }
    }
}

pub(super) fn run(args: &Args) -> CommandResult {
    if args.file.exists() {
        let problem = "it exists: the file is made, and removed at the end";
        return Err(Failure::new(args.file.display(), problem));
    }
    let measured = measure(args);
    if !args.keep && args.file.exists() {
        let removed = vmcache::remove_index_file(&args.file);
        removed.map_err(|e| Failure::new(args.file.display(), e))?;
    }
    let (load_seconds, report) = measured?;
    let shown = show(args, load_seconds, report);
    if args.json {
        output::print_json(&shown)?;
    } else {
        output::print(text(&args.file, &shown).trim_end());
    }
    Ok(Outcome::Fine)
}

/// Loads the records and runs the load: seconds of the first, report of the second.
fn measure(args: &Args) -> Result<(f64, Report), Failure> {
    let fail = |e| failed(&args.file, e);
    let records = Records {
        loaded: args.records,
        value_bytes: args.value_size as usize,
        seed: args.seed,
    };
    let begun = Instant::now();
    let kv = Kv::open(&args.file, args.memory.options()?).map_err(fail)?;
    kv.bulk_load(records.sorted().map(Ok)).map_err(fail)?;
    kv.commit().map_err(fail)?;
    let load_seconds = begun.elapsed().as_secs_f64();
    let plan = Plan {
        workload: args.workload.into(),
        records,
        inserted: 0,
        threads: usize::from(args.threads),
        until: Until::Operations(args.operations),
        seed: args.seed,
        sync_every: (!args.durable).then_some(COMMIT_EVERY),
    };
    let store = IndexStore {
        kv,
        durable: args.durable,
    };
    let report = kv_workload::run(&store, &plan);
    let report = report.map_err(|e| Failure::new(args.file.display(), e))?;
    store.kv.close().map_err(fail)?;
    Ok((load_seconds, report))
}

fn show(args: &Args, load_seconds: f64, report: Report) -> Shown {
    let kinds = report.kinds.into_iter();
    Shown {
        workload: Workload::from(args.workload).name(),
        records: args.records,
        threads: args.threads,
        durable: args.durable,
        load_seconds,
        seconds: report.seconds,
        operations_per_s: report.all.operations as f64 / report.seconds,
        all: report.all.into(),
        kinds: kinds
            .map(|(kind, times)| (Kind::name(kind), times.into()))
            .collect(),
    }
}

fn text(path: &Path, shown: &Shown) -> String {
    let (file, load) = (path.display(), shown.workload);
    let (operations, seconds, rate) = (shown.all.operations, shown.seconds, shown.operations_per_s);
    let (records, loading) = (shown.records, shown.load_seconds);
    let mut text = format!(
        "{file}: load {load}: {operations} operations in {seconds:.3} s: {rate:.0} per second\n\
         {file}: {records} records loaded in {loading:.3} s\n"
    );
    text.push_str(&format!(
        "  {:<18} {:>12} {:>10} {:>10} {:>10}\n",
        "microseconds", "operations", "median", "99 %", "longest"
    ));
    for (kind, times) in &shown.kinds {
        let Times {
            operations,
            p50_us,
            p99_us,
            max_us,
        } = times;
        text.push_str(&format!(
            "  {kind:<18} {operations:>12} {p50_us:>10.1} {p99_us:>10.1} {max_us:>10.1}\n"
        ));
    }
    text
}
