//! What the filesystem makes of a drive when processors cost nothing: a volume, without a mount, on the
//! model of a ZN540 with a virtual clock. Prints tables in Markdown for `docs/performance.md`.
//!
//! `device_bound [--quick]`. One thread does everything, so requests of the log do not overlap where
//! they would with threads of their own (collection beside writing, a reset beside anything): the
//! results are on the careful side, and the same on every machine. Zones are smaller than the drive's
//! so that sixty-four of them fit into memory; the model's times of reset and finish are made smaller by
//! as much, so that a byte costs what it costs on the drive.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use warren_fs::store::{FormatOptions, Store, StoreOptions};
use warren_fs::types::Ino;
use warren_fs::volume::Volume;
use warren_fs::volume::types::Caller;
use warren_fs::{Error, Result};
use zns_backend::{Clock, Geometry, MemDevice, Profile, Tally, TimedDevice, ZonedDevice};

const BLOCK: usize = 4096;
const MIB: u64 = 1 << 20;
/// Capacity of a zone of the drive.
const DRIVE_ZONE_MIB: u64 = 1077;
const ZONES: u32 = 64;
const SEED: u64 = 7;
/// Published figures of the drive (docs/devices.md).
const WRITE_MIB_S: f64 = 1147.0;
const RANDOM_READS: f64 = 437_000.0;

/// A formatted volume on a modelled drive.
struct Bench {
    device: TimedDevice,
    volume: Volume,
    zone_mib: u64,
}

/// What the device did between two moments.
struct Span {
    time: Duration,
    done: Tally,
}

impl Span {
    fn mib_per_s(&self, bytes: u64) -> f64 {
        bytes as f64 / MIB as f64 / self.time.as_secs_f64()
    }

    fn per_s(&self, operations: u64) -> f64 {
        operations as f64 / self.time.as_secs_f64()
    }
}

/// The drive with `zone_mib` for each zone's capacity.
fn profile(zone_mib: u64) -> Profile {
    let scaled = |time: u64| time * zone_mib / DRIVE_ZONE_MIB;
    let drive = Profile::ZN540;
    Profile {
        name: "zn540, smaller zones",
        reset_empty: scaled(drive.reset_empty),
        reset_base: scaled(drive.reset_base),
        reset_full: scaled(drive.reset_full),
        finish_base: scaled(drive.finish_base),
        ..drive
    }
}

impl Bench {
    fn new(zone_mib: u64) -> Result<Bench> {
        let blocks = zone_mib * MIB / BLOCK as u64;
        let memory = MemDevice::new(Geometry {
            block_size: BLOCK as u32,
            zones: ZONES,
            zone_size: blocks,
            zone_capacity: blocks,
            max_open: 14,
            max_active: 14,
            max_append: MIB / BLOCK as u64,
        })?;
        let device = TimedDevice::new(Arc::new(memory), profile(zone_mib), Clock::Virtual);
        let shared: Arc<dyn ZonedDevice> = Arc::new(device.clone());
        Store::format(&shared, &FormatOptions::default())?;
        let options = StoreOptions {
            background: false,
            ..StoreOptions::default()
        };
        let volume = Volume::open(shared, &options)?;
        Ok(Bench {
            device,
            volume,
            zone_mib,
        })
    }

    fn create(&self, name: &str) -> Result<Ino> {
        let caller = Caller {
            uid: 0,
            gid: 0,
            pid: 1,
            umask: 0o022,
        };
        let mode = libc::S_IFREG | 0o644;
        let made = self
            .volume
            .mknod(&caller, Ino::ROOT, name.as_bytes(), mode, 0)?;
        Ok(made.ino)
    }

    /// Bytes that the device holds.
    fn bytes(&self) -> u64 {
        u64::from(ZONES) * self.zone_mib * MIB
    }

    fn span(&self, work: impl FnOnce(&Bench) -> Result<()>) -> Result<Span> {
        let (begun, before) = (self.device.elapsed(), self.device.tally());
        work(self)?;
        let after = self.device.tally();
        let mut done = after;
        for (now, then) in [
            (&mut done.reads, before.reads),
            (&mut done.writes, before.writes),
            (&mut done.flushes, before.flushes),
            (&mut done.resets, before.resets),
            (&mut done.finishes, before.finishes),
        ] {
            now.operations -= then.operations;
            now.bytes -= then.bytes;
            now.time -= then.time;
        }
        Ok(Span {
            time: self.device.elapsed() - begun,
            done,
        })
    }

    /// Writes a file in requests of 1 MiB, as a mount gets them.
    fn write_stream(&self, file: Ino, bytes: u64) -> Result<()> {
        let data: Vec<u8> = (0..MIB as usize).map(|i| (i / 7) as u8).collect();
        for at in (0..bytes).step_by(data.len()) {
            self.volume.write(file, at, &data, false, None)?;
        }
        self.volume.fsync(file)
    }

    fn read_stream(&self, file: Ino, bytes: u64) -> Result<()> {
        let mut out = Vec::new();
        for at in (0..bytes).step_by(MIB as usize) {
            self.volume.read(file, at, MIB as usize, &mut out)?;
        }
        Ok(())
    }

    fn random(
        &self,
        file_bytes: u64,
        count: u64,
        mut each: impl FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        debug_assert!(file_bytes >= BLOCK as u64);
        let mut random = ChaCha8Rng::seed_from_u64(SEED);
        (0..count).try_for_each(|_| {
            each(random.random_range(0..file_bytes / BLOCK as u64) * BLOCK as u64)
        })
    }

    fn random_reads(&self, file: Ino, file_bytes: u64, count: u64) -> Result<()> {
        let mut out = Vec::new();
        self.random(file_bytes, count, |at| {
            self.volume.read(file, at, BLOCK, &mut out)
        })
    }

    fn random_writes(&self, file: Ino, file_bytes: u64, count: u64) -> Result<()> {
        let data = [0x5A; BLOCK];
        self.random(file_bytes, count, |at| {
            self.volume.write(file, at, &data, false, None)
        })?;
        self.volume.fsync(file)
    }

    /// Writers that each write 4 KiB and fsync, and go on when they are answered, over and over the same
    /// MiB. Who is answered at the same moment asks again at the same moment.
    fn synced_writes(&self, writers: usize, count: u64) -> Result<()> {
        let files: Vec<Ino> = (0..writers)
            .map(|writer| self.create(&format!("synced-{writers}-{writer}")))
            .collect::<Result<_>>()?;
        let ready = Arc::new(Mutex::new((0..writers).collect::<VecDeque<_>>()));
        let failed = Arc::new(Mutex::new(None));
        let data = [0xA5; BLOCK];
        let mut written = vec![0_u64; writers];
        let mut asked = 0;
        while asked < count {
            let answered = std::mem::take(&mut *ready.lock());
            let mut lead = None;
            for writer in answered {
                self.volume
                    .write(files[writer], written[writer], &data, false, None)?;
                written[writer] = (written[writer] + BLOCK as u64) % MIB;
                asked += 1;
                let (ready, failed) = (Arc::clone(&ready), Arc::clone(&failed));
                let then = move |outcome: Result<()>| match outcome {
                    Ok(()) => ready.lock().push_back(writer),
                    Err(error) => *failed.lock() = Some(error),
                };
                lead = self
                    .volume
                    .fsync_then(files[writer], Box::new(then))
                    .or(lead);
            }
            if let Some(lead) = lead {
                lead.run();
            }
            if let Some(error) = failed.lock().take() {
                return Err(error);
            }
        }
        Ok(())
    }
}

fn streams(zone_mib: u64) -> Result<()> {
    let bench = Bench::new(zone_mib)?;
    let bytes = bench.bytes() / 2;
    let file = bench.create("stream")?;
    let write = bench.span(|b| b.write_stream(file, bytes))?;
    let read = bench.span(|b| b.read_stream(file, bytes))?;
    let reads = 50_000;
    let random = bench.span(|b| b.random_reads(file, bytes, reads))?;
    println!(
        "| what | on the modelled drive | the drive's ceiling | part of it |\n|---|--:|--:|--:|"
    );
    let rate = write.mib_per_s(bytes);
    println!(
        "| sequential write, MiB/s | {rate:.0} | {WRITE_MIB_S:.0} | {:.2} |",
        rate / WRITE_MIB_S
    );
    println!(
        "| sequential read in requests of 1 MiB, one at a time, MiB/s | {:.0} | | |",
        read.mib_per_s(bytes)
    );
    let rate = random.per_s(reads);
    println!(
        "| 4 KiB random read, one at a time, op/s | {rate:.0} | {RANDOM_READS:.0} (256 at a time) | |"
    );
    for writers in [1, 16] {
        let operations = 20_000;
        let synced = bench.span(|b| b.synced_writes(writers, operations))?;
        let per_write = synced.done.writes.bytes as f64 / operations as f64 / BLOCK as f64;
        println!(
            "| 4 KiB write + fsync, {writers} writers, op/s ({per_write:.2} blocks written for each) | {:.0} | | |",
            synced.per_s(operations)
        );
    }
    bench.volume.close()
}

/// Random writes of three times the device over a file of `percent` of it.
fn sustained(zone_mib: u64, percent: u64) -> Result<()> {
    let bench = Bench::new(zone_mib)?;
    let file_bytes = bench.bytes() * percent / 100 / MIB * MIB;
    let file = bench.create("large")?;
    bench.write_stream(file, file_bytes)?;
    let count = 3 * bench.bytes() / BLOCK as u64;
    let span = bench.span(|b| b.random_writes(file, file_bytes, count))?;
    let bytes = count * BLOCK as u64;
    let Tally {
        reads,
        writes,
        resets,
        finishes,
        ..
    } = span.done;
    let beside = span.time - resets.time - finishes.time;
    println!(
        "| {percent} | {:.0} | {:.0} | {:.2} | {:.2} | {} | {:.2} |",
        span.mib_per_s(bytes),
        bytes as f64 / MIB as f64 / beside.as_secs_f64(),
        writes.bytes as f64 / bytes as f64,
        reads.bytes as f64 / bytes as f64,
        resets.operations,
        resets.time.as_secs_f64() / span.time.as_secs_f64(),
    );
    bench.volume.close()
}

fn main() -> std::result::Result<(), Error> {
    let zone_mib = if std::env::args().any(|argument| argument == "--quick") {
        4
    } else {
        32
    };
    println!(
        "`fs/examples/device_bound.rs`: a volume on the modelled ZN540 with a virtual clock, {ZONES} zones of {zone_mib} MiB, \
         one thread; processors cost nothing.\n"
    );
    streams(zone_mib)?;
    println!(
        "\nRandom 4 KiB writes of three times the device, one fsync at the end, over a file that takes a part of it:\n\n\
         | part of the device, % | MiB/s | MiB/s if resets cost no time | written to the device per byte | read per byte | resets | time in resets |\n\
         |--:|--:|--:|--:|--:|--:|--:|"
    );
    // Three quarters are what a filesystem of so few zones can hold.
    for percent in [30, 50, 70] {
        sustained(zone_mib, percent)?;
    }
    Ok(())
}
