//! Kernels over files with a structure: B-tree pages and blocks with Bloom filters.

use super::{EINVAL, word, words};
use crate::{Input, Outcome};

/// Bytes of a page or block.
const PAGE: usize = 4096;

/// Entries of a page of a B-tree file, as `kernels/btree_lookup.c` documents it.
struct Page {
    next: u64,
    entries: Vec<(u64, u64)>,
}

/// A B-tree file.
struct Tree<'a> {
    file: &'a [u8],
    root: u64,
    height: u64,
}

impl<'a> Tree<'a> {
    fn open(file: &'a [u8]) -> Result<Self, i64> {
        if file.len() < PAGE || !file.starts_with(b"WBTREE01") {
            return Err(EINVAL);
        }
        let (root, height) = (word(file, 8), word(file, 16));
        if !(1..=16).contains(&height) {
            return Err(EINVAL);
        }
        Ok(Self { file, root, height })
    }

    fn page(&self, number: u64, kind: u8) -> Result<Page, i64> {
        let pages = (self.file.len() / PAGE) as u64;
        if number == 0 || number >= pages {
            return Err(EINVAL);
        }
        let page = &self.file[number as usize * PAGE..][..PAGE];
        let count = usize::from(u16::from_le_bytes([page[2], page[3]]));
        if page[..2] != [kind, 0] || count > 255 {
            return Err(EINVAL);
        }
        let entries = (0..count).map(|i| (word(page, 16 + 16 * i), word(page, 24 + 16 * i)));
        Ok(Page {
            next: word(page, 8),
            entries: entries.collect(),
        })
    }

    fn leaf(&self, key: u64) -> Result<Page, i64> {
        let mut number = self.root;
        for _ in 1..self.height {
            let page = self.page(number, 1)?;
            let below = page.entries.iter().rev().find(|entry| entry.0 <= key);
            number = below.or(page.entries.first()).ok_or(EINVAL)?.1;
        }
        self.page(number, 0)
    }

    fn range(&self, least: u64, largest: u64, limit: u64) -> Outcome {
        let mut found = Vec::new();
        let mut leaf = self.leaf(least)?;
        loop {
            for &(key, value) in leaf.entries.iter().filter(|entry| entry.0 >= least) {
                if key > largest || found.len() as u64 == limit {
                    break;
                }
                found.push((key, value));
            }
            let past = leaf.entries.last().is_some_and(|entry| entry.0 > largest);
            if past || leaf.next == 0 || found.len() as u64 == limit {
                return Ok(words(
                    found.into_iter().flat_map(|(key, value)| [key, value]),
                ));
            }
            leaf = self.page(leaf.next, 0)?;
        }
    }
}

/// Looks keys up, or lists a range of them. Expects that leaves are not chained in a circle.
///
/// # Errors
/// For a file that is no tree, or arguments that make no sense.
pub fn btree_lookup(input: &Input<'_>) -> Outcome {
    let mode = input.argument_or(0, 2);
    if mode > 1 {
        return Err(EINVAL);
    }
    let tree = Tree::open(input.snapshot)?;
    let arguments = &input.arguments[1..];
    if mode == 1 {
        let &[least, largest, ref rest @ ..] = arguments else {
            return Err(EINVAL);
        };
        let limit = rest.first().copied().filter(|&limit| limit > 0);
        if least > largest {
            return Ok(Vec::new());
        }
        return tree.range(least, largest, limit.unwrap_or(u64::MAX));
    }
    let mut out = Vec::new();
    for &key in arguments {
        let leaf = tree.leaf(key)?;
        let found = leaf.entries.iter().find(|entry| entry.0 == key);
        out.extend(words(found.map_or([0, 0], |&(_, value)| [1, value])));
    }
    Ok(out)
}

/// The filter's bits of a key, as `kernels/bloom_probe.c` documents them.
pub fn bloom_bits(key: u64, hashes: u16) -> impl Iterator<Item = usize> {
    let product = (key ^ (key >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = product ^ (product >> 29);
    let (first, step) = (mixed as u32, (mixed >> 32) as u32 | 1);
    (0..u32::from(hashes)).map(move |index| {
        let hash = first.wrapping_add(step.wrapping_mul(index));
        ((u64::from(hash) * 4032) >> 32) as usize
    })
}

/// Which blocks may hold, or hold, which keys.
///
/// # Errors
/// For a block that is none, or arguments that make no sense.
pub fn bloom_probe(input: &Input<'_>) -> Outcome {
    let (&mode, keys) = input.arguments.split_first().ok_or(EINVAL)?;
    if mode > 1 || !(1..=64).contains(&keys.len()) {
        return Err(EINVAL);
    }
    let mut out = Vec::new();
    for (number, block) in input.snapshot.chunks_exact(PAGE).enumerate() {
        let begin = (number * PAGE) as u64;
        if begin < input.offset || begin >= input.end() {
            continue;
        }
        let hashes = u16::from_le_bytes([block[4], block[5]]);
        let count = usize::from(u16::from_le_bytes([block[6], block[7]]));
        if !block.starts_with(b"WBLM") || !(1..=16).contains(&hashes) || count > 448 {
            return Err(EINVAL);
        }
        for (index, &key) in keys.iter().enumerate() {
            let mut bits = bloom_bits(key, hashes);
            let filter = &block[8..512];
            let mut found = bits.all(|bit| filter[bit / 8] >> (bit % 8) & 1 == 1);
            if mode == 1 {
                found &= (0..count).any(|at| word(block, 512 + at * 8) == key);
            }
            if found {
                out.extend(words([index as u64, number as u64]));
            }
        }
    }
    Ok(out)
}
