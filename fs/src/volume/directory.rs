//! Directories: entry records and the order in which they are listed.
//!
//! An entry lives at `(directory, Entry, cookie)` with `cookie = hash << 7 | collision`: a 56-bit
//! hash of the name and the number of the entry among up to 128 of the same hash. The cookie of an
//! entry never changes while it exists, and entries are listed in the order of cookies; so
//! whatever comes and goes during a listing, an entry that stays is visited exactly once. Finding
//! a name is one range scan, whatever the size of the directory. Cookies are positive as `i64`;
//! 0 is the start, 1 is behind ".", 2 behind "..".
//!
//! The hash is SipHash-1-3 with a fixed key. 129 names with the same 56 bits would be needed to
//! make one more impossible; nobody can compute so many.

use std::ops::ControlFlow;

use siphasher::sip::SipHasher13;

use super::types::{DirEntry, FileKind};
use super::{Volume, inode};
use crate::catalog::{Key, Kind};
use crate::error::{Error, Result};
use crate::format::record::EntryRecord;
use crate::store::{Records, Txn};
use crate::types::Ino;

/// Longest name in bytes.
const MAX_NAME: usize = 255;

const COLLISION_BITS: u32 = 7;
const DOT_COOKIE: u64 = 1;
const DOT_DOT_COOKIE: u64 = 2;
const LAST_COOKIE: u64 = i64::MAX as u64;

/// 64 well-mixed bits of a name, the same on every machine and in every version.
pub(super) fn name_hash(name: &[u8]) -> u64 {
    SipHasher13::new_with_keys(0x5761_7272_656e_4653, 0x6e61_6d65_6861_7368).hash(name)
}

fn first_cookie(name: &[u8]) -> u64 {
    // Hash 0 would collide with the cookies of "." and "..".
    (name_hash(name) >> 8).max(1) << COLLISION_BITS
}

/// An entry that was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// Where its record is.
    pub(super) cookie: u64,
    /// Inode it names.
    pub(super) ino: Ino,
    /// Type of that inode.
    pub(super) kind: FileKind,
}

/// What a directory holds under a name.
#[derive(Clone, Copy, Debug)]
pub(super) enum Slot {
    /// The entry.
    Used(Entry),
    /// Nothing; an entry would get this cookie.
    Free(u64),
    /// Nothing, and 128 other names have the same hash.
    Full,
}

/// Refuses what cannot name an entry.
pub(super) fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > MAX_NAME {
        return Err(Error::NameTooLong);
    }
    if matches!(name, b"" | b"." | b"..") || name.iter().any(|&byte| byte == b'/' || byte == 0) {
        return Err(Error::Invalid("name of a directory entry"));
    }
    Ok(())
}

/// Looks for `name` in `directory`.
pub(super) fn find(records: &impl Records, directory: Ino, name: &[u8]) -> Result<Slot> {
    let first = first_cookie(name);
    let last = first | ((1 << COLLISION_BITS) - 1);
    let mut used = 0u128;
    let mut found = None;
    scan(records, directory, first, last, &mut |cookie, entry| {
        if entry.name == name {
            found = Some(Entry {
                cookie,
                ino: entry.ino,
                kind: kind_of(entry),
            });
            return ControlFlow::Break(());
        }
        used |= 1 << (cookie - first);
        ControlFlow::Continue(())
    })?;
    Ok(match found {
        Some(entry) => Slot::Used(entry),
        None if used == u128::MAX => Slot::Full,
        None => Slot::Free(first + u64::from(used.trailing_ones())),
    })
}

/// The entry `name` of `directory`, which must be there.
pub(super) fn find_entry(records: &impl Records, directory: Ino, name: &[u8]) -> Result<Entry> {
    match find(records, directory, name)? {
        Slot::Used(entry) => Ok(entry),
        Slot::Free(_) | Slot::Full => Err(Error::NotFound),
    }
}

/// The cookie for a new entry `name`, which must not be there.
pub(super) fn find_vacancy(records: &impl Records, directory: Ino, name: &[u8]) -> Result<u64> {
    match find(records, directory, name)? {
        Slot::Used(_) => Err(Error::Exists),
        Slot::Free(cookie) => Ok(cookie),
        Slot::Full => Err(Error::NoSpace),
    }
}

/// Puts an entry at its cookie.
pub(super) fn put(
    txn: &mut Txn<'_>,
    directory: Ino,
    cookie: u64,
    name: &[u8],
    ino: Ino,
    kind: FileKind,
) -> Result<()> {
    let record = EntryRecord {
        ino,
        kind: inode::kind_number(kind),
        name,
    };
    txn.put(Key::new(directory, Kind::Entry, cookie), &record.encode())
}

/// Removes the entry at a cookie.
pub(super) fn remove(txn: &mut Txn<'_>, directory: Ino, cookie: u64) -> Result<()> {
    txn.delete(&Key::new(directory, Kind::Entry, cookie))
}

fn kind_of(entry: &EntryRecord<'_>) -> FileKind {
    // Decoding has refused every other number.
    inode::kind_from_number(entry.kind).unwrap_or(FileKind::Regular)
}

fn scan(
    records: &impl Records,
    directory: Ino,
    first: u64,
    last: u64,
    visit: &mut dyn FnMut(u64, &EntryRecord<'_>) -> ControlFlow<()>,
) -> Result<()> {
    let mut outcome = Ok(());
    records.scan(
        &Key::new(directory, Kind::Entry, first),
        &Key::new(directory, Kind::Entry, last),
        &mut |key, value| match EntryRecord::decode(&key, value) {
            Ok(entry) => visit(key.offset, &entry),
            Err(error) => {
                outcome = Err(error);
                ControlFlow::Break(())
            }
        },
    )?;
    outcome
}

impl Volume {
    /// Visits the entries of a directory after `cookie` (0: from the start, "." and ".." included)
    /// until `visit` breaks. Each entry carries the cookie to go on behind it. Entries that stay
    /// are visited exactly once whatever is created and removed meanwhile.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, device errors.
    pub fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        visit: &mut dyn FnMut(&DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let view = self.store.view();
        let directory = inode::load_directory(&view, ino)?;
        let dots = [
            (DOT_COOKIE, ino, b".".as_slice()),
            (DOT_DOT_COOKIE, Ino(directory.parent), b".."),
        ];
        for (at, ino, name) in dots {
            let entry = DirEntry {
                ino,
                kind: FileKind::Directory,
                name,
                cookie: at,
            };
            if cookie < at && visit(&entry).is_break() {
                return Ok(());
            }
        }
        if cookie >= LAST_COOKIE {
            return Ok(());
        }
        let first = (cookie + 1).max(1 << COLLISION_BITS);
        scan(&view, ino, first, LAST_COOKIE, &mut |cookie, entry| {
            visit(&DirEntry {
                ino: entry.ino,
                kind: kind_of(entry),
                name: entry.name,
                cookie,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use zns_backend::{Geometry, MemDevice, ZonedDevice};

    use super::*;
    use crate::store::{FormatOptions, Store, StoreOptions};

    const DIRECTORY: Ino = Ino(9);

    fn store() -> Arc<Store> {
        let geometry = Geometry {
            block_size: 4096,
            zones: 16,
            zone_size: 512,
            zone_capacity: 512,
            max_open: 0,
            max_active: 0,
            max_append: 0,
        };
        let device: Arc<dyn ZonedDevice> = Arc::new(MemDevice::new(geometry).unwrap());
        Store::format(&device, &FormatOptions::default()).unwrap();
        let options = StoreOptions {
            background: false,
            ..StoreOptions::default()
        };
        Store::open(device, &options).unwrap()
    }

    fn put_stranger(txn: &mut Txn<'_>, cookie: u64) {
        let name = format!("stranger {cookie}");
        let kind = FileKind::Regular;
        put(txn, DIRECTORY, cookie, name.as_bytes(), Ino(2), kind).unwrap();
    }

    #[test]
    fn names_of_the_same_hash_live_side_by_side_in_the_first_free_slots() {
        let store = store();
        let mut txn = store.begin().unwrap();
        let first = first_cookie(b"name");
        for cookie in [first, first + 1, first + 3] {
            put_stranger(&mut txn, cookie);
        }
        assert_eq!(find_vacancy(&txn, DIRECTORY, b"name").unwrap(), first + 2);
        put(
            &mut txn,
            DIRECTORY,
            first + 2,
            b"name",
            Ino(5),
            FileKind::Fifo,
        )
        .unwrap();
        let found = find_entry(&txn, DIRECTORY, b"name").unwrap();
        assert_eq!((found.cookie, found.ino), (first + 2, Ino(5)));
        remove(&mut txn, DIRECTORY, first).unwrap();
        assert_eq!(find_entry(&txn, DIRECTORY, b"name").unwrap().ino, Ino(5));
    }

    #[test]
    fn directory_with_128_names_of_one_hash_still_finds_and_misses() {
        let store = store();
        let mut txn = store.begin().unwrap();
        let first = first_cookie(b"name");
        for collision in 0..128 {
            put_stranger(&mut txn, first + collision);
        }
        let missing = find_entry(&txn, DIRECTORY, b"name");
        assert!(matches!(missing, Err(Error::NotFound)));
        let full = find_vacancy(&txn, DIRECTORY, b"name");
        assert!(matches!(full, Err(Error::NoSpace)));
    }

    #[test]
    fn hash_is_the_documented_one() {
        assert_eq!(name_hash(b"name"), 10_752_689_175_477_153_581);
        assert!(first_cookie(b"name") > DOT_DOT_COOKIE);
        assert!(first_cookie(b"name") + 127 <= LAST_COOKIE);
    }
}
