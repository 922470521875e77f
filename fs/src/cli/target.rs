//! Mount points as arguments: which mount they are, and asking its daemon.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::Failure;
use super::control::{self, Request};
use super::device::Device;
use crate::fuse::mountinfo::{self, MountEntry};

/// The path without links. A mount whose daemon is gone cannot be entered, so its last part is
/// left alone.
pub(super) fn resolve(path: &Path) -> Result<PathBuf, Failure> {
    let fail = |e: std::io::Error| Failure::new(path.display(), e);
    match path.canonicalize() {
        Ok(real) => Ok(real),
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => {
            let absolute = std::path::absolute(path).map_err(fail)?;
            match (absolute.parent(), absolute.file_name()) {
                (Some(parent), Some(name)) => Ok(parent.canonicalize().map_err(fail)?.join(name)),
                _ => Ok(absolute),
            }
        }
        Err(e) => Err(fail(e)),
    }
}

/// The mount of ours at `path`, if there is one.
pub(super) fn find(path: &Path) -> Result<Option<MountEntry>, Failure> {
    let real = resolve(path)?;
    let entry = mountinfo::find(&real).map_err(|e| Failure::new("/proc/self/mountinfo", e))?;
    Ok(entry.filter(MountEntry::is_warren))
}

/// The mount of ours at `path`.
pub(super) fn require(path: &Path) -> Result<MountEntry, Failure> {
    find(path)?.ok_or_else(|| Failure::new(path.display(), "no WarrenFS is mounted there"))
}

/// Asks the daemon of a mount for a report.
pub(super) fn ask<T: DeserializeOwned>(
    entry: &MountEntry,
    request: Request,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<T, Failure> {
    let subject = entry.mount_point.display();
    let report = control::ask(entry.device, request, progress)
        .map_err(|e| Failure::new(&subject, format!("cannot ask the daemon: {e}")))?;
    serde_json::from_value(report).map_err(|e| Failure::new(&subject, e))
}

/// The mount an argument that may also be a device means: its mount point, or the device that is
/// mounted there.
pub(super) fn mount_of(argument: &str) -> Result<Option<MountEntry>, Failure> {
    let path = Path::new(argument.strip_prefix("file:").unwrap_or(argument));
    if !argument.starts_with("mem:") && (path.is_dir() || resolve(path).is_ok_and(|p| p != path)) {
        if let Some(entry) = find(path)? {
            return Ok(Some(entry));
        }
        if path.is_dir() {
            return Err(Failure::new(argument, "no WarrenFS is mounted there"));
        }
    }
    match Device::parse(argument) {
        Ok(device) => mounted_device(&device),
        Err(_) => Ok(None),
    }
}

/// Where a device is mounted.
pub(super) fn mounted_device(device: &Device) -> Result<Option<MountEntry>, Failure> {
    if device.is_volatile() {
        return Ok(None);
    }
    let mounts = mountinfo::read().map_err(|e| Failure::new("/proc/self/mountinfo", e))?;
    Ok(mounts
        .into_iter()
        .rev()
        .find(|m| m.is_warren() && m.source == device.absolute))
}
