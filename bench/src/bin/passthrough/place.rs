//! Where a known inode is: a descriptor, or the host's file handle once descriptors are scarce.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use rustix::io::{Errno, Result};

const HANDLE_BYTES: usize = libc::MAX_HANDLE_SZ as usize;

/// The host's `struct file_handle` with room for the longest handle.
#[repr(C)]
#[derive(Clone)]
pub(crate) struct HostHandle {
    bytes: u32,
    kind: i32,
    handle: [u8; HANDLE_BYTES],
}

const _: () = assert!(size_of::<HostHandle>() == size_of::<libc::file_handle>() + HANDLE_BYTES);
const _: () = assert!(align_of::<HostHandle>() == align_of::<libc::file_handle>());

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// How to get at an inode.
pub(crate) enum Place {
    /// It is open.
    Open(Arc<OwnedFd>),
    /// It is opened for every request.
    Handle(Box<HostHandle>),
}

impl Place {
    /// The handle of what `fd` stands for.
    pub(crate) fn closed(fd: &OwnedFd) -> Result<Place> {
        let mut handle = Box::new(HostHandle {
            bytes: HANDLE_BYTES as u32,
            kind: 0,
            handle: [0; HANDLE_BYTES],
        });
        let mut mount = 0;
        // SAFETY: the handle has the layout of `struct file_handle` (asserted above) and room for
        // the `bytes` it says; the empty path is a C string; both outlive the call.
        let outcome = unsafe {
            libc::name_to_handle_at(
                fd.as_raw_fd(),
                c"".as_ptr(),
                (&raw mut *handle).cast(),
                &raw mut mount,
                libc::AT_EMPTY_PATH,
            )
        };
        if outcome == 0 {
            Ok(Place::Handle(handle))
        } else {
            Err(last_error())
        }
    }

    /// A descriptor of it; `root` is any on the same filesystem.
    pub(crate) fn fd(&self, root: BorrowedFd<'_>) -> Result<Arc<OwnedFd>> {
        let handle = match self {
            Place::Open(fd) => return Ok(Arc::clone(fd)),
            Place::Handle(handle) => handle,
        };
        let mut handle = handle.clone();
        // SAFETY: as above; the kernel only reads the handle.
        let fd = unsafe {
            libc::open_by_handle_at(
                root.as_raw_fd(),
                (&raw mut *handle).cast(),
                libc::O_PATH | libc::O_CLOEXEC,
            )
        };
        if fd < 0 {
            return Err(last_error());
        }
        // SAFETY: the call succeeded, and nobody else has the new descriptor.
        Ok(Arc::new(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}
