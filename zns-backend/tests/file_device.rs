//! What an image file goes through: death of its process or host, damage, competition, resets.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use zns_backend::{Error, FileDevice, Geometry, Lba, ZoneId, ZoneInfo, ZoneState, ZonedDevice};

const GEOMETRY: Geometry = Geometry {
    block_size: 4096,
    zones: 6,
    zone_size: 1024,
    zone_capacity: 1000,
    max_open: 2,
    max_active: 3,
    max_append: 64,
};
/// Layout facts of docs/device-image-format.md.
const BOOT_ID_AT: usize = 72;
const CRC_AT: usize = 88;
const TABLE_AT: u64 = 4096;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(".").expect("directory")
}

fn image(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("image")
}

fn block(tag: u64) -> Vec<u8> {
    tag.to_le_bytes().repeat(4096 / 8)
}

fn report(device: &FileDevice) -> Vec<ZoneInfo> {
    device.report(ZoneId(0), GEOMETRY.zones).expect("report")
}

fn refusal(path: &Path) -> String {
    match FileDevice::open(path, true) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error.to_string(),
    }
}

/// Makes the image look as if another boot of the host had left it.
fn change_boot_id(path: &Path) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("open");
    let mut header = vec![0; 4096];
    file.read_exact_at(&mut header, 0).expect("read");
    header[BOOT_ID_AT] ^= 0xFF;
    header[CRC_AT..CRC_AT + 4].fill(0);
    let crc = crc32c::crc32c(&header);
    header[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    file.write_all_at(&header, 0).expect("write");
}

#[test]
fn zones_are_found_closed_after_reopening() {
    let directory = directory();
    let device = FileDevice::create(image(&directory), &GEOMETRY, false).expect("create");
    let uuid = device.uuid();
    device.append(ZoneId(0), &block(1)).expect("append");
    device.open(ZoneId(1)).expect("open");
    device.finish(ZoneId(2)).expect("finish");
    device
        .fail_zone(ZoneId(3), ZoneState::ReadOnly)
        .expect("fail");
    drop(device);
    for read_only in [true, false] {
        let device = FileDevice::open(image(&directory), read_only).expect("open");
        let found: Vec<_> = report(&device)
            .iter()
            .map(|z| (z.state, z.write_pointer))
            .collect();
        let empty = (ZoneState::Empty, 0);
        let (closed, full) = ((ZoneState::Closed, 1), (ZoneState::Full, 1000));
        assert_eq!(
            found,
            [closed, empty, full, (ZoneState::ReadOnly, 0), empty, empty]
        );
        assert_eq!(device.uuid(), uuid);
        let outcome = device.append(ZoneId(0), &block(2)).map(drop);
        match outcome {
            Ok(()) => assert!(!read_only),
            Err(error) => assert!(read_only && matches!(error, Error::ReadOnlyDevice(_))),
        }
    }
}

#[test]
fn second_opener_is_told_that_the_image_is_busy() {
    let directory = directory();
    let path = image(&directory);
    let device = FileDevice::create(&path, &GEOMETRY, false).expect("create");
    for read_only in [true, false] {
        assert!(matches!(
            FileDevice::open(&path, read_only),
            Err(Error::Busy(_))
        ));
    }
    assert!(matches!(
        FileDevice::create(&path, &GEOMETRY, true),
        Err(Error::Busy(_))
    ));
    drop(device);
    let _reader = FileDevice::open(&path, true).expect("open");
    let _another = FileDevice::open(&path, true).expect("readers share");
    assert!(matches!(
        FileDevice::open(&path, false),
        Err(Error::Busy(_))
    ));
}

#[test]
fn reset_gives_the_space_back_to_the_host() {
    let directory = directory();
    let path = image(&directory);
    let device = FileDevice::create(&path, &GEOMETRY, false).expect("create");
    let stored = || std::fs::metadata(&path).expect("metadata").blocks() * 512;
    assert!(stored() < 64 << 10, "a fresh image is sparse: {}", stored());
    for part in 0..10 {
        device
            .write(Lba(part * 100), &block(part).repeat(100))
            .expect("write");
    }
    assert!(stored() >= 1000 * 4096);
    device.reset(ZoneId(0)).expect("reset");
    assert!(stored() < 64 << 10, "{} bytes are left", stored());
    device.append(ZoneId(1), &block(1)).expect("append");
    device.finish(ZoneId(1)).expect("finish");
    assert!(
        stored() < 64 << 10,
        "a finished zone keeps what was written: {}",
        stored()
    );
}

#[test]
fn what_is_no_image_is_refused_in_one_line() {
    let directory = directory();
    let path = image(&directory);
    std::fs::write(&path, b"").expect("write");
    assert!(refusal(&path).contains("not a WarrenFS device image"));
    std::fs::write(&path, vec![7; 10_000]).expect("write");
    assert!(refusal(&path).contains("not a WarrenFS device image"));
    assert!(
        FileDevice::create(&path, &GEOMETRY, false)
            .is_err_and(|e| e.to_string().contains("exists"))
    );
    assert!(refusal(directory.path()).contains("not a regular file"));
    assert!(refusal(&directory.path().join("absent")).contains("No such file"));

    drop(FileDevice::create(&path, &GEOMETRY, true).expect("create"));
    let len = std::fs::metadata(&path).expect("metadata").len();
    for cut in [len - 1, len / 2, 1 << 20, 4097] {
        OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|f| f.set_len(cut))
            .expect("truncate");
        assert!(refusal(&path).contains("truncated"), "{}", refusal(&path));
    }
    let file = OpenOptions::new().write(true).open(&path).expect("open");
    file.set_len(len).expect("extend");
    assert!(
        refusal(&path).contains("damaged zone table"),
        "{}",
        refusal(&path)
    );
    file.write_all_at(&9_u32.to_le_bytes(), 8).expect("write");
    assert!(refusal(&path).contains("version 9"), "{}", refusal(&path));
}

#[test]
fn every_flipped_bit_of_header_and_table_is_an_error_or_changes_nothing() {
    let directory = directory();
    let path = image(&directory);
    let device = FileDevice::create(&path, &GEOMETRY, false).expect("create");
    device.append(ZoneId(0), &block(1)).expect("append");
    device.finish(ZoneId(1)).expect("finish");
    drop(device);
    let expected = report(&FileDevice::open(&path, true).expect("open"));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .expect("open");
    let mut found = 0;
    // The header, the table, and some of the padding after it.
    for at in 0..TABLE_AT + 16 * u64::from(GEOMETRY.zones) + 16 {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        for bit in 0..8 {
            file.write_all_at(&[byte[0] ^ 1 << bit], at).expect("flip");
            match FileDevice::open(&path, true) {
                Ok(device) => assert_eq!(report(&device), expected, "bit {bit} of byte {at}"),
                Err(Error::BadImage(_)) => found += 1,
                Err(error) => panic!("bit {bit} of byte {at}: {error}"),
            }
        }
        file.write_all_at(&byte, at).expect("restore");
    }
    assert_eq!(found, (TABLE_AT + 16 * u64::from(GEOMETRY.zones)) * 8);
}

#[test]
fn flushed_blocks_survive_a_reboot_of_the_host() {
    let directory = directory();
    let path = image(&directory);
    let device = FileDevice::create(&path, &GEOMETRY, false).expect("create");
    let copy = directory.path().join("copy");
    for count in 1..=600_u64 {
        // Odd tags go to zone 1, even ones to zone 0.
        device
            .append(ZoneId((count % 2) as u32), &block(count))
            .expect("append");
        device.flush().expect("flush");
        if count % 97 != 0 && count != 600 {
            continue;
        }
        std::fs::copy(&path, &copy).expect("copy");
        change_boot_id(&copy);
        let reopened = FileDevice::open(&copy, false).expect("open after a reboot");
        for (zone, info) in report(&reopened).iter().take(2).enumerate() {
            let written = if zone == 0 {
                count / 2
            } else {
                count.div_ceil(2)
            };
            let found = info.write_pointer;
            assert!(found >= written, "{found} of {written}");
            assert!(info.write_pointer <= written + 512);
            let start = GEOMETRY.zone_start(ZoneId(zone as u32));
            let mut found = vec![0; info.write_pointer as usize * 4096];
            reopened.read(start, &mut found).expect("read");
            for (index, found) in (0..).zip(found.chunks(4096)) {
                let tag = if zone == 0 {
                    2 * index + 2
                } else {
                    2 * index + 1
                };
                let expected = if index < written {
                    block(tag)
                } else {
                    block(0)
                };
                assert!(
                    found == expected,
                    "zone {zone}, block {index} after {count}"
                );
            }
        }
    }
}

#[test]
fn exact_words_older_than_the_data_do_not_matter_after_a_reboot() {
    let directory = directory();
    let path = image(&directory);
    let device = FileDevice::create(&path, &GEOMETRY, false).expect("create");
    device.append(ZoneId(0), &block(1)).expect("append");
    device.flush().expect("flush");
    // The table as the first flush left it on disk; the flushes that follow leave it there.
    let file = OpenOptions::new().read(true).open(&path).expect("open");
    let mut table = vec![0; 16 * GEOMETRY.zones as usize];
    file.read_exact_at(&mut table, TABLE_AT).expect("read");
    for tag in 2..=100 {
        device.append(ZoneId(0), &block(tag)).expect("append");
        device.flush().expect("flush");
    }
    let copy = directory.path().join("copy");
    std::fs::copy(&path, &copy).expect("copy");
    let file = OpenOptions::new().write(true).open(&copy).expect("open");
    file.write_all_at(&table, TABLE_AT).expect("write");
    change_boot_id(&copy);
    let reopened = FileDevice::open(&copy, false).expect("open");
    for tag in 1..=100 {
        let mut found = vec![0; 4096];
        reopened
            .read(Lba(tag - 1), &mut found)
            .expect("flushed blocks are below the pointer");
        assert!(found == block(tag));
    }
}

const CHILD_IMAGE: &str = "ZNS_TEST_CHILD_IMAGE";

/// Not a test of its own: what the killed process does. Writes until it dies and says on standard
/// error, in 8 bytes each, how many blocks were acknowledged.
#[test]
fn child_that_is_killed() {
    let Ok(path) = std::env::var(CHILD_IMAGE) else {
        return;
    };
    let device = FileDevice::open(path, false).expect("open");
    let mut acknowledged = 0_u64;
    let mut pipe = std::io::stderr();
    for zone in 0..GEOMETRY.zones {
        let start = GEOMETRY.zone_start(ZoneId(zone));
        for offset in 0..GEOMETRY.zone_capacity {
            device
                .write(start.plus(offset), &block(acknowledged + 1))
                .expect("write");
            acknowledged += 1;
            pipe.write_all(&acknowledged.to_le_bytes()).expect("report");
            if acknowledged.is_multiple_of(7) {
                device.flush().expect("flush");
            }
        }
    }
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn acknowledged_writes_survive_the_death_of_the_process() {
    for millis in [5, 20, 50, 90, 140] {
        let directory = directory();
        let path = image(&directory);
        drop(FileDevice::create(&path, &GEOMETRY, false).expect("create"));
        let mut child = Command::new(std::env::current_exe().expect("own path"))
            .args(["--exact", "child_that_is_killed", "--nocapture"])
            .env(CHILD_IMAGE, &path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("spawn");
        let mut pipe = child.stderr.take().expect("pipe");
        let reader = std::thread::spawn(move || {
            let mut reports = Vec::new();
            pipe.read_to_end(&mut reports).map(|_| reports)
        });
        std::thread::sleep(Duration::from_millis(millis));
        child.kill().expect("kill");
        child.wait().expect("wait");
        let acknowledged = (reader.join().expect("reader").expect("read").len() / 8) as u64;

        let device = FileDevice::open(&path, false).expect("open after a kill");
        let written: u64 = report(&device).iter().map(|zone| zone.write_pointer).sum();
        assert!(
            written == acknowledged || written == acknowledged + 1,
            "{written} below the pointers, {acknowledged} acknowledged"
        );
        for index in 0..acknowledged {
            let (zone, offset) = (
                index / GEOMETRY.zone_capacity,
                index % GEOMETRY.zone_capacity,
            );
            let mut found = vec![0; 4096];
            let lba = GEOMETRY.zone_start(ZoneId(zone as u32)).plus(offset);
            device.read(lba, &mut found).expect("read");
            assert!(found == block(index + 1), "block {index} of {acknowledged}");
        }
    }
}
