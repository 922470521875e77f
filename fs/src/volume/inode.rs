//! Inode records in memory: loading, storing, times, and the count of all inodes.

use super::types::{Attributes, FileKind, Time};
use crate::catalog::{Key, Kind};
use crate::error::{Error, Result};
use crate::format::record::{InodeRecord, Timestamp, decode_inode_count, encode_inode_count};
use crate::store::{Records, Txn};
use crate::types::{BLOCK, Ino};

/// Most names of an inode, and most links (2 and the subdirectories) of a directory.
pub(super) const MAX_LINKS: u32 = u32::MAX / 2;

const INODE_COUNT: Key = Key::new(Ino(0), Kind::Inode, 0);

/// Key of an inode's attributes.
pub(super) fn key(ino: Ino) -> Key {
    Key::new(ino, Kind::Inode, 0)
}

/// The inode, whatever it is.
pub(super) fn load(records: &impl Records, ino: Ino) -> Result<InodeRecord> {
    if ino.0 == 0 {
        return Err(Error::NotFound);
    }
    let key = key(ino);
    let value = records.get(&key)?.ok_or(Error::NotFound)?;
    InodeRecord::decode(&key, &value)
}

/// The inode a directory entry names, which must be there.
pub(super) fn load_named(records: &impl Records, ino: Ino) -> Result<InodeRecord> {
    load(records, ino).map_err(|error| match error {
        Error::NotFound => Error::Corrupt {
            what: "directory entry",
            detail: format!("it names inode {ino}, which does not exist"),
        },
        other => other,
    })
}

/// The inode, which must be a directory.
pub(super) fn load_directory(records: &impl Records, ino: Ino) -> Result<InodeRecord> {
    let inode = load(records, ino)?;
    if kind(&inode) == FileKind::Directory {
        Ok(inode)
    } else {
        Err(Error::NotDirectory)
    }
}

/// The inode, which must be a directory that is not removed, to make or remove entries in.
pub(super) fn load_parent(records: &impl Records, ino: Ino) -> Result<InodeRecord> {
    let inode = load_directory(records, ino)?;
    if inode.nlink == 0 {
        return Err(Error::NotFound);
    }
    Ok(inode)
}

/// The inode, which must be a regular file.
pub(super) fn load_file(records: &impl Records, ino: Ino) -> Result<InodeRecord> {
    let inode = load(records, ino)?;
    match kind(&inode) {
        FileKind::Regular => Ok(inode),
        FileKind::Directory => Err(Error::IsDirectory),
        _ => Err(Error::Invalid("not a regular file")),
    }
}

/// Puts the attributes of an inode.
pub(super) fn save(txn: &mut Txn<'_>, ino: Ino, inode: &InodeRecord) -> Result<()> {
    txn.put(key(ino), &inode.encode())
}

/// Type of an inode.
pub(super) fn kind(inode: &InodeRecord) -> FileKind {
    // Decoding has refused every other mode.
    kind_from_number((inode.mode >> 12) as u8).unwrap_or(FileKind::Regular)
}

/// Whether it is a directory.
pub(super) fn is_directory(inode: &InodeRecord) -> bool {
    kind(inode) == FileKind::Directory
}

/// The type with this number in mode bits 12 to 15.
pub(super) fn kind_from_number(number: u8) -> Option<FileKind> {
    Some(match number {
        1 => FileKind::Fifo,
        2 => FileKind::CharDevice,
        4 => FileKind::Directory,
        6 => FileKind::BlockDevice,
        8 => FileKind::Regular,
        10 => FileKind::Symlink,
        12 => FileKind::Socket,
        _ => return None,
    })
}

/// The number of a type in mode bits 12 to 15.
pub(super) fn kind_number(kind: FileKind) -> u8 {
    match kind {
        FileKind::Fifo => 1,
        FileKind::CharDevice => 2,
        FileKind::Directory => 4,
        FileKind::BlockDevice => 6,
        FileKind::Regular => 8,
        FileKind::Symlink => 10,
        FileKind::Socket => 12,
    }
}

/// A time as it is stored: exact where it fits, else the nearest that can be stored.
pub(super) fn to_timestamp(time: Time) -> Timestamp {
    const SECOND: i128 = 1_000_000_000;
    match i64::try_from(time.0.div_euclid(SECOND)) {
        Ok(seconds) => Timestamp {
            seconds,
            nanoseconds: time.0.rem_euclid(SECOND) as u32,
        },
        Err(_) if time.0 < 0 => Timestamp {
            seconds: i64::MIN,
            nanoseconds: 0,
        },
        Err(_) => Timestamp {
            seconds: i64::MAX,
            nanoseconds: 999_999_999,
        },
    }
}

fn from_timestamp(stamp: Timestamp) -> Time {
    Time(i128::from(stamp.seconds) * 1_000_000_000 + i128::from(stamp.nanoseconds))
}

/// The contents changed at `now`.
pub(super) fn touch(inode: &mut InodeRecord, now: Timestamp) {
    inode.mtime = now;
    inode.ctime = now;
}

/// Clears the set-user-ID bit, and the set-group-ID bit of what the group may execute (without
/// that it means mandatory locking and stays).
pub(super) fn clear_set_id(inode: &mut InodeRecord) {
    inode.mode &= !libc::S_ISUID;
    if inode.mode & libc::S_IXGRP != 0 {
        inode.mode &= !libc::S_ISGID;
    }
}

/// What stat(2) shows of an inode.
///
/// A directory has the size of one block whatever it holds. Contents that live in the catalog are
/// shown as if they took sectors: tools take a file of 0 sectors for one hole.
pub(super) fn attributes(ino: Ino, inode: &InodeRecord) -> Attributes {
    let kind = kind(inode);
    let inline_sectors = match inode.has(InodeRecord::INLINE) {
        true => inode.size.div_ceil(512),
        false => 0,
    };
    Attributes {
        ino,
        kind,
        permissions: inode.mode & 0o7777,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        size: match kind {
            FileKind::Directory => BLOCK,
            _ => inode.size,
        },
        blocks: inode.blocks * (BLOCK / 512) + inline_sectors,
        atime: from_timestamp(inode.atime),
        mtime: from_timestamp(inode.mtime),
        ctime: from_timestamp(inode.ctime),
        crtime: from_timestamp(inode.crtime),
    }
}

/// How many inodes there are.
pub(super) fn count(records: &impl Records) -> Result<u64> {
    match records.get(&INODE_COUNT)? {
        Some(value) => decode_inode_count(&INODE_COUNT, &value),
        None => Ok(0),
    }
}

/// Counts an inode that this transaction makes.
pub(super) fn count_made(txn: &mut Txn<'_>) -> Result<()> {
    let count = count(txn)?.saturating_add(1);
    txn.put(INODE_COUNT, &encode_inode_count(count))
}

/// Counts an inode that this transaction deletes.
pub(super) fn count_deleted(txn: &mut Txn<'_>) -> Result<()> {
    let count = count(txn)?.saturating_sub(1);
    txn.put(INODE_COUNT, &encode_inode_count(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_out_of_range_are_stored_as_near_as_possible() {
        for time in [0, 1, -1, -1_000_000_001, 1_700_000_000_123_456_789] {
            assert_eq!(from_timestamp(to_timestamp(Time(time))), Time(time));
        }
        assert_eq!(to_timestamp(Time(-1)).seconds, -1);
        assert_eq!(to_timestamp(Time(i128::MAX)).seconds, i64::MAX);
        assert_eq!(to_timestamp(Time(i128::MIN)).seconds, i64::MIN);
    }
}
