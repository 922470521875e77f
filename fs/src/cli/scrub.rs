//! `warren scrub`: has a running mount read and verify all it holds.

use std::path::PathBuf;

use super::control::Request;
use super::output::Bar;
use super::{CommandResult, Outcome, output, target};
use crate::report::ScrubReport;

/// Read and verify all live blocks of a mount.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where it is mounted
    mountpoint: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> CommandResult {
    let entry = target::require(&args.mountpoint)?;
    let bar = Bar::new("reading");
    let report: ScrubReport = target::ask(&entry, Request::Scrub, &mut |done, total| {
        bar.show(done, total);
    })?;
    drop(bar);
    if args.json {
        output::print_json(&report)?;
    } else {
        for error in &report.errors {
            output::print(error);
        }
        let (blocks, errors) = (report.blocks, report.errors.len());
        output::print(&format!("{blocks} blocks read, {errors} errors"));
    }
    Ok(if report.errors.is_empty() {
        Outcome::Fine
    } else {
        Outcome::Damage
    })
}
