//! Inodes without names: in use, reclaimed, linked again.

use warren_fs::types::Ino;
use warren_fs::volume::types::FileKind;

use crate::common::*;

#[test]
fn unlinked_file_stays_until_its_last_handle_and_reference_go() {
    let v = fresh_volume();
    let f = file(&v, "f");
    v.remember(f);
    v.remember(f);
    v.open_handle(&ROOT, f, false).unwrap();
    write(&v, f, 0, &pattern(1, 10_000));
    v.unlink(&ROOT, Ino::ROOT, b"f").unwrap();
    assert_eq!(attributes(&v, f).nlink, 0);
    write(&v, f, 5000, b"still here");
    v.forget(f, 2);
    assert_eq!(contents(&v, f)[5000..5010], *b"still here");
    v.release(f);
    assert_eq!(errno(v.getattr(f)), libc::ENOENT);
    assert_eq!(v.statfs().inodes_used, 1);
}

#[test]
fn replaced_file_in_use_stays_until_it_is_closed() {
    let v = fresh_volume();
    let (a, b) = (file(&v, "a"), file(&v, "b"));
    v.open_handle(&ROOT, b, false).unwrap();
    v.rename(&ROOT, Ino::ROOT, b"a", Ino::ROOT, b"b", 0)
        .unwrap();
    assert_eq!(attributes(&v, b).nlink, 0);
    v.release(b);
    assert_eq!(errno(v.getattr(b)), libc::ENOENT);
    assert_eq!(attributes(&v, a).nlink, 1);
}

#[test]
fn nothing_is_made_in_a_removed_directory_that_is_still_open() {
    let v = fresh_volume();
    let d = directory(&v, "d");
    v.open_handle(&ROOT, d, false).unwrap();
    v.rmdir(&ROOT, Ino::ROOT, b"d").unwrap();
    assert_eq!(attributes(&v, d).nlink, 0);
    assert_eq!(errno(v.mkdir(&ROOT, d, b"x", 0o755)), libc::ENOENT);
    assert_eq!(
        errno(v.mknod(&ROOT, d, b"x", S_IFREG | 0o644, 0)),
        libc::ENOENT
    );
    file(&v, "f");
    assert_eq!(
        errno(v.rename(&ROOT, Ino::ROOT, b"f", d, b"f", 0)),
        libc::ENOENT
    );
    assert!(list(&v, d).is_empty());
    v.release(d);
    assert_eq!(errno(v.getattr(d)), libc::ENOENT);
}

#[test]
fn temporary_file_vanishes_unless_it_is_linked() {
    let v = fresh_volume();
    let lost = v.tmpfile(&ROOT, Ino::ROOT, 0o600).unwrap();
    assert_eq!((lost.kind, lost.nlink), (FileKind::Regular, 0));
    v.remember(lost.ino);
    v.open_handle(&ROOT, lost.ino, false).unwrap();
    v.release(lost.ino);
    v.forget(lost.ino, 1);
    assert_eq!(errno(v.getattr(lost.ino)), libc::ENOENT);
    let kept = v.tmpfile(&ROOT, Ino::ROOT, 0o600).unwrap().ino;
    v.open_handle(&ROOT, kept, false).unwrap();
    write(&v, kept, 0, b"kept");
    assert_eq!(v.link(kept, Ino::ROOT, b"name").unwrap().nlink, 1);
    v.release(kept);
    assert_eq!(contents(&v, kept), b"kept");
    v.open_handle(&ROOT, kept, false).unwrap();
    v.unlink(&ROOT, Ino::ROOT, b"name").unwrap();
    v.release(kept);
    assert_eq!(errno(v.getattr(kept)), libc::ENOENT);
}

#[test]
fn opening_truncates_if_asked_and_needs_an_inode() {
    let v = fresh_volume();
    let f = file(&v, "f");
    write(&v, f, 0, &pattern(1, 10_000));
    v.open_handle(&ROOT, f, true).unwrap();
    assert_eq!(attributes(&v, f).size, 0);
    v.release(f);
    assert_eq!(errno(v.open_handle(&ROOT, Ino(99), false)), libc::ENOENT);
    assert_eq!(errno(v.open_handle(&ROOT, Ino::ROOT, true)), libc::EISDIR);
    v.unlink(&ROOT, Ino::ROOT, b"f").unwrap();
    assert_eq!(errno(v.getattr(f)), libc::ENOENT);
}

#[test]
fn fragmented_file_is_reclaimed_whether_it_is_in_use_or_not() {
    let v = fresh_volume();
    for open in [false, true] {
        let f = file(&v, "f");
        // Extents of one block with holes between them: two full steps and a rest.
        let blocks = 9000u64;
        for at in 0..blocks {
            write(&v, f, at * 2 * K, &[at as u8; 4096]);
        }
        assert_eq!(attributes(&v, f).blocks, blocks * 8);
        if open {
            v.open_handle(&ROOT, f, false).unwrap();
        }
        v.unlink(&ROOT, Ino::ROOT, b"f").unwrap();
        if open {
            assert_eq!(attributes(&v, f).blocks, blocks * 8);
            v.release(f);
        }
        assert_eq!(errno(v.getattr(f)), libc::ENOENT);
        assert_eq!(v.statfs().inodes_used, 1);
        let mut out = Vec::new();
        assert_eq!(errno(v.read(f, 0, 10, &mut out)), libc::ENOENT);
    }
}
