//! The process that tries cases: it says which one before it does.

use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::process::ExitCode;

use csd_vm::lab::{Laboratory, Verdict};
use csd_vm::program::fuzz::Fuzzer;

use crate::cases::{Case, Kind};
use crate::originals;
use crate::tally::Tally;

/// Instructions that a program may take.
const INSTRUCTIONS_MAX: u64 = 50_000;

/// Cases between two reports.
const REPORT_EVERY: u64 = 500;

fn laboratory() -> Laboratory {
    Laboratory::new(INSTRUCTIONS_MAX).expect("memory for a cage")
}

fn try_object(
    laboratory: &mut Laboratory,
    object: &[u8],
    request: u64,
    like: &str,
) -> Result<Verdict, String> {
    let mut random = Fuzzer::new(request);
    let mut request = laboratory.request(&mut random);
    if !like.is_empty() {
        originals::suit(like, &mut request, &mut random);
    }
    laboratory.try_object(object, &mut request)
}

/// The compiler takes and gives back megabytes for every program: most of the time would go to the
/// operating system.
fn keep_memory() {
    const KEPT_BYTES: i32 = 256 << 20;
    // SAFETY: no other thread runs yet; parameters that the library does not know are ignored.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
    }
}

pub(crate) fn run(kind: Kind, seed: u64, numbers: Range<u64>) -> ExitCode {
    keep_memory();
    let mut laboratory = laboratory();
    let mut tally = Tally::default();
    let mut out = std::io::stdout().lock();
    let mut say = |line: String| {
        // Without anybody who listens there is nothing to do.
        if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
            std::process::exit(3);
        }
    };
    for number in numbers.clone() {
        say(format!("case {number}"));
        let case = Case::new(kind, seed, number);
        match try_object(&mut laboratory, &case.object, case.request, case.like) {
            Ok(verdict) => tally.count(&verdict),
            Err(reason) => {
                say(format!("tally {}", tally.line()));
                say(format!("failed {reason}"));
                return ExitCode::from(1);
            }
        }
        if number % REPORT_EVERY == 0 {
            say(format!("tally {}", tally.line()));
        }
    }
    say(format!("tally {}", tally.line()));
    ExitCode::SUCCESS
}

/// Tries one object of a file.
pub(crate) fn run_one(object: &Path, request: u64, like: &str) -> ExitCode {
    let object = match std::fs::read(object) {
        Ok(object) => object,
        Err(error) => {
            eprintln!("{}: {error}", object.display());
            return ExitCode::from(2);
        }
    };
    match try_object(&mut laboratory(), &object, request, like) {
        Ok(Verdict::Refused(reason)) => println!("refused: {reason}"),
        Ok(Verdict::Endless) => println!("endless"),
        Ok(Verdict::Ran { outcome, .. }) => println!("both engines: {:?}", outcome.status),
        Err(reason) => {
            println!("failed: {reason}");
            return ExitCode::from(1);
        }
    }
    ExitCode::SUCCESS
}
