//! The requests, one method each: take apart, call the volume, answer.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
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

use zns_backend::DmaBuffer;

use super::dirty::{Pending, PendingSeek};
use super::kernels::{HANDLE_DIRECT, HANDLE_OWN, KernelRead, KernelWrite};
use super::{Adapter, GENERATION, convert};
use crate::error::{Error, Result};
use crate::types::{BLOCK_SIZE, Ino};
use crate::volume::Volume;
use crate::volume::types::{Attributes, Caller, FileKind, SetAttributes, Time};

/// Longest name of an entry, in bytes.
const NAME_LEN_MAX: u32 = 255;
/// Most bytes one copy request moves, so that it can be interrupted and its length fits the reply.
const COPY_LEN_MAX: u64 = 64 << 20;
/// Entries fetched from the volume at a time by `readdirplus`.
const READDIRPLUS_BATCH: usize = 64;

thread_local! {
    /// Read buffer of an event loop, kept from request to request. Its alignment lets devices
    /// transfer to it directly.
    static READ_BUFFER: RefCell<Option<DmaBuffer>> = const { RefCell::new(None) };
}

/// The first `len` bytes of `buffer`, replaced by a larger one if it is shorter.
fn room(buffer: &mut Option<DmaBuffer>, len: usize) -> &mut [u8] {
    if buffer.as_ref().is_none_or(|buffer| buffer.len() < len) {
        // Let go of first, so that never both are in memory.
        *buffer = None;
    }
    let buffer = buffer.get_or_insert_with(|| DmaBuffer::new(len.next_power_of_two()));
    &mut buffer[..len]
}

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

/// Creates a regular file, or takes the one another name cache did not know of.
fn create_or_find(
    volume: &Volume,
    caller: &Caller,
    parent: Ino,
    name: &[u8],
    mode: u32,
    flags: i32,
) -> Result<Attributes> {
    let mode = libc::S_IFREG | (mode & 0o7777);
    match volume.mknod(caller, parent, name, mode, 0) {
        Err(Error::Exists) if flags & libc::O_EXCL == 0 => {
            let found = volume.lookup(parent, name)?;
            match found.kind {
                FileKind::Directory => Err(Error::IsDirectory),
                _ => Ok(found),
            }
        }
        created => created,
    }
}

/// An entry of a directory with its name owned, and what is known of its inode.
struct ListedEntry {
    cookie: u64,
    name: Vec<u8>,
    attributes: Attributes,
}

/// The next entries behind `cookie` and their attributes. The attributes are read after the
/// listing, outside of it; entries that have vanished in between are left out. The second value
/// is the cookie of the last entry listed, or `None` at the end of the directory.
fn list_with_attributes(
    volume: &Volume,
    dir: Ino,
    cookie: u64,
) -> Result<(Vec<ListedEntry>, Option<u64>)> {
    let mut names = Vec::with_capacity(READDIRPLUS_BATCH);
    volume.readdir(dir, cookie, &mut |entry| {
        names.push((entry.cookie, entry.ino, entry.name.to_vec()));
        if names.len() < READDIRPLUS_BATCH {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    let last = names.last().map(|(cookie, ..)| *cookie);
    let mut entries = Vec::with_capacity(names.len());
    for (cookie, ino, name) in names {
        match volume.getattr(ino) {
            Ok(attributes) => entries.push(ListedEntry {
                cookie,
                name,
                attributes,
            }),
            Err(Error::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok((entries, last))
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.configure(config);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _turn = self.gate.turn();
        let parent = convert::ino(parent);
        let result = self.core.run("lookup", parent, |volume| {
            // "." is asked of files too, when an exported file handle is resolved.
            let found = if name.as_bytes() == b"." {
                volume.getattr(parent)
            } else {
                volume.lookup(parent, name.as_bytes())
            };
            match found {
                Ok(found) => Ok(Some(found)),
                Err(Error::NotFound) => Ok(None),
                Err(error) => Err(error),
            }
        });
        match result {
            Ok(Some(found)) => self.reply_entry(reply, Ok(found)),
            Ok(None) if name.as_bytes() == b"." || name.as_bytes() == b".." => {
                reply.error(Errno::ESTALE);
            }
            Ok(None) => self.reply_absent(reply),
            Err(errno) => reply.error(errno),
        }
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
            return reply.opened(FileHandle(HANDLE_OWN), FopenFlags::FOPEN_KEEP_CACHE);
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
                let (handle, cached) = self.handle(request, ino, flags.0);
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
        let result = self.change_entries("create", parent, |volume| {
            let file = create_or_find(volume, &caller, parent, name.as_bytes(), mode, flags)?;
            volume.open_handle(&caller, file.ino, flags & libc::O_TRUNC != 0)?;
            Ok(file)
        });
        match result {
            Ok(file) => {
                self.core.volume.remember(file.ino);
                if self.makes_dirty(flags) {
                    self.core.writers.add(file.ino);
                }
                let (handle, cached) = self.handle(request, file.ino, flags);
                let timeout = self.options.attr_timeout.min(self.options.entry_timeout);
                let attributes = convert::attributes(&file);
                self.admit(file.ino, handle, flags, move |outcome| match outcome {
                    Ok(()) => reply.created(&timeout, &attributes, GENERATION, handle, cached),
                    Err(errno) => reply.error(errno),
                });
            }
            Err(errno) => reply.error(errno),
        }
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
        let ino = convert::ino(ino);
        if let Some(job) = self.read_job(request, ino, fh, locks) {
            let read = KernelRead { ino, offset, size };
            return self.read_through_kernels(job, read, reply);
        }
        let session = self.core.reads_session(ino, fh, locks.is_some());
        READ_BUFFER.with_borrow_mut(|buffer| {
            let _absence = self.gate.step_out();
            let result = self.core.run("read", ino, |volume| {
                if let Some(owner) = session {
                    let mut own = Vec::new();
                    if volume.read_atomic(ino, owner, offset, size as usize, &mut own)? {
                        room(buffer, own.len()).copy_from_slice(&own);
                        return Ok(0..own.len());
                    }
                }
                volume.read_with(ino, offset, size as usize, |len| room(buffer, len))
            });
            match result {
                Ok(range) => reply.data(buffer.as_deref().map_or(&[], |bytes| &bytes[range])),
                Err(errno) => reply.error(errno),
            }
        });
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
        let _turn = self.gate.turn();
        let ino = convert::ino(ino);
        let from_cache = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        // Pages that are written back changed earlier; the kernel sends their mtime by setattr.
        let now = (!from_cache).then(Time::now);
        // The kernel follows a cached O_SYNC write with an fsync of its own, but no direct one.
        let synchronous = flags.0 & (libc::O_SYNC | libc::O_DSYNC) != 0 || self.options.sync;
        let commit = synchronous && !from_cache && fh.0 & HANDLE_DIRECT != 0;
        if !from_cache && let Some(job) = self.write_job(request, ino, fh, locks) {
            let write = KernelWrite {
                ino,
                offset,
                data,
                kill_privileges: kill,
                sync: commit,
            };
            return self.write_through_kernels(job, &write, reply);
        }
        let session = self.core.writes_session(ino, Some(fh), from_cache);
        let result = self.core.change("write", ino, |volume| {
            if let Some(owner) = session
                && volume.write_atomic(ino, owner, offset, data, kill, now.is_some())?
            {
                return Ok(());
            }
            volume.write(ino, offset, data, kill, now)?;
            if commit {
                volume.fsync(ino)?;
            }
            Ok(())
        });
        match result {
            Ok(()) => {
                self.core.stale.note(ino);
                let last = !from_cache || !self.core.written_times.follow();
                self.answer_and_anticipate(last, || reply.written(data.len() as u32));
            }
            Err(errno) => reply.error(errno),
        }
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
        mut reply: ReplyDirectory,
    ) {
        let _turn = self.gate.turn();
        let dir = convert::ino(dir);
        let result = self.core.run("readdir", dir, |volume| {
            volume.readdir(dir, cookie, &mut |entry| {
                let ino = INodeNo(entry.ino.0);
                let kind = convert::file_type(entry.kind);
                if reply.add(ino, entry.cookie, kind, OsStr::from_bytes(entry.name)) {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })
        });
        match result {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        dir: INodeNo,
        _: FileHandle,
        cookie: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let _turn = self.gate.turn();
        let dir = convert::ino(dir);
        let timeout = self.options.attr_timeout.min(self.options.entry_timeout);
        let result = self.core.run("readdirplus", dir, |volume| {
            let mut next = Some(cookie);
            while let Some(cookie) = next {
                let (entries, last) = list_with_attributes(volume, dir, cookie)?;
                next = last;
                for entry in entries {
                    let attributes = convert::attributes(&entry.attributes);
                    let name = OsStr::from_bytes(&entry.name);
                    let ino = attributes.ino;
                    if reply.add(ino, entry.cookie, name, &timeout, &attributes, GENERATION) {
                        return Ok(());
                    }
                    // The kernel takes no reference of these two.
                    if entry.name != b"." && entry.name != b".." {
                        volume.remember(entry.attributes.ino);
                    }
                }
            }
            Ok(())
        });
        match result {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
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
        } else if let Err(unsent) = self.write_back.send(Pending::Seek(seek))
            && let Pending::Seek(seek) = unsent.0
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
        let (from, to) = (convert::ino(from), convert::ino(to));
        if self.copies_through_kernels(request, (from, from_handle), (to, to_handle)) {
            return reply.error(Errno::EINVAL);
        }
        if self
            .core
            .writes_session(to, Some(to_handle), false)
            .is_some()
        {
            // The kernel then reads and writes, which is a part of the session.
            return reply.error(Errno::EOPNOTSUPP);
        }
        let len = len.min(COPY_LEN_MAX);
        let result = self.core.change("copy_file_range", to, |volume| {
            volume.copy_range(from, from_offset, to, to_offset, len)
        });
        match result {
            Ok(copied) => reply.written(copied as u32),
            Err(errno) => reply.error(errno),
        }
    }
}
