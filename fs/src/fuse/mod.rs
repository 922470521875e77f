//! The FUSE adapter: a thin shell that turns requests of the kernel into calls of a [`Volume`].
//!
//! Only this module mentions `fuser`. It keeps no state of its own besides the options of the
//! mount and the sets of files
//! that are open for writing or were written: no inode table, no caches. What it decides is how
//! the kernel is to cache:
//!
//! - Entries, attributes and the absence of entries are valid for a day: nobody but this mount
//!   changes the filesystem, and the kernel updates its own caches with its own changes.
//! - With the writeback cache the kernel owns size, mtime and ctime of open files and tells them
//!   in writes and `setattr`; closing a file writes its dirty pages and reports their errors.
//! - Directories need no handle, so `opendir` is answered once with "not implemented" where the
//!   kernel takes that to mean "never ask again"; likewise `flush`, which has nothing to do.
//! - POSIX and BSD locks stay in the kernel.
//!
//! What lies where: `ops` has the requests, one method each, and those that are a call of the volume;
//! `data` reads, writes and copies, `directory` finds, creates and lists, `xattr` and `atomic` have
//! attributes and ioctls, `kernels` what kernels answer; `dirty` and `write_out` deal with what the page
//! cache has and we have not, `session` with the life of a mount.
//!
//! A request that panics is answered with EIO, logged, and ends all changes of this mount: the
//! state in memory may be half changed.

mod atomic;
mod bdi;
mod convert;
mod data;
mod directory;
mod dirty;
mod gate;
mod guard;
mod kernels;
pub mod late;
mod latency;
pub mod mountinfo;
mod ops;
pub mod options;
pub mod session;
mod stale;
mod times;
mod write_out;
mod xattr;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::RwLock;

use fuser::{Errno, FileAttr, Generation, InitFlags, KernelConfig, ReplyEmpty, ReplyEntry};

use crate::error::{Error, Result};
use crate::offload::Offload;
use crate::types::Ino;
use crate::volume::Volume;
use crate::volume::types::{Attributes, Seek};
use atomic::WaitingOpens;
use dirty::{Pending, PendingSeek, Queue, WriteBack, Writers};
use gate::Gate;
use options::MountOptions;
use stale::StaleAttributes;
use times::WrittenTimes;
use write_out::OwnMount;

/// Inode numbers are never used twice, so every inode is of the first generation.
const GENERATION: Generation = Generation(0);

/// Features that are asked for where the kernel has them.
///
/// Left out on purpose: remote locks (the kernel's own do), `AUTO_INVAL_DATA` (nobody else changes
/// files), the splice flags (replies are built in memory, and `fuser` reads and writes), and
/// `SETXATTR_EXT`, whose longer request `fuser` 0.18 does not know.
const WANTED: InitFlags = InitFlags::FUSE_ASYNC_READ
    .union(InitFlags::FUSE_ATOMIC_O_TRUNC)
    .union(InitFlags::FUSE_EXPORT_SUPPORT)
    .union(InitFlags::FUSE_BIG_WRITES)
    .union(InitFlags::FUSE_DONT_MASK)
    .union(InitFlags::FUSE_DO_READDIRPLUS)
    .union(InitFlags::FUSE_READDIRPLUS_AUTO)
    .union(InitFlags::FUSE_ASYNC_DIO)
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_HANDLE_KILLPRIV_V2)
    .union(InitFlags::FUSE_POSIX_ACL)
    .union(InitFlags::FUSE_MAX_PAGES)
    .union(InitFlags::FUSE_CACHE_SYMLINKS)
    .union(InitFlags::FUSE_NO_OPENDIR_SUPPORT)
    .union(InitFlags::FUSE_EXPLICIT_INVAL_DATA)
    .union(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);

/// A volume as the kernel sees it.
pub struct Adapter {
    core: Arc<Core>,
    options: MountOptions,
    /// The kernel takes "not implemented" from `opendir` to mean that directories need no handle.
    no_opendir: bool,
    /// Writes are gathered in the page cache, and the kernel owns size and times of files.
    writeback: bool,
    gate: Arc<Gate>,
    /// The next number of a handle that `offload` gives none.
    handle_numbers: AtomicU64,
}

/// What the event loops share with the thread of [`dirty`].
struct Core {
    volume: Arc<Volume>,
    offload: Arc<Offload>,
    writers: Writers,
    waiting: WaitingOpens,
    write_back: Queue,
    /// The threads of [`dirty`], which open files to have them written.
    own_threads: RwLock<Vec<u32>>,
    own_mount: OnceLock<OwnMount>,
    stale: StaleAttributes,
    written_times: WrittenTimes,
    /// A request has panicked; changes are refused from then on.
    broken: AtomicBool,
}

impl Adapter {
    /// An adapter of `volume`, and the queue of requests for [`dirty::start`].
    fn new(
        volume: Arc<Volume>,
        offload: Arc<Offload>,
        options: MountOptions,
        gate: Arc<Gate>,
    ) -> (Adapter, Receiver<Pending>) {
        let (write_back, pending) = Queue::new();
        let adapter = Adapter {
            core: Arc::new(Core {
                volume,
                offload,
                writers: Writers::default(),
                waiting: WaitingOpens::default(),
                write_back,
                own_threads: RwLock::default(),
                own_mount: OnceLock::new(),
                stale: StaleAttributes::default(),
                written_times: WrittenTimes::default(),
                broken: AtomicBool::new(false),
            }),
            options,
            no_opendir: false,
            writeback: false,
            gate,
            handle_numbers: AtomicU64::new(0),
        };
        (adapter, pending)
    }

    fn configure(&mut self, config: &mut KernelConfig) {
        let offered = config.capabilities();
        let mut wanted = WANTED & offered;
        // Direct handles write through; the kernel would keep a stale mtime for them.
        if self.options.writeback && !self.options.direct_io {
            wanted |= InitFlags::FUSE_WRITEBACK_CACHE & offered;
        }
        self.writeback = wanted.contains(InitFlags::FUSE_WRITEBACK_CACHE);
        self.no_opendir = wanted.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        if let Err(unsupported) = config.add_capabilities(wanted) {
            tracing::warn!(?unsupported, "the kernel withdrew features it had offered");
        }
        clamped(config.set_max_write(self.options.max_write), |v| {
            config.set_max_write(v)
        });
        clamped(config.set_max_readahead(self.options.max_readahead), |v| {
            config.set_max_readahead(v)
        });
        let background = self.options.max_background;
        clamped(config.set_max_background(background), |v| {
            config.set_max_background(v)
        });
        clamped(config.set_congestion_threshold(background / 4 * 3), |v| {
            config.set_congestion_threshold(v)
        });
        tracing::debug!(?offered, ?wanted, abi = ?config.kernel_abi(), "connected to the kernel");
    }

    /// [`Core::change`] of the entries of `parent`, durable on return with `dirsync`.
    fn change_entries<T>(
        &self,
        request: &'static str,
        parent: Ino,
        body: impl FnOnce(&Volume) -> Result<T>,
    ) -> std::result::Result<T, Errno> {
        self.core.change(request, parent, |volume| {
            let value = body(volume)?;
            if self.options.dirsync || self.options.sync {
                volume.fsync(parent)?;
            }
            Ok(value)
        })
    }

    /// Answers with an entry, which the kernel holds a reference of from then on.
    fn reply_entry(&self, reply: ReplyEntry, result: std::result::Result<Attributes, Errno>) {
        match result {
            Ok(found) => {
                self.core.volume.remember(found.ino);
                reply.entry_with_ttls(
                    &self.options.attr_timeout,
                    &self.options.entry_timeout,
                    &convert::attributes(&found),
                    GENERATION,
                );
            }
            Err(errno) => reply.error(errno),
        }
    }

    /// Answers a lookup that found nothing, for the kernel to remember.
    fn reply_absent(&self, reply: ReplyEntry) {
        let absent: FileAttr = convert::no_entry();
        let timeout = self.options.negative_timeout;
        reply.entry_with_ttls(&Duration::ZERO, &timeout, &absent, GENERATION);
    }

    /// Answers a request that changed something; if no other change comes with it (`last`), first
    /// starts the commit that is likely to be asked for next.
    fn answer_and_anticipate(&self, last: bool, answer: impl FnOnce()) {
        let lead = last.then(|| self.core.volume.anticipate_fsync()).flatten();
        answer();
        if let Some(lead) = lead {
            let _absence = self.gate.step_out();
            lead.run();
        }
    }

    /// Whether a handle opened with `flags` of open(2) can leave dirty pages.
    fn makes_dirty(&self, flags: i32) -> bool {
        self.writeback && flags & libc::O_ACCMODE != libc::O_RDONLY
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        self.core.write_back.end();
    }
}

impl Core {
    /// Calls `then` on a thread that may change the page cache, after dirty pages of `files` have been
    /// written. If those threads are gone so is the mount, and replies are dropped with `then`.
    fn on_write_back(&self, files: Vec<Ino>, then: impl FnOnce(&WriteBack) + Send + 'static) {
        let _ = self.write_back.send(Pending::Other(files, Box::new(then)));
    }

    /// Runs the body of a request: errors become an errno, damage is logged, a panic becomes EIO.
    fn run<T>(
        &self,
        request: &'static str,
        ino: Ino,
        body: impl FnOnce(&Volume) -> Result<T>,
    ) -> std::result::Result<T, Errno> {
        match catch_unwind(AssertUnwindSafe(|| body(&self.volume))) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                if convert::is_alarming(&error) {
                    tracing::error!(request, inode = ino.0, "{error}");
                }
                Err(convert::errno(&error))
            }
            Err(_) => {
                self.broken.store(true, Ordering::Release);
                tracing::error!(
                    request,
                    inode = ino.0,
                    "internal error; the mount is read-only from now on"
                );
                Err(Errno::EIO)
            }
        }
    }

    /// [`Core::run`] for requests that change something.
    fn change<T>(
        &self,
        request: &'static str,
        ino: Ino,
        body: impl FnOnce(&Volume) -> Result<T>,
    ) -> std::result::Result<T, Errno> {
        if self.broken.load(Ordering::Acquire) {
            return Err(convert::errno(&Error::ReadOnly));
        }
        self.run(request, ino, body)
    }

    /// Answers when `ino` is durable, which may be later and on another thread.
    fn answer_fsync(&self, gate: &Gate, request: &'static str, ino: Ino, reply: ReplyEmpty) {
        self.stale.tell(ino);
        let then = Box::new(move |outcome: Result<()>| match outcome {
            Ok(()) => reply.ok(),
            Err(error) => {
                tracing::error!(request, inode = ino.0, "{error}");
                reply.error(convert::errno(&error));
            }
        });
        // A panic leaves the reply to its destructor, which answers EIO.
        let _ = self.run(request, ino, |volume| {
            if let Some(lead) = volume.fsync_then(ino, then) {
                let _absence = gate.step_out();
                lead.run();
            }
            Ok(())
        });
    }

    /// Answers a seek for data or a hole.
    fn answer_seek(&self, seek: PendingSeek) {
        let result = self.run("lseek", seek.ino, |volume| {
            let whence = match seek.whence {
                libc::SEEK_DATA => Seek::Data,
                libc::SEEK_HOLE => Seek::Hole,
                _ => return Err(Error::Invalid("whence of lseek")),
            };
            let from = u64::try_from(seek.offset).map_err(|_| Error::NoOffset)?;
            let found = volume.seek(seek.ino, from, whence)?;
            i64::try_from(found).map_err(|_| Error::TooLarge)
        });
        match result {
            Ok(offset) => seek.reply.offset(offset),
            Err(errno) => seek.reply.error(errno),
        }
    }
}

/// Takes the nearest value that is allowed when the wanted one is not.
fn clamped<T>(
    first: std::result::Result<T, T>,
    mut retry: impl FnMut(T) -> std::result::Result<T, T>,
) {
    if let Err(nearest) = first {
        // The nearest value is allowed by definition; there is nothing to do if it is not.
        let _ = retry(nearest);
    }
}
