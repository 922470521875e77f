//! Metadata load: creates, stats, renames and unlinks many small files, and prints the rate of each
//! phase as JSON.
//!
//! Between phases the kernel's dentries and inodes are dropped where that is permitted, so that
//! every phase reaches the filesystem.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use warren_bench::on_threads;

/// Creates, stats, renames and unlinks many small files.
#[derive(Parser)]
struct Arguments {
    /// Directory to work in.
    dir: PathBuf,
    /// Files in all.
    #[arg(long, default_value_t = 100_000)]
    files: usize,
    /// Threads, each with directories of its own.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Files per directory.
    #[arg(long, default_value_t = 1000)]
    per_dir: usize,
    /// Bytes written to each file.
    #[arg(long, default_value_t = 100)]
    bytes: usize,
    /// Stop after creating (to measure on what is there).
    #[arg(long)]
    keep: bool,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    let root = arguments.dir.join("metaload");
    let dirs = prepare(&root, &arguments)?;
    let content = vec![b'w'; arguments.bytes];
    let mut report = serde_json::Map::new();
    let mut phase = |name: &str, work: &(dyn Fn(&Path) -> io::Result<()> + Sync)| {
        let took = every_file(&dirs, &arguments, work)?;
        let rate = arguments.files as f64 / took.as_secs_f64();
        report.insert(format!("{name}_per_s"), rate.round().into());
        io::Result::Ok(())
    };
    phase("create", &|path| {
        fs::File::create_new(path)?.write_all(&content)
    })?;
    if !arguments.keep {
        drop_caches();
        phase("stat", &|path| fs::symlink_metadata(path).map(|_| ()))?;
        phase("rename", &|path| fs::rename(path, path.with_extension("r")))?;
        drop_caches();
        phase("unlink", &|path| fs::remove_file(path.with_extension("r")))?;
        fs::remove_dir_all(&root)?;
    }
    report.insert("caches_dropped".into(), can_drop_caches().into());
    println!("{}", serde_json::Value::Object(report));
    Ok(())
}

/// Makes each thread's directories.
fn prepare(root: &Path, arguments: &Arguments) -> io::Result<Vec<Vec<PathBuf>>> {
    let per_thread = arguments.files.div_ceil(arguments.threads);
    let dirs: Vec<Vec<PathBuf>> = (0..arguments.threads)
        .map(|thread| {
            let own = root.join(format!("t{thread}"));
            let count = per_thread.div_ceil(arguments.per_dir);
            (0..count).map(|dir| own.join(format!("d{dir}"))).collect()
        })
        .collect();
    for dir in dirs.iter().flatten() {
        fs::create_dir_all(dir)?;
    }
    Ok(dirs)
}

fn every_file(
    dirs: &[Vec<PathBuf>],
    arguments: &Arguments,
    work: &(dyn Fn(&Path) -> io::Result<()> + Sync),
) -> io::Result<Duration> {
    let threads = arguments.threads;
    on_threads(threads, |thread| {
        let own = arguments.files / threads + usize::from(thread < arguments.files % threads);
        for file in 0..own {
            let dir = &dirs[thread][file / arguments.per_dir];
            work(&dir.join(format!("file-{file:07}")))?;
        }
        Ok(())
    })
}

const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";

fn can_drop_caches() -> bool {
    fs::OpenOptions::new().write(true).open(DROP_CACHES).is_ok()
}

/// Writes out what is dirty and drops dentries and inodes; quietly nothing where not permitted.
fn drop_caches() {
    rustix::fs::sync();
    if can_drop_caches() && fs::write(DROP_CACHES, "2").is_err() {
        eprintln!("metaload: the kernel would not drop its caches; stat and unlink run warm");
    }
}
