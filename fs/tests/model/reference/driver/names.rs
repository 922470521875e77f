//! Operations on directories, and the handles that keep what has lost its names.

use std::collections::BTreeMap;

use warren_fs::volume::types::{Caller, FileKind};

use super::answers::{Trouble, same};
use super::{Both, Pair, ROOT_CALLER};
use crate::reference::digest::{self, Listed};
use crate::reference::ops::{Op, Target};
use crate::reference::{Answer, Maker};

impl Pair {
    pub(super) fn add<U>(
        &mut self,
        path: &str,
        make: impl FnOnce(&mut Pair, Both, &[u8]) -> (Answer<u64>, warren_fs::Result<U>),
    ) -> Result<(), Trouble> {
        let Some((parent, name)) = self.parent(path)? else {
            return Ok(());
        };
        let before = self.reference.clone();
        let (want, got) = make(self, parent, name);
        if self.keep_unless_full(before, &got)? {
            same(want, got)?;
        }
        Ok(())
    }

    pub(super) fn mknod(
        &mut self,
        path: &str,
        kind: FileKind,
        mode: u32,
        rdev: u32,
        maker: Maker,
    ) -> Result<(), Trouble> {
        self.add(path, |pair, parent, name| {
            let want = pair
                .reference
                .mknod(maker, parent.0, name, kind, mode, rdev);
            let typed = mode | type_bits(kind);
            (
                want,
                pair.volume
                    .mknod(&caller(maker), parent.1, name, typed, rdev),
            )
        })
    }

    pub(super) fn tmpfile(
        &mut self,
        dir: &str,
        slot: usize,
        mode: u32,
        maker: Maker,
    ) -> Result<(), Trouble> {
        let Some(parent) = self.walk(dir)? else {
            return Ok(());
        };
        self.release(slot);
        let before = self.reference.clone();
        let want = self.reference.tmpfile(maker, parent.0, mode);
        let got = self.volume.tmpfile(&caller(maker), parent.1, mode);
        if !self.keep_unless_full(before, &got)? {
            return Ok(());
        }
        if let Some((ino, attributes)) = same(want, got)? {
            let both = (ino, attributes.ino);
            self.open_both(both, slot, false)?;
        }
        Ok(())
    }

    fn open_both(&mut self, both: Both, slot: usize, truncate: bool) -> Result<(), Trouble> {
        let want = self.reference.open(both.0, truncate);
        let got = self.volume.open_handle(&ROOT_CALLER, both.1, truncate);
        if same(want, got)?.is_some() {
            self.slots[slot] = Some(both);
        }
        Ok(())
    }

    pub(super) fn open(&mut self, path: &str, slot: usize, truncate: bool) -> Result<(), Trouble> {
        let Some(both) = self.walk(path)? else {
            return Ok(());
        };
        let kind = self.reference.node(both.0).map(|node| node.kind());
        // The kernel opens devices, fifos, sockets and links itself.
        if !matches!(kind, Ok(FileKind::Regular | FileKind::Directory)) {
            return Ok(());
        }
        self.release(slot);
        // That may have been the last thing that kept a file without names.
        let truncate = truncate && kind == Ok(FileKind::Regular);
        self.open_both(both, slot, truncate)
    }

    pub(super) fn release(&mut self, slot: usize) {
        if let Some(both) = self.slots[slot].take() {
            self.reference.release(both.0);
            self.volume.release(both.1);
        }
    }

    pub(super) fn link(&mut self, target: &Target, path: &str) -> Result<(), Trouble> {
        let Some(both) = self.find(target)? else {
            return Ok(());
        };
        // The kernel refuses to link a file that has lost its last name.
        if self
            .reference
            .node(both.0)
            .is_ok_and(|n| n.names == 0 && !n.linkable)
        {
            return Ok(());
        }
        let Some((parent, name)) = self.parent(path)? else {
            return Ok(());
        };
        self.change(
            |reference| reference.link(both.0, parent.0, name),
            |volume| volume.link(both.1, parent.1, name),
        )
    }

    pub(super) fn remove(&mut self, path: &str, directory: bool) -> Result<(), Trouble> {
        let Some((parent, name)) = self.parent(path)? else {
            return Ok(());
        };
        if directory {
            let want = self.reference.rmdir(parent.0, name);
            same(want, self.volume.rmdir(&ROOT_CALLER, parent.1, name))?;
        } else {
            let want = self.reference.unlink(parent.0, name);
            same(want, self.volume.unlink(&ROOT_CALLER, parent.1, name))?;
        }
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &str, to: &str, flags: u32) -> Result<(), Trouble> {
        let (Some(from), Some(to)) = (self.parent(from)?, self.parent(to)?) else {
            return Ok(());
        };
        self.change(
            |reference| reference.rename((from.0.0, from.1), (to.0.0, to.1), flags),
            |volume| volume.rename(&ROOT_CALLER, from.0.1, from.1, to.0.1, to.1, flags),
        )
    }

    /// Lists a directory in steps, with changes after the first step. What is there throughout is
    /// listed exactly once; what never was is not listed.
    pub(super) fn list(
        &mut self,
        path: &str,
        step: usize,
        meanwhile: &[Op],
    ) -> Result<(), Trouble> {
        let Some(both) = self.walk(path)? else {
            return Ok(());
        };
        let before = self.reference.list(both.0);
        let first = digest::list_some(&self.volume, both.1, 0, step);
        let Some((mut names, mut listed)) = same(before, first)? else {
            return Ok(());
        };
        let started = names.clone();
        for op in meanwhile {
            self.apply(op)?;
        }
        while let Some(last) = listed.last() {
            let more = digest::list_some(&self.volume, both.1, last.cookie, step)?;
            if more.is_empty() {
                break;
            }
            listed.extend(more);
        }
        let after = self.reference.list(both.0).unwrap_or_default();
        let stayed: BTreeMap<_, _> = started
            .iter()
            .filter(|(n, i)| after.get(*n) == Some(i))
            .collect();
        names.extend(after.clone());
        check_listing(path, &listed, &stayed, &names)
    }
}

fn check_listing(
    path: &str,
    listed: &[Listed],
    stayed: &BTreeMap<&Vec<u8>, &u64>,
    ever: &BTreeMap<Vec<u8>, u64>,
) -> Result<(), Trouble> {
    let mut times: BTreeMap<&[u8], usize> = BTreeMap::new();
    for entry in listed {
        *times.entry(&entry.name).or_default() += 1;
    }
    let dots = [b".".to_vec(), b"..".to_vec()];
    let must = stayed.keys().copied().chain(&dots);
    let lost = must
        .filter(|name| times.get(name.as_slice()) != Some(&1))
        .count();
    let strangers = times
        .keys()
        .filter(|n| **n != b"." && **n != b".." && !ever.contains_key(**n))
        .count();
    if lost + strangers == 0 {
        return Ok(());
    }
    let shown: Vec<_> = listed
        .iter()
        .map(|e| String::from_utf8_lossy(&e.name))
        .collect();
    Err(Trouble::mismatch(format!(
        "listing of {path}/ is {shown:?}; {lost} entries not exactly once, {strangers} that never were"
    )))
}

pub(super) fn caller(maker: Maker) -> Caller {
    Caller {
        uid: maker.uid,
        gid: maker.gid,
        pid: 1,
        umask: maker.umask,
    }
}

fn type_bits(kind: FileKind) -> u32 {
    match kind {
        FileKind::Regular => libc::S_IFREG,
        FileKind::Directory => libc::S_IFDIR,
        FileKind::Symlink => libc::S_IFLNK,
        FileKind::BlockDevice => libc::S_IFBLK,
        FileKind::CharDevice => libc::S_IFCHR,
        FileKind::Fifo => libc::S_IFIFO,
        FileKind::Socket => libc::S_IFSOCK,
    }
}
