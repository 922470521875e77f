//! The Warren ABI: helpers from 32 on.

use super::call::describe;
use super::{BLOCK, EINVAL, ENOENT, ENOMEM, Execution, LOG_BYTES_MAX, Outcome};
use crate::engine::cage::{Access, Cage, Region};
use crate::request::Failure;
use crate::window::WindowError;

impl Execution<'_> {
    /// `warren_request(out, size)`: as much of the description as fits; returns how much.
    pub(super) fn describe(&mut self, cage: &mut Cage, out: u64, size: u64) -> Outcome {
        let description = describe(self.request, &self.places);
        let size = size.min(description.len() as u64);
        let to = self.checked(cage, out, size, Access::Write)?;
        cage.write_bytes(to, &description[..size as usize])
            .map_err(|fault| Failure::Fault(fault.0))?;
        Ok(size)
    }

    /// `warren_map(offset, size, at)`: lends a part of the snapshot; returns how many bytes of it.
    pub(super) fn map(&mut self, cage: &mut Cage, offset: u64, size: u64, at: u64) -> Outcome {
        let at = self.checked(cage, at, 8, Access::Write)?;
        let room = cage.layout().span(Region::Window).len;
        let wanted = self.clip(offset, size).min(room);
        let blocks = (offset % BLOCK + wanted).div_ceil(BLOCK);
        if wanted > 0 && blocks > self.blocks_left() {
            return Err(Failure::Limit("blocks read"));
        }
        let source = self.source();
        let mapped = match self.window.map(cage, source, offset, wanted) {
            Ok(mapped) => mapped,
            Err(WindowError::Full) => return Ok(ENOMEM),
            Err(error) => return Err(self.window_failure(error)),
        };
        self.count_read(offset, mapped.len)?;
        let address = match mapped.len {
            0 => 0,
            _ => cage.address(Region::Window) + mapped.at,
        };
        self.store(cage, at, address)?;
        Ok(mapped.len)
    }

    /// `warren_read(offset, to, size)`: returns how many bytes were read.
    pub(super) fn read(&mut self, cage: &mut Cage, offset: u64, to: u64, size: u64) -> Outcome {
        let to = self.checked(cage, to, size, Access::Write)?;
        self.count_read(offset, self.clip(offset, size))?;
        let source = self.source();
        let read = self.window.read(cage, source, offset, to);
        read.map_err(|error| self.window_failure(error))
    }

    /// `warren_reserve(size)`: the address of that much new output, or 0.
    pub(super) fn reserve(&mut self, cage: &mut Cage, size: u64) -> Outcome {
        let at = cage.address(Region::Output) + self.emitted;
        if size == 0 || size > self.places.output_limit - self.emitted {
            return Ok(0);
        }
        self.extend_output(cage, size)?;
        Ok(at)
    }

    /// `warren_argument(index, value)`.
    pub(super) fn argument(&mut self, cage: &mut Cage, index: u64, value: u64) -> Outcome {
        let to = self.checked(cage, value, 8, Access::Write)?;
        // The C prototype has a 32-bit index, whose upper half in the register is undefined.
        let index = (index & u64::from(u32::MAX)) as usize;
        let Some(argument) = self.request.arguments.get(index) else {
            return Ok(ENOENT);
        };
        self.store(cage, to, *argument)?;
        Ok(0)
    }

    /// `warren_log(text, size)`.
    pub(super) fn log(&mut self, cage: &mut Cage, text: u64, size: u64) -> Outcome {
        let from = self.checked(cage, text, size, Access::Read)?;
        let part = from.part(0, size.min(LOG_BYTES_MAX as u64)).unwrap_or(from);
        let mut line = [0; LOG_BYTES_MAX];
        let line = &mut line[..part.len() as usize];
        cage.read_bytes(part, line)
            .map_err(|fault| Failure::Fault(fault.0))?;
        self.write_log(line);
        Ok(0)
    }

    /// `warren_trim(size)`: takes back the end of the output.
    pub(super) fn trim(&mut self, size: u64) -> Outcome {
        match self.emitted.checked_sub(size) {
            Some(left) => {
                self.emitted = left;
                Ok(0)
            }
            None => Ok(EINVAL),
        }
    }

    /// `warren_unmap()`: gives the window back.
    pub(super) fn unmap(&mut self) -> Outcome {
        self.window.give_back();
        Ok(0)
    }

    fn blocks_left(&self) -> u64 {
        let limit = self.request.limits.blocks_read;
        limit.saturating_sub(self.blocks_read)
    }
}
