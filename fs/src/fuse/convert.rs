//! Translation between the kernel's words (through `fuser`) and those of [`crate::volume`].

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, Request, TimeOrNow};

use crate::error::Error;
use crate::types::{BLOCK_SIZE, Ino};
use crate::volume::types::{Attributes, Caller, FileKind, Time, XattrFlags};

const NANOS: i128 = 1_000_000_000;

/// Inode number of a request.
pub(super) fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
}

/// Who made a request; `umask` is 0 where the request has none.
pub(super) fn caller(request: &Request, umask: u32) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
        pid: request.pid(),
        umask,
    }
}

/// The errno an error is reported as.
pub(super) fn errno(error: &Error) -> Errno {
    Errno::from_i32(error.errno())
}

/// Whether an error is news for the operator and not just an answer to the caller.
pub(super) fn is_alarming(error: &Error) -> bool {
    matches!(
        error,
        Error::Corrupt { .. } | Error::BadBlock { .. } | Error::BadImage(_) | Error::Device(_)
    )
}

/// Type of an inode.
pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
    }
}

/// Attributes as the kernel wants them.
pub(super) fn attributes(a: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(a.ino.0),
        size: a.size,
        blocks: a.blocks,
        atime: to_system_time(a.atime),
        mtime: to_system_time(a.mtime),
        ctime: to_system_time(a.ctime),
        crtime: to_system_time(a.crtime),
        kind: file_type(a.kind),
        perm: (a.permissions & 0o7777) as u16,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: a.rdev,
        blksize: BLOCK_SIZE as u32,
        flags: 0,
    }
}

/// The reply to a lookup that found nothing: inode 0, so that the kernel may remember that.
pub(super) fn no_entry() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// Clamped to what a 64-bit `time_t` holds.
pub(super) fn to_system_time(time: Time) -> SystemTime {
    let nanos = time
        .0
        .clamp(i128::from(i64::MIN) * NANOS, i128::from(i64::MAX) * NANOS);
    let magnitude = nanos.unsigned_abs();
    let duration = Duration::new(
        (magnitude / NANOS as u128) as u64,
        (magnitude % NANOS as u128) as u32,
    );
    if nanos >= 0 {
        UNIX_EPOCH + duration
    } else {
        UNIX_EPOCH - duration
    }
}

/// A time of a request.
///
/// The kernel sends seconds rounded down and nanoseconds that count up from there. For times
/// before 1970 `fuser` 0.18 subtracts both (`EPOCH - (secs + nanos)`), so the nanoseconds have to
/// be turned around here.
pub(super) fn from_request_time(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time(after.as_nanos() as i128),
        Err(before) => {
            let before = before.duration();
            Time(i128::from(before.subsec_nanos()) - i128::from(before.as_secs()) * NANOS)
        }
    }
}

/// A time of a request that may be "now".
pub(super) fn from_time_or_now(time: TimeOrNow) -> Time {
    match time {
        TimeOrNow::SpecificTime(time) => from_request_time(time),
        TimeOrNow::Now => Time::now(),
    }
}

/// Flags of setxattr(2); `kill_sgid` is known from elsewhere.
pub(super) fn xattr_flags(flags: i32, kill_sgid: bool) -> XattrFlags {
    XattrFlags {
        create: flags & libc::XATTR_CREATE != 0,
        replace: flags & libc::XATTR_REPLACE != 0,
        kill_sgid,
    }
}

/// Whether a thread belongs to `gid` or may set any group (CAP_FSETID), from its
/// `/proc/PID/status`. False if that cannot be read.
pub(super) fn in_group_or_capable(status: &str, gid: u32) -> bool {
    const CAP_FSETID: u64 = 1 << 4;
    status.lines().any(|line| {
        if let Some(groups) = line.strip_prefix("Groups:") {
            groups.split_whitespace().any(|g| g.parse() == Ok(gid))
        } else if let Some(ids) = line.strip_prefix("Gid:") {
            // Real, effective, saved, filesystem: the last one is what the kernel compares.
            ids.split_whitespace().last().map(str::parse) == Some(Ok(gid))
        } else if let Some(mask) = line.strip_prefix("CapEff:") {
            u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask & CAP_FSETID != 0)
        } else {
            false
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `fuser` makes of the kernel's (secs, nsecs).
    fn as_fuser_reads(secs: i64, nanos: u32) -> SystemTime {
        if secs >= 0 {
            UNIX_EPOCH + Duration::new(secs as u64, nanos)
        } else {
            UNIX_EPOCH - Duration::new(secs.unsigned_abs(), nanos)
        }
    }

    #[test]
    fn times_of_requests_survive_before_and_after_1970() {
        for (secs, nanos) in [
            (0, 0),
            (0, 1),
            (1_700_000_000, 999_999_999),
            (-1, 0),
            (-1, 999_999_999),
            (-2, 800_000_000),
            (i64::MIN, 0),
            (i64::MAX, 0),
        ] {
            let expected = Time(i128::from(secs) * NANOS + i128::from(nanos));
            assert_eq!(
                from_request_time(as_fuser_reads(secs, nanos)),
                expected,
                "{secs}.{nanos:09}"
            );
        }
    }

    #[test]
    fn times_in_replies_are_exact_and_clamped() {
        let at = |nanos: i128| to_system_time(Time(nanos));
        assert_eq!(
            at(1_500_000_000),
            UNIX_EPOCH + Duration::new(1, 500_000_000)
        );
        assert_eq!(at(-1), UNIX_EPOCH - Duration::new(0, 1));
        assert_eq!(at(i128::MAX), at(i128::from(i64::MAX) * NANOS));
        assert_eq!(at(i128::MIN), at(i128::from(i64::MIN) * NANOS));
    }

    #[test]
    fn group_membership_is_read_from_the_status_of_the_thread() {
        let status = "Name:\tx\nGid:\t5\t5\t5\t7\nGroups:\t10 20 \nCapEff:\t0000000000000000\n";
        assert!(in_group_or_capable(status, 20));
        assert!(in_group_or_capable(status, 7));
        assert!(!in_group_or_capable(status, 5));
        assert!(!in_group_or_capable(status, 2));
        assert!(in_group_or_capable("CapEff:\t0000000000000010\n", 2));
        assert!(!in_group_or_capable("", 0));
    }

    #[test]
    fn only_damage_is_alarming() {
        assert!(is_alarming(&Error::BadImage("x".into())));
        assert!(!is_alarming(&Error::NotFound));
        assert_eq!(errno(&Error::NotEmpty).code(), libc::ENOTEMPTY);
    }
}
