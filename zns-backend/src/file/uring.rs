//! The queue of a file device: io_uring with a registered file and registered buffers.
//!
//! Submissions take the submission lock, completions the completion lock; a waiter sleeps in the
//! kernel with only the latter, so both sides run at the same time. A request the device refuses
//! becomes a no-op in the ring, so that it wakes a sleeping waiter like any other completion.
//!
//! The state machine decides at submission and the write pointer advances there, so several writes
//! to a zone may be in flight. Reading blocks whose write has not completed is the caller's mistake:
//! it answers anything. Short transfers, and requests the kernel gave up because their submitting
//! thread ended, are continued here.
//!
//! Invariant: a slot is in the free list, or its request is in the ring or in the hands of the one
//! thread that moves it. Memory of a request stays with its slot until the kernel is done.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{FileDevice, FlushKind, Inner};
use crate::buffer::DmaBuffer;
use crate::device::{Completion, DeviceQueue, Request};
use crate::error::{Error, Result};
use crate::geometry::Lba;
use crate::queue::{SyncQueue, payload};
use crate::shared_zones::blocks_in;

/// Deepest queue there is; a request for more gets this.
const DEPTH_MAX: u32 = 4096;
/// Longest transfer given to the kernel at once.
const TRANSFER_BYTES_MAX: u64 = 1 << 30;
/// The data file's index among the registered files.
const DATA: types::Fixed = types::Fixed(0);

/// A queue to `device`, synchronous if the host has no io_uring for us.
pub(super) fn queue(device: &FileDevice, depth: u32) -> Result<Box<dyn DeviceQueue>> {
    match UringQueue::new(device, depth.clamp(1, DEPTH_MAX)) {
        Ok(queue) => Ok(Box::new(queue)),
        Err(source) => match source.raw_os_error() {
            Some(libc::ENOSYS | libc::EPERM) => {
                static WARNED: AtomicBool = AtomicBool::new(false);
                if !WARNED.swap(true, Ordering::Relaxed) {
                    tracing::warn!("the host refuses io_uring ({source}); I/O is synchronous");
                }
                Ok(Box::new(SyncQueue::new(Arc::new(device.clone()))))
            }
            _ => Err(Error::io("setting up io_uring", source)),
        },
    }
}

struct UringQueue {
    ring: IoUring,
    /// Whether the device's pool is registered with the ring.
    fixed: bool,
    /// Held while an entry is pushed and handed to the kernel.
    submission: Mutex<()>,
    /// Held while completions are taken and while waiting for one; holds those taken already.
    completion: Mutex<VecDeque<Completion>>,
    slots: Mutex<Slots>,
    /// Belongs to `slots`: some became free, or the completion lock did.
    freed: Condvar,
    device: FileDevice,
}

/// The holder of the completion lock. Letting go of it wakes submitters that found no slot, so that
/// one of them can take completions in turn.
struct Taker<'a> {
    queue: &'a UringQueue,
    ready: Option<MutexGuard<'a, VecDeque<Completion>>>,
}

impl Taker<'_> {
    fn ready(&mut self) -> &mut VecDeque<Completion> {
        self.ready.as_mut().expect("held until dropped")
    }
}

impl Drop for Taker<'_> {
    fn drop(&mut self) {
        if let Some(ready) = self.ready.take() {
            MutexGuard::unlock_fair(ready);
        }
        let _slots = self.queue.slots.lock();
        self.queue.freed.notify_all();
    }
}

struct Slots {
    requests: Vec<Option<InFlight>>,
    free: Vec<u32>,
}

struct InFlight {
    token: u64,
    work: Work,
    /// Bytes transferred so far, whole blocks.
    done: u64,
}

enum Work {
    Read {
        lba: Lba,
        buffer: DmaBuffer,
    },
    Write {
        lba: Lba,
        data: Arc<DmaBuffer>,
        bytes: u64,
    },
    Flush(FlushKind),
    Refused {
        error: Error,
        buffer: Option<DmaBuffer>,
    },
}

impl UringQueue {
    fn new(device: &FileDevice, depth: u32) -> io::Result<UringQueue> {
        let ring = IoUring::new(depth)?;
        ring.submitter()
            .register_files(&[device.0.data.file().as_raw_fd()])?;
        let fixed = device.0.pool.as_ref().is_some_and(|pool| {
            // SAFETY: the pool's memory outlives the ring: the queue holds the device, which holds
            // the pool, and the ring is dropped first.
            unsafe { ring.submitter().register_buffers(&pool.io_vectors()) }.is_ok()
        });
        let slots = Slots {
            requests: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
        };
        Ok(UringQueue {
            ring,
            fixed,
            submission: Mutex::new(()),
            completion: Mutex::new(VecDeque::new()),
            slots: Mutex::new(slots),
            freed: Condvar::new(),
            device: device.clone(),
        })
    }

    fn inner(&self) -> &Inner {
        &self.device.0
    }

    /// Lets the device's state machine decide on a request.
    fn accept(&self, request: Request) -> Work {
        let inner = self.inner();
        let geometry = &inner.geometry;
        match request {
            Request::Read { lba, buffer } => {
                let accepted = blocks_in(geometry, buffer.len())
                    .and_then(|blocks| inner.zones.check_read(lba, blocks));
                match accepted {
                    Ok(()) => Work::Read { lba, buffer },
                    Err(error) => Work::Refused {
                        error,
                        buffer: Some(buffer),
                    },
                }
            }
            Request::Write { lba, data, blocks } => {
                let accepted =
                    payload(geometry, &data, blocks).and_then(|_| inner.accept_write(lba, blocks));
                match accepted {
                    Ok(()) => Work::Write {
                        lba,
                        data,
                        bytes: inner.bytes(blocks),
                    },
                    Err(error) => Work::Refused {
                        error,
                        buffer: None,
                    },
                }
            }
            Request::Append { zone, data, blocks } => {
                let accepted = payload(geometry, &data, blocks)
                    .and_then(|_| inner.accept_append(zone, blocks));
                match accepted {
                    Ok(lba) => Work::Write {
                        lba,
                        data,
                        bytes: inner.bytes(blocks),
                    },
                    Err(error) => Work::Refused {
                        error,
                        buffer: None,
                    },
                }
            }
            Request::Flush => Work::Flush(inner.begin_flush()),
        }
    }

    /// The ring entry for what is left of a request.
    fn entry(&self, request: &mut InFlight) -> Entry {
        let done = request.done;
        match &mut request.work {
            Work::Read { lba, buffer } => {
                let (offset, len) = self.piece(*lba, done, buffer.len() as u64);
                let index = self.fixed_index(buffer);
                let target = buffer[done as usize..].as_mut_ptr();
                match index {
                    Some(index) => opcode::ReadFixed::new(DATA, target, len, index)
                        .offset(offset)
                        .build(),
                    None => opcode::Read::new(DATA, target, len).offset(offset).build(),
                }
            }
            Work::Write { lba, data, bytes } => {
                let (offset, len) = self.piece(*lba, done, *bytes);
                let source = data[done as usize..].as_ptr();
                match self.fixed_index(data) {
                    Some(index) => opcode::WriteFixed::new(DATA, source, len, index)
                        .offset(offset)
                        .build(),
                    None => opcode::Write::new(DATA, source, len).offset(offset).build(),
                }
            }
            Work::Flush(kind) => {
                let fsync = opcode::Fsync::new(DATA).flags(types::FsyncFlags::DATASYNC);
                match kind {
                    // A range that holds no dirty page keeps the zone table out of it; journal
                    // and disk are flushed all the same.
                    FlushKind::DataOnly => fsync.offset(self.inner().layout.data).len(1).build(),
                    FlushKind::PageCache | FlushKind::WithTable { .. } => fsync.build(),
                }
            }
            Work::Refused { .. } => opcode::Nop::new().build(),
        }
    }

    fn fixed_index(&self, buffer: &DmaBuffer) -> Option<u16> {
        self.inner()
            .pool
            .as_ref()
            .filter(|_| self.fixed)?
            .index_of(buffer)
    }

    /// Where the next piece of a transfer lies in the file, and its length: up to the zone's end.
    fn piece(&self, lba: Lba, done: u64, total: u64) -> (u64, u32) {
        let inner = self.inner();
        let at = lba.plus(done / u64::from(inner.geometry.block_size));
        let in_zone = inner.bytes(inner.geometry.zone_size - inner.geometry.offset_of(at));
        let len = (total - done).min(in_zone).min(TRANSFER_BYTES_MAX);
        (inner.offset(at), len as u32)
    }

    /// Hands the request in `slot` to the kernel.
    fn start(&self, slot: u32, mut request: InFlight) -> Result<()> {
        let entry = self.entry(&mut request).user_data(u64::from(slot));
        self.slots.lock().requests[slot as usize] = Some(request);
        let _submission = self.submission.lock();
        loop {
            // SAFETY: the submission lock makes this the only user of the submission side; the
            // memory the entry names belongs to the request in its slot until it completes.
            let pushed = unsafe { self.ring.submission_shared().push(&entry) };
            match self.ring.submit() {
                Ok(_) if pushed.is_ok() => return Ok(()),
                Ok(_) => {}
                Err(error) if is_passing(&error) => std::thread::yield_now(),
                Err(error) => return Err(Error::io("submitting to io_uring", error)),
            }
            if pushed.is_ok() {
                return self.hand_over();
            }
        }
    }

    /// Tries until the kernel has taken everything that was pushed.
    fn hand_over(&self) -> Result<()> {
        loop {
            match self.ring.submit() {
                Ok(_) => return Ok(()),
                Err(error) if is_passing(&error) => std::thread::yield_now(),
                Err(error) => return Err(Error::io("submitting to io_uring", error)),
            }
        }
    }

    /// A free slot, waiting for a completion if there is none.
    ///
    /// Never blocks on the completion lock: its holder may sleep until something is submitted.
    fn take_slot(&self) -> Result<u32> {
        let mut slots = self.slots.lock();
        loop {
            if let Some(slot) = slots.free.pop() {
                return Ok(slot);
            }
            let Some(ready) = self.completion.try_lock() else {
                // Whoever takes completions frees slots, and says so here when it stops.
                self.freed.wait(&mut slots);
                continue;
            };
            drop(slots);
            let mut taker = Taker {
                queue: self,
                ready: Some(ready),
            };
            self.reap(taker.ready())?;
            // All slots are taken, so a completion is there or on its way.
            if self.slots.lock().free.is_empty() {
                self.sleep()?;
                self.reap(taker.ready())?;
            }
            drop(taker);
            slots = self.slots.lock();
        }
    }

    /// Blocks until the completion ring holds something. The caller has the completion lock.
    fn sleep(&self) -> Result<()> {
        /// IORING_ENTER_GETEVENTS
        const GET_EVENTS: u32 = 1;
        // SAFETY: asks for events only: nothing is submitted and no argument memory is passed.
        match unsafe {
            self.ring
                .submitter()
                .enter::<libc::sigset_t>(0, 1, GET_EVENTS, None)
        } {
            Ok(_) => Ok(()),
            Err(error) if is_passing(&error) => Ok(()),
            Err(error) => Err(Error::io("waiting for io_uring", error)),
        }
    }

    /// Takes everything out of the completion ring. The caller has the completion lock.
    fn reap(&self, ready: &mut VecDeque<Completion>) -> Result<()> {
        loop {
            // SAFETY: the completion lock makes this the only user of the completion side.
            let next = unsafe { self.ring.completion_shared().next() };
            let Some(event) = next else { return Ok(()) };
            let slot = event.user_data() as u32;
            let Some(request) = self.slots.lock().requests[slot as usize].take() else {
                continue;
            };
            match self.advance(request, event.result()) {
                Ok(unfinished) => self.start(slot, unfinished)?,
                Err(completion) => {
                    ready.push_back(completion);
                    self.slots.lock().free.push(slot);
                    self.freed.notify_one();
                }
            }
        }
    }

    /// What a result of the kernel means for a request: more to do, or its (boxed) end.
    fn advance(
        &self,
        mut request: InFlight,
        result: i32,
    ) -> std::result::Result<InFlight, Completion> {
        let token = request.token;
        if matches!(-result, libc::EINTR | libc::EAGAIN | libc::ECANCELED) {
            return Ok(request);
        }
        let (doing, total) = match &request.work {
            Work::Refused { .. } => ("", 0),
            Work::Flush(_) => ("flushing", 0),
            Work::Read { buffer, .. } => ("reading", buffer.len() as u64),
            Work::Write { bytes, .. } => ("writing", *bytes),
        };
        let mut failed = (result < 0).then(|| io::Error::from_raw_os_error(-result));
        if result >= 0 && request.done < total {
            let block = u64::from(self.inner().geometry.block_size);
            let progress = result as u64 / block * block;
            request.done += progress;
            if progress == 0 {
                failed = Some(io::ErrorKind::UnexpectedEof.into());
            } else if request.done < total {
                return Ok(request);
            }
        }
        let failed = failed.map(|source| self.inner().io_error(doing, source));
        let ended = |lba: Lba| failed.map_or(Ok(lba), Err);
        let (result, buffer) = match request.work {
            Work::Refused { error, buffer } => (Err(error), buffer),
            Work::Read { lba, buffer } => (ended(lba), Some(buffer)),
            Work::Write { lba, .. } => (ended(lba), None),
            Work::Flush(kind) => {
                let result = ended(Lba(0));
                if result.is_ok() {
                    self.inner().end_flush(kind);
                }
                (result, None)
            }
        };
        Err(Completion {
            token,
            result,
            buffer,
        })
    }

    fn in_flight(&self) -> usize {
        let slots = self.slots.lock();
        slots.requests.len() - slots.free.len()
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
    )
}

impl DeviceQueue for UringQueue {
    fn submit(&self, token: u64, request: Request) -> Result<()> {
        let slot = self.take_slot()?;
        let work = self.accept(request);
        self.start(
            slot,
            InFlight {
                token,
                work,
                done: 0,
            },
        )
    }

    fn wait(&self, min: usize, out: &mut Vec<Completion>) -> Result<()> {
        let mut taken = 0;
        loop {
            let lock = match min {
                // Somebody asleep in there takes what arrives; with nothing asked for, that is that.
                0 => self.completion.try_lock(),
                _ => Some(self.completion.lock()),
            };
            let Some(ready) = lock else { return Ok(()) };
            let mut taker = Taker {
                queue: self,
                ready: Some(ready),
            };
            self.reap(taker.ready())?;
            if taker.ready().is_empty() && taken < min {
                self.sleep()?;
                self.reap(taker.ready())?;
            }
            taken += taker.ready().len();
            out.extend(taker.ready().drain(..));
            drop(taker);
            if taken >= min {
                return Ok(());
            }
        }
    }
}

impl Drop for UringQueue {
    fn drop(&mut self) {
        let mut ready = VecDeque::new();
        while self.in_flight() > 0 {
            if self.sleep().and_then(|()| self.reap(&mut ready)).is_err() {
                // The kernel may still use the buffers: better lost than given away.
                std::mem::forget(std::mem::take(&mut self.slots.lock().requests));
                return;
            }
        }
    }
}
