//! Creating, checking and claiming an image file.
//!
//! Order of the steps matters: a new image gets its header last, and an image that was left open is
//! repaired before its header says that this boot has it. So a kill at any moment leaves either
//! what was there or something that the next open brings to the same end.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::format::{HEADER_BYTES, Header, Layout, TABLE_OFFSET, Word, ZONE_ENTRY_BYTES};
use super::table::{decode_table, empty_table};
use crate::device::ZoneState;
use crate::error::{Error, Result};
use crate::geometry::{Geometry, ZoneId};
use crate::host;
use crate::zone_state::{Zone, ZoneTable};

/// An image that is checked, locked and not yet changed.
pub(crate) struct Claimed {
    pub(crate) file: File,
    pub(crate) header: Header,
    pub(crate) layout: Layout,
    /// The zones as they are after the power cycle that opening amounts to.
    pub(crate) zones: Vec<Zone>,
    /// Whether blocks above the write pointers may hold something.
    pub(crate) unclean: bool,
}

/// Makes an image of empty zones.
pub(crate) fn create(path: &Path, geometry: &Geometry, force: bool) -> Result<()> {
    geometry.validate()?;
    let layout = Layout::of(geometry).map_err(Error::BadGeometry)?;
    let context = || format!("creating {}", path.display());
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let file = if force {
        options.create(true).truncate(false)
    } else {
        options.create_new(true)
    };
    let file = file.open(path).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => {
            Error::BadImage(format!("{} exists already", path.display()))
        }
        _ => Error::io(context(), source),
    })?;
    check_regular(&file, path)?;
    lock(&file, path, libc::LOCK_EX)?;
    let header = Header {
        geometry: *geometry,
        uuid: random_uuid()?,
        boot_id: boot_id()?,
        clean: true,
    };
    let fill = || -> io::Result<()> {
        file.set_len(0)?;
        file.set_len(layout.len)?;
        file.write_all_at(&empty_table(geometry), TABLE_OFFSET)?;
        file.sync_all()?;
        file.write_all_at(&header.encode(), 0)?;
        file.sync_all()?;
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    };
    fill().map_err(|source| Error::io(context(), source))
}

/// Opens and locks an image and reads its header and zone table.
pub(crate) fn claim(path: &Path, read_only: bool) -> Result<Claimed> {
    let io_error = |source| Error::io(format!("opening {}", path.display()), source);
    let bad = |reason: String| Error::BadImage(format!("{} {reason}", path.display()));
    let file = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .open(path)
        .map_err(io_error)?;
    check_regular(&file, path)?;
    lock(
        &file,
        path,
        if read_only {
            libc::LOCK_SH
        } else {
            libc::LOCK_EX
        },
    )?;

    let len = file.metadata().map_err(io_error)?.len();
    let mut block = vec![0; HEADER_BYTES.min(len) as usize];
    host::read_at(&file, &mut block, 0).map_err(io_error)?;
    let header = Header::decode(&block).map_err(bad)?;
    let layout = Layout::of(&header.geometry).map_err(|why| bad(format!("cannot be: {why}")))?;
    if len < layout.len {
        let expected = layout.len;
        return Err(bad(format!("is truncated: {len} bytes of {expected}")));
    }
    let mut table = vec![0; header.geometry.zones as usize * ZONE_ENTRY_BYTES as usize];
    host::read_at(&file, &mut table, TABLE_OFFSET).map_err(io_error)?;

    let exact = header.clean || header.boot_id == boot_id()?;
    let word = if exact { Word::Exact } else { Word::Bound };
    let damaged = |why| bad(format!("has a damaged zone table: {why}"));
    let mut zones = decode_table(&header.geometry, &table, word).map_err(damaged)?;
    if !exact {
        finish_excess(&header.geometry, &mut zones);
    }
    let restored = ZoneTable::restore(header.geometry, zones)
        .map_err(|why| bad(format!("has a zone table that contradicts itself: {why}")))?;
    let zones = (0..header.geometry.zones)
        .map(|id| restored.zone(ZoneId(id)))
        .collect();
    Ok(Claimed {
        file,
        header,
        layout,
        zones,
        unclean: !header.clean,
    })
}

/// After the host died, pages of the table may be of different ages and say together that more zones
/// are active than can be. Those in excess are made full: allowed, as a write pointer may be found
/// anywhere above what was flushed.
fn finish_excess(geometry: &Geometry, zones: &mut [Zone]) {
    if geometry.max_active == 0 {
        return;
    }
    let active = zones
        .iter_mut()
        .filter(|zone| zone.state == ZoneState::Closed);
    for zone in active.skip(geometry.max_active as usize) {
        *zone = Zone {
            state: ZoneState::Full,
            write_pointer: geometry.zone_capacity,
        };
    }
}

/// Writes the header and makes it durable.
pub(crate) fn write_header(file: &File, header: &Header) -> io::Result<()> {
    file.write_all_at(&header.encode(), 0)?;
    file.sync_data()
}

fn check_regular(file: &File, path: &Path) -> Result<()> {
    let metadata = file
        .metadata()
        .map_err(|source| Error::io(format!("opening {}", path.display()), source))?;
    if !metadata.is_file() {
        return Err(Error::BadImage(format!(
            "{} is not a regular file",
            path.display()
        )));
    }
    Ok(())
}

/// How long a lock is waited for: the host lets go of it a moment after its holder was killed, when
/// the last request of the holder is done.
const LOCK_WAIT: Duration = Duration::from_millis(500);

fn lock(file: &File, path: &Path, kind: libc::c_int) -> Result<()> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        // SAFETY: a plain call on an open descriptor.
        if unsafe { libc::flock(file.as_raw_fd(), kind | libc::LOCK_NB) } == 0 {
            return Ok(());
        }
        let source = io::Error::last_os_error();
        match source.kind() {
            io::ErrorKind::WouldBlock if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            io::ErrorKind::WouldBlock => return Err(Error::Busy(path.display().to_string())),
            io::ErrorKind::Interrupted => {}
            _ => return Err(Error::io(format!("locking {}", path.display()), source)),
        }
    }
}

/// The identity of this boot of the host.
pub(crate) fn boot_id() -> Result<[u8; 16]> {
    read_uuid("/proc/sys/kernel/random/boot_id")
}

fn random_uuid() -> Result<[u8; 16]> {
    read_uuid("/proc/sys/kernel/random/uuid")
}

fn read_uuid(path: &str) -> Result<[u8; 16]> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| Error::io(format!("reading {path}"), source))?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let number = u128::from_str_radix(&digits, 16)
        .map_err(|_| Error::BadImage(format!("{path} holds no UUID")))?;
    Ok(number.to_be_bytes())
}
