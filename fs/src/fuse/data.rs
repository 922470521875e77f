//! Contents of files: who reads and writes, where to, and what it is a part of.
//!
//! A request goes to kernels if its handle has any, to the session of an atomic write if there is one
//! that it belongs to, and to the volume otherwise.

use std::cell::RefCell;

use fuser::{Errno, FileHandle, LockOwner, ReplyData, ReplyWrite, Request};
use zns_backend::DmaBuffer;

use super::Adapter;
use super::kernels::HANDLE_DIRECT;
use crate::types::Ino;
use crate::volume::types::Time;

/// Most bytes one copy request moves, so that it can be interrupted and its length fits the reply.
const COPY_LEN_MAX: u64 = 64 << 20;

thread_local! {
    /// Read buffer of an event loop, kept from request to request. Its alignment lets devices
    /// transfer to it directly.
    static READ_BUFFER: RefCell<Option<DmaBuffer>> = const { RefCell::new(None) };
}

/// The first `len` bytes of `buffer`, replaced by a larger one if it is shorter.
fn room(buffer: &mut Option<DmaBuffer>, len: usize) -> &mut [u8] {
    if buffer.as_ref().is_none_or(|buffer| buffer.len() < len) {
        // Let go of first, so that never both are in memory.
        *buffer = None;
    }
    let buffer = buffer.get_or_insert_with(|| DmaBuffer::new(len.next_power_of_two()));
    &mut buffer[..len]
}

/// A read.
pub(super) struct FileRead {
    pub(super) ino: Ino,
    pub(super) handle: FileHandle,
    /// Of whoever waits for the bytes; there is none when the page cache is filled.
    pub(super) locks: Option<LockOwner>,
    pub(super) offset: u64,
    pub(super) size: u32,
}

/// A write.
pub(super) struct FileWrite<'a> {
    pub(super) ino: Ino,
    pub(super) handle: FileHandle,
    pub(super) locks: Option<LockOwner>,
    pub(super) offset: u64,
    pub(super) data: &'a [u8],
    /// Pages of the page cache are written back: by no particular handle.
    pub(super) from_cache: bool,
    pub(super) kill_privileges: bool,
    /// Whoever writes wants it durable on return.
    pub(super) synchronous: bool,
}

/// An offset in an open file.
pub(super) struct Place {
    pub(super) ino: Ino,
    pub(super) handle: FileHandle,
    pub(super) offset: u64,
}

impl Adapter {
    pub(super) fn read_file(&self, request: &Request, read: &FileRead, reply: ReplyData) {
        if let Some(job) = self.read_job(request, read) {
            return self.read_through_kernels(job, read, reply);
        }
        let FileRead {
            ino, offset, size, ..
        } = *read;
        let session = self
            .core
            .reads_session(ino, read.handle, read.locks.is_some());
        READ_BUFFER.with_borrow_mut(|buffer| {
            let _absence = self.gate.step_out();
            let result = self.core.run("read", ino, |volume| {
                let size = size as usize;
                if let Some(owner) = session
                    && let Some(range) =
                        volume.read_atomic(ino, owner, offset, size, |len| room(buffer, len))?
                {
                    return Ok(range);
                }
                volume.read_with(ino, offset, size, |len| room(buffer, len))
            });
            match result {
                Ok(range) => reply.data(buffer.as_deref().map_or(&[], |bytes| &bytes[range])),
                Err(errno) => reply.error(errno),
            }
        });
    }

    pub(super) fn write_file(&self, request: &Request, write: &FileWrite<'_>, reply: ReplyWrite) {
        if let Some(job) = self.write_job(request, write) {
            return self.write_through_kernels(job, write, reply);
        }
        let FileWrite {
            ino, offset, data, ..
        } = *write;
        let kill = write.kill_privileges;
        // Pages that are written back changed earlier; the kernel sends their mtime by setattr.
        let now = (!write.from_cache).then(Time::now);
        let session = self
            .core
            .writes_session(ino, Some(write.handle), write.from_cache);
        let result = self.core.change("write", ino, |volume| {
            if let Some(owner) = session
                && volume.write_atomic(ino, owner, offset, data, kill)?
            {
                return Ok(());
            }
            volume.write(ino, offset, data, kill, now)?;
            if write.commits() {
                volume.fsync(ino)?;
            }
            Ok(())
        });
        match result {
            Ok(()) => {
                self.core.stale.note(ino);
                let last = !write.from_cache || !self.core.written_times.follow();
                self.answer_and_anticipate(last, || reply.written(data.len() as u32));
            }
            Err(errno) => reply.error(errno),
        }
    }

    pub(super) fn copy_between_files(
        &self,
        request: &Request,
        from: &Place,
        to: &Place,
        len: u64,
        reply: ReplyWrite,
    ) {
        if self.copies_through_kernels(request, from, to) {
            return reply.error(Errno::EINVAL);
        }
        let session = self.core.writes_session(to.ino, Some(to.handle), false);
        if session.is_some() {
            // The kernel then reads and writes, which is a part of the session.
            return reply.error(Errno::EOPNOTSUPP);
        }
        let len = len.min(COPY_LEN_MAX);
        let result = self.core.change("copy_file_range", to.ino, |volume| {
            volume.copy_range(from.ino, from.offset, to.ino, to.offset, len)
        });
        match result {
            Ok(copied) => reply.written(copied as u32),
            Err(errno) => reply.error(errno),
        }
    }
}

impl FileWrite<'_> {
    /// Whether the write itself has to see to it that it is durable: the kernel follows a cached
    /// O_SYNC write with an fsync of its own, but no direct one.
    pub(super) fn commits(&self) -> bool {
        self.synchronous && !self.from_cache && self.handle.0 & HANDLE_DIRECT != 0
    }
}
