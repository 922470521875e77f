//! Image files: truncated, grown, foreign, of garbage, with inverted bits in header and zone table.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use warren_fs::store::{FormatOptions, Store};
use warren_fs::volume::Volume;
use zns_backend::{FileDevice, ZonedDevice};

use crate::common::{Seen, agrees, geometry, options, populate, see};

fn image(path: &std::path::Path) -> Seen {
    let device: Arc<dyn ZonedDevice> =
        Arc::new(FileDevice::create(path, &geometry(), false).unwrap());
    Store::format(&device, &FormatOptions::default()).unwrap();
    let volume = Volume::open(device, &options(false)).unwrap();
    populate(&volume);
    volume.close().unwrap();
    see(&volume)
}

/// What is seen of an image file, if it can be opened.
fn look(path: &std::path::Path) -> Option<Seen> {
    let device = FileDevice::open(path, true).ok()?;
    let volume = Volume::open(Arc::new(device), &options(true)).ok()?;
    Some(see(&volume))
}

#[test]
fn every_bit_of_header_and_zone_table_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let truth = image(&path);
    assert!(look(&path).is_some_and(|seen| seen == truth));
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let table = 4096 * 8..(4096 + 16 * u64::from(geometry().zones)) * 8;
    for bit in (0..96 * 8).chain(table) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, bit / 8).unwrap();
        let flipped = [byte[0] ^ 1 << (bit % 8)];
        file.write_all_at(&flipped, bit / 8).unwrap();
        assert!(FileDevice::open(&path, true).is_err(), "bit {bit}");
        file.write_all_at(&byte, bit / 8).unwrap();
    }
}

#[test]
fn truncated_and_grown_images_are_refused_or_show_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let truth = image(&path);
    let whole = fs::read(&path).unwrap();
    let cut = dir.path().join("cut");
    let lengths =
        (0..24)
            .map(|i| whole.len() * i / 24)
            .chain([1, 91, 92, 4095, 4096, 4097, whole.len() - 1]);
    for len in lengths {
        fs::write(&cut, &whole[..len]).unwrap();
        assert!(
            look(&cut).is_none_or(|seen| agrees(&seen, &truth)),
            "{len} bytes"
        );
    }
    for more in [1, 4096, 1 << 20] {
        fs::write(&cut, &whole).unwrap();
        fs::OpenOptions::new()
            .write(true)
            .open(&cut)
            .unwrap()
            .set_len((whole.len() + more) as u64)
            .unwrap();
        assert!(
            look(&cut).is_none_or(|seen| agrees(&seen, &truth)),
            "{more} bytes more"
        );
    }
}

#[test]
fn foreign_files_and_garbage_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for len in [0, 1, 512, 4096, 10_000, 1 << 20] {
        let mut bytes = vec![0; len];
        fs::write(&path, &bytes).unwrap();
        assert!(look(&path).is_none());
        rng.fill_bytes(&mut bytes);
        fs::write(&path, &bytes).unwrap();
        assert!(look(&path).is_none());
        for magic in [&b"WarrenZD\x01\0\0\0"[..], b"WARRENFS", b"\x7fELF"] {
            if len >= magic.len() {
                bytes[..magic.len()].copy_from_slice(magic);
                fs::write(&path, &bytes).unwrap();
                assert!(look(&path).is_none());
            }
        }
    }
    assert!(look(dir.path()).is_none());
}

#[test]
fn the_program_says_in_one_line_what_is_wrong_with_an_image() {
    let dir = tempfile::tempdir().unwrap();
    let warren = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_warren"));
        command
            .args(arguments)
            .current_dir(dir.path())
            .output()
            .unwrap()
    };
    assert!(warren(&["mkfs", "image", "--size", "64M"]).status.success());
    let path = dir.path().join("image");
    let whole = fs::read(&path).unwrap();
    // A byte of the image's header, of its zone table, of the superblock; and half of it gone.
    for (what, at) in [
        ("header", 40),
        ("zone table", 4096 + 17),
        ("superblock", (1 << 20) + 33),
    ] {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        fs::write(&path, &bytes).unwrap();
        complains(&warren, what);
    }
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    complains(&warren, "truncated");
}

fn complains(warren: &dyn Fn(&[&str]) -> std::process::Output, what: &str) {
    for arguments in [
        &["info", "image"][..],
        &["fsck", "image"],
        &["zones", "image"],
    ] {
        let output = warren(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            output.status.code(),
            Some(1),
            "{what}, {arguments:?}: {stderr}"
        );
        assert_eq!(stderr.lines().count(), 1, "{what}, {arguments:?}: {stderr}");
        assert!(
            stderr.starts_with("warren: image: "),
            "{what}, {arguments:?}: {stderr}"
        );
    }
}
