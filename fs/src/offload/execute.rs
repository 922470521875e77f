//! Requests through bound handles: reads and writes that kernels have a part in.
//!
//! The caller's thread does what an ordinary request would do and hands the rest to the device; the
//! answer is given from the device's thread, out of the kernel's output without a copy. A failure
//! is an errno for whoever made the request and a line in the log (fewer of them as they repeat).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use csd_vm::request::{Completion, Failure, FileIdentity, Limits, Operation, Request};

use super::registry::{Handle, Registration};
use super::value::operation_name;
use super::view::{Output, ReadReply, Waiting};
use super::{Offload, QUEUE_DEPTH};
use crate::error::{Error, Result};
use crate::types::{BLOCK, Ino};
use crate::volume::types::Time;

/// Heap of a kernel, in bytes.
const HEAP_BYTES: u64 = 64 << 20;
/// Most bytes an execution returns.
const OUTPUT_BYTES: u64 = 64 << 20;
/// Most bytes an execution appends.
const APPENDED_BYTES: u64 = 64 << 20;
/// A kernel may read every block of its snapshot this many times, and [`BLOCKS_READ_MIN`] at least.
const PASSES: u64 = 4;
const BLOCKS_READ_MIN: u64 = 1 << 18;
/// Bytes of a view that the default time is given for; larger views get as much more.
const VIEW_STEP: u64 = 64 << 20;

/// Answers a write with success, or with an errno.
pub type WriteReply = Box<dyn FnOnce(std::result::Result<(), i32>) + Send>;

/// A read that kernels have a part in.
pub struct ReadJob {
    handle: Arc<Handle>,
    stream: Option<Arc<Registration>>,
    event: Option<Arc<Registration>>,
}

/// A write that kernels have a part in.
pub struct WriteJob {
    stream: Option<Arc<Registration>>,
    event: Option<Arc<Registration>>,
}

/// What is written.
pub struct WriteRequest {
    /// The file.
    pub ino: Ino,
    /// First byte.
    pub offset: u64,
    /// The bytes.
    pub data: Vec<u8>,
    /// The write ends set-ID bits and capabilities.
    pub kill_privileges: bool,
    /// The write is durable when it is answered.
    pub sync: bool,
}

/// What an execution gave.
type Outcome<'a> = std::result::Result<Completion<'a>, i32>;

impl Offload {
    /// What a read by `thread` through a handle is to do; `None` if no kernel has a part in it.
    #[must_use]
    pub fn read_job(&self, ino: Ino, number: u64, thread: u32) -> Option<ReadJob> {
        if self.registry.is_idle() {
            return None;
        }
        let handle = self.registry.used(ino, number, thread)?;
        let stream = handle.registration(Operation::ReadStream);
        let event = handle.registration(Operation::ReadEvent);
        (stream.is_some() || event.is_some()).then_some(ReadJob {
            handle,
            stream,
            event,
        })
    }

    /// What a write by `thread` through a handle is to do; `None` if no kernel has a part in it.
    #[must_use]
    pub fn write_job(&self, ino: Ino, number: u64, thread: u32) -> Option<WriteJob> {
        if self.registry.is_idle() {
            return None;
        }
        let handle = self.registry.used(ino, number, thread)?;
        let stream = handle.registration(Operation::WriteStream);
        let event = handle.registration(Operation::WriteEvent);
        (stream.is_some() || event.is_some()).then_some(WriteJob { stream, event })
    }

    /// Carries out a read. `reply` is called once, on any thread.
    pub fn read(
        self: &Arc<Offload>,
        ino: Ino,
        job: ReadJob,
        offset: u64,
        size: usize,
        reply: ReadReply,
    ) {
        match job.stream {
            Some(stream) if stream.view => {
                self.read_view(&job.handle, &stream, offset, size, reply)
            }
            Some(stream) => self.read_stream(&stream, job.event, offset, size, reply),
            None => self.read_ordinary(ino, job.event, offset, size, reply),
        }
    }

    fn read_view(
        self: &Arc<Offload>,
        handle: &Arc<Handle>,
        stream: &Arc<Registration>,
        offset: u64,
        size: usize,
        reply: ReadReply,
    ) {
        let waiting = Waiting {
            offset,
            size,
            reply,
        };
        if !handle.views.read(stream.number, waiting) {
            return;
        }
        let (offload, handle, number) = (Arc::clone(self), Arc::clone(handle), stream.number);
        let request = self.request(stream, 0, stream.snapshot.size(), Vec::new());
        self.run(stream, request, move |outcome| {
            let output = outcome.and_then(|completion| {
                Output::keep(completion.output, &offload.kept_bytes).ok_or(libc::ENOMEM)
            });
            handle.views.finish(number, output);
        });
    }

    fn read_stream(
        self: &Arc<Offload>,
        stream: &Arc<Registration>,
        event: Option<Arc<Registration>>,
        offset: u64,
        size: usize,
        reply: ReadReply,
    ) {
        let left = stream.snapshot.size().saturating_sub(offset);
        if left == 0 {
            return reply(Ok(&[]));
        }
        let request = self.request(stream, offset, left.min(size as u64), Vec::new());
        let offload = Arc::clone(self);
        self.run(stream, request, move |outcome| match (outcome, event) {
            (Ok(completion), None) => reply(Ok(first(completion.output, size))),
            (Ok(completion), Some(event)) => {
                let data = first(completion.output, size).to_vec();
                offload.read_event(&event, offset, size, data, reply);
            }
            (Err(errno), _) => reply(Err(errno)),
        });
    }

    fn read_ordinary(
        self: &Arc<Offload>,
        ino: Ino,
        event: Option<Arc<Registration>>,
        offset: u64,
        size: usize,
        reply: ReadReply,
    ) {
        let mut data = Vec::new();
        match (self.volume.read(ino, offset, size, &mut data), event) {
            (Ok(()), Some(event)) => self.read_event(&event, offset, size, data, reply),
            (Ok(()), None) => reply(Ok(&data)),
            (Err(error), _) => reply(Err(error.errno())),
        }
    }

    /// The end of the file stays the end of the file: a read of nothing runs no kernel.
    fn read_event(
        self: &Arc<Offload>,
        event: &Arc<Registration>,
        offset: u64,
        size: usize,
        data: Vec<u8>,
        reply: ReadReply,
    ) {
        if data.is_empty() {
            return reply(Ok(&[]));
        }
        let request = self.request(event, offset, data.len() as u64, data.clone());
        self.run(event, request, move |outcome| match outcome {
            Ok(completion) => {
                let mut data = data;
                let room = size.saturating_sub(data.len());
                data.extend_from_slice(first(completion.output, room));
                reply(Ok(&data));
            }
            Err(errno) => reply(Err(errno)),
        });
    }

    /// Carries out a write. `reply` is called once, on any thread.
    pub fn write(self: &Arc<Offload>, job: WriteJob, write: WriteRequest, reply: WriteReply) {
        let event = job.event;
        let Some(stream) = job.stream else {
            let now = Some(Time::now());
            let (ino, offset) = (write.ino, write.offset);
            let written = self
                .volume
                .write(ino, offset, &write.data, write.kill_privileges, now);
            return match written {
                Ok(()) => self.written(event, write, reply),
                Err(error) => reply(Err(error.errno())),
            };
        };
        let size = write.data.len() as u64;
        let request = self.request(&stream, write.offset, size, write.data);
        let offload = Arc::clone(self);
        self.run(&stream, request, move |outcome| match outcome {
            Ok(completion) => {
                let write = WriteRequest {
                    data: completion.output.to_vec(),
                    ..write
                };
                match offload.replace(&write, size, completion.appended) {
                    Ok(()) => offload.written(event, write, reply),
                    Err(error) => reply(Err(error.errno())),
                }
            }
            Err(errno) => reply(Err(errno)),
        });
    }

    /// Writes what a kernel made of the `size` bytes it was given, and appends what it appended.
    fn replace(&self, write: &WriteRequest, size: u64, appended: &[u8]) -> Result<()> {
        let WriteRequest { ino, offset, .. } = *write;
        self.volume
            .replace(ino, offset, size, &write.data, write.kill_privileges)?;
        let len = write.data.len() as u64;
        if let Some(mount) = self.mount.get()
            && len > size
        {
            // The kernel that asked for the write knows of `size` bytes.
            mount.cache.changed(ino, offset + size, len - size);
            if self.volume.getattr(ino)?.size == offset + len
                && let Some(last) = write.data.last()
            {
                mount.cache.grown(ino, offset + len, *last);
            }
        }
        self.append(ino, appended)
    }

    /// The data is in the file; an event kernel may have more to say.
    fn written(
        self: &Arc<Offload>,
        event: Option<Arc<Registration>>,
        write: WriteRequest,
        reply: WriteReply,
    ) {
        let Some(event) = event else {
            return self.finish_write(&write, reply);
        };
        let size = write.data.len() as u64;
        let request = self.request(&event, write.offset, size, write.data);
        let write = WriteRequest {
            data: Vec::new(),
            ..write
        };
        let offload = Arc::clone(self);
        self.run(&event, request, move |outcome| match outcome {
            Ok(completion) => {
                let added = match completion.appended {
                    [] => offload.append(write.ino, completion.output),
                    appended => offload.append(write.ino, &[completion.output, appended].concat()),
                };
                match added {
                    Ok(()) => offload.finish_write(&write, reply),
                    Err(error) => reply(Err(error.errno())),
                }
            }
            Err(errno) => reply(Err(errno)),
        });
    }

    fn finish_write(&self, write: &WriteRequest, reply: WriteReply) {
        if !write.sync {
            return reply(Ok(()));
        }
        let then = move |outcome: Result<()>| reply(outcome.map_err(|error| error.errno()));
        if let Some(lead) = self.volume.fsync_then(write.ino, Box::new(then)) {
            lead.run();
        }
    }

    fn append(&self, ino: Ino, data: &[u8]) -> Result<()> {
        let Some(last) = data.last() else {
            return Ok(());
        };
        let at = self.volume.append(ino, data)?;
        if let Some(mount) = self.mount.get() {
            mount.cache.changed(ino, at, data.len() as u64);
            mount.cache.grown(ino, at + data.len() as u64, *last);
        }
        Ok(())
    }

    fn request(
        &self,
        registration: &Registration,
        offset: u64,
        size: u64,
        data: Vec<u8>,
    ) -> Request {
        let snapshot_size = registration.snapshot.size();
        let steps = match registration.view {
            true => snapshot_size
                .div_ceil(VIEW_STEP)
                .clamp(1, u64::from(u32::MAX)),
            false => 1,
        };
        let default = || self.options.timeout.saturating_mul(steps as u32);
        let appends = matches!(
            registration.operation,
            Operation::WriteStream | Operation::WriteEvent
        );
        Request {
            operation: registration.operation,
            offset,
            size,
            snapshot: Arc::clone(&registration.snapshot),
            file: FileIdentity {
                inode: registration.ino.0,
                parent: 0,
            },
            data,
            arguments: Arc::clone(&registration.arguments),
            limits: Limits {
                time: registration.timeout.unwrap_or_else(default),
                processor: registration.processor,
                heap: HEAP_BYTES,
                output: OUTPUT_BYTES,
                blocks_read: (PASSES * snapshot_size.div_ceil(BLOCK)).max(BLOCKS_READ_MIN),
                blocks_appended: if appends { APPENDED_BYTES / BLOCK } else { 0 },
            },
        }
    }

    /// Hands a request to the device. `done` is called once, with the output or an errno.
    fn run(
        self: &Arc<Offload>,
        registration: &Arc<Registration>,
        request: Request,
        done: impl FnOnce(Outcome<'_>) + Send + 'static,
    ) {
        let device = self.device.lock().clone();
        let waiting = registration.in_flight.fetch_add(1, Ordering::Relaxed);
        let Some(device) = device.filter(|_| waiting < QUEUE_DEPTH) else {
            registration.in_flight.fetch_sub(1, Ordering::Relaxed);
            return done(Err(libc::EAGAIN));
        };
        let (offload, of) = (Arc::clone(self), Arc::clone(registration));
        let finish = Box::new(move |completion: Completion<'_>| {
            of.in_flight.fetch_sub(1, Ordering::Relaxed);
            let outcome = match &completion.status {
                Ok(_) => Ok(completion),
                Err(failure) => Err(report(&of, failure)),
            };
            if catch_unwind(AssertUnwindSafe(|| done(outcome))).is_err() {
                // State in memory may be half changed. The reply answers by being dropped.
                offload
                    .volume
                    .store()
                    .latch_read_only("internal error after a kernel");
            }
        });
        device.submit(&registration.activation, request, finish);
    }
}

/// Logs why an execution failed, and gives its errno.
fn report(registration: &Registration, failure: &Failure) -> i32 {
    let error = match failure {
        Failure::TimedOut(_) | Failure::ProcessorTime(_) => {
            Error::KernelTimedOut(failure.to_string())
        }
        _ => Error::KernelFailed(failure.to_string()),
    };
    let count = registration.failures.fetch_add(1, Ordering::Relaxed) + 1;
    if count.is_power_of_two() {
        tracing::warn!(
            inode = registration.ino.0,
            pid = registration.owner.pid,
            count,
            "csd_{} failed: {error}",
            operation_name(registration.operation)
        );
    }
    error.errno()
}

fn first(bytes: &[u8], size: usize) -> &[u8] {
    &bytes[..bytes.len().min(size)]
}
