//! Extended attributes: storage and namespaces.
//!
//! An attribute lives at `(ino, Xattr, hash << 12 | collision << 7 | fragment)`: a 52-bit hash of
//! the name, the number of the attribute among up to 32 of the same hash, and the number of the
//! fragment, since values are longer than a record. The inode counts the bytes of the list of
//! names: 0 says without looking that there are no attributes.

use std::ops::ControlFlow;

use super::types::{Caller, FileKind, Time, XattrFlags};
use super::{METADATA_BLOCKS, Volume, acl, directory, inode};
use crate::catalog::{Key, Kind};
use crate::error::{Error, Result};
use crate::format::record::{InodeRecord, XattrRecord};
use crate::store::{Records, Txn};
use crate::types::{BLOCK_SIZE, Ino};
use acl::AclKind;

const MAX_NAME: usize = 255;
const MAX_VALUE: usize = 65536;
const MAX_LIST: u32 = 65536;

const SLOT_BITS: u32 = 7;
const HASH_BITS: u32 = 12;
const SLOTS: u64 = 1 << (HASH_BITS - SLOT_BITS);
const LAST_FRAGMENT: u64 = (1 << SLOT_BITS) - 1;

const CAPABILITY: &[u8] = b"security.capability";

/// What a name's namespace asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Namespace {
    User,
    /// `user.process.csd_*`: registrations of kernels, never stored.
    Process,
    Trusted,
    Security,
    Acl(AclKind),
}

fn namespace(name: &[u8]) -> Result<Namespace> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(Error::BufferTooSmall);
    }
    if let Some(kind) = AclKind::from_name(name) {
        return Ok(Namespace::Acl(kind));
    }
    let prefixes = [
        (b"user.process.csd_".as_slice(), Namespace::Process),
        (b"user.", Namespace::User),
        (b"trusted.", Namespace::Trusted),
        (b"security.", Namespace::Security),
    ];
    for (prefix, namespace) in prefixes {
        match name.strip_prefix(prefix) {
            Some(b"") if namespace != Namespace::Process => {
                return Err(Error::Invalid("name of an extended attribute"));
            }
            Some(_) => return Ok(namespace),
            None => {}
        }
    }
    Err(Error::Unsupported("namespace of an extended attribute"))
}

/// Refuses changes that the namespace does not allow on this inode or to this caller.
fn check_change(caller: &Caller, inode: &InodeRecord, namespace: Namespace) -> Result<()> {
    let kind = inode::kind(inode);
    match namespace {
        Namespace::Process => Err(Error::Unsupported("attributes of this name are not stored")),
        Namespace::User if !matches!(kind, FileKind::Regular | FileKind::Directory) => {
            Err(Error::NotPermitted)
        }
        Namespace::Trusted if caller.uid != 0 => Err(Error::NotPermitted),
        _ => Ok(()),
    }
}

/// What an inode holds under an attribute name.
enum Slot {
    /// Offset of the first fragment, and the value.
    Used(u64, Vec<u8>),
    /// Nothing; where the first fragment would be.
    Free(u64),
    /// Nothing, and 32 other names have the same hash.
    Full,
}

fn find(records: &impl Records, ino: Ino, name: &[u8]) -> Result<Slot> {
    let first = directory::name_hash(name) >> HASH_BITS << HASH_BITS;
    let mut used = 0u64;
    let mut found: Option<(u64, u32, Vec<u8>)> = None;
    scan(
        records,
        ino,
        first,
        first | ((1 << HASH_BITS) - 1),
        &mut |key, value| {
            let slot = key.offset & !LAST_FRAGMENT;
            if key.offset == slot {
                if found.is_some() {
                    return Ok(ControlFlow::Break(()));
                }
                used |= 1 << ((slot - first) >> SLOT_BITS);
                let record = XattrRecord::decode(&key, value)?;
                if record.name == name {
                    found = Some((slot, record.value_len, record.head.to_vec()));
                }
            } else if let Some((at, _, bytes)) = &mut found
                && *at == slot
            {
                bytes.extend_from_slice(XattrRecord::decode_fragment(&key, value)?);
            }
            Ok(ControlFlow::Continue(()))
        },
    )?;
    match found {
        Some((slot, len, bytes)) if bytes.len() == len as usize => Ok(Slot::Used(slot, bytes)),
        Some(_) => Err(Error::Corrupt {
            what: "extended attribute",
            detail: format!("inode {ino}, {}", String::from_utf8_lossy(name)),
        }),
        None if u64::from(used.trailing_ones()) >= SLOTS => Ok(Slot::Full),
        None => Ok(Slot::Free(
            first + (u64::from(used.trailing_ones()) << SLOT_BITS),
        )),
    }
}

type Visit<'a> = dyn FnMut(Key, &[u8]) -> Result<ControlFlow<()>> + 'a;

fn scan(
    records: &impl Records,
    ino: Ino,
    first: u64,
    last: u64,
    visit: &mut Visit<'_>,
) -> Result<()> {
    let mut outcome = Ok(());
    records.scan(
        &Key::new(ino, Kind::Xattr, first),
        &Key::new(ino, Kind::Xattr, last),
        &mut |key, value| match visit(key, value) {
            Ok(flow) => flow,
            Err(error) => {
                outcome = Err(error);
                ControlFlow::Break(())
            }
        },
    )?;
    outcome
}

/// The value of an attribute.
pub(super) fn get(
    records: &impl Records,
    ino: Ino,
    inode: &InodeRecord,
    name: &[u8],
) -> Result<Option<Vec<u8>>> {
    if inode.xattr_list == 0 {
        return Ok(None);
    }
    Ok(match find(records, ino, name)? {
        Slot::Used(_, value) => Some(value),
        Slot::Free(_) | Slot::Full => None,
    })
}

/// Sets an attribute, whatever its namespace says. The caller saves the inode.
pub(super) fn put(
    txn: &mut Txn<'_>,
    ino: Ino,
    inode: &mut InodeRecord,
    name: &[u8],
    value: &[u8],
) -> Result<()> {
    txn.claim_space(METADATA_BLOCKS + value.len().div_ceil(BLOCK_SIZE) as u64)?;
    let slot = match find(txn, ino, name)? {
        Slot::Used(slot, _) => {
            delete_slot(txn, ino, slot)?;
            slot
        }
        Slot::Free(slot) => {
            inode.xattr_list = inode
                .xattr_list
                .checked_add(name.len() as u32 + 1)
                .filter(|bytes| *bytes <= MAX_LIST)
                .ok_or(Error::NoSpace)?;
            slot
        }
        Slot::Full => return Err(Error::NoSpace),
    };
    for (number, record) in (0..).zip(XattrRecord::encode(name, value)) {
        txn.put(Key::new(ino, Kind::Xattr, slot + number), &record)?;
    }
    Ok(())
}

/// Removes an attribute and returns whether there was one. The caller saves the inode.
pub(super) fn remove(
    txn: &mut Txn<'_>,
    ino: Ino,
    inode: &mut InodeRecord,
    name: &[u8],
) -> Result<bool> {
    if inode.xattr_list == 0 {
        return Ok(false);
    }
    let Slot::Used(slot, _) = find(txn, ino, name)? else {
        return Ok(false);
    };
    delete_slot(txn, ino, slot)?;
    inode.xattr_list = inode.xattr_list.saturating_sub(name.len() as u32 + 1);
    Ok(true)
}

fn delete_slot(txn: &mut Txn<'_>, ino: Ino, slot: u64) -> Result<()> {
    let first = Key::new(ino, Kind::Xattr, slot);
    txn.delete_range(&first, &Key::new(ino, Kind::Xattr, slot | LAST_FRAGMENT))?;
    Ok(())
}

/// Removes file capabilities. The caller saves the inode.
pub(super) fn drop_capability(txn: &mut Txn<'_>, ino: Ino, inode: &mut InodeRecord) -> Result<()> {
    remove(txn, ino, inode, CAPABILITY).map(drop)
}

impl Volume {
    /// Sets an extended attribute.
    ///
    /// # Errors
    /// `Unsupported` for the namespace, `NotPermitted`, `Exists` and `NoAttribute` by the flags,
    /// `AttributeTooLarge`, `BufferTooSmall` for the length of the name, `NoSpace` when the list
    /// of names is full, `Invalid` and `Access` for ACLs; `NotFound`; device errors.
    pub fn setxattr(
        &self,
        caller: &Caller,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        let namespace = namespace(name)?;
        if value.len() > MAX_VALUE {
            return Err(Error::AttributeTooLarge);
        }
        self.change_xattrs(caller, ino, name, namespace, |txn, inode| {
            if let Namespace::Acl(kind) = namespace {
                return acl::set(txn, ino, inode, kind, value, flags.kill_sgid);
            }
            let exists = get(txn, ino, inode, name)?.is_some();
            if flags.create && exists {
                return Err(Error::Exists);
            }
            if flags.replace && !exists {
                return Err(Error::NoAttribute);
            }
            put(txn, ino, inode, name, value)
        })
    }

    /// Changes the attribute `name`, and the time at which the inode was changed. The view first brings
    /// what the transaction needs into memory.
    fn change_xattrs(
        &self,
        caller: &Caller,
        ino: Ino,
        name: &[u8],
        namespace: Namespace,
        change: impl FnOnce(&mut Txn<'_>, &mut InodeRecord) -> Result<()>,
    ) -> Result<()> {
        {
            let view = self.store.view();
            let inode = inode::load(&view, ino)?;
            check_change(caller, &inode, namespace)?;
            get(&view, ino, &inode, name)?;
        }
        let mut txn = self.store.begin()?;
        let mut inode = inode::load(&txn, ino)?;
        change(&mut txn, &mut inode)?;
        inode.ctime = inode::to_timestamp(Time::now());
        inode::save(&mut txn, ino, &inode)?;
        self.commit(txn, &[ino])
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// `NoAttribute`, `Unsupported` for the namespace, `NotFound`; device errors.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        namespace(name)?;
        let view = self.store.view();
        let inode = inode::load(&view, ino)?;
        get(&view, ino, &inode, name)?.ok_or(Error::NoAttribute)
    }

    /// Names of the extended attributes, each ended by a NUL. Only user 0 sees `trusted.`.
    ///
    /// # Errors
    /// `NotFound`; device errors.
    pub fn listxattr(&self, caller: &Caller, ino: Ino) -> Result<Vec<u8>> {
        let view = self.store.view();
        let inode = inode::load(&view, ino)?;
        let mut names = Vec::new();
        if inode.xattr_list == 0 {
            return Ok(names);
        }
        scan(&view, ino, 0, u64::MAX, &mut |key, value| {
            if key.offset & LAST_FRAGMENT == 0 {
                let name = XattrRecord::decode(&key, value)?.name;
                if caller.uid == 0 || !name.starts_with(b"trusted.") {
                    names.extend_from_slice(name);
                    names.push(0);
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(names)
    }

    /// Removes an extended attribute. (Removing an ACL that is not there succeeds.)
    ///
    /// # Errors
    /// `NoAttribute`, `Unsupported`, `NotPermitted`, `NotFound`; device errors.
    pub fn removexattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<()> {
        let namespace = namespace(name)?;
        self.change_xattrs(caller, ino, name, namespace, |txn, inode| {
            if let Namespace::Acl(kind) = namespace {
                return acl::set(txn, ino, inode, kind, b"", false);
            }
            match remove(txn, ino, inode, name)? {
                true => Ok(()),
                false => Err(Error::NoAttribute),
            }
        })
    }
}
