//! Computational storage as processes see it: kernels registered for files, run on snapshots.
//!
//! A process registers a kernel for an inode and an operation ([`Offload::prepare`],
//! [`Offload::register`]); from then on requests through its handles are given to the device
//! ([`Offload::read`], [`Offload::write`]), which runs the kernel on the file as it was at that
//! moment. All other handles and processes are untouched: that is decided when a handle is opened
//! ([`Offload::open`]).
//!
//! What lies where: `value` (the attribute's grammar), `register` (checks, permissions, lifetimes),
//! `registry` (who has what), `limits` (how much anybody may have), `process` and `rights` (who a
//! requester is, what it may become), `watch` and `closes` (ends of owners and of their handles),
//! `snapshot` (blocks for the device), `verify` (kernels), `execute` (requests), `flights` and
//! `dying` (requests nobody waits for any more), `view` (outputs read like files), `report`
//! (statistics).
//!
//! Nothing of this is stored: registrations end with the mount. The device and its threads are made
//! when the first kernel is registered.

mod closes;
mod dying;
mod execute;
mod flights;
pub mod limits;
mod process;
mod register;
mod registry;
mod report;
mod rights;
mod snapshot;
pub mod value;
mod verify;
mod view;
mod watch;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use csd_vm::{Device, DeviceConfig};
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::types::Ino;
use crate::volume::Volume;
use closes::Closes;
pub use execute::{ReadJob, WriteJob, WriteReply, WriteRequest};
use flights::Flights;
use limits::{Accounts, DEFAULT_TIMEOUT, QUEUE_DEPTH};
pub use register::{Prepared, SetRequest, load_error};
use registry::Registry;
pub use registry::Requester;
pub use report::RegistrationReport;
pub use verify::{Verify, verdict};
pub use view::ReadReply;
use watch::{Owners, Watch};

/// How kernels are run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether they are verified first.
    pub verify: Verify,
    /// Worker threads of the device; 0: as many as there are processors.
    pub workers: usize,
    /// Longest run of a kernel that does not ask for another.
    pub timeout: Duration,
    /// Every handle of the mount bypasses the page cache.
    pub direct_io: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            verify: Verify::Off,
            workers: 0,
            timeout: DEFAULT_TIMEOUT,
            direct_io: false,
        }
    }
}

/// What others have cached of files that kernels change.
pub trait PageCache: Send + Sync {
    /// `len` bytes from `offset` on have changed.
    fn changed(&self, ino: Ino, offset: u64, len: u64);
    /// The file has grown up to `end`, and this is its last byte.
    fn grown(&self, ino: Ino, end: u64, last: u8);
}

/// The mount as other processes see it, known once it is there.
struct Mount {
    /// Major and minor number of its device.
    device: (u32, u32),
    cache: Box<dyn PageCache>,
}

/// A handle that has been opened, for requests through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its number, if its requests are to be shown to us.
    pub number: Option<u64>,
    /// It must bypass the page cache, since a kernel may answer it.
    pub bound: bool,
}

/// What a thread does.
type Body = Box<dyn FnOnce() + Send>;

/// All that concerns kernels on one mount.
pub struct Offload {
    volume: Arc<Volume>,
    options: Options,
    registry: Registry,
    accounts: Accounts,
    flights: Arc<Flights>,
    watch: Arc<Watch>,
    closes: Arc<Closes>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    device: Mutex<Option<Arc<Device>>>,
    mount: OnceLock<Mount>,
    next_registration: AtomicU64,
    stopped: AtomicBool,
}

impl Offload {
    /// For the files of `volume`.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub fn new(volume: Arc<Volume>, options: Options) -> std::io::Result<Arc<Offload>> {
        let watch = Arc::new(Watch::new()?);
        Ok(Arc::new(Offload {
            volume,
            options,
            registry: Registry::new(Owners::new(Arc::clone(&watch))),
            accounts: Accounts::default(),
            flights: Arc::default(),
            watch,
            closes: Arc::default(),
            threads: Mutex::default(),
            device: Mutex::new(None),
            mount: OnceLock::new(),
            next_registration: AtomicU64::new(1),
            stopped: AtomicBool::new(false),
        }))
    }

    /// The mount is there: the number of its device, and what caches its files. Later calls change
    /// nothing.
    pub fn mounted(&self, device: (u32, u32), cache: Box<dyn PageCache>) {
        let _ = self.mount.set(Mount { device, cache });
    }

    /// A thread opens a file. `uncached`: its requests bypass the page cache anyway, and a kernel
    /// that is registered later can have them.
    #[must_use]
    pub fn open(&self, ino: Ino, thread: u32, uncached: bool) -> Opened {
        let (number, bound) = self.registry.open(ino, thread, uncached);
        Opened { number, bound }
    }

    /// A handle is closed; `number` if it has one.
    pub fn close(&self, ino: Ino, number: Option<u64>) {
        if let Some(number) = number {
            self.registry.close(ino, number);
        }
        if !self.registry.is_idle() {
            self.handle_closed(ino);
        }
    }

    /// Ends all registrations, calls off what runs, and refuses new ones.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.end_all();
    }

    /// As [`Offload::stop`], and waits until nothing is left.
    pub fn shutdown(&self) {
        self.stop();
        let device = self.device.lock().take();
        if let Some(device) = device {
            device.shutdown();
        }
        self.watch.stop();
        self.closes.stop();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread that looks after registrations panicked");
            }
        }
    }

    /// The device, made when it is first needed.
    fn device(self: &Arc<Offload>) -> Result<Arc<Device>> {
        let mut device = self.device.lock();
        if self.stopped.load(Ordering::Acquire) {
            return Err(Error::Busy("the filesystem is being unmounted"));
        }
        if let Some(device) = &*device {
            return Ok(Arc::clone(device));
        }
        let storage = Arc::clone(self.volume.store().device());
        let config = DeviceConfig {
            workers: self.options.workers,
            // Registrations refuse earlier, so that who submits never waits.
            queue_depth: QUEUE_DEPTH * 2,
            ..DeviceConfig::default()
        };
        let made = Device::new(storage, config).map_err(|error| {
            tracing::error!("kernels cannot run: {error}");
            Error::NoMemory("the device for kernels")
        })?;
        self.start_threads()?;
        *device = Some(Arc::clone(&made));
        Ok(made)
    }

    /// Starts the threads that look after registrations, those that are not there yet.
    fn start_threads(self: &Arc<Offload>) -> Result<()> {
        let (watch, offload) = (Arc::clone(&self.watch), Arc::downgrade(self));
        let owners: Body = Box::new(move || look_after_owners(&watch, &offload));
        let (closes, offload) = (Arc::clone(&self.closes), Arc::downgrade(self));
        let handles: Body = Box::new(move || look_after_handles(&closes, &offload));
        let mut threads = self.threads.lock();
        let started = threads.len();
        let bodies = [("kernel-owners", owners), ("kernel-handles", handles)];
        for (name, body) in bodies.into_iter().skip(started) {
            let thread = std::thread::Builder::new().name(name.into()).spawn(body);
            let failed = |_| Error::NoMemory("a thread that looks after registrations");
            threads.push(thread.map_err(failed)?);
        }
        Ok(())
    }
}

/// Ends what was to end with the last handle of its owner.
fn look_after_handles(closes: &Closes, offload: &Weak<Offload>) {
    while let Some(ino) = closes.wait() {
        match offload.upgrade() {
            Some(offload) => offload.end_with_handles(ino),
            None => return,
        }
    }
}

/// Ends what belongs to owners that end, and calls off what nobody waits for.
fn look_after_owners(watch: &Watch, offload: &Weak<Offload>) {
    let mut next: Option<Instant> = None;
    let left = |next: Option<Instant>| next.map(|at| at.saturating_duration_since(Instant::now()));
    while let Some(tokens) = watch.wait(left(next)) {
        let Some(offload) = offload.upgrade() else {
            return;
        };
        offload.owners_ended(&tokens);
        if next.is_none_or(|at| Instant::now() >= at) {
            let device = offload.device.lock().clone();
            let pause = offload.flights.look(device.as_deref());
            next = pause.map(|pause| Instant::now() + pause);
        }
    }
}

impl Drop for Offload {
    fn drop(&mut self) {
        self.watch.stop();
        self.closes.stop();
    }
}
