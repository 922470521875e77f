//! Kernels over bytes and arrays of numbers.

use super::{EINVAL, words};
use crate::{Input, Outcome};

/// How often each byte value occurs: 256 u64; nothing for an empty request.
///
/// # Errors
/// None.
pub fn entropy(input: &Input<'_>) -> Outcome {
    if input.range().is_empty() {
        return Ok(Vec::new());
    }
    let mut counts = [0_u64; 256];
    for &byte in input.range() {
        counts[usize::from(byte)] += 1;
    }
    Ok(words(counts))
}

/// The u32 above a threshold: their count, or they themselves.
///
/// # Errors
/// For a threshold that is no u32, or an unknown mode.
pub fn filter(input: &Input<'_>) -> Outcome {
    let threshold = u32::try_from(input.argument_or(0, 1_073_741_823)).map_err(|_| EINVAL)?;
    let values = input.range().chunks_exact(4);
    let above = values
        .map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        .filter(|&value| value > threshold);
    match input.argument_or(1, 0) {
        0 => Ok(words([above.count() as u64])),
        1 => Ok(above.flat_map(u32::to_le_bytes).collect()),
        _ => Err(EINVAL),
    }
}

/// Count, sum, least and largest of u32 or u64.
///
/// # Errors
/// For integers of another width, or an unknown mode.
pub fn sum_min_max(input: &Input<'_>) -> Outcome {
    let width = match input.argument_or(0, 4) {
        4 => 4,
        8 => 8,
        _ => return Err(EINVAL),
    };
    let only_sum = match input.argument_or(1, 0) {
        0 => false,
        1 => true,
        _ => return Err(EINVAL),
    };
    let (mut count, mut sum, mut least, mut largest) = (0, 0_u64, u64::MAX, 0);
    for bytes in input.range().chunks_exact(width) {
        let mut word = [0; 8];
        word[..width].copy_from_slice(bytes);
        let value = u64::from_le_bytes(word);
        count += 1;
        sum = sum.wrapping_add(value);
        if !only_sum {
            least = least.min(value);
            largest = largest.max(value);
        }
    }
    Ok(words([count, sum, least, largest]))
}

/// CRC-32C, a bit at a time.
fn checksum(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            let carry = if crc & 1 == 1 { POLYNOMIAL } else { 0 };
            crc = (crc >> 1) ^ carry;
        }
    }
    !crc
}

/// CRC-32C of the request, or of each of its blocks.
///
/// # Errors
/// For blocks of less than 4 or more than 2^20 bytes.
pub fn crc32c(input: &Input<'_>) -> Outcome {
    match input.argument_or(0, 0) {
        0 => Ok(checksum(input.range()).to_le_bytes().to_vec()),
        block @ 4..=0x10_0000 => {
            let blocks = input.range().chunks(block as usize);
            Ok(blocks
                .flat_map(|block| checksum(block).to_le_bytes())
                .collect())
        }
        _ => Err(EINVAL),
    }
}

/// The i16 vectors nearest to a query: number and squared distance of each.
///
/// # Errors
/// For dimensions not in 1..=1024 or neighbours not in 1..=256.
pub fn knn(input: &Input<'_>) -> Outcome {
    let (dimensions, limit) = (input.argument_or(0, 0), input.argument_or(1, 0));
    if !(1..=1024).contains(&dimensions) || !(1..=256).contains(&limit) {
        return Err(EINVAL);
    }
    let component = |index: usize| {
        let word = input.argument_or(2 + index / 4, 0);
        (word >> (16 * (index % 4))) as u16 as i16
    };
    let query: Vec<i16> = (0..dimensions as usize).map(component).collect();
    let mut found = Vec::new();
    for (number, vector) in input.snapshot.chunks_exact(2 * query.len()).enumerate() {
        let begin = (number * vector.len()) as u64;
        if begin < input.offset || begin >= input.end() {
            continue;
        }
        let components = vector
            .chunks_exact(2)
            .map(|b| i16::from_le_bytes([b[0], b[1]]));
        let distance: u64 = components
            .zip(&query)
            .map(|(a, &b)| i64::from(a) - i64::from(b))
            .map(|difference| (difference * difference) as u64)
            .sum();
        found.push((distance, number as u64));
    }
    found.sort_unstable();
    found.truncate(limit as usize);
    Ok(words(
        found
            .into_iter()
            .flat_map(|(distance, number)| [number, distance]),
    ))
}
