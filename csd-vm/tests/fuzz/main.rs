//! The long fuzzer: generated programs and mutated kernels, compiled and interpreted.
//!
//!     cargo test -p csd-vm --release --test fuzz -- --streams 2000000 --objects 1000000 --seed 7
//!
//! Without arguments a few thousand cases run, as in CI. Cases run in a process of their own, so that
//! one that ends or stops the process is found too: by the signal, or because nothing happens any
//! more. What fails is made smaller as long as it fails, and written to files (`--keep DIR`): the object,
//! and its instructions as text. `--one OBJECT --request N [--like KERNEL]` tries it
//! again.
//!
//! At the end it tells what became of the cases; few that get far are a failure too.

mod arguments;
mod cases;
mod child;
mod originals;
mod reduce;
mod tally;

use std::io::{BufRead, BufReader, IsTerminal};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use self::arguments::{Arguments, Mode};
use self::cases::{Case, Kind};
use self::tally::Tally;

/// A case that takes longer hangs.
const HANG: Duration = Duration::from_secs(60);

/// How often to tell how far it is where there is no terminal for a bar.
const TELL_EVERY: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let arguments = match Arguments::of_process() {
        Ok(arguments) => arguments,
        Err(reason) => {
            eprintln!("fuzz: {reason}");
            return ExitCode::from(2);
        }
    };
    match &arguments.mode {
        Mode::List => {
            println!("streams: test\nobjects: test");
            ExitCode::SUCCESS
        }
        Mode::Child { kind, first, last } => child::run(*kind, arguments.seed, *first..*last),
        Mode::One {
            object,
            request,
            like,
        } => child::run_one(object, *request, like),
        Mode::All => run_all(&arguments),
    }
}

fn run_all(arguments: &Arguments) -> ExitCode {
    let (mut passed, mut failed) = (0, 0);
    let kinds = [
        (Kind::Stream, arguments.streams),
        (Kind::Object, arguments.objects),
    ];
    let kinds = kinds
        .into_iter()
        .filter(|(kind, count)| arguments.wants(*kind) && *count > 0);
    let kinds: Vec<_> = kinds.collect();
    if kinds.iter().any(|(kind, _)| *kind == Kind::Object) {
        originals::compile();
    }
    for (kind, count) in kinds {
        let name = kind.name();
        match campaign(kind, count, arguments) {
            Ok(tally) => {
                println!("{name}, seed {}: {tally}", arguments.seed);
                let shallow = tally.shallow(kind);
                for reason in &shallow {
                    println!("{name}: {reason}");
                }
                let good = shallow.is_empty();
                passed += u32::from(good);
                failed += u32::from(!good);
                println!("test {name} ... {}", if good { "ok" } else { "FAILED" });
            }
            Err(reason) => {
                println!("{name}: {reason}");
                println!("test {name} ... FAILED");
                failed += 1;
            }
        }
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "test result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out"
    );
    ExitCode::from(u8::from(failed > 0))
}

/// How a child that tries cases ended.
enum End {
    /// All of them are well.
    Done,
    /// This one is not, for this reason.
    Failed(u64, String),
}

/// Tries `count` cases; goes on behind those that failed, up to a few.
fn campaign(kind: Kind, count: u64, arguments: &Arguments) -> Result<Tally, String> {
    const FAILURES_MAX: usize = 8;
    let bar = progress(kind, count);
    let mut tally = Tally::default();
    let mut failures = Vec::new();
    let (mut first, begun) = (arguments.first, Instant::now());
    let last = first + count;
    while first < last && failures.len() < FAILURES_MAX {
        match run_child(kind, arguments.seed, first, last, &bar, &mut tally) {
            End::Done => break,
            End::Failed(number, reason) => {
                let case = Case::new(kind, arguments.seed, number);
                let kept = bar.suspend(|| reduce::keep(&case, &reason, &arguments.keep));
                failures.push(format!(
                    "case {number}, seed {}: {reason}\n{kept}",
                    arguments.seed
                ));
                first = number + 1;
            }
        }
    }
    bar.finish_and_clear();
    tally.seconds = begun.elapsed().as_secs_f64();
    match failures.is_empty() {
        true => Ok(tally),
        false => Err(format!("{tally}\n{}", failures.join("\n"))),
    }
}

fn progress(kind: Kind, count: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = "{prefix} {wide_bar} {pos}/{len} {per_sec} {eta} {msg}";
    let style = ProgressStyle::with_template(template).expect("a template");
    ProgressBar::new(count)
        .with_style(style)
        .with_prefix(kind.name())
}

fn run_child(
    kind: Kind,
    seed: u64,
    first: u64,
    last: u64,
    bar: &ProgressBar,
    tally: &mut Tally,
) -> End {
    let range = [first.to_string(), last.to_string()];
    let mut child = this_program()
        .args(["--child", kind.name(), "--seed", &seed.to_string()])
        .args(range)
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program can be started");
    let lines = lines_of(&mut child);
    let before = tally.clone();
    let (mut current, mut told) = (first, Instant::now());
    loop {
        match lines.recv_timeout(HANG) {
            Ok(line) => match line.split_once(' ') {
                Some(("case", number)) => current = number.parse().unwrap_or(current),
                Some(("tally", rest)) => {
                    *tally = before.plus(&Tally::parse(rest));
                    bar.set_position(tally.tried());
                    bar.set_message(tally.brief());
                    if bar.is_hidden() && told.elapsed() >= TELL_EVERY {
                        println!(
                            "{}: {} cases, {}",
                            kind.name(),
                            tally.tried(),
                            tally.brief()
                        );
                        told = Instant::now();
                    }
                }
                Some(("failed", reason)) => {
                    stop(&mut child);
                    return End::Failed(current, reason.to_owned());
                }
                _ => println!("{line}"),
            },
            Err(RecvTimeoutError::Timeout) => {
                stop(&mut child);
                return End::Failed(current, format!("hangs for {HANG:?}"));
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.wait().expect("the child ends");
    match status.success() {
        true => End::Done,
        false => End::Failed(current, ending(status)),
    }
}

fn this_program() -> Command {
    Command::new(std::env::current_exe().expect("this program"))
}

fn stop(child: &mut Child) {
    // It may have ended meanwhile.
    let _ = child.kill();
    let _ = child.wait();
}

fn ending(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("ended the process with signal {signal}"),
        None => format!("ended the process with {status}"),
    }
}

/// The lines that a child writes, as they come.
fn lines_of(child: &mut Child) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    let output = child.stdout.take().expect("piped");
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Where files of this run go.
fn scratch() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}
