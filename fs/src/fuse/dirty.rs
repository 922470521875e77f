//! Pages the kernel has not written yet, where a request needs them.
//!
//! Under the writeback cache the kernel sends SEEK_DATA and SEEK_HOLE without writing dirty pages
//! first (`fuse_lseek`, Linux 6.18), so the volume would report holes where there is data.
//! Therefore such a request first has the kernel write them ([`super::write_out`], or else by
//! invalidating the pages of the inode), and only then is answered. The same holds for the snapshot that
//! registering a kernel takes, and for the beginning and the end of an atomic write.
//!
//! That waits for write requests, which the event loops must be free to serve, so it happens on
//! threads of its own: a few, since one may lead the commit that the others' atomic writes are to share.
//! Only files with a writable handle can have dirty pages: closing a handle and unmapping a file write
//! them. Other files are answered at once.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use fuser::{INodeNo, Notifier, ReplyLseek};
use parking_lot::Mutex;

use super::Core;
use crate::types::Ino;

const THREADS: usize = 3;

/// What to do when pages have been written.
pub(super) type Then = Box<dyn FnOnce(&WriteBack) + Send>;

/// A seek whose answer depends on dirty pages.
pub(super) struct PendingSeek {
    pub(super) ino: Ino,
    pub(super) offset: i64,
    pub(super) whence: i32,
    pub(super) reply: ReplyLseek,
}

/// Something that waits for dirty pages.
pub(super) enum Pending {
    /// A seek.
    Seek(PendingSeek),
    /// Anything else: which files have to be written, and what to do then.
    Other(Vec<Ino>, Then),
}

/// The files that may have dirty pages: their writable handles, under the writeback cache.
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

    pub(super) fn count(&self, ino: Ino) -> u64 {
        self.0.lock().get(&ino).copied().unwrap_or(0)
    }
}

/// The right to change the page cache, which only a thread has that serves no requests.
pub(super) struct WriteBack(Notifier);

impl WriteBack {
    /// Has the kernel write the dirty pages of a file.
    pub(super) fn write(&self, core: &Core, ino: Ino) {
        let written = core.own_mount.get().map(|mount| mount.write_out(ino));
        match written {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::debug!(inode = ino.0, "write-back: {error}");
                self.drop_pages(ino);
            }
            None => self.drop_pages(ino),
        }
    }

    /// Has the kernel drop the pages of a file. Dirty ones it writes before, one at a time.
    pub(super) fn drop_pages(&self, ino: Ino) {
        // The kernel knows the inodes, since somebody has them open; pages it cannot drop it has
        // written all the same.
        if let Err(error) = self.0.inval_inode(INodeNo(ino.0), 0, 0) {
            tracing::debug!(inode = ino.0, "dropping pages: {error}");
        }
    }

    /// Has the kernel know that a file is `end` bytes long, the last of which is `last`, if it takes it
    /// for shorter: under the writeback cache it never asks.
    pub(super) fn lengthen(&self, ino: Ino, end: u64, last: u8) {
        if let Err(error) = self.0.store(INodeNo(ino.0), end - 1, &[last]) {
            tracing::debug!(inode = ino.0, "length: {error}");
        }
    }
}

/// The queue to the threads. It ends with the adapter, although the threads know it too.
pub(super) struct Queue(Mutex<Option<Sender<Pending>>>);

impl Queue {
    /// A queue, and its end for [`start`].
    pub(super) fn new() -> (Queue, Receiver<Pending>) {
        let (sender, pending) = channel();
        (Queue(Mutex::new(Some(sender))), pending)
    }

    /// Puts a request into the queue; it comes back if the threads are gone, and so is the mount then.
    pub(super) fn send(&self, request: Pending) -> Result<(), Box<Pending>> {
        match &*self.0.lock() {
            Some(sender) => sender.send(request).map_err(|unsent| Box::new(unsent.0)),
            None => Err(Box::new(request)),
        }
    }

    /// Lets the threads end once they have done what is in the queue.
    pub(super) fn end(&self) {
        self.0.lock().take();
    }
}

/// Starts the threads. They end when the queue does.
pub(super) fn start(
    core: &Arc<Core>,
    pending: Receiver<Pending>,
    notifier: &Notifier,
) -> io::Result<Vec<JoinHandle<()>>> {
    let pending = Arc::new(Mutex::new(pending));
    let one = |_| {
        let (core, pending) = (Arc::clone(core), Arc::clone(&pending));
        let write_back = WriteBack(notifier.clone());
        thread::Builder::new()
            .name("write-back".into())
            .spawn(move || serve(&core, &pending, &write_back))
    };
    (0..THREADS).map(one).collect()
}

fn serve(core: &Core, pending: &Mutex<Receiver<Pending>>, write_back: &WriteBack) {
    let thread = nix::unistd::gettid().as_raw() as u32;
    core.own_threads.write().push(thread);
    loop {
        let request = pending.lock().recv();
        match request {
            Ok(Pending::Seek(seek)) => {
                write_back.write(core, seek.ino);
                core.answer_seek(seek);
            }
            Ok(Pending::Other(files, then)) => {
                files
                    .into_iter()
                    .for_each(|ino| write_back.write(core, ino));
                then(write_back);
            }
            Err(_) => return,
        }
    }
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
