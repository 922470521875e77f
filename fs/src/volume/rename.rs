//! rename(2): moving, replacing and exchanging names.

use super::handles::Disposal;
use super::types::{Caller, FileKind, Time};
use super::{METADATA_BLOCKS, Volume, directory, inode};
use crate::error::{Error, Result};
use crate::format::record::{InodeRecord, Timestamp};
use crate::store::{Records, Txn};
use crate::types::Ino;
use directory::{Entry, Slot};

/// Deepest directory that can be walked up from; only a loop in the tree is deeper.
const MAX_DEPTH: u64 = 1 << 24;

/// A name in a directory.
#[derive(Clone, Copy)]
struct Place<'a> {
    parent: Ino,
    name: &'a [u8],
}

/// The two directories of a rename, which may be one.
struct Parents {
    old: InodeRecord,
    /// `None` if it is the old one.
    new: Option<InodeRecord>,
}

impl Parents {
    fn load(records: &impl Records, from: Place<'_>, to: Place<'_>) -> Result<Parents> {
        let old = inode::load_parent(records, from.parent)?;
        let new = match from.parent == to.parent {
            true => None,
            false => Some(inode::load_parent(records, to.parent)?),
        };
        Ok(Parents { old, new })
    }

    fn new_parent(&mut self) -> &mut InodeRecord {
        self.new.as_mut().unwrap_or(&mut self.old)
    }

    fn save(
        mut self,
        txn: &mut Txn<'_>,
        from: Place<'_>,
        to: Place<'_>,
        now: Timestamp,
    ) -> Result<()> {
        inode::touch(&mut self.old, now);
        inode::save(txn, from.parent, &self.old)?;
        if let Some(mut new) = self.new {
            inode::touch(&mut new, now);
            inode::save(txn, to.parent, &new)?;
        }
        Ok(())
    }
}

/// A rename that is possible.
struct Plan {
    parents: Parents,
    source: Entry,
    moved: InodeRecord,
    target: Target,
}

/// What is at the new name.
enum Target {
    Vacant(u64),
    Taken(Entry, InodeRecord),
}

/// Whether `ancestor` is `directory` or above it.
fn is_within(records: &impl Records, ancestor: Ino, directory: Ino) -> Result<bool> {
    let mut at = directory;
    for _ in 0..MAX_DEPTH {
        if at == ancestor {
            return Ok(true);
        }
        if at == Ino::ROOT {
            return Ok(false);
        }
        at = Ino(inode::load_named(records, at)?.parent);
    }
    Err(Error::Corrupt {
        what: "directory tree",
        detail: format!("inode {directory} is in a loop"),
    })
}

fn check_loop(records: &impl Records, moved: Entry, from: Ino, to: Ino) -> Result<()> {
    if moved.kind == FileKind::Directory && from != to && is_within(records, moved.ino, to)? {
        return Err(Error::Invalid("a directory cannot move into itself"));
    }
    Ok(())
}

/// Everything a rename needs to know; `None` if both names are of one inode, so nothing happens.
fn plan(
    records: &impl Records,
    from: Place<'_>,
    to: Place<'_>,
    flags: u32,
) -> Result<Option<Plan>> {
    let parents = Parents::load(records, from, to)?;
    let source = directory::find_entry(records, from.parent, from.name)?;
    let target = match directory::find(records, to.parent, to.name)? {
        Slot::Used(_) if flags == libc::RENAME_NOREPLACE => return Err(Error::Exists),
        Slot::Used(entry) if entry.ino == source.ino => return Ok(None),
        Slot::Used(entry) => Target::Taken(entry, inode::load_named(records, entry.ino)?),
        Slot::Free(_) | Slot::Full if flags == libc::RENAME_EXCHANGE => {
            return Err(Error::NotFound);
        }
        Slot::Free(cookie) => Target::Vacant(cookie),
        Slot::Full => return Err(Error::NoSpace),
    };
    check_loop(records, source, from.parent, to.parent)?;
    let moved = inode::load_named(records, source.ino)?;
    match &target {
        Target::Taken(entry, _) if flags == libc::RENAME_EXCHANGE => {
            check_loop(records, *entry, to.parent, from.parent)?;
        }
        Target::Taken(_, replaced) => check_replace(&moved, replaced)?,
        Target::Vacant(_) => {}
    }
    Ok(Some(Plan {
        parents,
        source,
        moved,
        target,
    }))
}

fn check_replace(moved: &InodeRecord, replaced: &InodeRecord) -> Result<()> {
    match (inode::is_directory(moved), inode::is_directory(replaced)) {
        (true, false) => Err(Error::NotDirectory),
        (false, true) => Err(Error::IsDirectory),
        (true, true) if replaced.entries > 0 => Err(Error::NotEmpty),
        _ => Ok(()),
    }
}

fn add_subdirectory(parent: &mut InodeRecord) -> Result<()> {
    if parent.nlink >= inode::MAX_LINKS {
        return Err(Error::TooManyLinks);
    }
    parent.nlink += 1;
    Ok(())
}

fn drop_subdirectory(parent: &mut InodeRecord) {
    parent.nlink = parent.nlink.saturating_sub(1);
}

impl Volume {
    /// `flags`: 0, RENAME_NOREPLACE or RENAME_EXCHANGE of rename(2); others are Invalid.
    ///
    /// # Errors
    /// Those of rename(2); device errors.
    pub fn rename(
        &self,
        _: &Caller,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: u32,
    ) -> Result<()> {
        if !matches!(flags, 0 | libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE) {
            return Err(Error::Invalid("flags of rename"));
        }
        directory::check_name(name)?;
        directory::check_name(new_name)?;
        let from = Place { parent, name };
        let to = Place {
            parent: new_parent,
            name: new_name,
        };
        if plan(&self.store.view(), from, to, flags)?.is_none() {
            return Ok(());
        }
        let mut txn = self.store.begin()?;
        match plan(&txn, from, to, flags)? {
            None => Ok(()),
            Some(plan) if flags == libc::RENAME_EXCHANGE => self.exchange(txn, from, to, plan),
            Some(plan) => {
                if matches!(plan.target, Target::Vacant(_)) {
                    txn.claim_space(METADATA_BLOCKS)?;
                }
                self.move_name(txn, from, to, plan)
            }
        }
    }

    fn move_name(
        &self,
        mut txn: Txn<'_>,
        from: Place<'_>,
        to: Place<'_>,
        plan: Plan,
    ) -> Result<()> {
        let Plan {
            mut parents,
            source,
            mut moved,
            target,
        } = plan;
        let now = inode::to_timestamp(Time::now());
        directory::remove(&mut txn, from.parent, source.cookie)?;
        parents.old.entries = parents.old.entries.saturating_sub(1);
        if source.kind == FileKind::Directory {
            drop_subdirectory(&mut parents.old);
            moved.parent = to.parent.0;
        }
        let mut changed = vec![from.parent, to.parent, source.ino];
        let mut disposal = None;
        let cookie = match target {
            Target::Vacant(cookie) => {
                parents.new_parent().entries += 1;
                cookie
            }
            Target::Taken(entry, mut replaced) => {
                if entry.kind == FileKind::Directory {
                    drop_subdirectory(parents.new_parent());
                }
                let what = self.drop_link(&mut txn, entry.ino, &mut replaced, now)?;
                disposal = Some((entry.ino, what));
                changed.push(entry.ino);
                entry.cookie
            }
        };
        if source.kind == FileKind::Directory {
            add_subdirectory(parents.new_parent())?;
        }
        directory::put(
            &mut txn,
            to.parent,
            cookie,
            to.name,
            source.ino,
            source.kind,
        )?;
        moved.ctime = now;
        inode::save(&mut txn, source.ino, &moved)?;
        parents.save(&mut txn, from, to, now)?;
        self.commit(txn, &changed)?;
        let (ino, disposal) = disposal.unwrap_or((source.ino, Disposal::Stays));
        self.finish_disposal(ino, disposal);
        Ok(())
    }

    fn exchange(&self, mut txn: Txn<'_>, from: Place<'_>, to: Place<'_>, plan: Plan) -> Result<()> {
        let Plan {
            mut parents,
            source,
            mut moved,
            target,
        } = plan;
        let Target::Taken(entry, mut other) = target else {
            return Err(Error::NotFound);
        };
        let now = inode::to_timestamp(Time::now());
        if source.kind == FileKind::Directory {
            drop_subdirectory(&mut parents.old);
            moved.parent = to.parent.0;
        }
        if entry.kind == FileKind::Directory {
            drop_subdirectory(parents.new_parent());
            other.parent = from.parent.0;
            add_subdirectory(&mut parents.old)?;
        }
        if source.kind == FileKind::Directory {
            add_subdirectory(parents.new_parent())?;
        }
        moved.ctime = now;
        other.ctime = now;
        inode::save(&mut txn, source.ino, &moved)?;
        inode::save(&mut txn, entry.ino, &other)?;
        let (mine, theirs) = (source.cookie, entry.cookie);
        directory::put(
            &mut txn,
            from.parent,
            mine,
            from.name,
            entry.ino,
            entry.kind,
        )?;
        directory::put(
            &mut txn,
            to.parent,
            theirs,
            to.name,
            source.ino,
            source.kind,
        )?;
        parents.save(&mut txn, from, to, now)?;
        self.commit(txn, &[from.parent, to.parent, source.ino, entry.ino])
    }
}
