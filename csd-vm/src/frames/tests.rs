//! Frames on an image file, and their table alone.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use zns_backend::{FileDevice, Geometry, Lba, ZoneId};

use super::*;

const ZONE_BLOCKS: u64 = 1024;

/// A file whose blocks lie one behind the other, and how often it was asked where.
struct File {
    size: u64,
    start: Lba,
    checksums: Vec<u32>,
    resolved: AtomicUsize,
}

impl SnapshotMap for File {
    fn size(&self) -> u64 {
        self.size
    }

    fn resolve(&self, first: u64, blocks: u64, out: &mut Vec<Piece>) -> Result<(), String> {
        self.resolved.fetch_add(1, Relaxed);
        let checksums = &self.checksums[first as usize..(first + blocks) as usize];
        out.push(Piece::Mapped {
            lba: self.start.plus(first),
            checksums: checksums.into(),
        });
        Ok(())
    }
}

struct Storage {
    device: Arc<dyn ZonedDevice>,
    _directory: tempfile::TempDir,
}

impl Storage {
    fn new() -> Storage {
        let directory = tempfile::tempdir().expect("a directory");
        let geometry = Geometry {
            block_size: BLOCK_SIZE as u32,
            zones: 8,
            zone_size: ZONE_BLOCKS,
            zone_capacity: ZONE_BLOCKS,
            max_open: 0,
            max_active: 0,
            max_append: 0,
        };
        let image = FileDevice::create(directory.path().join("image"), &geometry, false);
        Storage {
            device: Arc::new(image.expect("an image")),
            _directory: directory,
        }
    }

    /// A file of so many bytes in a zone; its block `n` is full of `seed + n`, also past its end.
    fn file(&self, zone: u32, size: u64, seed: u8) -> Arc<File> {
        let start = self.device.geometry().zone_start(ZoneId(zone));
        let mut checksums = Vec::new();
        for block in 0..size.div_ceil(BLOCK_SIZE as u64) {
            let mut buffer = self.device.buffer(BLOCK_SIZE);
            buffer.fill(seed.wrapping_add(block as u8));
            checksums.push(crc32c::crc32c(&buffer));
            let written = self.device.write(start.plus(block), &buffer);
            written.expect("a block is written");
        }
        Arc::new(File {
            size,
            start,
            checksums,
            resolved: AtomicUsize::new(0),
        })
    }

    fn frames(&self, count: u64) -> Frames {
        let bytes = count * FRAME_BYTES as u64;
        Frames::new(&self.device, bytes).expect("frames")
    }
}

fn snapshot(file: &Arc<File>) -> Arc<dyn SnapshotMap> {
    Arc::clone(file) as Arc<dyn SnapshotMap>
}

fn take(frames: &Frames, file: &Arc<File>, index: u64) -> Result<Option<Pin>, WindowError> {
    let stopping = AtomicBool::new(false);
    let time = Duration::from_secs(20);
    let term = Term {
        deadline: Instant::now() + time,
        time,
        stopping: &stopping,
        cancellation: None,
    };
    frames.take(&snapshot(file), index, term)
}

/// The first and the last byte of each block.
fn edges(pin: &Pin) -> Vec<(u8, u8)> {
    // SAFETY: nobody fills a frame that has a pin, and the reference ends before the pin does.
    let bytes = unsafe { pin.shared.memory.bytes(pin.frame) };
    let blocks = bytes.chunks(BLOCK_SIZE);
    blocks
        .map(|block| (block[0], block[BLOCK_SIZE - 1]))
        .collect()
}

fn frame_bytes(count: u64) -> u64 {
    count * FRAME_BYTES as u64
}

#[test]
fn frames_in_use_are_never_taken_for_something_else() {
    let storage = Storage::new();
    let (file, other) = (
        storage.file(0, frame_bytes(8), 1),
        storage.file(1, frame_bytes(8), 101),
    );
    let frames = storage.frames(12);
    let pinned: Vec<Pin> = (0..8)
        .map(|index| take(&frames, &file, index).expect("read").expect("a frame"))
        .collect();
    let others: Vec<Pin> = (0..4)
        .map(|index| {
            take(&frames, &other, index)
                .expect("read")
                .expect("a frame")
        })
        .collect();
    assert!(take(&frames, &other, 4).expect("no error").is_none());
    frames.read_ahead(&snapshot(&other), 4..8);
    for (index, pin) in pinned.iter().enumerate() {
        let first = 1u8.wrapping_add((index as u64 * FRAME_BLOCKS) as u8);
        assert_eq!(edges(pin)[0], (first, first), "part {index}");
    }
    drop(others);
    let next = take(&frames, &other, 4).expect("read").expect("a frame");
    assert_eq!(edges(&next)[0].0, 101);
}

#[test]
fn a_part_is_read_once_as_long_as_it_stays() {
    let storage = Storage::new();
    let file = storage.file(0, frame_bytes(2), 7);
    let frames = storage.frames(12);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for index in [0, 1, 0] {
                    let pin = take(&frames, &file, index).expect("read").expect("a frame");
                    assert_eq!(edges(&pin)[1].0, 8 + 128 * index as u8);
                }
            });
        }
    });
    assert_eq!(file.resolved.load(Relaxed), 2);
}

#[test]
fn what_was_read_ahead_is_there_when_it_is_needed() {
    let storage = Storage::new();
    let file = storage.file(0, frame_bytes(8) - 5, 3);
    let frames = storage.frames(12);
    frames.read_ahead(&snapshot(&file), 0..8);
    let until = Instant::now() + Duration::from_secs(20);
    while file.resolved.load(Relaxed) < 8 {
        assert!(Instant::now() < until, "nothing is read ahead");
        std::thread::sleep(Duration::from_millis(1));
    }
    let last = take(&frames, &file, 7).expect("read").expect("a frame");
    assert_eq!(file.resolved.load(Relaxed), 8, "it was read again");
    // Nothing past the end of the file is seen.
    let value = 3u8.wrapping_add((8 * FRAME_BLOCKS - 1) as u8);
    assert_eq!(edges(&last).last(), Some(&(value, 0)));
}

#[test]
fn a_snapshot_that_was_forgotten_is_found_no_more_and_gives_its_memory_back() {
    let storage = Storage::new();
    let file = storage.file(0, frame_bytes(8), 1);
    let frames = storage.frames(64);
    let forget = frames.forgetting();
    let kept = take(&frames, &file, 0).expect("read").expect("a frame");
    for index in 1..8 {
        take(&frames, &file, index).expect("read").expect("a frame");
    }
    forget.forget(&snapshot(&file));
    assert_eq!(edges(&kept)[0].0, 1, "a frame in use was given away");
    let again = take(&frames, &file, 0).expect("read").expect("a frame");
    assert_ne!(again.frame, kept.frame);
    assert_eq!(file.resolved.load(Relaxed), 9);
}

#[test]
fn memory_beyond_a_few_frames_is_given_back_with_the_snapshot() {
    let storage = Storage::new();
    let files = [0, 1, 2, 3].map(|zone| storage.file(zone, frame_bytes(8), 1));
    let frames = storage.frames(64);
    let forget = frames.forgetting();
    let used = || {
        let metadata = frames.shared.memory.metadata().expect("a file");
        std::os::unix::fs::MetadataExt::blocks(&metadata) * 512
    };
    for file in &files {
        for index in 0..8 {
            take(&frames, file, index).expect("read").expect("a frame");
        }
    }
    assert_eq!(used(), frame_bytes(32));
    for file in &files {
        forget.forget(&snapshot(file));
    }
    assert!(used() <= frame_bytes(16), "{} bytes are kept", used());
    // What is given back can be had again.
    for file in &files {
        for index in 0..8 {
            let pin = take(&frames, file, index).expect("read").expect("a frame");
            assert_eq!(edges(&pin)[2].0, 3u8.wrapping_add(128 * (index % 2) as u8));
        }
    }
}

#[test]
fn a_block_that_is_not_what_it_was_is_an_error_each_time() {
    let storage = Storage::new();
    let good = storage.file(0, frame_bytes(2), 1);
    let mut checksums = good.checksums.clone();
    checksums[FRAME_BLOCKS as usize + 3] ^= 1;
    let bad = Arc::new(File {
        size: good.size,
        start: good.start,
        checksums,
        resolved: AtomicUsize::new(0),
    });
    let frames = storage.frames(12);
    frames.read_ahead(&snapshot(&bad), 0..2);
    for _ in 0..3 {
        assert!(take(&frames, &bad, 0).expect("read").is_some());
        let error = take(&frames, &bad, 1).err().expect("refused");
        let lba = good.start.plus(FRAME_BLOCKS + 3);
        assert!(
            matches!(&error, WindowError::Storage(why) if why.contains(&format!("LBA {lba} "))),
            "{error:?}"
        );
    }
}

#[test]
fn going_through_a_file_twice_the_memory_again_finds_half_of_it() {
    const PARTS: u64 = 32;
    let storage = Storage::new();
    let file = storage.file(0, frame_bytes(PARTS), 1);
    let frames = storage.frames(PARTS / 2);
    let pass = || {
        let before = file.resolved.load(Relaxed);
        for index in 0..PARTS {
            let pin = take(&frames, &file, index).expect("read").expect("a frame");
            assert_eq!(edges(&pin)[1].0, 2u8.wrapping_add((128 * index) as u8));
        }
        file.resolved.load(Relaxed) - before
    };
    assert_eq!(pass(), PARTS as usize);
    for number in 2..5 {
        let read = pass();
        assert!(
            read <= PARTS as usize / 2 + 3,
            "{read} parts are read in pass {number}"
        );
    }
}

#[test]
fn a_large_file_does_not_keep_out_what_is_used_after_it() {
    let storage = Storage::new();
    let large = storage.file(0, frame_bytes(32), 1);
    let small = storage.file(4, frame_bytes(8), 1);
    let frames = storage.frames(16);
    for index in (0..32).chain(0..32) {
        take(&frames, &large, index)
            .expect("read")
            .expect("a frame");
    }
    for index in (0..8).chain(0..8) {
        take(&frames, &small, index)
            .expect("read")
            .expect("a frame");
    }
    assert_eq!(small.resolved.load(Relaxed), 8);
    // Nor what is used in it later: one part after the other finds its place.
    let mut read = usize::MAX;
    for _ in 0..200 {
        let before = large.resolved.load(Relaxed);
        for index in 24..28 {
            take(&frames, &large, index)
                .expect("read")
                .expect("a frame");
        }
        read = large.resolved.load(Relaxed) - before;
        if read == 0 {
            break;
        }
    }
    assert_eq!(read, 0, "parts are read again and again");
}

#[test]
fn memory_comes_with_or_without_huge_pages() {
    for refused in [false, true] {
        let memory = Memory::new(10, FRAME_BYTES).expect("memory");
        if refused {
            memory.refuse_huge_pages();
        }
        let bytes = |unit| {
            // SAFETY: it was provided, and nobody else has the memory.
            unsafe { memory.bytes(unit) }
        };
        // The last ones are no whole huge page.
        for unit in [5, 0, 9, 6] {
            memory.provide(unit).expect("memory");
            assert!(memory.is_provided(unit));
            assert!(bytes(unit).iter().all(|byte| *byte == 0));
            bytes(unit).fill(unit as u8);
        }
        memory.give_back(5..6).expect("given back");
        assert!(!memory.is_provided(5));
        // The rest of what may be a huge page stays what it was.
        assert!(bytes(6).iter().all(|byte| *byte == 6));
        memory.provide(5).expect("memory");
        assert!(bytes(5).iter().all(|byte| *byte == 0));
        memory.provide_ahead(3);
        memory.provide_ahead(10);
        assert!(bytes(0).iter().all(|byte| *byte == 0));
    }
}
