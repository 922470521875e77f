//! Reading and writing.

use std::sync::Arc;
use std::time::Duration;

use warren_fs::types::Ino;
use warren_fs::volume::Volume;
use warren_fs::volume::types::{SetAttributes, Time};

use zns_backend::{Clock, Profile, TimedDevice, ZonedDevice};

use crate::common::*;

#[test]
fn small_contents_live_in_the_inode_and_take_no_blocks_of_their_own() {
    let v = fresh_volume();
    let f = file(&v, "f");
    write(&v, f, 0, b"hello");
    write(&v, f, 3, b"p me");
    assert_eq!(contents(&v, f), b"help me");
    write(&v, f, 20, b"x");
    assert_eq!(contents(&v, f)[7..], *b"\0\0\0\0\0\0\0\0\0\0\0\0\0x");
    write(&v, f, 0, &pattern(1, 900));
    assert_eq!(contents(&v, f), pattern(1, 900));
    assert_eq!(
        attributes(&v, f).blocks,
        2,
        "shown as the sectors it would take"
    );
}

#[test]
fn contents_that_outgrow_the_inode_move_to_blocks() {
    for (offset, len) in [(900, 1), (0, 901), (899, 2), (5000, 10), (4096, 8192)] {
        let v = fresh_volume();
        let f = file(&v, "f");
        let mut expected = pattern(1, 900);
        write(&v, f, 0, &expected);
        let data = pattern(2, len);
        write(&v, f, offset as u64, &data);
        expected.resize(expected.len().max(offset + len), 0);
        expected[offset..offset + len].copy_from_slice(&data);
        assert_eq!(contents(&v, f), expected, "{len} bytes at {offset}");
        assert!(attributes(&v, f).blocks >= 8);
    }
}

#[test]
fn writes_at_every_alignment_read_back() {
    let v = fresh_volume();
    let f = file(&v, "f");
    let mut expected = Vec::new();
    let cases = [
        (0, 10_000),
        (4096, 4096),
        (4095, 2),
        (100, 50),
        (8191, 8194),
        (30_000, 1),
        (0, 1),
        (12_288, 5000),
        (39_999, 3),
    ];
    for (seed, (offset, len)) in cases.into_iter().enumerate() {
        let data = pattern(seed as u64, len);
        write(&v, f, offset as u64, &data);
        expected.resize(expected.len().max(offset + len), 0);
        expected[offset..offset + len].copy_from_slice(&data);
        assert_eq!(contents(&v, f), expected, "{len} bytes at {offset}");
    }
    let mut out = vec![9; 70_000];
    for (offset, len) in [
        (0, 1),
        (4095, 2),
        (5000, 20_000),
        (39_000, 5000),
        (50_000, 1),
    ] {
        v.read(f, offset as u64, len, &mut out).unwrap();
        let end = expected.len().min(offset + len);
        assert_eq!(
            out,
            expected[offset.min(end)..end],
            "{len} bytes at {offset}"
        );
    }
}

#[test]
fn read_into_a_used_buffer_leaves_nothing_of_what_was_in_it() {
    let v = fresh_volume();
    let f = file(&v, "f");
    write(&v, f, 3 * K, b"end");
    let mut out = vec![7; 100_000];
    v.read(f, 10, 100_000, &mut out).unwrap();
    assert_eq!(out.len() as u64, 3 * K + 3 - 10);
    assert!(out[..(3 * K - 10) as usize].iter().all(|&byte| byte == 0));
    v.read(f, 3 * K + 3, 10, &mut out).unwrap();
    assert!(out.is_empty());
    out.push(1);
    assert!(v.read(Ino(999), 0, 10, &mut out).is_err());
    assert!(out.is_empty());
}

#[test]
fn holes_read_as_zeros_and_take_no_space() {
    let v = fresh_volume();
    let f = file(&v, "f");
    write(&v, f, 1 << 40, &pattern(1, 4096));
    let got = attributes(&v, f);
    assert_eq!((got.size, got.blocks), ((1 << 40) + 4096, 8));
    let mut out = Vec::new();
    v.read(f, (1 << 40) - 100, 200, &mut out).unwrap();
    assert!(out[..100].iter().all(|&byte| byte == 0));
    assert_eq!(out[100..], pattern(1, 4096)[..100]);
}

#[test]
fn overwriting_does_not_change_the_space_taken() {
    let v = fresh_volume();
    let f = file(&v, "f");
    write(&v, f, 0, &pattern(1, 1 << 20));
    let blocks = attributes(&v, f).blocks;
    assert_eq!(blocks, (1 << 20) / 512);
    write(&v, f, 5000, &pattern(2, 100_000));
    assert_eq!(attributes(&v, f).blocks, blocks);
}

#[test]
fn files_end_at_16_tib() {
    let v = fresh_volume();
    let f = file(&v, "f");
    let last = (16 << 40) - 1;
    write(&v, f, last, b"x");
    assert_eq!(attributes(&v, f).size, 16 << 40);
    let full = v.write(f, last, b"xy", false, None);
    assert_eq!(errno(full), libc::EFBIG);
    let beyond = v.write(f, u64::MAX, b"x", false, None);
    assert_eq!(errno(beyond), libc::EFBIG);
    let set = SetAttributes {
        size: Some((16 << 40) + 1),
        ..SetAttributes::default()
    };
    assert_eq!(errno(v.setattr(&ROOT, f, &set)), libc::EFBIG);
}

#[test]
fn only_regular_files_are_read_and_written() {
    let v = fresh_volume();
    let link = v.symlink(&ROOT, Ino::ROOT, b"l", b"x").unwrap().ino;
    let mut out = Vec::new();
    assert_eq!(errno(v.read(Ino::ROOT, 0, 1, &mut out)), libc::EISDIR);
    assert_eq!(errno(v.read(link, 0, 1, &mut out)), libc::EINVAL);
    let write = |ino| v.write(ino, 0, b"x", false, None);
    assert_eq!(errno(write(Ino::ROOT)), libc::EISDIR);
    assert_eq!(errno(write(link)), libc::EINVAL);
    assert_eq!(errno(write(Ino(999))), libc::ENOENT);
}

#[test]
fn writes_set_the_times_they_are_given_or_none() {
    let v = fresh_volume();
    let f = file(&v, "f");
    let before = attributes(&v, f);
    v.write(f, 0, b"x", false, None).unwrap();
    let unchanged = attributes(&v, f);
    assert_eq!(
        (unchanged.mtime, unchanged.ctime),
        (before.mtime, before.ctime)
    );
    let time = Time(5_000_000_001);
    v.write(f, 0, b"x", false, Some(time)).unwrap();
    let written = attributes(&v, f);
    assert_eq!((written.mtime, written.ctime), (time, time));
    let mut out = Vec::new();
    v.read(f, 0, 10, &mut out).unwrap();
    assert_eq!(attributes(&v, f).atime, before.atime);
}

#[test]
fn writes_end_privileges_when_told_to() {
    let v = fresh_volume();
    let f = v
        .mknod(&ROOT, Ino::ROOT, b"f", S_IFREG | 0o6755, 0)
        .unwrap()
        .ino;
    write(&v, f, 0, b"x");
    assert_eq!(attributes(&v, f).permissions, 0o6755);
    v.write(f, 0, b"x", true, None).unwrap();
    assert_eq!(attributes(&v, f).permissions, 0o755);
}

#[test]
fn writers_of_disjoint_parts_of_a_block_do_not_lose_each_others_bytes() {
    let v = fresh_volume();
    let f = file(&v, "f");
    write(&v, f, 0, &[1; 8192]);
    std::thread::scope(|scope| {
        for writer in 0..4u64 {
            let v = &v;
            scope.spawn(move || {
                for at in 0..100 {
                    write(v, f, at * 80 + writer * 20, &[writer as u8 + 10; 20]);
                }
            });
        }
    });
    let bytes = contents(&v, f);
    for (at, &byte) in bytes[..8000].iter().enumerate() {
        assert_eq!(byte, (at % 80 / 20) as u8 + 10, "byte {at}");
    }
}

/// Time of the modelled device that reading the first `blocks` blocks takes, `at_once` of them in each
/// request, after a mount.
fn cold_read(device: &TimedDevice, f: Ino, blocks: u64, at_once: u64) -> Duration {
    let v = Volume::open(Arc::new(device.clone()), &options()).unwrap();
    let mut out = Vec::new();
    // What the catalog has to be read for is not what is measured.
    v.read(f, blocks * K, 1, &mut out).unwrap();
    let before = device.elapsed();
    for first in (0..blocks).step_by(at_once as usize) {
        v.read(f, first * K, (at_once * K) as usize, &mut out)
            .unwrap();
        let expected = pattern(7, K as usize).repeat(at_once as usize);
        assert!(out == expected, "block {first}");
    }
    device.elapsed() - before
}

#[test]
fn what_lies_in_many_places_is_read_from_all_of_them_at_once() {
    const BLOCKS: u64 = 64;
    let device = TimedDevice::new(device(64), Profile::ZN540, Clock::Virtual);
    let shared: Arc<dyn ZonedDevice> = Arc::new(device.clone());
    let v = formatted(&shared);
    let f = file(&v, "f");
    write(&v, f, 0, &pattern(1, (BLOCKS + 1) as usize * K as usize));
    // Every block at a place of its own, with another file's between them.
    let other = file(&v, "other");
    for i in 0..BLOCKS {
        let block = i * 37 % BLOCKS;
        write(&v, f, block * K, &pattern(7, K as usize));
        write(&v, other, i * 50 * K, &pattern(2, 50 * K as usize));
    }
    v.close().unwrap();
    let in_turn = cold_read(&device, f, BLOCKS, 1);
    let together = cold_read(&device, f, BLOCKS, 16);
    assert!(
        4 * together < in_turn,
        "{together:?} together, {in_turn:?} in turn"
    );
}
