//! CRC32C, by the processor's instruction or by tables, whichever is faster here.
//!
//! Processors take eight bytes in a cycle or three, and the crate `crc32c` keeps several on their way.
//! An emulated processor (QEMU without hardware virtualisation) carries the instruction out bit by bit;
//! tables are several times as fast there. Which way is taken is measured once, when the first
//! checksum is asked for: a hypervisor's name would tell less, since with hardware virtualisation the
//! instruction is the processor's again. The result is the same.

use std::hint::black_box;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crc::{CRC_32_ISCSI, Crc, Table};

static TABLES: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

/// Bytes of a trial.
const TRIAL_BYTES: usize = 1024;
/// Trials of each way, of which the fastest counts: the others were interrupted.
const TRIALS: u32 = 5;

/// CRC32C of `data`.
#[must_use]
pub(crate) fn crc32c(data: &[u8]) -> u32 {
    crc32c_append(0, data)
}

/// CRC32C of the bytes whose CRC32C is `crc` and `data` behind them.
#[must_use]
pub(crate) fn crc32c_append(crc: u32, data: &[u8]) -> u32 {
    static TABLES_WIN: OnceLock<bool> = OnceLock::new();
    if *TABLES_WIN.get_or_init(tables_win) {
        by_tables(crc, data)
    } else {
        crc32c::crc32c_append(crc, data)
    }
}

fn by_tables(crc: u32, data: &[u8]) -> u32 {
    // The state of a reflected CRC as the crate wants it: before the reflection.
    let mut digest = TABLES.digest_with_initial((!crc).reverse_bits());
    digest.update(data);
    digest.finalize()
}

/// Whether tables take less than two thirds of the instruction's time.
fn tables_win() -> bool {
    let data = [0x5A; TRIAL_BYTES];
    let least = |way: fn(u32, &[u8]) -> u32| {
        let trial = |_| {
            let begun = Instant::now();
            black_box(way(0, black_box(&data)));
            begun.elapsed()
        };
        (0..TRIALS).map(trial).min().unwrap_or(Duration::MAX)
    };
    // The first use of either detects the processor and brings the tables into the cache.
    least(by_tables) * 3 < least(crc32c::crc32c_append) * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_give_the_checksum_of_the_standard() {
        // RFC 3720, B.4.
        let ascending: Vec<u8> = (0..32).collect();
        for way in [by_tables, crc32c::crc32c_append, crc32c_append] {
            assert_eq!(way(0, b"123456789"), 0xE306_9283);
            assert_eq!(way(0, &[0; 32]), 0x8A91_36AA);
            assert_eq!(way(0, &ascending), 0x46DD_794E);
        }
    }

    #[test]
    fn both_ways_agree_on_every_length_and_cut() {
        let data: Vec<u8> = (0..700_u32).map(|i| ((i * i) >> 3) as u8).collect();
        for len in 0..data.len() {
            let (head, tail) = data[..len].split_at(len / 3);
            let whole = crc32c::crc32c_append(0, &data[..len]);
            assert_eq!(by_tables(by_tables(0, head), tail), whole, "{len} bytes");
        }
    }
}
