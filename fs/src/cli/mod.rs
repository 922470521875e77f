//! The `warren` command: arguments in, reports and exit codes out.
//!
//! Exit codes: 0 when all is well, 1 when the work failed, a check found errors or a key is not there, 2
//! when the arguments make no sense. An error is one line on standard error: `warren: SUBJECT: problem`.

mod control;
mod daemon;
mod device;
mod fsck;
mod helper;
mod info;
mod kernel;
mod kv;
mod mkfs;
mod mount;
mod output;
mod scrub;
mod stats;
mod svg;
mod target;
mod umount;
mod zones;

use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Name under which mount(8) calls the program.
const HELPER_NAME: &str = "mount.fuse.warren";

/// WarrenFS: a log-structured filesystem for zoned storage.
#[derive(Debug, Parser)]
#[command(
    name = "warren",
    version,
    propagate_version = true,
    after_help = "DEVICE is mem:SIZE (in memory, gone at unmount), PATH or file:PATH (an image \
                  file), nvme:/dev/ngXnY (a zoned NVMe namespace), or xnvme:URI (one through \
                  libxnvme, where that is built in).\n\
                  Sizes take K, M, G and T (powers of 1024).\n\
                  WARREN_LOG sets what is logged: error, warn (the default), info, debug, trace."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Mkfs(mkfs::Args),
    Mount(mount::Args),
    Umount(umount::Args),
    Fsck(fsck::Args),
    Info(info::Args),
    Zones(zones::Args),
    Stats(stats::Args),
    Scrub(scrub::Args),
    Kernel(kernel::Args),
    Kv(kv::Args),
}

/// Why a command failed: which input, and what is wrong with it.
#[derive(Debug, PartialEq, Eq)]
struct Failure {
    subject: String,
    problem: String,
    usage: bool,
}

impl Failure {
    /// The work on `subject` failed.
    fn new(subject: impl fmt::Display, problem: impl fmt::Display) -> Failure {
        Failure {
            subject: subject.to_string(),
            problem: problem.to_string(),
            usage: false,
        }
    }

    /// What was asked of `subject` makes no sense.
    fn usage(subject: impl fmt::Display, problem: impl fmt::Display) -> Failure {
        Failure {
            usage: true,
            ..Failure::new(subject, problem)
        }
    }

    fn exit_code(&self) -> ExitCode {
        ExitCode::from(if self.usage { 2 } else { 1 })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.subject.is_empty() {
            f.write_str(&self.problem)
        } else {
            write!(f, "{}: {}", self.subject, self.problem)
        }
    }
}

/// How a command that did not fail ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// All is well.
    Fine,
    /// A check found errors, and has reported them.
    Damage,
    /// What was asked for is not there, which is an answer.
    Absent,
}

type CommandResult = Result<Outcome, Failure>;

/// Runs the program with the arguments it was given.
#[must_use]
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    let called_as = arguments.first().map(Path::new).and_then(Path::file_name);
    let result = if called_as.is_some_and(|name| name == HELPER_NAME) {
        helper::run(&arguments[1..])
    } else {
        dispatch(Cli::parse_from(arguments).command)
    };
    match result {
        Ok(Outcome::Fine) => ExitCode::SUCCESS,
        Ok(Outcome::Damage | Outcome::Absent) => ExitCode::from(1),
        Err(failure) => {
            eprintln!("warren: {failure}");
            failure.exit_code()
        }
    }
}

fn dispatch(command: Command) -> CommandResult {
    if !matches!(command, Command::Mount(_)) {
        output::log_to_stderr();
    }
    match command {
        Command::Mkfs(args) => mkfs::run(&args),
        Command::Mount(args) => mount::run(&args),
        Command::Umount(args) => umount::run(&args),
        Command::Fsck(args) => fsck::run(&args),
        Command::Info(args) => info::run(&args),
        Command::Zones(args) => zones::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Scrub(args) => scrub::run(&args),
        Command::Kernel(args) => kernel::run(&args),
        Command::Kv(args) => kv::run(&args),
    }
}

/// The command line as `clap` knows it, for checks of the manual.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}
