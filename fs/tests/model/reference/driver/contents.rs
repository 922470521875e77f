//! Operations on an inode: attributes, sizes, holes, copies.
//!
//! What the kernel lets nobody ask of a filesystem is not asked here either.

use warren_fs::volume::Volume;
use warren_fs::volume::types::{FileKind, Seek, SetAttributes};

use super::answers::{Trouble, same_value};
use super::{Both, Pair, ROOT_CALLER};
use crate::reference::ops::Target;
use crate::reference::{Answer, Body, Change, Reference};

impl Pair {
    pub(super) fn setattr(&mut self, both: Both, change: Change) -> Result<(), Trouble> {
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

    pub(super) fn fallocate(
        &mut self,
        both: Both,
        offset: u64,
        len: u64,
        mode: i32,
    ) -> Result<(), Trouble> {
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

    pub(super) fn xattr_change<U>(
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

    pub(super) fn copy_range(
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

    pub(super) fn seek(&mut self, both: Both, offset: u64) -> Result<(), Trouble> {
        let Ok(Body::File(contents)) = self.reference.node(both.0).map(|n| &n.body) else {
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
}
