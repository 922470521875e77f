//! Everything that is visible of a filesystem, in a form that can be compared: of the reference, and
//! of a volume by walking it through its public operations.
//!
//! Not in it: times, inode numbers, allocated blocks, sizes of directories.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;

use warren_fs::types::Ino;
use warren_fs::volume::Volume;
use warren_fs::volume::types::{Attributes, Caller, FileKind, Seek};

use super::driver::Trouble;
use super::{Body, ROOT, Reference};

const BLOCK: u64 = 4096;
/// Files up to this size are read in full, holes included; larger ones where they have data.
const READ_IN_FULL: u64 = 4 << 20;

/// What can be seen of one inode under one name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Entry {
    pub(crate) kind: FileKind,
    pub(crate) permissions: u32,
    pub(crate) nlink: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) rdev: u32,
    pub(crate) size: u64,
    /// Checksums of the blocks that are not all zero.
    pub(crate) blocks: BTreeMap<u64, u32>,
    pub(crate) link: Vec<u8>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// First path (in order) of the same inode.
    pub(crate) same_as: String,
}

/// Everything visible, by path.
pub(crate) type Tree = BTreeMap<String, Entry>;

/// The tree of the reference.
pub(crate) fn of_reference(reference: &Reference) -> Tree {
    let mut tree = Tree::new();
    let mut inodes = BTreeMap::new();
    let mut pending = vec![(String::new(), ROOT)];
    while let Some((path, ino)) = pending.pop() {
        let node = reference.node(ino).expect("a named inode");
        let mut entry = Entry {
            kind: node.kind(),
            permissions: node.permissions,
            nlink: reference.nlink(ino),
            uid: node.uid,
            gid: node.gid,
            rdev: node.rdev,
            size: node.size(),
            blocks: BTreeMap::new(),
            link: Vec::new(),
            xattrs: node.xattrs.clone(),
            same_as: String::new(),
        };
        match &node.body {
            Body::File(contents) => entry.blocks = contents.checksums(),
            Body::Link(to) => entry.link.clone_from(to),
            Body::Directory { entries, .. } => {
                for (name, child) in entries {
                    pending.push((join(&path, name), *child));
                }
            }
            Body::Special(_) => {}
        }
        inodes.insert(path.clone(), ino);
        tree.insert(path, entry);
    }
    name_inodes(&mut tree, &inodes);
    tree
}

fn join(path: &str, name: &[u8]) -> String {
    format!("{path}/{}", String::from_utf8_lossy(name))
}

fn name_inodes(tree: &mut Tree, inodes: &BTreeMap<String, u64>) {
    let mut first: HashMap<u64, String> = HashMap::new();
    for (path, entry) in tree.iter_mut() {
        let name = first.entry(inodes[path]).or_insert_with(|| path.clone());
        entry.same_as.clone_from(name);
    }
}

/// One entry of a directory as the volume lists it.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) name: Vec<u8>,
    pub(crate) ino: Ino,
    pub(crate) kind: FileKind,
    pub(crate) cookie: u64,
}

/// Up to `count` entries after `cookie`.
pub(crate) fn list_some(
    volume: &Volume,
    dir: Ino,
    cookie: u64,
    count: usize,
) -> warren_fs::Result<Vec<Listed>> {
    let mut listed = Vec::new();
    volume.readdir(dir, cookie, &mut |entry| {
        listed.push(Listed {
            name: entry.name.to_vec(),
            ino: entry.ino,
            kind: entry.kind,
            cookie: entry.cookie,
        });
        if listed.len() < count {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    Ok(listed)
}

/// The tree of a volume.
///
/// # Errors
/// A device error, or what contradicts itself (a listing against a lookup, a hole with data).
pub(crate) fn of_volume(volume: &Volume) -> Result<Tree, Trouble> {
    let mut tree = Tree::new();
    let mut inodes = BTreeMap::new();
    let mut pending = vec![(String::new(), Ino::ROOT)];
    while let Some((path, ino)) = pending.pop() {
        let seen = volume.getattr(ino)?;
        let mut entry = Entry {
            kind: seen.kind,
            permissions: seen.permissions,
            nlink: seen.nlink,
            uid: seen.uid,
            gid: seen.gid,
            rdev: seen.rdev,
            size: seen.size,
            blocks: BTreeMap::new(),
            link: Vec::new(),
            xattrs: xattrs(volume, ino)?,
            same_as: String::new(),
        };
        match seen.kind {
            FileKind::Regular => entry.blocks = checksums(volume, &path, &seen)?,
            FileKind::Symlink => entry.link = volume.readlink(ino)?,
            FileKind::Directory => {
                entry.size = 0;
                for child in children(volume, &path, ino)? {
                    pending.push((join(&path, &child.name), child.ino));
                }
            }
            _ => {}
        }
        inodes.insert(path.clone(), ino.0);
        tree.insert(path, entry);
    }
    name_inodes(&mut tree, &inodes);
    Ok(tree)
}

/// Entries of a directory without the dots, each held against a lookup.
fn children(volume: &Volume, path: &str, dir: Ino) -> Result<Vec<Listed>, Trouble> {
    let (mut all, mut cookie, mut names) = (Vec::new(), 0, BTreeSet::new());
    loop {
        let some = list_some(volume, dir, cookie, 7)?;
        let Some(last) = some.last() else { break };
        cookie = last.cookie;
        for entry in some {
            if !names.insert(entry.name.clone()) {
                return Err(Trouble::mismatch(format!(
                    "{path}/ lists {:?} twice",
                    entry.name
                )));
            }
            let found = volume.lookup(dir, &entry.name)?;
            if (found.ino, found.kind) != (entry.ino, entry.kind) {
                return Err(Trouble::mismatch(format!(
                    "{path}/ lists {entry:?}, its lookup is {found:?}"
                )));
            }
            if entry.name != b"." && entry.name != b".." {
                all.push(entry);
            }
        }
    }
    if !names.contains(b".".as_slice()) || !names.contains(b"..".as_slice()) {
        return Err(Trouble::mismatch(format!("{path}/ does not list its dots")));
    }
    Ok(all)
}

fn xattrs(volume: &Volume, ino: Ino) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Trouble> {
    let root = Caller {
        uid: 0,
        gid: 0,
        pid: 1,
        umask: 0,
    };
    let list = volume.listxattr(&root, ino)?;
    let mut xattrs = BTreeMap::new();
    for name in list.split(|b| *b == 0).filter(|name| !name.is_empty()) {
        if xattrs
            .insert(name.to_vec(), volume.getxattr(ino, name)?)
            .is_some()
        {
            return Err(Trouble::mismatch(format!(
                "attribute {name:?} is listed twice"
            )));
        }
    }
    Ok(xattrs)
}

/// Checksums of the blocks of a file that are not all zero; what lies in holes must be zero.
fn checksums(
    volume: &Volume,
    path: &str,
    seen: &Attributes,
) -> Result<BTreeMap<u64, u32>, Trouble> {
    let data = data_ranges(volume, path, seen)?;
    let mut blocks = BTreeMap::new();
    if seen.size <= READ_IN_FULL {
        read_into(volume, seen, 0, seen.size, &mut blocks)?;
    } else {
        for (from, to) in &data {
            read_into(volume, seen, from / BLOCK * BLOCK, *to, &mut blocks)?;
        }
    }
    for index in blocks.keys() {
        let start = index * BLOCK;
        if !data
            .iter()
            .any(|(from, to)| *from < start + BLOCK && start < *to)
        {
            return Err(Trouble::mismatch(format!(
                "{path}: block {index} lies in a hole and has data"
            )));
        }
    }
    Ok(blocks)
}

fn data_ranges(volume: &Volume, path: &str, seen: &Attributes) -> Result<Vec<(u64, u64)>, Trouble> {
    let (mut ranges, mut at) = (Vec::new(), 0);
    while at < seen.size {
        let from = match volume.seek(seen.ino, at, Seek::Data) {
            Ok(from) => from,
            Err(warren_fs::Error::NoOffset) => break,
            Err(error) => return Err(error.into()),
        };
        let to = volume.seek(seen.ino, from, Seek::Hole)?;
        if from < at || to <= from || to > seen.size {
            let said = format!(
                "{path}: data at {from} after {at}, hole at {to} of {}",
                seen.size
            );
            return Err(Trouble::mismatch(said));
        }
        ranges.push((from, to));
        at = to;
    }
    Ok(ranges)
}

fn read_into(
    volume: &Volume,
    seen: &Attributes,
    from: u64,
    to: u64,
    blocks: &mut BTreeMap<u64, u32>,
) -> Result<(), Trouble> {
    let (mut at, mut buffer) = (from, Vec::new());
    while at < to {
        let want = (to - at).min(37 * BLOCK);
        volume.read(seen.ino, at, want as usize, &mut buffer)?;
        if buffer.len() as u64 != want.min(seen.size - at) {
            let said = format!(
                "read of {want} at {at} gave {} of {}",
                buffer.len(),
                seen.size
            );
            return Err(Trouble::mismatch(said));
        }
        for (i, bytes) in buffer.chunks(BLOCK as usize).enumerate() {
            if bytes.iter().any(|b| *b != 0) {
                let mut block = vec![0; BLOCK as usize];
                block[..bytes.len()].copy_from_slice(bytes);
                blocks.insert(at / BLOCK + i as u64, crc32c::crc32c(&block));
            }
        }
        at += want;
    }
    Ok(())
}

/// The first few differences, for a message.
pub(crate) fn differences(want: &Tree, got: &Tree) -> String {
    let paths: BTreeSet<&String> = want.keys().chain(got.keys()).collect();
    let mut lines = Vec::new();
    for path in paths {
        match (want.get(path), got.get(path)) {
            (Some(want), Some(got)) if want == got => {}
            (Some(want), Some(got)) => lines.push(entry_difference(path, want, got)),
            (Some(_), None) => lines.push(format!("{path}: missing")),
            (None, _) => lines.push(format!("{path}: should not be there")),
        }
    }
    lines.truncate(5);
    lines.join("\n")
}

fn entry_difference(path: &str, want: &Entry, got: &Entry) -> String {
    let bare = |entry: &Entry| Entry {
        blocks: BTreeMap::new(),
        xattrs: BTreeMap::new(),
        ..entry.clone()
    };
    let blocks: BTreeSet<&u64> = want.blocks.keys().chain(got.blocks.keys()).collect();
    let blocks: Vec<&u64> = blocks
        .into_iter()
        .filter(|i| want.blocks.get(i) != got.blocks.get(i))
        .take(8)
        .collect();
    let names = |entry: &Entry| -> Vec<String> {
        let shown =
            |(k, v): (&Vec<u8>, &Vec<u8>)| format!("{}[{}]", String::from_utf8_lossy(k), v.len());
        entry.xattrs.iter().map(shown).collect()
    };
    let mut text = format!("{path}:");
    if bare(want) != bare(got) {
        text += &format!("\n  want {:?}\n  got  {:?}", bare(want), bare(got));
    }
    if !blocks.is_empty() {
        text += &format!("\n  contents differ in blocks {blocks:?}");
    }
    if want.xattrs != got.xattrs {
        text += &format!("\n  xattrs want {:?} got {:?}", names(want), names(got));
    }
    text
}
