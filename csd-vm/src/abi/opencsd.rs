//! The OpenCSD ABI: helpers 1 to 9, for kernels written for FluffleFS.
//!
//! `bpf_read` and `bpf_write` return 0 for success. Kernels of that ABI do not look at what they
//! return, so a position that is not of the request ends the kernel instead of being answered
//! with an error it would compute on with.

use super::call::{DATA_AT, flfs_call, writes};
use super::sectors::{Sector, Sectors};
use super::{BLOCK, Execution, LOG_BYTES_MAX, Outcome};
use crate::engine::cage::{Access, Cage, CagePtr, Region};
use crate::request::{Failure, Piece};

/// Sectors that can be reserved for appending.
const RESERVED_MAX: u64 = 1 << 28;

/// Blocks whose addresses are looked up at a time; whether the time is over is looked at in between.
const RESOLVE_PART: u64 = 1 << 15;

/// Addresses of sectors in a call area are written at an odd multiple of 4, because `flfs_call`
/// is packed and has an odd multiple of 4 bytes: the addresses are aligned then.
const FLFS_CALL_SKEW: u64 = 4;

impl Execution<'_> {
    /// `bpf_get_mem_info(pointer, size)`: the heap.
    pub(super) fn memory_info(&mut self, cage: &mut Cage, pointer: u64, size: u64) -> Outcome {
        let pointer = self.checked(cage, pointer, 8, Access::Write)?;
        let size = self.checked(cage, size, 8, Access::Write)?;
        self.store(cage, pointer, self.places.heap)?;
        self.store(cage, size, self.places.heap_size)?;
        Ok(0)
    }

    /// `bpf_get_call_info(call)`.
    pub(super) fn call_info(&mut self, cage: &mut Cage, call: u64) -> Outcome {
        let call = self.checked(cage, call, 8, Access::Write)?;
        let address = match self.flfs_call {
            Some(address) => address,
            None => self.place_flfs_call(cage)?,
        };
        self.store(cage, call, address)?;
        Ok(0)
    }

    /// `bpf_debug(text)`.
    pub(super) fn debug(&mut self, cage: &mut Cage, text: u64) -> Outcome {
        let Some(line) = cage.text(text, LOG_BYTES_MAX) else {
            return Err(self.refuse(format!("the kernel cannot read the text at {text:#x}")));
        };
        self.write_log(&line);
        Ok(0)
    }

    /// `bpf_read(zone, sector, offset, size, data)`.
    pub(super) fn opencsd_read(&mut self, cage: &mut Cage, arguments: [u64; 5]) -> Outcome {
        let [zone, sector, offset, size, data] = arguments;
        let to = self.checked(cage, data, size, Access::Write)?;
        if size == 0 {
            return Ok(0);
        }
        let sectors = self.take_sectors()?;
        let first = self.locate(&sectors, zone, sector, offset, size);
        let read = first.and_then(|lba| self.read_sectors(cage, &sectors, lba, offset % BLOCK, to));
        self.sectors = Some(sectors);
        read.map(|()| 0)
    }

    /// `bpf_write(zone, sector, offset, size, data)`: at the end of what was written before, as a
    /// zone takes it, padded with zeros to the sector it names; `*sector` tells where.
    pub(super) fn opencsd_write(&mut self, cage: &mut Cage, arguments: [u64; 5]) -> Outcome {
        let [zone, sector_at, offset, size, data] = arguments;
        let sector_at = self.checked(cage, sector_at, 8, Access::Write)?;
        self.checked(cage, data, size, Access::Read)?;
        let mut sector = [0; 8];
        cage.read_bytes(sector_at, &mut sector)
            .map_err(|fault| Failure::Fault(fault.0))?;
        let sector = u64::from_le_bytes(sector);
        let sectors = self.take_sectors()?;
        let reserved = sectors.reserved();
        let lba = self.locate(&sectors, zone, sector, offset, size);
        self.sectors = Some(sectors);
        let lba = lba?;
        let end = lba.checked_add((offset % BLOCK).saturating_add(size).div_ceil(BLOCK));
        if lba < reserved.start || end.is_none_or(|end| end > reserved.end) {
            return Err(self.refuse(format!(
                "sector {sector} of zone {zone} is not reserved for this request"
            )));
        }
        let at = (lba - reserved.start) * BLOCK + offset % BLOCK;
        let written = self.appended.len() as u64;
        if at != written && at != written.next_multiple_of(BLOCK) {
            return Err(self.refuse(format!(
                "byte {at} of the reserved sectors is not where the next write goes, {written}"
            )));
        }
        self.appended.resize(at as usize, 0);
        self.append(cage, data, size)
    }

    /// The address of the sector in which byte `offset` of a sector lies, if `size` bytes from
    /// there on do not leave the zone.
    fn locate(
        &self,
        sectors: &Sectors,
        zone: u64,
        sector: u64,
        offset: u64,
        size: u64,
    ) -> Result<u64, Failure> {
        let start = sectors.address(zone, sector);
        let lba = start.and_then(|start| start.checked_add(offset / BLOCK));
        let count = (offset % BLOCK)
            .checked_add(size)
            .map(|end| end.div_ceil(BLOCK));
        if let (Some(start), Some(lba), Some(count)) = (start, lba, count) {
            let all = count.saturating_add(lba - start);
            if sectors.in_one_zone(start, all.max(1)) {
                return Ok(lba);
            }
        }
        Err(self.refuse(format!(
            "{size} bytes at byte {offset} of sector {sector} are not in zone {zone}"
        )))
    }

    fn read_sectors(
        &mut self,
        cage: &mut Cage,
        sectors: &Sectors,
        first: u64,
        skip: u64,
        to: CagePtr,
    ) -> Result<(), Failure> {
        let (mut lba, mut within, mut done) = (first, skip, 0);
        while done < to.len() {
            let Some((sector, count)) = sectors.find(lba) else {
                return Err(self.refuse(format!("LBA {lba:#x} is not of this request")));
            };
            let len = (count.saturating_mul(BLOCK) - within).min(to.len() - done);
            let part = to.part(done, len).ok_or(Failure::Fault(to.offset()))?;
            match sector {
                Sector::Snapshot(block) => {
                    self.read_snapshot(cage, block * BLOCK + within, part)?;
                }
                Sector::Data(index) => self.read_data(cage, index * BLOCK + within, part)?,
            }
            done += len;
            lba += (within + len) / BLOCK;
            within = (within + len) % BLOCK;
        }
        Ok(())
    }

    /// Bytes of the snapshot, zeros past its end.
    fn read_snapshot(&mut self, cage: &mut Cage, offset: u64, to: CagePtr) -> Result<(), Failure> {
        self.count_read(offset, to.len())?;
        let source = self.source();
        let read = self.window.read(cage, source, offset, to);
        let read = read.map_err(|error| self.window_failure(error))?;
        zero_from(cage, to, read)
    }

    /// Bytes of the data handed in, zeros past its end.
    fn read_data(&mut self, cage: &mut Cage, offset: u64, to: CagePtr) -> Result<(), Failure> {
        let data = &self.request.data;
        let start = (offset as usize).min(data.len());
        let end = (offset + to.len()).min(data.len() as u64) as usize;
        let bytes = &data[start..end];
        let part = to.part(0, bytes.len() as u64).unwrap_or(to);
        cage.write_bytes(part, bytes)
            .map_err(|fault| Failure::Fault(fault.0))?;
        zero_from(cage, to, part.len())
    }

    /// The sectors of the request, for the caller to put back.
    fn take_sectors(&mut self) -> Result<Sectors, Failure> {
        match self.sectors.take() {
            Some(sectors) => Ok(sectors),
            None => self.find_sectors().map(|(sectors, _)| sectors),
        }
    }

    /// The sectors of the request, and their addresses in the order of the file.
    fn find_sectors(&self) -> Result<(Sectors, Vec<u64>), Failure> {
        let request = self.request;
        let data = (request.data.len() as u64).div_ceil(BLOCK);
        let reserved = request.limits.blocks_appended.min(RESERVED_MAX);
        let geometry = self.storage.geometry();
        let mut sectors = Sectors::new(geometry, data, reserved);
        let mut flat = Vec::new();
        if data > 0 || writes(request.operation) {
            let start = sectors.data_start();
            flat.extend(start..start + data);
        } else {
            self.add_snapshot(&mut sectors, &mut flat)?;
        }
        if flat.is_empty() {
            // Kernels take a first address of 0 for an error.
            flat.push(sectors.hole(0));
        }
        sectors.sort();
        Ok((sectors, flat))
    }

    /// Adds the blocks that hold the requested range of the snapshot.
    fn add_snapshot(&self, sectors: &mut Sectors, flat: &mut Vec<u64>) -> Result<(), Failure> {
        let request = self.request;
        let len = self.clip(request.offset, request.size);
        if len == 0 {
            return Ok(());
        }
        let mut block = request.offset / BLOCK;
        let count = (request.offset + len).div_ceil(BLOCK) - block;
        let mut pieces: Vec<Piece> = Vec::new();
        let end = block + count;
        while block < end {
            let part_end = end.min(block + RESOLVE_PART);
            pieces.clear();
            request
                .snapshot
                .resolve(block, part_end - block, &mut pieces)
                .map_err(Failure::Storage)?;
            for piece in &pieces {
                if piece.blocks() > part_end - block {
                    return Err(Failure::Storage("more blocks than were asked for".into()));
                }
                let lba = sectors.add(block, piece);
                flat.extend(lba..lba + piece.blocks());
                block += piece.blocks();
            }
            if block < part_end {
                return Err(Failure::Storage("fewer blocks than were asked for".into()));
            }
            self.in_time(block < end)?;
        }
        Ok(())
    }

    fn place_flfs_call(&mut self, cage: &mut Cage) -> Result<u64, Failure> {
        let (sectors, flat) = self.find_sectors()?;
        let appended = self.appended.len() as u64;
        let bytes = flfs_call(self.request, &sectors.reserved(), appended, &flat);
        self.sectors = Some(sectors);
        let data = (self.request.data.len() as u64).next_multiple_of(BLOCK);
        let at = DATA_AT + data + FLFS_CALL_SKEW;
        if cage.write_call(at, &bytes).is_err() {
            return Err(self.refuse(format!(
                "the addresses of {} sectors are too much for one request",
                flat.len()
            )));
        }
        let address = cage.address(Region::Call) + at;
        self.flfs_call = Some(address);
        Ok(address)
    }
}

/// Zeroes `to` from byte `from` on.
fn zero_from(cage: &mut Cage, to: CagePtr, from: u64) -> Result<(), Failure> {
    let rest = to
        .len()
        .checked_sub(from)
        .and_then(|len| to.part(from, len));
    let rest = rest.and_then(|rest| cage.bytes_mut(rest));
    rest.map(|bytes| bytes.fill(0))
        .ok_or(Failure::Fault(to.offset()))
}
