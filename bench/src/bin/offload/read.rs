//! Reads in strides: through a kernel, directly, or through the page cache and computing on it.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kernels::Native;
use crate::os::{self, Aligned};

/// Bytes of an answer that are looked at, so that runs can be compared.
const LOOKED_AT: usize = 4096;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The file.
    file: PathBuf,
    /// Value of the attribute to set before.
    #[arg(long)]
    attach: Option<String>,
    /// Kernel to run natively on what is read.
    #[arg(long)]
    native: Option<String>,
    /// Arguments of that kernel.
    #[arg(long, value_delimiter = ',')]
    arguments: Vec<u64>,
    /// Opens with O_DIRECT.
    #[arg(long)]
    direct: bool,
    /// Bytes of a read.
    #[arg(long, default_value_t = 512 << 10)]
    stride: usize,
    /// Passes over the file at least.
    #[arg(long, default_value_t = 1)]
    passes: usize,
    /// Goes on for as long.
    #[arg(long, default_value_t = 0)]
    milliseconds: u64,
    /// Only counts what is read between these two times of the monotonic clock, in nanoseconds, and
    /// goes on until the second.
    #[arg(long, num_args = 2, value_names = ["FROM", "UNTIL"])]
    between: Vec<u64>,
}

/// What reading goes on until.
struct Span {
    from: u64,
    until: u64,
}

/// What one pass took.
struct Pass {
    wall: Duration,
    user: Duration,
    system: Duration,
    /// Processor time in kernels.
    kernels: Duration,
    bytes: u64,
    checksum: u32,
}

pub(crate) fn run(arguments: &Arguments) -> io::Result<Value> {
    let mut native = match &arguments.native {
        Some(name) => Some(Native::new(name, &arguments.arguments)?),
        None => None,
    };
    let begun = Instant::now();
    if let Some(value) = &arguments.attach {
        os::set(&arguments.file, os::READ_STREAM, value)?;
    }
    let attached = begun.elapsed();
    let mut buffer = Aligned::new(arguments.stride);
    if let [from, until] = arguments.between[..] {
        let span = Span { from, until };
        return count_between(arguments, &mut native, buffer.bytes(), &span);
    }
    let mut passes = Vec::new();
    let until = Instant::now() + Duration::from_millis(arguments.milliseconds);
    while passes.len() < arguments.passes || Instant::now() < until {
        passes.push(pass(arguments, &mut native, buffer.bytes())?);
    }
    let seconds = |time: fn(&Pass) -> Duration| -> Vec<f64> {
        passes.iter().map(|pass| time(pass).as_secs_f64()).collect()
    };
    Ok(json!({
        "attach_s": attached.as_secs_f64(),
        "wall_s": seconds(|pass| pass.wall),
        "user_s": seconds(|pass| pass.user),
        "system_s": seconds(|pass| pass.system),
        "kernels_s": seconds(|pass| pass.kernels),
        "bytes": passes[0].bytes,
        "checksum": passes[0].checksum,
    }))
}

/// One pass, from opening the file to its end.
fn pass(arguments: &Arguments, native: &mut Option<Native>, buffer: &mut [u8]) -> io::Result<Pass> {
    let kernels = in_kernels(arguments)?;
    let (user, system) = os::processor();
    let begun = Instant::now();
    let file = os::open(&arguments.file, arguments.direct)?;
    let size = file.metadata()?.len();
    let (mut bytes, mut checksum) = (0, 0);
    for offset in (0..size).step_by(arguments.stride) {
        let got = os::read_at(&file, buffer, offset)?;
        bytes += got as u64;
        let answer = match native {
            Some(native) => native.run(&buffer[..got])?,
            None => &buffer[..got],
        };
        checksum = crc32c::crc32c_append(checksum, &answer[..answer.len().min(LOOKED_AT)]);
    }
    let wall = begun.elapsed();
    let after = os::processor();
    Ok(Pass {
        wall,
        user: after.0 - user,
        system: after.1 - system,
        kernels: in_kernels(arguments)?.saturating_sub(kernels),
        bytes,
        checksum,
    })
}

/// Processor time that kernels of this process have used on the file so far.
fn in_kernels(arguments: &Arguments) -> io::Result<Duration> {
    if arguments.attach.is_none() {
        return Ok(Duration::ZERO);
    }
    let told: Value = serde_json::from_slice(&os::get(&arguments.file, os::STATISTICS)?)?;
    let spent = told[0]["processor_ns"].as_u64();
    spent
        .map(Duration::from_nanos)
        .ok_or_else(|| io::Error::other("the statistics tell no processor time"))
}

/// How much of the file was gone over in a span of time.
fn count_between(
    arguments: &Arguments,
    native: &mut Option<Native>,
    buffer: &mut [u8],
    span: &Span,
) -> io::Result<Value> {
    let file = os::open(&arguments.file, arguments.direct)?;
    let size = file.metadata()?.len();
    let (mut counted, mut offset) = (0, 0);
    loop {
        let began = os::now();
        if began >= span.until {
            break;
        }
        let got = os::read_at(&file, buffer, offset)?;
        if let Some(native) = native {
            native.run(&buffer[..got])?;
        }
        let stride = (arguments.stride as u64).min(size - offset);
        if began >= span.from {
            counted += stride;
        }
        offset = (offset + stride) % size;
    }
    Ok(json!({ "bytes": counted }))
}
