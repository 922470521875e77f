//! The requests, each a system call or two on the host's files.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{self as host, AtFlags, Mode, OFlags, SeekFrom};
use rustix::io::Result;

use crate::host::Passthrough;
use crate::inodes::Inodes;

const LIFETIME: Duration = Duration::from_secs(3600);
const REQUEST_BYTES: u32 = 1 << 20;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; REQUEST_BYTES as usize]);
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_i32(error.raw_os_error())
}

/// Answers a request that has no result.
fn answer(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

fn answer_entry(reply: ReplyEntry, result: Result<FileAttr>) {
    match result {
        Ok(attr) => reply.entry(&LIFETIME, &attr, Generation(0)),
        Err(error) => reply.error(errno(error)),
    }
}

impl Filesystem for Passthrough {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_BIG_WRITES,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_WRITEBACK_CACHE,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_CACHE_SYMLINKS,
        ];
        for flag in wanted {
            if config.add_capabilities(flag).is_err() {
                eprintln!("passthrough: this kernel has no {flag:?}");
            }
        }
        // Values out of the kernel's range come back as the nearest one in it.
        let _ = config
            .set_max_write(REQUEST_BYTES)
            .or_else(|near| config.set_max_write(near));
        let _ = config
            .set_max_readahead(REQUEST_BYTES)
            .or_else(|near| config.set_max_readahead(near));
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        answer_entry(reply, self.inodes.lookup(parent, name));
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.inodes.forget(ino, lookups);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let attr = self
            .inodes
            .fd(ino)
            .and_then(|fd| self.inodes.attr_of(fd.as_fd()));
        match attr {
            Ok(attr) => reply.attr(&LIFETIME, &attr),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match self.change(ino, (mode, uid, gid, size), (atime, mtime)) {
            Ok(attr) => reply.attr(&LIFETIME, &attr),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let target = self
            .inodes
            .fd(ino)
            .and_then(|fd| host::readlinkat(&*fd, "", Vec::new()));
        match target {
            Ok(target) => reply.data(target.as_bytes()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn mknod(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let kind = host::FileType::from_raw_mode(mode);
        let mode = Mode::from_raw_mode(mode & !umask & 0o7777);
        let made = self.make(parent, name, |dir| {
            host::mknodat(dir, name, kind, mode, rdev.into())
        });
        answer_entry(reply, made);
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let mode = Mode::from_raw_mode(mode & !umask & 0o7777);
        answer_entry(
            reply,
            self.make(parent, name, |dir| host::mkdirat(dir, name, mode)),
        );
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let dir = self.inodes.fd(parent);
        answer(
            reply,
            dir.and_then(|dir| host::unlinkat(&*dir, name, AtFlags::empty())),
        );
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let dir = self.inodes.fd(parent);
        answer(
            reply,
            dir.and_then(|dir| host::unlinkat(&*dir, name, AtFlags::REMOVEDIR)),
        );
    }

    fn symlink(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        answer_entry(
            reply,
            self.make(parent, name, |dir| host::symlinkat(target, dir, name)),
        );
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let flags = host::RenameFlags::from_bits_retain(flags.bits());
        let renamed = self.inodes.fd(parent).and_then(|from| {
            let to = self.inodes.fd(newparent)?;
            host::renameat_with(&*from, name, &*to, newname, flags)
        });
        answer(reply, renamed);
    }

    fn link(
        &self,
        _: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let linked = self.inodes.fd(ino).and_then(|fd| {
            let path = Inodes::path(&fd);
            let follow = AtFlags::SYMLINK_FOLLOW;
            self.make(newparent, newname, |dir| {
                host::linkat(host::CWD, path, dir, newname, follow)
            })
        });
        answer_entry(reply, linked);
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.open_ino(ino, Self::host_flags(flags.0)) {
            Ok(fh) => reply.opened(fh, FopenFlags::FOPEN_KEEP_CACHE),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let created = self.inodes.fd(parent).and_then(|dir| {
            let flags = Self::host_flags(flags) | OFlags::CREATE | OFlags::NOFOLLOW;
            let fd = host::openat(
                &*dir,
                name,
                flags,
                Mode::from_raw_mode(mode & !umask & 0o7777),
            )?;
            let attr = self.inodes.lookup(parent, name)?;
            Ok((attr, self.keep(fd)))
        });
        match created {
            Ok((attr, fh)) => {
                reply.created(
                    &LIFETIME,
                    &attr,
                    Generation(0),
                    fh,
                    FopenFlags::FOPEN_KEEP_CACHE,
                );
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn read(
        &self,
        _: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(buffer.len().max(size as usize), 0);
            let into = &mut buffer[..size as usize];
            match self.handle(fh).and_then(|h| read_all(&h.fd, into, offset)) {
                Ok(count) => reply.data(&buffer[..count]),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self
            .handle(fh)
            .and_then(|h| rustix::io::pwrite(&h.fd, data, offset))
        {
            Ok(count) => reply.written(count as u32),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn flush(
        &self,
        _: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // The kernel then stops asking.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.handles.write().remove(&fh.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let synced = self.handle(fh).and_then(|handle| match datasync {
            true => host::fdatasync(&handle.fd),
            false => host::fsync(&handle.fd),
        });
        answer(reply, synced);
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.open_ino(ino, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC) {
            Ok(fh) => reply.opened(
                fh,
                FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR,
            ),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        match self.entries(fh, offset) {
            Ok(entries) => {
                for entry in entries {
                    let name = OsStr::from_bytes(&entry.name);
                    if reply.add(INodeNo(entry.ino), entry.next, entry.kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let entries = match self.entries(fh, offset) {
            Ok(entries) => entries,
            Err(error) => return reply.error(errno(error)),
        };
        for entry in entries {
            let name = OsStr::from_bytes(&entry.name);
            let dots = name == "." || name == "..";
            let attr = if dots {
                // The kernel takes no reference for these.
                self.inodes
                    .fd(ino)
                    .and_then(|fd| self.inodes.attr_of(fd.as_fd()))
            } else {
                self.inodes.lookup(ino, name)
            };
            // An entry that is gone by now is not there.
            let Ok(attr) = attr else { continue };
            if reply.add(attr.ino, entry.next, name, &LIFETIME, &attr, Generation(0)) {
                if !dots {
                    self.inodes.forget(attr.ino, 1);
                }
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.handles.write().remove(&fh.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        answer(
            reply,
            self.handle(fh).and_then(|handle| host::fsync(&handle.fd)),
        );
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        match self.inodes.fd(ino).and_then(|fd| host::fstatvfs(&*fd)) {
            Ok(s) => reply.statfs(
                s.f_blocks,
                s.f_bfree,
                s.f_bavail,
                s.f_files,
                s.f_ffree,
                s.f_bsize as u32,
                s.f_namemax as u32,
                s.f_frsize as u32,
            ),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let flags = host::FallocateFlags::from_bits_retain(mode as u32);
        let done = self.handle(fh);
        answer(
            reply,
            done.and_then(|h| host::fallocate(&h.fd, flags, offset, length)),
        );
    }

    fn lseek(
        &self,
        _: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let from = match whence {
            // SEEK_DATA and SEEK_HOLE; the kernel does the others itself.
            3 => SeekFrom::Data(offset as u64),
            _ => SeekFrom::Hole(offset as u64),
        };
        match self.handle(fh).and_then(|h| host::seek(&h.fd, from)) {
            Ok(at) => reply.offset(at as i64),
            Err(error) => reply.error(errno(error)),
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn read_all(fd: &OwnedFd, buffer: &mut [u8], offset: u64) -> Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::pread(fd, &mut buffer[done..], offset + done as u64)? {
            0 => break,
            count => done += count,
        }
    }
    Ok(done)
}
