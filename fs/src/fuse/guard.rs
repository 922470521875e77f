//! A process that ends the connection to the kernel when the daemon dies.
//!
//! The connection ends by itself when the last descriptor of it is closed, which a dying process does -
//! unless one of its threads waits in the kernel for a request that only it could have served. Writing
//! dirty pages on the daemon's behalf ([`super::dirty`]) is such a wait, and so is closing a file that it
//! keeps open on its own mount ([`super::write_out`]), as the last thread of a process does with all that
//! is open when it ends. A daemon killed at that moment
//! would never quite end: the image stays locked, and who waits for the mount waits for ever. So a child,
//! which does nothing else, outlives it for as long as it takes to abort the connection.
//!
//! The child is told when the thread that made it has ended. That is a thread with a table of descriptors
//! of its own, and nothing in it: its end waits for nobody.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use super::mountinfo::DeviceNumber;

/// The handle that aborts the connection of a mount. The control filesystem is mounted nowhere for it.
fn abort_switch(device: DeviceNumber) -> io::Result<OwnedFd> {
    const CREATE: libc::c_uint = 6;
    let call = |result: libc::c_long| match result {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: a call that has just succeeded has made the descriptor, and nobody else knows it.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }),
    };
    let null = std::ptr::null::<u8>();
    // SAFETY: the name is a C string, and FSOPEN_CLOEXEC a valid flag.
    let context = call(unsafe { libc::syscall(libc::SYS_fsopen, c"fusectl".as_ptr(), 1) })?;
    let raw = context.as_raw_fd();
    // SAFETY: this command of fsconfig takes neither a key nor a value.
    let made = unsafe { libc::syscall(libc::SYS_fsconfig, raw, CREATE, null, null, 0) };
    if made != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is an open context, and FSMOUNT_CLOEXEC a valid flag.
    let root = call(unsafe { libc::syscall(libc::SYS_fsmount, raw, 1, 0) })?;
    let path = format!("{}/abort\0", device.minor);
    let path = CStr::from_bytes_with_nul(path.as_bytes()).map_err(io::Error::other)?;
    let flags = libc::O_WRONLY | libc::O_CLOEXEC;
    // SAFETY: the path is a C string, the descriptor that of an open directory.
    call(unsafe { libc::openat(root.as_raw_fd(), path.as_ptr(), flags) }.into())
}

/// Starts the process, and the thread that it watches. To be called with SIGTERM blocked.
///
/// # Errors
/// Without the control filesystem, or when the host has no thread or process to give.
pub(super) fn start(device: DeviceNumber) -> io::Result<()> {
    let (tell, told) = sync_channel(1);
    thread::Builder::new()
        .name("guard".into())
        .spawn(move || serve(device, &tell))?;
    told.recv().map_err(io::Error::other)?
}

/// The thread: ends with the process, and before its descriptors are closed.
fn serve(device: DeviceNumber, tell: &SyncSender<io::Result<()>>) {
    let started = leave_descriptors().and_then(|()| fork(device));
    let failed = started.is_err();
    // Somebody waits for it.
    let _ = tell.send(started);
    if failed {
        return;
    }
    loop {
        thread::park();
    }
}

/// Gives this thread a table of descriptors of its own, with none in it.
fn leave_descriptors() -> io::Result<()> {
    // SAFETY: the calls take numbers. What is closed are copies that nobody uses: all that this thread
    // does with descriptors from here on is in this module, and begins with opening them.
    let left = unsafe {
        match libc::unshare(libc::CLONE_FILES) {
            0 => libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0),
            _ => -1,
        }
    };
    match left {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn fork(device: DeviceNumber) -> io::Result<()> {
    let switch = abort_switch(device)?;
    // SAFETY: getpid has no preconditions.
    let daemon = unsafe { libc::getpid() };
    // SAFETY: the child calls nothing but what may be called between fork and exec.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => watch(switch.as_raw_fd(), daemon),
        _ => Ok(()),
    }
}

/// The child: waits for the end of its parent and aborts the connection. Only system calls are made,
/// since locks of the parent's other threads may be held for ever here.
fn watch(switch: RawFd, daemon: libc::pid_t) -> ! {
    let fd = switch as libc::c_uint;
    // SAFETY: these take numbers, or pointers to what lives in this frame; descriptors that are closed
    // belong to nobody in this process, which ends here.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"warren-guard".as_ptr());
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
        if fd > 0 {
            libc::syscall(libc::SYS_close_range, 0, fd - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, fd + 1, libc::c_uint::MAX, 0);
        libc::chdir(c"/".as_ptr());
        let mut signals: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut signals);
        libc::sigaddset(&raw mut signals, libc::SIGTERM);
        let mut info: libc::siginfo_t = std::mem::zeroed();
        // The signal names the daemon. It comes when the thread has ended that made this process; the
        // daemon, and with it this one's parent, may be there for longer.
        while libc::getppid() == daemon && info.si_pid() != daemon {
            libc::sigwaitinfo(&raw const signals, &raw mut info);
        }
        libc::write(switch, c"1".as_ptr().cast(), 1);
        libc::_exit(0)
    }
}
