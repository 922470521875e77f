//! B-tree files and blocks with Bloom filters: builders, and contents made with them.

use super::Random;
use crate::native::bloom_bits;

/// Bytes of a page or block.
const PAGE: usize = 4096;
/// Entries of a page of a B-tree file.
const FANOUT: usize = 255;
/// Keys of a block with a Bloom filter.
const KEYS: usize = 448;

/// Appends a page with these entries.
fn put_page(kind: u16, next: u64, entries: &[(u64, u64)], file: &mut Vec<u8>) {
    let end = file.len() + PAGE;
    file.extend(kind.to_le_bytes());
    file.extend((entries.len() as u16).to_le_bytes());
    file.extend([0; 4]);
    file.extend(next.to_le_bytes());
    for (key, value) in entries {
        file.extend(key.to_le_bytes());
        file.extend(value.to_le_bytes());
    }
    file.resize(end, 0);
}

/// A B-tree file of these entries, which ascend by key without duplicates, with full pages. The
/// format is in `kernels/btree_lookup.c`.
#[must_use]
pub fn btree_file(entries: &[(u64, u64)]) -> Vec<u8> {
    let mut file = vec![0; PAGE];
    let mut level: Vec<(u64, u64)> = Vec::new();
    let mut leaves = entries.chunks(FANOUT).peekable();
    if leaves.peek().is_none() {
        level.push((0, 1));
        put_page(0, 0, &[], &mut file);
    }
    while let Some(leaf) = leaves.next() {
        let number = (file.len() / PAGE) as u64;
        let next = if leaves.peek().is_some() {
            number + 1
        } else {
            0
        };
        level.push((leaf[0].0, number));
        put_page(0, next, leaf, &mut file);
    }
    let mut height = 1_u64;
    while level.len() > 1 {
        let mut above = Vec::new();
        for inner in level.chunks(FANOUT) {
            above.push((inner[0].0, (file.len() / PAGE) as u64));
            put_page(1, 0, inner, &mut file);
        }
        level = above;
        height += 1;
    }
    file[..8].copy_from_slice(b"WBTREE01");
    for (field, value) in [level[0].1, height, entries.len() as u64]
        .into_iter()
        .enumerate()
    {
        file[8 + 8 * field..16 + 8 * field].copy_from_slice(&value.to_le_bytes());
    }
    file
}

/// Blocks with Bloom filters of `hashes` bits per key, 1 to 16, over these keys, 448 to a block.
/// The format is in `kernels/bloom_probe.c`.
#[must_use]
pub fn bloom_blocks(keys: &[u64], hashes: u16) -> Vec<u8> {
    let mut file = Vec::new();
    for keys in keys.chunks(KEYS) {
        let begin = file.len();
        file.extend(b"WBLM");
        file.extend(hashes.to_le_bytes());
        file.extend((keys.len() as u16).to_le_bytes());
        file.resize(begin + 512, 0);
        for &key in keys {
            for bit in bloom_bits(key, hashes) {
                file[begin + 8 + bit / 8] |= 1 << (bit % 8);
            }
            file.extend(key.to_le_bytes());
        }
        file.resize(begin + PAGE, 0);
    }
    file
}

/// For the kernel `btree_lookup`: a tree as large as fits, and zeros behind it.
pub mod btree_lookup {
    use super::{FANOUT, PAGE, Random, btree_file};

    /// Keys are the multiples of 7, values depend on the seed. Below two pages: no tree.
    #[must_use]
    pub fn contents(seed: u64, size: usize) -> Vec<u8> {
        // Inner pages are at most a hundredth of the leaves, and one for each level.
        let pages = (size / PAGE).saturating_sub(4);
        let entries = (pages - pages / 100) * FANOUT;
        let value = |index: u64| Random::new(seed ^ index).word();
        let entries: Vec<_> = (0..entries as u64).map(|i| (i * 7, value(i))).collect();
        let mut file = btree_file(&entries);
        file.resize(size, 0);
        file
    }

    /// Keys that are there and keys that are not, and ranges.
    #[must_use]
    pub fn arguments(seed: u64) -> Vec<Vec<u64>> {
        let mut random = Random::new(seed);
        let mut keys = vec![0, 0, 7, 8, u64::MAX];
        keys.extend((0..20).map(|_| random.below(40_000) * 7));
        keys.extend((0..20).map(|_| random.below(300_000)));
        let from = random.below(100_000);
        vec![
            keys,
            vec![0],
            vec![1, from, from + 7000],
            vec![1, from, u64::MAX, 1000],
            vec![1, 0, u64::MAX],
            vec![1, 9, 8],
        ]
    }
}

/// For the kernel `bloom_probe`: full blocks.
pub mod bloom_probe {
    use super::{KEYS, PAGE, Random, bloom_blocks};

    /// Key `index` of contents made from this seed.
    fn key(seed: u64, index: u64) -> u64 {
        Random::new(seed.rotate_left(32) ^ index).word()
    }

    /// Random keys, six bits each; what makes no block at the end is zeros.
    #[must_use]
    pub fn contents(seed: u64, size: usize) -> Vec<u8> {
        let keys: Vec<_> = (0..(size / PAGE * KEYS) as u64)
            .map(|index| key(seed, index))
            .collect();
        let mut file = bloom_blocks(&keys, 6);
        file.resize(size, 0);
        file
    }

    /// Some keys of the first blocks and some that are nowhere.
    #[must_use]
    pub fn arguments(seed: u64) -> Vec<Vec<u64>> {
        let mut random = Random::new(!seed);
        let mut keys: Vec<_> = [0, 1, 447, 448, 5000].map(|index| key(seed, index)).into();
        keys.extend((0..30).map(|_| random.word()));
        let with_mode = |mode| std::iter::once(mode).chain(keys.iter().copied()).collect();
        vec![with_mode(0), with_mode(1)]
    }
}
