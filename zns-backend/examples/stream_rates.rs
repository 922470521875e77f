//! How fast streams of writes reach a device: at the write pointer, one in flight per zone, against
//! appends with several in flight. Destroys the device's contents.
//!
//! `stream_rates DEVICE [SECONDS]` prints MiB/s for one and four streams (zones written in turn) and
//! requests of several sizes; SECONDS is the time per figure, 1 if not given.

use std::sync::Arc;
use std::time::{Duration, Instant};

use zns_backend::{DeviceQueue, DmaBuffer, Error, Request, ZoneId, ZonedDevice, open_device};

/// How a stream writes.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    AtPointer,
    Append,
}

/// A measurement: `depth` requests of `blocks` blocks in flight in each of `streams` zones.
#[derive(Clone, Copy)]
struct Load {
    way: Way,
    streams: u32,
    depth: u32,
    blocks: u64,
}

struct Streams<'a> {
    device: &'a dyn ZonedDevice,
    queue: Box<dyn DeviceQueue>,
    data: Arc<DmaBuffer>,
    load: Load,
    /// Per stream: its zone and the blocks requested there.
    places: Vec<(ZoneId, u64)>,
    next_zone: u32,
    in_flight: usize,
}

impl Streams<'_> {
    /// Starts one request of a stream, in the next zone if its zone has no room.
    fn start(&mut self, stream: usize) -> Result<(), Error> {
        let geometry = *self.device.geometry();
        let (mut zone, mut used) = self.places[stream];
        if used + self.load.blocks > geometry.zone_capacity {
            (zone, used) = (ZoneId(self.next_zone), 0);
            self.next_zone = (self.next_zone + 1) % geometry.zones;
            // Emptying belongs to the log's life; it is rare, one command per zone.
            self.device.reset(zone)?;
        }
        self.places[stream] = (zone, used + self.load.blocks);
        let (data, blocks) = (Arc::clone(&self.data), self.load.blocks);
        let request = match self.load.way {
            Way::AtPointer => Request::Write {
                lba: geometry.zone_start(zone).plus(used),
                data,
                blocks,
            },
            Way::Append => Request::Append { zone, data, blocks },
        };
        self.in_flight += 1;
        self.queue.submit(stream as u64, request)
    }

    /// Takes what has completed and answers the streams it belongs to.
    fn finish(&mut self) -> Result<Vec<usize>, Error> {
        let mut done = Vec::new();
        self.queue.wait(1, &mut done)?;
        self.in_flight -= done.len();
        done.into_iter()
            .map(|completion| completion.result.map(|_| completion.token as usize))
            .collect()
    }
}

/// MiB/s of a load.
fn measure(device: &dyn ZonedDevice, load: Load, time: Duration) -> Result<f64, Error> {
    let geometry = *device.geometry();
    for zone in 0..geometry.zones {
        device.reset(ZoneId(zone))?;
    }
    let bytes = load.blocks as usize * geometry.block_bytes();
    let mut data = device.buffer(bytes);
    data.fill(0x5A);
    let mut streams = Streams {
        device,
        queue: device.queue(load.streams * load.depth)?,
        data: Arc::new(data),
        load,
        places: (0..load.streams).map(|zone| (ZoneId(zone), 0)).collect(),
        next_zone: load.streams,
        in_flight: 0,
    };
    let begun = Instant::now();
    for _ in 0..load.depth {
        for stream in 0..load.streams as usize {
            streams.start(stream)?;
        }
    }
    let mut requests = 0_u64;
    while begun.elapsed() < time {
        for stream in streams.finish()? {
            requests += 1;
            streams.start(stream)?;
        }
    }
    let rate =
        (requests * bytes as u64) as f64 / begun.elapsed().as_secs_f64() / f64::from(1 << 20);
    while streams.in_flight > 0 {
        streams.finish()?;
    }
    Ok(rate)
}

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let spec = arguments.next().unwrap_or_else(|| "mem:1G".into());
    let seconds = arguments
        .next()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1.0);
    let device = open_device(&spec, false)?;
    println!("{spec}, MiB/s");
    println!(
        "{:>8} {:>8} {:>10} {:>10} {:>10} {:>10}",
        "streams", "KiB", "pointer", "append 1", "append 4", "append 8"
    );
    let geometry = *device.geometry();
    for streams in [1, 4] {
        for kib in [4_u64, 16, 64, 256] {
            let blocks = (kib << 10) / u64::from(geometry.block_size);
            if geometry.max_append != 0 && blocks > geometry.max_append {
                continue;
            }
            let mut rates = Vec::new();
            for (way, depth) in [
                (Way::AtPointer, 1),
                (Way::Append, 1),
                (Way::Append, 4),
                (Way::Append, 8),
            ] {
                let load = Load {
                    way,
                    streams,
                    depth,
                    blocks,
                };
                rates.push(measure(&*device, load, Duration::from_secs_f64(seconds))?);
            }
            let shown: Vec<String> = rates.iter().map(|rate| format!("{rate:>10.0}")).collect();
            println!("{streams:>8} {kib:>8} {}", shown.join(" "));
        }
    }
    Ok(())
}
