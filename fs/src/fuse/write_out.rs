//! Having the kernel write the dirty pages of a file, and keep them; and asking it whether there are any.
//!
//! No notification does that: invalidating an inode writes its pages one at a time and then drops all that
//! is cached of it. So the daemon opens the file on its own mount, by its inode number, as any process could.
//! Only threads that serve no requests may do so; the event loops know them by their numbers and answer such
//! an open at once, whatever the file is kept for.
//!
//! *Kept descriptors.* A file that has atomic writes is kept open as long as others have it open. Then
//! writing its pages out takes no request but those of the pages, and [`OwnMount::pages`] asks cachestat(2)
//! how many pages there are, and how many of them are not written. That takes no request at all, waits for
//! nobody, and is exact, whoever made a page dirty and however: the kernel counts in the tree of the file's
//! pages, where a page is from before the READ that fills it until it is dropped, and where it is marked
//! before the store goes on that makes it dirty. So event loops may ask.
//!
//! - *No mount is busy because of it.* The file is opened in a clone of the mount that nobody can see; what
//!   lives on is the filesystem, until others have closed the file and its descriptor is let go of
//!   ([`OwnMount::let_go`]), which ends it if it is mounted nowhere any more.
//! - *Where it is done.* Linux before 6.16 counts a page as written when its bytes have been copied for the
//!   request; only closing a file waits for the requests. cachestat(2) asks the filesystem for permission
//!   unless the caller owns every file. So without such a kernel or such a right nothing is kept, and files
//!   are opened for each write.
//!
//! Locks: the map of descriptors is locked for cachestat(2), so that no event loop ever holds the last
//! reference of a descriptor: closing it writes pages.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::mountinfo::DeviceNumber;
use crate::types::Ino;

/// FILEID_INO64_GEN: an inode number in two words, high and low, and a generation, which is 0.
const BY_NUMBER: i32 = 0x81;
/// The number of cachestat(2), the same on all architectures that are supported.
const CACHESTAT: libc::c_long = 451;
/// OPEN_TREE_CLONE.
const CLONE: libc::c_uint = 1;
/// Most files that are kept open; further ones are opened for each write.
const KEPT_MAX: usize = 512;
/// The first version of Linux that counts a page as unwritten until its WRITE has been answered.
const EXACT_SINCE: (u32, u32) = (6, 16);
/// CAP_FOWNER, as a bit of a set.
const OWNS_EVERY_FILE: u64 = 1 << 3;

/// A file handle of that kind, as open_by_handle_at(2) takes it.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    words: [u32; 3],
}

/// What cachestat(2) is asked about; no length means up to the end.
#[repr(C)]
struct CacheRange {
    offset: u64,
    len: u64,
}

/// Its answer, in pages.
#[repr(C)]
#[derive(Default)]
struct CacheCounts {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// What the page cache has of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pages {
    /// Any at all, those included that are being read.
    pub(super) any: bool,
    /// Some whose contents the daemon has not seen and answered yet.
    pub(super) unwritten: bool,
}

/// A mount, to open files of by their numbers.
pub(super) struct OwnMount {
    path: PathBuf,
    device: DeviceNumber,
    /// The descriptors that are kept, where any are.
    kept: Option<Mutex<HashMap<Ino, Arc<File>>>>,
}

impl OwnMount {
    /// `guarded`: somebody ends the connection when this process ends with files open on its own mount
    /// ([`super::guard`]); otherwise none are kept.
    pub(super) fn new(path: PathBuf, device: DeviceNumber, guarded: bool) -> OwnMount {
        let exact = kernel_version().is_some_and(|version| version >= EXACT_SINCE);
        let kept = (guarded && exact && owns_every_file()).then(Mutex::default);
        OwnMount { path, device, kept }
    }

    /// The root directory, by the mount that everybody sees or by a clone of it.
    fn root(&self, cloned: bool) -> io::Result<File> {
        let directory = |path: &std::path::Path| {
            OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_DIRECTORY)
                .open(path)
        };
        let root = if cloned {
            // The clone goes with its descriptor, but for files that are open in it.
            let clone = clone_mount(&self.path)?;
            directory(format!("/proc/self/fd/{}", clone.as_raw_fd()).as_ref())?
        } else {
            directory(&self.path)?
        };
        let DeviceNumber { major, minor } = self.device;
        if root.metadata()?.dev() != libc::makedev(major, minor) {
            return Err(io::Error::other("something else is mounted over it"));
        }
        Ok(root)
    }

    fn open(&self, ino: Ino, cloned: bool) -> io::Result<File> {
        let root = self.root(cloned)?;
        let mut handle = Handle {
            bytes: 12,
            kind: BY_NUMBER,
            words: [(ino.0 >> 32) as u32, ino.0 as u32, 0],
        };
        // SAFETY: the handle has the layout of struct file_handle with as many bytes as it says, and
        // outlives the call.
        let fd = unsafe {
            let flags = libc::O_RDONLY | libc::O_CLOEXEC;
            libc::open_by_handle_at(root.as_raw_fd(), (&raw mut handle).cast(), flags)
        };
        match fd {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: the call has just made the descriptor, and nobody else knows it.
            fd => Ok(unsafe { File::from_raw_fd(fd) }),
        }
    }

    /// Writes the dirty pages of a file. That some could not be written is for those to notice who
    /// serve the writes.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub(super) fn write_out(&self, ino: Ino) -> io::Result<()> {
        const ALL: u32 = libc::SYNC_FILE_RANGE_WAIT_BEFORE
            | libc::SYNC_FILE_RANGE_WRITE
            | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        let kept = self.kept.as_ref();
        let file = match kept.and_then(|kept| kept.lock().get(&ino).cloned()) {
            Some(file) => file,
            None => Arc::new(self.open(ino, false)?),
        };
        // SAFETY: the descriptor is open, and no memory is passed.
        if unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, ALL) } != 0 {
            tracing::debug!(inode = ino.0, "write-back: {}", io::Error::last_os_error());
        }
        // An older kernel waits for the requests when a descriptor that is not kept is closed.
        Ok(())
    }

    /// Keeps a file open, which somebody else has open, until [`OwnMount::let_go`]. That it is not is
    /// no error: then more requests are needed.
    pub(super) fn keep(&self, ino: Ino) {
        let Some(kept) = &self.kept else {
            return;
        };
        let has_room = |kept: &HashMap<_, _>| !kept.contains_key(&ino) && kept.len() < KEPT_MAX;
        if !has_room(&kept.lock()) {
            return;
        }
        let opened = self.open(ino, true).and_then(|file| {
            cache_counts(file.as_raw_fd())?;
            Ok(file)
        });
        match opened {
            Ok(file) => {
                // Whichever of two is not kept is closed here, where no lock is held.
                let _other = kept.lock().insert(ino, Arc::new(file));
            }
            Err(error) => tracing::debug!(inode = ino.0, "not kept open: {error}"),
        }
    }

    /// What the page cache has of a file; `None` if that is not known.
    pub(super) fn pages(&self, ino: Ino) -> Option<Pages> {
        let kept = self.kept.as_ref()?.lock();
        let counts = cache_counts(kept.get(&ino)?.as_raw_fd()).ok()?;
        Some(Pages {
            any: counts.cached > 0,
            unwritten: counts.dirty > 0 || counts.writeback > 0,
        })
    }

    /// The descriptor of a file that nobody else has open, to be closed by a thread that serves no
    /// requests.
    pub(super) fn let_go(&self, ino: Ino) -> Option<Arc<File>> {
        self.kept.as_ref()?.lock().remove(&ino)
    }
}

/// A mount of the same filesystem that is nowhere to be seen.
fn clone_mount(path: &std::path::Path) -> io::Result<OwnedFd> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let flags = CLONE | libc::O_CLOEXEC as libc::c_uint;
    // SAFETY: the path is a C string that outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    match fd {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the call has just made the descriptor, and nobody else knows it.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }),
    }
}

fn cache_counts(file: RawFd) -> io::Result<CacheCounts> {
    let mut range = CacheRange { offset: 0, len: 0 };
    let mut counts = CacheCounts::default();
    // SAFETY: both structures have the layout of the kernel's, and outlive the call.
    let done = unsafe { libc::syscall(CACHESTAT, file, &raw mut range, &raw mut counts, 0) };
    match done {
        0 => Ok(counts),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The version of Linux, as far as it is told.
fn kernel_version() -> Option<(u32, u32)> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    parse_version(&release)
}

fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Whether this process has CAP_FOWNER for the files of all users.
fn owns_every_file() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let users = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    has_capability(&status, OWNS_EVERY_FILE) && maps_all_users(&users)
}

fn has_capability(status: &str, capability: u64) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set & capability != 0)
}

fn maps_all_users(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_kernels_are_compared_as_numbers() {
        let version = |release| parse_version(release);
        assert_eq!(version("6.18.44-fc-v669\n"), Some((6, 18)));
        assert_eq!(version("6.1.0-28-amd64\n"), Some((6, 1)));
        assert_eq!(version("7.2-rc1\n"), Some((7, 2)));
        assert_eq!(version("unknown\n"), None);
        assert!(version("6.9.1") < Some(EXACT_SINCE) && version("7.0") > Some(EXACT_SINCE));
    }

    #[test]
    fn rights_are_read_from_what_the_kernel_says_of_the_process() {
        let root = "Name:\twarren\nCapEff:\t000001ffffffffff\n";
        assert!(has_capability(root, OWNS_EVERY_FILE));
        let without = "CapEff:\t000001fffffffff7\n";
        assert!(!has_capability(without, OWNS_EVERY_FILE) && !has_capability("", OWNS_EVERY_FILE));
        assert!(maps_all_users("         0          0 4294967295\n"));
        assert!(!maps_all_users("         0     100000      65536\n") && !maps_all_users(""));
    }

    #[test]
    fn pages_of_a_file_are_counted() {
        // SAFETY: the name is a C string, and the descriptor is nobody else's.
        let mut file = unsafe { File::from_raw_fd(libc::memfd_create(c"pages".as_ptr(), 0)) };
        let cached = |file: &File| match cache_counts(file.as_raw_fd()) {
            Ok(counts) => Some(counts.cached),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENOSYS), "Linux before 6.5");
                None
            }
        };
        assert!(matches!(cached(&file), None | Some(0)));
        io::Write::write_all(&mut file, &[1; 3 * 4096]).unwrap();
        assert!(matches!(cached(&file), None | Some(3)));
    }
}
