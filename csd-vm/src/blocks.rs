//! Blocks read from storage and compared with their checksums.

use std::os::fd::AsRawFd;

use zns_backend::{Lba, MapSource, ZonedDevice};

use crate::extents::{Extent, Place, Resolved};
use crate::request::BLOCK_SIZE;
use crate::window::WindowError;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// Bytes that the operating system is asked for at a time.
const ADVISED_BYTES_MAX: u64 = 512 << 10;

type Result<T> = std::result::Result<T, WindowError>;

/// Fills `bytes` with all blocks that were resolved, read past the caches of the operating system
/// where the device can, and at the same time if they lie in several places; checked, with nothing
/// past the end of the snapshot.
pub(crate) fn read_extents(
    device: &dyn ZonedDevice,
    resolved: &Resolved,
    bytes: &mut [u8],
) -> Result<()> {
    let mut reads = Vec::with_capacity(resolved.extents.len());
    let mut rest = &mut *bytes;
    for extent in &resolved.extents {
        let (part, behind) = rest.split_at_mut(extent.bytes().len());
        match extent.lba {
            Some(lba) => reads.push((lba, part)),
            None => part.fill(0),
        }
        rest = behind;
    }
    device.read_all(&mut reads).map_err(storage)?;
    resolved.extents.iter().try_for_each(|extent| {
        let part = &mut bytes[extent.bytes()];
        extent
            .lba
            .map_or(Ok(()), |lba| finish(lba, extent, resolved, part))
    })
}

/// Fills `bytes` with the blocks of an extent, read through the host's cache and checked, with
/// nothing past the end of the snapshot.
pub(crate) fn read_extent(
    storage: &dyn ZonedDevice,
    extent: &Extent,
    resolved: &Resolved,
    bytes: &mut [u8],
) -> Result<()> {
    let Some(lba) = extent.lba else {
        bytes.fill(0);
        return Ok(());
    };
    read_cached(storage, lba, bytes)?;
    finish(lba, extent, resolved, bytes)
}

/// Checks the blocks of an extent, which have been read, and takes away what is past the end.
fn finish(lba: Lba, extent: &Extent, resolved: &Resolved, bytes: &mut [u8]) -> Result<()> {
    check(lba, bytes, resolved.checksums(extent))?;
    match extent.place {
        Place::Within => {}
        Place::Tail => bytes[resolved.tail_bytes..].fill(0),
    }
    Ok(())
}

/// Reads blocks, through the host's cache where the device is a file: what kernels read is read
/// again.
fn read_cached(device: &dyn ZonedDevice, lba: Lba, bytes: &mut [u8]) -> Result<()> {
    let blocks = bytes.len() as u64 / BLOCK;
    let Some(from) = device.map_source(lba, blocks).map_err(storage)? else {
        return device.read(lba, bytes).map_err(storage);
    };
    let file = from.fd.as_raw_fd();
    let mut done = 0;
    while done < bytes.len() {
        let rest = &mut bytes[done..];
        let at = libc::off_t::try_from(from.offset + done as u64)
            .map_err(|_| WindowError::Storage(format!("LBA {lba} is too far out")))?;
        // SAFETY: `rest` is writable for its length, and the descriptor is borrowed for the call.
        let got = unsafe { libc::pread(file, rest.as_mut_ptr().cast(), rest.len(), at) };
        match usize::try_from(got) {
            Ok(0) => {
                return Err(past_the_end(lba));
            }
            Ok(got) => done += got,
            Err(_) => {
                let error = std::io::Error::last_os_error();
                if error.kind() != std::io::ErrorKind::Interrupted {
                    return Err(WindowError::Storage(format!("reading LBA {lba}: {error}")));
                }
            }
        }
    }
    Ok(())
}

pub(crate) fn past_the_end(lba: Lba) -> WindowError {
    WindowError::Storage(format!("LBA {lba} is past the end of its file"))
}

/// Compares blocks with their checksums.
pub(crate) fn check(first: Lba, bytes: &[u8], checksums: &[u32]) -> Result<()> {
    let blocks = bytes.chunks_exact(BLOCK_SIZE).zip(checksums);
    for (index, (block, expected)) in blocks.enumerate() {
        let found = crc32c::crc32c(block);
        if found != *expected {
            let lba = first.plus(index as u64);
            return Err(WindowError::Storage(format!(
                "block at LBA {lba} has checksum {found:#010x}, not {expected:#010x}"
            )));
        }
    }
    Ok(())
}

pub(crate) fn storage(error: zns_backend::Error) -> WindowError {
    WindowError::Storage(error.to_string())
}

/// Asks the operating system for bytes of a file in advance, in pieces: of a long one it reads only
/// as much as it would read ahead on that disk.
pub(crate) fn ask_for(place: &MapSource<'_>, len: u64) {
    for piece in (0..len).step_by(ADVISED_BYTES_MAX as usize) {
        let (Ok(at), Ok(len)) = (
            libc::off_t::try_from(place.offset + piece),
            libc::off_t::try_from(ADVISED_BYTES_MAX.min(len - piece)),
        ) else {
            return;
        };
        // SAFETY: only gives advice about a descriptor that is borrowed for the call.
        unsafe { libc::posix_fadvise(place.fd.as_raw_fd(), at, len, libc::POSIX_FADV_WILLNEED) };
    }
}
