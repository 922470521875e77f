//! `docs/on-disk-format.md` and the code say the same.
//!
//! The document lists constants (section 10) and fingerprints of sample structures (section 11).
//! Here the constants are compared with the code and the samples built again; a change of the
//! format without a change of the document fails.

use std::collections::BTreeMap;
use std::fmt::Write;

use warren_fs::catalog::{self, Key, Kind, NodeCache, NodeSource, Page, Tree};
use warren_fs::format::checkpoint::{Checkpoint, RECORD_BLOCKS_MAX, ZoneRecord, ZoneUse};
use warren_fs::format::chunk::{
    self, CHUNK_BLOCKS, ChunkHeader, Class, Identity, Op, Payload, Span, Transaction,
};
use warren_fs::format::record::{
    self, EntryRecord, InodeRecord, MAX_FRAGMENT, MAX_INLINE, Timestamp, XattrRecord,
};
use warren_fs::format::superblock::{self, LABEL_MAX, Superblock};
use warren_fs::store::extent::{Backing, Extent, MAX_MAPPED};
use warren_fs::store::{ZONE_CAPACITY_MIN, ZONES_MIN};
use warren_fs::types::{BLOCK_SIZE, Ino, Lba, MAX_FILE_SIZE, Sequence};
use zns_backend::Geometry;

const DOCUMENT: &str = include_str!("../../docs/on-disk-format.md");
const FSID: [u8; 16] = *b"0123456789abcdef";

/// The rows of the first table behind a heading, cells trimmed, without the two lines of its head.
fn table(heading: &str) -> Vec<Vec<String>> {
    let (_, section) = DOCUMENT
        .split_once(heading)
        .expect("the document has the heading");
    section
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().to_owned()).collect()
        })
        .collect()
}

fn geometry(zones: u32) -> Geometry {
    Geometry {
        block_size: 4096,
        zones,
        zone_size: 512,
        zone_capacity: 400,
        max_open: 8,
        max_active: 10,
        max_append: 0,
    }
}

fn superblock_sample() -> Vec<u8> {
    let superblock = Superblock::new(&geometry(24), FSID, "sample", 1_000_000_000);
    superblock.expect("the label is short").to_block()
}

fn checkpoint_sample() -> Vec<u8> {
    let usages = [
        ZoneUse::Anchor,
        ZoneUse::Anchor,
        ZoneUse::Free,
        ZoneUse::Open(Class::Hot),
        ZoneUse::Open(Class::Cold),
        ZoneUse::Sealed(Class::Node),
        ZoneUse::Retired,
    ];
    let zone = |(at, usage): (usize, &ZoneUse)| ZoneRecord {
        usage: *usage,
        pointer: 300 + at as u64,
        live: if matches!(usage, ZoneUse::Anchor | ZoneUse::Free) {
            0
        } else {
            200 + at as u64
        },
        age: 100 + at as u64,
    };
    let checkpoint = Checkpoint {
        number: 1,
        next_sequence: 2,
        root_lba: 3,
        root_crc: 4,
        root_height: 5,
        next_ino: 6,
        reserved: 7,
        clean: true,
        zones: usages.iter().enumerate().map(zone).collect(),
    };
    let bytes = checkpoint.to_blocks(&FSID, 8);
    let geometry = geometry(usages.len() as u32);
    let back = Checkpoint::parse(&bytes, &FSID, &geometry);
    assert_eq!(back.expect("a record that was just made"), checkpoint);
    bytes
}

/// A chunk with every kind of payload and operation, and a body that needs a tail block.
fn chunk_sample() -> Vec<u8> {
    let (low, high) = (
        Key::new(Ino(7), Kind::Entry, 0x1122_3344_5566_7788),
        Key::new(Ino(7), Kind::Xattr, 9),
    );
    let payload = [
        Payload::Data {
            ino: Ino(7),
            first: 40,
            count: 2,
        },
        Payload::Node {
            level: 1,
            first_key: low.into(),
        },
    ];
    let transactions: Vec<Transaction> = (0..5)
        .map(|n| Transaction {
            next_ino: 70 + n,
            ops: vec![
                Op::Put {
                    key: low.into(),
                    value: vec![n as u8; 900],
                },
                Op::Delete { key: high.into() },
                Op::DeleteRange {
                    from: low.into(),
                    to: high.into(),
                },
            ],
        })
        .collect();
    let fixed_width = bincode::config::standard()
        .with_little_endian()
        .with_fixed_int_encoding();
    let encoded: Vec<u8> = transactions
        .iter()
        .flat_map(|t| bincode::serde::encode_to_vec(t, fixed_width).expect("plain data encodes"))
        .collect();
    let crcs = [11, 12, 13];
    let mut buffer = vec![0x5a; CHUNK_BLOCKS as usize * BLOCK_SIZE];
    let identity = Identity {
        sequence: Sequence(99),
        durable: Sequence(98),
        class: Class::Hot,
        span: Span {
            continues: true,
            goes_on: true,
        },
        lba: Lba(1024),
        origin: Lba(512),
    };
    let count = transactions.len() as u32;
    let blocks = chunk::seal(
        &mut buffer,
        &FSID,
        &identity,
        &payload,
        &crcs,
        (count, &encoded),
    );
    buffer.truncate(blocks as usize * BLOCK_SIZE);

    let header = chunk::parse_header(&buffer, Lba(1024), &FSID).expect("a header");
    assert_eq!((header.info.blocks, header.info.origin), (5, Lba(512)));
    let tail = &buffer[4 * BLOCK_SIZE..];
    assert_eq!(
        header.body(tail).expect("a body").transactions,
        transactions
    );
    buffer
}

struct NoDevice;

impl NodeSource for NoDevice {
    fn read_block(&self, _: Lba, _: &mut Page) -> warren_fs::Result<()> {
        unreachable!("the whole tree is in memory")
    }
}

/// The pages of a tree of two levels: the first leaf and the root. They also change with the way
/// leaves are split, which is no matter of the format.
fn node_samples() -> (Vec<u8>, Vec<u8>) {
    let cache = NodeCache::new(NoDevice, 1 << 20);
    let mut tree = Tree::empty();
    for n in 0..40u64 {
        let key = Key::new(Ino(1 + n / 4), Kind::Xattr, n);
        tree.put(&cache, key, &vec![n as u8; 10 * n as usize])
            .expect("the tree is in memory");
    }
    let mut pages: Vec<(u8, Vec<u8>)> = Vec::new();
    let written = tree.write_out(&mut |info, page| {
        pages.push((info.level, page.to_vec()));
        Ok(Lba(5000 + pages.len() as u64))
    });
    assert_eq!(written.expect("the sink takes all").height(), 2);
    let first = pages.first().expect("a leaf").1.clone();
    let (level, root) = pages.pop().expect("the root comes last");
    assert_eq!(level, 1);
    (first, root)
}

fn record_samples() -> Vec<(&'static str, Vec<u8>)> {
    let inode = InodeRecord {
        mode: 0o100_644,
        nlink: 1,
        uid: 1000,
        gid: 100,
        rdev: 0x0103,
        flags: InodeRecord::INLINE | InodeRecord::ACCESS_ACL,
        size: 70_000,
        blocks: 1 << 33,
        parent: 5,
        entries: 251,
        xattr_list: 30,
        atime: Timestamp {
            seconds: -1,
            nanoseconds: 999_999_999,
        },
        mtime: Timestamp {
            seconds: 1_700_000_000,
            nanoseconds: 1,
        },
        ..InodeRecord::default()
    };
    let entry = EntryRecord {
        ino: Ino(300),
        kind: 8,
        name: b"name",
    };
    let mut attribute = XattrRecord::encode(b"user.sample", &[3; 1500]).into_iter();
    let extent = |backing| Extent {
        start: 0,
        len: 3,
        backing,
    };
    let mapped = Backing::Mapped {
        lba: Lba(0x1234),
        crcs: vec![1, 2, 3],
    };
    vec![
        ("inode record", inode.encode()),
        ("inode count record", record::encode_inode_count(200_000)),
        ("inline record", record::encode_inline(b"contents")),
        ("mapped extent record", extent(mapped).encode()),
        ("reserved extent record", extent(Backing::Reserved).encode()),
        ("entry record", entry.encode()),
        ("attribute record", attribute.next().expect("a first one")),
        (
            "attribute fragment",
            attribute.next().expect("a second one"),
        ),
        ("orphan record", record::encode_orphan()),
    ]
}

#[test]
fn samples_have_the_documented_fingerprints() {
    let (leaf, inner) = node_samples();
    let mut samples = vec![
        ("superblock", superblock_sample()),
        ("checkpoint record", checkpoint_sample()),
        ("chunk", chunk_sample()),
        ("leaf", leaf),
        ("inner node", inner),
    ];
    samples.extend(record_samples());
    let mut expected = String::new();
    for (name, bytes) in &samples {
        let crc = crc32c::crc32c(bytes);
        writeln!(expected, "| {name} | {} | {crc:08x} |", bytes.len()).expect("memory");
    }
    let mut documented = String::new();
    for row in table("## 11. Fingerprints") {
        writeln!(documented, "| {} |", row.join(" | ")).expect("memory");
    }
    assert!(
        documented == expected,
        "the format differs from docs/on-disk-format.md, which has\n{documented}\nThe code makes\n{expected}"
    );
}

#[test]
fn constants_are_the_documented_ones() {
    let checkpoint = checkpoint_sample();
    let chunk = chunk_sample();
    let (leaf, inner) = node_samples();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let trailer = checkpoint.len() - 40;
    let body_bytes = u32::from_le_bytes(checkpoint[32..36].try_into().expect("four bytes"));
    // Three of the seven zones have a class.
    assert_eq!(
        body_bytes,
        54 + 4 * 28 + 3 * 32,
        "bytes of the checkpoint's body"
    );
    let attribute = |n| Key::new(Ino(1), Kind::Xattr, n);
    let (node_header, slot) = entries(&leaf, attribute(0), attribute(1));
    let second = Key::decode(inner[16 + 29..][..Key::SIZE].try_into().expect("a key"));
    let (_, entry) = entries(&inner, Key::MIN, second.expect("a known kind"));
    let actual: BTreeMap<&str, String> = [
        (
            "FORMAT_VERSION",
            warren_fs::format::FORMAT_VERSION.to_string(),
        ),
        ("block size", BLOCK_SIZE.to_string()),
        ("superblock bytes", size_of::<Superblock>().to_string()),
        ("superblock magic", text(&superblock::MAGIC)),
        ("label bytes", LABEL_MAX.to_string()),
        (
            "checkpoint header bytes",
            first_body_byte(&checkpoint).to_string(),
        ),
        ("checkpoint header magic", text(&checkpoint[..8])),
        (
            "checkpoint trailer bytes",
            (checkpoint.len() - trailer).to_string(),
        ),
        (
            "checkpoint trailer magic",
            text(&checkpoint[trailer..][..8]),
        ),
        ("checkpoint record blocks", RECORD_BLOCKS_MAX.to_string()),
        ("chunk header bytes", size_of::<ChunkHeader>().to_string()),
        ("chunk magic", text(&chunk[..8])),
        ("chunk blocks", CHUNK_BLOCKS.to_string()),
        ("key bytes", Key::SIZE.to_string()),
        ("node magic", text(&leaf[..4])),
        ("node header bytes", node_header.to_string()),
        ("leaf slot bytes", slot.to_string()),
        ("inner entry bytes", entry.to_string()),
        ("value bytes", catalog::MAX_VALUE.to_string()),
        ("children of an inner node", catalog::MAX_FANOUT.to_string()),
        ("levels of the tree", catalog::MAX_HEIGHT.to_string()),
        ("blocks of a mapped extent", MAX_MAPPED.to_string()),
        ("file size", MAX_FILE_SIZE.to_string()),
        ("inline contents bytes", MAX_INLINE.to_string()),
        ("fragment bytes", MAX_FRAGMENT.to_string()),
        ("zones, least", ZONES_MIN.to_string()),
        ("zone capacity, least", ZONE_CAPACITY_MIN.to_string()),
    ]
    .into();
    let rows = table("## 10. Limits and constants");
    let documented: BTreeMap<&str, String> = rows
        .iter()
        .map(|row| (row[0].as_str(), row[1].clone()))
        .collect();
    assert_eq!(documented, actual);
}

/// Where the body of the sample checkpoint begins: its first field is the number 1.
fn first_body_byte(record: &[u8]) -> usize {
    let number = [1, 0, 0, 0, 0, 0, 0, 0, 2];
    record
        .windows(number.len())
        .position(|window| window == number)
        .expect("the number stands in the record")
}

/// Where the first entry of a node begins, and how far the second is from it.
fn entries(page: &[u8], first: Key, second: Key) -> (usize, usize) {
    let at = |key: Key| {
        let key = key.encode();
        let found = page.windows(key.len()).position(|window| window == key);
        found.expect("the node has the key")
    };
    (at(first), at(second) - at(first))
}
