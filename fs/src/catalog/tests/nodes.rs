//! Leaves and inner nodes by themselves.

use super::super::inner::Inner;
use super::super::leaf::Leaf;
use super::super::node::{Child, Node, Page};
use super::super::{Key, Kind, MAX_FANOUT, NodeRef};
use super::key;
use crate::types::{Ino, Lba};

fn filled(count: u64, len: usize) -> Leaf {
    let mut leaf = Leaf::new();
    for number in 0..count {
        assert!(leaf.put(
            leaf.search(&key(number)),
            &key(number),
            &vec![number as u8; len]
        ));
    }
    leaf
}

fn decode(page: &Page, change: impl FnOnce(&mut Page)) -> Result<Node, String> {
    let mut page = Box::new(*page);
    change(&mut page);
    Node::decode(page)
}

#[test]
fn keys_order_by_inode_then_kind_then_offset_and_survive_encoding() {
    let ordered = [
        Key::MIN,
        Key::new(Ino(1), Kind::Inode, u64::MAX),
        Key::new(Ino(1), Kind::Extent, 0),
        Key::new(Ino(1), Kind::Extent, 256),
        Key::new(Ino(1), Kind::Orphan, 1),
        Key::new(Ino(256), Kind::Inode, 0),
        Key::MAX,
    ];
    assert!(ordered.is_sorted_by(|left, right| left < right));
    for key in ordered {
        assert_eq!(Key::decode(&key.encode()), Some(key));
    }
    assert_eq!(Key::decode(&[0; 17]), None, "no kind is 0");
}

#[test]
fn room_is_found_again_however_it_was_freed() {
    let mut leaf = filled(0, 0);
    for round in 0..2000_u64 {
        let number = round * 7 % 30;
        let at = leaf.search(&key(number));
        let value = vec![round as u8; (round * 31 % 100) as usize];
        assert!(
            leaf.put(at, &key(number), &value),
            "30 values of at most 99 bytes fit"
        );
        assert_eq!(leaf.value(leaf.search(&key(number)).unwrap()), value);
        leaf.validate().unwrap();
        if round % 5 == 0 {
            let at = (round % leaf.len() as u64) as usize;
            leaf.remove(at, at + 1);
            leaf.validate().unwrap();
        }
    }
    leaf.remove(0, leaf.len());
    assert_eq!(leaf.used(), 0);
    leaf.validate().unwrap();
}

#[test]
fn a_leaf_holds_what_the_format_says() {
    assert_eq!(filled(4, 960).len(), 4);
    let mut full = filled(194, 0);
    assert!(
        !full.put(full.search(&key(194)), &key(194), &[]),
        "194 empty records fill a page"
    );
    assert_eq!(full.used(), 4074);
}

#[test]
fn a_leaf_page_is_validated_field_by_field() {
    let leaf = filled(20, 50);
    let page = leaf.page();
    let refused = |name: &str, change: &dyn Fn(&mut Page)| {
        assert!(decode(page, |page| change(page)).is_err(), "{name}");
    };
    assert!(decode(page, |_| {}).is_ok());
    refused("magic", &|page| page[0] ^= 1);
    refused("version", &|page| page[4] = 2);
    refused("level", &|page| page[5] = 12);
    refused("count", &|page| page[6] = 21);
    refused("count beyond the page", &|page| page[7] = 0xff);
    refused("heap", &|page| page[8] ^= 1);
    refused("gaps", &|page| page[10] ^= 1);
    refused("kind", &|page| page[16 + 8] = 7);
    refused("order", &|page| page[16 + 9] = 1);
    refused("offset", &|page| page[16 + 18] = 0xff);
    refused("overlap", &|page| {
        page.copy_within(16 + 17..16 + 19, 37 + 17)
    });
    refused("length", &|page| page[16 + 20] = 4);
}

#[test]
fn an_inner_page_is_validated_field_by_field() {
    let child = |number| {
        Child::Clean(NodeRef {
            lba: Lba(number),
            crc: number as u32,
        })
    };
    let mut inner = Inner::new(1, key(0), child(0), key(1), child(1));
    (2..50).for_each(|at| {
        assert!(
            inner
                .insert_after(at as usize - 1, key(at), child(at))
                .is_none()
        )
    });
    let references: Vec<NodeRef> = (0..50)
        .map(|at| NodeRef {
            lba: Lba(at),
            crc: at as u32,
        })
        .collect();
    let page = inner.encode(&key(0), &references);
    let refused = |name: &str, change: &dyn Fn(&mut Page)| {
        assert!(decode(&page, |page| change(page)).is_err(), "{name}");
    };
    let Ok(Node::Inner(back)) = decode(&page, |_| {}) else {
        panic!("a good page")
    };
    assert_eq!((back.level(), back.len()), (1, 50));
    for (at, wanted) in references.iter().enumerate() {
        assert_eq!(back.key(at), &key(at as u64));
        assert!(matches!(back.child(at), Child::Clean(reference) if reference == wanted));
    }
    refused("level", &|page| page[5] = 12);
    refused("no children", &|page| page[6] = 0);
    refused("too many children", &|page| page[6] = MAX_FANOUT as u8 + 1);
    refused("kind", &|page| page[16 + 8] = 0);
    refused("order", &|page| page[16 + 9] = 1);
}

/// The examples of `docs/on-disk-format.md`: when this fails, the document and the version are due.
#[test]
fn pages_have_the_bytes_that_are_documented() {
    let mut leaf = Leaf::new();
    let key = Key::new(Ino(0x0102), Kind::Entry, 0x0304);
    assert!(leaf.put(leaf.search(&key), &key, b"warren"));
    let page = leaf.page();
    assert_eq!(
        page[..16],
        *b"WCat\x01\x00\x01\x00\xfa\x0f\x00\x00\x00\x00\x00\x00"
    );
    assert_eq!(
        page[16..33],
        *b"\x02\x01\0\0\0\0\0\0\x04\x04\x03\0\0\0\0\0\0"
    );
    assert_eq!(page[33..37], *b"\xfa\x0f\x06\x00");
    assert_eq!(page[4090..], *b"warren");

    let child = Child::Clean(NodeRef {
        lba: Lba(0),
        crc: 0,
    });
    let inner = Inner::new(3, Key::MIN, child.clone(), key, child);
    let reference = |lba, crc| NodeRef { lba: Lba(lba), crc };
    let page = inner.encode(
        &Key::MIN,
        &[reference(0x11, 0x22), reference(0x3344, 0x5566_7788)],
    );
    assert_eq!(page[..16], *b"WCat\x01\x03\x02\x00\0\0\0\0\0\0\0\0");
    assert_eq!(page[16..33], Key::MIN.encode());
    assert_eq!(page[33..45], *b"\x11\0\0\0\0\0\0\0\x22\0\0\0");
    assert_eq!(page[45..62], key.encode());
    assert_eq!(page[62..74], *b"\x44\x33\0\0\0\0\0\0\x88\x77\x66\x55");
    assert!(page[74..].iter().all(|byte| *byte == 0));
}
