//! How blocks get to a place of a window: mapped where the device has a source for them, or copied; and
//! checked.

use std::os::fd::BorrowedFd;

use zns_backend::Lba;

use crate::blocks::{check, past_the_end, read_extent, storage};
use crate::engine::cage::{Access, Cage, CageError, Region};
use crate::extents::{Extent, Resolved};
use crate::request::BLOCK_SIZE;
use crate::window::{Source, WindowError};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// Bytes that the operating system maps around a page fault, where nobody has set another number.
const FAULT_BYTES: usize = 64 << 10;

type Result<T> = std::result::Result<T, WindowError>;

/// What an extent can be mapped from, if the device has a source for it.
pub(crate) fn mappable(
    source: Source<'_>,
    lba: Lba,
    blocks: u64,
) -> Result<Option<(BorrowedFd<'_>, u64)>> {
    let from = source.storage.map_source(lba, blocks).map_err(storage)?;
    Ok(from.map(|from| (from.fd, from.offset)))
}

/// Maps an extent to block `at` of the window; tells whether that was possible.
///
/// What is not in memory the operating system is told to bring in (asking for these very blocks first
/// was measured, and slower by half); the rest is mapped as it is touched, which is cheaper.
pub(crate) fn map_extent(
    cage: &mut Cage,
    source: Source<'_>,
    at: u64,
    (file, offset): (BorrowedFd<'_>, u64),
    blocks: u64,
) -> bool {
    let populate = !source.storage.in_memory();
    let mapped = cage.map_window(at * BLOCK, file, offset, blocks * BLOCK, populate);
    mapped
        .inspect_err(|error| could_not_map(error, blocks))
        .is_ok()
}

/// Most likely the limit on mappings per process: copying needs one for all extents.
pub(crate) fn could_not_map(error: &CageError, blocks: u64) {
    tracing::debug!(%error, blocks, "blocks are copied that could not be mapped");
}

/// Has the system map the pages of blocks that are in memory, by a fault each for as many as it maps
/// at once; tells whether they are all there. Mapping them with MAP_POPULATE looks at every page, and
/// takes longer.
pub(crate) fn touch(cage: &Cage, at: u64, blocks: u64) -> bool {
    let address = cage.address(Region::Window) + at * BLOCK;
    let mapped = cage.check(address, blocks * BLOCK, Access::Read);
    let touched = mapped.map(|mapped| {
        cage.look(mapped, |bytes| {
            for part in bytes.chunks(FAULT_BYTES) {
                std::hint::black_box(part[0]);
            }
        })
    });
    matches!(touched, Some(Ok(())))
}

/// Copies what `range` of the resolved blocks holds into the window, whose part for them starts
/// at block `at`.
pub(crate) fn copy_extents(
    cage: &mut Cage,
    source: Source<'_>,
    at: u64,
    range: std::ops::Range<u64>,
    resolved: &Resolved,
) -> Result<()> {
    let blocks = range.end - range.start;
    if blocks == 0 {
        return Ok(());
    }
    cage.fill_window((at + range.start) * BLOCK, blocks * BLOCK, |bytes| {
        // The bytes are fresh: holes stay untouched, and cost no memory.
        let within = |extent: &&Extent| range.contains(&extent.first) && extent.lba.is_some();
        for extent in resolved.extents.iter().filter(within) {
            let from = ((extent.first - range.start) * BLOCK) as usize;
            let len = (extent.blocks * BLOCK) as usize;
            let bytes = &mut bytes[from..from + len];
            read_extent(source.storage, extent, resolved, bytes)?;
        }
        Ok(())
    })?
}

/// Checks blocks that were mapped at block `at` of the window.
pub(crate) fn check_mapped(cage: &Cage, at: u64, lba: Lba, checksums: &[u32]) -> Result<()> {
    let address = cage.address(Region::Window) + at * BLOCK;
    let mapped = cage.check(address, checksums.len() as u64 * BLOCK, Access::Read);
    let mapped = mapped.ok_or(WindowError::Fault(address))?;
    match cage.look(mapped, |bytes| check(lba, bytes, checksums)) {
        Ok(checked) => checked,
        Err(fault) => {
            let lba = lba.plus((fault.0 - mapped.offset()) / BLOCK);
            Err(past_the_end(lba))
        }
    }
}
