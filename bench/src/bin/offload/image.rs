//! Kernels on an image file, on an emulated device in this process: what there is to a cold file
//! without a mount and its requests.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use zns_backend::{FileDevice, Lba, ZoneId, ZonedDevice};

use crate::kernels;
use crate::memory::{self, OnDevice, mib};
use crate::os;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The kernel.
    kernel: String,
    /// The image, which is made anew and removed.
    image: PathBuf,
    /// Its arguments.
    #[arg(long, value_delimiter = ',')]
    arguments: Vec<u64>,
    /// Bytes of data.
    #[arg(long, default_value_t = 256 << 20)]
    bytes: usize,
    /// Bytes of a request.
    #[arg(long, default_value_t = 512 << 10)]
    stride: usize,
    /// Rounds, each on a device that has read nothing.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Passes of a round.
    #[arg(long, default_value_t = 2)]
    passes: usize,
}

/// One request after the other past the caches of the system.
fn read(device: &dyn ZonedDevice, arguments: &Arguments) -> io::Result<Duration> {
    let block = device.geometry().block_size as usize;
    let mut buffer = device.buffer(arguments.stride);
    let begun = Instant::now();
    // The data begins in the second zone, and zones are whole strides.
    let first = device.geometry().zone_start(ZoneId(1));
    for at in (0..arguments.bytes).step_by(arguments.stride) {
        let len = arguments.stride.min(arguments.bytes - at);
        let lba: Lba = first.plus((at / block) as u64);
        device
            .read(lba, &mut buffer[..len])
            .map_err(io::Error::other)?;
    }
    Ok(begun.elapsed())
}

pub(crate) fn run(arguments: &Arguments) -> io::Result<Value> {
    let _awake = memory::stay_awake();
    let geometry = memory::geometry(arguments.bytes)?;
    let device = FileDevice::create(&arguments.image, &geometry, true).map_err(io::Error::other)?;
    let mut data = vec![0; arguments.bytes];
    kernels::fill(1, &mut data);
    let file = memory::place(&device, &data)?;
    device.flush().map_err(io::Error::other)?;
    let storage: Arc<dyn ZonedDevice> = Arc::new(device);
    let rate = |time: Duration| mib(arguments.bytes) / time.as_secs_f64();
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let (mut direct, mut rounds) = (Vec::new(), Vec::new());
    for _ in 0..arguments.rounds {
        direct.push(rate(read(&*storage, arguments)?));
        let on = OnDevice::new(&storage, &arguments.kernel, false)?;
        let mut passes = Vec::new();
        for _ in 0..arguments.passes {
            let (user, system) = os::processor();
            let in_kernels = on.in_kernels();
            let wall = on.pass(&file, &arguments.arguments, arguments.stride)?;
            let after = os::processor();
            passes.push(json!({
                "rate": rate(wall),
                "wall_ms": milliseconds(wall),
                "kernels_ms": milliseconds(on.in_kernels() - in_kernels),
                "user_ms": milliseconds(after.0 - user),
                "system_ms": milliseconds(after.1 - system),
            }));
        }
        rounds.push(passes);
    }
    std::fs::remove_file(&arguments.image)?;
    Ok(json!({ "direct read": direct, "passes": rounds }))
}
