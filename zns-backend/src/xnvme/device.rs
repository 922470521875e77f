//! Opening a device with libxnvme, and the device.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::channel::Link;
use super::library::{self, Handle, Options, Queue, Refusal};
use super::outcome::{is_passing, of_queued};
use super::queue::XnvmeQueue;
use super::uri::{XnvmeTarget, XnvmeUri};
use crate::buffer::DmaBuffer;
use crate::device::{DeviceQueue, MapSource, ZoneInfo, ZonedDevice};
use crate::error::{Error, Result};
use crate::geometry::{Geometry, Lba, ZoneId};
use crate::nvme::command::{Channel, Command, Direction, Failure, ZoneAction};
use crate::nvme::namespace::Namespace;
use crate::nvme::node::{Claim, Nodes};
use crate::pool::SLOT_BYTES;

/// The backend for device nodes.
const KERNEL: &str = "linux";
/// Those for PCI addresses, in the order in which they are looked for.
const USER_SPACE: [&str; 2] = ["spdk", "vfio"];
/// An engine that answers nothing for so long is given up when it is tried.
const TRIAL_TIME: Duration = Duration::from_secs(10);

/// A zoned NVMe namespace opened with libxnvme. Clones are handles of the same one.
#[derive(Clone)]
pub struct XnvmeDevice(Arc<Inner>);

struct Inner {
    namespace: Namespace<Link>,
    /// Keeps others away; given back after the namespace is closed.
    _claim: Option<Claim>,
}

impl XnvmeDevice {
    /// Opens what the argument names with the engines it names, and tries those.
    ///
    /// # Errors
    /// [`Error::Busy`] if it is in use; [`Error::BadImage`] in one line if it is no zoned namespace
    /// that can be worked with, or if the library lacks what was asked for, or an engine cannot carry
    /// out the commands of zones; [`Error::Io`].
    pub fn open(uri: &XnvmeUri, read_only: bool) -> Result<XnvmeDevice> {
        check_version(&uri.to_string())?;
        match &uri.target {
            XnvmeTarget::Node(path) => open_node(uri, path, read_only),
            XnvmeTarget::Pci(address) => open_address(uri, address, read_only),
        }
    }

    pub(super) fn namespace(&self) -> &Namespace<Link> {
        &self.0.namespace
    }

    pub(super) fn handle(&self) -> &Arc<Handle> {
        &self.namespace().channel.handle
    }
}

/// The structures of another minor version may have other layouts.
fn check_version(name: &str) -> Result<()> {
    let (major, minor, patch) = library::version();
    let built_with = env!("WARREN_XNVME_VERSION");
    if built_with.starts_with(&format!("{major}.{minor}.")) {
        return Ok(());
    }
    Err(Error::BadImage(format!(
        "{name}: built with libxnvme {built_with}, found {major}.{minor}.{patch}"
    )))
}

fn open_node(uri: &XnvmeUri, path: &Path, read_only: bool) -> Result<XnvmeDevice> {
    if let Some(backend) = uri.backend.as_deref().filter(|&name| name != KERNEL) {
        return Err(Error::BadImage(format!(
            "{uri}: be={backend} takes a PCI address, no device node"
        )));
    }
    let nodes = Nodes::find(path)?;
    let canonical = XnvmeUri {
        target: XnvmeTarget::Node(nodes.generic.clone()),
        ..uri.clone()
    };
    let name = canonical.to_string();
    let claim = nodes.claim(read_only)?;
    let handle = open(&canonical, KERNEL, read_only)?;
    if let Some(wanted) = uri.nsid.filter(|&nsid| nsid != handle.namespace()) {
        let found = handle.namespace();
        return Err(Error::BadImage(format!(
            "{name}: it is namespace {found}, not {wanted}"
        )));
    }
    let request_bytes_max = nodes.request_bytes_max().min(handle.transfer_bytes_max());
    finish(handle, name, request_bytes_max, Some(claim), read_only)
}

fn open_address(uri: &XnvmeUri, address: &str, read_only: bool) -> Result<XnvmeDevice> {
    let built = library::backends();
    let wanted = match uri.backend.as_deref() {
        Some(backend) => vec![backend],
        None => USER_SPACE.to_vec(),
    };
    if wanted == [KERNEL] {
        return Err(Error::BadImage(format!(
            "{uri}: be={KERNEL} takes a device node, no PCI address"
        )));
    }
    let backend = wanted
        .iter()
        .find(|&&name| built.iter().any(|has| has == name));
    let Some(backend) = backend else {
        return Err(Error::BadImage(format!(
            "{uri}: {address} takes a driver in user space ({}), this libxnvme has: {}",
            wanted.join(" or "),
            built.join(", ")
        )));
    };
    let handle = open(uri, backend, read_only)?;
    // What one piece of the device's memory holds.
    let request_bytes_max = handle.transfer_bytes_max().min(SLOT_BYTES as u64);
    finish(handle, uri.to_string(), request_bytes_max, None, read_only)
}

fn open(uri: &XnvmeUri, backend: &str, read_only: bool) -> Result<Handle> {
    let name = uri.to_string();
    let options = Options {
        device: &uri.target.to_string(),
        backend,
        asynchronous: uri.asynchronous.as_deref(),
        synchronous: uri.synchronous.as_deref(),
        admin: uri.admin.as_deref(),
        namespace: uri.nsid.unwrap_or(1),
        read_only,
        user_space: backend != KERNEL,
    };
    Handle::open(&options).map_err(|refusal| match refusal {
        Refusal::NoEngine => Error::BadImage(format!(
            "{name}: the backend {backend} of this libxnvme has no engine of that name \
             (`xnvme library-info` tells what it was built with)"
        )),
        Refusal::Host(error) if error.raw_os_error() == Some(libc::EBUSY) => Error::Busy(name),
        Refusal::Host(source) => {
            Error::io(format!("opening {name} with the backend {backend}"), source)
        }
    })
}

fn finish(
    handle: Handle,
    name: String,
    request_bytes_max: u64,
    claim: Option<Claim>,
    read_only: bool,
) -> Result<XnvmeDevice> {
    let engine = handle.asynchronous().to_owned();
    // Nodes are claimed, addresses are not: they are those of drivers in user space.
    let user_space = claim.is_none();
    let channel = Link::new(handle, user_space)
        .map_err(|source| Error::io(format!("{name}: memory for transfers"), source))?;
    let pool = channel.pool();
    let namespace = Namespace::open(channel, name.clone(), request_bytes_max, pool, read_only)
        .map_err(|error| lacking(error, &name))?;
    try_waiting(&namespace, read_only)?;
    try_queued(&namespace, read_only)?;
    tracing::info!("{name}: opened with libxnvme, queues by '{engine}'");
    Ok(XnvmeDevice(Arc::new(Inner {
        namespace,
        _claim: claim,
    })))
}

/// An engine that lacks a command shows by the error of a call that does not exist.
fn lacking(error: Error, name: &str) -> Error {
    match error {
        Error::Io { context, source } if source.raw_os_error() == Some(libc::ENOSYS) => {
            Error::BadImage(format!(
                "{name}: an engine cannot carry out commands of zones ({context}: {source})"
            ))
        }
        other => other,
    }
}

/// A command that every device refuses, as it lies beyond the last block, and that an engine has to
/// know to get so far: the least common of those that will be needed.
fn impossible(geometry: &Geometry, read_only: bool) -> Command {
    let beyond = geometry
        .zone_start(ZoneId(geometry.zones))
        .plus(geometry.zone_size);
    match read_only {
        true => Command::read(beyond, 1),
        false => Command::append(beyond, 1),
    }
}

/// What the answer to an impossible command says of the engine that gave it.
fn verdict(name: &str, engine: &str, answer: std::result::Result<u64, Failure>) -> Result<()> {
    let problem = match answer {
        Err(Failure::Refused(status)) if !status.is_vendor_specific() => return Ok(()),
        Ok(_) => "answers commands without carrying them out".into(),
        Err(Failure::Refused(status)) => format!("cannot carry out commands of zones ({status})"),
        Err(Failure::Host(error)) => format!("cannot carry out commands of zones ({error})"),
    };
    Err(Error::BadImage(format!("{name}: the {engine} {problem}")))
}

fn try_waiting(namespace: &Namespace<Link>, read_only: bool) -> Result<()> {
    let command = impossible(&namespace.geometry, read_only);
    let mut data = DmaBuffer::new(namespace.geometry.block_bytes());
    let answer = match command.direction() {
        Direction::FromController => namespace.channel.receive(command, &mut data),
        _ => namespace.channel.send(command, &data),
    };
    verdict(&namespace.name, "engine of synchronous commands", answer)
}

fn try_queued(namespace: &Namespace<Link>, read_only: bool) -> Result<()> {
    let handle = &namespace.channel.handle;
    let engine = handle.asynchronous();
    let shown = format!("engine of queues '{engine}'");
    let answer = loop {
        let asked = ask(namespace, read_only).map_err(Failure::Host);
        let answer = asked.and_then(|ended| {
            of_queued(engine, ended.field)?;
            Ok(ended.result)
        });
        match answer {
            Err(Failure::Host(error)) if is_passing(&error) => thread::yield_now(),
            answer => break answer,
        }
    };
    verdict(&namespace.name, &shown, answer)
}

/// The answer of the engine of queues to an impossible command.
fn ask(namespace: &Namespace<Link>, read_only: bool) -> io::Result<library::Ended> {
    let channel = &namespace.channel;
    let mut queue = Queue::new(Arc::clone(&channel.handle), 1)?;
    let len = namespace.geometry.block_bytes();
    let scratch = channel.scratch(len)?;
    let mut data = scratch.unwrap_or_else(|| DmaBuffer::new(len));
    let command = impossible(&namespace.geometry, read_only);
    // SAFETY: the buffer stays until the end of the command is there, and is lost if it never comes; it
    // is of the device's own memory if that takes no other.
    unsafe { queue.submit(0, command, data.as_mut_ptr(), len) }?;
    let begun = Instant::now();
    let mut ended = Vec::with_capacity(1);
    loop {
        let error = match queue.poll(&mut ended) {
            Ok(()) if begun.elapsed() < TRIAL_TIME => None,
            Ok(()) => Some(io::ErrorKind::TimedOut.into()),
            Err(error) => Some(error),
        };
        if let Some(answer) = ended.pop() {
            return Ok(answer);
        }
        if let Some(error) = error {
            queue.abandon();
            std::mem::forget(data);
            return Err(error);
        }
        thread::yield_now();
    }
}

impl ZonedDevice for XnvmeDevice {
    fn geometry(&self) -> &Geometry {
        &self.namespace().geometry
    }

    fn report(&self, first: ZoneId, count: u32) -> Result<Vec<ZoneInfo>> {
        self.namespace().report(first, count)
    }

    fn read(&self, lba: Lba, buf: &mut [u8]) -> Result<()> {
        self.namespace().read(lba, buf)
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
        let queue = XnvmeQueue::new(self, depth)
            .map_err(|source| Error::io(format!("a queue to {}", self.describe()), source))?;
        Ok(Box::new(queue))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::status::Status;

    #[test]
    fn only_a_refusal_by_the_controller_speaks_for_an_engine() {
        let said = |answer| match verdict("xnvme:x", "engine", answer) {
            Ok(()) => "fine".into(),
            Err(error) => error.to_string(),
        };
        let refused = |status| Err(Failure::Refused(Status(status)));
        let lba_out_of_range = refused(0x4080);
        assert_eq!(said(lba_out_of_range), "fine");
        assert!(said(Ok(0)).contains("without carrying them out"));
        assert!(said(refused(0x726)).contains("cannot carry out"));
        let missing = io::Error::from_raw_os_error(libc::ENOSYS);
        assert!(said(Err(Failure::Host(missing))).contains("cannot carry out"));
    }

    #[test]
    fn a_device_without_the_backend_it_needs_says_what_there_is() {
        let open = |text: &str| {
            let uri = XnvmeUri::parse(text).expect(text);
            match XnvmeDevice::open(&uri, true) {
                Ok(_) => panic!("{text} was opened"),
                Err(error) => error.to_string(),
            }
        };
        let error = open("xnvme:0000:00:1f.7?be=hyperdrive");
        assert!(
            error.contains("hyperdrive") && error.contains("linux"),
            "{error}"
        );
        assert!(open("xnvme:0000:00:1f.7?be=linux").contains("takes a device node"));
        assert!(open("xnvme:/dev/null?be=spdk").contains("takes a PCI address"));
        assert!(open("xnvme:/dev/null").contains("no NVMe namespace"));
    }
}
