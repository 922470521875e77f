//! Makes a failing case smaller as long as it fails, and writes it down.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use csd_vm::program::fuzz::Parts;
use csd_vm::program::insn::{Insn, LDDW};
use csd_vm::program::{LinkLimits, Program};

use crate::cases::{Case, Source};

/// Attempts to make it smaller.
const ATTEMPTS_MAX: u32 = 600;

/// A smaller case that takes longer hangs.
const HANG: Duration = Duration::from_secs(15);

/// `r0 = r0`.
const NOTHING: u64 = 0xbf;

/// Writes the smallest case that fails to files in `directory`; tells which.
pub(crate) fn keep(case: &Case, reason: &str, directory: &Path) -> String {
    if let Err(error) = std::fs::create_dir_all(directory) {
        return format!("{}: {error}", directory.display());
    }
    let stem = format!("{}-{}", case.kind.name(), case.number);
    let path = directory.join(format!("{stem}.o"));
    let mut attempts = ATTEMPTS_MAX;
    let mut fails = |object: &[u8]| {
        attempts = attempts.saturating_sub(1);
        attempts > 0 && std::fs::write(&path, object).is_ok() && does_fail(&path, case)
    };
    let (object, certain) = match fails(&case.object) {
        true => (smaller(case, &mut fails), ""),
        false => (case.object.clone(), "\nAlone it does not fail."),
    };
    let text = format!("{reason}{certain}\n\n{}", listing(&object));
    let written = std::fs::write(&path, &object)
        .and_then(|()| std::fs::write(directory.join(format!("{stem}.txt")), text));
    match written {
        Ok(()) => format!(
            "kept as {}; again: --one {0} --request {} --like '{}'{certain}",
            path.display(),
            case.request,
            case.like
        ),
        Err(error) => format!("{}: {error}", path.display()),
    }
}

/// Whether a process that tries the object ends badly, or not at all.
fn does_fail(path: &Path, case: &Case) -> bool {
    let child = crate::this_program()
        .arg("--one")
        .arg(path)
        .args(["--request", &case.request.to_string(), "--like", case.like])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut child = child.expect("this program can be started");
    let until = Instant::now() + HANG;
    while Instant::now() < until {
        match child.try_wait() {
            Ok(None) => std::thread::sleep(Duration::from_millis(2)),
            Ok(Some(status)) => return !status.success(),
            Err(_) => return false,
        }
    }
    crate::stop(&mut child);
    true
}

fn smaller(case: &Case, fails: &mut impl FnMut(&[u8]) -> bool) -> Vec<u8> {
    match &case.source {
        Source::Parts(parts) => without_instructions(parts.clone(), fails).object(),
        Source::Original(original) => nearer_to(original, &case.object, fails),
    }
}

/// Replaces instructions by ones that do nothing, many at a time at first.
fn without_instructions(mut parts: Parts, fails: &mut impl FnMut(&[u8]) -> bool) -> Parts {
    let mut step = parts.slots.len().next_power_of_two() / 2;
    while step > 0 {
        for start in (0..parts.slots.len()).step_by(step) {
            let end = (start + step).min(parts.slots.len());
            let mut fewer = parts.clone();
            clear(&mut fewer, start, end);
            if fewer != parts && fails(&fewer.object()) {
                parts = fewer;
            }
        }
        step /= 2;
    }
    parts
}

/// Constants go as a whole; the ends of functions stay.
fn clear(parts: &mut Parts, start: usize, end: usize) {
    let mut at = 0;
    while at < end {
        let insn = Insn::decode(parts.slots[at]);
        let width = if insn.opcode == LDDW { 2 } else { 1 };
        let inside = at >= start && at + width <= parts.slots.len();
        if inside && !matches!(insn.opcode, 0x95) {
            parts.slots[at..at + width].fill(NOTHING);
            parts.references.retain(|(slot, _)| *slot != at);
        }
        at += width;
    }
}

/// Takes mutations back, word by word.
fn nearer_to(original: &[u8], object: &[u8], fails: &mut impl FnMut(&[u8]) -> bool) -> Vec<u8> {
    let mut object = object.to_vec();
    for at in (0..object.len().min(original.len())).step_by(8) {
        let end = (at + 8).min(object.len()).min(original.len());
        if object[at..end] != original[at..end] {
            let mut nearer = object.clone();
            nearer[at..end].copy_from_slice(&original[at..end]);
            if fails(&nearer) {
                object = nearer;
            }
        }
    }
    object
}

/// The instructions of an object that do something, or why it has none.
fn listing(object: &[u8]) -> String {
    match Program::link(object, &LinkLimits::default()) {
        Ok(program) => {
            let slots = program.instructions(0x1_0000).into_iter().enumerate();
            let line = |(at, slot)| format!("{at:5}  {slot:016x}  {:?}\n", Insn::decode(slot));
            slots
                .filter(|(_, slot)| *slot != NOTHING)
                .map(line)
                .collect()
        }
        Err(reason) => format!("refused: {reason}\n"),
    }
}
