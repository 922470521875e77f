//! Reports gathered from outside the store: from the device, the superblock, and a walk through
//! the namespace.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use zns_backend::{ZoneId, ZonedDevice};

use crate::error::{Error, Result};
use crate::report::{FsckReport, Info, Progress, ScrubReport, Stats, ZoneStatus};
use crate::store::{Store, StoreOptions};
use crate::types::{BLOCK_SIZE, Ino};
use crate::volume::Volume;
use crate::volume::types::{Attributes, FileKind};

/// Zones that hold superblock and checkpoints.
const ANCHOR_ZONES: u32 = 2;
/// Bytes read at a time.
const READ_BYTES: usize = 1 << 20;

/// What a store tells about itself.
pub(super) trait Inspect {
    fn info(&self) -> Result<Info>;
    fn stats(&self) -> Stats;
    fn zone_table(&self) -> Result<Vec<ZoneStatus>>;
}

impl Inspect for Store {
    fn info(&self) -> Result<Info> {
        let geometry = *self.device().geometry();
        let space = self.space();
        let counters = self.statistics();
        let counter = |name| counters.iter().find(|(n, _)| *n == name).map_or(0, |c| c.1);
        Ok(Info {
            label: self.superblock().label(),
            uuid: uuid_text(&self.superblock().fsid),
            version: crate::format::FORMAT_VERSION,
            block_size: geometry.block_size,
            zones: geometry.zones,
            zone_size: geometry.zone_size,
            zone_capacity: geometry.zone_capacity,
            checkpoint: counter("checkpoint"),
            sequence: counter("next_sequence"),
            root: 0,
            used: space.used,
            total: space.total,
            clean: true,
            mounts: 0,
        })
    }

    fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        let counters = self.statistics();
        let group = stats.groups.entry("store".into()).or_default();
        group.extend(
            counters
                .iter()
                .map(|(name, value)| ((*name).into(), *value)),
        );
        stats
    }

    fn zone_table(&self) -> Result<Vec<ZoneStatus>> {
        let zones = self.device().geometry().zones;
        let report = self.device().report(ZoneId(0), zones)?;
        Ok(report
            .into_iter()
            .map(|zone| ZoneStatus {
                zone: zone.zone.0,
                state: zone.state.to_string(),
                class: match zone.zone.0 < ANCHOR_ZONES {
                    true => "anchor".into(),
                    false => "free".into(),
                },
                write_pointer: zone.write_pointer,
                capacity: zone.capacity,
                live: zone.write_pointer,
                age: 0,
            })
            .collect())
    }
}

fn uuid_text(id: &[u8; 16]) -> String {
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let (a, b, c) = (&hex[..8], &hex[8..12], &hex[12..16]);
    format!("{a}-{b}-{c}-{}-{}", &hex[16..20], &hex[20..])
}

/// Checks the filesystem on a device.
pub(super) fn check(device: Arc<dyn ZonedDevice>, progress: Progress<'_>) -> Result<FsckReport> {
    let options = StoreOptions {
        read_only: true,
        background: false,
        ..StoreOptions::default()
    };
    let volume = Volume::open(device, &options)?;
    let mut walk = Walk::new(&volume, progress);
    walk.run();
    Ok(walk.report)
}

/// Reads and verifies all files of a mounted volume.
pub(super) fn scrub(volume: &Volume, progress: Progress<'_>) -> ScrubReport {
    let mut walk = Walk::new(volume, progress);
    walk.run();
    ScrubReport {
        blocks: walk.blocks,
        errors: walk.report.errors,
    }
}

/// A walk through all names that reads every file.
struct Walk<'a> {
    volume: &'a Volume,
    progress: Progress<'a>,
    report: FsckReport,
    blocks: u64,
    total: u64,
    /// Links counted by the inodes, and links found.
    links: BTreeMap<Ino, (u64, u64)>,
    directories: Vec<Ino>,
}

impl<'a> Walk<'a> {
    fn new(volume: &'a Volume, progress: Progress<'a>) -> Walk<'a> {
        Walk {
            volume,
            progress,
            report: FsckReport::default(),
            blocks: 0,
            total: volume.store().space().used,
            links: BTreeMap::new(),
            directories: vec![Ino::ROOT],
        }
    }

    fn run(&mut self) {
        match self.volume.getattr(Ino::ROOT) {
            Ok(root) => {
                self.links.insert(Ino::ROOT, (root.nlink.into(), 2));
            }
            Err(error) => self.fail(format!("root directory: {error}")),
        }
        while let Some(dir) = self.directories.pop() {
            self.visit_directory(dir);
        }
        for (ino, (counted, found)) in std::mem::take(&mut self.links) {
            if counted != found {
                self.fail(format!("inode {ino}: link count {counted}, {found} found"));
            }
        }
    }

    fn fail(&mut self, problem: String) {
        self.report.errors.push(problem);
    }

    fn count(&mut self, kind: &str) {
        *self.report.checked.entry(kind.into()).or_default() += 1;
    }

    fn visit_directory(&mut self, dir: Ino) {
        self.count("directories");
        let mut entries = Vec::new();
        let listed = self.volume.readdir(dir, 0, &mut |entry| {
            if entry.name != b"." && entry.name != b".." {
                entries.push((entry.ino, entry.kind, entry.name.to_vec()));
            }
            ControlFlow::Continue(())
        });
        if let Err(error) = listed {
            self.fail(format!("directory {dir}: {error}"));
        }
        for (ino, kind, name) in entries {
            let place = format!("entry '{}' of directory {dir}", name.escape_ascii());
            match self.volume.getattr(ino) {
                Ok(attributes) if attributes.kind == kind => self.visit(dir, &attributes),
                Ok(_) => self.fail(format!("{place}: type differs from that of inode {ino}")),
                Err(error) => self.fail(format!("{place}: inode {ino}: {error}")),
            }
        }
    }

    fn visit(&mut self, dir: Ino, inode: &Attributes) {
        let counted = u64::from(inode.nlink);
        let is_directory = inode.kind == FileKind::Directory;
        let links = self.links.entry(inode.ino).or_insert((counted, 0));
        // A directory is named by its entry and by its own ".", and names its parent.
        links.1 += if is_directory { 2 } else { 1 };
        let first = links.1 <= 2;
        if is_directory {
            if !first {
                self.fail(format!("directory {} has more than one entry", inode.ino));
                return;
            }
            if let Some(parent) = self.links.get_mut(&dir) {
                parent.1 += 1;
            }
            self.directories.push(inode.ino);
        } else if self.links[&inode.ino].1 == 1 {
            self.count("files");
            if inode.kind == FileKind::Regular {
                self.read(inode);
            }
        }
    }

    fn read(&mut self, file: &Attributes) {
        let mut buffer = Vec::new();
        let mut offset = 0;
        while offset < file.size {
            match self
                .volume
                .seek(file.ino, offset, crate::volume::types::Seek::Data)
            {
                Ok(data) => offset = data,
                Err(Error::NoOffset) => return,
                Err(error) => return self.fail(format!("inode {}: {error}", file.ino)),
            }
            if let Err(error) = self.volume.read(file.ino, offset, READ_BYTES, &mut buffer) {
                self.fail(format!("inode {}: {error}", file.ino));
            }
            offset += READ_BYTES as u64;
            self.blocks += (buffer.len().div_ceil(BLOCK_SIZE)) as u64;
            (self.progress)(self.blocks.min(self.total), self.total);
        }
    }
}
