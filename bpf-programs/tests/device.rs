//! The objects on the device: linked, validated, compiled and interpreted, they do what the Rust
//! twins do, on files with holes, odd sizes and extents all over the device.

use std::sync::Arc;
use std::time::Duration;

use bpf_programs::generate::Random;
use bpf_programs::{Input, KERNELS, Kernel, Operation};
use csd_vm::program::{HELPERS, LinkLimits, Program};
use csd_vm::request::{self, Failure, FileIdentity, Limits, Piece, Request, SnapshotMap};
use csd_vm::{Activation, Device, DeviceConfig};
use zns_backend::{Geometry, Lba, MemDevice, ZoneId, ZonedDevice};

const BLOCK: usize = 4096;
const SIZES: &[usize] = &[0, 1, 4097, 131_073, 400_001];

fn seed() -> u64 {
    let given = std::env::var("WARREN_SEED").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(20_263)
}

/// A file on the device: where each block is, and its checksum; none for a hole.
struct File {
    size: u64,
    blocks: Vec<Option<(Lba, u32)>>,
}

impl SnapshotMap for File {
    fn size(&self) -> u64 {
        self.size
    }

    fn resolve(&self, first: u64, blocks: u64, out: &mut Vec<Piece>) -> Result<(), String> {
        for block in first..first + blocks {
            out.push(match self.blocks.get(block as usize) {
                Some(&Some((lba, checksum))) => Piece::Mapped {
                    lba,
                    checksums: Arc::new([checksum]),
                },
                _ => Piece::Hole { blocks: 1 },
            });
        }
        Ok(())
    }
}

fn storage() -> Arc<dyn ZonedDevice> {
    let geometry = Geometry {
        block_size: BLOCK as u32,
        zones: 16,
        zone_size: 256,
        zone_capacity: 224,
        max_open: 0,
        max_active: 0,
        max_append: 0,
    };
    Arc::new(MemDevice::new(geometry).expect("there is memory"))
}

/// Writes a file block by block, now to one zone, now to another; zeros are holes. `used` are the
/// blocks written to each zone.
fn write(storage: &dyn ZonedDevice, used: &mut [u64], random: &mut Random, bytes: &[u8]) -> File {
    let mut zone = 1;
    let mut place = |block: &[u8]| {
        let mut padded = storage.buffer(BLOCK);
        padded[..block.len()].copy_from_slice(block);
        // What lies behind the end of the file is nobody's business.
        padded[block.len()..].fill(0xee);
        if block.len() == BLOCK && block.iter().all(|&byte| byte == 0) {
            return None;
        }
        while random.below(4) == 0 || used[zone] == storage.geometry().zone_capacity {
            zone = 1 + zone % (used.len() - 1);
        }
        let start = storage.geometry().zone_start(ZoneId(zone as u32));
        let lba = start.plus(used[zone]);
        used[zone] += 1;
        storage.write(lba, &padded).expect("the device takes it");
        Some((lba, crc32c::crc32c(&padded)))
    };
    File {
        size: bytes.len() as u64,
        blocks: bytes.chunks(BLOCK).map(&mut place).collect(),
    }
}

fn operation(operation: Operation) -> request::Operation {
    match operation {
        Operation::ReadStream => request::Operation::ReadStream,
        Operation::WriteEvent => request::Operation::WriteEvent,
        Operation::WriteStream => request::Operation::WriteStream,
        Operation::ReadEvent => request::Operation::ReadEvent,
    }
}

fn request(input: &Input<'_>, file: &Arc<File>) -> Request {
    Request {
        operation: operation(input.operation),
        offset: input.offset,
        size: input.end() - input.offset + input.data.len() as u64,
        snapshot: Arc::clone(file) as Arc<dyn SnapshotMap>,
        file: FileIdentity::default(),
        data: input.data.to_vec(),
        arguments: input.arguments.into(),
        limits: Limits {
            time: Duration::from_secs(20),
            processor: None,
            heap: 1 << 20,
            output: 64 << 20,
            blocks_read: 1 << 30,
            blocks_appended: 1 << 10,
        },
    }
}

/// Runs the kernel on the device and holds it against its twin.
fn agree(
    device: &Device,
    activation: &Activation,
    kernel: &Kernel,
    input: &Input<'_>,
    file: &Arc<File>,
) {
    let done = device.execute(activation, request(input, file));
    let got = done
        .map(|finished| finished.output)
        .map_err(|(failure, _)| failure);
    let wanted = (kernel.native)(input).map_err(Failure::Returned);
    let Input {
        operation,
        offset,
        size,
        snapshot,
        arguments,
        ..
    } = input;
    assert!(
        got == wanted,
        "{} {operation:?} offset {offset} size {size} of {}, arguments {arguments:x?}, seed {}: \
         {:?}, wanted {:?}",
        kernel.name,
        snapshot.len(),
        seed(),
        got.map(|bytes| bytes.len()),
        wanted.map(|bytes| bytes.len()),
    );
}

fn every_kernel_agrees(interpret: bool) {
    let mut random = Random::new(seed());
    let storage = storage();
    let config = DeviceConfig {
        interpret,
        ..DeviceConfig::default()
    };
    let device = Device::new(Arc::clone(&storage), config).expect("there is a device");
    for kernel in KERNELS {
        for zone in 0..storage.geometry().zones {
            storage.reset(ZoneId(zone)).expect("zones can be reset");
        }
        let mut used = vec![0; storage.geometry().zones as usize];
        let program = device.load(kernel.object);
        let program = program.unwrap_or_else(|error| panic!("{}: {error}", kernel.name));
        let activation = device.activate(&program);
        for &size in SIZES {
            let seed = random.word();
            let bytes = (kernel.generate)(seed, size);
            let file = Arc::new(write(&*storage, &mut used, &mut random, &bytes));
            let none = Arc::new(write(&*storage, &mut used, &mut random, &[]));
            for arguments in (kernel.arguments)(seed) {
                for &operation in kernel.operations {
                    if operation != Operation::ReadStream {
                        let input = Input::data(operation, 1 << 20, &bytes, &arguments);
                        agree(&device, &activation, kernel, &input, &none);
                        continue;
                    }
                    let view = Input::view(&bytes, &arguments);
                    agree(&device, &activation, kernel, &view, &file);
                    let offset = random.below(size as u64 + 1);
                    let part = Input::read(&bytes, offset, random.below(200_000), &arguments);
                    agree(&device, &activation, kernel, &part, &file);
                }
            }
        }
    }
}

#[test]
fn every_compiled_kernel_equals_its_rust_twin() {
    every_kernel_agrees(false);
}

#[test]
fn every_interpreted_kernel_equals_its_rust_twin() {
    every_kernel_agrees(true);
}

#[test]
fn every_object_links_and_validates() {
    for kernel in KERNELS {
        let program = Program::link(kernel.object, &LinkLimits::default());
        let program = program.unwrap_or_else(|error| panic!("{}: {error}", kernel.name));
        let entry = if kernel.name.ends_with("_flfs") {
            "main"
        } else {
            "kernel"
        };
        assert_eq!(program.entry_name(), entry, "{}", kernel.name);
        let theirs = kernel.name.ends_with("_flfs");
        let of_one_abi = program
            .helpers()
            .iter()
            .all(|&number| (number < 32) == theirs);
        assert!(of_one_abi, "{}: {:?}", kernel.name, program.helpers());
    }
}

#[test]
fn headers_and_reference_have_every_helper_by_name_and_number() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = |path: &str| std::fs::read_to_string(root.join(path)).expect("it is there");
    let headers = text("include/warren.h") + &text("include/bpf_helpers_prog.h");
    let reference = text("../docs/kernel-abi.md");
    for helper in HELPERS {
        let declared = headers.lines().find(|line| {
            line.contains(&format!("_HELPER({}, ", helper.number))
                && (line.contains(&format!(" {},", helper.name)))
        });
        assert!(declared.is_some(), "{helper:?} is not in the headers");
        let row = format!("| {} | `", helper.number);
        let described = reference
            .lines()
            .any(|line| line.starts_with(&row) && line.contains(&format!("{}(", helper.name)));
        assert!(described, "{helper:?} is not in the reference");
    }
}
