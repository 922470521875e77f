//! POSIX access control lists: validation, inheritance, and their ties to the permission bits.
//!
//! ACLs are stored as the attributes `system.posix_acl_access` and `system.posix_acl_default`, in
//! the format the kernel uses for these: version 2 (u32), then entries of tag (u16), permissions
//! (u16) and identifier (u32), little-endian. The rules are those of POSIX.1e draft 17 as Linux
//! has them. An access ACL that says no more than permission bits is not stored. The kernel
//! enforces ACLs; this module keeps them and the bits consistent.

use super::types::{Caller, Credentials, FileKind};
use super::{inode, xattr};
use crate::error::{Error, Result};
use crate::format::record::InodeRecord;
use crate::store::{Records, Txn};
use crate::types::Ino;

const VERSION: u32 = 2;
const ENTRY_SIZE: usize = 8;

/// Identifier of entries that need none.
const NO_ID: u32 = u32::MAX;

/// Permission to read, as in a mode.
pub(super) const READ: u32 = 4;
/// Permission to write.
pub(super) const WRITE: u32 = 2;
/// Permission to search a directory.
pub(super) const SEARCH: u32 = 1;

/// One of the two lists of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AclKind {
    /// Says who may do what.
    Access,
    /// Is what new entries of a directory start with.
    Default,
}

impl AclKind {
    pub(super) fn from_name(name: &[u8]) -> Option<AclKind> {
        [AclKind::Access, AclKind::Default]
            .into_iter()
            .find(|kind| kind.name() == name)
    }

    fn name(self) -> &'static [u8] {
        match self {
            AclKind::Access => b"system.posix_acl_access",
            AclKind::Default => b"system.posix_acl_default",
        }
    }

    fn flag(self) -> u32 {
        match self {
            AclKind::Access => InodeRecord::ACCESS_ACL,
            AclKind::Default => InodeRecord::DEFAULT_ACL,
        }
    }
}

/// Whom an entry is about. The numbers are those of the format, and ascend in the order that
/// entries have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
enum Tag {
    Owner = 0x01,
    User = 0x02,
    OwningGroup = 0x04,
    Group = 0x08,
    Mask = 0x10,
    Other = 0x20,
}

impl Tag {
    fn from_number(number: u16) -> Option<Tag> {
        [
            Tag::Owner,
            Tag::User,
            Tag::OwningGroup,
            Tag::Group,
            Tag::Mask,
            Tag::Other,
        ]
        .into_iter()
        .find(|tag| *tag as u16 == number)
    }

    fn is_named(self) -> bool {
        matches!(self, Tag::User | Tag::Group)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: Tag,
    permissions: u32,
    id: u32,
}

/// A valid list: an owner, an owning group and an other entry, a mask if anybody is named.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Acl {
    entries: Vec<Entry>,
}

impl Acl {
    /// The list that `value` encodes; `None` if that has no entries.
    fn decode(value: &[u8]) -> Result<Option<Acl>> {
        const MALFORMED: Error = Error::Invalid("access control list");
        if value.is_empty() {
            return Ok(None);
        }
        let (version, rest) = value.split_first_chunk::<4>().ok_or(MALFORMED)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(Error::Unsupported("version of an access control list"));
        }
        if !rest.len().is_multiple_of(ENTRY_SIZE) {
            return Err(MALFORMED);
        }
        if rest.is_empty() {
            return Ok(None);
        }
        let entries = rest
            .chunks_exact(ENTRY_SIZE)
            .map(decode_entry)
            .collect::<Option<Vec<_>>>()
            .ok_or(MALFORMED)?;
        let acl = Acl { entries };
        if acl.is_valid() {
            Ok(Some(acl))
        } else {
            Err(MALFORMED)
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for entry in &self.entries {
            value.extend_from_slice(&(entry.tag as u16).to_le_bytes());
            value.extend_from_slice(&(entry.permissions as u16).to_le_bytes());
            value.extend_from_slice(&entry.id.to_le_bytes());
        }
        value
    }

    fn is_valid(&self) -> bool {
        let has = |tag| self.entries.iter().any(|entry| entry.tag == tag);
        let named = has(Tag::User) || has(Tag::Group);
        let ascending = self.entries.windows(2).all(|pair| {
            pair[0].tag < pair[1].tag || (pair[0].tag == pair[1].tag && pair[0].tag.is_named())
        });
        let identified = self
            .entries
            .iter()
            .all(|entry| !entry.tag.is_named() || entry.id != NO_ID);
        ascending
            && identified
            && has(Tag::Owner)
            && has(Tag::OwningGroup)
            && has(Tag::Other)
            && (has(Tag::Mask) || !named)
    }

    /// Whether it says no more than permission bits do.
    fn is_minimal(&self) -> bool {
        self.entries.len() == 3
    }

    /// The entry that the group bits of the mode stand for.
    fn group_class(&self) -> Tag {
        match self.entries.iter().any(|entry| entry.tag == Tag::Mask) {
            true => Tag::Mask,
            false => Tag::OwningGroup,
        }
    }

    /// The entries behind the mode bits, each with the shift of its bits.
    fn classes(&mut self) -> impl Iterator<Item = (&mut Entry, u32)> {
        let group = self.group_class();
        self.entries.iter_mut().filter_map(move |entry| {
            let shift = match entry.tag {
                Tag::Owner => 6,
                tag if tag == group => 3,
                Tag::Other => 0,
                _ => return None,
            };
            Some((entry, shift))
        })
    }

    /// Whether it gives `who` the permissions `want` on what `owner` and `group` own (the algorithm
    /// of acl(5)).
    fn permits(&self, who: &Credentials, owner: u32, group: u32, want: u32) -> bool {
        let mask = self.entries.iter().find(|entry| entry.tag == Tag::Mask);
        let mask = mask.map_or(7, |entry| entry.permissions);
        let mut in_a_group = false;
        for entry in &self.entries {
            match entry.tag {
                Tag::Owner if who.uid == owner => return entry.permissions & want == want,
                Tag::User if who.uid == entry.id => {
                    return entry.permissions & mask & want == want;
                }
                Tag::OwningGroup | Tag::Group => {
                    let id = if entry.tag == Tag::Group {
                        entry.id
                    } else {
                        group
                    };
                    if who.is_in(id) {
                        if entry.permissions & mask & want == want {
                            return true;
                        }
                        in_a_group = true;
                    }
                }
                Tag::Other => return !in_a_group && entry.permissions & want == want,
                _ => {}
            }
        }
        false
    }

    /// The permission bits it stands for.
    fn mode_bits(&mut self) -> u32 {
        self.classes()
            .map(|(entry, shift)| entry.permissions << shift)
            .sum()
    }

    /// Sets the entries behind the mode bits.
    fn set_mode_bits(&mut self, mode: u32) {
        for (entry, shift) in self.classes() {
            entry.permissions = mode >> shift & 7;
        }
    }

    /// Limits the entries behind the mode bits to what `mode` allows.
    fn limit(&mut self, mode: u32) {
        for (entry, shift) in self.classes() {
            entry.permissions &= mode >> shift;
        }
    }
}

fn decode_entry(bytes: &[u8]) -> Option<Entry> {
    let tag = Tag::from_number(u16::from_le_bytes([bytes[0], bytes[1]]))?;
    let permissions = u32::from(u16::from_le_bytes([bytes[2], bytes[3]]));
    let id = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    (permissions <= 7).then_some(Entry {
        tag,
        permissions,
        id: if tag.is_named() { id } else { NO_ID },
    })
}

fn load(
    records: &impl Records,
    ino: Ino,
    inode: &InodeRecord,
    kind: AclKind,
) -> Result<Option<Acl>> {
    if !inode.has(kind.flag()) {
        return Ok(None);
    }
    let corrupt = |_| Error::Corrupt {
        what: "access control list",
        detail: format!("inode {ino}"),
    };
    match xattr::get(records, ino, inode, kind.name())? {
        Some(value) => Acl::decode(&value).map_err(corrupt),
        None => Ok(None),
    }
}

/// Whether mode, ACL and privileges give `who` the permissions `want` on an inode.
pub(super) fn permits(
    records: &impl Records,
    ino: Ino,
    inode: &InodeRecord,
    who: &Credentials,
    want: u32,
) -> Result<bool> {
    let only_looks = want & WRITE == 0 && (want & SEARCH == 0 || inode::is_directory(inode));
    if who.overrides || (who.reads_all && only_looks) {
        return Ok(true);
    }
    if let Some(acl) = load(records, ino, inode, AclKind::Access)? {
        return Ok(acl.permits(who, inode.uid, inode.gid, want));
    }
    let shift = match (who.uid == inode.uid, who.is_in(inode.gid)) {
        (true, _) => 6,
        (false, true) => 3,
        (false, false) => 0,
    };
    Ok(inode.mode >> shift & want == want)
}

fn save(
    txn: &mut Txn<'_>,
    ino: Ino,
    inode: &mut InodeRecord,
    kind: AclKind,
    acl: Option<&Acl>,
) -> Result<()> {
    match acl {
        Some(acl) => xattr::put(txn, ino, inode, kind.name(), &acl.encode())?,
        None => {
            xattr::remove(txn, ino, inode, kind.name())?;
        }
    }
    inode.set(kind.flag(), acl.is_some());
    Ok(())
}

/// Sets one of the lists of an inode; an empty value removes it. The caller saves the inode.
pub(super) fn set(
    txn: &mut Txn<'_>,
    ino: Ino,
    inode: &mut InodeRecord,
    kind: AclKind,
    value: &[u8],
    kill_sgid: bool,
) -> Result<()> {
    if inode::kind(inode) == FileKind::Symlink {
        return Err(Error::Unsupported("access control list of a symbolic link"));
    }
    let mut acl = Acl::decode(value)?;
    if kind == AclKind::Default && !inode::is_directory(inode) {
        return match acl {
            Some(_) => Err(Error::Access),
            None => Ok(()),
        };
    }
    if kind == AclKind::Access
        && let Some(access) = &mut acl
    {
        inode.mode = inode.mode & !0o777 | access.mode_bits();
        if kill_sgid {
            inode.mode &= !libc::S_ISGID;
        }
        if access.is_minimal() {
            acl = None;
        }
    }
    save(txn, ino, inode, kind, acl.as_ref())
}

/// Makes the access ACL follow the permission bits that were just set.
pub(super) fn chmod(txn: &mut Txn<'_>, ino: Ino, inode: &mut InodeRecord) -> Result<()> {
    if let Some(mut acl) = load(txn, ino, inode, AclKind::Access)? {
        acl.set_mode_bits(inode.mode);
        save(txn, ino, inode, AclKind::Access, Some(&acl))?;
    }
    Ok(())
}

/// Gives a new inode the default ACL of the directory it is made in, or else applies the umask.
pub(super) fn inherit(
    txn: &mut Txn<'_>,
    caller: &Caller,
    ino: Ino,
    inode: &mut InodeRecord,
    (parent_ino, parent): (Ino, &InodeRecord),
) -> Result<()> {
    if inode::kind(inode) == FileKind::Symlink {
        return Ok(());
    }
    let Some(default) = load(txn, parent_ino, parent, AclKind::Default)? else {
        inode.mode &= !(caller.umask & 0o777);
        return Ok(());
    };
    let mut access = default.clone();
    access.limit(inode.mode);
    inode.mode = inode.mode & !0o777 | access.mode_bits();
    if !access.is_minimal() {
        save(txn, ino, inode, AclKind::Access, Some(&access))?;
    }
    if inode::is_directory(inode) {
        save(txn, ino, inode, AclKind::Default, Some(&default))?;
    }
    Ok(())
}
