//! Pages the kernel has not written yet, where a request needs them.
//!
//! Under the writeback cache the kernel sends SEEK_DATA and SEEK_HOLE without writing dirty pages
//! first (`fuse_lseek`, Linux 6.18), so the volume would report holes where there is data.
//! Therefore such a request first has the kernel write them, by invalidating the pages of the
//! inode, and only then is answered.
//!
//! That waits for write requests, which the event loops must be free to serve, so it happens on a
//! thread of its own. Only files with a writable cached handle can have dirty pages: closing a
//! handle and unmapping a file write them. Other files are answered at once.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use fuser::{INodeNo, Notifier, ReplyLseek};
use parking_lot::Mutex;

use super::Core;
use crate::types::Ino;

/// A seek whose answer depends on dirty pages.
pub(super) struct PendingSeek {
    pub(super) ino: Ino,
    pub(super) offset: i64,
    pub(super) whence: i32,
    pub(super) reply: ReplyLseek,
}

/// The files that may have dirty pages: their writable cached handles.
#[derive(Default)]
pub(super) struct Writers(Mutex<HashMap<Ino, u64>>);

impl Writers {
    pub(super) fn add(&self, ino: Ino) {
        *self.0.lock().entry(ino).or_default() += 1;
    }

    pub(super) fn remove(&self, ino: Ino) {
        let mut writers = self.0.lock();
        if let Some(handles) = writers.get_mut(&ino) {
            *handles -= 1;
            if *handles == 0 {
                writers.remove(&ino);
            }
        }
    }

    pub(super) fn contains(&self, ino: Ino) -> bool {
        self.0.lock().contains_key(&ino)
    }
}

/// The queue to the thread, and its end for [`start`].
pub(super) fn queue() -> (Sender<PendingSeek>, Receiver<PendingSeek>) {
    channel()
}

/// Starts the thread. It ends when the adapter that holds the other end of the queue goes.
pub(super) fn start(
    core: Arc<Core>,
    pending: Receiver<PendingSeek>,
    notifier: Notifier,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new()
        .name("write-back".into())
        .spawn(move || {
            for seek in pending {
                // Data before the offset has no say in the answer. The kernel knows the inode,
                // since somebody has it open; pages it cannot drop it has written all the same.
                if let Err(error) = notifier.inval_inode(INodeNo(seek.ino.0), seek.offset, 0) {
                    tracing::debug!(inode = seek.ino.0, "write-back: {error}");
                }
                core.answer_seek(seek);
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_be_dirty_until_its_last_writer_is_gone() {
        let writers = Writers::default();
        writers.add(Ino(2));
        writers.add(Ino(2));
        writers.remove(Ino(2));
        assert!(writers.contains(Ino(2)));
        writers.remove(Ino(2));
        assert!(!writers.contains(Ino(2)));
        writers.remove(Ino(2));
    }
}
