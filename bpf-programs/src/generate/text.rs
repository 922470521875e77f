//! Contents for kernels over lines, and for compression.

use super::{Random, filled};

const WORDS: &[&str] = &[
    "zone",
    "write",
    "pointer",
    "append",
    "reset",
    "finish",
    "kernel",
    "snapshot",
    "extent",
    "chunk",
    "segment",
    "checkpoint",
    "victim",
    "latch",
    "page",
    "read",
    "stream",
    "a",
    "the",
    "of",
    "warn",
    "error",
    "info",
    "block",
    "device",
    "host",
    "queue",
    "depth",
    "collector",
    "journal",
];

/// Appends a line of words; short and empty ones happen, and seldom one of many kilobytes.
fn line(random: &mut Random, bytes: &mut Vec<u8>) {
    let words = match random.below(400) {
        0 => 4000,
        1..40 => 0,
        _ => 1 + random.below(12),
    };
    for word in 0..words {
        if word > 0 {
            bytes.push(b' ');
        }
        bytes.extend_from_slice(WORDS[random.below(WORDS.len() as u64) as usize].as_bytes());
    }
    bytes.push(b'\n');
}

/// Lines of words.
#[must_use]
pub fn lines(seed: u64, size: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    filled(size, |bytes| line(&mut random, bytes))
}

/// The literal as arguments: its length, then eight bytes to a word.
#[must_use]
pub(crate) fn packed(literal: &[u8]) -> Vec<u64> {
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    };
    let words = literal.chunks(8).map(word);
    std::iter::once(literal.len() as u64).chain(words).collect()
}

/// For the kernel `grep`: lines of words.
pub mod grep {
    pub use super::lines as contents;

    /// Words, phrases, single characters, and something that is not there.
    #[must_use]
    pub fn arguments(seed: u64) -> Vec<Vec<u64>> {
        let any = super::Random::new(seed).below(super::WORDS.len() as u64);
        let literals = [
            super::WORDS[any as usize],
            "collector journal",
            "error",
            "z",
            " ",
            "kernel snapshot",
            "not in there",
        ];
        literals
            .iter()
            .map(|text| super::packed(text.as_bytes()))
            .collect()
    }

    /// The arguments for a literal of your own.
    #[must_use]
    pub fn arguments_for(literal: &[u8]) -> Vec<u64> {
        super::packed(literal)
    }
}

/// For the kernel `line_index`: lines of words.
pub mod line_index {
    pub use super::super::no_arguments as arguments;
    pub use super::lines as contents;
}

/// For the kernel `csv`: a number, a word, a signed number, some text, and a number or nothing.
pub mod csv {
    use super::{Random, WORDS, filled};

    fn row(random: &mut Random, number: u64, bytes: &mut Vec<u8>) {
        let word = WORDS[random.below(WORDS.len() as u64) as usize];
        let signed = random.word() as i64 >> random.below(60);
        let text = "x".repeat(random.below(40) as usize);
        let last = match random.below(4) {
            0 => String::new(),
            1 => format!(",+{}", random.below(100)),
            2 => format!(",{}", random.word()),
            _ => ",n/a,more".to_owned(),
        };
        let end = if random.below(8) == 0 { "\r\n" } else { "\n" };
        bytes.extend(format!("{number},{word},{signed},{text}{last}{end}").bytes());
    }

    /// Rows with four to six columns; some end in CR LF, a few are empty.
    #[must_use]
    pub fn contents(seed: u64, size: usize) -> Vec<u8> {
        let mut random = Random::new(seed);
        let mut number = 0;
        filled(size, |bytes| {
            number += 1;
            if random.below(50) == 0 {
                bytes.push(b'\n');
            } else {
                row(&mut random, number, bytes);
            }
        })
    }

    /// Projections and aggregates; also with a delimiter that is not there.
    #[must_use]
    pub fn arguments(seed: u64) -> Vec<Vec<u64>> {
        let any = Random::new(seed).below(6);
        vec![
            vec![0, 0, 1],
            vec![0, 0, 2, 0, 2],
            vec![0, u64::from(b','), 5, 3, any],
            vec![0, u64::from(b';'), 0],
            vec![0, 0, 9],
            vec![1, 0, 0],
            vec![1, 0, 2],
            vec![1, 0, 4],
            vec![1, 0, any],
        ]
    }
}

/// For the kernel `compress`: text and noise.
pub mod compress {
    use super::{Random, filled, line};

    /// Stretches of lines, of one byte, and of noise.
    #[must_use]
    pub fn contents(seed: u64, size: usize) -> Vec<u8> {
        let mut random = Random::new(seed);
        filled(size, |bytes| match random.below(3) {
            0 => (0..random.below(300)).for_each(|_| line(&mut random, bytes)),
            1 => bytes.extend(std::iter::repeat_n(
                random.word() as u8,
                random.below(3000) as usize,
            )),
            _ => (0..random.below(9000)).for_each(|_| bytes.push(random.word() as u8)),
        })
    }

    /// For writers that append.
    #[must_use]
    pub fn arguments(_seed: u64) -> Vec<Vec<u64>> {
        vec![vec![], vec![0]]
    }
}

/// For the kernel `decompress`: frames as writes one behind the other leave them, with gaps.
pub mod decompress {
    pub use super::super::no_arguments as arguments;
    use super::Random;
    use crate::{Input, Operation, native};

    /// Frames of many writes, gaps of zeros between them, and zeros up to `size`.
    #[must_use]
    pub fn contents(seed: u64, size: usize) -> Vec<u8> {
        let mut random = Random::new(seed);
        let mut file = Vec::with_capacity(size);
        loop {
            let written =
                super::compress::contents(random.word(), 1 + random.below(150_000) as usize);
            let input = Input::data(Operation::WriteStream, 0, &written, &[]);
            let frames = native::compress(&input).unwrap_or_default();
            let gap = random.below(2) * random.below(9000);
            if file.len() + frames.len() + gap as usize > size {
                file.resize(size, 0);
                return file;
            }
            file.extend(frames);
            file.resize(file.len() + gap as usize, 0);
        }
    }
}
