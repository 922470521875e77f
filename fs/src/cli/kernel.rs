//! `warren kernel`: kernels outside a mount.
//!
//! `check` says whether an object would be accepted and what is in it. `run` puts a host file on a
//! memory device and runs a kernel on it, as a mount would with a file of the same contents.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;
use csd_vm::device::Description;
use csd_vm::request::{FileIdentity, Limits, Operation, Piece, Request, SnapshotMap};
use csd_vm::{Device, DeviceConfig, LoadedProgram};
use serde::Serialize;
use zns_backend::{Geometry, Lba, MemDevice, ZonedDevice};

use super::{CommandResult, Failure, Outcome, output};
use crate::offload::value::{TIMEOUT_MS_MAX, parse_argument};
use crate::offload::{load_error, verdict};
use crate::types::{BLOCK, BLOCK_SIZE};

/// Blocks of a zone of the memory device.
const ZONE_BLOCKS: u64 = 4096;
/// Heap, output and what is appended, in bytes.
const MEMORY_BYTES: u64 = 64 << 20;

/// Check and run BPF kernels outside a mount.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(CheckArgs),
    Run(RunArgs),
}

/// Say whether objects are accepted, and what is in them.
#[derive(Debug, clap::Args)]
struct CheckArgs {
    /// Objects compiled with `clang -target bpf`
    #[arg(required = true)]
    objects: Vec<PathBuf>,
    /// Have them verified as well
    #[arg(long)]
    verify: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Run a kernel on a file of the host and print what it returns.
#[derive(Debug, clap::Args)]
struct RunArgs {
    /// Object compiled with `clang -target bpf`
    object: PathBuf,
    /// File the kernel sees
    file: PathBuf,
    /// Operation: for write-stream and the events FILE is the data written or read
    #[arg(long, value_enum, default_value = "read-stream")]
    op: Op,
    /// First byte of the request
    #[arg(long, default_value_t = 0)]
    offset: u64,
    /// Bytes of the request [default: up to the end of the file]
    #[arg(long)]
    size: Option<u64>,
    /// Run once over the whole file (what read-stream does without --offset and --size)
    #[arg(long, conflicts_with_all = ["offset", "size"])]
    view: bool,
    /// An argument of the kernel, decimal or hexadecimal; may be given several times
    #[arg(long = "arg", value_name = "U64")]
    arguments: Vec<String>,
    /// Longest run, in milliseconds
    #[arg(long, value_name = "N", default_value_t = 60_000,
          value_parser = clap::value_parser!(u64).range(1..=TIMEOUT_MS_MAX))]
    timeout_ms: u64,
    /// Write what the kernel returns there instead of standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print statistics as JSON; needs --output
    #[arg(long, requires = "output")]
    json: bool,
}

/// An operation by its name on the command line.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Op {
    ReadStream,
    WriteStream,
    ReadEvent,
    WriteEvent,
}

impl From<Op> for Operation {
    fn from(op: Op) -> Operation {
        match op {
            Op::ReadStream => Operation::ReadStream,
            Op::WriteStream => Operation::WriteStream,
            Op::ReadEvent => Operation::ReadEvent,
            Op::WriteEvent => Operation::WriteEvent,
        }
    }
}

/// What a check found.
#[derive(Debug, Serialize)]
struct CheckReport {
    object: String,
    accepted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[serde(flatten)]
    description: Option<Description>,
}

/// What a run gave.
#[derive(Debug, Serialize)]
struct RunReport {
    value: u64,
    output_bytes: u64,
    appended_bytes: u64,
    #[serde(flatten)]
    usage: csd_vm::request::Usage,
}

pub(super) fn run(args: &Args) -> CommandResult {
    match &args.command {
        Command::Check(args) => check(args),
        Command::Run(args) => execute(args),
    }
}

fn failed(path: &Path, problem: impl std::fmt::Display) -> Failure {
    Failure::new(path.display(), problem)
}

/// A memory device with room for `blocks` blocks, and kernels on it.
fn device(blocks: u64) -> Result<(Arc<MemDevice>, Arc<Device>), Failure> {
    let geometry = Geometry {
        block_size: BLOCK_SIZE as u32,
        zones: u32::try_from(blocks.div_ceil(ZONE_BLOCKS).max(1))
            .map_err(|_| Failure::new("", "the file is too large for memory"))?,
        zone_size: ZONE_BLOCKS,
        zone_capacity: ZONE_BLOCKS,
        max_open: 0,
        max_active: 0,
        max_append: ZONE_BLOCKS * BLOCK,
    };
    let storage = MemDevice::new(geometry).map_err(|e| Failure::new("memory device", e))?;
    let storage = Arc::new(storage);
    let config = DeviceConfig {
        workers: 1,
        ..DeviceConfig::default()
    };
    let device = Device::new(Arc::clone(&storage) as Arc<dyn ZonedDevice>, config)
        .map_err(|e| Failure::new("kernels", e))?;
    Ok((storage, device))
}

fn load(device: &Device, path: &Path) -> Result<Arc<LoadedProgram>, Failure> {
    let object = std::fs::read(path).map_err(|e| failed(path, e))?;
    device
        .load(&object)
        .map_err(|e| failed(path, load_error(e)))
}

fn check(args: &CheckArgs) -> CommandResult {
    let (_storage, device) = device(1)?;
    let reports: Vec<CheckReport> = args
        .objects
        .iter()
        .map(|path| {
            let loaded = load(&device, path).and_then(|program| match args.verify {
                true => verdict(&program)
                    .map(|()| program)
                    .map_err(|e| failed(path, e)),
                false => Ok(program),
            });
            CheckReport {
                object: path.display().to_string(),
                accepted: loaded.is_ok(),
                problem: loaded.as_ref().err().map(|failure| failure.problem.clone()),
                description: loaded.ok().map(|program| program.describe()),
            }
        })
        .collect();
    if args.json {
        output::print_json(&reports)?;
    } else {
        for report in &reports {
            output::print(text(report).trim_end());
        }
    }
    Ok(match reports.iter().all(|report| report.accepted) {
        true => Outcome::Fine,
        false => Outcome::Damage,
    })
}

fn text(report: &CheckReport) -> String {
    let Some(found) = &report.description else {
        let problem = report.problem.as_deref().unwrap_or("refused");
        return format!("{}: {problem}\n", report.object);
    };
    let mut text = format!("{}: accepted\n", report.object);
    let mut line = |name: &str, value: String| text.push_str(&format!("  {name:<13} {value}\n"));
    line("entry", found.entry.clone());
    line("instructions", found.slots.to_string());
    for function in &found.functions {
        let (name, slots, stack) = (&function.name, function.slots, function.stack_bytes);
        line(
            "function",
            format!("{name}: {slots} instructions, {stack} bytes of stack"),
        );
    }
    line("helpers", found.helpers.join(" "));
    let sizes = [
        found.read_only_bytes,
        found.initialised_bytes,
        found.zeroed_bytes,
    ];
    let [constants, initialised, zeroed] = sizes;
    line(
        "data",
        format!("{constants} constant, {initialised} initialised, {zeroed} zeroed bytes"),
    );
    line("sha256", found.hash.clone());
    text
}

/// A file on the memory device, block after block from the first one on.
struct Contents {
    size: u64,
    checksums: Vec<u32>,
}

impl SnapshotMap for Contents {
    fn size(&self) -> u64 {
        self.size
    }

    fn resolve(&self, first: u64, blocks: u64, out: &mut Vec<Piece>) -> Result<(), String> {
        let end = first.saturating_add(blocks);
        let limit = end.min(self.checksums.len() as u64);
        let mut at = first;
        while at < limit {
            // A piece lies in one zone, as the runs of a filesystem do.
            let until = limit.min((at / ZONE_BLOCKS + 1) * ZONE_BLOCKS);
            out.push(Piece::Mapped {
                lba: Lba(at),
                checksums: self.checksums[at as usize..until as usize].into(),
            });
            at = until;
        }
        if at < end {
            out.push(Piece::Hole { blocks: end - at });
        }
        Ok(())
    }
}

/// Writes a file to the device.
fn store(storage: &MemDevice, path: &Path, size: u64) -> Result<Contents, Failure> {
    let mut file = File::open(path).map_err(|e| failed(path, e))?;
    let mut checksums = Vec::with_capacity(size.div_ceil(BLOCK) as usize);
    let mut left = size;
    let mut buffer = storage.buffer(256 * BLOCK_SIZE);
    while left > 0 {
        let len = left.min(buffer.len() as u64) as usize;
        let padded = len.next_multiple_of(BLOCK_SIZE);
        buffer[len..padded].fill(0);
        file.read_exact(&mut buffer[..len])
            .map_err(|e| failed(path, e))?;
        let at = Lba(checksums.len() as u64);
        storage
            .write(at, &buffer[..padded])
            .map_err(|e| Failure::new("memory device", e))?;
        checksums.extend(
            buffer[..padded]
                .chunks_exact(BLOCK_SIZE)
                .map(crc32c::crc32c),
        );
        left -= len as u64;
    }
    Ok(Contents { size, checksums })
}

fn execute(args: &RunArgs) -> CommandResult {
    let operation = Operation::from(args.op);
    let arguments: Vec<u64> = args
        .arguments
        .iter()
        .map(|text| parse_argument(text).map_err(|e| Failure::usage("", e)))
        .collect::<Result<_, _>>()?;
    let size = File::open(&args.file)
        .and_then(|file| file.metadata())
        .map_err(|e| failed(&args.file, e))?
        .len();
    let (storage, device) = device(size.div_ceil(BLOCK))?;
    let program = load(&device, &args.object)?;
    let contents = store(&storage, &args.file, size)?;
    let offset = args.offset.min(size);
    let asked = args.size.unwrap_or(u64::MAX).min(size - offset);
    let data = match operation {
        Operation::ReadStream => Vec::new(),
        _ => read_range(&args.file, offset, asked)?,
    };
    let request = Request {
        operation,
        offset,
        size: asked,
        snapshot: Arc::new(contents),
        file: FileIdentity::default(),
        data,
        arguments: arguments.into(),
        limits: Limits {
            time: Duration::from_millis(args.timeout_ms),
            processor: None,
            heap: MEMORY_BYTES,
            output: MEMORY_BYTES,
            blocks_read: u64::MAX,
            blocks_appended: MEMORY_BYTES / BLOCK,
        },
    };
    let activation = device.activate(&program);
    let finished = device
        .execute(&activation, request)
        .map_err(|(failure, _)| failed(&args.object, failure))?;
    write_output(args, &finished.output, &finished.appended)?;
    let report = RunReport {
        value: finished.value,
        output_bytes: finished.output.len() as u64,
        appended_bytes: finished.appended.len() as u64,
        usage: finished.usage,
    };
    if args.json {
        output::print_json(&report)?;
    } else {
        eprintln!("{}", summary(&report));
    }
    Ok(Outcome::Fine)
}

fn read_range(path: &Path, offset: u64, size: u64) -> Result<Vec<u8>, Failure> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; size as usize];
    File::open(path)
        .and_then(|file| file.read_exact_at(&mut bytes, offset))
        .map_err(|e| failed(path, e))?;
    Ok(bytes)
}

fn write_output(args: &RunArgs, output: &[u8], appended: &[u8]) -> Result<(), Failure> {
    match &args.output {
        Some(path) => {
            std::fs::write(path, [output, appended].concat()).map_err(|e| failed(path, e))
        }
        None => {
            let mut out = io::stdout().lock();
            match out.write_all(output).and_then(|()| out.write_all(appended)) {
                // A reader that has seen enough is no error.
                Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new("output", e)),
                _ => Ok(()),
            }
        }
    }
}

fn summary(report: &RunReport) -> String {
    let usage = &report.usage;
    format!(
        "returned {}, {} bytes of output, {} appended, {} read, {} helper calls, {:.3} ms",
        report.value,
        report.output_bytes,
        report.appended_bytes,
        usage.bytes_read,
        usage.helper_calls,
        usage.run_ns as f64 / 1e6
    )
}
