//! `warren fsck`: checks everything, changes nothing.

use super::device::Device;
use super::output::Bar;
use super::{CommandResult, Failure, Outcome, output, target};
use crate::fsck;
use crate::report::FsckReport;

/// Check a filesystem.
///
/// Checks the catalog, the log and the namespace and changes nothing. The filesystem must not be mounted. Exits with 0 if it is
/// sound, 1 if there are errors.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Device to check
    device: String,
    /// Read and verify every block of every file as well
    #[arg(long)]
    data: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> CommandResult {
    let device = Device::parse(&args.device)?;
    if device.is_volatile() {
        let problem = "a memory device exists only while it is mounted: use scrub";
        return Err(Failure::usage(&device.name, problem));
    }
    if let Some(entry) = target::mounted_device(&device)? {
        let place = entry.mount_point.display();
        let problem = format!("mounted at {place}: unmount it, or use scrub");
        return Err(Failure::new(&device.name, problem));
    }
    let opened = device.open_waiting(true)?;
    let bar = Bar::new("checking");
    let report = fsck::check(opened, args.data, &|done, total| bar.show(done, total))
        .map_err(|e| device.failure(e))?;
    drop(bar);
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print(&text(&device.name, &report));
    }
    Ok(if report.errors.is_empty() {
        Outcome::Fine
    } else {
        Outcome::Damage
    })
}

fn text(device: &str, report: &FsckReport) -> String {
    let mut lines: Vec<String> = report
        .errors
        .iter()
        .map(|error| format!("{device}: {error}"))
        .collect();
    let checked: Vec<String> = report
        .checked
        .iter()
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    let verdict = match report.errors.len() {
        0 => "clean".into(),
        1 => "1 error".into(),
        errors => format!("{errors} errors"),
    };
    lines.push(format!("{device}: {verdict} ({})", checked.join(", ")));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_comes_last_and_counts_the_errors() {
        let mut report = FsckReport::default();
        report.checked.insert("files".into(), 3);
        assert_eq!(text("a.img", &report), "a.img: clean (3 files)");
        report.errors.push("inode 5: link count 2, found 1".into());
        let text = text("a.img", &report);
        assert_eq!(text.lines().count(), 2);
        assert!(text.ends_with("a.img: 1 error (3 files)"));
    }
}
