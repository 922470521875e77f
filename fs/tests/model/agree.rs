//! Generated sequences of operations on a volume and on the reference must be indistinguishable:
//! results, errnos, and everything that can be seen afterwards, with remounts, checkpoints and
//! collections in between.

use crate::reference::device::in_memory;
use crate::reference::driver::Pair;
use crate::reference::generate::{Generator, Mix};
use crate::reference::minimise::{self, Failure, setting};
use crate::reference::ops::Op;

/// Where a sequence runs.
#[derive(Clone, Copy)]
struct Stage {
    device_mib: u32,
    may_be_full: bool,
}

impl Stage {
    fn pair(self) -> Pair {
        let mut pair =
            Pair::format(in_memory(self.device_mib)).expect("a fresh device can be formatted");
        pair.may_be_full = self.may_be_full;
        pair
    }

    fn replay(self, ops: &[Op]) -> Result<(), Failure> {
        let mut pair = self.pair();
        minimise::run(ops, |op| pair.apply(op))
    }
}

/// Generates and runs `count` operations; at the end everything is compared once more, remounted.
fn agree(seed: u64, count: u64, mix: Mix, stage: Stage) {
    let mut generator = Generator::new(seed, mix);
    let mut pair = stage.pair();
    let mut ops = Vec::new();
    for step in 0..count + 3 {
        let op = match step.checked_sub(count) {
            Some(1) => Op::Remount,
            Some(_) => Op::Compare,
            None => generator.next(&pair.reference),
        };
        ops.push(op.clone());
        if let Err(failure) = minimise::run(&[op], |op| pair.apply(op)) {
            drop(pair);
            panic!(
                "{}",
                minimise::report(seed, ops, failure, |ops| stage.replay(ops))
            );
        }
    }
}

fn seeds(default: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let first = setting("WARREN_SEED", default.start);
    if first == default.start {
        default
    } else {
        first..first + 1
    }
}

const EVERYDAY: Mix = Mix {
    write_max: 300 << 10,
    large_every: 10,
    sparse: true,
    upkeep_every: 60,
    crash_every: 0,
    compare_every: 80,
};

#[test]
fn generated_operations_give_what_the_reference_gives() {
    let stage = Stage {
        device_mib: 512,
        may_be_full: false,
    };
    for seed in seeds(1..5) {
        agree(seed, setting("WARREN_OPS", 2500), EVERYDAY, stage);
    }
}

#[test]
fn small_files_with_constant_remounts_give_what_the_reference_gives() {
    let mix = Mix {
        write_max: 5000,
        large_every: 10,
        sparse: false,
        upkeep_every: 8,
        crash_every: 0,
        compare_every: 40,
    };
    let stage = Stage {
        device_mib: 256,
        may_be_full: false,
    };
    for seed in seeds(101..104) {
        agree(seed, setting("WARREN_OPS", 1500), mix, stage);
    }
}

#[test]
fn a_device_that_fills_up_refuses_whole_operations_and_loses_nothing() {
    let mix = Mix {
        write_max: 4 << 20,
        large_every: 2,
        upkeep_every: 40,
        sparse: false,
        ..EVERYDAY
    };
    let stage = Stage {
        device_mib: 64,
        may_be_full: true,
    };
    for seed in seeds(201..204) {
        agree(seed, setting("WARREN_OPS", 2500), mix, stage);
    }
}
