//! The queue of a namespace: commands in the 128-byte entries of io_uring, results with 64 bits.
//!
//! The device's buffers are registered in parts as long as the longest
//! transfer, because Linux before 6.2 counts the segments of the whole registered buffer against the
//! limit of one request. A kernel that refuses registered memory all the same gets plain addresses
//! from then on.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use io_uring::cqueue::Entry32;
use io_uring::squeue::Entry128;
use io_uring::{IoUring, Submitter, opcode, types};

use super::NvmeDevice;
use super::command::{Command, Failure};
use super::passthru::{URING_IO, uring_area};
use super::request::{Span, Work};
use super::status::{Attempt, Status};
use crate::buffer::DmaBuffer;
use crate::burst::{self, Transfers};
use crate::device::{DeviceQueue, Request};
use crate::error::{Error, Result};
use crate::geometry::Lba;
use crate::lanes::Turn;
use crate::pool::SLOT_BYTES;
use crate::ring::{Ended, Engine, Refused, RingQueue};
use crate::shared_zones::blocks_in;

/// The namespace's index among the registered files.
const NAMESPACE: types::Fixed = types::Fixed(0);

/// Whether the kernel takes commands for this device through io_uring. Tried once, by a report of
/// one zone.
pub(super) fn is_available(device: &NvmeDevice) -> bool {
    *device.0.uring.get_or_init(|| match try_report(device) {
        Ok(()) => true,
        Err(error) => {
            let name = &device.namespace().name;
            tracing::warn!("{name}: no commands through io_uring ({error}); I/O is synchronous");
            false
        }
    })
}

fn try_report(device: &NvmeDevice) -> io::Result<()> {
    let inner = device.namespace();
    let mut ring: IoUring<Entry128, Entry32> = IoUring::builder().build(1)?;
    let mut data = DmaBuffer::new(4096);
    let command = Command::report(Lba(0), data.len());
    let area = uring_area(
        command,
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

/// Reads several ranges, all their commands at the same time; `None`, and nothing begun, if there
/// is no ring to be had.
pub(super) fn read_all(device: &NvmeDevice, reads: &mut [(Lba, &mut [u8])]) -> Option<Result<()>> {
    let mut pending = match Reads::accept(device, reads) {
        Ok(pending) => pending,
        Err(error) => return Some(Err(error)),
    };
    device.0.bursts.run(&mut pending).ok()?;
    Some(pending.failed.map_or(Ok(()), Err))
}

/// Reads of one caller.
struct Reads<'a> {
    device: &'a NvmeDevice,
    /// First block and memory of each command.
    commands: Vec<(Lba, &'a mut [u8])>,
    failed: Option<Error>,
}

impl<'a> Reads<'a> {
    fn accept(device: &'a NvmeDevice, reads: &'a mut [(Lba, &mut [u8])]) -> Result<Reads<'a>> {
        let namespace = device.namespace();
        let commands = burst::cut(reads, |lba, bytes, command| {
            let blocks = blocks_in(&namespace.geometry, bytes)?;
            namespace.check_read(lba, blocks)?;
            namespace.in_pieces(lba, blocks, |at, bytes| {
                command(at, bytes.len());
                Ok(())
            })
        })?;
        Ok(Reads {
            device,
            commands,
            failed: None,
        })
    }

    fn blocks(&self, index: usize) -> u64 {
        let block = self.device.namespace().geometry.block_bytes();
        (self.commands[index].1.len() / block) as u64
    }
}

impl Transfers<Entry128, Entry32> for Reads<'_> {
    fn count(&self) -> usize {
        self.commands.len()
    }

    fn entry(&mut self, index: usize) -> Entry128 {
        let blocks = self.blocks(index);
        let channel = &self.device.namespace().channel;
        let (lba, memory) = &mut self.commands[index];
        let area = uring_area(
            Command::read(*lba, blocks),
            channel.namespace(),
            memory.as_mut_ptr() as u64,
            memory.len() as u32,
        );
        opcode::UringCmd80::new(types::Fd(channel.file().as_raw_fd()), URING_IO)
            .cmd(area)
            .build()
    }

    fn ended(&mut self, index: usize, event: &Entry32) -> bool {
        let failure = match event.result() {
            0 => return true,
            status @ 1.. => Failure::Refused(Status(status as u16)),
            errno if never_began(errno) => return false,
            errno => Failure::Host(io::Error::from_raw_os_error(-errno)),
        };
        let attempt = Attempt {
            action: "reading",
            lba: self.commands[index].0,
            blocks: self.blocks(index),
        };
        let error = self.device.namespace().error(failure, attempt);
        self.failed.get_or_insert(error);
        true
    }
}

/// Whether a command never reached the device: no tag was free, or the submitting thread ended.
fn never_began(errno: i32) -> bool {
    matches!(-errno, libc::EAGAIN | libc::ECANCELED)
}

struct NvmeEngine {
    /// Whether the device's pool is registered with the ring, and the kernel takes it.
    fixed: AtomicBool,
    device: NvmeDevice,
}

/// A request, and whether its command in flight names registered memory.
struct Tracked {
    work: Work,
    fixed: bool,
}

impl NvmeEngine {
    /// The registered part of the pool in which the memory of a command lies. It may lie in two,
    /// after a piece that a zone's end has cut short.
    fn fixed_index(&self, span: Span) -> Option<u16> {
        if !self.fixed.load(Ordering::Relaxed) {
            return None;
        }
        let part_bytes = self.device.namespace().transfer_bytes_max;
        if span.offset % part_bytes + span.len > part_bytes {
            return None;
        }
        let slot = u64::from(span.slot?);
        u16::try_from(slot * (SLOT_BYTES as u64 / part_bytes) + span.offset / part_bytes).ok()
    }
}

impl Engine for NvmeEngine {
    type Sqe = Entry128;
    type Cqe = Entry32;
    type Work = Tracked;

    fn attach(&mut self, submitter: &Submitter<'_>) -> io::Result<()> {
        let inner = self.device.namespace();
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

    fn accept(&self, request: Request) -> std::result::Result<Tracked, Refused> {
        let work = Work::accept(self.device.namespace(), request)?;
        Ok(Tracked { work, fixed: false })
    }

    fn turn(&self, tracked: &Tracked) -> Turn {
        tracked.work.turn(self.device.namespace())
    }

    fn entry(&self, tracked: &mut Tracked) -> Entry128 {
        let namespace = self.device.namespace();
        let (command, span) = tracked.work.next(namespace);
        let index = self.fixed_index(span);
        tracked.fixed = index.is_some();
        let area = uring_area(
            command,
            namespace.channel.namespace(),
            span.address as u64,
            span.len as u32,
        );
        opcode::UringCmd80::new(NAMESPACE, URING_IO)
            .cmd(area)
            .buf_index(index)
            .build()
    }

    fn advance(&self, tracked: Tracked, event: &Entry32) -> std::result::Result<Tracked, Ended> {
        let namespace = self.device.namespace();
        match event.result() {
            0 => {
                let work = tracked.work.succeeded(namespace, event.big_cqe()[0])?;
                Ok(Tracked { work, fixed: false })
            }
            status @ 1.. => {
                let failure = Failure::Refused(Status(status as u16));
                Err(tracked.work.failed(namespace, failure))
            }
            errno if never_began(errno) => Ok(tracked),
            errno => match -errno {
                libc::EINVAL if tracked.fixed => {
                    if self.fixed.swap(false, Ordering::Relaxed) {
                        let name = &namespace.name;
                        tracing::info!("{name}: the kernel takes no registered buffers");
                    }
                    Ok(tracked)
                }
                errno => {
                    let source = io::Error::from_raw_os_error(errno);
                    Err(tracked.work.failed(namespace, Failure::Host(source)))
                }
            },
        }
    }
}
