//! The atomic-write ioctls of F2FS: START, COMMIT, ABORT, and the question whether there are any.
//!
//! A session ([`crate::volume::atomic`]) belongs to an open handle. What the volume promises of it, the
//! page cache, which all handles share, must not break (docs/atomic-writes.md):
//!
//! - Dirty pages belong to the session that is under way when they were made. So START has the kernel
//!   write those of before, COMMIT those of the session, and what is written back in between joins it.
//! - Pages of a session that comes to nothing, and pages that other handles have cached of what a
//!   session has changed, are dropped before the request is answered.
//! - Through a handle that uses the page cache, its pages show what is pending. So such a session needs
//!   the file to itself: START is refused while there are other handles, and an open waits for the end
//!   of the session. Through a direct handle only other writers have to stay away.
//!
//! All of that waits for write requests, so it happens on the threads of [`super::dirty`]. An ioctl in
//! flight holds no lock of the kernel.
//!
//! *Where nothing of a file is cached*, as it is with programs that have a cache of their own and use
//! direct handles, none of that is needed, and START and COMMIT are answered by the event loop that
//! takes them. The kernel itself says that it is so ([`OwnMount::pages`]); nothing is concluded from the
//! requests that have been seen. Mappings, also those that outlive a descriptor or went to another
//! process by a fork, O_DIRECT taken off by fcntl(2), splice, reading ahead, other mounts of the same
//! filesystem: all of them leave pages in the one tree of the file's pages, which is what is counted.
//!
//! - START and COMMIT: what was written before the call has been answered by the daemon if no page is
//!   dirty or under writeback. What is written at the same time may be a part of the session or not.
//! - COMMIT counts again when the transaction is made. A page that was read before has been in the tree
//!   since before its READ was sent, and is found, even if it is still being read; one that is read later
//!   shows the commit. If there are none then, none is stale.
//!
//! [`OwnMount::pages`]: super::write_out::OwnMount::pages

use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{Errno, FileHandle, ReplyIoctl};
use parking_lot::Mutex;

use super::dirty::WriteBack;
use super::kernels::{HANDLE_DIRECT, HANDLE_UNCACHED, HANDLE_WRITABLE};
use super::write_out::Pages;
use super::{Adapter, Core, convert, kernels};
use crate::error::{Error, Result};
use crate::types::Ino;
use crate::volume::Volume;
use crate::volume::atomic::Owner;

/// `_IO(0xf5, 1)`.
const START: u32 = 0xf501;
/// `_IO(0xf5, 2)`.
const COMMIT: u32 = 0xf502;
/// `_IO(0xf5, 5)`.
const ABORT: u32 = 0xf505;
/// `_IOR(0xf5, 12, u32)`.
const GET_FEATURES: u32 = 0x8004_f50c;
/// The feature bit of atomic writes.
const FEATURE_ATOMIC_WRITE: u32 = 4;

/// Longest time an open waits for the end of a session.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);

/// Called with whether the session has ended in time.
type Answer = Box<dyn FnOnce(&Core, bool) + Send>;

struct Waiter {
    ino: Ino,
    since: Instant,
    answer: Answer,
}

/// Opens that wait for the end of a session.
#[derive(Default)]
pub(super) struct WaitingOpens(Mutex<Vec<Waiter>>);

fn owner(handle: FileHandle) -> Owner {
    Owner(handle.0)
}

fn is_cached(owner: Owner) -> bool {
    owner.0 & HANDLE_UNCACHED == 0
}

impl Core {
    /// Whether a read through `handle` shows what a session has pending; `waited_for`: it goes to a
    /// process and not into the page cache.
    pub(super) fn reads_session(
        &self,
        ino: Ino,
        handle: FileHandle,
        waited_for: bool,
    ) -> Option<Owner> {
        self.volume
            .atomic_owner(ino)
            .filter(|of| is_cached(*of) || (*of == owner(handle) && waited_for))
    }

    /// The session that a write through `handle`, or from the page cache, is a part of.
    pub(super) fn writes_session(
        &self,
        ino: Ino,
        handle: Option<FileHandle>,
        from_cache: bool,
    ) -> Option<Owner> {
        self.volume
            .atomic_owner(ino)
            .filter(|of| from_cache || handle.is_some_and(|handle| *of == owner(handle)))
    }

    /// Whether a handle that was just opened has to wait for the end of a session of the file.
    fn must_wait(&self, ino: Ino, makes_dirty: bool) -> bool {
        let of = self.volume.atomic_owner(ino);
        of.is_some_and(|of| is_cached(of) || makes_dirty)
    }

    /// Calls `answer` when a new handle of `ino` may be used, or when it has waited for too long.
    pub(super) fn when_admitted(&self, ino: Ino, makes_dirty: bool, answer: Answer) {
        if !self.must_wait(ino, makes_dirty) {
            return answer(self, true);
        }
        self.waiting.0.lock().push(Waiter {
            ino,
            since: Instant::now(),
            answer,
        });
        // The session may have ended before anybody could see who waits.
        if !self.must_wait(ino, makes_dirty) {
            self.session_ended(ino);
        }
    }

    fn session_ended(&self, ino: Ino) {
        self.answer_opens(true, |waiter| waiter.ino == ino);
    }

    /// Refuses the opens that have waited for too long. Called now and then.
    pub(super) fn refuse_late_opens(&self) {
        self.answer_opens(false, |waiter| waiter.since.elapsed() > OPEN_PATIENCE);
    }

    fn answer_opens(&self, admitted: bool, which: impl Fn(&Waiter) -> bool) {
        let mut waiting = self.waiting.0.lock();
        if waiting.is_empty() {
            return;
        }
        let (chosen, others) = std::mem::take(&mut *waiting).into_iter().partition(which);
        *waiting = others;
        drop(waiting);
        let chosen: Vec<Waiter> = chosen;
        for waiter in chosen {
            (waiter.answer)(self, admitted);
        }
    }

    /// What the page cache has of a file with a session of a direct handle; `None` if it is to be taken
    /// to have anything. (Of a file with a cached one it has much, and counting that takes long.)
    fn pages(&self, ino: Ino, handle: FileHandle) -> Option<Pages> {
        match is_cached(owner(handle)) {
            true => None,
            false => self.own_mount.get()?.pages(ino),
        }
    }

    /// Whether the file may have dirty pages.
    fn may_have_dirty_pages(&self, ino: Ino, handle: FileHandle) -> bool {
        is_cached(owner(handle)) || self.writers.contains(ino)
    }

    /// Has the dirty pages of a file written for its session, the next time with less effort.
    fn write_session_pages(&self, ino: Ino, handle: FileHandle, write_back: &WriteBack) {
        if let Some(mount) = self.own_mount.get() {
            mount.keep(ino);
        }
        if self.may_have_dirty_pages(ino, handle) {
            write_back.write(self, ino);
        }
    }

    fn start(&self, volume: &Volume, ino: Ino, handle: FileHandle) -> Result<()> {
        volume.start_atomic(ino, owner(handle))?;
        // Handles are counted before they look for sessions, so one of the two sees the other.
        let others = match is_cached(owner(handle)) {
            true => volume.open_handles(ino) > 1,
            false => self.writers.count(ino) > 1,
        };
        if others {
            volume.abort_atomic(ino, owner(handle));
            self.session_ended(ino);
            return Err(Error::Busy("the file has other handles"));
        }
        Ok(())
    }

    /// Makes the transaction of a commit, with the pages of the session written already.
    fn commit(&self, ino: Ino, handle: FileHandle, reply: ReplyIoctl) -> Committed {
        let mut size = u64::MAX;
        let result = self.change("commit of an atomic write", ino, |volume| {
            size = volume.getattr(ino)?.size;
            volume.commit_atomic(ino, owner(handle))
        });
        Committed {
            ino,
            handle,
            size,
            result,
            reply,
        }
    }

    /// Has the page cache be as a commit left the file.
    fn correct_pages(&self, commit: &Committed, write_back: &WriteBack) {
        let Committed {
            ino, handle, size, ..
        } = *commit;
        let changed = !matches!(commit.result, Ok(false));
        if changed && (commit.result.is_err() || !is_cached(owner(handle))) {
            write_back.drop_pages(ino);
        }
        if commit.result.is_err() {
            let _ = self.run("commit of an atomic write", ino, |volume| {
                restore_length(volume, ino, size, write_back)
            });
        }
    }

    /// Ends a commit for which the page cache is as it should be: answers when it is durable.
    fn finish_commit(&self, commit: Committed) {
        let Committed {
            ino, result, reply, ..
        } = commit;
        self.session_ended(ino);
        if let Err(errno) = result {
            return reply.error(errno);
        }
        self.stale.note(ino);
        let then = Box::new(move |outcome: Result<()>| match outcome {
            Ok(()) => reply.ioctl(0, &[]),
            Err(error) => {
                tracing::error!(inode = ino.0, "commit of an atomic write: {error}");
                reply.error(convert::errno(&error));
            }
        });
        // A panic leaves the reply to its destructor, which answers EIO.
        let _ = self.run("commit of an atomic write", ino, |volume| {
            if let Some(lead) = volume.fsync_then(ino, then) {
                lead.run();
            }
            Ok(())
        });
    }

    /// Forgets a handle.
    pub(super) fn close(
        &self,
        ino: Ino,
        handle: FileHandle,
        makes_dirty: bool,
    ) -> std::result::Result<(), Errno> {
        if makes_dirty {
            self.writers.remove(ino);
        }
        self.run("release", ino, |volume| {
            volume.release(ino);
            self.offload.close(ino, kernels::number(handle));
            if !volume.is_open(ino) {
                self.let_go(ino);
            }
            Ok(())
        })
    }

    /// Closes the daemon's own descriptor of a file that nobody has open any more. That may wait for
    /// requests.
    fn let_go(&self, ino: Ino) {
        if let Some(file) = self.own_mount.get().and_then(|mount| mount.let_go(ino)) {
            self.on_write_back(Vec::new(), move |_| drop(file));
        }
    }

    /// Ends a session without a commit, with its pages written already.
    fn abort(&self, ino: Ino, handle: FileHandle, write_back: &WriteBack) {
        let _ = self.run("abort of an atomic write", ino, |volume| {
            if let Some(size) = volume.abort_atomic(ino, owner(handle)) {
                write_back.drop_pages(ino);
                restore_length(volume, ino, size, write_back)?;
            }
            Ok(())
        });
        self.session_ended(ino);
    }
}

/// A commit whose transaction has been made, or not.
struct Committed {
    ino: Ino,
    handle: FileHandle,
    /// The length that the file had in the session.
    size: u64,
    result: std::result::Result<bool, Errno>,
    reply: ReplyIoctl,
}

/// Has the kernel see a file, which a session that came to nothing had made `size` bytes long, as long
/// as it is. (There is no way to have it see a shorter one.)
fn restore_length(volume: &Volume, ino: Ino, size: u64, write_back: &WriteBack) -> Result<()> {
    let end = volume.getattr(ino)?.size;
    if size < end {
        let mut last = Vec::new();
        volume.read(ino, end - 1, 1, &mut last)?;
        if let [last] = last[..] {
            write_back.lengthen(ino, end, last);
        }
    }
    Ok(())
}

impl Adapter {
    /// Answers an open for which all is done, perhaps later.
    pub(super) fn admit(
        &self,
        ino: Ino,
        handle: FileHandle,
        flags: i32,
        answer: impl FnOnce(std::result::Result<(), Errno>) + Send + 'static,
    ) {
        let makes_dirty = self.makes_dirty(flags);
        let then = move |core: &Core, admitted: bool| match admitted {
            true => answer(Ok(())),
            false => {
                let closed = core.close(ino, handle, makes_dirty);
                answer(closed.and(Err(Errno::EBUSY)));
            }
        };
        self.core.when_admitted(ino, makes_dirty, Box::new(then));
    }

    /// An ioctl on a file.
    pub(super) fn file_ioctl(&self, ino: Ino, handle: FileHandle, cmd: u32, reply: ReplyIoctl) {
        match cmd {
            GET_FEATURES => {
                let writable = !self.options.read_only && !self.core.volume.store().is_read_only();
                let features = if writable { FEATURE_ATOMIC_WRITE } else { 0 };
                reply.ioctl(0, &features.to_ne_bytes());
            }
            START | COMMIT | ABORT if handle.0 & HANDLE_WRITABLE == 0 => reply.error(Errno::EBADF),
            START => self.start_atomic(ino, handle, reply),
            COMMIT => self.commit_atomic(ino, handle, reply),
            ABORT => self.abort_atomic(ino, handle, reply),
            _ => reply.error(Errno::ENOTTY),
        }
    }

    fn start_atomic(&self, ino: Ino, handle: FileHandle, reply: ReplyIoctl) {
        let core = Arc::clone(&self.core);
        let written = !core.may_have_dirty_pages(ino, handle)
            || core
                .pages(ino, handle)
                .is_some_and(|pages| !pages.unwritten);
        let start = move |core: &Core| {
            let result = core.change("start of an atomic write", ino, |volume| {
                core.start(volume, ino, handle)
            });
            match result {
                Ok(()) => reply.ioctl(0, &[]),
                Err(errno) => reply.error(errno),
            }
        };
        match written {
            true => start(&core),
            false => self.core.on_write_back(Vec::new(), move |write_back| {
                core.write_session_pages(ino, handle, write_back);
                start(&core);
            }),
        }
    }

    fn commit_atomic(&self, ino: Ino, handle: FileHandle, reply: ReplyIoctl) {
        if self.core.volume.atomic_owner(ino) != Some(owner(handle)) {
            return reply.error(Errno::EINVAL);
        }
        let core = Arc::clone(&self.core);
        let pages = core.pages(ino, handle);
        if pages.is_none_or(|pages| pages.any) {
            return self.core.on_write_back(Vec::new(), move |write_back| {
                core.write_session_pages(ino, handle, write_back);
                let commit = core.commit(ino, handle, reply);
                core.correct_pages(&commit, write_back);
                core.finish_commit(commit);
            });
        }
        // The commit may have to read, and waits for the device if it is to lead the others.
        let _absence = self.gate.step_out();
        let commit = core.commit(ino, handle, reply);
        let pages = core.pages(ino, handle);
        if commit.result.is_ok() && pages.is_some_and(|pages| !pages.any) {
            if handle.0 & HANDLE_DIRECT != 0 {
                core.stale.tell_now(ino);
            }
            return core.finish_commit(commit);
        }
        self.core.on_write_back(Vec::new(), move |write_back| {
            core.correct_pages(&commit, write_back);
            core.finish_commit(commit);
        });
    }

    fn abort_atomic(&self, ino: Ino, handle: FileHandle, reply: ReplyIoctl) {
        if self.core.volume.atomic_owner(ino) != Some(owner(handle)) {
            return reply.ioctl(0, &[]);
        }
        let core = Arc::clone(&self.core);
        self.core.on_write_back(Vec::new(), move |write_back| {
            core.write_session_pages(ino, handle, write_back);
            core.abort(ino, handle, write_back);
            reply.ioctl(0, &[]);
        });
    }

    /// Calls `then` when a handle that is being closed has no session any more.
    pub(super) fn end_session(
        &self,
        ino: Ino,
        handle: FileHandle,
        then: impl FnOnce(&Core) + Send + 'static,
    ) {
        if self.core.volume.atomic_owner(ino) != Some(owner(handle)) {
            return then(&self.core);
        }
        // The kernel has written the pages of the handle.
        let core = Arc::clone(&self.core);
        self.core.on_write_back(Vec::new(), move |write_back| {
            core.abort(ino, handle, write_back);
            then(&core);
        });
    }
}
