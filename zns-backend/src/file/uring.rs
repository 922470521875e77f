//! The queue of a file device: io_uring with a registered file and registered buffers.
//!
//! The state machine decides at submission and the write pointer advances there, so several writes
//! to a zone may be in flight. Reading blocks whose write has not completed is the caller's mistake:
//! it answers anything. Short transfers, and requests the kernel gave up because their submitting
//! thread ended, are continued here.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use io_uring::{Submitter, cqueue, opcode, squeue, types};

use super::{FileDevice, FlushKind, Inner};
use crate::buffer::DmaBuffer;
use crate::burst::{self, Transfers};
use crate::device::{DeviceQueue, Request};
use crate::error::{Error, Result};
use crate::geometry::Lba;
use crate::lanes::Turn;
use crate::pool::SLOT_BYTES;
use crate::queue::{SyncQueue, payload};
use crate::ring::{Ended, Engine, Refused, RingQueue};
use crate::shared_zones::{blocks_in, by_zone};

/// Longest transfer given to the kernel at once.
const TRANSFER_BYTES_MAX: u64 = 1 << 30;
/// The data file's index among the registered files.
const DATA: types::Fixed = types::Fixed(0);

/// A queue to `device`, synchronous if the host has no io_uring for us.
pub(super) fn queue(device: &FileDevice, depth: u32) -> Result<Box<dyn DeviceQueue>> {
    let engine = FileEngine {
        fixed: false,
        device: device.clone(),
    };
    match RingQueue::new(engine, depth) {
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

/// Reads several ranges into memory that the host takes as it is; `None`, and nothing begun, if the
/// host has no io_uring for us.
pub(super) fn read_all(inner: &Inner, reads: &mut [(Lba, &mut [u8])]) -> Option<Result<()>> {
    let mut pending = match Reads::accept(inner, reads) {
        Ok(pending) => pending,
        Err(error) => return Some(Err(error)),
    };
    inner.bursts.run(&mut pending).ok()?;
    Some(pending.failed.map_or(Ok(()), Err))
}

/// Reads of one caller.
struct Reads<'a> {
    inner: &'a Inner,
    /// Offset in the file and memory of what is left of each transfer.
    parts: Vec<(u64, &'a mut [u8])>,
    failed: Option<Error>,
}

impl<'a> Reads<'a> {
    fn accept(inner: &'a Inner, reads: &'a mut [(Lba, &mut [u8])]) -> Result<Reads<'a>> {
        let parts = burst::cut(reads, |lba, bytes, part| {
            let blocks = blocks_in(&inner.geometry, bytes)?;
            inner.zones.check_read(lba, blocks)?;
            by_zone(&inner.geometry, lba, blocks, |at, range| {
                let len = inner.bytes(range.end - range.start);
                part(inner.offset(at), len as usize);
                Ok(())
            })
        })?;
        Ok(Reads {
            inner,
            parts,
            failed: None,
        })
    }
}

impl Transfers<squeue::Entry, cqueue::Entry> for Reads<'_> {
    fn count(&self) -> usize {
        self.parts.len()
    }

    fn entry(&mut self, index: usize) -> squeue::Entry {
        let (offset, memory) = &mut self.parts[index];
        let file = types::Fd(self.inner.data.file().as_raw_fd());
        let len = (memory.len() as u64).min(TRANSFER_BYTES_MAX) as u32;
        opcode::Read::new(file, memory.as_mut_ptr(), len)
            .offset(*offset)
            .build()
    }

    fn ended(&mut self, index: usize, event: &cqueue::Entry) -> bool {
        let result = event.result();
        if is_passing(result) {
            return false;
        }
        let progress = match u64::try_from(result) {
            Ok(bytes) => whole_blocks(self.inner, bytes),
            Err(_) => 0,
        };
        if progress == 0 {
            let source = match result {
                ..0 => io::Error::from_raw_os_error(-result),
                _ => io::ErrorKind::UnexpectedEof.into(),
            };
            let error = self.inner.io_error("reading", source);
            self.failed.get_or_insert(error);
            return true;
        }
        let (offset, memory) = &mut self.parts[index];
        *offset += progress;
        *memory = &mut std::mem::take(memory)[progress as usize..];
        memory.is_empty()
    }
}

/// Whether a result says no more than that the request has to be made again.
fn is_passing(result: i32) -> bool {
    matches!(-result, libc::EINTR | libc::EAGAIN | libc::ECANCELED)
}

fn whole_blocks(inner: &Inner, bytes: u64) -> u64 {
    let block = u64::from(inner.geometry.block_size);
    bytes / block * block
}

struct FileEngine {
    /// Whether the device's pool is registered with the ring.
    fixed: bool,
    device: FileDevice,
}

struct Work {
    kind: Kind,
    /// Bytes transferred so far, whole blocks.
    done: u64,
}

enum Kind {
    Read {
        lba: Lba,
        buffer: DmaBuffer,
    },
    Write {
        lba: Lba,
        data: Arc<DmaBuffer>,
        bytes: u64,
        durable: bool,
    },
    /// On its own, or the second half of a durable write at this address.
    Flush(FlushKind, Lba),
}

impl FileEngine {
    fn inner(&self) -> &Inner {
        &self.device.0
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

    /// Lets the device's state machine decide on a request.
    fn decide(&self, request: Request) -> std::result::Result<Kind, Refused> {
        let inner = self.inner();
        let geometry = &inner.geometry;
        let refused = |error| Refused {
            error,
            buffer: None,
        };
        let (lba, data, blocks, durable) = match request {
            Request::Flush => return Ok(Kind::Flush(inner.begin_flush(), Lba(0))),
            Request::Read { lba, buffer } => {
                let accepted = blocks_in(geometry, buffer.len())
                    .and_then(|blocks| inner.zones.check_read(lba, blocks));
                return match accepted {
                    Ok(()) => Ok(Kind::Read { lba, buffer }),
                    Err(error) => Err(Refused {
                        error,
                        buffer: Some(buffer),
                    }),
                };
            }
            Request::Write {
                lba,
                data,
                blocks,
                durable,
            } => {
                let accepted =
                    payload(geometry, &data, blocks).and_then(|_| inner.accept_write(lba, blocks));
                accepted.map_err(refused)?;
                (lba, data, blocks, durable)
            }
            Request::Append { zone, data, blocks } => {
                let accepted = payload(geometry, &data, blocks)
                    .and_then(|_| inner.accept_append(zone, blocks));
                (accepted.map_err(refused)?, data, blocks, false)
            }
        };
        Ok(Kind::Write {
            lba,
            data,
            bytes: inner.bytes(blocks),
            durable,
        })
    }
}

impl Engine for FileEngine {
    type Sqe = squeue::Entry;
    type Cqe = cqueue::Entry;
    type Work = Work;

    fn attach(&mut self, submitter: &Submitter<'_>) -> io::Result<()> {
        let inner = &self.device.0;
        submitter.register_files(&[inner.data.file().as_raw_fd()])?;
        self.fixed = inner.pool.as_ref().is_some_and(|pool| {
            // SAFETY: the pool's memory outlives the ring: the engine holds the device, which holds
            // the pool, and the ring is dropped first.
            unsafe { submitter.register_buffers(&pool.io_vectors(SLOT_BYTES)) }.is_ok()
        });
        Ok(())
    }

    fn accept(&self, request: Request) -> std::result::Result<Work, Refused> {
        self.decide(request).map(|kind| Work { kind, done: 0 })
    }

    fn turn(&self, _: &Work) -> Turn {
        Turn::Now
    }

    fn entry(&self, work: &mut Work) -> squeue::Entry {
        let done = work.done;
        match &mut work.kind {
            Kind::Read { lba, buffer } => {
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
            Kind::Write {
                lba, data, bytes, ..
            } => {
                let (offset, len) = self.piece(*lba, done, *bytes);
                let source = data[done as usize..].as_ptr();
                match self.fixed_index(data) {
                    Some(index) => opcode::WriteFixed::new(DATA, source, len, index)
                        .offset(offset)
                        .build(),
                    None => opcode::Write::new(DATA, source, len).offset(offset).build(),
                }
            }
            Kind::Flush(kind, _) => {
                let fsync = opcode::Fsync::new(DATA).flags(types::FsyncFlags::DATASYNC);
                match kind {
                    // A range that holds no dirty page keeps the zone table out of it; journal
                    // and disk are flushed all the same.
                    FlushKind::DataOnly => fsync.offset(self.inner().layout.data).len(1).build(),
                    FlushKind::PageCache | FlushKind::WithTable { .. } => fsync.build(),
                }
            }
        }
    }

    fn advance(&self, mut work: Work, event: &cqueue::Entry) -> std::result::Result<Work, Ended> {
        let result = event.result();
        if is_passing(result) {
            return Ok(work);
        }
        let (doing, total) = match &work.kind {
            Kind::Flush(..) => ("flushing", 0),
            Kind::Read { buffer, .. } => ("reading", buffer.len() as u64),
            Kind::Write { bytes, .. } => ("writing", *bytes),
        };
        let mut failed = (result < 0).then(|| io::Error::from_raw_os_error(-result));
        if result >= 0 && work.done < total {
            let progress = whole_blocks(self.inner(), result as u64);
            work.done += progress;
            if progress == 0 {
                failed = Some(io::ErrorKind::UnexpectedEof.into());
            } else if work.done < total {
                return Ok(work);
            }
        }
        let failed = failed.map(|source| self.inner().io_error(doing, source));
        if let Kind::Write {
            lba, durable: true, ..
        } = work.kind
            && failed.is_none()
        {
            let kind = Kind::Flush(self.inner().begin_flush(), lba);
            return Ok(Work { kind, done: 0 });
        }
        let ended = |lba: Lba| failed.map_or(Ok(lba), Err);
        let (result, buffer) = match work.kind {
            Kind::Read { lba, buffer } => (ended(lba), Some(buffer)),
            Kind::Write { lba, .. } => (ended(lba), None),
            Kind::Flush(kind, of) => {
                let result = ended(of);
                if result.is_ok() {
                    self.inner().end_flush(kind);
                }
                (result, None)
            }
        };
        Err(Ended { result, buffer })
    }
}
