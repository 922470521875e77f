//! A mount from mount(2) to the end of its connection: the event loops, signals, unmounting.
//!
//! The mount is made here and not by `fuser`, to know its device number and to detach it when it
//! is busy. It needs the right to mount (CAP_SYS_ADMIN); there is no set-user-ID helper.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fuser::{Config, Session, SessionACL};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{SigSet, Signal};

use super::gate::Gate;
use super::kernels::Pages;
use super::latency::Watch;
use super::mountinfo::{self, DeviceNumber, FSTYPE};
use super::options::MountOptions;
use super::write_out::OwnMount;
use super::{Adapter, Core, bdi, dirty, guard, stale};
use crate::offload::Offload;
use crate::volume::Volume;

/// How long requests in flight may take when a busy mount is detached.
const GRACE: Duration = Duration::from_secs(1);

/// Why a mount did not come about.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// `/dev/fuse` cannot be opened.
    #[error("cannot open /dev/fuse: {0} (is the fuse module loaded?)")]
    NoFuse(io::Error),
    /// The place to mount at is not one.
    #[error("{}: {problem}", path.display())]
    MountPoint {
        /// The place.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The kernel refused.
    #[error("cannot mount at {}: {source}", path.display())]
    Refused {
        /// The place.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
}

/// A mount whose event loops have not been started yet.
pub struct Mounted {
    session: Session<Adapter>,
    /// The threads of [`dirty`].
    write_back: Vec<JoinHandle<()>>,
    offload: Arc<Offload>,
    device: DeviceNumber,
}

/// Checks that a filesystem can be mounted at `path`, and returns the path without links.
///
/// # Errors
/// When it is missing, no directory, or a mount of ours already.
pub fn check_mount_point(path: &Path) -> Result<PathBuf, MountError> {
    let fail = |problem: String| MountError::MountPoint {
        path: path.into(),
        problem,
    };
    let real = path.canonicalize().map_err(|e| match e.raw_os_error() {
        Some(libc::ENOTCONN) => {
            fail("a dead mount is in the way (its daemon is gone); run umount first".into())
        }
        Some(libc::ENOENT) => fail("the mount point does not exist".into()),
        _ => fail(e.to_string()),
    })?;
    if !real.is_dir() {
        return Err(fail("the mount point is not a directory".into()));
    }
    match mountinfo::find(&real) {
        Ok(Some(there)) if there.is_warren() => {
            Err(fail(format!("{} is already mounted there", there.source)))
        }
        Ok(_) => Ok(real),
        Err(e) => Err(fail(e.to_string())),
    }
}

/// Mounts `volume` at `mount_point` (see [`check_mount_point`]) and shakes hands with the kernel.
/// `source` is what mount(8) shows.
///
/// # Errors
/// [`MountError`].
pub fn mount_volume(
    volume: Arc<Volume>,
    offload: &Arc<Offload>,
    source: &str,
    mount_point: &Path,
    options: &MountOptions,
) -> Result<Mounted, MountError> {
    let refused = |source: io::Error| MountError::Refused {
        path: mount_point.into(),
        source,
    };
    let fuse = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map_err(MountError::NoFuse)?;
    let data = kernel_options(&fuse, options);
    let source = options.fsname.as_deref().unwrap_or(source);
    let flags = kernel_flags(options);
    mount(
        Some(source),
        mount_point,
        Some(FSTYPE),
        flags,
        Some(data.as_str()),
    )
    .map_err(|e| refused(e.into()))?;
    // At once: somebody else may unmount it as soon as it is there.
    let entry = mountinfo::find(mount_point)
        .and_then(|entry| entry.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)));
    let connected = entry.and_then(|entry| {
        let Connected {
            session,
            write_back,
            core,
        } = connect(volume, offload, fuse.into(), options)?;
        let DeviceNumber { major, minor } = entry.device;
        let guarded = guard::start(entry.device);
        if let Err(error) = &guarded {
            tracing::warn!("nobody will end the mount if this process is killed: {error}");
        }
        let own_mount = OwnMount::new(mount_point.into(), entry.device, guarded.is_ok());
        // Set only here, once per adapter.
        let _ = core.own_mount.set(own_mount);
        offload.mounted((major, minor), Box::new(Pages(session.notifier())));
        Ok(Mounted {
            session,
            write_back,
            offload: Arc::clone(offload),
            device: entry.device,
        })
    });
    match connected {
        Ok(mounted) => {
            bdi::set(mounted.device, options.max_readahead, options.writeback);
            Ok(mounted)
        }
        Err(error) => {
            // The mount is of no use without a session; that it goes is all we can ask for.
            let _ = umount2(mount_point, MntFlags::MNT_DETACH);
            Err(refused(error))
        }
    }
}

/// An adapter with its connection to the kernel.
struct Connected {
    session: Session<Adapter>,
    write_back: Vec<JoinHandle<()>>,
    core: Arc<Core>,
}

/// Connects the adapter to the kernel. By default there are two event loops per processor and at
/// least eight, since one that reads the device waits for it and their number is how many reads the
/// device gets at a time; the [`Gate`] has no more of them wait for requests than there are
/// processors.
fn connect(
    volume: Arc<Volume>,
    offload: &Arc<Offload>,
    fuse: OwnedFd,
    options: &MountOptions,
) -> io::Result<Connected> {
    let mut config = Config::default();
    let processors = thread::available_parallelism().map_or(2, |n| n.get());
    let threads = options
        .threads
        .unwrap_or_else(|| (2 * processors).clamp(8, 32));
    config.n_threads = Some(threads);
    config.clone_fd = true;
    let watch = if options.low_latency {
        Watch::start()?
    } else {
        Watch::off()
    };
    let gate = Gate::new(processors, watch);
    let (adapter, pending) = Adapter::new(volume, Arc::clone(offload), options.clone(), gate);
    let core = Arc::clone(&adapter.core);
    let session = Session::from_fd(adapter, fuse, SessionACL::All, config)?;
    stale::start(&core, session.notifier())?;
    let write_back = dirty::start(&core, pending, &session.notifier())?;
    Ok(Connected {
        session,
        write_back,
        core,
    })
}

fn kernel_options(fuse: &File, options: &MountOptions) -> String {
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        fuse.as_raw_fd(),
        nix::unistd::getuid(),
        nix::unistd::getgid()
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    if let Some(max_read) = options.max_read {
        data.push_str(&format!(",max_read={max_read}"));
    }
    data
}

fn kernel_flags(options: &MountOptions) -> MsFlags {
    [
        (options.read_only, MsFlags::MS_RDONLY),
        (options.nosuid, MsFlags::MS_NOSUID),
        (options.nodev, MsFlags::MS_NODEV),
        (options.noexec, MsFlags::MS_NOEXEC),
        (options.noatime, MsFlags::MS_NOATIME),
        (options.nodiratime, MsFlags::MS_NODIRATIME),
        (options.sync, MsFlags::MS_SYNCHRONOUS),
        (options.dirsync, MsFlags::MS_DIRSYNC),
    ]
    .into_iter()
    .filter(|(set, _)| *set)
    .map(|(_, flag)| flag)
    .collect()
}

impl Mounted {
    /// The device number stat(2) shows for the mount.
    #[must_use]
    pub fn device(&self) -> DeviceNumber {
        self.device
    }

    /// Serves requests until the filesystem is unmounted, by whomever, or a signal of
    /// [`block_signals`] comes, which unmounts it. A mount that is busy then is detached: what
    /// was written is written back, kernels are called off, and files still open lose their
    /// filesystem after a moment.
    ///
    /// # Errors
    /// When the connection breaks for another reason.
    pub fn serve(self) -> io::Result<()> {
        let ended = Arc::new(AtomicBool::new(false));
        let detached = Arc::new(AtomicBool::new(false));
        let (device, session) = (self.device, self.session);
        let loops = thread::Builder::new().name("session".into()).spawn({
            let ended = Arc::clone(&ended);
            let main = thread::current();
            move || {
                let result = session.run();
                ended.store(true, Ordering::Release);
                main.unpark();
                result
            }
        })?;
        let watcher = thread::Builder::new().name("signals".into()).spawn({
            let detached = Arc::clone(&detached);
            let main = thread::current();
            let offload = Arc::downgrade(&self.offload);
            move || {
                wait_for_signal();
                if unmount_all(device) {
                    return;
                }
                if let Some(offload) = offload.upgrade() {
                    offload.stop();
                }
                detached.store(true, Ordering::Release);
                main.unpark();
            }
        })?;
        // The watcher sleeps for ever if no signal comes; it ends with the process.
        drop(watcher);
        let mut deadline = None;
        while !ended.load(Ordering::Acquire) {
            if detached.load(Ordering::Acquire) {
                let at = *deadline.get_or_insert_with(|| Instant::now() + GRACE);
                let left = at.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    tracing::warn!("the mount is still in use; ending it all the same");
                    return Ok(());
                }
                thread::park_timeout(left);
            } else {
                thread::park();
            }
        }
        let failed = |_| io::Error::other("an event loop failed");
        let result = loops.join().map_err(failed)?;
        for thread in self.write_back {
            thread.join().map_err(failed)?;
        }
        match result {
            // What a loop may be told that takes a request just when the last user of a filesystem goes
            // that is mounted nowhere any more (Linux 6.18). The others find the connection gone.
            Err(error) if is_aborted(&error) => Ok(()),
            result => result,
        }
    }
}

fn is_aborted(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECONNABORTED)
}

fn termination_signals() -> SigSet {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set
}

/// Keeps SIGTERM, SIGINT and SIGHUP from ending the process. To be called before any thread is
/// started, since threads inherit it; [`Mounted::serve`] waits for the signals.
///
/// # Errors
/// None in practice.
pub fn block_signals() -> io::Result<()> {
    termination_signals().thread_block()?;
    Ok(())
}

fn wait_for_signal() {
    let set = termination_signals();
    loop {
        match set.wait() {
            Ok(signal) => {
                tracing::info!(%signal, "unmounting");
                return;
            }
            Err(Errno::EINTR) => {}
            Err(error) => {
                tracing::error!("cannot wait for signals: {error}");
                thread::park();
            }
        }
    }
}

/// Unmounts the filesystem wherever it is mounted. A mount that is busy has its dirty pages
/// written back and is detached; false then.
fn unmount_all(device: DeviceNumber) -> bool {
    let mounts = mountinfo::read().unwrap_or_default();
    let mut clean = true;
    for entry in mounts.iter().rev().filter(|m| m.device == device) {
        let path = &entry.mount_point;
        match umount2(path, MntFlags::empty()) {
            Ok(()) => {}
            Err(Errno::EBUSY) => {
                clean = false;
                write_back(path);
                if let Err(error) = umount2(path, MntFlags::MNT_DETACH) {
                    tracing::error!("cannot detach {}: {error}", path.display());
                }
            }
            Err(error) => {
                clean = false;
                tracing::error!("cannot unmount {}: {error}", path.display());
            }
        }
    }
    clean
}

/// Has the kernel write back what it holds of a mounted filesystem. The event loops serve that
/// meanwhile.
fn write_back(path: &Path) {
    let synced = File::open(path).and_then(|dir| {
        // SAFETY: syncfs takes an open descriptor and touches no memory of ours.
        match unsafe { libc::syncfs(dir.as_raw_fd()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    });
    if let Err(error) = synced {
        tracing::error!("cannot write back {}: {error}", path.display());
    }
}
