//! Single inverted bits, everywhere.

use std::sync::Arc;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use warren_fs::fsck;
use warren_fs::types::BLOCK_SIZE;
use warren_fs::volume::Volume;
use zns_backend::{Lba, MemDevice};

use crate::common::{
    Damaged, Seen, agrees, clean_image, copy, options, see, unclean_image, written,
};

const SEED: u64 = 20;

/// How a damaged image looks read-only.
fn look(device: &MemDevice, lba: Lba, bit: usize) -> (Option<Seen>, Option<Vec<String>>) {
    let damaged = Arc::new(Damaged {
        device: device.clone(),
        lba,
        bit,
    });
    let volume = Volume::open(damaged.clone(), &options(true)).ok();
    let report = fsck::check(damaged, true, &|_, _| {}).ok();
    (
        volume.map(|volume| see(&volume)),
        report.map(|report| report.errors),
    )
}

/// Read-only nothing wrong is shown, and what cannot be read is found by fsck.
fn harmless(device: &MemDevice, truth: &Seen, lba: Lba, bit: usize) {
    let place = format!("LBA {lba} bit {bit}");
    let (seen, errors) = look(device, lba, bit);
    let Some(seen) = seen else {
        return assert!(errors.is_none(), "{place}: refused by open and not by fsck");
    };
    assert!(agrees(&seen, truth), "{place}: shows what was never there");
    let errors = errors.expect("fsck opens what can be opened");
    assert!(
        seen == *truth || !errors.is_empty(),
        "{place}: fsck finds nothing"
    );
}

/// Bits in the first bytes of a block, where structures are, and in the last.
fn structure_bits() -> impl Iterator<Item = usize> {
    (0..200 * 8)
        .step_by(3)
        .chain((BLOCK_SIZE - 40) * 8..BLOCK_SIZE * 8)
}

#[test]
fn every_bit_of_the_superblocks_and_of_the_newest_checkpoint_is_noticed_or_harmless() {
    let (device, truth) = clean_image();
    let anchors: Vec<Lba> = written(&device)
        .into_iter()
        .filter(|lba| lba.0 < 512)
        .collect();
    let newest = *anchors.iter().rfind(|lba| lba.0 < 256).unwrap();
    for bit in 0..140 * 8 {
        harmless(&device, &truth, anchors[0], bit);
    }
    for bit in structure_bits() {
        harmless(&device, &truth, newest, bit);
    }
    for lba in anchors {
        harmless(&device, &truth, lba, 4_000);
    }
}

#[test]
fn bits_anywhere_in_a_closed_image_are_noticed_or_harmless() {
    let (device, truth) = clean_image();
    let blocks = written(&device);
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    for turn in 0..1500 {
        let lba = *blocks.choose(&mut rng).unwrap();
        // Headers and nodes begin with what matters most.
        let limit = if turn % 2 == 0 {
            120 * 8
        } else {
            BLOCK_SIZE * 8
        };
        harmless(&device, &truth, lba, rng.random_range(0..limit));
    }
}

#[test]
fn bits_in_the_log_behind_the_checkpoint_lose_nothing_but_the_newest_sync_unnoticed() {
    const SYNCS: usize = 5;
    let (closed, _) = clean_image();
    let before: Vec<Lba> = written(&closed);
    let (device, states) = unclean_image(SYNCS);
    let log: Vec<Lba> = written(&device)
        .into_iter()
        .filter(|lba| !before.contains(lba))
        .collect();
    assert!(log.len() > SYNCS * 3);
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut refused = 0;
    for lba in log {
        let mut bits: Vec<usize> = (0..88 * 8).step_by(23).collect();
        bits.extend((0..8).map(|_| rng.random_range(0..BLOCK_SIZE * 8)));
        for bit in bits {
            let place = format!("LBA {lba} bit {bit}");
            let (seen, errors) = look(&device, lba, bit);
            let Some(seen) = seen else { continue };
            let errors = errors.expect("fsck opens what can be opened");
            let state = states.iter().rposition(|state| agrees(&seen, state));
            let state = state.unwrap_or_else(|| panic!("{place}: shows what was never there"));
            if state < SYNCS - 1 {
                assert!(
                    errors.iter().any(|e| e.contains("log is damaged")),
                    "{place}: {errors:?}"
                );
                // And it is not written to.
                let mut flip = |at: Lba, block: &mut [u8]| {
                    if at == lba {
                        block[bit / 8] ^= 1 << (bit % 8);
                    }
                };
                if refused % 40 == 0 {
                    let writable = copy(&device, &mut flip);
                    let opened = Volume::open(Arc::new(writable), &options(false));
                    let error = opened
                        .err()
                        .unwrap_or_else(|| panic!("{place}: is mounted"));
                    assert!(
                        error.to_string().contains("durable once"),
                        "{place}: {error}"
                    );
                }
                refused += 1;
            }
        }
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn a_damaged_image_opened_for_writing_shows_nothing_wrong_and_takes_no_harm() {
    let (device, truth) = clean_image();
    let blocks = written(&device);
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    for _ in 0..60 {
        let (lba, bit) = (
            *blocks.choose(&mut rng).unwrap(),
            rng.random_range(0..400 * 8),
        );
        let damaged = copy(&device, &mut |at, block| {
            if at == lba {
                block[bit / 8] ^= 1 << (bit % 8);
            }
        });
        let Ok(volume) = Volume::open(Arc::new(damaged), &options(false)) else {
            continue;
        };
        // Collections move damaged blocks; they stay damaged.
        let _ = volume.store().collect(4);
        let _ = volume.store().checkpoint();
        assert!(agrees(&see(&volume), &truth), "LBA {lba} bit {bit}");
    }
}
