//! A small filesystem of everything there is, a device that shows it damaged, and what can be seen.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use warren_fs::Result;
use warren_fs::store::{FormatOptions, Store, StoreOptions};
use warren_fs::types::{BLOCK_SIZE, Ino};
use warren_fs::volume::Volume;
use warren_fs::volume::types::{Caller, FileKind, Time, XattrFlags};
use zns_backend::{
    DeviceQueue, Geometry, Lba, MemDevice, SyncQueue, ZoneId, ZoneInfo, ZonedDevice,
};

pub(crate) const ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 1,
    umask: 0,
};

pub(crate) fn geometry() -> Geometry {
    Geometry {
        block_size: 4096,
        zones: 24,
        zone_size: 256,
        zone_capacity: 256,
        max_open: 8,
        max_active: 10,
        max_append: 0,
    }
}

pub(crate) fn options(read_only: bool) -> StoreOptions {
    StoreOptions {
        read_only,
        background: false,
        cache_bytes: 1 << 20,
        ..StoreOptions::default()
    }
}

/// What is seen under each path: a description, or that it cannot be read.
pub(crate) type Seen = BTreeMap<String, std::result::Result<String, String>>;

fn describe(volume: &Volume, ino: Ino) -> Result<(FileKind, String)> {
    let attributes = volume.getattr(ino)?;
    let mut text = format!("{attributes:?}");
    match attributes.kind {
        FileKind::Regular => {
            let mut data = Vec::new();
            volume.read(ino, 0, attributes.size as usize, &mut data)?;
            text += &format!(" {} bytes {:08x}", data.len(), crc32c(&data));
        }
        FileKind::Symlink => text += &format!(" -> {:?}", volume.readlink(ino)?),
        _ => {}
    }
    for name in volume.listxattr(&ROOT, ino)?.split(|byte| *byte == 0) {
        if !name.is_empty() {
            text += &format!(" {name:?}={:08x}", crc32c(&volume.getxattr(ino, name)?));
        }
    }
    Ok((attributes.kind, text))
}

/// FNV-1a: nothing the filesystem itself computes.
fn crc32c(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Everything that can be seen from the root on.
pub(crate) fn see(volume: &Volume) -> Seen {
    let mut seen = Seen::new();
    let mut pending = vec![(String::from("/"), Ino::ROOT)];
    // A forged directory may contain itself; what has been seen by then is enough.
    while let Some((path, ino)) = pending.pop()
        && seen.len() < 5_000
    {
        let described = describe(volume, ino);
        if !matches!(described, Ok((kind, _)) if kind != FileKind::Directory) {
            let mut names = Vec::new();
            let listed = volume.readdir(ino, 0, &mut |entry| {
                if entry.name != b"." && entry.name != b".." {
                    names.push((String::from_utf8_lossy(entry.name).into_owned(), entry.ino));
                }
                if names.len() < 10_000 {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            });
            let list = match listed {
                Ok(()) => {
                    pending.extend(
                        names
                            .iter()
                            .map(|(name, ino)| (format!("{path}{name}/"), *ino)),
                    );
                    Ok(format!("{} entries", names.len()))
                }
                Err(error) => Err(error.to_string()),
            };
            seen.insert(format!("{path}*"), list);
        }
        let text = described
            .map(|(_, text)| text)
            .map_err(|error| error.to_string());
        seen.insert(path, text);
    }
    seen
}

/// Whether nothing in `seen` contradicts `truth`: what is readable is right, and what is missing
/// lies in a directory that cannot be listed.
pub(crate) fn agrees(seen: &Seen, truth: &Seen) -> bool {
    let right = |(path, found): (&String, &std::result::Result<String, String>)| match found {
        Ok(_) => truth.get(path) == Some(found),
        Err(_) => true,
    };
    let hidden = |path: &str| {
        seen.iter().any(|(list, found)| {
            list.strip_suffix('*')
                .is_some_and(|directory| found.is_err() && path.starts_with(directory))
        })
    };
    seen.iter().all(right)
        && truth
            .keys()
            .all(|path| seen.contains_key(path) || hidden(path))
}

/// A filesystem with files of all sorts, after several checkpoints and collections.
pub(crate) fn populate(volume: &Volume) {
    let now = Some(Time::now());
    let node = |parent, name: &str| {
        volume
            .mknod(&ROOT, parent, name.as_bytes(), libc::S_IFREG | 0o644, 0)
            .unwrap()
            .ino
    };
    let bytes = |seed: u8, len: usize| -> Vec<u8> {
        (0..len)
            .map(|i| (i / 7) as u8 ^ (i >> 9) as u8 ^ seed)
            .collect()
    };
    let inline = node(Ino::ROOT, "inline");
    volume.write(inline, 0, b"a few bytes", false, now).unwrap();
    let dir = volume
        .mkdir(&ROOT, Ino::ROOT, b"directory", 0o755)
        .unwrap()
        .ino;
    let many = volume.mkdir(&ROOT, dir, b"many", 0o755).unwrap().ino;
    for i in 0..150 {
        let ino = node(many, &format!("entry number {i}"));
        volume
            .write(ino, 0, &bytes(i as u8, i * 9), false, now)
            .unwrap();
    }
    volume.store().checkpoint().unwrap();
    for i in 0..4 {
        let ino = node(dir, &format!("large{i}"));
        volume
            .write(ino, 0, &bytes(i, 150_000), false, now)
            .unwrap();
        volume
            .write(ino, 400_000, &bytes(i + 9, 9_000), false, now)
            .unwrap();
    }
    volume.store().checkpoint().unwrap();
    for round in 0..8 {
        let ino = volume.lookup(dir, b"large0").unwrap().ino;
        volume
            .write(ino, 8192, &bytes(round, 120_000), false, now)
            .unwrap();
    }
    volume.symlink(&ROOT, dir, b"link", b"../inline").unwrap();
    volume
        .setxattr(
            &ROOT,
            inline,
            b"user.short",
            b"value",
            XattrFlags::default(),
        )
        .unwrap();
    volume
        .setxattr(
            &ROOT,
            inline,
            b"user.long",
            &bytes(1, 5_000),
            XattrFlags::default(),
        )
        .unwrap();
    volume.link(inline, dir, b"hard").unwrap();
    volume.unlink(&ROOT, many, b"entry number 7").unwrap();
    volume.store().collect(2).unwrap();
    volume.store().checkpoint().unwrap();
    volume.sync().unwrap();
}

/// A device with the populated filesystem, closed cleanly, and what is on it.
pub(crate) fn clean_image() -> (MemDevice, Seen) {
    let device = MemDevice::new(geometry()).unwrap();
    let shared: Arc<dyn ZonedDevice> = Arc::new(device.clone());
    Store::format(&shared, &FormatOptions::default()).unwrap();
    let volume = Volume::open(shared, &options(false)).unwrap();
    populate(&volume);
    volume.close().unwrap();
    let seen = see(&volume);
    (device, seen)
}

/// One that was left open after `syncs` changes, each synced; and what was seen after each.
pub(crate) fn unclean_image(syncs: usize) -> (MemDevice, Vec<Seen>) {
    let (device, before) = clean_image();
    let volume = Volume::open(Arc::new(device.clone()), &options(false)).unwrap();
    let mut states = vec![before];
    for i in 0..syncs {
        let name = format!("logged{i}");
        let ino = volume
            .mknod(&ROOT, Ino::ROOT, name.as_bytes(), libc::S_IFREG | 0o600, 0)
            .unwrap()
            .ino;
        volume
            .write(ino, 0, &vec![i as u8 + 1; 10_000], false, Some(Time::now()))
            .unwrap();
        volume.sync().unwrap();
        states.push(see(&volume));
    }
    volume.store().latch_read_only("the process died");
    (device, states)
}

/// A device as another shows it, with one bit inverted. Takes no writes.
#[derive(Clone)]
pub(crate) struct Damaged {
    pub(crate) device: MemDevice,
    pub(crate) lba: Lba,
    pub(crate) bit: usize,
}

impl ZonedDevice for Damaged {
    fn geometry(&self) -> &Geometry {
        self.device.geometry()
    }
    fn report(&self, first: ZoneId, count: u32) -> zns_backend::Result<Vec<ZoneInfo>> {
        self.device.report(first, count)
    }
    fn read(&self, lba: Lba, buf: &mut [u8]) -> zns_backend::Result<()> {
        self.device.read(lba, buf)?;
        let blocks = (buf.len() / BLOCK_SIZE) as u64;
        if (lba.0..lba.0 + blocks).contains(&self.lba.0) {
            let at = (self.lba.0 - lba.0) as usize * BLOCK_SIZE + self.bit / 8;
            buf[at] ^= 1 << (self.bit % 8);
        }
        Ok(())
    }
    fn write(&self, lba: Lba, _: &[u8]) -> zns_backend::Result<()> {
        panic!("a read-only filesystem writes at {lba}");
    }
    fn append(&self, zone: ZoneId, _: &[u8]) -> zns_backend::Result<Lba> {
        panic!("a read-only filesystem writes to zone {zone}");
    }
    fn reset(&self, zone: ZoneId) -> zns_backend::Result<()> {
        panic!("a read-only filesystem resets zone {zone}");
    }
    fn finish(&self, zone: ZoneId) -> zns_backend::Result<()> {
        panic!("a read-only filesystem finishes zone {zone}");
    }
    fn open(&self, _: ZoneId) -> zns_backend::Result<()> {
        Ok(())
    }
    fn close(&self, _: ZoneId) -> zns_backend::Result<()> {
        Ok(())
    }
    fn flush(&self) -> zns_backend::Result<()> {
        Ok(())
    }
    fn queue(&self, _: u32) -> zns_backend::Result<Box<dyn DeviceQueue>> {
        Ok(Box::new(SyncQueue::new(Arc::new(self.clone()))))
    }
    fn describe(&self) -> String {
        "damaged".into()
    }
}

/// A device with the same contents, for changing; block `at` goes through `change` on its way.
pub(crate) fn copy(device: &MemDevice, change: &mut dyn FnMut(Lba, &mut [u8])) -> MemDevice {
    let copy = MemDevice::new(*device.geometry()).unwrap();
    for info in device.report(ZoneId(0), device.geometry().zones).unwrap() {
        let start = device.geometry().zone_start(info.zone);
        for offset in 0..info.write_pointer {
            let mut block = vec![0; BLOCK_SIZE];
            device.read(start.plus(offset), &mut block).unwrap();
            change(start.plus(offset), &mut block);
            copy.write(start.plus(offset), &block).unwrap();
        }
    }
    copy
}

/// Addresses of all blocks that are written.
pub(crate) fn written(device: &MemDevice) -> Vec<Lba> {
    let geometry = *device.geometry();
    let zones = device.report(ZoneId(0), geometry.zones).unwrap();
    let blocks = |info: ZoneInfo| {
        let start = geometry.zone_start(info.zone);
        (0..info.write_pointer).map(move |offset| start.plus(offset))
    };
    zones.into_iter().flat_map(blocks).collect()
}
