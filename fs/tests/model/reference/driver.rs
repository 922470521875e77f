//! A volume and the reference side by side: every operation goes to both, and what they answer is
//! compared, errnos included.
//!
//! Here: the pair, what an operation is for it, and what it does as a whole. `names` has the operations
//! on directories and handles, `contents` those on an inode, `answers` what it is for two answers to agree.

mod answers;
mod contents;
mod names;

use std::sync::Arc;

use warren_fs::store::{FormatOptions, Store, StoreOptions};
use warren_fs::types::Ino;
use warren_fs::volume::Volume;
use warren_fs::volume::types::{Caller, Time, XattrFlags};
use zns_backend::ZonedDevice;

use super::digest;
use super::ops::{Op, SLOTS, Target, noise};
use super::{Answer, ROOT, Reference};
pub(crate) use answers::Trouble;
use answers::{same, same_value};
use names::caller;

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
