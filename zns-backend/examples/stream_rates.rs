//! How fast streams of writes reach a device: at the write pointer, one in flight per zone in one to
//! eight zones, against appends to one zone with up to thirty-two in flight. Destroys the device's
//! contents.
//!
//! `stream_rates DEVICE [SECONDS]` prints MiB/s for requests of several sizes, one column after the
//! other three times over, the median of each; SECONDS is the time per measurement, 0.3 if not given.

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
                durable: false,
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

/// What is compared: how, zones, requests in flight in each.
const COLUMNS: [(Way, u32, u32); 8] = [
    (Way::AtPointer, 1, 1),
    (Way::AtPointer, 2, 1),
    (Way::AtPointer, 4, 1),
    (Way::AtPointer, 8, 1),
    (Way::Append, 1, 1),
    (Way::Append, 1, 8),
    (Way::Append, 1, 32),
    (Way::Append, 4, 8),
];
const ROUNDS: usize = 3;

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let spec = arguments.next().unwrap_or_else(|| "mem:1G".into());
    let seconds = arguments.next().and_then(|text| text.parse().ok());
    let time = Duration::from_secs_f64(seconds.unwrap_or(0.3));
    let device = open_device(&spec, false)?;
    let geometry = *device.geometry();
    println!(
        "{spec}, MiB/s: at the pointer in 1, 2, 4, 8 zones; appends to a zone, 1, 8, 32 in flight; to 4, 8 in each"
    );
    for kib in [4_u64, 16, 64, 256, 1024] {
        let blocks = (kib << 10) / u64::from(geometry.block_size);
        let mut rates: [Vec<f64>; COLUMNS.len()] = Default::default();
        for _ in 0..ROUNDS {
            for ((way, streams, depth), found) in COLUMNS.into_iter().zip(&mut rates) {
                // An append is not cut.
                if way == Way::Append && geometry.max_append != 0 && blocks > geometry.max_append {
                    continue;
                }
                let load = Load {
                    way,
                    streams,
                    depth,
                    blocks,
                };
                found.push(measure(&*device, load, time)?);
            }
        }
        let median = |found: &mut Vec<f64>| {
            found.sort_by(f64::total_cmp);
            found
                .get(found.len() / 2)
                .map_or("-".into(), |rate| format!("{rate:.0}"))
        };
        let shown: Vec<String> = rates.iter_mut().map(median).collect();
        println!("| {kib} KiB | {} |", shown.join(" | "));
    }
    Ok(())
}
