//! How many appends of one block per second devices take with one and with 32 in flight, measured in
//! turns, so that what else the machine does weighs on all alike. Destroys the devices' contents.
//!
//! `append_rates [--rounds N] [--seconds S] DEVICE DEVICE..`; the devices may be one namespace opened
//! in several ways. Prints the median of the rounds and, for all but the first device, the median of
//! the ratios to the first in the same round.

use std::sync::Arc;
use std::time::{Duration, Instant};

use zns_backend::{DmaBuffer, Error, Request, ZoneId, ZonedDevice, open_device};

const DEPTHS: [u32; 2] = [1, 32];

struct Arguments {
    rounds: usize,
    time: Duration,
    devices: Vec<String>,
}

fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments {
        rounds: 5,
        time: Duration::from_secs(1),
        devices: Vec::new(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--rounds" => {
                let rounds = value()?.parse().map_err(|e| format!("{word}: {e}"))?;
                parsed.rounds = std::cmp::max(rounds, 1);
            }
            "--seconds" => {
                let seconds = value()?.parse().map_err(|e| format!("{word}: {e}"))?;
                parsed.time =
                    Duration::try_from_secs_f64(seconds).map_err(|e| format!("{word}: {e}"))?;
            }
            _ => parsed.devices.push(word),
        }
    }
    if parsed.devices.is_empty() {
        return Err("append_rates [--rounds N] [--seconds S] DEVICE DEVICE..".into());
    }
    Ok(parsed)
}

/// Appends per second with `depth` in flight, into one zone after the other, each emptied first.
fn measure(device: &dyn ZonedDevice, depth: u32, time: Duration) -> Result<f64, Error> {
    let geometry = *device.geometry();
    let mut data = device.buffer(geometry.block_bytes());
    data.fill(0x5A);
    let data: Arc<DmaBuffer> = Arc::new(data);
    let queue = device.queue(depth)?;
    let (mut zone, mut room, mut appends, mut in_flight) = (0, 0, 0_u64, 0);
    let mut busy = Duration::ZERO;
    let mut done = Vec::new();
    while busy < time {
        if room == 0 {
            zone = (zone + 1) % geometry.zones;
            device.reset(ZoneId(zone))?;
            room = geometry.zone_capacity;
        }
        let begun = Instant::now();
        while room > 0 && begun.elapsed() + busy < time {
            while room > 0 && in_flight < depth {
                let data = Arc::clone(&data);
                let zone = ZoneId(zone);
                queue.submit(
                    0,
                    Request::Append {
                        zone,
                        data,
                        blocks: 1,
                    },
                )?;
                in_flight += 1;
                room -= 1;
            }
            queue.wait(1, &mut done)?;
            in_flight -= done.len() as u32;
            for completion in done.drain(..) {
                completion.result?;
                appends += 1;
            }
        }
        while in_flight > 0 {
            queue.wait(1, &mut done)?;
            in_flight -= done.len() as u32;
            for completion in done.drain(..) {
                completion.result?;
                appends += 1;
            }
        }
        busy += begun.elapsed();
    }
    Ok(appends as f64 / busy.as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Arguments {
        rounds,
        time,
        devices,
    } = arguments()?;
    for depth in DEPTHS {
        let mut rates = vec![Vec::new(); devices.len()];
        for _ in 0..rounds {
            for (spec, rates) in devices.iter().zip(&mut rates) {
                // Opened anew each time: only one user may write to a namespace.
                let device = open_device(spec, false)?;
                rates.push(measure(&*device, depth, time)?);
            }
        }
        println!("{depth} in flight, appends of one block per second, {rounds} rounds");
        for (spec, own) in devices.iter().zip(&rates) {
            let ratios = own.iter().zip(&rates[0]).map(|(own, first)| own / first);
            let ratio = median(ratios.collect());
            println!("{:>9.0}  {ratio:>5.2}  {spec}", median(own.clone()));
        }
    }
    Ok(())
}
