//! Requests through bound handles: reads and writes that kernels have a part in.
//!
//! The caller's thread does what an ordinary request would do and hands the rest to the device; the
//! answer is given from the device's thread, out of the kernel's output without a copy. A failure
//! is an errno for whoever made the request and a line in the log (fewer of them as they repeat).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use csd_vm::request::{Completion, Failure, FileIdentity, Limits, Operation, Request};

use super::Offload;
use super::dying::Waiter;
use super::flights::{CALLED_OFF, Waits};
use super::limits::{
    APPENDED_BYTES, BLOCKS_READ_MIN, HEAP_BYTES, OUTPUT_BYTES, PASSES, QUEUE_DEPTH, Resource,
    Share, VIEW_STEP,
};
use super::registry::{Handle, Registration, Requester};
use super::value::operation_name;
use super::view::{Output, ReadReply, Unanswered, Waiting};
use crate::error::{Error, Result, Scarce};
use crate::types::{BLOCK, Ino};
use crate::volume::types::Time;

/// Answers a write with success, or with an errno.
pub type WriteReply = Box<dyn FnOnce(std::result::Result<(), i32>) + Send>;

/// A read that kernels have a part in.
pub struct ReadJob {
    handle: Arc<Handle>,
    waiter: Waiter,
    stream: Option<Arc<Registration>>,
    event: Option<Arc<Registration>>,
}

/// A write that kernels have a part in.
pub struct WriteJob {
    waiter: Waiter,
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
type Outcome<'a> = std::result::Result<Completion<'a>, Unanswered>;

impl Offload {
    /// What a read through a handle is to do; `None` if no kernel has a part in it.
    #[must_use]
    pub fn read_job(&self, ino: Ino, number: u64, who: Requester) -> Option<ReadJob> {
        if self.registry.is_idle() {
            return None;
        }
        let handle = self.registry.handle(ino, number)?;
        let operations = [Operation::ReadStream, Operation::ReadEvent];
        let [stream, event] = handle.registrations(operations, who);
        (stream.is_some() || event.is_some()).then_some(ReadJob {
            waiter: handle.waiter(who),
            handle,
            stream,
            event,
        })
    }

    /// What a write through a handle is to do; `None` if no kernel has a part in it.
    #[must_use]
    pub fn write_job(&self, ino: Ino, number: u64, who: Requester) -> Option<WriteJob> {
        if self.registry.is_idle() {
            return None;
        }
        let handle = self.registry.handle(ino, number)?;
        let operations = [Operation::WriteStream, Operation::WriteEvent];
        let [stream, event] = handle.registrations(operations, who);
        (stream.is_some() || event.is_some()).then_some(WriteJob {
            waiter: handle.waiter(who),
            stream,
            event,
        })
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
        let read = Waiting {
            waiter: job.waiter,
            offset,
            size,
            reply,
        };
        match job.stream {
            Some(stream) if stream.view => self.read_view(&job.handle, &stream, read),
            Some(stream) => self.read_stream(&stream, job.event, read),
            None => self.read_ordinary(ino, job.event, read),
        }
    }

    fn read_view(
        self: &Arc<Offload>,
        handle: &Arc<Handle>,
        stream: &Arc<Registration>,
        read: Waiting,
    ) {
        let Some(run) = handle.views.read(stream.number, read) else {
            return;
        };
        let (handle, of) = (Arc::clone(handle), Arc::clone(stream));
        let waits = Waits::View(Arc::clone(&handle), run);
        let request = self.request(stream, 0, stream.snapshot.size(), Vec::new());
        self.run(stream, waits, request, move |outcome| {
            let output = outcome.and_then(|completion| keep(&of, completion.output));
            handle.views.finish(run, output);
        });
    }

    fn read_stream(
        self: &Arc<Offload>,
        stream: &Arc<Registration>,
        event: Option<Arc<Registration>>,
        read: Waiting,
    ) {
        let left = stream.snapshot.size().saturating_sub(read.offset);
        if left == 0 {
            return (read.reply)(Ok(&[]));
        }
        let size = left.min(read.size as u64);
        let request = self.request(stream, read.offset, size, Vec::new());
        let (offload, waits) = (Arc::clone(self), Waits::Thread(read.waiter));
        self.run(stream, waits, request, move |outcome| {
            match (outcome, event) {
                (Ok(completion), None) => (read.reply)(Ok(first(completion.output, read.size))),
                (Ok(completion), Some(event)) => {
                    let data = first(completion.output, read.size).to_vec();
                    offload.read_event(&event, data, read);
                }
                (Err(unanswered), _) => (read.reply)(Err(unanswered.errno)),
            }
        });
    }

    fn read_ordinary(
        self: &Arc<Offload>,
        ino: Ino,
        event: Option<Arc<Registration>>,
        read: Waiting,
    ) {
        let mut data = Vec::new();
        let outcome = self.volume.read(ino, read.offset, read.size, &mut data);
        match (outcome, event) {
            (Ok(()), Some(event)) => self.read_event(&event, data, read),
            (Ok(()), None) => (read.reply)(Ok(&data)),
            (Err(error), _) => (read.reply)(Err(error.errno())),
        }
    }

    /// The end of the file stays the end of the file: a read of nothing runs no kernel.
    fn read_event(self: &Arc<Offload>, event: &Arc<Registration>, data: Vec<u8>, read: Waiting) {
        if data.is_empty() {
            return (read.reply)(Ok(&[]));
        }
        let request = self.request(event, read.offset, data.len() as u64, data.clone());
        let waits = Waits::Thread(read.waiter);
        self.run(event, waits, request, move |outcome| match outcome {
            Ok(completion) => {
                let mut data = data;
                let room = read.size.saturating_sub(data.len());
                data.extend_from_slice(first(completion.output, room));
                (read.reply)(Ok(&data));
            }
            Err(unanswered) => (read.reply)(Err(unanswered.errno)),
        });
    }

    /// Carries out a write. `reply` is called once, on any thread.
    pub fn write(self: &Arc<Offload>, job: WriteJob, write: WriteRequest, reply: WriteReply) {
        let (event, waiter) = (job.event, job.waiter);
        let Some(stream) = job.stream else {
            let now = Some(Time::now());
            let (ino, offset) = (write.ino, write.offset);
            let written = self
                .volume
                .write(ino, offset, &write.data, write.kill_privileges, now);
            return match written {
                Ok(()) => self.written(event, waiter, write, reply),
                Err(error) => reply(Err(error.errno())),
            };
        };
        let size = write.data.len() as u64;
        let request = self.request(&stream, write.offset, size, write.data);
        let offload = Arc::clone(self);
        let waits = Waits::Thread(waiter);
        self.run(&stream, waits, request, move |outcome| match outcome {
            Ok(completion) => {
                let write = WriteRequest {
                    data: completion.output.to_vec(),
                    ..write
                };
                match offload.replace(&write, size, completion.appended) {
                    Ok(()) => offload.written(event, waiter, write, reply),
                    Err(error) => reply(Err(error.errno())),
                }
            }
            Err(unanswered) => reply(Err(unanswered.errno)),
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
        waiter: Waiter,
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
        let waits = Waits::Thread(waiter);
        self.run(&event, waits, request, move |outcome| match outcome {
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
            Err(unanswered) => reply(Err(unanswered.errno)),
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

    /// Hands a request to the device. `done` is called once, with the output or why there is none.
    fn run(
        self: &Arc<Offload>,
        registration: &Arc<Registration>,
        waits: Waits,
        request: Request,
        done: impl FnOnce(Outcome<'_>) + Send + 'static,
    ) {
        let turn = match Turn::take(registration, request.data.len()) {
            Ok(turn) => turn,
            Err(error) => return done(Err(refuse(registration, &error))),
        };
        let (ticket, wake) = self.flights.begin(registration, waits);
        if wake {
            self.watch.wake();
        }
        // One that ended since the request found it may have been called off before.
        let device = self.device.lock().clone();
        let Some(device) = device.filter(|_| !registration.has_ended()) else {
            return done(Err(Unanswered {
                errno: CALLED_OFF,
                lasting: false,
            }));
        };
        let (offload, of) = (Arc::clone(self), Arc::clone(registration));
        let cancellation = ticket.cancellation.clone();
        let finish = Box::new(move |completion: Completion<'_>| {
            drop((ticket, turn));
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
        device.submit_cancellable(&registration.activation, request, &cancellation, finish);
    }
}

/// Leave to be under way with a request.
struct Turn {
    registration: Arc<Registration>,
    _shares: [Share; 2],
}

impl Turn {
    /// Takes it for a request with so many bytes of data.
    ///
    /// # Errors
    /// `LimitReached`.
    fn take(registration: &Arc<Registration>, bytes: usize) -> Result<Turn> {
        let account = &registration.account;
        let shares = [
            account.take(Resource::Requests, 1)?,
            account.take(Resource::RequestBytes, bytes as u64)?,
        ];
        let before = registration.in_flight.fetch_add(1, Ordering::Relaxed);
        let turn = Turn {
            registration: Arc::clone(registration),
            _shares: shares,
        };
        if before >= QUEUE_DEPTH {
            return Err(Error::LimitReached {
                most: QUEUE_DEPTH as u64,
                what: "requests under way",
                whose: "of one registration",
                scarce: Scarce::Turn,
            });
        }
        Ok(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.registration.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Keeps the output of a view.
fn keep(registration: &Registration, bytes: &[u8]) -> std::result::Result<Arc<Output>, Unanswered> {
    let share = registration
        .account
        .take(Resource::ViewBytes, bytes.len() as u64)
        .map_err(|error| refuse(registration, &error))?;
    Ok(Arc::new(Output {
        bytes: bytes.to_vec(),
        _share: share,
    }))
}

/// Logs that there was no room for a request or its output.
fn refuse(registration: &Registration, error: &Error) -> Unanswered {
    log_failure(registration, error);
    Unanswered {
        errno: error.errno(),
        lasting: false,
    }
}

/// Logs why an execution failed, and gives its errno. What was called off is what somebody wanted.
fn report(registration: &Registration, failure: &Failure) -> Unanswered {
    let error = match failure {
        Failure::Cancelled | Failure::Stopped => {
            return Unanswered {
                errno: CALLED_OFF,
                lasting: false,
            };
        }
        Failure::TimedOut(_) | Failure::ProcessorTime(_) => {
            Error::KernelTimedOut(failure.to_string())
        }
        _ => Error::KernelFailed(failure.to_string()),
    };
    log_failure(registration, &error);
    Unanswered {
        errno: error.errno(),
        lasting: true,
    }
}

fn log_failure(registration: &Registration, error: &Error) {
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
}

fn first(bytes: &[u8], size: usize) -> &[u8] {
    &bytes[..bytes.len().min(size)]
}
