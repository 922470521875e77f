//! The `warren` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    warren_fs::cli::run(std::env::args_os().collect())
}
