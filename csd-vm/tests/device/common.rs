//! What the tests share: kernels compiled from C, files on small devices, requests.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use std::io::Write;

use csd_vm::request::{FileIdentity, Limits, Operation, Piece, Request, SnapshotMap};
use csd_vm::{Activation, Device, DeviceConfig, Finished};
use zns_backend::{Geometry, Lba, MemDevice, ZoneId, ZonedDevice};

pub(crate) const BLOCK: usize = 4096;

/// Compiles a kernel from its C source.
pub(crate) fn compile(source: &str) -> Vec<u8> {
    let include = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/include");
    let mut clang = Command::new("clang")
        .args(["-O2", "-target", "bpf", "-ffreestanding", "-fno-builtin"])
        .args([
            "-Wno-everything",
            "-I",
            include,
            "-x",
            "c",
            "-c",
            "-",
            "-o",
            "-",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("clang runs");
    let mut input = clang.stdin.take().expect("piped");
    input.write_all(source.as_bytes()).expect("clang reads");
    drop(input);
    let output = clang.wait_with_output().expect("clang ends");
    assert!(output.status.success(), "clang refused:\n{source}");
    output.stdout
}

/// A kernel of the Warren ABI with this body.
pub(crate) fn warren(body: &str) -> Vec<u8> {
    compile(&format!(
        "#include <warren.h>\nint main(const struct warren_request *r) {{ {body} }}"
    ))
}

/// A kernel that emits the requested range through the window.
pub(crate) const PASSTHROUGH: &str = "
    const u8 *p;
    u64 done = 0;
    while (done < r->size) {
        s64 n = warren_map(r->offset + done, r->size - done, (const void **)&p);
        if (n <= 0) return n;
        warren_emit(p, n);
        done += n;
    }
    return 0;";

pub(crate) fn geometry() -> Geometry {
    Geometry {
        block_size: 4096,
        zones: 64,
        zone_size: 256,
        zone_capacity: 224,
        max_open: 0,
        max_active: 0,
        max_append: 0,
    }
}

pub(crate) fn mem() -> Arc<dyn ZonedDevice> {
    Arc::new(MemDevice::new(geometry()).expect("memory"))
}

/// A snapshot whose blocks were written by [`Writer`].
pub(crate) struct Snapshot {
    pub(crate) size: u64,
    pub(crate) blocks: Vec<Option<(Lba, u32)>>,
}

impl SnapshotMap for Snapshot {
    fn size(&self) -> u64 {
        self.size
    }

    fn resolve(&self, first: u64, blocks: u64, out: &mut Vec<Piece>) -> Result<(), String> {
        let at = |block: u64| *self.blocks.get(block as usize).unwrap_or(&None);
        let mut block = first;
        while block < first + blocks {
            let mut next = block + 1;
            match at(block) {
                None => {
                    while next < first + blocks && at(next).is_none() {
                        next += 1;
                    }
                    out.push(Piece::Hole {
                        blocks: next - block,
                    });
                }
                Some((lba, sum)) => {
                    let mut sums = vec![sum];
                    while next < first + blocks
                        && let Some((other, sum)) = at(next)
                        && other == lba.plus(next - block)
                    {
                        sums.push(sum);
                        next += 1;
                    }
                    out.push(Piece::Mapped {
                        lba,
                        checksums: sums.into(),
                    });
                }
            }
            block = next;
        }
        Ok(())
    }
}

/// How a test file is laid out.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    /// As few extents as zones allow.
    Contiguous,
    /// Extents of changing lengths, in many zones, from 1 to 40 blocks.
    Fragmented,
    /// Fragmented, and blocks of zeros are holes.
    Sparse,
}

/// Writes test files to a device.
pub(crate) struct Writer {
    device: Arc<dyn ZonedDevice>,
    /// Blocks written to each zone.
    used: Vec<u64>,
}

impl Writer {
    /// Leaves zone 0 alone, as filesystems do.
    pub(crate) fn new(device: &Arc<dyn ZonedDevice>) -> Writer {
        Writer {
            device: Arc::clone(device),
            used: vec![0; device.geometry().zones as usize],
        }
    }

    pub(crate) fn write(&mut self, data: &[u8], shape: Shape) -> Arc<Snapshot> {
        let mut padded = data.to_vec();
        // The tail past the end of the file holds what nobody may see.
        padded.resize(data.len().next_multiple_of(BLOCK), 0xee);
        let mut blocks = Vec::new();
        let mut extent = 0;
        while blocks.len() * BLOCK < padded.len() {
            let rest = &padded[blocks.len() * BLOCK..];
            let hole = matches!(shape, Shape::Sparse) && rest[..BLOCK].iter().all(|b| *b == 0);
            if hole {
                blocks.push(None);
                continue;
            }
            let wanted = match shape {
                Shape::Contiguous => u64::MAX,
                Shape::Fragmented => [1, 40, 2, 17, 16, 3][extent % 6],
                Shape::Sparse => 1,
            };
            let zone = match shape {
                Shape::Contiguous => self.zone_with_room(1),
                _ => self.zone_with_room(1 + extent % 5),
            };
            self.write_extent(zone, rest, wanted, &mut blocks);
            extent += 1;
        }
        Arc::new(Snapshot {
            size: data.len() as u64,
            blocks,
        })
    }

    fn zone_with_room(&self, from: usize) -> usize {
        let capacity = self.device.geometry().zone_capacity;
        (from..self.used.len())
            .find(|zone| self.used[*zone] < capacity)
            .expect("room on the device")
    }

    fn write_extent(
        &mut self,
        zone: usize,
        rest: &[u8],
        wanted: u64,
        blocks: &mut Vec<Option<(Lba, u32)>>,
    ) {
        let room = self.device.geometry().zone_capacity - self.used[zone];
        let count = wanted.min(room).min((rest.len() / BLOCK) as u64);
        let bytes = &rest[..count as usize * BLOCK];
        let mut buffer = self.device.buffer(bytes.len());
        buffer.copy_from_slice(bytes);
        let lba = self.device.geometry().zone_start(ZoneId(zone as u32));
        let lba = lba.plus(self.used[zone]);
        self.device.write(lba, &buffer).expect("written");
        self.used[zone] += count;
        for (index, block) in bytes.chunks(BLOCK).enumerate() {
            blocks.push(Some((lba.plus(index as u64), crc32c::crc32c(block))));
        }
    }
}

pub(crate) fn limits() -> Limits {
    Limits {
        time: Duration::from_secs(5),
        processor: None,
        heap: 64 << 20,
        output: 64 << 20,
        blocks_read: 1 << 30,
        blocks_appended: 1 << 12,
    }
}

/// A read of `[offset, offset + size)`.
pub(crate) fn read(snapshot: &Arc<Snapshot>, offset: u64, size: u64) -> Request {
    Request {
        operation: Operation::ReadStream,
        offset,
        size,
        snapshot: Arc::clone(snapshot) as Arc<dyn SnapshotMap>,
        file: FileIdentity {
            inode: 77,
            parent: 1,
        },
        data: Vec::new(),
        arguments: Arc::new([]),
        limits: limits(),
    }
}

/// A write of `data` at `offset`.
pub(crate) fn write(
    snapshot: &Arc<Snapshot>,
    operation: Operation,
    offset: u64,
    data: &[u8],
) -> Request {
    Request {
        operation,
        data: data.to_vec(),
        ..read(snapshot, offset, data.len() as u64)
    }
}

/// Bytes that differ from place to place.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[at % 3])
        .collect()
}

/// A device, a file on it, and one activation of a kernel.
pub(crate) struct Bench {
    pub(crate) device: Arc<Device>,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) activation: Activation,
}

impl Bench {
    pub(crate) fn new(object: &[u8], data: &[u8]) -> Bench {
        Bench::with(object, data, Shape::Contiguous, DeviceConfig::default())
    }

    pub(crate) fn with(object: &[u8], data: &[u8], shape: Shape, config: DeviceConfig) -> Bench {
        let storage = mem();
        let snapshot = Writer::new(&storage).write(data, shape);
        let device = Device::new(storage, config).expect("device");
        let program = device.load(object).expect("loads");
        let activation = device.activate(&program);
        Bench {
            device,
            snapshot,
            activation,
        }
    }

    pub(crate) fn read(&self, offset: u64, size: u64) -> Finished {
        self.run(read(&self.snapshot, offset, size))
    }

    pub(crate) fn run(&self, request: Request) -> Finished {
        self.device
            .execute(&self.activation, request)
            .expect("the kernel succeeds")
    }

    pub(crate) fn fail(&self, request: Request) -> csd_vm::request::Failure {
        self.device
            .execute(&self.activation, request)
            .expect_err("the kernel fails")
            .0
    }
}

/// Configurations that run every program the same way.
pub(crate) fn both_engines() -> [DeviceConfig; 2] {
    [false, true].map(|interpret| DeviceConfig {
        interpret,
        ..DeviceConfig::default()
    })
}
