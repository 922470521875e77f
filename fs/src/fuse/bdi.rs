//! What the page cache may do for a mount: readahead, and how much may be dirty.
//!
//! Both are settings of the mount's backing device in sysfs. Without the right to change them, or
//! without sysfs, reads and writes are slower and nothing else.
//!
//! *Dirty pages.* Linux lets the dirty pages of a FUSE mount be one percent of what may be dirty in all,
//! and makes writers wait beyond half of that. On a machine with little memory that is less than a few
//! requests: writers sleep while the daemon has nothing to do, and pages that are written again soon
//! are sent each time. There the part is raised to what [`DIRTY_BYTES`] is of the whole. Where it is
//! [`ENOUGH_BYTES`] or more it stays: more gains nothing for streams, whose writing begins later then.

use std::fs;
use std::path::Path;

use super::mountinfo::DeviceNumber;

/// Dirty pages, in bytes, that a mount may have on a small machine, if the system may have as many.
const DIRTY_BYTES: u64 = 64 << 20;
/// Dirty pages that are enough.
const ENOUGH_BYTES: u64 = 32 << 20;

/// Sets what the page cache may do for the mount with this device number; `writeback`: there may be
/// dirty pages.
pub(super) fn set(device: DeviceNumber, readahead_bytes: u32, writeback: bool) {
    // The handshake can only lower the readahead (128 KiB).
    write(device, "read_ahead_kb", u64::from(readahead_bytes / 1024));
    if writeback && let Some(percent) = dirty_total().and_then(raised) {
        write(device, "max_ratio", percent);
    }
}

fn write(device: DeviceNumber, setting: &str, value: u64) {
    let DeviceNumber { major, minor } = device;
    let path = format!("/sys/class/bdi/{major}:{minor}/{setting}");
    if let Err(error) = fs::write(&path, value.to_string()) {
        tracing::info!("cannot set {path}: {error}");
    }
}

/// Percent of `total` bytes that a mount should have, if one is not enough.
fn raised(total: u64) -> Option<u64> {
    let percent = (DIRTY_BYTES * 100).div_ceil(total.max(1)).min(100);
    (total / 100 < ENOUGH_BYTES).then_some(percent)
}

/// Bytes that may be dirty in all (`Documentation/admin-guide/sysctl/vm.rst`).
fn dirty_total() -> Option<u64> {
    let setting =
        |name: &str| number(&fs::read_to_string(Path::new("/proc/sys/vm").join(name)).ok()?);
    match setting("dirty_bytes")? {
        0 => {
            let available = available_bytes(&fs::read_to_string("/proc/meminfo").ok()?)?;
            Some(available / 100 * setting("dirty_ratio")?)
        }
        bytes => Some(bytes),
    }
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Memory that is free or can be made so.
fn available_bytes(meminfo: &str) -> Option<u64> {
    let value = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(number(value.strip_suffix("kB")?)? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_gets_its_share_of_a_small_memory_and_the_default_of_a_large_one() {
        assert_eq!(raised(320 << 20), Some(20));
        assert_eq!(raised(32 << 20), Some(100), "no more than there is");
        assert_eq!(raised(0), Some(100));
        assert_eq!(raised(3 << 30), Some(3));
        assert_eq!(raised(4 << 30), None);
    }

    #[test]
    fn what_may_be_dirty_is_read_from_the_system() {
        let meminfo = "MemTotal:        2015000 kB\nMemAvailable:    1843200 kB\nBuffers: 1 kB\n";
        assert_eq!(available_bytes(meminfo), Some(1800 << 20));
        assert_eq!(available_bytes("MemTotal: 1 kB\n"), None);
        assert!(dirty_total().is_some());
    }
}
