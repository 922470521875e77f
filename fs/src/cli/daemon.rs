//! Going into the background, with the caller waiting until the mount can be used.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::unistd::{ForkResult, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe2, setsid};

/// First byte of the report: the mount can be used.
const READY: u8 = 0;
/// First byte of the report: it failed; the text follows.
const FAILED: u8 = 1;

/// Which side of the fork this is.
pub(super) enum Side {
    /// The process that was started; the daemon's report.
    Caller(Result<(), String>),
    /// The daemon, which owes a report.
    Daemon(Report),
}

/// The daemon's report to its caller.
pub(super) struct Report(File);

/// Splits off a daemon. The caller's side returns once the daemon has reported.
///
/// To be called while the process has one thread: the daemon would miss the others and find
/// their locks taken.
///
/// # Errors
/// When the host has no process or pipe to give.
pub(super) fn detach() -> io::Result<Side> {
    let (from_daemon, to_caller) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: no other thread exists yet, so the child finds no lock held and no state half
    // changed.
    match unsafe { fork() }? {
        ForkResult::Parent { .. } => {
            drop(to_caller);
            Ok(Side::Caller(await_report(from_daemon)))
        }
        ForkResult::Child => {
            drop(from_daemon);
            setsid()?;
            Ok(Side::Daemon(Report(File::from(to_caller))))
        }
    }
}

fn await_report(from_daemon: OwnedFd) -> Result<(), String> {
    let mut report = Vec::new();
    let read = File::from(from_daemon).read_to_end(&mut report);
    match (read, report.split_first()) {
        (Ok(_), Some((&READY, _))) => Ok(()),
        (Ok(_), Some((&FAILED, text))) => Err(String::from_utf8_lossy(text).into_owned()),
        _ => Err("the daemon died before the mount was ready".into()),
    }
}

impl Report {
    /// Lets the caller go: the mount can be used. From here on the daemon has no directory, no
    /// terminal, and standard streams that lead nowhere.
    pub(super) fn ready(mut self) -> io::Result<()> {
        std::env::set_current_dir("/")?;
        let nowhere = File::options().read(true).write(true).open("/dev/null")?;
        dup2_stdin(nowhere.as_fd())?;
        dup2_stdout(nowhere.as_fd())?;
        dup2_stderr(nowhere.as_fd())?;
        self.0.write_all(&[READY])
    }

    /// Tells the caller what went wrong.
    pub(super) fn failed(mut self, problem: &str) {
        // If the caller is gone nobody is left to be told.
        let _ = self.0.write_all(&[FAILED]);
        let _ = self.0.write_all(problem.as_bytes());
    }
}

/// Opens a log file for appending.
pub(super) fn open_log(path: &Path) -> io::Result<File> {
    File::options().append(true).create(true).open(path)
}
