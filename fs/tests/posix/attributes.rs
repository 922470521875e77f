//! setattr: modes, owners, times.

use warren_fs::types::Ino;
use warren_fs::volume::types::{SetAttributes, Time, XattrFlags};

use crate::common::*;

fn set() -> SetAttributes {
    SetAttributes::default()
}

#[test]
fn mode_owner_and_times_are_set_together() {
    let v = fresh_volume();
    let f = file(&v, "f");
    let before = attributes(&v, f);
    let change = SetAttributes {
        permissions: Some(0o4711),
        uid: Some(5),
        gid: Some(6),
        atime: Some(Time(-1)),
        mtime: Some(Time(2_000_000_000_123_456_789)),
        ..set()
    };
    let after = v.setattr(&ROOT, f, &change).unwrap();
    assert_eq!(after, attributes(&v, f));
    assert_eq!((after.permissions, after.uid, after.gid), (0o4711, 5, 6));
    assert_eq!(after.atime, Time(-1));
    assert_eq!(after.mtime, Time(2_000_000_000_123_456_789));
    assert!(after.ctime > before.ctime);
    assert_eq!((after.crtime, after.kind), (before.crtime, before.kind));
}

#[test]
fn change_time_is_the_given_one_if_there_is_one() {
    let v = fresh_volume();
    let f = file(&v, "f");
    let change = SetAttributes {
        ctime: Some(Time(77)),
        ..set()
    };
    assert_eq!(v.setattr(&ROOT, f, &change).unwrap().ctime, Time(77));
}

#[test]
fn change_of_owner_ends_privileges_of_files_but_not_of_directories() {
    let v = fresh_volume();
    let modes = [
        (libc::S_IFREG | 0o6755, 0o755),
        (libc::S_IFREG | 0o6745, 0o2745),
        (libc::S_IFDIR | 0o6755, 0o6755),
    ];
    for (number, (mode, expected)) in modes.into_iter().enumerate() {
        let name = format!("{number}");
        let ino = match mode & libc::S_IFMT {
            libc::S_IFDIR => v.mkdir(&ROOT, Ino::ROOT, name.as_bytes(), mode),
            _ => v.mknod(&ROOT, Ino::ROOT, name.as_bytes(), mode, 0),
        }
        .unwrap()
        .ino;
        let change = SetAttributes {
            gid: Some(9),
            ..set()
        };
        let after = v.setattr(&ROOT, ino, &change).unwrap();
        assert_eq!(after.permissions, expected, "{mode:o}");
    }
}

#[test]
fn ended_privileges_include_capabilities() {
    let v = fresh_volume();
    let f = file(&v, "f");
    let name = b"security.capability";
    let changes = [
        SetAttributes {
            uid: Some(3),
            ..set()
        },
        SetAttributes {
            size: Some(0),
            kill_privileges: true,
            ..set()
        },
    ];
    for change in changes {
        v.setxattr(&ROOT, f, name, b"caps", XattrFlags::default())
            .unwrap();
        v.setattr(&ROOT, f, &change).unwrap();
        assert_eq!(errno(v.getxattr(f, name)), libc::ENODATA);
    }
    v.setxattr(&ROOT, f, name, b"caps", XattrFlags::default())
        .unwrap();
    v.write(f, 0, b"x", true, None).unwrap();
    assert_eq!(errno(v.getxattr(f, name)), libc::ENODATA);
}

#[test]
fn attributes_of_what_is_not_there_are_not_found() {
    let v = fresh_volume();
    for ino in [Ino(0), Ino(77), Ino(u64::MAX)] {
        assert_eq!(errno(v.getattr(ino)), libc::ENOENT);
        assert_eq!(errno(v.setattr(&ROOT, ino, &set())), libc::ENOENT);
    }
}

#[test]
fn synced_or_unchanged_files_sync_at_once() {
    let v = fresh_volume();
    let f = file(&v, "f");
    v.fsync(f).unwrap();
    v.fsync(f).unwrap();
    v.fsync(Ino(12345)).unwrap();
    v.sync().unwrap();
}
