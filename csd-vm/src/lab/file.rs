//! Files for programs to look at: with holes, of odd sizes, in extents all over the device.

use std::sync::Arc;

use zns_backend::{Lba, ZoneId, ZonedDevice};

use crate::program::fuzz::Fuzzer;
use crate::request::{BLOCK_SIZE, Piece, SnapshotMap};

/// Where each block is, and its checksum; none for a hole.
struct File {
    size: u64,
    blocks: Vec<Option<(Lba, u32)>>,
}

impl SnapshotMap for File {
    fn size(&self) -> u64 {
        self.size
    }

    fn resolve(&self, first: u64, blocks: u64, out: &mut Vec<Piece>) -> Result<(), String> {
        let at = |block: u64| self.blocks.get(block as usize).copied().flatten();
        out.extend((first..first + blocks).map(|block| match at(block) {
            Some((lba, checksum)) => Piece::Mapped {
                lba,
                checksums: Arc::new([checksum]),
            },
            None => Piece::Hole { blocks: 1 },
        }));
        Ok(())
    }
}

/// Files of several sizes, the same ones each time.
pub(super) fn all(storage: &dyn ZonedDevice) -> Vec<Arc<dyn SnapshotMap>> {
    let mut random = Fuzzer::new(11);
    let mut used = vec![0; storage.geometry().zones as usize];
    let sizes = [100_001, 0, 1, 4096, 70_000];
    let write =
        |size| -> Arc<dyn SnapshotMap> { Arc::new(write(storage, &mut used, &mut random, size)) };
    sizes.map(write).into()
}

fn write(storage: &dyn ZonedDevice, used: &mut [u64], random: &mut Fuzzer, size: u64) -> File {
    let mut zone = 1;
    let mut place = |_| {
        if random.below(5) == 0 {
            return None;
        }
        // Runs long enough to be mapped, and single blocks.
        if random.below(20) == 0 {
            zone = 1 + random.below(4);
        }
        let mut block = storage.buffer(BLOCK_SIZE);
        // Lines of numbers, and noise.
        let is_text = size < 80_000;
        block.fill_with(|| match is_text {
            true => random.pick(b"0123456789,,-.\n"),
            false => random.number() as u8,
        });
        let lba = storage
            .geometry()
            .zone_start(ZoneId(zone as u32))
            .plus(used[zone]);
        used[zone] += 1;
        storage.write(lba, &block).expect("room on the device");
        Some((lba, crc32c::crc32c(&block)))
    };
    File {
        size,
        blocks: (0..size.div_ceil(BLOCK_SIZE as u64))
            .map(&mut place)
            .collect(),
    }
}
