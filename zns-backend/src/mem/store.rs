//! Where the blocks of a memory device are: a sparse memfd, or references into a write log.
//!
//! Offsets are checked by the zone state machine before anything gets here.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;

use parking_lot::RwLock;

use crate::error::{Error, Result};
use crate::geometry::{Geometry, Lba, ZoneId};
use crate::host;
use crate::shared_zones::by_zone;

/// One block, as a part of a longer shared buffer.
#[derive(Clone)]
pub(crate) struct BlockRef {
    pub(crate) data: Arc<[u8]>,
    /// Byte offset in `data`.
    pub(crate) offset: usize,
}

/// The blocks of one zone; those that are not there are zeroes.
pub(crate) type ZoneBlocks = Vec<Option<BlockRef>>;

pub(crate) enum Store {
    /// Zone `n` starts at byte `n * zone_size * block_size`.
    Memfd(File),
    /// One list per zone, shared with the log until it is changed.
    Shared(Vec<RwLock<Arc<ZoneBlocks>>>),
}

const MEMFD_NAME: &CStr = c"warren-zones";

impl Store {
    pub(crate) fn memfd(geometry: &Geometry) -> Result<Store> {
        // SAFETY: the name is a terminated string; the call makes a new descriptor or fails.
        let fd = unsafe { libc::memfd_create(MEMFD_NAME.as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(Error::last_os("creating a memfd for the zones"));
        }
        // SAFETY: the descriptor was just made and nothing else owns it.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        file.set_len(geometry.blocks() * u64::from(geometry.block_size))
            .map_err(|source| Error::io("sizing the memfd of the zones", source))?;
        Ok(Store::Memfd(file))
    }

    pub(crate) fn shared(zones: impl IntoIterator<Item = Arc<ZoneBlocks>>) -> Store {
        Store::Shared(zones.into_iter().map(RwLock::new).collect())
    }

    pub(crate) fn fd(&self) -> Option<&File> {
        match self {
            Store::Memfd(file) => Some(file),
            Store::Shared(_) => None,
        }
    }

    pub(crate) fn read(&self, geometry: &Geometry, lba: Lba, buf: &mut [u8]) -> Result<()> {
        let block = geometry.block_bytes();
        match self {
            Store::Memfd(file) => host::read_at(file, buf, lba.0 * block as u64)
                .map_err(|source| Error::io("reading the memfd of the zones", source)),
            Store::Shared(zones) => {
                let blocks = (buf.len() / block) as u64;
                by_zone(geometry, lba, blocks, |at, part| {
                    let bytes = part.start as usize * block..part.end as usize * block;
                    let zone = zones[geometry.zone_of(at).0 as usize].read();
                    let first = geometry.offset_of(at) as usize;
                    for (index, target) in buf[bytes].chunks_exact_mut(block).enumerate() {
                        match zone.get(first + index).and_then(Option::as_ref) {
                            Some(source) => target.copy_from_slice(
                                &source.data[source.offset..source.offset + block],
                            ),
                            None => target.fill(0),
                        }
                    }
                    Ok(())
                })
            }
        }
    }

    /// Writes blocks that lie in one zone.
    pub(crate) fn write(&self, geometry: &Geometry, lba: Lba, data: &[u8]) -> Result<()> {
        let block = geometry.block_bytes();
        match self {
            Store::Memfd(file) => host::write_at(file, data, lba.0 * block as u64)
                .map_err(|source| Error::io("writing the memfd of the zones", source)),
            Store::Shared(zones) => {
                let first = geometry.offset_of(lba) as usize;
                let mut zone = zones[geometry.zone_of(lba).0 as usize].write();
                put_blocks(Arc::make_mut(&mut zone), first, &data.into(), block);
                Ok(())
            }
        }
    }

    /// Makes a zone read as zeroes and gives its memory back.
    pub(crate) fn clear(&self, geometry: &Geometry, zone: ZoneId) -> Result<()> {
        match self {
            Store::Memfd(file) => {
                let zone_bytes = geometry.zone_size * u64::from(geometry.block_size);
                host::punch_hole(file, u64::from(zone.0) * zone_bytes, zone_bytes)
                    .map_err(|source| Error::io("giving the memory of a zone back", source))
            }
            Store::Shared(zones) => {
                *zones[zone.0 as usize].write() = Arc::default();
                Ok(())
            }
        }
    }
}

/// Puts the blocks of `data` into a zone from block `first` on.
pub(crate) fn put_blocks(zone: &mut ZoneBlocks, first: usize, data: &Arc<[u8]>, block: usize) {
    let count = data.len() / block;
    if zone.len() < first + count {
        zone.resize(first + count, None);
    }
    for (index, slot) in zone[first..first + count].iter_mut().enumerate() {
        *slot = Some(BlockRef {
            data: Arc::clone(data),
            offset: index * block,
        });
    }
}
