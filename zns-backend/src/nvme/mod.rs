//! A zoned namespace of an NVMe device, through the passthrough interface of Linux.
//!
//! What a namespace is and does is in [`namespace`], whatever carries its commands; here commands go
//! as ioctls, and as entries of io_uring in queues ([`uring`]), or as ioctls where the kernel has no
//! passthrough on io_uring; the log says so once. A request is also cut at what the kernel's queue
//! takes ([`node`], which keeps other writers away too).

pub(crate) mod command;
pub(crate) mod namespace;
pub(crate) mod node;
mod passthru;
pub(crate) mod request;
pub(crate) mod status;
mod uring;
mod wire;

use std::path::Path;
use std::sync::Arc;
use std::sync::OnceLock;

use io_uring::cqueue::Entry32;
use io_uring::squeue::Entry128;

use crate::buffer::DmaBuffer;
use crate::burst::Bursts;
use crate::device::{DeviceQueue, MapSource, ZoneInfo, ZonedDevice};
use crate::error::{Error, Result};
use crate::geometry::{Geometry, Lba, ZoneId};
use crate::pool::Pool;
use crate::queue::SyncQueue;
use command::ZoneAction;
use namespace::Namespace;
use node::{Claim, Nodes};
use passthru::Passthru;

/// A zoned NVMe namespace. Clones are handles of the same one.
#[derive(Clone)]
pub struct NvmeDevice(Arc<Inner>);

struct Inner {
    namespace: Namespace<Passthru>,
    /// Held for its lock.
    _block: Option<std::fs::File>,
    /// Whether the kernel takes commands through io_uring, once that was tried.
    uring: OnceLock<bool>,
    bursts: Bursts<Entry128, Entry32>,
}

impl NvmeDevice {
    /// Opens the namespace behind `/dev/ngXnY` or `/dev/nvmeXnY`.
    ///
    /// # Errors
    /// [`Error::Busy`] if it is mounted or opened for writing by another process;
    /// [`Error::BadImage`] in one line if it is no zoned namespace, or one that cannot be worked
    /// with; [`Error::Io`].
    pub fn open(path: impl AsRef<Path>, read_only: bool) -> Result<NvmeDevice> {
        let nodes = Nodes::find(path.as_ref())?;
        let name = format!("nvme:{}", nodes.generic.display());
        let Claim { generic, block } = nodes.claim(read_only)?;
        let channel = Passthru::new(generic)
            .map_err(|source| Error::io(format!("{name} is no NVMe namespace"), source))?;
        let pool = Pool::new().ok();
        let request_bytes_max = nodes.request_bytes_max();
        Ok(NvmeDevice(Arc::new(Inner {
            namespace: Namespace::open(channel, name, request_bytes_max, pool, read_only)?,
            _block: block,
            uring: OnceLock::new(),
            bursts: Bursts::new(),
        })))
    }

    fn namespace(&self) -> &Namespace<Passthru> {
        &self.0.namespace
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        node::release(self.namespace.channel.file());
    }
}

impl ZonedDevice for NvmeDevice {
    fn geometry(&self) -> &Geometry {
        &self.namespace().geometry
    }

    fn report(&self, first: ZoneId, count: u32) -> Result<Vec<ZoneInfo>> {
        self.namespace().report(first, count)
    }

    fn read(&self, lba: Lba, buf: &mut [u8]) -> Result<()> {
        self.read_all(&mut [(lba, buf)])
    }

    /// A single command is an ioctl, which takes less than the way through a ring.
    fn read_all(&self, reads: &mut [(Lba, &mut [u8])]) -> Result<()> {
        let namespace = self.namespace();
        let is_one = match reads {
            [(lba, buf)] => namespace.takes_one_command(*lba, buf.len()),
            _ => reads.is_empty(),
        };
        if !is_one
            && uring::is_available(self)
            && let Some(outcome) = uring::read_all(self, reads)
        {
            return outcome;
        }
        reads
            .iter_mut()
            .try_for_each(|(lba, buf)| namespace.read(*lba, buf))
    }

    fn write(&self, lba: Lba, data: &[u8]) -> Result<()> {
        self.namespace().write(lba, data, false)
    }

    fn write_durable(&self, lba: Lba, data: &[u8]) -> Result<()> {
        self.namespace().write(lba, data, true)
    }

    fn has_durable_writes(&self) -> bool {
        true
    }

    fn append(&self, zone: ZoneId, data: &[u8]) -> Result<Lba> {
        self.namespace().append(zone, data)
    }

    fn reset(&self, zone: ZoneId) -> Result<()> {
        self.namespace().act(zone, ZoneAction::Reset)
    }

    fn finish(&self, zone: ZoneId) -> Result<()> {
        self.namespace().act(zone, ZoneAction::Finish)
    }

    fn open(&self, zone: ZoneId) -> Result<()> {
        self.namespace().act(zone, ZoneAction::Open)
    }

    fn close(&self, zone: ZoneId) -> Result<()> {
        self.namespace().act(zone, ZoneAction::Close)
    }

    fn flush(&self) -> Result<()> {
        self.namespace().flush()
    }

    fn queue(&self, depth: u32) -> Result<Box<dyn DeviceQueue>> {
        if uring::is_available(self) {
            return uring::queue(self, depth);
        }
        Ok(Box::new(SyncQueue::new(Arc::new(self.clone()))))
    }

    fn buffer(&self, len: usize) -> DmaBuffer {
        self.namespace().buffer(len)
    }

    fn map_source(&self, lba: Lba, blocks: u64) -> Result<Option<MapSource<'_>>> {
        self.namespace().check_read(lba, blocks)?;
        Ok(None)
    }

    fn describe(&self) -> String {
        self.namespace().name.clone()
    }
}
