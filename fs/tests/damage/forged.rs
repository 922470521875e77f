//! Images whose checksums are right and whose contents are hostile. None makes the filesystem
//! panic, run for ever or write where it must not; what cannot be is refused.

use std::sync::Arc;

use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use warren_fs::catalog::{Key, Kind};
use warren_fs::format::checkpoint::{Checkpoint, ZoneUse};
use warren_fs::format::chunk::{
    CHUNK_BLOCKS, Class, Identity, Op, Payload, Span, Transaction, seal,
};
use warren_fs::format::record::InodeRecord;
use warren_fs::store::Store;
use warren_fs::store::extent::{Backing, Extent};
use warren_fs::types::{BLOCK_SIZE, Ino, Lba, Sequence};
use warren_fs::volume::Volume;
use warren_fs::volume::snapshot::Access;
use warren_fs::volume::types::{Credentials, SetAttributes, Time, XattrFlags};
use warren_fs::{Error, fsck};
use zns_backend::{MemDevice, ZoneId, ZoneState, ZonedDevice};

use crate::common::{ROOT, clean_image, copy, geometry, options, see, written};

/// Does to a filesystem what its users do, with no regard for answers.
fn use_it(volume: &Volume) {
    see(volume);
    let mut out = Vec::new();
    for ino in [Ino(0), Ino(1), Ino(2), Ino(3), Ino(4), Ino(u64::MAX)] {
        let _ = volume.read(ino, u64::MAX - 5, 4096, &mut out);
        let _ = volume.read(ino, 4090, 1 << 16, &mut out);
        let _ = volume.write(ino, 5000, b"written", true, Some(Time::now()));
        let _ = volume.fallocate(&ROOT, ino, 4096, 40_000, 0);
        let _ = volume.fallocate(&ROOT, ino, 100, 50_000, 3);
        let _ = volume.setxattr(&ROOT, ino, b"user.name", &[1; 2000], XattrFlags::default());
        let _ = volume.removexattr(&ROOT, ino, b"user.name");
        let set = SetAttributes {
            size: Some(70_000),
            ..SetAttributes::default()
        };
        let _ = volume.setattr(&ROOT, ino, &set);
        let _ = volume.copy_range(ino, 0, Ino(3), 100, 9000);
        let _ = volume.mknod(&ROOT, ino, b"new", libc::S_IFREG | 0o600, 0);
        let _ = volume.link(ino, Ino::ROOT, b"linked");
        let _ = volume.unlink(&ROOT, ino, b"new");
        let _ = volume.rmdir(&ROOT, Ino::ROOT, b"directory");
    }
    let _ = volume.sync();
    let _ = volume.store().checkpoint();
    let _ = volume.store().collect(3);
    let _ = volume.store().zone_table();
    volume.statfs();
    let _ = volume.close();
}

/// Opens a forged image in every way; whether it was accepted.
fn try_it(device: &MemDevice) -> bool {
    let shared: Arc<dyn ZonedDevice> = Arc::new(device.clone());
    let readable = Volume::open(Arc::clone(&shared), &options(true)).map(|volume| see(&volume));
    let checked = fsck::check(Arc::clone(&shared), true, &|_, _| {});
    assert_eq!(readable.is_ok(), checked.is_ok());
    let writable = Volume::open(shared, &options(false)).map(|volume| use_it(&volume));
    readable.is_ok() || writable.is_ok()
}

fn fsid(device: &MemDevice) -> [u8; 16] {
    let store = Store::open(Arc::new(device.clone()), &options(true)).unwrap();
    store.superblock().fsid
}

/// A copy of the image whose newest checkpoint went through `change`, all older ones gone.
fn with_checkpoint(device: &MemDevice, change: impl Fn(&mut Checkpoint)) -> MemDevice {
    let fsid = fsid(device);
    let newest = written(device)
        .into_iter()
        .rfind(|lba| lba.0 < 256)
        .unwrap();
    copy(device, &mut |lba, block| {
        if (1..512).contains(&lba.0) && Checkpoint::parse_trailer(block).is_some() {
            let mut checkpoint = Checkpoint::parse(block, &fsid, &geometry()).unwrap();
            change(&mut checkpoint);
            let forged = checkpoint.to_blocks(&fsid, checkpoint.next_sequence);
            block.copy_from_slice(if lba == newest {
                &forged
            } else {
                &[0; BLOCK_SIZE]
            });
        }
    })
}

type Change = fn(&mut Checkpoint);

#[test]
fn checkpoints_that_cannot_be_are_refused() {
    let (device, _) = clean_image();
    let changes: Vec<(&str, Change)> = vec![
        ("root beyond the device", |c| c.root_lba = u64::MAX),
        ("root in an anchor", |c| c.root_lba = 0),
        ("root in the void", |c| c.root_lba = 23 * 256 + 255),
        ("no levels", |c| c.root_height = 0),
        ("levels", |c| c.root_height = u8::MAX),
        ("sequence", |c| c.next_sequence = u64::MAX),
        ("number", |c| c.number = u64::MAX),
        ("next inode", |c| c.next_ino = u64::MAX),
        ("reserved", |c| c.reserved = u64::MAX),
        ("too few zones", |c| c.zones.truncate(5)),
        ("no zones", |c| c.zones.clear()),
        ("too many zones", |c| c.zones.extend(c.zones.clone())),
        ("pointer", |c| c.zones[5].pointer = 257),
        ("greatest pointer", |c| c.zones[5].pointer = u64::MAX),
        ("live", |c| c.zones[5].live = u64::MAX),
        ("live beyond the pointer", |c| {
            c.zones[5].live = c.zones[5].pointer + 1
        }),
        ("an anchor in use", |c| {
            c.zones[1].usage = ZoneUse::Open(Class::Hot)
        }),
        ("a third anchor", |c| c.zones[7].usage = ZoneUse::Anchor),
        ("age", |c| c.zones[5].age = u64::MAX),
    ];
    for (what, change) in changes {
        assert!(!try_it(&with_checkpoint(&device, change)), "{what}");
    }
    assert!(try_it(&with_checkpoint(&device, |_| {})));
}

#[test]
fn checkpoints_that_lie_do_no_harm() {
    let (device, _) = clean_image();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for turn in 0..60 {
        let (a, b) = (rng.random_range(0..24), rng.random_range(0..24));
        let (n, m) = (rng.random_range(0..256), rng.random_range(0..=7));
        let forged = with_checkpoint(&device, |c| match m {
            0 => c.zones.swap(a, b),
            1 => c.zones[a].live = n.min(c.zones[a].pointer),
            2 => c.zones[a].usage = ZoneUse::Free,
            3 => c.zones[a].usage = ZoneUse::Open(Class::Node),
            4 => c.zones[a].usage = ZoneUse::Sealed(Class::Hot),
            5 => c.zones[a].pointer = n,
            6 => c.root_lba = (a as u64) * 256 + n,
            _ => c.next_sequence = n,
        });
        println!("turn {turn}: {a} {b} {n} {m}");
        try_it(&forged);
    }
}

#[test]
fn zones_that_contradict_the_checkpoint_are_errors_not_wrong_data() {
    let (device, truth) = clean_image();
    for zone in (0..24).map(ZoneId) {
        let changes: [&dyn Fn(&MemDevice); 4] = [
            &|copy| copy.reset(zone).unwrap(),
            &|copy| copy.fail_zone(zone, ZoneState::Offline).unwrap(),
            &|copy| copy.fail_zone(zone, ZoneState::ReadOnly).unwrap(),
            &|copy| drop(copy.append(zone, &[7; BLOCK_SIZE])),
        ];
        for change in changes {
            let forged = copy(&device, &mut |_, _| {});
            change(&forged);
            let volume = Volume::open(Arc::new(forged.clone()), &options(true));
            if let Ok(volume) = volume {
                assert!(crate::common::agrees(&see(&volume), &truth), "zone {zone}");
            }
            try_it(&forged);
        }
    }
}

/// A copy of the image with one more chunk in a zone that is free.
fn with_chunk(
    device: &MemDevice,
    payload: &[Payload],
    ops: Vec<Op>,
    forge: impl Fn(&mut Identity),
) -> MemDevice {
    let store = Store::open(Arc::new(device.clone()), &options(true)).unwrap();
    let zones = store.zone_table().unwrap();
    let free = zones
        .iter()
        .find(|zone| zone.class == "free" && zone.write_pointer == 0)
        .unwrap();
    let lba = geometry().zone_start(ZoneId(free.zone));
    let mut identity = Identity {
        sequence: Sequence(store.info().sequence),
        durable: Sequence(0),
        class: Class::Hot,
        span: Span::default(),
        lba,
        origin: lba,
    };
    forge(&mut identity);
    let transaction = Transaction {
        next_ino: if ops.is_empty() { u64::MAX } else { 1000 },
        ops,
    };
    let config = bincode::config::standard()
        .with_little_endian()
        .with_fixed_int_encoding();
    let bytes = bincode::serde::encode_to_vec(&transaction, config).unwrap();
    let mut buffer = vec![0; CHUNK_BLOCKS as usize * BLOCK_SIZE];
    let crcs = vec![crc32c::crc32c(&[0; BLOCK_SIZE])];
    let blocks = seal(
        &mut buffer,
        &fsid(device),
        &identity,
        payload,
        &crcs,
        (1, &bytes),
    );
    let forged = copy(device, &mut |_, _| {});
    forged
        .write(lba, &buffer[..blocks as usize * BLOCK_SIZE])
        .unwrap();
    forged
}

fn mapped(start: u64, lba: u64, len: u64) -> (Key, Vec<u8>) {
    let backing = Backing::Mapped {
        lba: Lba(lba),
        crcs: vec![0; len as usize],
    };
    let extent = Extent {
        start,
        len,
        backing,
    };
    (Key::new(Ino(3), Kind::Extent, start), extent.encode())
}

fn put((key, value): (Key, Vec<u8>)) -> Op {
    Op::Put {
        key: key.into(),
        value,
    }
}

#[test]
fn chunks_with_hostile_contents_do_no_harm() {
    let (device, _) = clean_image();
    let reserved = |start, len: u64| {
        let mut value = vec![2];
        value.extend_from_slice(&len.to_le_bytes());
        (Key::new(Ino(3), Kind::Extent, start), value)
    };
    let range = |from, to| Op::DeleteRange {
        from: Key::into(from),
        to: Key::into(to),
    };
    let ops: Vec<Vec<Op>> = vec![
        vec![],
        vec![put(mapped(0, u64::MAX - 3, 4))],
        vec![put(mapped(0, 5, 4))],
        vec![put(mapped(0, 24 * 256, 4))],
        vec![put(mapped(0, 10 * 256 + 254, 4))],
        vec![put(mapped(0, 1 << 41 | 600, 4))],
        vec![put(mapped(u64::MAX, 600, 100))],
        vec![put(reserved(0, u64::MAX)), put(reserved(5, u64::MAX))],
        vec![put(reserved(u64::MAX, 5))],
        vec![put((
            Key::new(Ino(3), Kind::Extent, 0),
            vec![1, 255, 255, 255, 255, 0, 3, 0, 0, 0, 0, 0, 0],
        ))],
        vec![put((Key::new(Ino(3), Kind::Extent, 0), vec![]))],
        vec![put((Key::new(Ino(1), Kind::Inode, 0), vec![0x11; 2000]))],
        vec![range(Key::MAX, Key::MIN)],
        vec![range(Key::MIN, Key::MAX)],
        vec![range(
            Key::new(Ino(1), Kind::Inode, 0),
            Key::new(Ino(1), Kind::Inode, 0),
        )],
    ];
    let data = |first, count| Payload::Data {
        ino: Ino(3),
        first,
        count,
    };
    let payloads = [data(0, 1), data(u64::MAX, 1), data(0, u32::MAX), data(0, 0)];
    for (turn, ops) in ops.iter().enumerate() {
        println!("operations {turn}");
        try_it(&with_chunk(&device, &payloads[..1], ops.clone(), |_| {}));
    }
    let harmless = || vec![put((Key::new(Ino(9), Kind::Orphan, 0), vec![9]))];
    for payload in payloads {
        println!("{payload:?}");
        try_it(&with_chunk(&device, &[payload], harmless(), |_| {}));
        try_it(&with_chunk(&device, &[payload; 3], harmless(), |_| {}));
    }
    // The forgery is good enough to be believed.
    let believed = with_chunk(&device, &payloads[..1], harmless(), |_| {});
    let store = Store::open(Arc::new(believed), &options(true)).unwrap();
    assert_eq!(store.stats().groups["log"]["chunks_replayed"], 1);
    let forgeries: [fn(&mut Identity); 8] = [
        |id| id.sequence = Sequence(u64::MAX),
        |id| id.sequence = Sequence((1 << 62) - 1),
        |id| id.durable = Sequence(u64::MAX),
        |id| id.durable = id.sequence,
        |id| id.origin = Lba(u64::MAX),
        |id| id.origin = Lba(0),
        |id| id.origin = Lba(id.origin.0 + 1),
        |id| id.class = Class::Node,
    ];
    for (turn, forge) in forgeries.into_iter().enumerate() {
        println!("identity {turn}");
        try_it(&with_chunk(&device, &payloads[..1], harmless(), forge));
    }
}

#[test]
fn records_with_hostile_values_do_no_harm() {
    let (device, _) = clean_image();
    let kinds = [
        Kind::Inode,
        Kind::Entry,
        Kind::Extent,
        Kind::Inline,
        Kind::Xattr,
        Kind::Orphan,
    ];
    for seed in 0..120 {
        println!("seed {seed}");
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let forged = copy(&device, &mut |_, _| {});
        let store = Store::open(Arc::new(forged.clone()), &options(false)).unwrap();
        let mut records = Vec::new();
        store
            .check(
                &mut |key, value| records.push((key, value.to_vec())),
                &|_, _| {},
            )
            .unwrap();
        let mut txn = store.begin().unwrap();
        let mut outcome = Ok(());
        for _ in 0..6 {
            let (mut key, mut value) = records[rng.random_range(0..records.len())].clone();
            match rng.random_range(0..6) {
                0 => rng.fill_bytes(&mut value),
                1 => value.truncate(value.len() / 2),
                2 => value.fill(0xff),
                3 => key.ino = Ino([0, 1, 2, u64::MAX][rng.random_range(0..4)]),
                4 => key.offset = [0, 1, u64::MAX, 1 << 40][rng.random_range(0..4)],
                _ => key = Key::new(key.ino, kinds[rng.random_range(0..6)], key.offset),
            }
            // All but the tag: what passes the first check.
            if rng.random() && value.len() > 2 {
                let at = rng.random_range(1..value.len());
                value[at] = [0, 1, 127, 251, 252, 253, 255][rng.random_range(0..7)];
            }
            outcome = outcome.and(txn.put(key, &value));
        }
        match outcome {
            Ok(()) => drop(txn.commit()),
            Err(_) => drop(txn),
        }
        let _ = store.close();
        drop(store);
        try_it(&forged);
    }
}

#[test]
fn an_inline_file_that_claims_to_be_long_is_corrupt_to_whoever_reads_it() {
    let (device, _) = clean_image();
    for size in [5000, 16 << 40] {
        let forged = copy(&device, &mut |_, _| {});
        let volume = Volume::open(Arc::new(forged), &options(false)).unwrap();
        let ino = volume
            .mknod(&ROOT, Ino::ROOT, b"forged", libc::S_IFREG | 0o600, 0)
            .unwrap()
            .ino;
        let inode = InodeRecord {
            mode: libc::S_IFREG | 0o600,
            nlink: 1,
            flags: InodeRecord::INLINE,
            size,
            ..InodeRecord::default()
        };
        let mut txn = volume.store().begin().unwrap();
        txn.put(Key::new(ino, Kind::Inode, 0), &inode.encode())
            .unwrap();
        txn.commit().unwrap();
        let corrupt = |error: Option<Error>| matches!(error, Some(Error::Corrupt { .. }));
        assert!(corrupt(volume.read(ino, 0, 100, &mut Vec::new()).err()));
        let now = Some(Time::now());
        assert!(corrupt(volume.write(ino, 0, b"new", false, now).err()));
        let version = volume.version();
        let file = version.file(&Credentials::default(), ino, Access::Read);
        assert!(corrupt(file.err()));
    }
}
