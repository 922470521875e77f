//! Contents and arguments to try each kernel with: a function of seed and size, nothing else.
//!
//! One module per kernel, each with `contents` (exactly `size` bytes) and `arguments` (lists of
//! arguments that the kernel accepts and that find something in such contents). Sizes that are no
//! whole number of records end in a part of one.

mod structures;
mod text;

pub use structures::{bloom_blocks, bloom_probe, btree_file, btree_lookup};
pub use text::{compress, csv, decompress, grep, line_index};

/// Words that look random ("SplitMix64", Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same words.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next word.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.word() % limit
    }
}

/// Bytes from `next` until there are `size`.
pub(crate) fn filled(size: usize, mut next: impl FnMut(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + 64);
    while bytes.len() < size {
        next(&mut bytes);
    }
    bytes.truncate(size);
    bytes
}

/// Random bytes.
#[must_use]
pub fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    filled(size, |bytes| bytes.extend(random.word().to_le_bytes()))
}

/// Random bytes with runs of one byte among them, zeros most often.
#[must_use]
pub fn noise_and_runs(seed: u64, size: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    filled(size, |bytes| match random.below(4) {
        0 => {
            let run = random.below(700) as usize;
            let byte = if random.below(2) == 0 {
                0
            } else {
                random.word() as u8
            };
            bytes.extend(std::iter::repeat_n(byte, run));
        }
        _ => {
            for _ in 0..random.below(40) {
                bytes.extend(random.word().to_le_bytes());
            }
        }
    })
}

/// For kernels that take none.
#[must_use]
pub fn no_arguments(_seed: u64) -> Vec<Vec<u64>> {
    vec![Vec::new()]
}

/// For the kernel `entropy`: bytes of which some are frequent.
pub mod entropy {
    pub use super::no_arguments as arguments;
    pub use super::noise_and_runs as contents;
}

/// For the kernel `passthrough`: any bytes.
pub mod passthrough {
    pub use super::no_arguments as arguments;
    pub use super::noise_and_runs as contents;
}

/// For the kernel `passthrough_flfs`: any bytes.
pub mod passthrough_flfs {
    pub use super::no_arguments as arguments;
    pub use super::noise_and_runs as contents;
}

/// For the kernel `crc32c`: any bytes.
pub mod crc32c {
    pub use super::noise_and_runs as contents;

    /// One checksum, and one per block.
    #[must_use]
    pub fn arguments(seed: u64) -> Vec<Vec<u64>> {
        let odd = 5 + super::Random::new(seed).below(5000);
        vec![vec![], vec![4096], vec![odd], vec![1 << 20]]
    }
}

/// For the kernel `filter`: evenly spread u32.
pub mod filter {
    pub use super::noise as contents;

    /// The default, thresholds that keep little, much, nothing and nearly all, in both modes.
    #[must_use]
    pub fn arguments(seed: u64) -> Vec<Vec<u64>> {
        let any = super::Random::new(seed).below(1 << 32);
        let thresholds = [any, 0xf000_0000, 0x1000, 0xffff_ffff, 0];
        let both = thresholds
            .into_iter()
            .flat_map(|t| [vec![t, 0], vec![t, 1]]);
        std::iter::once(vec![]).chain(both).collect()
    }
}

/// For the kernel `sum_min_max`: evenly spread integers.
pub mod sum_min_max {
    pub use super::noise as contents;

    /// Both widths, with and without comparison.
    #[must_use]
    pub fn arguments(_seed: u64) -> Vec<Vec<u64>> {
        vec![vec![], vec![4, 1], vec![8], vec![8, 1]]
    }
}

/// For the kernel `knn`: vectors evenly spread.
pub mod knn {
    pub use super::noise as contents;

    /// Queries of several dimensions for several neighbours.
    #[must_use]
    pub fn arguments(seed: u64) -> Vec<Vec<u64>> {
        let mut random = super::Random::new(seed);
        let mut query = |dimensions: u64, neighbours: u64| {
            let words = dimensions.div_ceil(4);
            let mut list = vec![dimensions, neighbours];
            list.extend((0..words).map(|_| random.word()));
            list
        };
        vec![
            query(128, 10),
            query(1, 3),
            query(7, 256),
            query(33, 1),
            query(1024, 5),
        ]
    }
}
