//! `warren umount`: unmounts, and waits until the daemon has let go of the device.

use std::path::PathBuf;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::control::Watch;
use super::{CommandResult, Failure, Outcome, target};
use crate::fuse::mountinfo;

/// Unmount a filesystem and wait until its device is closed.
///
/// When this returns, everything is on the device, and it can be checked, copied or mounted again.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where it is mounted
    mountpoint: PathBuf,
    /// Detach the mount now although it is in use; do not wait
    #[arg(short, long)]
    lazy: bool,
}

pub(super) fn run(args: &Args) -> CommandResult {
    let entry = target::require(&args.mountpoint)?;
    let watch = Watch::start(entry.device);
    let flags = if args.lazy {
        MntFlags::MNT_DETACH
    } else {
        MntFlags::empty()
    };
    umount2(&entry.mount_point, flags).map_err(|errno| {
        let problem = match errno {
            Errno::EBUSY => "in use (some process has a file or its working directory there)",
            Errno::EPERM => "only root can unmount it",
            other => other.desc(),
        };
        Failure::new(args.mountpoint.display(), problem)
    })?;
    let mounts = mountinfo::read().unwrap_or_default();
    // Mounted elsewhere too, the daemon goes on.
    let last = mounts.iter().all(|m| m.device != entry.device);
    if last && !args.lazy {
        watch.wait();
    }
    Ok(Outcome::Fine)
}
