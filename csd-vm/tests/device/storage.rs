//! Devices of all kinds under the snapshot: images, devices that cannot be mapped, damage.

use std::sync::Arc;

use csd_vm::request::{Failure, Piece, SnapshotMap};
use csd_vm::{Device, DeviceConfig, DeviceError};
use zns_backend::{
    DeviceQueue, FileDevice, Geometry, Lba, MemDevice, Result, ZoneId, ZoneInfo, ZonedDevice,
};

use crate::common::{
    BLOCK, PASSTHROUGH, Shape, Snapshot, Writer, geometry, mem, pattern, read, warren,
};

/// A device that has no source to map from.
struct Unmappable(Arc<dyn ZonedDevice>);

impl ZonedDevice for Unmappable {
    fn geometry(&self) -> &Geometry {
        self.0.geometry()
    }
    fn report(&self, first: ZoneId, count: u32) -> Result<Vec<ZoneInfo>> {
        self.0.report(first, count)
    }
    fn read(&self, lba: Lba, buf: &mut [u8]) -> Result<()> {
        self.0.read(lba, buf)
    }
    fn write(&self, lba: Lba, data: &[u8]) -> Result<()> {
        self.0.write(lba, data)
    }
    fn append(&self, zone: ZoneId, data: &[u8]) -> Result<Lba> {
        self.0.append(zone, data)
    }
    fn reset(&self, zone: ZoneId) -> Result<()> {
        self.0.reset(zone)
    }
    fn finish(&self, zone: ZoneId) -> Result<()> {
        self.0.finish(zone)
    }
    fn open(&self, zone: ZoneId) -> Result<()> {
        self.0.open(zone)
    }
    fn close(&self, zone: ZoneId) -> Result<()> {
        self.0.close(zone)
    }
    fn flush(&self) -> Result<()> {
        self.0.flush()
    }
    fn queue(&self, depth: u32) -> Result<Box<dyn DeviceQueue>> {
        self.0.queue(depth)
    }
    fn describe(&self) -> String {
        self.0.describe()
    }
}

/// Emits every block through `warren_map` and again through `warren_read`.
fn twice() -> Vec<u8> {
    warren(&format!(
        "{} ",
        PASSTHROUGH.replace(
            "return 0;",
            "warren_read(r->offset, (void *)r->heap, r->size);
             warren_emit((void *)r->heap, r->size);
             return 0;"
        )
    ))
}

fn reads_back(storage: Arc<dyn ZonedDevice>) {
    let mut data = pattern(1_000_001);
    data[3 * BLOCK..30 * BLOCK].fill(0);
    let mut writer = Writer::new(&storage);
    let shapes = [Shape::Contiguous, Shape::Fragmented, Shape::Sparse];
    let files = shapes.map(|shape| writer.write(&data, shape));
    let device = Device::new(storage, DeviceConfig::default()).expect("device");
    let program = device.load(&twice()).expect("loads");
    for file in files {
        let activation = device.activate(&program);
        for (offset, size) in [(0, 1_000_001), (5, 5), (600_000, 400_001), (0, 524_288)] {
            let finished = device
                .execute(&activation, read(&file, offset, size))
                .expect("runs");
            let expected = &data[offset as usize..(offset + size) as usize];
            assert!(finished.output == [expected, expected].concat());
        }
    }
}

#[test]
fn an_image_file_reads_as_memory_does() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("image");
    let image = FileDevice::create(&path, &geometry(), false).expect("image");
    reads_back(Arc::new(image));
}

#[test]
fn a_device_without_a_source_is_copied_from() {
    reads_back(Arc::new(Unmappable(mem())));
}

#[test]
fn devices_with_other_blocks_are_refused() {
    let geometry = Geometry {
        block_size: 512,
        ..geometry()
    };
    let storage = Arc::new(MemDevice::new(geometry).expect("memory"));
    let refused = Device::new(storage, DeviceConfig::default());
    assert!(matches!(refused, Err(DeviceError::BlockSize(512))));
}

#[test]
fn a_block_with_another_checksum_is_never_seen_and_named() {
    let storages: [Arc<dyn ZonedDevice>; 2] = [mem(), Arc::new(Unmappable(mem()))];
    for storage in storages {
        for shape in [Shape::Contiguous, Shape::Fragmented] {
            let data = pattern(200 * BLOCK);
            let file = Writer::new(&storage).write(&data, shape);
            let mut blocks = file.blocks.clone();
            let (lba, sum) = blocks[100].expect("mapped");
            blocks[100] = Some((lba, sum ^ 1));
            let size = file.size;
            let file = Arc::new(Snapshot { size, blocks });
            let device = Device::new(Arc::clone(&storage), DeviceConfig::default());
            let device = device.expect("device");
            for object in [warren(PASSTHROUGH), reading()] {
                let program = device.load(&object).expect("loads");
                let activation = device.activate(&program);
                // Twice: a failure must not make the block pass for checked.
                for _ in 0..2 {
                    let failed = device.execute(&activation, read(&file, 0, size));
                    let Err((Failure::Storage(reason), _)) = failed else {
                        panic!("{failed:?}");
                    };
                    assert!(reason.contains(&format!("LBA {lba} ")), "{reason}");
                }
                let before = device.execute(&activation, read(&file, 0, 64 * BLOCK as u64));
                assert!(before.expect("runs").output == data[..64 * BLOCK]);
                let single = device.execute(&activation, read(&file, 100 * BLOCK as u64, 1));
                assert!(matches!(single, Err((Failure::Storage(_), _))));
            }
            for zone in 0..64 {
                storage.reset(ZoneId(zone)).expect("reset");
            }
        }
    }
}

fn reading() -> Vec<u8> {
    warren(
        "s64 n = warren_read(r->offset, (void *)r->heap, r->size);
         warren_emit((void *)r->heap, n);
         return 0;",
    )
}

/// A file on an image, and a way to cut that off.
fn cuttable(frame_bytes: u64) -> (tempfile::TempDir, Arc<Device>, Arc<Snapshot>, impl Fn()) {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("image");
    let image = FileDevice::create(&path, &geometry(), false).expect("image");
    let storage: Arc<dyn ZonedDevice> = Arc::new(image);
    let file = Writer::new(&storage).write(&pattern(300 * BLOCK), Shape::Contiguous);
    let config = DeviceConfig {
        frame_bytes,
        ..DeviceConfig::default()
    };
    let device = Device::new(storage, config).expect("device");
    let cut = move || {
        let image = std::fs::OpenOptions::new().write(true).open(&path);
        image.expect("opened").set_len(300 * 4096).expect("cut");
    };
    (directory, device, file, cut)
}

#[test]
fn an_image_that_was_cut_off_fails_the_kernel_only() {
    let (_directory, device, file, cut) = cuttable(0);
    let emitting = warren(PASSTHROUGH);
    let loading = warren(
        "const u8 *p; u64 sum = 0;
         s64 n = warren_map(0, r->size, (const void **)&p);
         for (s64 i = 0; i < n; i += 64) sum += p[i];
         return sum == 1;",
    );
    let activations = [&emitting, &loading, &emitting]
        .map(|object| device.activate(&device.load(object).expect("loads")));
    for activation in &activations[..2] {
        device
            .execute(activation, read(&file, 0, file.size))
            .expect("runs");
    }
    cut();
    for activation in &activations {
        let failed = device.execute(activation, read(&file, 0, file.size));
        assert!(
            matches!(failed, Err((Failure::Storage(_) | Failure::Fault(_), _))),
            "{failed:?}"
        );
    }
}

#[test]
fn what_is_in_memory_of_the_device_outlives_an_image_that_was_cut_off() {
    let (_directory, device, file, cut) = cuttable(64 << 20);
    let program = device.load(&warren(PASSTHROUGH)).expect("loads");
    let activation = device.activate(&program);
    let run = |file| device.execute(&activation, read(file, 0, file.size));
    let before = run(&file).expect("runs").output;
    cut();
    assert!(run(&file).expect("runs").output == before);
    let same_blocks = Arc::new(Snapshot {
        size: file.size,
        blocks: file.blocks.clone(),
    });
    let failed = run(&same_blocks);
    assert!(
        matches!(failed, Err((Failure::Storage(_) | Failure::Fault(_), _))),
        "{failed:?}"
    );
}

/// A snapshot whose host answers wrongly.
struct Wrong(u64);

impl SnapshotMap for Wrong {
    fn size(&self) -> u64 {
        1 << 20
    }

    fn resolve(
        &self,
        _: u64,
        blocks: u64,
        out: &mut Vec<Piece>,
    ) -> std::result::Result<(), String> {
        match self.0 {
            0 => return Err("the host is confused".into()),
            1 => {}
            2 => out.push(Piece::Hole { blocks: blocks + 1 }),
            3 => out.push(Piece::Hole { blocks: 0 }),
            4 => out.push(Piece::Mapped {
                lba: Lba(u64::MAX - 1),
                checksums: vec![0; blocks as usize].into(),
            }),
            _ => out.push(Piece::Mapped {
                lba: Lba(64 * 256 - 1),
                checksums: vec![0; blocks as usize].into(),
            }),
        }
        Ok(())
    }
}

#[test]
fn wrong_answers_of_the_host_fail_the_kernel_only() {
    let file = Writer::new(&mem()).write(b"x", Shape::Contiguous);
    let device = Device::new(mem(), DeviceConfig::default()).expect("device");
    for object in [warren(PASSTHROUGH), reading()] {
        let program = device.load(&object).expect("loads");
        let activation = device.activate(&program);
        for kind in 0..6 {
            for size in [10, 1 << 20] {
                let mut request = read(&file, 0, size);
                request.snapshot = Arc::new(Wrong(kind));
                let failed = device.execute(&activation, request);
                assert!(
                    matches!(failed, Err((Failure::Storage(_), _))),
                    "{kind}: {failed:?}"
                );
            }
        }
    }
}

/// Two GiB of hole with data at both ends.
#[test]
fn files_larger_than_the_window_are_read_by_giving_it_back() {
    let storage = mem();
    let ends = pattern(2 * BLOCK);
    let written = Writer::new(&storage).write(&ends, Shape::Contiguous);
    let last = (2u64 << 30) / BLOCK as u64 - 1;
    let mut blocks = vec![None; last as usize + 1];
    blocks[0] = written.blocks[0];
    blocks[last as usize] = written.blocks[1];
    let file = Arc::new(Snapshot {
        size: 2 << 30,
        blocks,
    });
    let object = warren(
        "const u64 *p; u64 sum = 0, moved = 0;
         s64 n;
         for (u64 at = 0; at < r->snapshot_size; at += n) {
             n = warren_map(at, 4 << 20, (const void **)&p);
             if (n == -12) {
                 moved++;
                 warren_unmap();
                 n = warren_map(at, 4 << 20, (const void **)&p);
             }
             if (n <= 0 || n % 4096) return -1;
             for (u64 i = 0; i < n / 8; i += 64 * 512) sum += p[i];
             if (at + n == r->snapshot_size) sum += p[n / 8 - 512];
         }
         if (moved == 0) return -2;
         u8 b[16];
         if (warren_read(r->snapshot_size - 4096, b, 16) != 16) return -3;
         warren_emit(&sum, 8);
         warren_emit(b, 16);
         return 0;",
    );
    let device = Device::new(storage, DeviceConfig::default()).expect("device");
    let activation = device.activate(&device.load(&object).expect("loads"));
    let first = |at: usize| u64::from_le_bytes(ends[at..at + 8].try_into().expect("8"));
    let sum = first(0).wrapping_add(first(BLOCK));
    for _ in 0..2 {
        let finished = device
            .execute(&activation, read(&file, 0, 4096))
            .expect("runs");
        assert_eq!(finished.output[..8], sum.to_le_bytes());
        assert_eq!(finished.output[8..], ends[BLOCK..BLOCK + 16]);
    }
}
