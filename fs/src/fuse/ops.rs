//! The requests, one method each: take apart, call the volume, answer.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags,
    INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::data::{FileRead, FileWrite, Place};
use super::dirty::{Pending, PendingSeek};
use super::kernels::HANDLE_OWN;
use super::{Adapter, convert};
use crate::types::{BLOCK_SIZE, Ino};
use crate::volume::Volume;
use crate::volume::types::{Caller, SetAttributes};

/// Longest name of an entry, in bytes.
const NAME_LEN_MAX: u32 = 255;
/// Longest write-back, in bytes, that leaves the other event loops asleep: a few pages, since Linux puts all
/// that follow one another into one request.
const BRIEF_WRITE: usize = 16 << 10;
pub(super) fn answer(reply: ReplyEmpty, result: std::result::Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

/// Whether changing the owner, or the size by somebody without CAP_FSETID, ends the set-ID bits
/// and capabilities. `fuser` hides the kernel's own verdict (FATTR_KILL_SUIDGID); whoever is not
/// root is taken to lack the capability.
fn ends_privileges(caller: &Caller, set: &SetAttributes) -> bool {
    set.uid.is_some() || set.gid.is_some() || (set.size.is_some() && caller.uid != 0)
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.configure(config);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _turn = self.gate.turn();
        self.look_up(convert::ino(parent), name.as_bytes(), reply);
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        let ino = convert::ino(ino);
        let _ = self.core.run("forget", ino, |volume| {
            volume.forget(ino, count);
            Ok(())
        });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let _turn = self.gate.turn();
        let ino = convert::ino(ino);
        match self.core.run("getattr", ino, |volume| volume.getattr(ino)) {
            Ok(found) => reply.attr(&self.options.attr_timeout, &convert::attributes(&found)),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _turn = self.gate.turn();
        let ino = convert::ino(ino);
        let caller = convert::caller(request, 0);
        let mut set = SetAttributes {
            permissions: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(convert::from_time_or_now),
            mtime: mtime.map(convert::from_time_or_now),
            ctime: ctime.map(convert::from_request_time),
            kill_privileges: false,
        };
        set.kill_privileges = ends_privileges(&caller, &set);
        let session = self.core.writes_session(ino, fh, false);
        let result = self.core.change("setattr", ino, |volume| {
            if let (Some(size), Some(owner)) = (set.size, session)
                && volume.truncate_atomic(ino, owner, size)?
            {
                set.size = None;
            }
            let changed = volume.setattr(&caller, ino, &set)?;
            if self.options.sync {
                volume.fsync(ino)?;
            }
            Ok(changed)
        });
        match result {
            Ok(changed) => {
                let written_back = set.is_written_back();
                if written_back {
                    self.core.written_times.note(changed.mtime);
                }
                self.answer_and_anticipate(written_back, || {
                    reply.attr(&self.options.attr_timeout, &convert::attributes(&changed));
                });
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let ino = convert::ino(ino);
        match self
            .core
            .run("readlink", ino, |volume| volume.readlink(ino))
        {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let _turn = self.gate.turn();
        let (parent, caller) = (convert::ino(parent), convert::caller(request, umask));
        let result = self.change_entries("mknod", parent, |volume| {
            volume.mknod(&caller, parent, name.as_bytes(), mode, rdev)
        });
        self.reply_entry(reply, result);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let _turn = self.gate.turn();
        let (parent, caller) = (convert::ino(parent), convert::caller(request, umask));
        let result = self.change_entries("mkdir", parent, |volume| {
            volume.mkdir(&caller, parent, name.as_bytes(), mode)
        });
        self.reply_entry(reply, result);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _turn = self.gate.turn();
        let (parent, caller) = (convert::ino(parent), convert::caller(request, 0));
        let result = self.change_entries("unlink", parent, |volume| {
            volume.unlink(&caller, parent, name.as_bytes())
        });
        answer(reply, result);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _turn = self.gate.turn();
        let (parent, caller) = (convert::ino(parent), convert::caller(request, 0));
        let result = self.change_entries("rmdir", parent, |volume| {
            volume.rmdir(&caller, parent, name.as_bytes())
        });
        answer(reply, result);
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (parent, caller) = (convert::ino(parent), convert::caller(request, 0));
        let result = self.change_entries("symlink", parent, |volume| {
            let target = target.as_os_str().as_bytes();
            volume.symlink(&caller, parent, name.as_bytes(), target)
        });
        self.reply_entry(reply, result);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let _turn = self.gate.turn();
        let (parent, new_parent) = (convert::ino(parent), convert::ino(new_parent));
        let (from, to) = (name.as_bytes(), new_name.as_bytes());
        let caller = convert::caller(request, 0);
        // One commit makes both directories durable: a commit covers the log up to its own end.
        let result = self.change_entries("rename", parent, |volume| {
            volume.rename(&caller, parent, from, new_parent, to, flags.bits())
        });
        answer(reply, result);
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (ino, parent) = (convert::ino(ino), convert::ino(parent));
        let result = self.change_entries("link", parent, |volume| {
            volume.link(ino, parent, name.as_bytes())
        });
        self.reply_entry(reply, result);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _turn = self.gate.turn();
        let (ino, caller) = (convert::ino(ino), convert::caller(request, 0));
        if self.core.own_threads.read().contains(&caller.pid) {
            // A handle that leaves the page cache alone does not keep direct writes of others from running
            // in parallel.
            let direct = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_KEEP_CACHE;
            return reply.opened(FileHandle(HANDLE_OWN), direct);
        }
        let truncate = flags.0 & libc::O_TRUNC != 0;
        let open = |volume: &Volume| volume.open_handle(&caller, ino, truncate);
        let result = if truncate {
            self.core.change("open", ino, open)
        } else {
            self.core.run("open", ino, open)
        };
        match result {
            Ok(()) => {
                if self.makes_dirty(flags.0) {
                    self.core.writers.add(ino);
                }
                let (handle, cached) = self.handle(&caller, ino, flags.0);
                self.admit(ino, handle, flags.0, move |outcome| match outcome {
                    Ok(()) => reply.opened(handle, cached),
                    Err(errno) => reply.error(errno),
                });
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let _turn = self.gate.turn();
        let (parent, caller) = (convert::ino(parent), convert::caller(request, umask));
        self.create_file(&caller, parent, name.as_bytes(), mode, flags, reply);
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        locks: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _turn = self.gate.turn();
        let read = FileRead {
            ino: convert::ino(ino),
            handle: fh,
            locks,
            offset,
            size,
        };
        self.read_file(request, &read, reply);
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        locks: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut turn = self.gate.turn();
        let write = FileWrite {
            ino: convert::ino(ino),
            handle: fh,
            locks,
            offset,
            data,
            from_cache: write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
            kill_privileges: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
            synchronous: flags.0 & (libc::O_SYNC | libc::O_DSYNC) != 0 || self.options.sync,
        };
        if write.from_cache && data.len() <= BRIEF_WRITE {
            turn.is_brief();
        }
        self.write_file(request, &write, reply);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // The kernel has written back the dirty pages before it asks, and will not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let _turn = self.gate.turn();
        let ino = convert::ino(ino);
        if fh.0 & HANDLE_OWN != 0 {
            return reply.ok();
        }
        let makes_dirty = self.makes_dirty(flags.0);
        self.end_session(ino, fh, move |core| {
            core.stale.tell(ino);
            answer(reply, core.close(ino, fh, makes_dirty));
        });
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let _turn = self.gate.turn();
        self.core
            .answer_fsync(&self.gate, "fsync", convert::ino(ino), reply);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.no_opendir {
            reply.error(Errno::ENOSYS);
        } else {
            let cached = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR;
            reply.opened(FileHandle(0), cached);
        }
    }

    fn readdir(
        &self,
        _: &Request,
        dir: INodeNo,
        _: FileHandle,
        cookie: u64,
        reply: ReplyDirectory,
    ) {
        let _turn = self.gate.turn();
        self.list(convert::ino(dir), cookie, reply);
    }

    fn readdirplus(
        &self,
        _: &Request,
        dir: INodeNo,
        _: FileHandle,
        cookie: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let _turn = self.gate.turn();
        self.list_plus(convert::ino(dir), cookie, reply);
    }

    fn releasedir(&self, _: &Request, _: INodeNo, _: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, dir: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let _turn = self.gate.turn();
        self.core
            .answer_fsync(&self.gate, "fsyncdir", convert::ino(dir), reply);
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match self
            .core
            .run("statfs", Ino::ROOT, |volume| Ok(volume.statfs()))
        {
            Ok(s) => reply.statfs(
                s.blocks,
                s.blocks_free,
                s.blocks_free,
                s.inodes_used + s.inodes_free,
                s.inodes_free,
                BLOCK_SIZE as u32,
                NAME_LEN_MAX,
                BLOCK_SIZE as u32,
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let _turn = self.gate.turn();
        self.set_xattr(request, ino, name, value, flags, reply);
    }

    fn getxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let _turn = self.gate.turn();
        self.get_xattr(request, ino, name, size, reply);
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.list_xattr(request, ino, size, reply);
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, self.remove_xattr(request, ino, name));
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks permissions itself (default_permissions).
        reply.ok();
    }

    fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: IoctlFlags,
        cmd: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        let _turn = self.gate.turn();
        if flags.contains(IoctlFlags::FUSE_IOCTL_DIR) {
            return reply.error(Errno::ENOTTY);
        }
        self.file_ioctl(convert::ino(ino), fh, cmd, reply);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        // Files are always ready; the kernel knows that by itself and will not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let (ino, caller) = (convert::ino(ino), convert::caller(request, 0));
        let result = self.core.change("fallocate", ino, |volume| {
            volume.fallocate(&caller, ino, offset, len, mode)
        });
        answer(reply, result);
    }

    fn lseek(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let seek = PendingSeek {
            ino: convert::ino(ino),
            offset,
            whence,
            reply,
        };
        if !self.core.writers.contains(seek.ino) {
            self.core.answer_seek(seek);
        } else if let Err(unsent) = self.core.write_back.send(Pending::Seek(seek))
            && let Pending::Seek(seek) = *unsent
        {
            self.core.answer_seek(seek);
        }
    }

    fn copy_file_range(
        &self,
        request: &Request,
        from: INodeNo,
        from_handle: FileHandle,
        from_offset: u64,
        to: INodeNo,
        to_handle: FileHandle,
        to_offset: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let from = Place {
            ino: convert::ino(from),
            handle: from_handle,
            offset: from_offset,
        };
        let to = Place {
            ino: convert::ino(to),
            handle: to_handle,
            offset: to_offset,
        };
        self.copy_between_files(request, &from, &to, len, reply);
    }
}
