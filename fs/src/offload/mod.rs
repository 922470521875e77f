//! Computational storage as processes see it: kernels registered for files, run on snapshots.
//!
//! A process registers a kernel for an inode and an operation ([`Offload::prepare`],
//! [`Offload::register`]); from then on requests through its handles are given to the device
//! ([`Offload::read`], [`Offload::write`]), which runs the kernel on the file as it was at that
//! moment. All other handles and processes are untouched: that is decided when a handle is opened
//! ([`Offload::open`]).
//!
//! What lies where: `value` (the attribute's grammar), `register` (checks, permissions, lifetimes),
//! `registry` (who has what), `process` and `watch` (owners), `snapshot` (blocks for the device),
//! `verify` (kernels), `execute` (requests), `view` (outputs read like files), `report` (statistics).
//!
//! Nothing of this is stored: registrations end with the mount. The device and its threads are made
//! when the first kernel is registered.

mod execute;
mod process;
mod register;
mod registry;
mod report;
mod snapshot;
pub mod value;
mod verify;
mod view;
mod watch;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use csd_vm::{Device, DeviceConfig};
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::types::Ino;
use crate::volume::Volume;
pub use execute::{ReadJob, WriteJob, WriteReply, WriteRequest};
pub use register::{Prepared, SetRequest, load_error};
use registry::Registry;
pub use report::RegistrationReport;
pub use verify::{Verify, verdict};
pub use view::ReadReply;
use watch::{Owners, Watch};

/// Requests of one registration that may wait; what comes on top of that is refused.
const QUEUE_DEPTH: usize = 4096;
/// Longest run of a kernel whose registration does not say otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);

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

/// All that concerns kernels on one mount.
pub struct Offload {
    volume: Arc<Volume>,
    options: Options,
    registry: Registry,
    watch: Arc<Watch>,
    watcher: Mutex<Option<JoinHandle<()>>>,
    device: Mutex<Option<Arc<Device>>>,
    mount: OnceLock<Mount>,
    kept_bytes: Arc<AtomicU64>,
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
            watch,
            watcher: Mutex::new(None),
            device: Mutex::new(None),
            mount: OnceLock::new(),
            kept_bytes: Arc::default(),
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
        let bound = match self.registry.is_idle() {
            true => Vec::new(),
            false => self.registry.visible(ino, thread),
        };
        let is_bound = !bound.is_empty();
        let number = (is_bound || uncached).then(|| self.registry.open(ino, thread, bound));
        Opened {
            number,
            bound: is_bound,
        }
    }

    /// A handle is closed; `number` if it has one.
    pub fn close(&self, ino: Ino, number: Option<u64>) {
        if let Some(number) = number {
            self.registry.close(ino, number);
        }
        if !self.registry.is_idle() {
            self.end_with_handles(ino);
        }
    }

    /// Ends all registrations, waits for what runs, and refuses new ones.
    pub fn shutdown(&self) {
        self.stopped.store(true, Ordering::Release);
        self.end_all();
        let device = self.device.lock().take();
        if let Some(device) = device {
            device.shutdown();
        }
        self.watch.stop();
        let watcher = self.watcher.lock().take();
        if let Some(watcher) = watcher
            && watcher.join().is_err()
        {
            tracing::error!("the watch on owners panicked");
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
        *self.watcher.lock() = Some(self.start_watcher()?);
        *device = Some(Arc::clone(&made));
        Ok(made)
    }

    fn start_watcher(self: &Arc<Offload>) -> Result<JoinHandle<()>> {
        let (watch, offload): (_, Weak<Offload>) = (Arc::clone(&self.watch), Arc::downgrade(self));
        std::thread::Builder::new()
            .name("kernel-owners".into())
            .spawn(move || {
                while let Some(tokens) = watch.wait() {
                    match offload.upgrade() {
                        Some(offload) => offload.owners_ended(&tokens),
                        None => return,
                    }
                }
            })
            .map_err(|_| Error::NoMemory("the thread that watches owners"))
    }
}

impl Drop for Offload {
    fn drop(&mut self) {
        self.watch.stop();
    }
}
