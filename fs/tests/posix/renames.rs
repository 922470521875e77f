//! rename(2).

use libc::{RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT};
use warren_fs::types::Ino;
use warren_fs::volume::Volume;
use warren_fs::{Result, volume::types::Attributes};

use crate::common::*;

fn rename(v: &Volume, from: (Ino, &str), to: (Ino, &str), flags: u32) -> Result<()> {
    v.rename(
        &ROOT,
        from.0,
        from.1.as_bytes(),
        to.0,
        to.1.as_bytes(),
        flags,
    )
}

fn find(v: &Volume, parent: Ino, name: &str) -> Result<Attributes> {
    v.lookup(parent, name.as_bytes())
}

const R: Ino = Ino::ROOT;

#[test]
fn file_moves_between_directories_and_keeps_its_inode() {
    let v = fresh_volume();
    let d = directory(&v, "d");
    let f = file(&v, "f");
    let before = (attributes(&v, f), attributes(&v, R), attributes(&v, d));
    rename(&v, (R, "f"), (d, "g"), 0).unwrap();
    assert_eq!(errno(find(&v, R, "f")), libc::ENOENT);
    assert_eq!(find(&v, d, "g").unwrap().ino, f);
    assert!(attributes(&v, f).ctime > before.0.ctime);
    assert_eq!(attributes(&v, f).mtime, before.0.mtime);
    assert!(attributes(&v, R).mtime > before.1.mtime);
    assert!(attributes(&v, d).mtime > before.2.mtime);
    rename(&v, (d, "g"), (d, "h"), 0).unwrap();
    assert_eq!(list(&v, d).into_keys().collect::<Vec<_>>(), ["h"]);
}

#[test]
fn file_replaces_file_which_is_gone() {
    let v = fresh_volume();
    let (a, b) = (file(&v, "a"), file(&v, "b"));
    write(&v, b, 0, &pattern(1, 20_000));
    rename(&v, (R, "a"), (R, "b"), 0).unwrap();
    assert_eq!(list(&v, R), [("b".to_owned(), a)].into());
    assert_eq!(errno(v.getattr(b)), libc::ENOENT);
    assert_eq!(v.statfs().inodes_used, 2);
}

#[test]
fn replaced_file_with_another_name_loses_one_link() {
    let v = fresh_volume();
    file(&v, "a");
    let b = file(&v, "b");
    v.link(b, R, b"c").unwrap();
    rename(&v, (R, "a"), (R, "b"), 0).unwrap();
    assert_eq!(attributes(&v, b).nlink, 1);
}

#[test]
fn rename_between_names_of_one_inode_does_nothing() {
    let v = fresh_volume();
    let a = file(&v, "a");
    v.link(a, R, b"b").unwrap();
    let before = attributes(&v, a);
    rename(&v, (R, "a"), (R, "b"), 0).unwrap();
    rename(&v, (R, "a"), (R, "a"), 0).unwrap();
    rename(&v, (R, "a"), (R, "b"), RENAME_EXCHANGE).unwrap();
    assert_eq!(attributes(&v, a), before);
    assert_eq!(list(&v, R).len(), 2);
    assert_eq!(
        errno(rename(&v, (R, "a"), (R, "b"), RENAME_NOREPLACE)),
        libc::EEXIST
    );
}

#[test]
fn directory_replaces_only_an_empty_directory() {
    let v = fresh_volume();
    let (a, b) = (directory(&v, "a"), directory(&v, "b"));
    file(&v, "f");
    file_in(&v, b, "x");
    assert_eq!(errno(rename(&v, (R, "a"), (R, "b"), 0)), libc::ENOTEMPTY);
    assert_eq!(errno(rename(&v, (R, "a"), (R, "f"), 0)), libc::ENOTDIR);
    assert_eq!(errno(rename(&v, (R, "f"), (R, "a"), 0)), libc::EISDIR);
    rename(&v, (R, "b"), (R, "a"), 0).unwrap();
    assert_eq!(find(&v, R, "a").unwrap().ino, b);
    assert_eq!(errno(v.getattr(a)), libc::ENOENT);
    assert_eq!(attributes(&v, R).nlink, 3);
}

#[test]
fn moved_directory_has_a_new_parent_and_links_follow() {
    let v = fresh_volume();
    let (a, b) = (directory(&v, "a"), directory(&v, "b"));
    let moved = directory_in(&v, a, "m");
    rename(&v, (a, "m"), (b, "n"), 0).unwrap();
    assert_eq!(v.lookup(moved, b"..").unwrap().ino, b);
    assert_eq!((attributes(&v, a).nlink, attributes(&v, b).nlink), (2, 3));
    let target = directory_in(&v, a, "t");
    rename(&v, (b, "n"), (a, "t"), 0).unwrap();
    assert_eq!((attributes(&v, a).nlink, attributes(&v, b).nlink), (3, 2));
    assert_eq!(errno(v.getattr(target)), libc::ENOENT);
    v.rmdir(&ROOT, R, b"b").unwrap();
}

#[test]
fn directory_does_not_move_into_itself_or_below() {
    let v = fresh_volume();
    let a = directory(&v, "a");
    let b = directory_in(&v, a, "b");
    let c = directory_in(&v, b, "c");
    for (parent, name) in [(a, "x"), (b, "x"), (c, "x")] {
        assert_eq!(errno(rename(&v, (R, "a"), (parent, name), 0)), libc::EINVAL);
    }
    assert_eq!(
        errno(rename(&v, (R, "a"), (b, "c"), RENAME_EXCHANGE)),
        libc::EINVAL
    );
    assert_eq!(
        errno(rename(&v, (b, "c"), (R, "a"), RENAME_EXCHANGE)),
        libc::EINVAL
    );
    assert_eq!(errno(rename(&v, (b, "c"), (R, "a"), 0)), libc::ENOTEMPTY);
    rename(&v, (b, "c"), (R, "c"), 0).unwrap();
    rename(&v, (R, "a"), (c, "a"), 0).unwrap();
    assert_eq!(v.lookup(a, b"..").unwrap().ino, c);
}

#[test]
fn noreplace_moves_only_to_a_free_name() {
    let v = fresh_volume();
    let a = file(&v, "a");
    file(&v, "b");
    assert_eq!(
        errno(rename(&v, (R, "a"), (R, "b"), RENAME_NOREPLACE)),
        libc::EEXIST
    );
    rename(&v, (R, "a"), (R, "c"), RENAME_NOREPLACE).unwrap();
    assert_eq!(find(&v, R, "c").unwrap().ino, a);
}

#[test]
fn exchange_swaps_inodes_of_any_type() {
    let v = fresh_volume();
    let (a, b) = (directory(&v, "a"), directory(&v, "b"));
    let d = directory_in(&v, a, "d");
    let f = file_in(&v, b, "f");
    let e = directory_in(&v, b, "e");
    rename(&v, (a, "d"), (b, "f"), RENAME_EXCHANGE).unwrap();
    assert_eq!(find(&v, a, "d").unwrap().ino, f);
    assert_eq!(find(&v, b, "f").unwrap().ino, d);
    assert_eq!(v.lookup(d, b"..").unwrap().ino, b);
    assert_eq!((attributes(&v, a).nlink, attributes(&v, b).nlink), (2, 4));
    let g = directory_in(&v, a, "g");
    rename(&v, (a, "g"), (b, "e"), RENAME_EXCHANGE).unwrap();
    assert_eq!(v.lookup(e, b"..").unwrap().ino, a);
    assert_eq!(v.lookup(g, b"..").unwrap().ino, b);
    assert_eq!((attributes(&v, a).nlink, attributes(&v, b).nlink), (3, 4));
    rename(&v, (b, "f"), (b, "e"), RENAME_EXCHANGE).unwrap();
    assert_eq!(find(&v, b, "e").unwrap().ino, d);
    assert_eq!(attributes(&v, b).nlink, 4);
    assert_eq!(
        errno(rename(&v, (b, "e"), (b, "nothing"), RENAME_EXCHANGE)),
        libc::ENOENT
    );
}

#[test]
fn impossible_renames_are_refused() {
    let v = fresh_volume();
    let f = file(&v, "f");
    let flags = [RENAME_WHITEOUT, RENAME_NOREPLACE | RENAME_EXCHANGE, 1 << 10];
    for flags in flags {
        assert_eq!(errno(rename(&v, (R, "f"), (R, "g"), flags)), libc::EINVAL);
    }
    assert_eq!(errno(rename(&v, (R, "x"), (R, "y"), 0)), libc::ENOENT);
    assert_eq!(errno(rename(&v, (f, "x"), (R, "y"), 0)), libc::ENOTDIR);
    assert_eq!(errno(rename(&v, (R, "f"), (f, "y"), 0)), libc::ENOTDIR);
    assert_eq!(errno(rename(&v, (R, "f"), (Ino(99), "y"), 0)), libc::ENOENT);
    let long = "x".repeat(256);
    assert_eq!(
        errno(rename(&v, (R, "f"), (R, &long), 0)),
        libc::ENAMETOOLONG
    );
    assert_eq!(errno(rename(&v, (R, "f"), (R, ".."), 0)), libc::EINVAL);
}
