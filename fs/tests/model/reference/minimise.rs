//! Runs sequences of operations, and makes failing ones small.

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::driver::Trouble;
use super::ops::Op;

/// Time spent on making a failing sequence smaller.
const PATIENCE: Duration = Duration::from_secs(20);

/// What went wrong at which operation.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) at: usize,
    pub(crate) trouble: String,
}

/// Runs `step` on every operation in turn; a panic is a failure like any other.
pub(crate) fn run(
    ops: &[Op],
    mut step: impl FnMut(&Op) -> Result<(), Trouble>,
) -> Result<(), Failure> {
    for (at, op) in ops.iter().enumerate() {
        let trouble = match catch_unwind(AssertUnwindSafe(|| step(op))) {
            Ok(Ok(())) => continue,
            Ok(Err(Trouble::Mismatch(text))) => text,
            Ok(Err(Trouble::Device(error))) => format!("unexpected error: {error}"),
            Err(_) => "panic (see above)".to_owned(),
        };
        return Err(Failure { at, trouble });
    }
    Ok(())
}

/// Cuts what it can out of a failing sequence, and describes what is left.
///
/// `replay` runs a sequence on a fresh device.
pub(crate) fn report(
    seed: u64,
    mut ops: Vec<Op>,
    failure: Failure,
    replay: impl Fn(&[Op]) -> Result<(), Failure>,
) -> String {
    let started = Instant::now();
    let original = ops.len();
    let mut last = failure;
    let mut size = ops.len() / 2;
    while size > 0 && started.elapsed() < PATIENCE {
        let mut at = 0;
        while at < ops.len() && started.elapsed() < PATIENCE {
            let mut fewer = ops.clone();
            fewer.drain(at..(at + size).min(ops.len()));
            match replay(&fewer) {
                Err(failure) => {
                    fewer.truncate(failure.at + 1);
                    ops = fewer;
                    last = failure;
                }
                Ok(()) => at += size,
            }
        }
        size /= 2;
    }
    let mut text = format!(
        "WARREN_SEED={seed}: {}\nafter {} of {original} operations, the smallest that fail:\n",
        last.trouble,
        ops.len(),
    );
    for op in &ops {
        let _ = writeln!(text, "    {op:?}");
    }
    text
}

/// A number from the environment.
pub(crate) fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}
