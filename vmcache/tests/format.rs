//! The bytes are what `docs/vmcache.md` says: a reader written from the document, with none of the
//! crate's code, finds every key and value in a closed file. Whoever changes the format changes this,
//! the document and the version.

use std::collections::BTreeMap;
use std::path::Path;
use vmcache::{IndexFile, IndexOptions};

const DOCUMENT: &str = include_str!("../../docs/vmcache.md");

/// A file, read by the document.
struct Reader(Vec<u8>);

impl Reader {
    fn page(&self, number: u64) -> &[u8] {
        let page = &self.0[number as usize * 4096..][..4096];
        assert_eq!(crc32c::crc32c(&page[4..]), u32_at(page, 0), "page {number}");
        assert_eq!(u64_at(page, 8), number);
        page
    }

    /// The trees of the meta page.
    fn trees(&self) -> Vec<(String, u64)> {
        let meta = self.page(0);
        assert_eq!(
            (meta[4], &meta[16..24], u32_at(meta, 24), u32_at(meta, 28)),
            (1, &b"vmcache\0"[..], 1, 4096)
        );
        assert!(u64_at(meta, 48) * 4096 <= self.0.len() as u64);
        let tree = |at: usize| {
            let name = &meta[at + 1..at + 1 + usize::from(meta[at])];
            (
                String::from_utf8(name.to_vec()).unwrap(),
                u64_at(meta, at + 48),
            )
        };
        (0..u32_at(meta, 56) as usize)
            .map(|index| tree(64 + 64 * index))
            .collect()
    }

    /// The bit of a page in its group's bitmap.
    fn is_used(&self, number: u64) -> bool {
        let bitmap = self.page(number / 32640 * 32640 + 1);
        assert_eq!(bitmap[4], 2);
        let bit = number as usize % 32640;
        bitmap[16 + bit / 8] >> (bit % 8) & 1 == 1
    }

    fn node(&self, number: u64, out: &mut BTreeMap<Vec<u8>, Vec<u8>>) {
        assert!(self.is_used(number));
        let page = self.page(number);
        assert_eq!(page[4], 3);
        let lower = usize::from(u16_at(page, 24));
        let prefix = &page[lower..lower + usize::from(u16_at(page, 22))];
        let count = usize::from(u16_at(page, 16));
        let slots = 40 + (4 * count).next_multiple_of(8);
        for index in 0..count {
            let slot = slots + 8 * index;
            let at = usize::from(u16_at(page, slot));
            let rest = &page[at..at + usize::from(u16_at(page, slot + 2))];
            let value = &page[at + rest.len()..][..usize::from(u16_at(page, slot + 4))];
            let mut head = [0; 4];
            let len = rest.len().min(4);
            head[..len].copy_from_slice(&rest[..len]);
            assert_eq!(u32_at(page, 40 + 4 * index), u32::from_be_bytes(head));
            match (page[5], u16_at(page, slot + 6)) {
                (0, 0) => _ = out.insert([prefix, rest].concat(), value.to_vec()),
                (0, 1) => _ = out.insert([prefix, rest].concat(), self.long(value)),
                _ => self.node(u64_at(value, 0), out),
            }
        }
        if page[5] > 0 {
            self.node(u64_at(page, 32), out);
        }
    }

    fn long(&self, reference: &[u8]) -> Vec<u8> {
        let mut value = Vec::new();
        let mut next = u64_at(reference, 0);
        while next != 0 {
            assert!(self.is_used(next));
            let page = self.page(next);
            assert_eq!((page[4], u64_at(page, 24)), (4, u64_at(reference, 12)));
            value.extend_from_slice(&page[40..40 + usize::from(u16_at(page, 32))]);
            next = u64_at(page, 16);
        }
        assert_eq!(value.len(), u32_at(reference, 8) as usize);
        value
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn entries(tree: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let entry = |number: usize| {
        let key = format!("{}/{number:05}", "directory/".repeat(tree)).into_bytes();
        (
            key,
            vec![
                number as u8;
                if number.is_multiple_of(300) {
                    10_000
                } else {
                    number % 90
                }
            ],
        )
    };
    (0..2500).map(entry).collect()
}

fn write(path: &Path) {
    let index = IndexFile::open(path, IndexOptions::default()).unwrap();
    for number in 0..3 {
        let tree = index.tree(&format!("tree {number}")).unwrap();
        for (key, value) in entries(number) {
            tree.set(&key, &value).unwrap();
        }
    }
    index.close().unwrap();
}

#[test]
fn a_reader_written_from_the_document_finds_everything() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    write(&path);
    let reader = Reader(std::fs::read(&path).unwrap());
    let trees = reader.trees();
    assert_eq!(trees.len(), 3);
    for (number, (name, root)) in trees.into_iter().enumerate() {
        assert_eq!(name, format!("tree {number}"));
        let mut found = BTreeMap::new();
        reader.node(root, &mut found);
        assert!(found == entries(number), "{name}");
    }
    for said in [
        "24  4  version 1",
        "40  4  heads",
        "page 32640 g + 1",
        "first page 8, length 4, stamp 8",
    ] {
        assert!(
            DOCUMENT.contains(said),
            "the document no longer says {said:?}"
        );
    }
}
