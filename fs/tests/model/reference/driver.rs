//! A volume and the reference side by side: every operation goes to both, and what they answer is
//! compared, errnos included.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use warren_fs::store::{FormatOptions, Store, StoreOptions};
use warren_fs::types::Ino;
use warren_fs::volume::Volume;
use warren_fs::volume::types::{Caller, FileKind, Seek, SetAttributes, Time, XattrFlags};
use zns_backend::ZonedDevice;

use super::digest::{self, Listed};
use super::ops::{Op, SLOTS, Target, noise};
use super::{Answer, Change, Maker, ROOT, Reference};

/// Why a step did not go as it must.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Volume and reference disagree.
    Mismatch(String),
    /// The volume answered an error of the device or of what is stored there.
    Device(warren_fs::Error),
}

impl Trouble {
    pub(crate) fn mismatch(text: impl Into<String>) -> Trouble {
        Trouble::Mismatch(text.into())
    }
}

impl From<warren_fs::Error> for Trouble {
    fn from(error: warren_fs::Error) -> Trouble {
        match error.errno() {
            libc::EIO | libc::EROFS => Trouble::Device(error),
            _ => Trouble::Mismatch(format!("unexpected error: {error}")),
        }
    }
}

/// An inode in both worlds.
pub(crate) type Both = (u64, Ino);

/// How stores are opened in these tests: nothing happens unless a test says so.
pub(crate) fn store_options() -> StoreOptions {
    StoreOptions {
        cache_bytes: 1 << 20,
        // So little that most atomic writes are sent ahead to the log.
        atomic_memory_bytes: 32 << 10,
        background: false,
        ..StoreOptions::default()
    }
}

pub(crate) const ROOT_CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 1,
    umask: 0,
};

/// A volume, its reference, and the handles open in both.
pub(crate) struct Pair {
    pub(crate) reference: Reference,
    pub(crate) volume: Volume,
    device: Arc<dyn ZonedDevice>,
    slots: [Option<Both>; SLOTS],
    time: i128,
    /// The device is small: an operation may answer ENOSPC, and then has done nothing.
    pub(crate) may_be_full: bool,
}

impl Pair {
    /// Makes a filesystem on `device`.
    pub(crate) fn format(device: Arc<dyn ZonedDevice>) -> Result<Pair, Trouble> {
        Store::format(&device, &FormatOptions::default())?;
        let volume = Volume::open(Arc::clone(&device), &store_options())?;
        let root = volume.getattr(Ino::ROOT)?;
        Ok(Pair {
            reference: Reference::new(root.permissions, root.uid, root.gid),
            volume,
            device,
            slots: [None; SLOTS],
            time: 1_000_000_000,
            may_be_full: false,
        })
    }

    /// Takes up a volume after a crash, with the reference it must look like.
    pub(crate) fn resume(
        device: Arc<dyn ZonedDevice>,
        volume: Volume,
        mut reference: Reference,
    ) -> Pair {
        reference.forget_handles();
        Pair {
            reference,
            volume,
            device,
            slots: [None; SLOTS],
            time: 2_000_000_000,
            may_be_full: false,
        }
    }

    /// Does `op` to both.
    ///
    /// # Errors
    /// A difference, or an error of the device.
    pub(crate) fn apply(&mut self, op: &Op) -> Result<(), Trouble> {
        self.time += 1_000_000;
        match op {
            Op::Mknod {
                path,
                kind,
                mode,
                rdev,
                maker,
            } => self.mknod(path, *kind, *mode, *rdev, *maker),
            Op::Mkdir { path, mode, maker } => self.add(path, |pair, parent, name| {
                let want = pair.reference.mkdir(*maker, parent.0, name, *mode);
                (
                    want,
                    pair.volume.mkdir(&caller(*maker), parent.1, name, *mode),
                )
            }),
            Op::Symlink { path, to, maker } => self.add(path, |pair, parent, name| {
                let want = pair
                    .reference
                    .symlink(*maker, parent.0, name, to.as_bytes());
                let got = pair
                    .volume
                    .symlink(&caller(*maker), parent.1, name, to.as_bytes());
                (want, got)
            }),
            Op::Tmpfile {
                dir,
                slot,
                mode,
                maker,
            } => self.tmpfile(dir, *slot, *mode, *maker),
            Op::Link { target, path } => self.link(target, path),
            Op::Unlink { path } => self.remove(path, false),
            Op::Rmdir { path } => self.remove(path, true),
            Op::Rename { from, to, flags } => self.rename(from, to, *flags),
            Op::Open {
                path,
                slot,
                truncate,
            } => self.open(path, *slot, *truncate),
            Op::Close { slot } => {
                self.release(*slot);
                Ok(())
            }
            Op::List {
                path,
                step,
                meanwhile,
            } => self.list(path, *step, meanwhile),
            Op::Sync => Ok(self.volume.sync()?),
            Op::Checkpoint => Ok(self.volume.store().checkpoint()?),
            Op::Collect { zones } => {
                self.volume.store().collect(*zones)?;
                Ok(())
            }
            Op::Remount => self.remount(),
            Op::Compare => self.compare(),
            Op::Crash { .. } => Ok(()),
            Op::CopyRange {
                from,
                from_offset,
                to,
                to_offset,
                len,
            } => self.copy_range((from, *from_offset), (to, *to_offset), *len),
            Op::Read { target, .. }
            | Op::Write { target, .. }
            | Op::Change { target, .. }
            | Op::Fallocate { target, .. }
            | Op::Seek { target, .. }
            | Op::Session { target, .. }
            | Op::SetXattr { target, .. }
            | Op::GetXattr { target, .. }
            | Op::RemoveXattr { target, .. }
            | Op::Fsync { target } => match self.find(target)? {
                Some(both) => self.apply_to(both, op),
                None => Ok(()),
            },
        }
    }

    fn apply_to(&mut self, both: Both, op: &Op) -> Result<(), Trouble> {
        match op {
            Op::Session { pieces, end, .. } => self.session(both, pieces, *end),
            Op::Read { offset, len, .. } => {
                let mut out = Vec::new();
                let want = self.reference.read(both.0, *offset, *len);
                let got = self.volume.read(both.1, *offset, *len, &mut out);
                same_value(want, got.map(|()| out))
            }
            Op::Write {
                offset,
                len,
                seed,
                kill,
                ..
            } => {
                let (data, now) = (noise(*seed, *len), Some(Time(self.time)));
                self.change(
                    |reference| reference.write(both.0, *offset, &data, *kill),
                    |volume| volume.write(both.1, *offset, &data, *kill, now),
                )
            }
            Op::Change { change, .. } => self.setattr(both, *change),
            Op::Fallocate {
                offset, len, mode, ..
            } => self.fallocate(both, *offset, *len, *mode),
            Op::Seek { offset, .. } => self.seek(both, *offset),
            Op::SetXattr {
                name,
                len,
                seed,
                create,
                replace,
                ..
            } => {
                let value = noise(*seed, *len);
                let flags = XattrFlags {
                    create: *create,
                    replace: *replace,
                    kill_sgid: false,
                };
                self.xattr_change(
                    both,
                    |reference| {
                        reference.setxattr(both.0, name.as_bytes(), &value, *create, *replace)
                    },
                    |volume| volume.setxattr(&ROOT_CALLER, both.1, name.as_bytes(), &value, flags),
                )
            }
            Op::RemoveXattr { name, .. } => self.xattr_change(
                both,
                |reference| reference.removexattr(both.0, name.as_bytes()),
                |volume| volume.removexattr(&ROOT_CALLER, both.1, name.as_bytes()),
            ),
            Op::GetXattr { name, .. } => {
                let want = self.reference.getxattr(both.0, name.as_bytes());
                same_value(want, self.volume.getxattr(both.1, name.as_bytes()))
            }
            Op::Fsync { .. } => Ok(self.volume.fsync(both.1)?),
            other => unreachable!("{other:?} has no target"),
        }
    }

    /// Does a change to both; a full device may refuse it, and then nothing has happened.
    fn change<T, U>(
        &mut self,
        on_reference: impl FnOnce(&mut Reference) -> Answer<T>,
        on_volume: impl FnOnce(&Volume) -> warren_fs::Result<U>,
    ) -> Result<(), Trouble> {
        let before = self.reference.clone();
        let want = on_reference(&mut self.reference);
        let got = on_volume(&self.volume);
        if self.keep_unless_full(before, &got)? {
            same(want, got).map(|_| ())
        } else {
            Ok(())
        }
    }

    /// Takes the reference back where a full device refused the operation; whether it did not.
    ///
    /// # Errors
    /// A refusal while much is free.
    fn keep_unless_full<U>(
        &mut self,
        before: Reference,
        got: &warren_fs::Result<U>,
    ) -> Result<bool, Trouble> {
        if !matches!(got, Err(warren_fs::Error::NoSpace)) {
            return Ok(true);
        }
        let space = self.volume.store().space();
        if space.used * 10 < space.total * 8 {
            let said = format!(
                "no space, with {} of {} blocks used",
                space.used, space.total
            );
            return Err(Trouble::mismatch(said));
        }
        self.reference = before;
        Ok(!self.may_be_full)
    }

    /// Walks `path` in both worlds.
    fn walk(&self, path: &str) -> Result<Option<Both>, Trouble> {
        let mut at = (ROOT, Ino::ROOT);
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let want = self.reference.lookup(at.0, name.as_bytes());
            let got = self.volume.lookup(at.1, name.as_bytes());
            match same(want, got)? {
                Some((ino, attributes)) => at = (ino, attributes.ino),
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    pub(crate) fn find(&self, target: &Target) -> Result<Option<Both>, Trouble> {
        match target {
            Target::Path(path) => self.walk(path),
            Target::Slot(slot) => Ok(self.slots[*slot]),
        }
    }

    /// The directory of `path` and the last name in it; `None` when there is no such directory.
    fn parent<'p>(&self, path: &'p str) -> Result<Option<(Both, &'p [u8])>, Trouble> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        if name.is_empty() {
            return Ok(None);
        }
        Ok(self.walk(dir)?.map(|parent| (parent, name.as_bytes())))
    }

    fn add<U>(
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

    fn mknod(
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

    fn tmpfile(&mut self, dir: &str, slot: usize, mode: u32, maker: Maker) -> Result<(), Trouble> {
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

    fn open(&mut self, path: &str, slot: usize, truncate: bool) -> Result<(), Trouble> {
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

    fn release(&mut self, slot: usize) {
        if let Some(both) = self.slots[slot].take() {
            self.reference.release(both.0);
            self.volume.release(both.1);
        }
    }

    fn link(&mut self, target: &Target, path: &str) -> Result<(), Trouble> {
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

    fn remove(&mut self, path: &str, directory: bool) -> Result<(), Trouble> {
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

    fn rename(&mut self, from: &str, to: &str, flags: u32) -> Result<(), Trouble> {
        let (Some(from), Some(to)) = (self.parent(from)?, self.parent(to)?) else {
            return Ok(());
        };
        self.change(
            |reference| reference.rename((from.0.0, from.1), (to.0.0, to.1), flags),
            |volume| volume.rename(&ROOT_CALLER, from.0.1, from.1, to.0.1, to.1, flags),
        )
    }

    fn setattr(&mut self, both: Both, change: Change) -> Result<(), Trouble> {
        // As the kernel has it: privileges end with a new owner of anything but a directory, and
        // with a new size.
        let kind = self.reference.node(both.0).map(|n| n.kind());
        let kill = match change {
            Change::Permissions(_) => false,
            Change::Owner { .. } => kind != Ok(FileKind::Directory),
            Change::Size(_) => kind == Ok(FileKind::Regular),
        };
        let mut set = SetAttributes {
            kill_privileges: kill,
            ..SetAttributes::default()
        };
        match change {
            Change::Permissions(bits) => set.permissions = Some(bits),
            Change::Owner { uid, gid } => (set.uid, set.gid) = (Some(uid), Some(gid)),
            Change::Size(size) => set.size = Some(size),
        }
        self.change(
            |reference| reference.setattr(both.0, change, kill),
            |volume| volume.setattr(&ROOT_CALLER, both.1, &set),
        )
    }

    fn fallocate(&mut self, both: Both, offset: u64, len: u64, mode: i32) -> Result<(), Trouble> {
        // The kernel lets fallocate through for regular files only.
        if !self
            .reference
            .node(both.0)
            .is_ok_and(|n| n.kind() == FileKind::Regular)
        {
            return Ok(());
        }
        self.change(
            |reference| reference.fallocate(both.0, offset, len, mode),
            |volume| volume.fallocate(&ROOT_CALLER, both.1, offset, len, mode),
        )
    }

    fn xattr_change<U>(
        &mut self,
        both: Both,
        on_reference: impl FnOnce(&mut Reference) -> Answer<()>,
        on_volume: impl FnOnce(&Volume) -> warren_fs::Result<U>,
    ) -> Result<(), Trouble> {
        // The kernel keeps user attributes off everything else.
        let kind = self.reference.node(both.0).map(|n| n.kind());
        if !matches!(kind, Ok(FileKind::Regular | FileKind::Directory)) {
            return Ok(());
        }
        self.change(on_reference, on_volume)
    }

    fn copy_range(
        &mut self,
        from: (&Target, u64),
        to: (&Target, u64),
        len: u64,
    ) -> Result<(), Trouble> {
        let (Some(source), Some(target)) = (self.find(from.0)?, self.find(to.0)?) else {
            return Ok(());
        };
        // The kernel refuses ranges of one file that overlap, and anything but regular files.
        let overlap = source == target && from.1.abs_diff(to.1) < len;
        let regular = |both: Both| {
            self.reference
                .node(both.0)
                .is_ok_and(|n| n.kind() == FileKind::Regular)
        };
        if overlap || !regular(source) || !regular(target) {
            return Ok(());
        }
        let before = self.reference.clone();
        let got = self
            .volume
            .copy_range(source.1, from.1, target.1, to.1, len);
        // As copy_file_range(2), a copy ends early where the device is full.
        let len = match &got {
            Ok(copied) if self.may_be_full => len.min((*copied).max(1)),
            _ => len,
        };
        let want = self
            .reference
            .copy_range((source.0, from.1), (target.0, to.1), len);
        if self.keep_unless_full(before, &got)? {
            same_value(want, got)?;
        }
        Ok(())
    }

    fn seek(&mut self, both: Both, offset: u64) -> Result<(), Trouble> {
        let Ok(super::Body::File(contents)) = self.reference.node(both.0).map(|n| &n.body) else {
            return Ok(());
        };
        let size = contents.size();
        let data = self.volume.seek(both.1, offset, Seek::Data);
        let hole = self.volume.seek(both.1, offset, Seek::Hole);
        let data_fits = match &data {
            Ok(at) => (offset..size).contains(at) && contents.is_zero(offset, *at),
            Err(warren_fs::Error::NoOffset) => offset >= size || contents.is_zero(offset, size),
            Err(_) => false,
        };
        let hole_fits = match &hole {
            Ok(at) => {
                let in_block = (at / 4096 + 1) * 4096;
                (offset..=size).contains(at)
                    && offset < size
                    && contents.is_zero(*at, in_block.min(size))
            }
            Err(warren_fs::Error::NoOffset) => offset >= size,
            Err(_) => false,
        };
        if data_fits && hole_fits {
            return Ok(());
        }
        Err(Trouble::mismatch(format!(
            "seek from {offset} of {size}: data {data:?}, hole {hole:?}"
        )))
    }

    /// Lists a directory in steps, with changes after the first step. What is there throughout is
    /// listed exactly once; what never was is not listed.
    fn list(&mut self, path: &str, step: usize, meanwhile: &[Op]) -> Result<(), Trouble> {
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

    fn remount(&mut self) -> Result<(), Trouble> {
        for slot in 0..SLOTS {
            self.release(slot);
        }
        self.volume.close()?;
        // The old volume goes first: it holds the device.
        let device = Arc::clone(&self.device);
        self.volume = Volume::open(device, &store_options())?;
        Ok(())
    }

    /// Compares everything visible.
    pub(crate) fn compare(&self) -> Result<(), Trouble> {
        let want = digest::of_reference(&self.reference);
        let got = digest::of_volume(&self.volume)?;
        if want == got {
            return Ok(());
        }
        Err(Trouble::mismatch(digest::differences(&want, &got)))
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

/// Holds two answers against each other: `Some` when both succeeded, `None` when both refused.
fn same<T, U>(want: Answer<T>, got: warren_fs::Result<U>) -> Result<Option<(T, U)>, Trouble> {
    match (want, got) {
        (Ok(want), Ok(got)) => Ok(Some((want, got))),
        (Err(errnos), Err(error)) if errnos.contains(&error.errno()) => Ok(None),
        (_, Err(error)) if matches!(error.errno(), libc::EIO | libc::EROFS) => {
            Err(Trouble::Device(error))
        }
        (Ok(_), Err(error)) => Err(Trouble::mismatch(format!(
            "should succeed, failed: {error}"
        ))),
        (Err(errnos), Ok(_)) => Err(Trouble::mismatch(format!(
            "should fail with {errnos:?}, succeeded"
        ))),
        (Err(errnos), Err(error)) => Err(Trouble::mismatch(format!(
            "should fail with {errnos:?}, failed: {error}"
        ))),
    }
}

fn same_value<T: PartialEq + Debug>(
    want: Answer<T>,
    got: warren_fs::Result<T>,
) -> Result<(), Trouble> {
    match same(want, got)? {
        Some((want, got)) if want != got => {
            let (mut want, mut got) = (format!("{want:?}"), format!("{got:?}"));
            want.truncate(200);
            got.truncate(200);
            Err(Trouble::mismatch(format!("want {want}, got {got}")))
        }
        _ => Ok(()),
    }
}

fn caller(maker: Maker) -> Caller {
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
