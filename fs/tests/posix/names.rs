//! Looking up, making, linking, removing and listing names.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use warren_fs::types::Ino;
use warren_fs::volume::types::FileKind;

use crate::common::*;

#[test]
fn root_of_a_new_volume_is_an_empty_directory_that_is_its_own_parent() {
    let v = fresh_volume();
    let root = attributes(&v, Ino::ROOT);
    assert_eq!((root.kind, root.nlink), (FileKind::Directory, 2));
    assert_eq!(root.permissions, 0o755);
    assert_eq!(v.lookup(Ino::ROOT, b"..").unwrap().ino, Ino::ROOT);
    assert_eq!(v.lookup(Ino::ROOT, b".").unwrap().ino, Ino::ROOT);
    assert!(list(&v, Ino::ROOT).is_empty());
    assert_eq!(v.statfs().inodes_used, 1);
}

#[test]
fn every_type_of_inode_is_made_and_found() {
    let v = fresh_volume();
    let types = [
        (libc::S_IFREG, FileKind::Regular),
        (libc::S_IFIFO, FileKind::Fifo),
        (libc::S_IFSOCK, FileKind::Socket),
        (libc::S_IFCHR, FileKind::CharDevice),
        (libc::S_IFBLK, FileKind::BlockDevice),
    ];
    for (number, (bits, kind)) in types.into_iter().enumerate() {
        let name = format!("n{number}");
        let made = v
            .mknod(&USER, Ino::ROOT, name.as_bytes(), bits | 0o666, 0x0103)
            .unwrap();
        assert_eq!(v.lookup(Ino::ROOT, name.as_bytes()).unwrap(), made);
        assert_eq!((made.kind, made.permissions, made.nlink), (kind, 0o644, 1));
        assert_eq!((made.uid, made.gid), (USER.uid, USER.gid));
        let device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
        assert_eq!(made.rdev, if device { 0x0103 } else { 0 });
    }
    assert_eq!(
        errno(v.mknod(&USER, Ino::ROOT, b"d", libc::S_IFDIR | 0o755, 0)),
        libc::EINVAL
    );
}

#[test]
fn names_that_cannot_be_are_refused() {
    let v = fresh_volume();
    let longest = [b'x'; 255];
    assert!(v.mkdir(&ROOT, Ino::ROOT, &longest, 0o755).is_ok());
    assert_eq!(errno(v.lookup(Ino::ROOT, &[b'x'; 256])), libc::ENAMETOOLONG);
    assert_eq!(
        errno(v.mkdir(&ROOT, Ino::ROOT, &[b'x'; 256], 0o755)),
        libc::ENAMETOOLONG
    );
    for name in [b"".as_slice(), b".", b"..", b"a/b", b"a\0b"] {
        assert_eq!(
            errno(v.mkdir(&ROOT, Ino::ROOT, name, 0o755)),
            libc::EINVAL,
            "{name:?}"
        );
    }
}

#[test]
fn names_are_bytes_and_need_not_be_text() {
    let v = fresh_volume();
    let made = v
        .mknod(&ROOT, Ino::ROOT, b"\xff\xfe\n", S_IFREG | 0o600, 0)
        .unwrap();
    assert_eq!(v.lookup(Ino::ROOT, b"\xff\xfe\n").unwrap().ino, made.ino);
}

#[test]
fn a_name_exists_once_and_what_is_no_directory_holds_none() {
    let v = fresh_volume();
    let f = file(&v, "f");
    assert_eq!(
        errno(v.mknod(&ROOT, Ino::ROOT, b"f", S_IFREG | 0o644, 0)),
        libc::EEXIST
    );
    assert_eq!(errno(v.mkdir(&ROOT, Ino::ROOT, b"f", 0o755)), libc::EEXIST);
    assert_eq!(errno(v.lookup(f, b"x")), libc::ENOTDIR);
    assert_eq!(errno(v.mkdir(&ROOT, f, b"x", 0o755)), libc::ENOTDIR);
    assert_eq!(errno(v.lookup(Ino::ROOT, b"g")), libc::ENOENT);
    assert_eq!(errno(v.lookup(Ino(999), b"g")), libc::ENOENT);
    assert_eq!(errno(v.getattr(Ino(0))), libc::ENOENT);
}

#[test]
fn subdirectories_are_links_of_their_parent() {
    let v = fresh_volume();
    let d = directory(&v, "d");
    let e = directory_in(&v, d, "e");
    file_in(&v, d, "f");
    assert_eq!(attributes(&v, Ino::ROOT).nlink, 3);
    assert_eq!(attributes(&v, d).nlink, 3);
    assert_eq!(v.lookup(e, b"..").unwrap().ino, d);
    assert_eq!(errno(v.rmdir(&ROOT, Ino::ROOT, b"d")), libc::ENOTEMPTY);
    v.rmdir(&ROOT, d, b"e").unwrap();
    assert_eq!(attributes(&v, d).nlink, 2);
    assert_eq!(errno(v.rmdir(&ROOT, Ino::ROOT, b"d")), libc::ENOTEMPTY);
    v.unlink(&ROOT, d, b"f").unwrap();
    v.rmdir(&ROOT, Ino::ROOT, b"d").unwrap();
    assert_eq!(attributes(&v, Ino::ROOT).nlink, 2);
    assert_eq!(errno(v.getattr(d)), libc::ENOENT);
    assert_eq!(v.statfs().inodes_used, 1);
}

#[test]
fn unlink_is_for_files_and_rmdir_for_directories() {
    let v = fresh_volume();
    directory(&v, "d");
    file(&v, "f");
    assert_eq!(errno(v.unlink(&ROOT, Ino::ROOT, b"d")), libc::EISDIR);
    assert_eq!(errno(v.rmdir(&ROOT, Ino::ROOT, b"f")), libc::ENOTDIR);
    assert_eq!(errno(v.unlink(&ROOT, Ino::ROOT, b"g")), libc::ENOENT);
    assert_eq!(errno(v.rmdir(&ROOT, Ino::ROOT, b".")), libc::EINVAL);
}

#[test]
fn hard_links_share_an_inode_until_the_last_goes() {
    let v = fresh_volume();
    let d = directory(&v, "d");
    let f = file(&v, "f");
    write(&v, f, 0, b"shared");
    assert_eq!(v.link(f, d, b"g").unwrap().nlink, 2);
    assert_eq!(v.lookup(d, b"g").unwrap().ino, f);
    assert_eq!(errno(v.link(f, d, b"g")), libc::EEXIST);
    assert_eq!(errno(v.link(d, Ino::ROOT, b"h")), libc::EPERM);
    assert_eq!(errno(v.link(Ino(999), d, b"h")), libc::ENOENT);
    v.unlink(&ROOT, Ino::ROOT, b"f").unwrap();
    assert_eq!(attributes(&v, f).nlink, 1);
    assert_eq!(contents(&v, f), b"shared");
    v.unlink(&ROOT, d, b"g").unwrap();
    assert_eq!(errno(v.getattr(f)), libc::ENOENT);
}

#[test]
fn symlinks_of_every_length_give_their_target_back() {
    let v = fresh_volume();
    for len in [1, 958, 959, 960, 1919, 4095] {
        let target = pattern(len, len as usize);
        let name = format!("l{len}");
        let link = v
            .symlink(&ROOT, Ino::ROOT, name.as_bytes(), &target)
            .unwrap();
        assert_eq!((link.kind, link.size), (FileKind::Symlink, len));
        assert_eq!(link.permissions, 0o777);
        assert_eq!(v.readlink(link.ino).unwrap(), target);
        v.unlink(&ROOT, Ino::ROOT, name.as_bytes()).unwrap();
    }
    assert_eq!(
        errno(v.symlink(&ROOT, Ino::ROOT, b"l", &[b'x'; 4096])),
        libc::ENAMETOOLONG
    );
    assert_eq!(errno(v.symlink(&ROOT, Ino::ROOT, b"l", b"")), libc::ENOENT);
    let f = file(&v, "f");
    assert_eq!(errno(v.readlink(f)), libc::EINVAL);
}

#[test]
fn set_group_id_directories_pass_on_their_group() {
    let v = fresh_volume();
    let d = v.mkdir(&USER, Ino::ROOT, b"d", 0o2775).unwrap().ino;
    let other = warren_fs::volume::types::Caller { gid: 7, ..USER };
    let f = v.mknod(&other, d, b"f", S_IFREG | 0o644, 0).unwrap();
    assert_eq!((f.gid, f.permissions), (USER.gid, 0o644));
    let e = v.mkdir(&other, d, b"e", 0o755).unwrap();
    assert_eq!((e.gid, e.permissions), (USER.gid, 0o2755));
}

#[test]
fn changes_of_names_change_the_times_of_the_directory() {
    let v = fresh_volume();
    let d = directory(&v, "d");
    let before = attributes(&v, d);
    file_in(&v, d, "f");
    let made = attributes(&v, d);
    assert!(made.mtime > before.mtime && made.ctime > before.ctime);
    let f = v.lookup(d, b"f").unwrap();
    v.link(f.ino, d, b"g").unwrap();
    assert!(attributes(&v, f.ino).ctime > f.ctime);
    v.unlink(&ROOT, d, b"f").unwrap();
    assert!(attributes(&v, d).mtime > made.mtime);
    assert_eq!(attributes(&v, d).atime, before.atime);
}

#[test]
fn listing_goes_on_behind_any_cookie_and_its_cookies_are_positive_and_ascend() {
    let v = fresh_volume();
    let d = directory(&v, "d");
    let made: BTreeMap<String, Ino> = (0..300)
        .map(|i| (format!("file{i}"), file_in(&v, d, &format!("file{i}"))))
        .collect();
    assert_eq!(list(&v, d), made);
    let (mut cookie, mut names) = (0, Vec::new());
    loop {
        let mut next = None;
        v.readdir(d, cookie, &mut |entry| {
            assert!(entry.cookie as i64 > cookie as i64);
            next = Some((entry.cookie, entry.name.to_vec()));
            ControlFlow::Break(())
        })
        .unwrap();
        let Some((at, name)) = next else { break };
        cookie = at;
        names.push(name);
    }
    assert_eq!(&names[..2], [b".".to_vec(), b"..".to_vec()]);
    assert_eq!(names.len(), made.len() + 2);
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
}

#[test]
fn entries_that_stay_are_listed_once_whatever_comes_and_goes() {
    let v = fresh_volume();
    let d = directory(&v, "d");
    for i in 0..100 {
        file_in(&v, d, &format!("stay{i}"));
        file_in(&v, d, &format!("go{i}"));
    }
    let (mut cookie, mut seen, mut round) = (0, Vec::new(), 0);
    loop {
        let mut got = 0;
        v.readdir(d, cookie, &mut |entry| {
            cookie = entry.cookie;
            seen.push(String::from_utf8(entry.name.to_vec()).unwrap());
            got += 1;
            match got {
                7 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        })
        .unwrap();
        if got == 0 {
            break;
        }
        if round < 100 {
            v.unlink(&ROOT, d, format!("go{round}").as_bytes()).unwrap();
            file_in(&v, d, &format!("come{round}"));
        }
        round += 1;
    }
    let stayed = seen.iter().filter(|name| name.starts_with("stay"));
    assert_eq!(stayed.clone().count(), 100);
    assert_eq!(stayed.collect::<BTreeSet<_>>().len(), 100);
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), seen.len());
}

#[test]
fn entries_tell_the_type_and_parent_of_what_they_name() {
    let v = fresh_volume();
    let d = directory(&v, "d");
    directory_in(&v, d, "sub");
    v.symlink(&ROOT, d, b"link", b"x").unwrap();
    let mut kinds = BTreeMap::new();
    v.readdir(d, 0, &mut |entry| {
        kinds.insert(entry.name.to_vec(), (entry.kind, entry.ino));
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(kinds[b"..".as_slice()], (FileKind::Directory, Ino::ROOT));
    assert_eq!(kinds[b".".as_slice()], (FileKind::Directory, d));
    assert_eq!(kinds[b"sub".as_slice()].0, FileKind::Directory);
    assert_eq!(kinds[b"link".as_slice()].0, FileKind::Symlink);
    let f = file(&v, "f");
    assert_eq!(
        errno(v.readdir(f, 0, &mut |_| ControlFlow::Continue(()))),
        libc::ENOTDIR
    );
}
