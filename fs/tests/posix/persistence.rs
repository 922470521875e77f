//! What is still there after a remount, and what happens on a full or read-only device.

use std::sync::Arc;

use libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE};
use warren_fs::store::StoreOptions;
use warren_fs::types::Ino;
use warren_fs::volume::Volume;
use warren_fs::volume::types::{SetAttributes, XattrFlags};

use crate::common::*;

#[test]
fn everything_is_there_after_a_remount() {
    let v = fresh_volume();
    let d = directory(&v, "d");
    let f = file_in(&v, d, "f");
    let data = pattern(1, 100_000);
    write(&v, f, 5, &data);
    let small = file_in(&v, d, "small");
    write(&v, small, 0, b"inline");
    let link = v.symlink(&ROOT, d, b"l", &pattern(2, 3000)).unwrap().ino;
    let value = pattern(3, 50_000);
    v.setxattr(&ROOT, f, b"user.x", &value, XattrFlags::default())
        .unwrap();
    let before = [d, f, small, link].map(|ino| attributes(&v, ino));
    let (listed, statistics) = (list(&v, d), v.statfs());
    let v = remount(v);
    assert_eq!([d, f, small, link].map(|ino| attributes(&v, ino)), before);
    assert_eq!(list(&v, d), listed);
    assert_eq!(contents(&v, f)[5..], data);
    assert_eq!(contents(&v, small), b"inline");
    assert_eq!(v.readlink(link).unwrap(), pattern(2, 3000));
    assert_eq!(v.getxattr(f, b"user.x").unwrap(), value);
    assert_eq!(v.statfs().inodes_used, statistics.inodes_used);
    let fresh = file(&v, "fresh");
    assert!(![d, f, small, link].contains(&fresh));
}

#[test]
fn orphans_are_reclaimed_at_the_next_mount() {
    let v = fresh_volume();
    let f = file(&v, "f");
    v.open_handle(&ROOT, f, false).unwrap();
    write(&v, f, 0, &pattern(1, 1 << 20));
    v.unlink(&ROOT, Ino::ROOT, b"f").unwrap();
    let lost = v.tmpfile(&ROOT, Ino::ROOT, 0o600).unwrap().ino;
    let linked = v.tmpfile(&ROOT, Ino::ROOT, 0o600).unwrap().ino;
    v.link(linked, Ino::ROOT, b"linked").unwrap();
    assert_eq!(v.statfs().inodes_used, 4);
    let v = remount(v);
    assert_eq!(errno(v.getattr(f)), libc::ENOENT);
    assert_eq!(errno(v.getattr(lost)), libc::ENOENT);
    assert_eq!(attributes(&v, linked).nlink, 1);
    assert_eq!(v.statfs().inodes_used, 2);
}

#[test]
fn fsynced_file_survives_a_crash() {
    let v = fresh_volume();
    let f = file(&v, "f");
    let data = pattern(1, 50_000);
    write(&v, f, 0, &data);
    v.fsync(f).unwrap();
    let device = Arc::clone(v.store().device());
    // Neither closed nor checkpointed: what was not written is lost.
    drop(v);
    let v = Volume::open(device, &options()).unwrap();
    assert_eq!(v.lookup(Ino::ROOT, b"f").unwrap().ino, f);
    assert_eq!(contents(&v, f), data);
}

#[test]
fn read_only_volume_answers_and_refuses_changes() {
    let v = fresh_volume();
    let f = file(&v, "f");
    write(&v, f, 0, b"contents");
    v.open_handle(&ROOT, f, false).unwrap();
    let device = Arc::clone(v.store().device());
    v.close().unwrap();
    drop(v);
    let read_only = StoreOptions {
        read_only: true,
        ..options()
    };
    let v = Volume::open(device, &read_only).unwrap();
    assert_eq!(contents(&v, f), b"contents");
    assert_eq!(list(&v, Ino::ROOT).len(), 1);
    let refused = [
        v.unlink(&ROOT, Ino::ROOT, b"f"),
        v.write(f, 0, b"x", false, None),
        v.mkdir(&ROOT, Ino::ROOT, b"d", 0o755).map(drop),
        v.setattr(&ROOT, f, &SetAttributes::default()).map(drop),
        v.rename(&ROOT, Ino::ROOT, b"f", Ino::ROOT, b"g", 0),
        v.setxattr(&ROOT, f, b"user.x", b"1", XattrFlags::default()),
    ];
    for result in refused {
        assert_eq!(errno(result), libc::EROFS);
    }
}

#[test]
fn full_volume_refuses_to_grow_and_lets_everything_shrink() {
    let v = formatted(&device(20));
    let kept = file(&v, "kept");
    write(&v, kept, 0, &pattern(9, 100_000));
    v.setxattr(&ROOT, kept, b"user.x", &[1; 5000], XattrFlags::default())
        .unwrap();
    directory(&v, "d");
    let reserved = file(&v, "reserved");
    v.fallocate(&ROOT, reserved, 0, 64 * K, FALLOC_FL_KEEP_SIZE)
        .unwrap();
    let filled = fill(&v);
    assert!(filled > 10, "{filled} files of 1 MiB");
    // The last few blocks go too.
    let last = v
        .lookup(Ino::ROOT, format!("fill{}", filled - 1).as_bytes())
        .unwrap();
    let mut end = last.size;
    while v.write(last.ino, end, &[7; 4096], false, None).is_ok() {
        end += K;
    }
    assert_eq!(errno(v.mkdir(&ROOT, Ino::ROOT, b"e", 0o755)), libc::ENOSPC);
    write(&v, reserved, 0, &pattern(8, 64 * K as usize));
    write(&v, kept, 10_000, b"overwritten in place");
    let punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    v.fallocate(&ROOT, kept, 0, 2 * K, punch).unwrap();
    v.removexattr(&ROOT, kept, b"user.x").unwrap();
    v.rmdir(&ROOT, Ino::ROOT, b"d").unwrap();
    let cut = SetAttributes {
        size: Some(50_001),
        ..SetAttributes::default()
    };
    v.setattr(&ROOT, kept, &cut).unwrap();
    for number in 0..filled {
        v.unlink(&ROOT, Ino::ROOT, format!("fill{number}").as_bytes())
            .unwrap();
    }
    assert_eq!(contents(&v, reserved), pattern(8, 64 * K as usize));
    let v = remount(v);
    assert_eq!(
        contents(&v, kept)[2 * K as usize..10_000],
        pattern(9, 10_000)[2 * K as usize..]
    );
    v.unlink(&ROOT, Ino::ROOT, format!("fill{filled}").as_bytes())
        .ok();
    let again = fill(&v);
    assert!(again + 2 >= filled, "{again} files fit after {filled} did");
}

#[test]
fn promised_space_is_not_given_to_others() {
    let v = formatted(&device(20));
    let f = file(&v, "f");
    let space = v.statfs();
    let most = space.blocks_free * K;
    assert_eq!(errno(v.fallocate(&ROOT, f, 0, most + K, 0)), libc::ENOSPC);
    v.fallocate(&ROOT, f, 0, 16 << 20, 0).unwrap();
    let after = v.statfs();
    assert!(after.blocks_free <= space.blocks_free - (16 << 20) / K);
    fill(&v);
    let data = pattern(5, 1 << 20);
    for step in 0..16 {
        write(&v, f, step << 20, &data);
    }
    assert_eq!(attributes(&v, f).blocks, (16 << 20) / 512);
}
