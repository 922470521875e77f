//! Atomic writes: sessions whose changes happen together or not at all.

use std::sync::Arc;

use warren_fs::fsck;
use warren_fs::store::StoreOptions;
use warren_fs::types::Ino;
use warren_fs::volume::Volume;
use warren_fs::volume::atomic::{Owner, SESSION_BLOCKS_MAX};
use warren_fs::volume::types::SetAttributes;
use zns_backend::{CrashPoint, FaultDevice, MemDevice, Survival, ZonedDevice};

use crate::common::{
    K, ROOT, attributes, contents, device, errno, file, formatted, fresh_volume, options, pattern,
    remount, write,
};

const ME: Owner = Owner(1);
const OTHER: Owner = Owner(2);

fn write_in(volume: &Volume, ino: Ino, offset: u64, data: &[u8]) {
    let written = volume.write_atomic(ino, ME, offset, data, false);
    assert!(written.expect("write_atomic"), "there is a session");
}

fn read_in(volume: &Volume, ino: Ino, offset: u64, size: usize) -> Vec<u8> {
    let mut memory = Vec::new();
    let read = volume.read_atomic(ino, ME, offset, size, |len| {
        // What was in the memory before must not show.
        memory.resize(len, 0xa5);
        &mut memory
    });
    memory[read.expect("read_atomic").expect("there is a session")].to_vec()
}

/// A new filesystem that keeps so little of a session in memory that most of it goes ahead to the log.
fn sends_ahead(device: &Arc<dyn ZonedDevice>) -> Volume {
    drop(formatted(device));
    let little = StoreOptions {
        atomic_memory_bytes: 64 << 10,
        ..options()
    };
    Volume::open(Arc::clone(device), &little).expect("open")
}

/// Dies without a close and mounts what is on the device.
fn crash(volume: Volume) -> Volume {
    let device = Arc::clone(volume.store().device());
    drop(volume);
    Volume::open(device, &options()).expect("open")
}

fn sound(volume: Volume) {
    let device = Arc::clone(volume.store().device());
    volume.close().expect("close");
    drop(volume);
    let report = fsck::check(device, true, &|_, _| {}).expect("fsck");
    assert_eq!(report.errors, Vec::<String>::new());
}

#[test]
fn what_is_pending_shows_to_its_owner_alone_until_the_commit() {
    let volume = fresh_volume();
    let ino = file(&volume, "f");
    let old = pattern(1, 20_000);
    write(&volume, ino, 0, &old);
    volume.start_atomic(ino, ME).expect("start");
    write_in(
        &volume,
        ino,
        5000,
        b"across two blocks".repeat(300).as_slice(),
    );
    write_in(&volume, ino, 50_000, b"behind the end");
    let mut want = old.clone();
    want[5000..10_100].copy_from_slice(&b"across two blocks".repeat(300));
    want.resize(50_000, 0);
    want.extend_from_slice(b"behind the end");
    assert_eq!(read_in(&volume, ino, 0, 100_000), want);
    let mut others = Vec::new();
    volume.read(ino, 0, 100_000, &mut others).expect("read");
    assert_eq!(others, old);
    assert!(volume.commit_atomic(ino, ME).expect("commit"));
    assert_eq!(contents(&volume, ino), want);
    let volume = remount(volume);
    assert_eq!(contents(&volume, ino), want);
    sound(volume);
}

#[test]
fn an_aborted_session_and_one_whose_process_dies_leave_nothing() {
    let volume = fresh_volume();
    let ino = file(&volume, "f");
    write(&volume, ino, 0, b"as it was");
    let before = attributes(&volume, ino);
    volume.start_atomic(ino, ME).expect("start");
    write_in(&volume, ino, 3, &pattern(2, 9000));
    assert_eq!(
        attributes(&volume, ino).size,
        9003,
        "the length shows to all"
    );
    assert_eq!(volume.abort_atomic(ino, ME), Some(9003));
    assert_eq!(volume.abort_atomic(ino, ME), None);
    assert_eq!(attributes(&volume, ino), before);
    assert_eq!(contents(&volume, ino), b"as it was");
    volume.start_atomic(ino, ME).expect("start again");
    write_in(&volume, ino, 0, b"never");
    volume.sync().expect("sync");
    let volume = crash(volume);
    assert_eq!(contents(&volume, ino), b"as it was");
    sound(volume);
}

#[test]
fn a_session_keeps_others_from_changing_the_contents() {
    let volume = fresh_volume();
    let (ino, from) = (file(&volume, "f"), file(&volume, "from"));
    write(&volume, ino, 0, &pattern(1, 10_000));
    write(&volume, from, 0, &pattern(2, 10_000));
    volume.start_atomic(ino, ME).expect("start");
    let set = |size| SetAttributes {
        size: Some(size),
        ..SetAttributes::default()
    };
    assert_eq!(errno(volume.start_atomic(ino, OTHER)), libc::EBUSY);
    assert_eq!(errno(volume.start_atomic(ino, ME)), libc::EINVAL);
    assert_eq!(errno(volume.write(ino, 0, b"x", false, None)), libc::EBUSY);
    assert_eq!(errno(volume.append(ino, b"x")), libc::EBUSY);
    assert_eq!(
        errno(volume.replace(ino, 0, 9000, b"x", false)),
        libc::EBUSY
    );
    assert_eq!(errno(volume.setattr(&ROOT, ino, &set(0))), libc::EBUSY);
    assert_eq!(errno(volume.open_handle(&ROOT, ino, true)), libc::EBUSY);
    assert_eq!(errno(volume.fallocate(&ROOT, ino, 0, K, 0)), libc::EBUSY);
    assert_eq!(errno(volume.copy_range(from, 0, ino, 0, K)), libc::EBUSY);
    assert_eq!(errno(volume.commit_atomic(ino, OTHER)), libc::EINVAL);
    assert_eq!(volume.abort_atomic(ino, OTHER), None);
    let written = volume.write_atomic(ino, OTHER, 0, b"x", false);
    assert!(!written.expect("no session of theirs"));
    // What does not change contents goes on.
    let chmod = SetAttributes {
        permissions: Some(0o600),
        ..SetAttributes::default()
    };
    volume.setattr(&ROOT, ino, &chmod).expect("chmod");
    volume
        .rename(&ROOT, Ino::ROOT, b"f", Ino::ROOT, b"g", 0)
        .expect("rename");
    write_in(&volume, ino, 0, b"mine");
    assert!(volume.commit_atomic(ino, ME).expect("commit"));
    write(&volume, ino, 4, b"again");
    assert_eq!(contents(&volume, ino)[..9], *b"mineagain");
    assert_eq!(attributes(&volume, ino).permissions, 0o600);
    sound(volume);
}

#[test]
fn what_a_session_cuts_off_comes_back_with_an_abort_and_never_with_a_commit() {
    let volume = fresh_volume();
    for commit in [false, true] {
        let ino = file(&volume, if commit { "kept" } else { "dropped" });
        let old = pattern(3, 40_000);
        write(&volume, ino, 0, &old);
        volume.start_atomic(ino, ME).expect("start");
        write_in(&volume, ino, 9000, b"gone again");
        assert!(volume.truncate_atomic(ino, ME, 8500).expect("cut"));
        assert!(volume.truncate_atomic(ino, ME, 30_000).expect("grow"));
        write_in(&volume, ino, 29_000, b"new");
        let mut want = old[..8500].to_vec();
        want.resize(30_000, 0);
        want[29_000..29_003].copy_from_slice(b"new");
        assert_eq!(read_in(&volume, ino, 0, 100_000), want);
        if commit {
            assert!(volume.commit_atomic(ino, ME).expect("commit"));
            assert_eq!(contents(&volume, ino), want);
        } else {
            assert!(volume.abort_atomic(ino, ME).is_some());
            assert_eq!(contents(&volume, ino), old);
        }
    }
    sound(volume);
}

#[test]
fn small_files_stay_in_the_catalog_and_grow_out_of_it() {
    let volume = fresh_volume();
    let ino = file(&volume, "f");
    let step = |offset, data: &[u8]| {
        volume.start_atomic(ino, ME).expect("start");
        write_in(&volume, ino, offset, data);
        assert!(volume.commit_atomic(ino, ME).expect("commit"));
    };
    step(0, b"hello");
    step(5, b" world");
    assert_eq!(contents(&volume, ino), b"hello world");
    assert!(attributes(&volume, ino).blocks < 8);
    step(2000, b"far");
    let mut want = b"hello world".to_vec();
    want.resize(2000, 0);
    want.extend_from_slice(b"far");
    assert_eq!(contents(&volume, ino), want);
    assert_eq!(attributes(&volume, ino).blocks, 8);
    volume.start_atomic(ino, ME).expect("start");
    assert!(!volume.commit_atomic(ino, ME).expect("nothing to commit"));
    sound(volume);
}

/// Blocks of files that were put into the log so far.
fn data_blocks(volume: &Volume) -> u64 {
    volume.store().stats().groups["log"]["data_blocks"]
}

/// A file of `blocks` blocks and a session that has changed every second of them.
fn large(volume: &Volume, blocks: u64) -> (Ino, Vec<u8>) {
    let ino = file(volume, "f");
    let mut want = pattern(4, (blocks * K) as usize);
    for (at, part) in want.chunks(1 << 20).enumerate() {
        write(volume, ino, (at << 20) as u64, part);
    }
    volume.start_atomic(ino, ME).expect("start");
    for block in (0..blocks).step_by(2) {
        let data = pattern(block, K as usize);
        write_in(volume, ino, block * K, &data);
        want[(block * K) as usize..][..K as usize].copy_from_slice(&data);
    }
    (ino, want)
}

#[test]
fn a_session_larger_than_memory_goes_ahead_to_the_log_and_is_still_one_transaction() {
    let volume = sends_ahead(&device(64));
    // The extents of so many single blocks fill more than one chunk of the log.
    let (ino, want) = large(&volume, 24_000);
    let before = data_blocks(&volume);
    assert_eq!(read_in(&volume, ino, 0, want.len()), want);
    let staged_again = read_in(&volume, ino, 0, K as usize);
    write_in(&volume, ino, 0, &staged_again);
    volume.store().checkpoint().expect("checkpoint");
    volume.store().collect(2).expect("collect");
    assert!(volume.commit_atomic(ino, ME).expect("commit"));
    let moved = data_blocks(&volume) - before;
    assert!(moved <= 20, "{moved} blocks were written by the commit");
    assert!(contents(&volume, ino) == want);
    volume.fsync(ino).expect("fsync");
    let volume = crash(volume);
    assert!(contents(&volume, ino) == want);
    sound(volume);
}

#[test]
fn what_was_sent_ahead_is_given_back_when_the_session_comes_to_nothing() {
    let volume = sends_ahead(&device(64));
    let ino = file(&volume, "f");
    for turn in 0..20 {
        volume.start_atomic(ino, ME).expect("start");
        for at in 0..20 {
            write_in(&volume, ino, at << 20, &pattern(turn + at, 1 << 20));
        }
        assert!(volume.statfs().blocks - volume.statfs().blocks_free >= 20 * 256 - 32);
        assert!(volume.abort_atomic(ino, ME).is_some());
        assert!(volume.statfs().blocks - volume.statfs().blocks_free < 256);
    }
    // The last one is cut short by the end of the process.
    volume.start_atomic(ino, ME).expect("start");
    write_in(&volume, ino, 0, &pattern(9, 1 << 20));
    volume.sync().expect("sync");
    let volume = crash(volume);
    assert_eq!(attributes(&volume, ino).size, 0);
    assert!(volume.statfs().blocks - volume.statfs().blocks_free < 256);
    sound(volume);
}

#[test]
fn a_session_that_is_too_large_or_finds_no_space_can_only_come_to_nothing() {
    let volume = sends_ahead(&device(24));
    let ino = file(&volume, "f");
    write(&volume, ino, 0, b"as it was");
    volume.start_atomic(ino, ME).expect("start");
    let mib = pattern(5, 1 << 20);
    let refused = (0..SESSION_BLOCKS_MAX / 256 + 1)
        .find_map(|at| volume.write_atomic(ino, ME, at << 20, &mib, false).err());
    let refused = refused.expect("the device is smaller than this session");
    assert_eq!(refused.errno(), libc::ENOSPC);
    assert_eq!(errno(volume.commit_atomic(ino, ME)), libc::EIO);
    assert_eq!(volume.atomic_owner(ino), None);
    assert_eq!(contents(&volume, ino), b"as it was");
    write(&volume, ino, 0, &mib);
    sound(volume);
}

#[test]
fn scattered_blocks_are_read_as_written_whether_in_memory_staged_or_committed() {
    let volume = sends_ahead(&device(16));
    let ino = file(&volume, "f");
    let mut want = pattern(1, 512 << 12);
    write(&volume, ino, 0, &want);
    volume.start_atomic(ino, ME).expect("start");
    // Blocks apart from each other, many more than stay in memory; some of them again when they are staged.
    for turn in 0..3 {
        for at in (0..512).map(|at| at * 37 % 512).filter(|at| at % 5 != turn) {
            let block = pattern(1000 * turn + at, 4096);
            write_in(&volume, ino, at << 12, &block);
            want[(at as usize) << 12..][..4096].copy_from_slice(&block);
            let (first, len) = ((at / 8) << 15, 8 << 12);
            let read = read_in(&volume, ino, first, len);
            assert!(
                read == want[first as usize..][..len],
                "turn {turn}, block {at}"
            );
        }
    }
    assert!(volume.commit_atomic(ino, ME).expect("commit"));
    assert_eq!(attributes(&volume, ino).blocks, 512 * 8);
    assert!(contents(&volume, ino) == want);
    sound(volume);
}

#[test]
fn readers_of_what_a_session_leaves_alone_see_commits_as_a_whole() {
    let volume = fresh_volume();
    let ino = file(&volume, "f");
    write(&volume, ino, 0, &vec![0; 16 << 12]);
    let done = &std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (volume, readers) = (&volume, 2);
        for _ in 0..readers {
            scope.spawn(move || {
                let mut last = 0;
                while !done.load(std::sync::atomic::Ordering::Acquire) {
                    let mut memory = Vec::new();
                    let read = volume.read_atomic(ino, ME, 8 << 12, 8 << 12, |len| {
                        memory.resize(len, 0xa5);
                        &mut memory
                    });
                    let Some(range) = read.expect("read") else {
                        continue;
                    };
                    let bytes = &memory[range];
                    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "half a commit");
                    assert!(bytes[0] >= last, "{} after {last}", bytes[0]);
                    last = bytes[0];
                }
            });
        }
        for turn in 1..=200 {
            volume.start_atomic(ino, ME).expect("start");
            // The half that is read is written last and by one write.
            write_in(volume, ino, 0, &vec![turn; 8 << 12]);
            write_in(volume, ino, 8 << 12, &vec![turn; 8 << 12]);
            assert!(volume.commit_atomic(ino, ME).expect("commit"));
        }
        done.store(true, std::sync::atomic::Ordering::Release);
    });
    sound(volume);
}

#[test]
fn a_power_cut_in_a_commit_of_several_chunks_leaves_all_of_it_or_nothing() {
    let memory = MemDevice::new(*device(32).geometry()).expect("a sparse memory device");
    let faulty = FaultDevice::new(memory).expect("a fresh device can be read");
    let faulty = faulty.with_durable_writes();
    let below: Arc<dyn ZonedDevice> = Arc::new(faulty.clone());
    let volume = sends_ahead(&below);
    let (ino, want) = large(&volume, 5000);
    let mut old = Vec::new();
    volume.read(ino, 0, want.len(), &mut old).expect("read");
    // What is staged lies before the checkpoint, the transaction behind it.
    volume.store().checkpoint().expect("checkpoint");
    let chunks = |volume: &Volume| volume.store().stats().groups["log"]["chunks"];
    let (first, chunks_before) = (faulty.log().len(), chunks(&volume));
    assert!(volume.commit_atomic(ino, ME).expect("commit"));
    volume.fsync(ino).expect("fsync");
    assert!(
        chunks(&volume) - chunks_before >= 3,
        "the commit is a long one"
    );
    let log = faulty.log();
    let (mut befores, mut afters) = (0, 0);
    for completed in first..=log.len() {
        let after = CrashPoint::after(completed);
        let mut cuts = vec![(after, Survival::All), (after, Survival::None)];
        if completed < log.len() {
            let chosen = Survival::Seeded(completed as u64);
            cuts.push((after, chosen));
            cuts.push((CrashPoint::during(completed), chosen));
        }
        for (cut, survival) in cuts {
            let left = log.device_after(cut, survival).expect("a device is left");
            let volume = Volume::open(Arc::new(left), &options()).expect("open");
            let found = contents(&volume, ino);
            let case = format!("{cut:?}, {survival:?}");
            assert!(found == old || found == want, "{case}: neither state");
            assert!(
                completed < log.len() || found == want,
                "{case}: not durable"
            );
            befores += u32::from(found == old);
            afters += u32::from(found == want);
            sound(volume);
        }
    }
    assert!(
        befores > 2 && afters > 1,
        "{befores} before, {afters} after"
    );
}
