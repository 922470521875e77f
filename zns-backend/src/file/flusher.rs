//! Synchronous flushes that leave the zone table out.
//!
//! `fdatasync` writes every dirty page of the file, and the page of the zone table is always dirty;
//! the ring's fsync takes a byte range. So a synchronous flush goes through a small ring of its own;
//! rings are kept for the next flush, as many as ever ran at the same time.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, types};
use parking_lot::Mutex;

pub(super) struct Flusher {
    idle: Mutex<Vec<IoUring>>,
}

impl Flusher {
    pub(super) fn new() -> Flusher {
        Flusher {
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Flushes the journal and disk under `file`, and of its dirty pages only the one at `offset`.
    pub(super) fn flush(&self, file: &File, offset: u64) -> io::Result<()> {
        let idle = self.idle.lock().pop();
        let Some(mut ring) = idle.or_else(|| IoUring::new(1).ok()) else {
            return file.sync_data();
        };
        let fd = types::Fd(file.as_raw_fd());
        let fsync = opcode::Fsync::new(fd).offset(offset).len(1);
        let entry = fsync.flags(types::FsyncFlags::DATASYNC).build();
        // SAFETY: the entry names no memory, and the descriptor stays open for this call, which
        // does not return before the completion is there (or drops the ring).
        if unsafe { ring.submission().push(&entry) }.is_err() {
            return file.sync_data();
        }
        let event = loop {
            match ring.submit_and_wait(1) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            if let Some(event) = ring.completion().next() {
                break event;
            }
        };
        self.idle.lock().push(ring);
        match event.result() {
            0.. => Ok(()),
            // The kernel gave it up without trying.
            error if matches!(-error, libc::EINTR | libc::EAGAIN | libc::ECANCELED) => {
                file.sync_data()
            }
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    }
}
