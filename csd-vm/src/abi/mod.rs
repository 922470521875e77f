//! The helpers of both ABIs, as one execution has them.
//!
//! Every pointer and length a kernel passes is checked against its cage, every address of a sector
//! against its request. What is wrong there ends the kernel with [`Failure::Helper`]: nothing is
//! answered with an error number that a kernel could overlook, except what a careful kernel runs
//! into as well (no such argument, a window that is in use, a full output).
//!
//! Helpers run to their end; those that move much data look in between whether the time is over.

mod call;
mod opencsd;
mod sectors;
mod warren;

use zns_backend::ZonedDevice;

pub(crate) use self::call::{DATA_AT, Places, REQUEST_BYTES, describe};
use self::sectors::Sectors;
use crate::cancellation::Term;
use crate::engine::cage::{Access, Cage, CagePtr, Region};
use crate::engine::{Called, Helpers};
use crate::frames::Frames;
use crate::program::helper_name;
use crate::request::{BLOCK_SIZE, Failure, Request, Usage};
use crate::window::{Source, Window, WindowError};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// Lines a kernel may log in one execution; further ones are not written.
const LOG_LINES_MAX: u32 = 64;

/// Bytes of a logged line.
const LOG_BYTES_MAX: usize = 1024;

/// Long copies look at the time after as many bytes.
const COPY_PART: u64 = 4 << 20;

/// The same for copies that go through a buffer of this size.
const MOVE_PART: u64 = 256 << 10;

const EINVAL: u64 = (-22i64).cast_unsigned();
const ENOENT: u64 = (-2i64).cast_unsigned();
const ENOMEM: u64 = (-12i64).cast_unsigned();

/// What a helper answers, or why the kernel ends.
type Outcome = Result<u64, Failure>;

/// What an execution has besides its cage.
pub(crate) struct Execution<'a> {
    pub(crate) storage: &'a dyn ZonedDevice,
    frames: Option<&'a Frames>,
    pub(crate) request: &'a Request,
    pub(crate) window: &'a mut Window,
    /// What the kernel appended.
    pub(crate) appended: &'a mut Vec<u8>,
    pub(crate) places: Places,
    /// How long the kernel may go on.
    term: Term<'a>,
    /// Bytes emitted.
    pub(crate) emitted: u64,
    /// Why a helper ended the kernel.
    pub(crate) failure: Option<Failure>,
    pub(crate) usage: Usage,
    blocks_read: u64,
    logged: u32,
    sectors: Option<Sectors>,
    flfs_call: Option<u64>,
    /// Name of the helper being carried out.
    helper: &'static str,
}

impl<'a> Execution<'a> {
    pub(crate) fn new(
        (storage, frames): (&'a dyn ZonedDevice, Option<&'a Frames>),
        request: &'a Request,
        window: &'a mut Window,
        appended: &'a mut Vec<u8>,
        places: Places,
        term: Term<'a>,
    ) -> Execution<'a> {
        Execution {
            storage,
            frames,
            request,
            window,
            appended,
            places,
            term,
            emitted: 0,
            failure: None,
            usage: Usage::default(),
            blocks_read: 0,
            logged: 0,
            sectors: None,
            flfs_call: None,
            helper: "",
        }
    }

    fn dispatch(&mut self, cage: &mut Cage, number: u32, a: [u64; 5]) -> Outcome {
        match number {
            1 => self.emit(cage, a[0], a[1]),
            2 => self.opencsd_read(cage, a),
            3 => self.opencsd_write(cage, a),
            4 => Ok(BLOCK),
            5 => Ok(self.storage.geometry().zone_capacity),
            6 => Ok(self.storage.geometry().zone_size),
            7 => self.memory_info(cage, a[0], a[1]),
            8 => self.call_info(cage, a[0]),
            9 => self.debug(cage, a[0]),
            32 => self.describe(cage, a[0], a[1]),
            33 => self.map(cage, a[0], a[1], a[2]),
            34 => self.read(cage, a[0], a[1], a[2]),
            35 => self.emit(cage, a[0], a[1]),
            36 => self.reserve(cage, a[0]),
            37 => self.append(cage, a[0], a[1]),
            38 => self.argument(cage, a[0], a[1]),
            39 => self.log(cage, a[0], a[1]),
            40 => self.trim(a[0]),
            41 => self.unmap(),
            _ => Err(self.refuse(format!("there is no helper {number}"))),
        }
    }

    /// Ends the kernel because of how it called the helper.
    fn refuse(&self, reason: String) -> Failure {
        Failure::Helper {
            helper: self.helper,
            reason,
        }
    }

    /// `len` bytes at `pointer` that the kernel may access so.
    fn checked(
        &self,
        cage: &Cage,
        pointer: u64,
        len: u64,
        access: Access,
    ) -> Result<CagePtr, Failure> {
        cage.check(pointer, len, access).ok_or_else(|| {
            let verb = match access {
                Access::Read => "read",
                Access::Write => "write",
            };
            self.refuse(format!(
                "the kernel cannot {verb} the {len} bytes at {pointer:#x}"
            ))
        })
    }

    /// Stores a number at a pointer that was checked for writing.
    fn store(&self, cage: &mut Cage, to: CagePtr, value: u64) -> Result<(), Failure> {
        cage.write_bytes(to, &value.to_le_bytes())
            .map_err(|fault| Failure::Fault(fault.0))
    }

    fn source(&self) -> Source<'a> {
        Source {
            storage: self.storage,
            frames: self.frames,
            term: self.term,
        }
    }

    /// Counts blocks of the snapshot that the kernel is about to be given.
    fn count_read(&mut self, offset: u64, len: u64) -> Result<(), Failure> {
        if len == 0 {
            return Ok(());
        }
        let blocks = (offset % BLOCK + len).div_ceil(BLOCK);
        self.blocks_read = self.blocks_read.saturating_add(blocks);
        if self.blocks_read > self.request.limits.blocks_read {
            return Err(Failure::Limit("blocks read"));
        }
        self.usage.bytes_read += len;
        Ok(())
    }

    /// Bytes of the snapshot among `size` from `offset` on.
    fn clip(&self, offset: u64, size: u64) -> u64 {
        size.min(self.request.snapshot.size().saturating_sub(offset))
    }

    fn window_failure(&self, error: WindowError) -> Failure {
        match error {
            WindowError::Full => self.refuse("the window is in use".into()),
            WindowError::TimedOut => self.term.failure(),
            WindowError::Storage(reason) => Failure::Storage(reason),
            WindowError::Fault(at) => Failure::Fault(at),
            WindowError::Memory(reason) => Failure::Internal(reason),
        }
    }

    /// Adds bytes of the kernel to the output.
    fn emit(&mut self, cage: &mut Cage, from: u64, size: u64) -> Outcome {
        let from = self.checked(cage, from, size, Access::Read)?;
        let to = self.extend_output(cage, size)?;
        if size == 0 {
            return Ok(0);
        }
        let output = cage.layout().span(Region::Output);
        if from.offset() >= output.start && from.offset() < output.end() {
            return self.emit_again(cage, from, to).map(|()| 0);
        }
        let mut done = 0;
        while done < size {
            let len = (size - done).min(COPY_PART);
            let (Some(from), Some(to)) = (from.part(done, len), to.part(done, len)) else {
                return Err(Failure::Fault(from.offset()));
            };
            cage.copy(from, to)
                .map_err(|fault| Failure::Fault(fault.0))?;
            done += len;
            self.in_time(done < size)?;
        }
        Ok(0)
    }

    /// Ends the kernel if there is more to do and no time left.
    fn in_time(&self, more: bool) -> Result<(), Failure> {
        match more && self.term.is_over() {
            true => Err(self.term.failure()),
            false => Ok(()),
        }
    }

    /// Emits what is in the output region already, which may overlap its target: beginning at the
    /// end of which nothing is overwritten before it was copied.
    fn emit_again(&self, cage: &mut Cage, from: CagePtr, to: CagePtr) -> Result<(), Failure> {
        let size = from.len();
        let mut buffer = vec![0; size.min(MOVE_PART) as usize];
        let mut done = 0;
        while done < size {
            let len = (size - done).min(MOVE_PART);
            let at = match from.offset() < to.offset() {
                true => size - done - len,
                false => done,
            };
            let (Some(from), Some(to)) = (from.part(at, len), to.part(at, len)) else {
                return Err(Failure::Fault(from.offset()));
            };
            let bytes = &mut buffer[..len as usize];
            cage.read_bytes(from, bytes)
                .and_then(|()| cage.write_bytes(to, bytes))
                .map_err(|fault| Failure::Fault(fault.0))?;
            done += len;
            self.in_time(done < size)?;
        }
        Ok(())
    }

    /// Makes the next `size` bytes of the output region output.
    fn extend_output(&mut self, cage: &Cage, size: u64) -> Result<CagePtr, Failure> {
        let end = self.emitted.checked_add(size);
        let end = end.filter(|end| *end <= self.places.output_limit);
        let end = end.ok_or(Failure::Limit("output"))?;
        let at = cage.address(Region::Output) + self.emitted;
        let to = self.checked(cage, at, size, Access::Write)?;
        self.emitted = end;
        Ok(to)
    }

    /// Appends bytes of the kernel.
    fn append(&mut self, cage: &mut Cage, from: u64, size: u64) -> Outcome {
        let from = self.checked(cage, from, size, Access::Read)?;
        let end = (self.appended.len() as u64).saturating_add(size);
        if end.div_ceil(BLOCK) > self.request.limits.blocks_appended {
            return Err(Failure::Limit("blocks appended"));
        }
        let mut done = 0;
        while done < size {
            let part = from.part(done, (size - done).min(COPY_PART));
            let part = part.ok_or(Failure::Fault(from.offset()))?;
            let at = self.appended.len();
            self.appended.resize(at + part.len() as usize, 0);
            cage.read_bytes(part, &mut self.appended[at..])
                .map_err(|fault| Failure::Fault(fault.0))?;
            done += part.len();
            self.in_time(done < size)?;
        }
        Ok(0)
    }

    /// Writes a line to the log of the host, cut and escaped. At a level that is off by default:
    /// any user can write kernels, and kernels can be run very often.
    fn write_log(&mut self, text: &[u8]) {
        self.logged = self.logged.saturating_add(1);
        if self.logged > LOG_LINES_MAX {
            return;
        }
        let text = text[..text.len().min(LOG_BYTES_MAX)].escape_ascii();
        tracing::debug!(target: "csd_vm::kernel", inode = self.request.file.inode, "{text}");
    }
}

impl Helpers for Execution<'_> {
    fn call(&mut self, cage: &mut Cage, number: u32, arguments: [u64; 5]) -> Called {
        self.usage.helper_calls += 1;
        self.helper = helper_name(number).unwrap_or("helper");
        let outcome = match self.term.is_called_off() {
            true => Err(self.term.failure()),
            false => self.dispatch(cage, number, arguments),
        };
        match outcome {
            Ok(value) => Called::Value(value),
            Err(failure) => {
                self.failure = Some(failure);
                Called::Abort
            }
        }
    }

    fn is_called_off(&self) -> bool {
        self.term.is_called_off()
    }
}
