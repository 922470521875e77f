//! Sizes as people write them: `64M`, `1.5G`, `4096`.

use std::fmt;

/// Binary units, each 1024 of the one before.
const UNITS: [char; 5] = ['K', 'M', 'G', 'T', 'P'];

/// Something that is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a size (a number with an optional K, M, G, T or P)")]
pub struct SizeError(String);

/// Bytes of a size: a decimal number, possibly with a fraction, with an optional binary unit
/// (`K`, `KiB`, `k` all mean 1024).
///
/// # Errors
/// [`SizeError`] when it is no size, no whole number of bytes, or does not fit 64 bits.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    parse(text.trim()).ok_or_else(|| SizeError(text.into()))
}

fn parse(text: &str) -> Option<u64> {
    let unit_at = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        unit => {
            let mut letters = unit.chars();
            let letter = letters.next()?;
            let power = UNITS.iter().position(|u| *u == letter)?;
            if !matches!(letters.as_str(), "" | "B" | "IB") {
                return None;
            }
            10 * (power as u32 + 1)
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |s: &str| s.chars().all(|c| c.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let scale = 10u128.pow(fraction.len() as u32);
    let value: u128 = format!("{whole}{fraction}").parse().ok()?;
    let bytes = value.checked_mul(1 << shift)?;
    if bytes % scale != 0 {
        return None;
    }
    u64::try_from(bytes / scale).ok()
}

/// Bytes for people: three significant digits and a binary unit.
#[derive(Clone, Copy, Debug)]
pub struct HumanSize(pub u64);

impl fmt::Display for HumanSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1024 {
            return f.pad(&format!("{} B", self.0));
        }
        let mut value = self.0 as f64;
        let mut unit = "";
        for name in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
            if value < 1000.0 {
                break;
            }
            value /= 1024.0;
            unit = name;
        }
        let decimals = if value < 10.0 {
            2
        } else {
            usize::from(value < 100.0)
        };
        f.pad(&format!("{value:.decimals$} {unit}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_with_units_and_fractions_are_bytes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512B", 512),
            ("64K", 64 << 10),
            ("1kib", 1024),
            ("1.5G", 3 << 29),
            ("2TB", 2 << 40),
            ("15P", 15 << 50),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_its_text() {
        for text in [
            "", "M", "-1", "1.5", "1..2M", "1,5G", "1X", "1MM", "1 0", "0x10", "99999999P", ".5K",
        ] {
            assert_eq!(parse_size(text), Err(SizeError(text.into())), "{text}");
        }
    }

    #[test]
    fn human_sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (64 << 20, "64.0 MiB"),
            (1000 << 20, "0.98 GiB"),
            (3 << 39, "1.50 TiB"),
        ] {
            assert_eq!(HumanSize(bytes).to_string(), text);
        }
    }
}
