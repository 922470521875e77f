//! `warren stats`: the counters of a running mount.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use super::control::Request;
use super::{CommandResult, Outcome, output, target};
use crate::report::Stats;

/// Show the counters of a mount.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where it is mounted
    mountpoint: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print what was added, every second, until the mount ends
    #[arg(long)]
    watch: bool,
}

pub(super) fn run(args: &Args) -> CommandResult {
    let entry = target::require(&args.mountpoint)?;
    let mut last: Stats = target::ask(&entry, Request::Stats, &mut |_, _| {})?;
    show(args, &last)?;
    if !args.watch {
        return Ok(Outcome::Fine);
    }
    loop {
        thread::sleep(Duration::from_secs(1));
        if target::find(&args.mountpoint)?.is_none() {
            return Ok(Outcome::Fine);
        }
        let now = target::ask(&entry, Request::Stats, &mut |_, _| {})?;
        show(args, &difference(&last, &now))?;
        last = now;
    }
}

fn show(args: &Args, stats: &Stats) -> Result<(), super::Failure> {
    if args.json {
        return output::print_json(stats);
    }
    output::print(text(stats).trim_end());
    Ok(())
}

fn text(stats: &Stats) -> String {
    let mut text = String::new();
    for (group, counters) in &stats.groups {
        text.push_str(&format!("{group}\n"));
        for (name, value) in counters {
            text.push_str(&format!("  {name:<30} {value:>16}\n"));
        }
    }
    text
}

fn difference(before: &Stats, after: &Stats) -> Stats {
    let mut difference = after.clone();
    for (group, counters) in &mut difference.groups {
        for (name, value) in counters {
            let earlier = before.groups.get(group).and_then(|g| g.get(name));
            *value = value.saturating_sub(earlier.copied().unwrap_or(0));
        }
    }
    difference
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(value: u64) -> Stats {
        let mut stats = Stats::default();
        let group = stats.groups.entry("log".into()).or_default();
        group.insert("chunks".into(), value);
        stats
    }

    #[test]
    fn watching_shows_what_was_added() {
        assert_eq!(difference(&stats(3), &stats(10)), stats(7));
        assert_eq!(difference(&Stats::default(), &stats(10)), stats(10));
        assert!(text(&stats(5)).starts_with("log\n  chunks"));
    }
}
