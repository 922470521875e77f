//! Devices that fail or lie. Whatever they do: no panic, and no answer that was not written there;
//! a failed write that the filesystem could place elsewhere is not even noticed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use warren_fs::volume::Volume;
use zns_backend::{Fault, FaultDevice, When, ZoneId, ZonedDevice};

use crate::crash::{CRASH_MIX, faulty};
use crate::reference::Reference;
use crate::reference::digest;
use crate::reference::driver::{Pair, Trouble, store_options};
use crate::reference::generate::Generator;
use crate::reference::minimise::setting;
use crate::reference::ops::Op;

/// How a workload on a failing device ended.
struct Ended {
    device: FaultDevice,
    pair: Pair,
    /// States the device may hold: the one of the last sync and all later ones.
    since_sync: Vec<Reference>,
    /// The device's failure reached a caller.
    failed: bool,
}

/// Runs the workload of `seed` with `fault` planned from its start on.
fn run(seed: u64, when: When, fault: Fault) -> Result<Ended, String> {
    let device = faulty(96);
    device.stop_log();
    let shared: Arc<dyn ZonedDevice> = Arc::new(device.clone());
    let pair = Pair::format(shared).map_err(|e| format!("{e:?}"))?;
    let mut generator = Generator::new(seed, CRASH_MIX);
    let since_sync = vec![pair.reference.clone()];
    let mut ended = Ended {
        device,
        pair,
        since_sync,
        failed: false,
    };
    ended.device.inject(when, fault);
    for turn in 0..setting("WARREN_OPS", 250) {
        let op = generator.next(&ended.pair.reference);
        let applied = catch_unwind(AssertUnwindSafe(|| ended.pair.apply(&op)));
        match applied {
            Err(_) => return Err(format!("operation {turn}, {op:?}: panic (see above)")),
            Ok(Err(Trouble::Mismatch(text))) => {
                return Err(format!("operation {turn}, {op:?}: {text}"));
            }
            Ok(Err(Trouble::Device(_))) => {
                // It may have happened, or not.
                ended.since_sync.push(ended.pair.reference.clone());
                ended.failed = true;
                return Ok(ended);
            }
            Ok(Ok(())) if matches!(op, Op::Sync | Op::Remount) => ended.since_sync.clear(),
            Ok(Ok(())) => {}
        }
        ended.since_sync.push(ended.pair.reference.clone());
    }
    Ok(ended)
}

/// With the fault gone: what was synced is there, and nothing else than what was written.
fn recovers(ended: Ended) -> Result<(), String> {
    let Ended {
        device,
        pair,
        since_sync,
        ..
    } = ended;
    device.clear_faults();
    drop(pair);
    let volume =
        Volume::open(Arc::new(device), &store_options()).map_err(|e| format!("reopening: {e}"))?;
    let found = digest::of_volume(&volume).map_err(|e| format!("after reopening: {e:?}"))?;
    if since_sync
        .iter()
        .any(|state| digest::of_reference(state) == found)
    {
        return Ok(());
    }
    let newest = since_sync
        .last()
        .map(digest::of_reference)
        .unwrap_or_default();
    Err(format!(
        "no state since the last sync:\n{}",
        digest::differences(&newest, &found)
    ))
}

/// Plans `fault` at a sample of the operations of a kind and holds `check` to how that ends.
fn at_many(fault: Fault, check: impl Fn(Ended) -> Result<(), String>) {
    let seed = setting("WARREN_SEED", 1);
    for nth in (0..24).chain((24..400).step_by(13)) {
        let checked = run(seed, When::Nth(nth), fault).and_then(&check);
        if let Err(problem) = checked {
            panic!("WARREN_SEED={seed}: {fault:?} at {nth}: {problem}");
        }
    }
}

/// The fault was absorbed.
fn unnoticed(ended: Ended) -> Result<(), String> {
    if ended.failed {
        return Err("the failure reached a caller".to_owned());
    }
    ended.pair.compare().map_err(|e| format!("{e:?}"))?;
    recovers(ended)
}

#[test]
fn a_zone_that_takes_no_writes_is_not_even_noticed() {
    let seed = setting("WARREN_SEED", 1);
    // Zones 0 and 1 are the anchors.
    for zone in 2..24 {
        for fault in [Fault::FailWrite, Fault::TearWrite { blocks: 1 }] {
            let checked = run(seed, When::Zone(ZoneId(zone)), fault).and_then(unnoticed);
            if let Err(problem) = checked {
                panic!("WARREN_SEED={seed}: {fault:?} in zone {zone}: {problem}");
            }
        }
    }
}

#[test]
fn after_a_failed_or_torn_write_what_was_synced_is_still_there() {
    at_many(Fault::FailWrite, recovers);
    at_many(Fault::TearWrite { blocks: 1 }, recovers);
}

#[test]
fn after_a_failed_flush_what_was_synced_is_still_there() {
    at_many(Fault::FailFlush, recovers);
}

#[test]
fn a_failed_read_is_an_error_and_changes_nothing() {
    at_many(Fault::FailRead, recovers);
}

#[test]
fn a_flipped_bit_is_noticed_or_harmless() {
    for bit in [0, 77_777, 30_000_001] {
        at_many(Fault::FlipBit { bit }, recovers);
    }
}

#[test]
fn a_lost_write_is_an_error_or_was_not_needed() {
    // What the lost write held is gone; everything else about the state is unknown, so all that
    // can be asked is that no caller saw a wrong answer, which running the workload checks.
    at_many(Fault::LoseWrite, |_| Ok(()));
}
