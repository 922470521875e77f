//! `warren mount`: opens a device, mounts it, and serves it until it is unmounted.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::control::Server;
use super::daemon::{self, Report, Side};
use super::device::Device;
use super::{CommandResult, Failure, Outcome, output};
use crate::fuse::options::MountOptions;
use crate::fuse::session::{self, Mounted};
use crate::offload::{self, Offload};
use crate::store::{FormatOptions, Store, StoreOptions};
use crate::volume::Volume;

/// Where a daemon logs to if nothing else is asked for.
const DEFAULT_LOG: &str = "/var/log/warren.log";

/// Mount a filesystem.
///
/// Returns when the mount can be used; a daemon serves it from then on. A memory device is
/// formatted first.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to mount
    pub(super) device: String,
    /// Directory to mount at
    pub(super) mountpoint: PathBuf,
    /// Mount options, comma-separated
    #[arg(short = 'o', long = "options", value_name = "OPT[,OPT..]")]
    pub(super) options: Vec<String>,
    /// Stay in the foreground and log to standard error
    #[arg(short, long)]
    pub(super) foreground: bool,
    /// Event loops [default: one per processor, 2 to 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(super) threads: Option<u16>,
    /// File the daemon logs to [default: /var/log/warren.log]
    #[arg(long, value_name = "FILE")]
    pub(super) log: Option<PathBuf>,
}

/// A mount that was asked for, with its arguments understood.
pub(super) struct Plan {
    pub(super) device: String,
    pub(super) mountpoint: PathBuf,
    pub(super) options: MountOptions,
    pub(super) foreground: bool,
}

pub(super) fn run(args: &Args) -> CommandResult {
    let mut options = MountOptions::default();
    for list in &args.options {
        options
            .parse(list, false)
            .map_err(|e| Failure::usage("", e))?;
    }
    if let Some(threads) = args.threads {
        options.threads = Some(threads.into());
    }
    if let Some(log) = &args.log {
        options.log = Some(log.clone());
    }
    execute(&Plan {
        device: args.device.clone(),
        mountpoint: args.mountpoint.clone(),
        options,
        foreground: args.foreground,
    })
}

/// Carries out a mount: here, or in a daemon.
pub(super) fn execute(plan: &Plan) -> CommandResult {
    let device = Device::parse(&plan.device)?;
    let mount_point =
        session::check_mount_point(&plan.mountpoint).map_err(|e| Failure::new("", e))?;
    session::block_signals().map_err(|e| Failure::new("signals", e))?;
    if plan.foreground {
        output::log_to_stderr();
        serve(&device, &mount_point, &plan.options, None)?;
        return Ok(Outcome::Fine);
    }
    match daemon::detach().map_err(|e| Failure::new("cannot start the daemon", e))? {
        Side::Caller(Ok(())) => Ok(Outcome::Fine),
        Side::Caller(Err(problem)) => Err(Failure::new("", problem)),
        Side::Daemon(report) => {
            start_log(&plan.options);
            serve(&device, &mount_point, &plan.options, Some(report))?;
            Ok(Outcome::Fine)
        }
    }
}

/// A daemon without a place to log to still works.
fn start_log(options: &MountOptions) {
    let path = options.log.as_deref().unwrap_or(Path::new(DEFAULT_LOG));
    match daemon::open_log(path) {
        Ok(file) => output::log_to_file(file),
        Err(error) if options.log.is_some() => {
            eprintln!("warren: {}: cannot log there: {error}", path.display());
        }
        Err(_) => {}
    }
    output::log_panics();
}

fn serve(
    device: &Device,
    mount_point: &Path,
    options: &MountOptions,
    report: Option<Report>,
) -> Result<(), Failure> {
    let Started {
        mounted,
        volume,
        offload,
    } = match start(device, mount_point, options) {
        Ok(started) => started,
        Err(failure) => {
            return match report {
                // The caller says it, and fails; nobody looks at the end of the daemon.
                Some(report) => {
                    report.failed(&failure.to_string());
                    Ok(())
                }
                None => Err(failure),
            };
        }
    };
    let server = Server::start(mounted.device(), &volume, &offload)
        .inspect_err(|error| tracing::warn!("no control socket: {error}"))
        .ok();
    if let Some(report) = report {
        report.ready().map_err(|e| Failure::new("daemon", e))?;
    }
    let served = mounted.serve();
    if let Some(server) = &server {
        server.stop();
    }
    // Registrations hold versions of the volume.
    offload.shutdown();
    drop(offload);
    let closed = volume.close();
    // The device is free for its next user before anyone learns that this process has ended.
    drop(volume);
    served.map_err(|e| Failure::new(mount_point.display(), e))?;
    closed.map_err(|e| {
        tracing::error!("closing {}: {e}", device.name);
        device.failure(e)
    })
}

/// What a mount consists of.
struct Started {
    mounted: Mounted,
    volume: Arc<Volume>,
    offload: Arc<Offload>,
}

fn start(device: &Device, mount_point: &Path, options: &MountOptions) -> Result<Started, Failure> {
    let opened = device.open_waiting(options.read_only)?;
    if device.is_volatile() {
        Store::format(&opened, &FormatOptions::default()).map_err(|e| device.failure(e))?;
    }
    let mut store = StoreOptions {
        read_only: options.read_only,
        ..StoreOptions::default()
    };
    if let Some(bytes) = options.cache_bytes {
        store.cache_bytes = bytes;
    }
    let volume = Arc::new(Volume::open(opened, &store).map_err(|e| device.failure(e))?);
    let kernels = offload::Options {
        verify: options.csd_verify,
        workers: options.csd_workers,
        timeout: options.csd_timeout,
        direct_io: options.direct_io,
    };
    let offload =
        Offload::new(Arc::clone(&volume), kernels).map_err(|e| Failure::new("kernels", e))?;
    let mounted = session::mount_volume(
        Arc::clone(&volume),
        &offload,
        &device.absolute,
        mount_point,
        options,
    )
    .map_err(|e| Failure::new("", e))?;
    Ok(Started {
        mounted,
        volume,
        offload,
    })
}
