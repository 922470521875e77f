//! Access control lists.

use warren_fs::Result;
use warren_fs::types::Ino;
use warren_fs::volume::Volume;
use warren_fs::volume::types::{SetAttributes, XattrFlags};

use crate::common::*;

const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";
const NONE: u32 = u32::MAX;

type Entry = (u16, u16, u32);

/// The kernel's format of a list.
fn acl(entries: &[Entry]) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    value
}

fn full(owner: u16, user: u16, group: u16, mask: u16, other: u16) -> Vec<u8> {
    acl(&[
        (1, owner, NONE),
        (2, user, 1000),
        (4, group, NONE),
        (16, mask, NONE),
        (32, other, NONE),
    ])
}

fn set(v: &Volume, ino: Ino, name: &[u8], value: &[u8]) -> Result<()> {
    v.setxattr(&ROOT, ino, name, value, XattrFlags::default())
}

fn mode(v: &Volume, ino: Ino) -> u32 {
    attributes(v, ino).permissions
}

#[test]
fn access_acl_sets_the_mode_and_chmod_sets_the_acl() {
    let v = fresh_volume();
    let f = file(&v, "f");
    set(&v, f, ACCESS, &full(6, 7, 4, 5, 0)).unwrap();
    assert_eq!(mode(&v, f), 0o650);
    assert_eq!(v.getxattr(f, ACCESS).unwrap(), full(6, 7, 4, 5, 0));
    let chmod = SetAttributes {
        permissions: Some(0o731),
        ..SetAttributes::default()
    };
    v.setattr(&ROOT, f, &chmod).unwrap();
    assert_eq!(v.getxattr(f, ACCESS).unwrap(), full(7, 7, 4, 3, 1));
    assert_eq!(v.listxattr(&USER, f).unwrap(), [ACCESS, b"\0"].concat());
}

#[test]
fn acl_that_says_no_more_than_a_mode_is_stored_as_the_mode() {
    let v = fresh_volume();
    let f = file(&v, "f");
    set(&v, f, ACCESS, &full(6, 7, 4, 5, 0)).unwrap();
    let minimal = acl(&[(1, 7, NONE), (4, 5, NONE), (32, 1, NONE)]);
    set(&v, f, ACCESS, &minimal).unwrap();
    assert_eq!(mode(&v, f), 0o751);
    assert_eq!(errno(v.getxattr(f, ACCESS)), libc::ENODATA);
    assert!(v.listxattr(&ROOT, f).unwrap().is_empty());
}

#[test]
fn acl_is_removed_by_an_empty_value_or_removexattr_and_may_be_missing() {
    let v = fresh_volume();
    let f = file(&v, "f");
    for value in [b"".as_slice(), &acl(&[])] {
        set(&v, f, ACCESS, &full(6, 7, 4, 5, 0)).unwrap();
        set(&v, f, ACCESS, value).unwrap();
        assert_eq!(errno(v.getxattr(f, ACCESS)), libc::ENODATA);
        assert_eq!(mode(&v, f), 0o650);
    }
    v.removexattr(&ROOT, f, ACCESS).unwrap();
}

#[test]
fn malformed_acls_are_refused() {
    let v = fresh_volume();
    let f = file(&v, "f");
    let (u, g, o) = ((1, 7, NONE), (4, 7, NONE), (32, 7, NONE));
    let bad: [&[Entry]; 9] = [
        &[u, g],
        &[g, u, o],
        &[u, u, g, o],
        &[u, (2, 7, 5), g, o],
        &[u, g, (8, 7, 5), o],
        &[u, (2, 7, NONE), g, (16, 7, NONE), o],
        &[u, g, (32, 8, NONE)],
        &[u, g, (3, 7, NONE), o],
        &[u, g, (16, 7, NONE), (16, 7, NONE), o],
    ];
    for entries in bad {
        assert_eq!(
            errno(set(&v, f, ACCESS, &acl(entries))),
            libc::EINVAL,
            "{entries:?}"
        );
    }
    assert_eq!(errno(set(&v, f, ACCESS, &[2, 0])), libc::EINVAL);
    assert_eq!(
        errno(set(&v, f, ACCESS, &acl(&[u, g, o])[..20])),
        libc::EINVAL
    );
    assert_eq!(errno(set(&v, f, ACCESS, &[9; 28])), libc::EOPNOTSUPP);
}

#[test]
fn default_acl_is_for_directories_and_no_acl_for_symlinks() {
    let v = fresh_volume();
    let f = file(&v, "f");
    let link = v.symlink(&ROOT, Ino::ROOT, b"l", b"x").unwrap().ino;
    assert_eq!(
        errno(set(&v, f, DEFAULT, &full(7, 7, 7, 7, 7))),
        libc::EACCES
    );
    set(&v, f, DEFAULT, b"").unwrap();
    assert_eq!(
        errno(set(&v, link, ACCESS, &full(7, 7, 7, 7, 7))),
        libc::EOPNOTSUPP
    );
}

#[test]
fn default_acl_is_inherited_and_replaces_the_umask() {
    let v = fresh_volume();
    let d = directory(&v, "d");
    let default = full(7, 6, 5, 7, 4);
    set(&v, d, DEFAULT, &default).unwrap();
    assert_eq!(mode(&v, d), 0o755, "a default ACL is no access ACL");
    let f = v.mknod(&USER, d, b"f", S_IFREG | 0o626, 0).unwrap();
    assert_eq!(f.permissions, 0o624);
    assert_eq!(v.getxattr(f.ino, ACCESS).unwrap(), full(6, 6, 5, 2, 4));
    assert_eq!(errno(v.getxattr(f.ino, DEFAULT)), libc::ENODATA);
    let e = v.mkdir(&USER, d, b"e", 0o777).unwrap();
    assert_eq!(e.permissions, 0o774);
    assert_eq!(v.getxattr(e.ino, DEFAULT).unwrap(), default);
    assert_eq!(v.getxattr(e.ino, ACCESS).unwrap(), default);
    let link = v.symlink(&USER, d, b"l", b"x").unwrap();
    assert_eq!(link.permissions, 0o777);
    assert!(v.listxattr(&ROOT, link.ino).unwrap().is_empty());
    let unnamed = v.tmpfile(&USER, d, 0o600).unwrap();
    assert_eq!(
        v.getxattr(unnamed.ino, ACCESS).unwrap(),
        full(6, 6, 5, 0, 0)
    );
}

#[test]
fn minimal_default_acl_limits_the_mode_only() {
    let v = fresh_volume();
    let d = directory(&v, "d");
    let minimal = acl(&[(1, 7, NONE), (4, 5, NONE), (32, 0, NONE)]);
    set(&v, d, DEFAULT, &minimal).unwrap();
    let f = v.mknod(&USER, d, b"f", S_IFREG | 0o666, 0).unwrap();
    assert_eq!(f.permissions, 0o640);
    assert!(v.listxattr(&ROOT, f.ino).unwrap().is_empty());
    set(&v, d, DEFAULT, b"").unwrap();
    let g = v.mknod(&USER, d, b"g", S_IFREG | 0o666, 0).unwrap();
    assert_eq!(g.permissions, 0o644);
}

#[test]
fn setting_an_access_acl_ends_the_set_group_id_bit_when_told_to() {
    let v = fresh_volume();
    let d = v.mkdir(&ROOT, Ino::ROOT, b"d", 0o2755).unwrap().ino;
    set(&v, d, ACCESS, &full(7, 7, 5, 5, 5)).unwrap();
    assert_eq!(mode(&v, d), 0o2755);
    let kill = XattrFlags {
        kill_sgid: true,
        ..XattrFlags::default()
    };
    v.setxattr(&USER, d, ACCESS, &full(7, 7, 5, 5, 5), kill)
        .unwrap();
    assert_eq!(mode(&v, d), 0o755);
}
