//! Extended attributes.

use std::collections::BTreeSet;

use warren_fs::types::Ino;
use warren_fs::volume::Volume;
use warren_fs::volume::types::{Caller, XattrFlags};

use crate::common::*;

const ANY: XattrFlags = XattrFlags {
    create: false,
    replace: false,
    kill_sgid: false,
};

fn names(v: &Volume, caller: &Caller, ino: Ino) -> BTreeSet<String> {
    let list = v.listxattr(caller, ino).unwrap();
    list.split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8(name.to_vec()).unwrap())
        .collect()
}

#[test]
fn values_of_every_length_come_back() {
    let v = fresh_volume();
    let f = file(&v, "f");
    for len in [0, 1, 900, 940, 960, 2000, 65_536, 10, 65_535] {
        let value = pattern(len, len as usize);
        v.setxattr(&ROOT, f, b"user.x", &value, ANY).unwrap();
        assert_eq!(v.getxattr(f, b"user.x").unwrap(), value, "{len} bytes");
    }
    let too_large = v.setxattr(&ROOT, f, b"user.x", &[0; 65_537], ANY);
    assert_eq!(errno(too_large), libc::E2BIG);
    assert_eq!(names(&v, &ROOT, f), ["user.x".to_owned()].into());
}

#[test]
fn attributes_are_listed_replaced_and_removed() {
    let v = fresh_volume();
    let d = directory(&v, "d");
    for i in 0..40 {
        let name = format!("user.{i}");
        v.setxattr(&ROOT, d, name.as_bytes(), name.as_bytes(), ANY)
            .unwrap();
    }
    assert_eq!(names(&v, &ROOT, d).len(), 40);
    for i in (0..40).step_by(2) {
        v.removexattr(&ROOT, d, format!("user.{i}").as_bytes())
            .unwrap();
    }
    assert_eq!(names(&v, &ROOT, d).len(), 20);
    assert_eq!(v.getxattr(d, b"user.7").unwrap(), b"user.7");
    assert_eq!(errno(v.getxattr(d, b"user.8")), libc::ENODATA);
    assert_eq!(errno(v.removexattr(&ROOT, d, b"user.8")), libc::ENODATA);
    v.rmdir(&ROOT, Ino::ROOT, b"d").unwrap();
    assert_eq!(errno(v.getxattr(d, b"user.7")), libc::ENOENT);
}

#[test]
fn create_and_replace_do_what_they_say() {
    let v = fresh_volume();
    let f = file(&v, "f");
    let create = XattrFlags {
        create: true,
        ..ANY
    };
    let replace = XattrFlags {
        replace: true,
        ..ANY
    };
    let set = |flags| v.setxattr(&ROOT, f, b"user.x", b"1", flags);
    assert_eq!(errno(set(replace)), libc::ENODATA);
    set(create).unwrap();
    assert_eq!(errno(set(create)), libc::EEXIST);
    set(replace).unwrap();
}

#[test]
fn namespaces_decide_who_sees_and_sets_what_where() {
    let v = fresh_volume();
    let f = file(&v, "f");
    let link = v.symlink(&ROOT, Ino::ROOT, b"l", b"x").unwrap().ino;
    let set = |caller, ino, name: &[u8]| v.setxattr(caller, ino, name, b"1", ANY);
    set(&ROOT, f, b"trusted.t").unwrap();
    set(&ROOT, f, b"security.s").unwrap();
    set(&USER, f, b"user.u").unwrap();
    assert_eq!(names(&v, &ROOT, f).len(), 3);
    assert_eq!(names(&v, &USER, f).len(), 2);
    assert_eq!(errno(set(&USER, f, b"trusted.t")), libc::EPERM);
    assert_eq!(errno(v.removexattr(&USER, f, b"trusted.t")), libc::EPERM);
    assert_eq!(errno(set(&ROOT, link, b"user.u")), libc::EPERM);
    set(&ROOT, link, b"trusted.t").unwrap();
    assert_eq!(errno(v.getxattr(link, b"user.u")), libc::ENODATA);
    for name in [b"system.other".as_slice(), b"other.x", b"user", b"x"] {
        assert_eq!(errno(set(&ROOT, f, name)), libc::EOPNOTSUPP);
        assert_eq!(errno(v.getxattr(f, name)), libc::EOPNOTSUPP);
    }
    assert_eq!(errno(set(&ROOT, f, b"user.")), libc::EINVAL);
}

#[test]
fn names_of_kernel_registrations_are_never_stored() {
    let v = fresh_volume();
    let f = file(&v, "f");
    let name = b"user.process.csd_read_stream";
    assert_eq!(
        errno(v.setxattr(&ROOT, f, name, b"1", ANY)),
        libc::EOPNOTSUPP
    );
    assert_eq!(errno(v.getxattr(f, name)), libc::ENODATA);
    v.setxattr(&ROOT, f, b"user.process.other", b"1", ANY)
        .unwrap();
}

#[test]
fn names_and_their_list_have_limits() {
    let v = fresh_volume();
    let f = file(&v, "f");
    let name = |i: usize| format!("user.{i:0250}");
    let longer = format!("{}x", name(0));
    assert_eq!(
        errno(v.setxattr(&ROOT, f, longer.as_bytes(), b"", ANY)),
        libc::ERANGE
    );
    for i in 0..256 {
        v.setxattr(&ROOT, f, name(i).as_bytes(), b"1", ANY).unwrap();
    }
    assert_eq!(v.listxattr(&ROOT, f).unwrap().len(), 65_536);
    let full = v.setxattr(&ROOT, f, b"user.x", b"1", ANY);
    assert_eq!(errno(full), libc::ENOSPC);
    v.setxattr(&ROOT, f, name(7).as_bytes(), b"2", ANY).unwrap();
    v.removexattr(&ROOT, f, name(9).as_bytes()).unwrap();
    v.setxattr(&ROOT, f, b"user.x", b"1", ANY).unwrap();
}

#[test]
fn changes_of_attributes_change_the_ctime_and_not_the_mtime() {
    let v = fresh_volume();
    let f = file(&v, "f");
    let before = attributes(&v, f);
    v.setxattr(&ROOT, f, b"user.x", b"1", ANY).unwrap();
    let set = attributes(&v, f);
    assert!(set.ctime > before.ctime);
    v.removexattr(&ROOT, f, b"user.x").unwrap();
    assert!(attributes(&v, f).ctime > set.ctime);
    assert_eq!(attributes(&v, f).mtime, before.mtime);
    assert!(v.listxattr(&ROOT, f).unwrap().is_empty());
}
