//! Volumes to test, and shorthands.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use warren_fs::store::{FormatOptions, Store, StoreOptions};
use warren_fs::types::Ino;
use warren_fs::volume::Volume;
use warren_fs::volume::types::{Attributes, Caller, Time};
use warren_fs::{Error, Result};
use zns_backend::{Geometry, MemDevice, ZonedDevice};

pub(crate) const ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 1,
    umask: 0o022,
};

pub(crate) const USER: Caller = Caller {
    uid: 1000,
    gid: 100,
    pid: 2,
    umask: 0o022,
};

pub(crate) const S_IFREG: u32 = libc::S_IFREG;
pub(crate) const K: u64 = 4096;

/// Options without threads in the background: a test decides what happens when.
pub(crate) fn options() -> StoreOptions {
    StoreOptions {
        background: false,
        ..StoreOptions::default()
    }
}

/// A device in memory of `zones` zones of 4 MiB.
pub(crate) fn device(zones: u32) -> Arc<dyn ZonedDevice> {
    let geometry = Geometry {
        block_size: 4096,
        zones,
        zone_size: 1024,
        zone_capacity: 1024,
        max_open: 14,
        max_active: 14,
        max_append: 256,
    };
    Arc::new(MemDevice::new(geometry).expect("a sparse memory device"))
}

/// A new filesystem on `device`.
pub(crate) fn formatted(device: &Arc<dyn ZonedDevice>) -> Volume {
    Store::format(device, &FormatOptions::default()).expect("format");
    Volume::open(Arc::clone(device), &options()).expect("open")
}

/// A new filesystem on a device of its own.
pub(crate) fn fresh_volume() -> Volume {
    formatted(&device(64))
}

/// An empty regular file in the root directory.
pub(crate) fn file(volume: &Volume, name: &str) -> Ino {
    file_in(volume, Ino::ROOT, name)
}

pub(crate) fn file_in(volume: &Volume, parent: Ino, name: &str) -> Ino {
    volume
        .mknod(&ROOT, parent, name.as_bytes(), S_IFREG | 0o644, 0)
        .expect("mknod")
        .ino
}

pub(crate) fn directory(volume: &Volume, name: &str) -> Ino {
    directory_in(volume, Ino::ROOT, name)
}

pub(crate) fn directory_in(volume: &Volume, parent: Ino, name: &str) -> Ino {
    volume
        .mkdir(&ROOT, parent, name.as_bytes(), 0o755)
        .expect("mkdir")
        .ino
}

pub(crate) fn write(volume: &Volume, ino: Ino, offset: u64, data: &[u8]) {
    volume
        .write(ino, offset, data, false, Some(Time::now()))
        .expect("write");
}

/// The whole contents of a file.
pub(crate) fn contents(volume: &Volume, ino: Ino) -> Vec<u8> {
    let size = volume.getattr(ino).expect("getattr").size;
    let mut out = Vec::new();
    volume
        .read(ino, 0, size as usize + 10, &mut out)
        .expect("read");
    assert_eq!(out.len() as u64, size, "a read ends at the end of the file");
    out
}

pub(crate) fn attributes(volume: &Volume, ino: Ino) -> Attributes {
    volume.getattr(ino).expect("getattr")
}

/// Bytes that are the same for the same seed and never zero.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|at| ((at.wrapping_mul(31) + at / 251 + seed) % 255) as u8 + 1)
        .collect()
}

/// The entries of a directory besides "." and "..".
pub(crate) fn list(volume: &Volume, directory: Ino) -> BTreeMap<String, Ino> {
    let mut entries = BTreeMap::new();
    volume
        .readdir(directory, 0, &mut |entry| {
            if entry.name != b"." && entry.name != b".." {
                let name = String::from_utf8_lossy(entry.name).into_owned();
                let twice = entries.insert(name, entry.ino);
                assert!(twice.is_none(), "an entry is listed once");
            }
            ControlFlow::Continue(())
        })
        .expect("readdir");
    entries
}

/// The errno of a failure.
#[track_caller]
pub(crate) fn errno<T>(result: Result<T>) -> i32 {
    match result {
        Ok(_) => panic!("the operation succeeded"),
        Err(error) => Error::errno(&error),
    }
}

/// Closes a volume and mounts what is on its device.
pub(crate) fn remount(volume: Volume) -> Volume {
    let device = Arc::clone(volume.store().device());
    volume.close().expect("close");
    drop(volume);
    Volume::open(device, &options()).expect("open")
}

/// Fills a volume with files named by their number until there is no space, and returns how many.
pub(crate) fn fill(volume: &Volume) -> u64 {
    let data = pattern(1, 1 << 20);
    for number in 0.. {
        let name = format!("fill{number}");
        let made = volume.mknod(&ROOT, Ino::ROOT, name.as_bytes(), S_IFREG | 0o644, 0);
        let written = made.and_then(|made| volume.write(made.ino, 0, &data, false, None));
        match written {
            Ok(()) => {}
            Err(Error::NoSpace) => return number,
            Err(error) => panic!("{error}"),
        }
    }
    unreachable!("a device is finite")
}
