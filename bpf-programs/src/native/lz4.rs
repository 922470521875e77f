//! Compressed frames of LZ4 blocks, as `kernels/compress.c` documents them.
//!
//! The compressor makes the same choices as the kernel (one candidate per hash of four bytes,
//! greedy, wider and wider steps where nothing matches), so that their bytes can be compared.

use super::{EFBIG, EINVAL, EOPNOTSUPP};
use crate::{Input, Operation, Outcome};

const MAGIC: &[u8; 4] = b"WLZ1";
const FRAME_MAX: usize = 65536;
const LAST_LITERALS: usize = 5;
const MATCH_LIMIT: usize = 12;
const MATCH_MIN: usize = 4;

/// What a length beyond the 15 that fit into the token is continued with.
fn continue_length(length: usize, out: &mut Vec<u8>) {
    if let Some(rest) = length.checked_sub(15) {
        out.extend(std::iter::repeat_n(255, rest / 255));
        out.push((rest % 255) as u8);
    }
}

/// Appends a sequence; the last one has no match.
fn put_sequence(literals: &[u8], found: Option<(usize, usize)>, out: &mut Vec<u8>) {
    let length = found.map_or(0, |(_, length)| length - MATCH_MIN);
    out.push((literals.len().min(15) << 4 | length.min(15)) as u8);
    continue_length(literals.len(), out);
    out.extend_from_slice(literals);
    if let Some((distance, _)) = found {
        out.extend_from_slice(&(distance as u16).to_le_bytes());
        continue_length(length, out);
    }
}

/// Whether a sequence, at the most it may take, leaves the block smaller than its data.
fn fits(literals: usize, length: usize, out: usize, size: usize) -> bool {
    out + literals + 1 + (literals / 255 + 1) + 2 + (length / 255 + 1) < size
}

/// An LZ4 block of the data, if that is smaller.
fn compress_block(data: &[u8]) -> Option<Vec<u8>> {
    let four = |at: usize| u32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]);
    let mut positions = vec![0; 4096];
    let mut out = Vec::new();
    let (mut literals, mut at, mut misses) = (0, 1, 0);
    while at + MATCH_LIMIT <= data.len() {
        let slot = (four(at).wrapping_mul(2_654_435_761) >> 20) as usize;
        let candidate = std::mem::replace(&mut positions[slot], at);
        if four(candidate) != four(at) {
            at += 1 + misses / 32;
            misses += 1;
            continue;
        }
        let ahead = data[at..data.len() - LAST_LITERALS].iter();
        let length = ahead
            .zip(&data[candidate..])
            .take_while(|(a, b)| a == b)
            .count();
        if !fits(at - literals, length, out.len(), data.len()) {
            return None;
        }
        put_sequence(
            &data[literals..at],
            Some((at - candidate, length)),
            &mut out,
        );
        at += length;
        literals = at;
        misses = 0;
    }
    let rest = &data[literals..];
    if !fits(rest.len(), 0, out.len(), data.len()) {
        return None;
    }
    put_sequence(rest, None, &mut out);
    Some(out)
}

/// The data in frames.
///
/// # Errors
/// For operations other than write streams; with the first argument 1, when it would grow.
pub fn compress(input: &Input<'_>) -> Outcome {
    if input.operation != Operation::WriteStream {
        return Err(EOPNOTSUPP);
    }
    let in_place = match input.argument_or(0, 0) {
        0 => false,
        1 => true,
        _ => return Err(EINVAL),
    };
    let mut out = Vec::new();
    for data in input.data.chunks(FRAME_MAX) {
        let block = compress_block(data);
        let form = u32::from(block.is_some());
        let stored = block.as_deref().unwrap_or(data);
        out.extend_from_slice(MAGIC);
        for field in [stored.len() as u32, data.len() as u32, form] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(stored);
    }
    if in_place && out.len() > input.data.len() {
        return Err(EFBIG);
    }
    Ok(out)
}

/// Takes bytes off the front of a block.
fn take<'a>(block: &mut &'a [u8], count: usize) -> Result<&'a [u8], i64> {
    let (front, rest) = block.split_at_checked(count).ok_or(EINVAL)?;
    *block = rest;
    Ok(front)
}

/// A length of the token with what continues it.
fn take_length(nibble: u8, block: &mut &[u8]) -> Result<usize, i64> {
    let mut length = usize::from(nibble);
    let mut last = if nibble == 15 { 255 } else { 0 };
    while last == 255 {
        last = take(block, 1)?[0];
        length += usize::from(last);
    }
    Ok(length)
}

/// The `raw` bytes that an LZ4 block stands for.
fn decompress_block(mut block: &[u8], raw: usize) -> Outcome {
    let mut out = Vec::with_capacity(raw);
    while !block.is_empty() {
        let token = take(&mut block, 1)?[0];
        let literals = take_length(token >> 4, &mut block)?;
        out.extend_from_slice(take(&mut block, literals)?);
        if out.len() > raw {
            return Err(EINVAL);
        }
        if block.is_empty() {
            break;
        }
        let bytes = take(&mut block, 2)?;
        let distance = usize::from(u16::from_le_bytes([bytes[0], bytes[1]]));
        let length = take_length(token & 15, &mut block)? + MATCH_MIN;
        if distance == 0 || distance > out.len() || length > raw - out.len() {
            return Err(EINVAL);
        }
        for _ in 0..length {
            out.push(out[out.len() - distance]);
        }
    }
    if out.len() == raw {
        Ok(out)
    } else {
        Err(EINVAL)
    }
}

/// The data of the frames that begin in the request.
///
/// # Errors
/// For other operations, and where the file is not made of frames.
pub fn decompress(input: &Input<'_>) -> Outcome {
    if input.operation != Operation::ReadStream {
        return Err(EOPNOTSUPP);
    }
    let mut out = Vec::new();
    let (file, end) = (input.snapshot, input.end() as usize);
    let mut at = 0;
    loop {
        at += file[at.min(file.len())..]
            .iter()
            .take_while(|&&byte| byte == 0)
            .count();
        if at >= end.min(file.len()) {
            return Ok(out);
        }
        let mut rest = &file[at..];
        let header = take(&mut rest, 16)?;
        let field = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| header[at + i])) as usize;
        let (stored, raw, form) = (field(4), field(8), field(12));
        let sound = match form {
            0 => stored == raw,
            1 => stored < raw,
            _ => false,
        };
        if !header.starts_with(MAGIC) || !sound || !(1..=FRAME_MAX).contains(&raw) {
            return Err(EINVAL);
        }
        if at as u64 >= input.offset {
            let data = take(&mut rest, stored)?;
            match form {
                0 => out.extend_from_slice(data),
                _ => out.extend(decompress_block(data, raw)?),
            }
        }
        at += 16 + stored;
    }
}
