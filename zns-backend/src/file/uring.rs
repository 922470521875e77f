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
use crate::device::{DeviceQueue, Request};
use crate::error::{Error, Result};
use crate::geometry::Lba;
use crate::lanes::Turn;
use crate::pool::SLOT_BYTES;
use crate::queue::{SyncQueue, payload};
use crate::ring::{Ended, Engine, Refused, RingQueue};
use crate::shared_zones::blocks_in;

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
        if matches!(-result, libc::EINTR | libc::EAGAIN | libc::ECANCELED) {
            return Ok(work);
        }
        let (doing, total) = match &work.kind {
            Kind::Flush(..) => ("flushing", 0),
            Kind::Read { buffer, .. } => ("reading", buffer.len() as u64),
            Kind::Write { bytes, .. } => ("writing", *bytes),
        };
        let mut failed = (result < 0).then(|| io::Error::from_raw_os_error(-result));
        if result >= 0 && work.done < total {
            let block = u64::from(self.inner().geometry.block_size);
            let progress = result as u64 / block * block;
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
