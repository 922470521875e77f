//! Kernels on data in memory: natively, and on an emulated device in this process, with the cage
//! and without it.

use std::fs::File;
use std::hint::black_box;
use std::io::{self, Write};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use csd_vm::request::{Completion, FileIdentity, Limits, Operation, Piece, Request, SnapshotMap};
use csd_vm::{Activation, Device, DeviceConfig};
use serde_json::{Value, json};
use zns_backend::{Geometry, Lba, MemDevice, ZoneId, ZonedDevice};

use crate::kernels::{self, Native};
use crate::os;

const BLOCK: usize = 4096;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The kernel.
    kernel: String,
    /// Its arguments.
    #[arg(long, value_delimiter = ',')]
    arguments: Vec<u64>,
    /// Bytes of data.
    #[arg(long, default_value_t = 256 << 20)]
    bytes: usize,
    /// Bytes of a request.
    #[arg(long, default_value_t = 512 << 10)]
    stride: usize,
    /// Rounds, in which the ways of running it take turns.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// A file on the device, one piece per zone.
pub(crate) struct Contents {
    pub(crate) size: u64,
    zones: Vec<(Lba, Arc<[u32]>)>,
    /// Blocks of a zone.
    capacity: u64,
}

impl SnapshotMap for Contents {
    fn size(&self) -> u64 {
        self.size
    }

    fn resolve(&self, first: u64, blocks: u64, out: &mut Vec<Piece>) -> Result<(), String> {
        let (mut at, end) = (first, first + blocks);
        while at < end {
            let within = at % self.capacity;
            let Some((lba, sums)) = self.zones.get((at / self.capacity) as usize) else {
                out.push(Piece::Hole { blocks: end - at });
                return Ok(());
            };
            let count = (end - at).min(sums.len() as u64 - within);
            let part = within as usize..(within + count) as usize;
            out.push(Piece::Mapped {
                lba: lba.plus(within),
                checksums: sums[part].into(),
            });
            at += count;
        }
        Ok(())
    }
}

/// A device for `bytes` of data.
pub(crate) fn geometry(bytes: usize) -> io::Result<Geometry> {
    Geometry::for_size(bytes as u64 * 2 + (1 << 30)).map_err(io::Error::other)
}

/// Writes `data` to an empty device, from its second zone on.
pub(crate) fn place(device: &dyn ZonedDevice, data: &[u8]) -> io::Result<Arc<Contents>> {
    let capacity = device.geometry().zone_capacity;
    let mut zones = Vec::new();
    for (index, part) in data.chunks(capacity as usize * BLOCK).enumerate() {
        let lba = device.geometry().zone_start(ZoneId(index as u32 + 1));
        let mut written = 0;
        for chunk in part.chunks(1 << 20) {
            let mut buffer = device.buffer(chunk.len());
            buffer.copy_from_slice(chunk);
            device
                .write(lba.plus(written), &buffer)
                .map_err(io::Error::other)?;
            written += (chunk.len() / BLOCK) as u64;
        }
        zones.push((lba, part.chunks(BLOCK).map(crc32c::crc32c).collect()));
    }
    let size = data.len() as u64;
    Ok(Arc::new(Contents {
        size,
        zones,
        capacity,
    }))
}

/// A kernel on a device of its own.
pub(crate) struct OnDevice {
    device: Arc<Device>,
    activation: Activation,
}

impl OnDevice {
    pub(crate) fn new(
        storage: &Arc<dyn ZonedDevice>,
        name: &str,
        uncaged: bool,
    ) -> io::Result<OnDevice> {
        let config = DeviceConfig {
            uncaged,
            ..DeviceConfig::default()
        };
        let device = Device::new(Arc::clone(storage), config).map_err(io::Error::other)?;
        let program = device.load(kernels::named(name)?.object);
        let activation = device.activate(&program.map_err(io::Error::other)?);
        Ok(OnDevice { device, activation })
    }

    /// One pass over the file, as a filesystem would have it.
    pub(crate) fn pass(
        &self,
        file: &Arc<Contents>,
        arguments: &[u64],
        stride: usize,
    ) -> io::Result<Duration> {
        let words: Arc<[u64]> = arguments.into();
        let begun = Instant::now();
        for offset in (0..file.size).step_by(stride) {
            let size = (stride as u64).min(file.size - offset);
            let request = request(file, offset, size, &words);
            let (sender, receiver) = mpsc::sync_channel(1);
            let done = Box::new(move |completion: Completion<'_>| {
                black_box(completion.output);
                // The receiver waits below.
                let _ = sender.send(completion.status);
            });
            self.device.submit(&self.activation, request, done);
            let status = receiver.recv().map_err(io::Error::other)?;
            status.map_err(io::Error::other)?;
        }
        Ok(begun.elapsed())
    }

    /// Processor time in kernels so far.
    pub(crate) fn in_kernels(&self) -> Duration {
        Duration::from_nanos(self.activation.statistics().processor_ns)
    }
}

fn request(file: &Arc<Contents>, offset: u64, size: u64, arguments: &Arc<[u64]>) -> Request {
    Request {
        operation: Operation::ReadStream,
        offset,
        size,
        snapshot: Arc::clone(file) as Arc<dyn SnapshotMap>,
        file: FileIdentity::default(),
        data: Vec::new(),
        arguments: Arc::clone(arguments),
        limits: Limits {
            time: Duration::from_secs(10),
            processor: None,
            heap: 64 << 20,
            output: 64 << 20,
            blocks_read: 1 << 30,
            blocks_appended: 0,
        },
    }
}

/// Throughput of every round: MiB per second on the way there and back, and of processor time for
/// what has no way (`native`, `vectors`, `in_cage`, `in_open`).
#[derive(Default)]
struct Rates {
    bytes: usize,
    native: Vec<f64>,
    vectors: Vec<f64>,
    first: Vec<f64>,
    caged: Vec<f64>,
    in_cage: Vec<f64>,
    uncaged: Vec<f64>,
    in_open: Vec<f64>,
}

impl Rates {
    fn of(&self, time: Duration) -> f64 {
        mib(self.bytes) / time.as_secs_f64()
    }
}

pub(crate) fn mib(bytes: usize) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

/// Keeps processors from sleeping deeply while this is open, as the daemon does while requests keep
/// coming: waking them would cost more than a request. Where that is not possible it costs so.
pub(crate) fn stay_awake() -> Option<File> {
    let mut latency = File::options()
        .write(true)
        .open("/dev/cpu_dma_latency")
        .ok()?;
    latency.write_all(&0i32.to_le_bytes()).ok()?;
    Some(latency)
}

pub(crate) fn run(arguments: &Arguments) -> io::Result<Value> {
    let _awake = stay_awake();
    let mut data = vec![0; arguments.bytes];
    kernels::fill(1, &mut data);
    let device = MemDevice::new(geometry(data.len())?).map_err(io::Error::other)?;
    let file = place(&device, &data)?;
    let storage: Arc<dyn ZonedDevice> = Arc::new(device);
    let pass = |on: &OnDevice| on.pass(&file, &arguments.arguments, arguments.stride);
    let mut native = Native::new(&arguments.kernel, &arguments.arguments)?;
    let mut vectors = Native::vectors(&arguments.kernel, &arguments.arguments)?;
    let uncaged = OnDevice::new(&storage, &arguments.kernel, true)?;
    pass(&uncaged)?;
    let mut rates = Rates {
        bytes: data.len(),
        ..Rates::default()
    };
    for _ in 0..arguments.rounds {
        for (twin, measured) in [
            (&mut native, &mut rates.native),
            (&mut vectors, &mut rates.vectors),
        ] {
            let begun = os::thread_time();
            for part in data.chunks(arguments.stride) {
                black_box(twin.run(part)?);
            }
            measured.push(mib(data.len()) / (os::thread_time() - begun).as_secs_f64());
        }
        let caged = OnDevice::new(&storage, &arguments.kernel, false)?;
        rates.first.push(rates.of(pass(&caged)?));
        let before = caged.in_kernels();
        rates.caged.push(rates.of(pass(&caged)?));
        rates.in_cage.push(rates.of(caged.in_kernels() - before));
        let before = uncaged.in_kernels();
        rates.uncaged.push(rates.of(pass(&uncaged)?));
        rates.in_open.push(rates.of(uncaged.in_kernels() - before));
    }
    Ok(json!({
        "native": rates.native,
        "vectors": rates.vectors,
        "device, first pass": rates.first,
        "device": rates.caged,
        "in the kernel": rates.in_cage,
        "uncaged": rates.uncaged,
        "in the kernel, uncaged": rates.in_open,
    }))
}
