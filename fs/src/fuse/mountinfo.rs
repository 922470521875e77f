//! The mounts of this process' namespace, from `/proc/self/mountinfo` (proc(5)).
//!
//! Asking the kernel's table instead of the mount point answers without a request to the
//! filesystem, which may hang or be gone.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The filesystem type our mounts carry.
pub const FSTYPE: &str = "fuse.warren";

/// Number of the device a filesystem is to stat(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// The filesystem.
    pub device: DeviceNumber,
    /// Which directory of the filesystem is mounted.
    pub root: PathBuf,
    /// Where.
    pub mount_point: PathBuf,
    /// Filesystem type with its subtype.
    pub fstype: String,
    /// What is mounted.
    pub source: String,
}

impl MountEntry {
    /// Whether this is a mount of this program.
    #[must_use]
    pub fn is_warren(&self) -> bool {
        self.fstype == FSTYPE
    }
}

/// All mounts, in the order they were made.
///
/// # Errors
/// When `/proc` is not there.
pub fn read() -> io::Result<Vec<MountEntry>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(table
        .split(|b| *b == b'\n')
        .filter_map(parse_line)
        .collect())
}

/// The topmost mount at `path`, which must be absolute and without links.
///
/// # Errors
/// As [`read`].
pub fn find(path: &Path) -> io::Result<Option<MountEntry>> {
    Ok(read()?.into_iter().rev().find(|m| m.mount_point == path))
}

/// The topmost mount that holds `path`.
///
/// # Errors
/// As [`read`].
pub fn containing(path: &Path) -> io::Result<Option<MountEntry>> {
    let mounts = read()?;
    let deepest = mounts
        .iter()
        .filter(|m| path.starts_with(&m.mount_point))
        .map(|m| m.mount_point.components().count())
        .max();
    Ok(mounts.into_iter().rev().find(|m| {
        path.starts_with(&m.mount_point) && Some(m.mount_point.components().count()) == deepest
    }))
}

/// `ID PARENT MAJ:MIN ROOT MOUNTPOINT OPTIONS [TAG..] - TYPE SOURCE SUPEROPTIONS`
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|b| *b == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let root = unescape(fields.next()?);
    let mount_point = unescape(fields.next()?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    Some(MountEntry {
        device: DeviceNumber {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
        },
        root: root.into(),
        mount_point: mount_point.into(),
        fstype: unescape(rest.next()?).to_string_lossy().into_owned(),
        source: unescape(rest.next()?).to_string_lossy().into_owned(),
    })
}

/// Blanks, line ends and backslashes are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let code = field.get(at + 1..at + 4).filter(|_| field[at] == b'\\');
        let code = code
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push(code.unwrap_or(field[at]));
        at += if code.is_some() { 4 } else { 1 };
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_tags_and_escapes_are_read() {
        let line = br"95 26 0:51 / /mnt/a\040b\134c rw,relatime shared:1 - fuse.warren mem:1G rw";
        let entry = parse_line(line).unwrap();
        assert_eq!(
            entry.device,
            DeviceNumber {
                major: 0,
                minor: 51
            }
        );
        assert_eq!(entry.mount_point, Path::new(r"/mnt/a b\c"));
        assert_eq!(entry.source, "mem:1G");
        assert!(entry.is_warren());
        assert_eq!(parse_line(b""), None);
        assert_eq!(parse_line(b"95 26 0:51 / /mnt rw"), None);
    }

    #[test]
    fn the_root_of_this_host_contains_everything() {
        assert!(containing(Path::new("/")).unwrap().is_some());
        assert_eq!(find(Path::new("/no/such/mount")).unwrap(), None);
    }
}
