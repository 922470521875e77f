//! What setting an attribute costs, for kernels never seen before and for known ones, next to an
//! ordinary attribute and to a request that finds nothing to do.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use warren_bench::percentile;

use crate::os;

/// Where an object may differ: the constant that stands there is replaced.
const MARK: u32 = 0x5eed_5eed;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Root of the mount.
    mount: PathBuf,
    /// The file to attach to, from there.
    file: PathBuf,
    /// An object with constants 0x5eed5eed, outside of the mount.
    object: PathBuf,
    /// Kernels never seen before.
    #[arg(long, default_value_t = 50)]
    kernels: u32,
    /// Rounds with a known one.
    #[arg(long, default_value_t = 500)]
    rounds: u32,
}

pub(crate) fn run(arguments: &Arguments) -> io::Result<Value> {
    let object = fs::read(&arguments.object)?;
    let target = arguments.mount.join(&arguments.file);
    let directory = arguments.mount.join("attach");
    fs::create_dir_all(&directory)?;
    let seed = os::now() as u32;
    for number in 0..arguments.kernels {
        let variant = variant(&object, seed.wrapping_add(number))?;
        let mut file = File::create(directory.join(number.to_string()))?;
        file.write_all(&variant)?;
        file.sync_all()?;
    }
    let (mut fresh, mut known, mut plain, mut nothing, mut removed) =
        (vec![], vec![], vec![], vec![], vec![]);
    for number in 0..arguments.kernels {
        fresh.push(timed(|| attach(&target, number))?);
        removed.push(timed(|| os::remove(&target, os::READ_STREAM))?);
    }
    for round in 0..arguments.rounds {
        plain.push(timed(|| {
            os::set(&target, "user.plain", &round.to_string())
        })?);
        nothing.push(timed(|| match os::remove(&target, os::READ_STREAM) {
            Err(error) if error.raw_os_error() == Some(libc::ENODATA) => Ok(()),
            other => Err(io::Error::other(format!("expected ENODATA, got {other:?}"))),
        })?);
        known.push(timed(|| attach(&target, 0))?);
        removed.push(timed(|| os::remove(&target, os::READ_STREAM))?);
    }
    fs::remove_dir_all(&directory)?;
    Ok(json!({
        "object_bytes": object.len(),
        "fresh_us": micros(fresh),
        "known_us": micros(known),
        "ordinary_attribute_us": micros(plain),
        "nothing_us": micros(nothing),
        "remove_us": micros(removed),
    }))
}

fn attach(target: &Path, number: u32) -> io::Result<()> {
    os::set(target, os::READ_STREAM, &format!("/attach/{number}"))
}

/// The object with another constant.
fn variant(object: &[u8], value: u32) -> io::Result<Vec<u8>> {
    let mut variant = object.to_vec();
    let mark = MARK.to_le_bytes();
    let places: Vec<_> = (0..object.len().saturating_sub(3))
        .filter(|at| object[*at..*at + 4] == mark)
        .collect();
    if places.is_empty() {
        return Err(io::Error::other("the object has no place to be changed at"));
    }
    for at in places {
        variant[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    Ok(variant)
}

fn timed(work: impl FnOnce() -> io::Result<()>) -> io::Result<Duration> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed())
}

fn micros(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    percentile(&times, 0.5).as_secs_f64() * 1e6
}
