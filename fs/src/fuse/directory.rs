//! Entries of directories: finding, listing, and making the file that an open asks for.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;

use fuser::{Errno, INodeNo, ReplyCreate, ReplyDirectory, ReplyDirectoryPlus, ReplyEntry};

use super::{Adapter, GENERATION, convert};
use crate::error::{Error, Result};
use crate::types::Ino;
use crate::volume::Volume;
use crate::volume::types::{Attributes, Caller, FileKind};

/// Entries fetched from the volume at a time by `readdirplus`.
const READDIRPLUS_BATCH: usize = 64;

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

impl Adapter {
    pub(super) fn look_up(&self, parent: Ino, name: &[u8], reply: ReplyEntry) {
        let result = self.core.run("lookup", parent, |volume| {
            // "." is asked of files too, when an exported file handle is resolved.
            let found = if name == b"." {
                volume.getattr(parent)
            } else {
                volume.lookup(parent, name)
            };
            match found {
                Ok(found) => Ok(Some(found)),
                Err(Error::NotFound) => Ok(None),
                Err(error) => Err(error),
            }
        });
        match result {
            Ok(Some(found)) => self.reply_entry(reply, Ok(found)),
            Ok(None) if name == b"." || name == b".." => reply.error(Errno::ESTALE),
            Ok(None) => self.reply_absent(reply),
            Err(errno) => reply.error(errno),
        }
    }

    /// Makes a file and opens it, with `flags` of open(2).
    pub(super) fn create_file(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let result = self.change_entries("create", parent, |volume| {
            let file = create_or_find(volume, caller, parent, name, mode, flags)?;
            volume.open_handle(caller, file.ino, flags & libc::O_TRUNC != 0)?;
            Ok(file)
        });
        match result {
            Ok(file) => {
                self.core.volume.remember(file.ino);
                if self.makes_dirty(flags) {
                    self.core.writers.add(file.ino);
                }
                let (handle, cached) = self.handle(caller, file.ino, flags);
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

    /// Lists what the reply has room for behind `cookie`.
    pub(super) fn list(&self, dir: Ino, cookie: u64, mut reply: ReplyDirectory) {
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

    /// As [`Adapter::list`], with attributes; each entry is looked up thereby.
    pub(super) fn list_plus(&self, dir: Ino, cookie: u64, mut reply: ReplyDirectoryPlus) {
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
}
