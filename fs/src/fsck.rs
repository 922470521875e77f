//! Checking a whole filesystem: the store below, and the namespace on it.
//!
//! The catalog is walked once; what the records of an inode say is gathered per inode and compared
//! at the end. Nothing is changed, and the filesystem must not be mounted. Memory grows with the
//! number of inodes (about 100 bytes each).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use zns_backend::ZonedDevice;

use crate::catalog::{Key, Kind};
use crate::error::Result;
use crate::format::record::{EntryRecord, InodeRecord, decode_inode_count};
use crate::report::{FsckReport, Progress};
use crate::store::extent::Extent;
use crate::store::{Store, StoreOptions};
use crate::types::Ino;

/// File type bits of a mode, shifted as entry records have them.
const DIRECTORY: u8 = 4;

/// What an inode says of itself, and what was found of it.
#[derive(Default)]
struct Inode {
    record: Option<InodeRecord>,
    links: u64,
    entries: u64,
    subdirectories: u64,
    blocks: u64,
    /// Directory that holds an entry of it.
    holder: Option<Ino>,
    kinds_agree: bool,
    orphan: bool,
}

#[derive(Default)]
struct Namespace {
    inodes: HashMap<Ino, Inode>,
    counted: Option<u64>,
    errors: Vec<String>,
    /// Type named by the entries of an inode.
    entry_kinds: Vec<(Ino, u8)>,
}

/// Checks the filesystem on a device; with `data`, reads every block of every file as well.
///
/// # Errors
/// When there is no filesystem that could be checked. What is wrong with one is in the report.
pub fn check(
    device: Arc<dyn ZonedDevice>,
    data: bool,
    progress: Progress<'_>,
) -> Result<FsckReport> {
    let options = StoreOptions {
        read_only: true,
        background: false,
        ..StoreOptions::default()
    };
    let store = Store::open(device, &options)?;
    let mut namespace = Namespace::default();
    let mut report = store.check(&mut |key, value| namespace.record(&key, value), progress)?;
    namespace.compare();
    report.errors.append(&mut namespace.errors);
    report
        .checked
        .insert("inodes".into(), namespace.inodes.len() as u64);
    if data {
        let mut scrubbed = store.scrub(progress);
        report.errors.append(&mut scrubbed.errors);
        report.checked.insert("blocks read".into(), scrubbed.blocks);
    }
    Ok(report)
}

impl Namespace {
    fn record(&mut self, key: &Key, value: &[u8]) {
        if let Err(error) = self.note(key, value) {
            self.errors.push(error.to_string());
        }
    }

    fn note(&mut self, key: &Key, value: &[u8]) -> Result<()> {
        match key.kind {
            Kind::Inode if key.ino.0 == 0 => self.counted = Some(decode_inode_count(key, value)?),
            Kind::Inode => {
                let record = InodeRecord::decode(key, value)?;
                self.inode(key.ino).record = Some(record);
            }
            Kind::Entry => {
                let entry = EntryRecord::decode(key, value)?;
                let (ino, kind) = (entry.ino, entry.kind);
                let holder = self.inode(key.ino);
                holder.entries += 1;
                if kind == DIRECTORY {
                    holder.subdirectories += 1;
                }
                let named = self.inode(ino);
                named.links += 1;
                named.holder = Some(key.ino);
                self.entry_kinds.push((ino, kind));
            }
            Kind::Extent => self.inode(key.ino).blocks += Extent::decode(key, value)?.len,
            Kind::Orphan => self.inode(Ino(key.offset)).orphan = true,
            Kind::Inline | Kind::Xattr => {
                self.inode(key.ino);
            }
        }
        Ok(())
    }

    fn inode(&mut self, ino: Ino) -> &mut Inode {
        self.inodes.entry(ino).or_insert_with(|| Inode {
            kinds_agree: true,
            ..Inode::default()
        })
    }

    fn compare(&mut self) {
        for (ino, kind) in std::mem::take(&mut self.entry_kinds) {
            let inode = self.inode(ino);
            let same = inode
                .record
                .as_ref()
                .is_none_or(|r| (r.mode >> 12) as u8 == kind);
            inode.kinds_agree &= same;
        }
        let mut errors = Vec::new();
        let mut inodes: Vec<_> = self.inodes.iter().collect();
        inodes.sort_by_key(|(ino, _)| **ino);
        for (ino, inode) in inodes {
            inode.compare(*ino, &mut |problem| {
                errors.push(format!("inode {ino}: {problem}"))
            });
        }
        self.errors.append(&mut errors);
        self.find_cut_off();
        let found = self.inodes.len() as u64;
        if let Some(counted) = self.counted
            && counted != found
        {
            self.errors
                .push(format!("{counted} inodes are counted, {found} found"));
        }
    }

    /// Directories whose chain of parents does not lead to the root.
    fn find_cut_off(&mut self) {
        let mut reached: HashSet<Ino> = HashSet::from([Ino::ROOT]);
        let mut cut_off = Vec::new();
        for (ino, inode) in &self.inodes {
            if inode.orphan || inode.holder.is_none() {
                continue;
            }
            let mut path = Vec::new();
            let mut at = Some(*ino);
            while let Some(step) = at
                && !reached.contains(&step)
                && path.len() <= self.inodes.len()
            {
                path.push(step);
                at = self.inodes.get(&step).and_then(|inode| inode.holder);
            }
            match at {
                Some(end) if reached.contains(&end) => reached.extend(path),
                _ => cut_off.push(*ino),
            }
        }
        cut_off.sort();
        self.errors.extend(
            cut_off
                .iter()
                .map(|ino| format!("inode {ino}: cannot be reached from the root")),
        );
    }
}

impl Inode {
    fn compare(&self, ino: Ino, fail: &mut dyn FnMut(String)) {
        let Some(record) = &self.record else {
            return fail("has records but no attributes".into());
        };
        if !self.kinds_agree {
            fail("its entries name another type".into());
        }
        if record.blocks != self.blocks {
            fail(format!(
                "{} blocks are counted, {} found",
                record.blocks, self.blocks
            ));
        }
        if self.orphan != (record.nlink == 0) {
            fail(format!(
                "link count {}, orphan marker {}",
                record.nlink, self.orphan
            ));
        }
        let nlink = u64::from(record.nlink);
        if (record.mode >> 12) as u8 != DIRECTORY {
            if nlink != self.links {
                fail(format!("link count {nlink}, {} entries found", self.links));
            }
            return;
        }
        if record.entries != self.entries {
            fail(format!(
                "{} entries are counted, {} found",
                record.entries, self.entries
            ));
        }
        if nlink != 0 && nlink != 2 + self.subdirectories {
            fail(format!(
                "link count {nlink}, {} subdirectories found",
                self.subdirectories
            ));
        }
        let expected = u64::from(nlink != 0 && ino != Ino::ROOT);
        if self.links != expected {
            fail(format!("{} entries name this directory", self.links));
        }
        if let Some(holder) = self.holder
            && holder.0 != record.parent
        {
            fail(format!(
                "its parent is inode {}, an entry is in inode {holder}",
                record.parent
            ));
        }
    }
}
