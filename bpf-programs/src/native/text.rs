//! Kernels over lines.

use super::{EINVAL, EOPNOTSUPP, words};
use crate::{Input, Operation, Outcome};

/// What an index block begins with.
const INDEX_MAGIC: u64 = u64::from_le_bytes(*b"WLINEIX1");

/// The lines that begin in the request, with their newlines.
fn lines<'a>(input: &Input<'a>) -> impl Iterator<Item = &'a [u8]> {
    let (first, end) = (input.offset, input.end());
    let mut begin = 0;
    input
        .snapshot
        .split_inclusive(|&byte| byte == b'\n')
        .filter(move |line| {
            let at = begin;
            begin += line.len() as u64;
            (first..end).contains(&at)
        })
}

/// The lines that contain a literal.
///
/// # Errors
/// For a literal that is missing, empty, longer than 256 bytes, or holds a newline.
pub fn grep(input: &Input<'_>) -> Outcome {
    let (&length, packed) = input.arguments.split_first().ok_or(EINVAL)?;
    let bytes: Vec<u8> = packed.iter().flat_map(|word| word.to_le_bytes()).collect();
    if !(1..=256).contains(&length) || bytes.len() < length as usize {
        return Err(EINVAL);
    }
    let literal = &bytes[..length as usize];
    if literal.contains(&b'\n') {
        return Err(EINVAL);
    }
    let matching = lines(input).filter(|line| line.windows(literal.len()).any(|at| at == literal));
    Ok(matching.flatten().copied().collect())
}

/// The field's value, if it is an optional sign and 1 to 18 digits.
fn integer(field: &[u8]) -> Option<i64> {
    let digits = match field.first() {
        Some(b'+' | b'-') => &field[1..],
        _ => field,
    };
    if digits.len() > 18 || digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Rows, integers, sum, least and largest of a column.
fn aggregate<'a>(fields: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let (mut rows, mut integers, mut sum) = (0, 0, 0_i64);
    let (mut least, mut largest) = (i64::MAX, i64::MIN);
    for field in fields {
        rows += 1;
        if let Some(value) = integer(field) {
            integers += 1;
            sum = sum.wrapping_add(value);
            least = least.min(value);
            largest = largest.max(value);
        }
    }
    words([rows, integers, sum as u64, least as u64, largest as u64])
}

/// Columns of lines, or the aggregate of one.
///
/// # Errors
/// For arguments that make no sense: see `kernels/csv.c`.
pub fn csv(input: &Input<'_>) -> Outcome {
    let mode = input.argument_or(0, 2);
    let delimiter = match input.argument_or(1, 0) {
        0 => b',',
        byte => u8::try_from(byte).map_err(|_| EINVAL)?,
    };
    let columns = input.arguments.get(2..).unwrap_or(&[]);
    let most = if mode == 1 { 1 } else { 16 };
    let absurd = columns.iter().any(|&column| column > 4096);
    if mode > 1 || delimiter == b'\n' || columns.is_empty() || columns.len() > most || absurd {
        return Err(EINVAL);
    }
    let rows = lines(input).map(|line| {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let fields: Vec<&[u8]> = line.split(|&byte| byte == delimiter).collect();
        let wanted = columns
            .iter()
            .map(|&c| fields.get(c as usize).copied().unwrap_or(&[]));
        wanted.collect::<Vec<_>>()
    });
    if mode == 1 {
        return Ok(aggregate(rows.map(|fields| fields[0])));
    }
    let mut out = Vec::new();
    for fields in rows {
        out.extend(fields.join(&delimiter));
        out.push(b'\n');
    }
    Ok(out)
}

/// Offsets of line starts: of the data in an index block, or of the request.
///
/// # Errors
/// For operations other than write events and read streams.
pub fn line_index(input: &Input<'_>) -> Outcome {
    let starts_of = |bytes: &[u8]| {
        let newlines = bytes.iter().enumerate().filter(|&(_, &byte)| byte == b'\n');
        let mut starts: Vec<u64> = newlines.map(|(at, _)| at as u64 + 1).collect();
        if !bytes.is_empty() {
            starts.insert(0, 0);
        }
        starts
    };
    match input.operation {
        Operation::WriteEvent => {
            let mut starts = starts_of(input.data);
            if input.offset > 0 && !starts.is_empty() {
                starts.remove(0);
            }
            let offsets = starts.iter().map(|start| start + input.offset);
            let head = [INDEX_MAGIC, starts.len() as u64];
            let size = if starts.is_empty() { 0 } else { head.len() };
            Ok(words(head.into_iter().take(size).chain(offsets)))
        }
        Operation::ReadStream => {
            let starts = starts_of(input.snapshot).into_iter();
            Ok(words(starts.filter(|start| {
                (input.offset..input.end()).contains(start)
            })))
        }
        _ => Err(EOPNOTSUPP),
    }
}
