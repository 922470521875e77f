//! The queue of a namespace: commands in the 128-byte entries of io_uring, results with 64 bits.
//!
//! A controller carries commands out in any order, so writes at the pointer take turns within a
//! zone; appends need none. The device's buffers are registered in parts as long as the longest
//! transfer, because Linux before 6.2 counts the segments of the whole registered buffer against the
//! limit of one request. A kernel that refuses registered memory all the same gets plain addresses
//! from then on.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use io_uring::cqueue::Entry32;
use io_uring::squeue::Entry128;
use io_uring::{IoUring, Submitter, opcode, types};

use super::NvmeDevice;
use super::passthru::{Command, Failure, URING_IO};
use super::status::{Attempt, Status};
use crate::buffer::DmaBuffer;
use crate::device::{DeviceQueue, Request};
use crate::error::{Error, Result};
use crate::geometry::{Lba, ZoneId};
use crate::pool::SLOT_BYTES;
use crate::queue::payload;
use crate::ring::{Ended, Engine, Refused, RingQueue, Turn};
use crate::shared_zones::blocks_in;

/// The namespace's index among the registered files.
const NAMESPACE: types::Fixed = types::Fixed(0);

/// Whether the kernel takes commands for this device through io_uring. Tried once, by a report of
/// one zone.
pub(super) fn is_available(device: &NvmeDevice) -> bool {
    *device.0.uring.get_or_init(|| match try_report(device) {
        Ok(()) => true,
        Err(error) => {
            let name = &device.0.name;
            tracing::warn!("{name}: no commands through io_uring ({error}); I/O is synchronous");
            false
        }
    })
}

fn try_report(device: &NvmeDevice) -> io::Result<()> {
    let inner = &device.0;
    let mut ring: IoUring<Entry128, Entry32> = IoUring::builder().build(1)?;
    let mut data = DmaBuffer::new(4096);
    let command = Command::report(Lba(0), data.len());
    let area = command.uring_area(
        inner.channel.namespace(),
        data.as_mut_ptr() as u64,
        data.len() as u32,
    );
    let descriptor = types::Fd(inner.channel.file().as_raw_fd());
    let entry = opcode::UringCmd80::new(descriptor, URING_IO)
        .cmd(area)
        .build();
    // SAFETY: `data` stays until the completion is there, which is waited for; should waiting fail,
    // it is leaked.
    if unsafe { ring.submission().push(&entry) }.is_err() {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    loop {
        match ring.submit_and_wait(1) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                std::mem::forget(data);
                return Err(error);
            }
            Ok(_) => {
                let result = ring.completion().next().map(|event| event.result());
                return match result {
                    Some(0) => Ok(()),
                    Some(errno @ ..0) => Err(io::Error::from_raw_os_error(-errno)),
                    Some(status) => Err(io::Error::other(Status(status as u16).to_string())),
                    None => continue,
                };
            }
        }
    }
}

/// A queue to `device`.
///
/// # Errors
/// When the ring cannot be set up.
pub(super) fn queue(device: &NvmeDevice, depth: u32) -> Result<Box<dyn DeviceQueue>> {
    let engine = NvmeEngine {
        fixed: AtomicBool::new(false),
        device: device.clone(),
    };
    RingQueue::new(engine, depth)
        .map(|queue| Box::new(queue) as Box<dyn DeviceQueue>)
        .map_err(|source| Error::io("setting up io_uring", source))
}

struct NvmeEngine {
    /// Whether the device's pool is registered with the ring, and the kernel takes it.
    fixed: AtomicBool,
    device: NvmeDevice,
}

struct Work {
    kind: Kind,
    /// Blocks transferred so far.
    done: u64,
    /// Blocks of the command in flight.
    piece: u64,
    /// Whether that command names registered memory.
    fixed: bool,
}

enum Kind {
    Read {
        lba: Lba,
        blocks: u64,
        buffer: DmaBuffer,
    },
    Write {
        lba: Lba,
        blocks: u64,
        data: Arc<DmaBuffer>,
    },
    Append {
        zone: ZoneId,
        blocks: u64,
        data: Arc<DmaBuffer>,
    },
    Flush,
}

impl NvmeEngine {
    /// The registered part of the pool in which `len` bytes of `buffer` from `offset` on lie. They
    /// may lie in two, after a piece that a zone's end has cut short.
    fn fixed_index(&self, buffer: &DmaBuffer, offset: u64, len: u64) -> Option<u16> {
        let inner = &self.device.0;
        let pool = inner.pool.as_ref()?;
        if !self.fixed.load(Ordering::Relaxed) {
            return None;
        }
        let part_bytes = inner.transfer_bytes_max;
        if offset % part_bytes + len > part_bytes {
            return None;
        }
        let slot = u64::from(pool.index_of(buffer)?);
        u16::try_from(slot * (SLOT_BYTES as u64 / part_bytes) + offset / part_bytes).ok()
    }

    fn decide(&self, request: Request) -> std::result::Result<Kind, Refused> {
        let inner = &self.device.0;
        let geometry = &inner.geometry;
        let refused = |error| Refused {
            error,
            buffer: None,
        };
        match request {
            Request::Read { lba, buffer } => {
                let accepted = blocks_in(geometry, buffer.len())
                    .and_then(|blocks| inner.check_read(lba, blocks).map(|()| blocks));
                match accepted {
                    Ok(blocks) => Ok(Kind::Read {
                        lba,
                        blocks,
                        buffer,
                    }),
                    Err(error) => Err(Refused {
                        error,
                        buffer: Some(buffer),
                    }),
                }
            }
            Request::Write { lba, data, blocks } => payload(geometry, &data, blocks)
                .and_then(|_| inner.check_write(lba, blocks))
                .map(|()| Kind::Write { lba, blocks, data })
                .map_err(refused),
            Request::Append { zone, data, blocks } => payload(geometry, &data, blocks)
                .and_then(|_| inner.check_append(zone, blocks))
                .map(|()| Kind::Append { zone, blocks, data })
                .map_err(refused),
            Request::Flush => Ok(Kind::Flush),
        }
    }

    /// What a command that ended well has done: more to do, or the end.
    fn succeeded(&self, mut work: Work, result: u64) -> std::result::Result<Work, Ended> {
        let inner = &self.device.0;
        let ended = |lba| Ended {
            result: Ok(lba),
            buffer: None,
        };
        match work.kind {
            Kind::Flush => Err(ended(Lba(0))),
            Kind::Append { blocks, .. } => {
                inner.written(Lba(result), blocks);
                Err(ended(Lba(result)))
            }
            Kind::Write { lba, blocks, .. } => {
                inner.written(lba.plus(work.done), work.piece);
                work.done += work.piece;
                if work.done < blocks {
                    return Ok(work);
                }
                Err(ended(lba))
            }
            Kind::Read {
                lba,
                blocks,
                buffer,
            } => {
                work.done += work.piece;
                if work.done < blocks {
                    work.kind = Kind::Read {
                        lba,
                        blocks,
                        buffer,
                    };
                    return Ok(work);
                }
                Err(Ended {
                    buffer: Some(buffer),
                    ..ended(lba)
                })
            }
        }
    }

    fn failed(&self, work: Work, failure: Failure) -> Ended {
        let inner = &self.device.0;
        let (action, lba) = match &work.kind {
            Kind::Read { lba, .. } => ("reading", lba.plus(work.done)),
            Kind::Write { lba, .. } => ("writing", lba.plus(work.done)),
            Kind::Append { zone, .. } => ("appending", inner.geometry.zone_start(*zone)),
            Kind::Flush => ("flushing", Lba(0)),
        };
        let attempt = Attempt {
            action,
            lba,
            blocks: work.piece,
        };
        Ended {
            result: Err(inner.error(failure, attempt)),
            buffer: match work.kind {
                Kind::Read { buffer, .. } => Some(buffer),
                Kind::Write { .. } | Kind::Append { .. } | Kind::Flush => None,
            },
        }
    }
}

impl Engine for NvmeEngine {
    type Sqe = Entry128;
    type Cqe = Entry32;
    type Work = Work;

    fn attach(&mut self, submitter: &Submitter<'_>) -> io::Result<()> {
        let inner = &self.device.0;
        submitter.register_files(&[inner.channel.file().as_raw_fd()])?;
        let fixed = inner.pool.as_ref().is_some_and(|pool| {
            let parts = pool.io_vectors(inner.transfer_bytes_max as usize);
            // SAFETY: the pool's memory outlives the ring: the engine holds the device, which holds
            // the pool, and the ring is dropped first.
            unsafe { submitter.register_buffers(&parts) }.is_ok()
        });
        self.fixed = AtomicBool::new(fixed);
        Ok(())
    }

    fn accept(&self, request: Request) -> std::result::Result<Work, Refused> {
        self.decide(request).map(|kind| Work {
            kind,
            done: 0,
            piece: 0,
            fixed: false,
        })
    }

    fn turn(&self, work: &Work) -> Turn {
        match work.kind {
            Kind::Write { lba, .. } => Turn::Exclusive(self.device.0.geometry.zone_of(lba)),
            Kind::Append { zone, .. } => Turn::Shared(zone),
            Kind::Read { .. } | Kind::Flush => Turn::Now,
        }
    }

    fn entry(&self, work: &mut Work) -> Entry128 {
        let inner = &self.device.0;
        let done = work.done;
        let offset = inner.bytes(done);
        let (command, address, index) = match &mut work.kind {
            Kind::Read {
                lba,
                blocks,
                buffer,
            } => {
                let at = lba.plus(done);
                work.piece = inner.piece_blocks(at, *blocks - done);
                let index = self.fixed_index(buffer, offset, inner.bytes(work.piece));
                let target = buffer[offset as usize..].as_mut_ptr() as u64;
                (Command::read(at, work.piece), target, index)
            }
            Kind::Write { lba, blocks, data } => {
                let at = lba.plus(done);
                work.piece = inner.piece_blocks(at, *blocks - done);
                let source = data[offset as usize..].as_ptr() as u64;
                let index = self.fixed_index(data, offset, inner.bytes(work.piece));
                (Command::write(at, work.piece), source, index)
            }
            Kind::Append { zone, blocks, data } => {
                work.piece = *blocks;
                let start = inner.geometry.zone_start(*zone);
                let index = self.fixed_index(data, 0, inner.bytes(*blocks));
                (Command::append(start, *blocks), data.as_ptr() as u64, index)
            }
            Kind::Flush => (Command::FLUSH, 0, None),
        };
        work.fixed = index.is_some();
        let len = inner.bytes(work.piece) as u32;
        let area = command.uring_area(inner.channel.namespace(), address, len);
        opcode::UringCmd80::new(NAMESPACE, URING_IO)
            .cmd(area)
            .buf_index(index)
            .build()
    }

    fn advance(&self, work: Work, event: &Entry32) -> std::result::Result<Work, Ended> {
        match event.result() {
            0 => self.succeeded(work, event.big_cqe()[0]),
            status @ 1.. => {
                let failure = Failure::Refused(Status(status as u16));
                Err(self.failed(work, failure))
            }
            errno => match -errno {
                // Never reached the device: no tag was free, or the submitting thread ended.
                libc::EAGAIN | libc::ECANCELED => Ok(work),
                libc::EINVAL if work.fixed => {
                    if self.fixed.swap(false, Ordering::Relaxed) {
                        let name = &self.device.0.name;
                        tracing::info!("{name}: the kernel takes no registered buffers");
                    }
                    Ok(work)
                }
                errno => {
                    let source = io::Error::from_raw_os_error(errno);
                    Err(self.failed(work, Failure::Host(source)))
                }
            },
        }
    }
}
