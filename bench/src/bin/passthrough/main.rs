//! A FUSE filesystem that hands every request to a directory of the host: what FUSE costs at least.
//!
//! The peer that warren is measured against, so it has what makes such a filesystem fast: several
//! event loops with descriptors of their own, writeback cache, 1 MiB requests, long lifetimes,
//! caches kept across opens, readdirplus, an O_PATH descriptor per known inode as long as there are
//! any. It is for benchmarks by one user: new files belong to whoever runs it.

mod filesystem;
mod host;
mod inodes;
mod place;

use std::path::PathBuf;

use clap::Parser;
use fuser::{Config, MountOption, SessionACL};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Mounts SOURCE on MOUNTPOINT and serves it until it is unmounted.
#[derive(Parser)]
struct Arguments {
    /// Directory whose contents appear.
    source: PathBuf,
    /// Where they appear.
    mountpoint: PathBuf,
    /// Event loops.
    #[arg(long, default_value_t = 8)]
    threads: usize,
}

fn main() -> std::io::Result<()> {
    let arguments = Arguments::parse();
    let open_max = descriptor_limit() / 4 * 3;
    let filesystem = host::Passthrough::open(&arguments.source, open_max)?;
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("passthrough".into()),
        MountOption::DefaultPermissions,
    ];
    config.acl = SessionACL::All;
    config.n_threads = Some(arguments.threads);
    config.clone_fd = true;
    fuser::mount(filesystem, &arguments.mountpoint, &config)
}

/// Raises the limit of descriptors as far as it goes, and returns it.
fn descriptor_limit() -> usize {
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open");
    let most = most.ok().and_then(|text| text.trim().parse().ok());
    let hard = getrlimit(Resource::Nofile).maximum;
    for limit in [most, hard].into_iter().flatten() {
        let both = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        if setrlimit(Resource::Nofile, both).is_ok() {
            break;
        }
    }
    let now = getrlimit(Resource::Nofile).current;
    now.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}
