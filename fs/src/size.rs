//! Sizes for people to read.

use std::fmt;

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
