//! Requests that kernels have a part in: which handles, which requests, and how they are answered.
//!
//! The bits of a handle say whether [`Offload`](crate::offload::Offload) knows it; only then is
//! it asked, so that ordinary requests see a bit test. Even through such a handle only the requests
//! that a process waits for itself go to kernels: those carry the owner of locks. Requests that
//! fill or write back the page cache (of a mapping, of splice) do not, and see the file as
//! everybody does: kernel output never gets into the page cache.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use fuser::{
    Errno, FileHandle, FopenFlags, INodeNo, Notifier, ReplyData, ReplyEmpty, ReplyWrite, Request,
};

use super::Adapter;
use super::data::{FileRead, FileWrite, Place};
use super::ops::answer;
use crate::offload::value::Attribute;
use crate::offload::{PageCache, ReadJob, Requester, SetRequest, WriteJob, WriteRequest};
use crate::types::Ino;
use crate::volume::types::{Caller, XattrFlags};

/// Handle bit: the handle bypasses the page cache.
pub(super) const HANDLE_DIRECT: u64 = 1;
/// Handle bit: the rest is the number that `offload` gave it. Otherwise it is one of the adapter's:
/// every handle of a file is another one.
const HANDLE_NUMBERED: u64 = 2;
/// Handle bit: it was opened for writing.
pub(super) const HANDLE_WRITABLE: u64 = 4;
/// Handle bit: reads and writes bypass the page cache, whoever sees to it.
pub(super) const HANDLE_UNCACHED: u64 = 8;
/// Handle bit: the daemon's own, which nobody counts.
pub(super) const HANDLE_OWN: u64 = 16;
const NUMBER_SHIFT: u32 = 5;

/// The number that `offload` gave a handle, if it did.
pub(super) fn number(handle: FileHandle) -> Option<u64> {
    (handle.0 & HANDLE_NUMBERED != 0).then_some(handle.0 >> NUMBER_SHIFT)
}

/// Who makes a request.
fn requester(request: &Request) -> Requester {
    Requester {
        thread: request.pid(),
        uid: request.uid(),
        gid: request.gid(),
    }
}

impl Adapter {
    /// The handle of a file opened with `flags` of open(2), and how it is cached.
    ///
    /// A direct handle needs no alignment, and its writes run in parallel unless they extend the
    /// file. Under the writeback cache O_DIRECT gets an ordinary handle all the same, whose reads
    /// and writes the kernel passes by the cache: with FOPEN_DIRECT_IO it would keep showing the
    /// mtime it owns and never move it (Linux 6.18). A handle that kernels answer has to do with
    /// that; and it leaves alone what others have cached.
    pub(super) fn handle(&self, caller: &Caller, ino: Ino, flags: i32) -> (FileHandle, FopenFlags) {
        let uncached = self.options.direct_io || flags & libc::O_DIRECT != 0;
        let opened = self.core.offload.open(ino, caller.pid, uncached);
        let direct = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        let cached = if opened.bound {
            direct | FopenFlags::FOPEN_KEEP_CACHE
        } else if self.options.direct_io || (uncached && !self.writeback) {
            direct
        } else {
            FopenFlags::FOPEN_KEEP_CACHE
        };
        let mut handle = 0;
        if cached.contains(FopenFlags::FOPEN_DIRECT_IO) {
            handle |= HANDLE_DIRECT | HANDLE_UNCACHED;
        }
        if uncached {
            handle |= HANDLE_UNCACHED;
        }
        if flags & libc::O_ACCMODE != libc::O_RDONLY {
            handle |= HANDLE_WRITABLE;
        }
        handle |= match opened.number {
            Some(number) => HANDLE_NUMBERED | number << NUMBER_SHIFT,
            None => self.handle_numbers.fetch_add(1, Ordering::Relaxed) << NUMBER_SHIFT,
        };
        (FileHandle(handle), cached)
    }

    /// What kernels have to do with a read.
    pub(super) fn read_job(&self, request: &Request, read: &FileRead) -> Option<ReadJob> {
        read.locks?;
        self.core
            .offload
            .read_job(read.ino, number(read.handle)?, requester(request))
    }

    /// What kernels have to do with a write.
    pub(super) fn write_job(&self, request: &Request, write: &FileWrite<'_>) -> Option<WriteJob> {
        write.locks.filter(|_| !write.from_cache)?;
        self.core
            .offload
            .write_job(write.ino, number(write.handle)?, requester(request))
    }

    /// Whether a copy is to go through kernels: then it must be made of reads and writes.
    pub(super) fn copies_through_kernels(
        &self,
        request: &Request,
        from: &Place,
        to: &Place,
    ) -> bool {
        let (offload, who) = (&self.core.offload, requester(request));
        number(from.handle).is_some_and(|n| offload.read_job(from.ino, n, who).is_some())
            || number(to.handle).is_some_and(|n| offload.write_job(to.ino, n, who).is_some())
    }

    /// Has kernels answer a read. A panic leaves the reply to its destructor, which answers EIO.
    pub(super) fn read_through_kernels(&self, job: ReadJob, read: &FileRead, reply: ReplyData) {
        let FileRead {
            ino, offset, size, ..
        } = *read;
        let then = Box::new(
            move |answer: std::result::Result<&[u8], i32>| match answer {
                Ok(bytes) => reply.data(bytes),
                Err(errno) => reply.error(Errno::from_i32(errno)),
            },
        );
        let _absence = self.gate.step_out();
        let _ = self.core.run("read", ino, |_| {
            self.core
                .offload
                .read(ino, job, offset, size as usize, then);
            Ok(())
        });
    }

    /// Has kernels do a write.
    pub(super) fn write_through_kernels(
        &self,
        job: WriteJob,
        write: &FileWrite<'_>,
        reply: ReplyWrite,
    ) {
        let ino = write.ino;
        let len = write.data.len() as u32;
        let core = Arc::clone(&self.core);
        let then = Box::new(move |outcome: std::result::Result<(), i32>| match outcome {
            Ok(()) => {
                core.stale.note(ino);
                reply.written(len);
            }
            Err(errno) => reply.error(Errno::from_i32(errno)),
        });
        let request = WriteRequest {
            ino,
            offset: write.offset,
            data: write.data.to_vec(),
            kill_privileges: write.kill_privileges,
            sync: write.commits(),
        };
        let _absence = self.gate.step_out();
        // An error here means that changes are refused: the reply was dropped, and answers EIO.
        let _ = self.core.change("write", ino, |_| {
            self.core.offload.write(job, request, then);
            Ok(())
        });
    }

    /// Registers a kernel, after dirty pages of the files it concerns have been written.
    pub(super) fn register(
        &self,
        caller: &Caller,
        ino: Ino,
        attribute: Attribute,
        value: &[u8],
        flags: XattrFlags,
        reply: ReplyEmpty,
    ) {
        let request = SetRequest {
            thread: caller.pid,
            uid: caller.uid,
            gid: caller.gid,
            ino,
            attribute,
            value,
            flags,
        };
        let offload = &self.core.offload;
        let _absence = self.gate.step_out();
        let prepared = match self
            .core
            .change("setxattr", ino, |_| offload.prepare(&request))
        {
            Ok(prepared) => prepared,
            Err(errno) => return reply.error(errno),
        };
        let mut files = prepared.files().to_vec();
        files.retain(|ino| self.core.writers.contains(*ino));
        let core = Arc::clone(&self.core);
        let register = move || {
            let result = core.change("setxattr", ino, |_| core.offload.register(prepared));
            answer(reply, result);
        };
        if files.is_empty() {
            return register();
        }
        self.core.on_write_back(files, move |_| register());
    }
}

/// The page cache of a mount, as the kernel lets us change it.
pub(super) struct Pages(pub(super) Notifier);

impl Pages {
    fn log(ino: Ino, outcome: std::io::Result<()>) {
        // The kernel has forgotten an inode that nobody uses; then there is nothing to change.
        if let Err(error) = outcome {
            tracing::debug!(inode = ino.0, "page cache: {error}");
        }
    }
}

impl PageCache for Pages {
    fn changed(&self, ino: Ino, offset: u64, len: u64) {
        let (offset, len) = (offset as i64, len as i64);
        Pages::log(ino, self.0.inval_inode(INodeNo(ino.0), offset, len));
    }

    /// Under the writeback cache the kernel owns the size; storing bytes behind it moves it.
    fn grown(&self, ino: Ino, end: u64, last: u8) {
        Pages::log(ino, self.0.store(INodeNo(ino.0), end - 1, &[last]));
    }
}
