//! Files at a moment, and the writes that kernels make.

use warren_fs::Error;
use warren_fs::types::Ino;
use warren_fs::volume::Volume;
use warren_fs::volume::snapshot::{Access, FileSnapshot, Run};
use warren_fs::volume::types::{Credentials, SetAttributes, XattrFlags};

use crate::common::*;

fn root() -> Credentials {
    Credentials {
        overrides: true,
        ..Credentials::default()
    }
}

fn user(uid: u32, groups: &[u32]) -> Credentials {
    Credentials {
        uid,
        gid: uid,
        groups: groups.to_vec(),
        ..Credentials::default()
    }
}

fn snapshot(volume: &Volume, ino: Ino) -> FileSnapshot {
    volume.version().file(&root(), ino, Access::Read).unwrap()
}

/// The contents, read from the device at the addresses the snapshot gives.
fn from_device(volume: &Volume, snapshot: &FileSnapshot) -> Vec<u8> {
    let blocks = snapshot.size().div_ceil(K);
    let mut runs = Vec::new();
    // In two requests, so that runs are cut.
    let half = blocks / 2;
    snapshot.runs(0, half, &mut runs).unwrap();
    snapshot.runs(half, blocks - half, &mut runs).unwrap();
    let mut bytes = Vec::new();
    for run in runs {
        match run {
            Run::Hole { blocks } => bytes.resize(bytes.len() + (blocks * K) as usize, 0),
            Run::Mapped { lba, checksums } => {
                let mut buffer = vec![0; checksums.len() * K as usize];
                volume.store().device().read(lba, &mut buffer).unwrap();
                for (block, checksum) in buffer.chunks_exact(K as usize).zip(&checksums) {
                    assert_eq!(crc32c::crc32c(block), *checksum);
                }
                bytes.extend(buffer);
            }
        }
    }
    assert_eq!(bytes.len() as u64, blocks * K, "the runs cover the file");
    bytes.truncate(snapshot.size() as usize);
    bytes
}

#[test]
fn a_snapshot_is_on_the_device_though_nothing_was_written_out() {
    let v = fresh_volume();
    let f = file(&v, "f");
    write(&v, f, 0, &pattern(1, 70000));
    write(&v, f, 200_000, &pattern(2, 5));
    let expected = contents(&v, f);
    let snapshot = snapshot(&v, f);
    assert_eq!(from_device(&v, &snapshot), expected);
    assert_eq!(snapshot.read().unwrap(), expected);
}

#[test]
fn a_snapshot_stays_while_the_file_is_changed_collected_and_deleted() {
    let v = formatted(&device(24));
    let f = file(&v, "f");
    let other = file(&v, "other");
    // Blocks of both files in the same zones.
    for at in 0..200 {
        write(&v, f, at * 8192, &pattern(at, 8192));
        write(&v, other, at * 8192, &pattern(at + 1, 8192));
    }
    let expected = contents(&v, f);
    let snapshot = snapshot(&v, f);
    v.unlink(&ROOT, Ino::ROOT, b"f").unwrap();
    for round in 0..60 {
        write(&v, other, 0, &pattern(round, 1 << 20));
        v.sync().unwrap();
        v.store().collect(2).unwrap();
        assert!(from_device(&v, &snapshot) == expected, "round {round}");
    }
    let reset = v.store().stats().groups["collector"]["zones_reset"];
    assert!(reset > 5, "{reset} zones were reset beside the snapshot");
    drop(snapshot);
    let before = v.store().space().used;
    v.store().checkpoint().unwrap();
    v.store().collect(4).unwrap();
    assert!(v.store().space().used <= before);
}

#[test]
fn contents_without_blocks_get_a_block_that_nobody_sees() {
    let v = formatted(&device(24));
    let f = file(&v, "f");
    write(&v, f, 0, b"hello");
    let before = (attributes(&v, f), v.store().space().used);
    let snapshot = snapshot(&v, f);
    assert_eq!(from_device(&v, &snapshot), b"hello");
    assert_eq!((attributes(&v, f), v.store().space().used), before);
    write(&v, f, 0, b"other");
    let g = file(&v, "g");
    for round in 0..60 {
        write(&v, g, 0, &pattern(round, 1 << 20));
        v.sync().unwrap();
        v.store().collect(2).unwrap();
        assert_eq!(from_device(&v, &snapshot), b"hello", "round {round}");
    }
    drop(snapshot);
    v.close().unwrap();
}

#[test]
fn paths_are_resolved_for_who_may_search() {
    let v = fresh_volume();
    let d = directory(&v, "d");
    let f = file_in(&v, d, "f");
    v.symlink(&ROOT, d, b"here", b"../d/f").unwrap();
    v.symlink(&ROOT, Ino::ROOT, b"there", b"/d").unwrap();
    v.symlink(&ROOT, Ino::ROOT, b"round", b"round").unwrap();
    let at = v.version();
    for path in [
        "/d/f",
        "d/f",
        "//d//f",
        "/d/../d/./f",
        "/d/here",
        "/there/here",
    ] {
        assert_eq!(
            at.resolve(&user(7, &[]), path.as_bytes()).unwrap(),
            f,
            "{path}"
        );
    }
    let failed = |who: &Credentials, path: &str| v.version().resolve(who, path.as_bytes());
    assert!(matches!(failed(&root(), "/d/f/"), Err(Error::NotDirectory)));
    assert!(matches!(
        failed(&root(), "/d/f/x"),
        Err(Error::NotDirectory)
    ));
    assert!(matches!(failed(&root(), "/none"), Err(Error::NotFound)));
    assert!(matches!(
        failed(&root(), "/round"),
        Err(Error::TooManySymlinks)
    ));
    assert_eq!(failed(&root(), "/d").unwrap(), d);
    let closed = SetAttributes {
        permissions: Some(0o700),
        ..SetAttributes::default()
    };
    v.setattr(&ROOT, d, &closed).unwrap();
    assert!(matches!(failed(&user(7, &[]), "/d/f"), Err(Error::Access)));
    assert_eq!(failed(&root(), "/d/f").unwrap(), f);
    assert_eq!(at.resolve(&user(7, &[]), b"/d/f").unwrap(), f, "as it was");
}

#[test]
fn permissions_are_those_of_mode_and_acl() {
    let v = fresh_volume();
    let f = file(&v, "f");
    let set = |permissions, uid, gid| {
        let set = SetAttributes {
            permissions: Some(permissions),
            uid: Some(uid),
            gid: Some(gid),
            ..SetAttributes::default()
        };
        v.setattr(&ROOT, f, &set).unwrap();
    };
    let may = |who: &Credentials, access| match v.version().file(who, f, access) {
        Ok(_) => true,
        Err(Error::Access) => false,
        Err(error) => panic!("{error}"),
    };
    set(0o460, 10, 20);
    assert!(may(&user(10, &[20]), Access::Read) && !may(&user(10, &[20]), Access::Write));
    assert!(may(&user(11, &[20]), Access::Read) && may(&user(11, &[20]), Access::Write));
    assert!(!may(&user(11, &[21]), Access::Read));
    let reader = Credentials {
        reads_all: true,
        ..user(11, &[])
    };
    assert!(
        may(&reader, Access::Read) && !may(&reader, Access::Write) && may(&root(), Access::Write)
    );
    // user::r--, user:12:rw-, group::---, group:30:rw-, mask::r--, other::rw-
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (0x01u16, 4u16, u32::MAX),
        (0x02, 6, 12),
        (0x04, 0, u32::MAX),
        (0x08, 6, 30),
        (0x10, 4, u32::MAX),
        (0x20, 6, u32::MAX),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    v.setxattr(
        &ROOT,
        f,
        b"system.posix_acl_access",
        &acl,
        XattrFlags::default(),
    )
    .unwrap();
    assert!(may(&user(12, &[]), Access::Read) && !may(&user(12, &[]), Access::Write));
    assert!(may(&user(13, &[30]), Access::Read) && !may(&user(13, &[30]), Access::Write));
    assert!(
        !may(&user(13, &[20]), Access::Read),
        "a group that is refused is not an other"
    );
    assert!(may(&user(13, &[]), Access::Write));
    assert!(matches!(
        v.version().file(&root(), Ino::ROOT, Access::Read),
        Err(Error::IsDirectory)
    ));
}

#[test]
fn what_a_kernel_writes_takes_the_place_of_all_it_was_given() {
    for (before, offset, covered, len) in [
        (0, 0, 100, 4),
        (500, 100, 200, 50),
        (500, 100, 200, 300),
        (100_000, 100, 50_000, 4),
        (100_000, 0, 50_000, 0),
        (100_000, 8192, 8192, 4096),
        (100_000, 4096, 20_000, 30_000),
        (100_000, 99_000, 20_000, 1),
        (300, 0, 20_000, 1),
        (0, 5000, 20_000, 0),
    ] {
        let v = fresh_volume();
        let f = file(&v, "f");
        let mut expected = pattern(1, before);
        if before > 0 {
            write(&v, f, 0, &expected);
        }
        let data = pattern(2, len);
        v.replace(f, offset as u64, covered as u64, &data, false)
            .unwrap();
        expected.resize(before.max(offset + covered).max(offset + len), 0);
        expected[offset..offset + covered].fill(0);
        expected[offset..offset + len].copy_from_slice(&data);
        let case = format!("{covered} bytes at {offset} of {before} become {len}");
        assert!(contents(&v, f) == expected, "{case}");
        assert!(from_device(&v, &snapshot(&v, f)) == expected, "{case}");
        if covered >= 20_000 && len < 4096 {
            let allocated = attributes(&v, f).blocks * 512;
            assert!(
                allocated < (before + 3 * 4096) as u64,
                "{case}: {allocated}"
            );
        }
    }
}

#[test]
fn appending_goes_behind_the_end_whatever_that_is() {
    for before in [0, 1, 890, 901, 4096, 5000] {
        let v = fresh_volume();
        let f = file(&v, "f");
        let mut expected = pattern(1, before);
        write(&v, f, 0, &expected);
        for len in [1, 20, 5000] {
            let data = pattern(2, len);
            assert_eq!(v.append(f, &data).unwrap(), expected.len() as u64);
            expected.extend(data);
        }
        assert!(contents(&v, f) == expected, "{before}");
    }
}

#[test]
fn where_a_snapshot_keeps_what_is_dead_writers_are_refused_and_names_go_and_files_shrink() {
    let v = formatted(&device(24));
    let data = pattern(1, 200 * K as usize);
    let files: Vec<_> = (0..40).map(|i| file(&v, &format!("f{i}"))).collect();
    files.iter().for_each(|f| write(&v, *f, 0, &data));
    let kept = v.version();
    let overwrite = |f: Ino, seed| v.write(f, 0, &pattern(seed, data.len()), false, None);
    let mut rounds = files.iter().cycle().enumerate();
    let refused = rounds.find_map(|(round, f)| overwrite(*f, round as u64 + 2).err());
    assert!(matches!(refused, Some(Error::NoSpace)), "{refused:?}");
    assert!(overwrite(files[0], 0).is_err());
    for (i, f) in files.iter().enumerate().skip(1) {
        // In the middle of a block, which is written anew.
        let set = SetAttributes {
            size: Some(10 * K + 7),
            ..SetAttributes::default()
        };
        v.setattr(&ROOT, *f, &set).unwrap();
        if i > 20 {
            let name = format!("f{i}");
            v.unlink(&ROOT, Ino::ROOT, name.as_bytes()).unwrap();
        }
    }
    assert!(matches!(overwrite(files[0], 0), Err(Error::NoSpace)));
    drop(kept);
    for f in &files[..20] {
        overwrite(*f, 9).unwrap();
        assert!(contents(&v, *f) == pattern(9, data.len()));
    }
}
