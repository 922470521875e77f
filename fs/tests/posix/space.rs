//! Truncation, fallocate, seeking, copying.

use libc::{FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE};
use libc::{FALLOC_FL_INSERT_RANGE, FALLOC_FL_ZERO_RANGE};
use warren_fs::types::Ino;
use warren_fs::volume::Volume;
use warren_fs::volume::types::{Seek, SetAttributes};

use crate::common::*;

const PUNCH: i32 = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

fn truncate(v: &Volume, ino: Ino, size: u64) {
    let set = SetAttributes {
        size: Some(size),
        ..SetAttributes::default()
    };
    assert_eq!(v.setattr(&ROOT, ino, &set).unwrap().size, size);
}

fn allocate(v: &Volume, ino: Ino, offset: u64, len: u64, mode: i32) {
    v.fallocate(&ROOT, ino, offset, len, mode).unwrap();
}

fn blocks(v: &Volume, ino: Ino) -> u64 {
    attributes(v, ino).blocks / 8
}

#[test]
fn what_was_cut_off_reads_as_zeros_after_growing_again() {
    for cut in [0, 1, 500, 900, 901, 4095, 4096, 4097, 9000] {
        for before in [700, 900, 5000, 12_000] {
            let v = fresh_volume();
            let f = file(&v, "f");
            let data = pattern(3, before);
            write(&v, f, 0, &data);
            truncate(&v, f, cut);
            truncate(&v, f, 20_000);
            let mut expected = data;
            expected.truncate(cut as usize);
            expected.resize(20_000, 0);
            assert_eq!(contents(&v, f), expected, "{before} cut to {cut}");
        }
    }
}

#[test]
fn write_behind_a_cut_end_leaves_zeros_between() {
    for size in [300, 5000] {
        let v = fresh_volume();
        let f = file(&v, "f");
        write(&v, f, 0, &pattern(1, size));
        truncate(&v, f, 100);
        write(&v, f, 200, b"x");
        let mut expected = pattern(1, 100);
        expected.resize(200, 0);
        expected.push(b'x');
        assert_eq!(contents(&v, f), expected);
    }
}

#[test]
fn truncation_gives_the_space_back() {
    let v = fresh_volume();
    let f = file(&v, "f");
    write(&v, f, 0, &pattern(1, 1 << 20));
    truncate(&v, f, 10 * K + 1);
    assert_eq!(blocks(&v, f), 11);
    truncate(&v, f, 0);
    assert_eq!(blocks(&v, f), 0);
    write(&v, f, 0, b"small again");
    assert_eq!(attributes(&v, f).blocks, 1, "in the inode again");
}

#[test]
fn truncation_changes_the_times_and_only_regular_files_have_it() {
    let v = fresh_volume();
    let f = file(&v, "f");
    let before = attributes(&v, f);
    truncate(&v, f, 0);
    let after = attributes(&v, f);
    assert!(after.mtime > before.mtime && after.ctime > before.ctime);
    let set = SetAttributes {
        size: Some(1),
        ..SetAttributes::default()
    };
    assert_eq!(errno(v.setattr(&ROOT, Ino::ROOT, &set)), libc::EISDIR);
    let link = v.symlink(&ROOT, Ino::ROOT, b"l", b"x").unwrap().ino;
    assert_eq!(errno(v.setattr(&ROOT, link, &set)), libc::EINVAL);
}

#[test]
fn allocated_space_reads_as_zeros_and_is_counted_once() {
    let v = fresh_volume();
    let f = file(&v, "f");
    write(&v, f, 0, b"inline");
    allocate(&v, f, 100, 3 * K, 0);
    assert_eq!(attributes(&v, f).size, 100 + 3 * K);
    assert_eq!(blocks(&v, f), 4);
    assert_eq!(contents(&v, f)[..6], *b"inline");
    assert!(contents(&v, f)[6..].iter().all(|&byte| byte == 0));
    allocate(&v, f, 0, 4 * K, FALLOC_FL_KEEP_SIZE);
    write(&v, f, K, &pattern(1, 8192));
    assert_eq!(blocks(&v, f), 4);
}

#[test]
fn keep_size_allocates_behind_the_end_until_truncation() {
    let v = fresh_volume();
    let f = file(&v, "f");
    allocate(&v, f, 0, 8 * K, FALLOC_FL_KEEP_SIZE);
    assert_eq!((attributes(&v, f).size, blocks(&v, f)), (0, 8));
    write(&v, f, 0, b"x");
    assert_eq!((attributes(&v, f).size, blocks(&v, f)), (1, 8));
    truncate(&v, f, 1);
    assert_eq!(blocks(&v, f), 1);
}

#[test]
fn punched_range_reads_as_zeros_and_whole_blocks_are_freed() {
    for (offset, len) in [(0, K), (10, 20), (K - 5, 10), (100, 3 * K), (2 * K, 90 * K)] {
        let v = fresh_volume();
        let f = file(&v, "f");
        let mut expected = pattern(4, 6 * K as usize + 100);
        write(&v, f, 0, &expected);
        allocate(&v, f, offset, len, PUNCH);
        let end = (expected.len() as u64).min(offset + len);
        expected[offset as usize..end as usize].fill(0);
        assert_eq!(contents(&v, f), expected, "{len} at {offset}");
        let whole = ((offset + len) / K).saturating_sub(offset.div_ceil(K));
        assert_eq!(blocks(&v, f), 7 - whole.min(5), "{len} at {offset}");
    }
}

#[test]
fn punching_a_file_in_its_inode_zeroes_bytes() {
    let v = fresh_volume();
    let f = file(&v, "f");
    write(&v, f, 0, &pattern(1, 100));
    allocate(&v, f, 50, 1000, PUNCH);
    let mut expected = pattern(1, 50);
    expected.resize(100, 0);
    assert_eq!(contents(&v, f), expected);
    assert_eq!(attributes(&v, f).blocks, 1);
}

#[test]
fn zeroed_range_keeps_its_space() {
    let v = fresh_volume();
    let f = file(&v, "f");
    let mut expected = pattern(5, 5 * K as usize);
    write(&v, f, 0, &expected);
    allocate(&v, f, 100, 3 * K, FALLOC_FL_ZERO_RANGE);
    expected[100..100 + 3 * K as usize].fill(0);
    assert_eq!(contents(&v, f), expected);
    assert_eq!(blocks(&v, f), 5);
    let keep = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
    allocate(&v, f, 4 * K, 3 * K, keep);
    assert_eq!((attributes(&v, f).size, blocks(&v, f)), (5 * K, 7));
    allocate(&v, f, 4 * K, 4 * K, FALLOC_FL_ZERO_RANGE);
    assert_eq!((attributes(&v, f).size, blocks(&v, f)), (8 * K, 8));
    assert!(contents(&v, f)[4 * K as usize..].iter().all(|&b| b == 0));
}

#[test]
fn impossible_allocations_are_refused() {
    let v = fresh_volume();
    let f = file(&v, "f");
    let fallocate = |ino, offset, len, mode| v.fallocate(&ROOT, ino, offset, len, mode);
    assert_eq!(errno(fallocate(f, 0, 0, 0)), libc::EINVAL);
    assert_eq!(errno(fallocate(f, 16 << 40, 1, 0)), libc::EFBIG);
    assert_eq!(errno(fallocate(f, u64::MAX, 1, 0)), libc::EFBIG);
    for mode in [
        FALLOC_FL_COLLAPSE_RANGE,
        FALLOC_FL_INSERT_RANGE,
        FALLOC_FL_PUNCH_HOLE,
    ] {
        assert_eq!(errno(fallocate(f, 0, K, mode)), libc::EOPNOTSUPP);
    }
    assert_eq!(errno(fallocate(Ino::ROOT, 0, K, 0)), libc::EISDIR);
}

#[test]
fn seeking_finds_data_and_holes() {
    let v = fresh_volume();
    let f = file(&v, "f");
    write(&v, f, 2 * K, &pattern(1, 2 * K as usize));
    truncate(&v, f, 10 * K + 5);
    write(&v, f, 8 * K, b"x");
    let seek = |at, whence| v.seek(f, at, whence);
    assert_eq!(seek(0, Seek::Data).unwrap(), 2 * K);
    assert_eq!(seek(2 * K + 7, Seek::Data).unwrap(), 2 * K + 7);
    assert_eq!(seek(4 * K, Seek::Data).unwrap(), 8 * K);
    assert_eq!(errno(seek(9 * K, Seek::Data)), libc::ENXIO);
    assert_eq!(seek(0, Seek::Hole).unwrap(), 0);
    assert_eq!(seek(2 * K + 7, Seek::Hole).unwrap(), 4 * K);
    assert_eq!(seek(8 * K, Seek::Hole).unwrap(), 9 * K);
    assert_eq!(errno(seek(10 * K + 5, Seek::Hole)), libc::ENXIO);
    write(&v, f, 9 * K, &pattern(1, K as usize + 5));
    assert_eq!(seek(9 * K + 1, Seek::Hole).unwrap(), 10 * K + 5);
}

#[test]
fn seeking_in_small_and_reserved_files_is_exact() {
    let v = fresh_volume();
    let small = file(&v, "small");
    write(&v, small, 0, b"abc");
    assert_eq!(v.seek(small, 1, Seek::Data).unwrap(), 1);
    assert_eq!(v.seek(small, 1, Seek::Hole).unwrap(), 3);
    assert_eq!(errno(v.seek(small, 3, Seek::Data)), libc::ENXIO);
    let reserved = file(&v, "reserved");
    allocate(&v, reserved, 0, 4 * K, 0);
    assert_eq!(errno(v.seek(reserved, 0, Seek::Data)), libc::ENXIO);
    assert_eq!(v.seek(reserved, 5, Seek::Hole).unwrap(), 5);
    assert_eq!(errno(v.seek(Ino::ROOT, 0, Seek::Data)), libc::EISDIR);
}

#[test]
fn ranges_are_copied_between_files_and_within_one() {
    let v = fresh_volume();
    let (a, b) = (file(&v, "a"), file(&v, "b"));
    let data = pattern(6, 3_000_000);
    write(&v, a, 0, &data);
    assert_eq!(v.copy_range(a, 10, b, 777, 2_500_000).unwrap(), 2_500_000);
    let got = contents(&v, b);
    assert!(got[..777].iter().all(|&byte| byte == 0));
    assert!(got[777..] == data[10..2_500_010]);
    assert_eq!(v.copy_range(a, 2_999_990, b, 0, 100).unwrap(), 10);
    assert_eq!(v.copy_range(a, 4_000_000, b, 0, 100).unwrap(), 0);
    assert_eq!(v.copy_range(a, 0, a, 3_000_000, 50).unwrap(), 50);
    assert_eq!(contents(&v, a)[3_000_000..], data[..50]);
    assert_eq!(errno(v.copy_range(a, 0, a, 10, 50)), libc::EINVAL);
    assert_eq!(errno(v.copy_range(a, 0, Ino::ROOT, 0, 50)), libc::EISDIR);
}

#[test]
fn statfs_counts_inodes_exactly() {
    let v = fresh_volume();
    for i in 0..50 {
        file(&v, &format!("f{i}"));
    }
    for i in 0..20 {
        v.unlink(&ROOT, Ino::ROOT, format!("f{i}").as_bytes())
            .unwrap();
    }
    let statistics = v.statfs();
    assert_eq!(statistics.inodes_used, 31);
    assert!(statistics.blocks_free <= statistics.blocks);
    assert!(statistics.inodes_free > 1000);
}
