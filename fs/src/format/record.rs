//! Values of catalog records: inodes, directory entries, contents, attributes, the inode count.
//!
//! Every value starts with a tag byte, `kind << 4 | version`. Fixed fields follow in bincode's
//! standard configuration (little-endian, integers of variable length: most fields of most inodes
//! are small, and small records make flat trees); bytes of a name, a value or contents follow raw
//! up to the end of the record. Whatever does not decode to exactly its length is
//! [`Error::Corrupt`]; no bytes make this module panic. `docs/on-disk-format.md` describes the
//! same for a reader without the code. Extent records are in `store::extent`.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::catalog::{Key, MAX_VALUE};
use crate::error::{Error, Result};
use crate::types::{BLOCK, Ino, MAX_FILE_SIZE};

/// Bytes of contents, symlink target or attribute value that one fragment holds.
pub const MAX_FRAGMENT: usize = MAX_VALUE - 1;

/// Largest file whose contents live in the catalog: one record, four to a node.
pub const MAX_INLINE: usize = 900;

const _: () = assert!(MAX_INLINE <= MAX_FRAGMENT);

/// More entries than a directory has cookies for.
const ENTRIES_LIMIT: u64 = 1 << 63;

const TAG_INODE: u8 = 0x11;
const TAG_INODE_COUNT: u8 = 0x18;
const TAG_INLINE: u8 = 0x21;
const TAG_ENTRY: u8 = 0x41;
const TAG_XATTR: u8 = 0x51;
const TAG_XATTR_FRAGMENT: u8 = 0x58;
const TAG_ORPHAN: u8 = 0x61;

/// The encoding of fixed fields; the limit bounds what a hostile length can make it allocate.
const CONFIG: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<MAX_VALUE>,
> = bincode::config::standard().with_limit::<MAX_VALUE>();

fn corrupt(what: &'static str, key: &Key) -> Error {
    Error::Corrupt {
        what,
        detail: format!("inode {} offset {:#x}", key.ino, key.offset),
    }
}

fn encode<T: Serialize>(tag: u8, fields: &T, tail: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(96 + tail.iter().map(|part| part.len()).sum::<usize>());
    bytes.push(tag);
    bincode::serde::encode_into_std_write(fields, &mut bytes, CONFIG)
        .expect("plain fields are written to memory");
    for part in tail {
        bytes.extend_from_slice(part);
    }
    debug_assert!(bytes.len() <= MAX_VALUE, "a record fits a catalog value");
    bytes
}

/// The fixed fields behind `tag` and the bytes behind them.
fn decode<T: DeserializeOwned>(tag: u8, value: &[u8]) -> Option<(T, &[u8])> {
    let rest = untag(tag, value)?;
    let (fields, used) = bincode::serde::decode_from_slice(rest, CONFIG).ok()?;
    Some((fields, rest.get(used..)?))
}

fn untag(tag: u8, value: &[u8]) -> Option<&[u8]> {
    let (first, rest) = value.split_first()?;
    (*first == tag).then_some(rest)
}

fn tagged(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(1 + bytes.len());
    value.push(tag);
    value.extend_from_slice(bytes);
    debug_assert!(value.len() <= MAX_VALUE, "a fragment fits a catalog value");
    value
}

/// A point in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timestamp {
    /// Seconds since 1970, rounded down.
    pub seconds: i64,
    /// Nanoseconds behind them, below 10^9.
    pub nanoseconds: u32,
}

/// Attributes of an inode: `(ino, Inode, 0)`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InodeRecord {
    /// Type (S_IFMT) and permission bits.
    pub mode: u32,
    /// Names; of a directory 2 and one per subdirectory, 0 once it is removed.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device file.
    pub rdev: u32,
    /// [`InodeRecord::INLINE`] and the like.
    pub flags: u32,
    /// Bytes of contents; of a symlink the length of its target; of a directory 0.
    pub size: u64,
    /// File blocks that are mapped or reserved.
    pub blocks: u64,
    /// Of a directory: the directory it is in (its own number for the root), else 0.
    pub parent: u64,
    /// Of a directory: entries besides "." and "..", else 0.
    pub entries: u64,
    /// Bytes of the attribute list: every name and its NUL.
    pub xattr_list: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the contents.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation.
    pub crtime: Timestamp,
}

impl InodeRecord {
    /// The contents are in the record `(ino, Inline, 0)`.
    pub const INLINE: u32 = 1;
    /// There is an access ACL.
    pub const ACCESS_ACL: u32 = 2;
    /// There is a default ACL.
    pub const DEFAULT_ACL: u32 = 4;

    const FLAGS: u32 = Self::INLINE | Self::ACCESS_ACL | Self::DEFAULT_ACL;

    /// The record value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(TAG_INODE, self, &[])
    }

    /// The inode a record holds.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the value is no inode record or a field is out of its range.
    pub fn decode(key: &Key, value: &[u8]) -> Result<InodeRecord> {
        let (record, rest): (InodeRecord, _) =
            decode(TAG_INODE, value).ok_or_else(|| corrupt("inode record", key))?;
        let times = [record.atime, record.mtime, record.ctime, record.crtime];
        if !rest.is_empty()
            || !is_kind((record.mode >> 12) as u8)
            || record.mode > 0o177_777
            || record.flags & !Self::FLAGS != 0
            || record.size > MAX_FILE_SIZE
            || (record.has(Self::INLINE) && record.size > MAX_INLINE as u64)
            || record.blocks > MAX_FILE_SIZE / BLOCK
            || record.entries >= ENTRIES_LIMIT
            || times.iter().any(|time| time.nanoseconds >= 1_000_000_000)
        {
            return Err(corrupt("inode record", key));
        }
        Ok(record)
    }

    /// Whether a flag is set.
    #[must_use]
    pub fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Sets or clears a flag.
    pub fn set(&mut self, flag: u32, on: bool) {
        self.flags = if on {
            self.flags | flag
        } else {
            self.flags & !flag
        };
    }
}

/// Whether this is the number of a file type: S_IFMT without its 12 low bits, as in `d_type`.
fn is_kind(kind: u8) -> bool {
    matches!(kind, 1 | 2 | 4 | 6 | 8 | 10 | 12)
}

/// A directory entry, at `(directory, Entry, hash << 7 | collision)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRecord<'a> {
    /// Inode it names.
    pub ino: Ino,
    /// Type of that inode: S_IFMT without its 12 low bits.
    pub kind: u8,
    /// The name, 1 to 255 bytes.
    pub name: &'a [u8],
}

impl EntryRecord<'_> {
    /// The record value: tag, inode and type, name.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(TAG_ENTRY, &(self.ino, self.kind), &[self.name])
    }

    /// The entry a record holds.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the value is no entry record.
    pub fn decode<'a>(key: &Key, value: &'a [u8]) -> Result<EntryRecord<'a>> {
        let ((ino, kind), name): ((Ino, u8), _) =
            decode(TAG_ENTRY, value).ok_or_else(|| corrupt("entry record", key))?;
        if ino.0 == 0 || !is_kind(kind) || name.is_empty() || name.len() > 255 {
            return Err(corrupt("entry record", key));
        }
        Ok(EntryRecord { ino, kind, name })
    }
}

/// The first fragment of an attribute, at `(ino, Xattr, hash << 12 | collision << 7)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XattrRecord<'a> {
    /// Full name with its namespace, 1 to 255 bytes.
    pub name: &'a [u8],
    /// Length of the whole value.
    pub value_len: u32,
    /// The value, as much of it as the record holds.
    pub head: &'a [u8],
}

impl XattrRecord<'_> {
    /// The record values of an attribute: the first fragment and those with the rest of the value.
    #[must_use]
    pub fn encode(name: &[u8], value: &[u8]) -> Vec<Vec<u8>> {
        let fields = (name.len() as u8, value.len() as u32);
        let mut first = encode(TAG_XATTR, &fields, &[name]);
        let (head, rest) = value.split_at(value.len().min(MAX_VALUE - first.len()));
        first.extend_from_slice(head);
        let mut records = vec![first];
        records.extend(
            rest.chunks(MAX_FRAGMENT)
                .map(|part| tagged(TAG_XATTR_FRAGMENT, part)),
        );
        records
    }

    /// What a first fragment holds.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the value is none.
    pub fn decode<'a>(key: &Key, value: &'a [u8]) -> Result<XattrRecord<'a>> {
        let error = || corrupt("attribute record", key);
        let ((name_len, value_len), rest): ((u8, u32), _) =
            decode(TAG_XATTR, value).ok_or_else(error)?;
        let (name, head) = rest
            .split_at_checked(usize::from(name_len))
            .ok_or_else(error)?;
        if name.is_empty() || head.len() as u64 > u64::from(value_len) {
            return Err(error());
        }
        Ok(XattrRecord {
            name,
            value_len,
            head,
        })
    }

    /// The bytes of a later fragment.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the value is none.
    pub fn decode_fragment<'a>(key: &Key, value: &'a [u8]) -> Result<&'a [u8]> {
        untag(TAG_XATTR_FRAGMENT, value).ok_or_else(|| corrupt("attribute fragment", key))
    }
}

/// The record value of contents or of a fragment of a symlink target, at `(ino, Inline, n)`.
#[must_use]
pub fn encode_inline(bytes: &[u8]) -> Vec<u8> {
    tagged(TAG_INLINE, bytes)
}

/// The bytes of an inline record.
///
/// # Errors
/// [`Error::Corrupt`] if the value is none.
pub fn decode_inline<'a>(key: &Key, value: &'a [u8]) -> Result<&'a [u8]> {
    untag(TAG_INLINE, value).ok_or_else(|| corrupt("inline record", key))
}

/// The record value of an orphan marker, at `(0, Orphan, ino)`.
#[must_use]
pub fn encode_orphan() -> Vec<u8> {
    vec![TAG_ORPHAN]
}

/// The record value of the number of inodes, at `(0, Inode, 0)`.
#[must_use]
pub fn encode_inode_count(count: u64) -> Vec<u8> {
    encode(TAG_INODE_COUNT, &count, &[])
}

/// The number of inodes.
///
/// # Errors
/// [`Error::Corrupt`] if the value is none.
pub fn decode_inode_count(key: &Key, value: &[u8]) -> Result<u64> {
    match decode(TAG_INODE_COUNT, value) {
        Some((count, [])) => Ok(count),
        _ => Err(corrupt("inode count", key)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::catalog::Kind;

    const KEY: Key = Key::new(Ino(7), Kind::Inode, 9);

    fn inode() -> InodeRecord {
        InodeRecord {
            mode: 0o100_644,
            nlink: u32::MAX,
            size: MAX_FILE_SIZE,
            blocks: MAX_FILE_SIZE / BLOCK,
            parent: u64::MAX,
            entries: ENTRIES_LIMIT - 1,
            atime: Timestamp {
                seconds: i64::MIN,
                nanoseconds: 999_999_999,
            },
            flags: InodeRecord::ACCESS_ACL,
            ..InodeRecord::default()
        }
    }

    #[test]
    fn inode_record_comes_back_as_it_was() {
        let bytes = inode().encode();
        assert!(bytes.len() <= 128, "{} bytes", bytes.len());
        assert_eq!(InodeRecord::decode(&KEY, &bytes).unwrap(), inode());
    }

    #[test]
    fn encoding_of_an_inode_is_the_documented_one() {
        let record = InodeRecord {
            mode: 0o040_755,
            nlink: 2,
            parent: 1,
            ctime: Timestamp {
                seconds: -1,
                nanoseconds: 300,
            },
            ..InodeRecord::default()
        };
        let expected = [
            0x11, 251, 0xed, 0x41, 2, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 251, 44, 1, 0, 0,
        ];
        assert_eq!(record.encode(), expected);
    }

    #[test]
    fn records_with_bytes_too_many_or_too_few_are_corrupt() {
        let mut bytes = inode().encode();
        bytes.push(0);
        assert!(InodeRecord::decode(&KEY, &bytes).is_err());
        for len in 0..bytes.len() - 1 {
            assert!(InodeRecord::decode(&KEY, &bytes[..len]).is_err());
        }
    }

    #[test]
    fn counts_beyond_what_there_can_be_are_corrupt() {
        let (mut blocks, mut entries) = (inode(), inode());
        blocks.blocks += 1;
        entries.entries += 1;
        for record in [blocks, entries] {
            assert!(InodeRecord::decode(&KEY, &record.encode()).is_err());
        }
    }

    #[test]
    fn an_inode_with_more_contents_than_fit_its_inline_record_is_corrupt() {
        let mut inode = inode();
        inode.set(InodeRecord::INLINE, true);
        inode.size = MAX_INLINE as u64;
        assert!(InodeRecord::decode(&KEY, &inode.encode()).is_ok());
        inode.size += 1;
        assert!(InodeRecord::decode(&KEY, &inode.encode()).is_err());
    }

    #[test]
    fn longest_entry_fits_a_value() {
        let entry = EntryRecord {
            ino: Ino(u64::MAX),
            kind: 8,
            name: &[b'x'; 255],
        };
        let bytes = entry.encode();
        assert!(bytes.len() <= MAX_VALUE);
        assert_eq!(EntryRecord::decode(&KEY, &bytes).unwrap(), entry);
    }

    #[test]
    fn longest_attribute_takes_fewer_than_128_fragments() {
        let value = vec![3; 65536];
        let records = XattrRecord::encode(&[b'n'; 255], &value);
        assert!(records.len() < 128);
        assert!(records.iter().all(|record| record.len() <= MAX_VALUE));
        let mut back = XattrRecord::decode(&KEY, &records[0])
            .unwrap()
            .head
            .to_vec();
        for record in &records[1..] {
            back.extend_from_slice(XattrRecord::decode_fragment(&KEY, record).unwrap());
        }
        assert_eq!(back, value);
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_refused_without_a_panic(
            tag in prop::sample::select(vec![0x11u8, 0x18, 0x21, 0x41, 0x51, 0x58, 0x61]),
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            bytes.insert(0, tag);
            let _ = InodeRecord::decode(&KEY, &bytes);
            let _ = EntryRecord::decode(&KEY, &bytes);
            let _ = XattrRecord::decode(&KEY, &bytes);
            let _ = XattrRecord::decode_fragment(&KEY, &bytes);
            let _ = decode_inline(&KEY, &bytes);
            let _ = decode_inode_count(&KEY, &bytes);
        }
    }
}
