//! `warren zones`: the zone table, as text, JSON or a picture.

use std::path::PathBuf;

use super::control::Request;
use super::device::Device;
use super::{CommandResult, Failure, Outcome, info, output, svg, target};
use crate::report::ZoneStatus;

/// Show the zone table.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Device, or where it is mounted
    target: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Draw the zone map to FILE
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> CommandResult {
    let zones: Vec<ZoneStatus> = match target::mount_of(&args.target)? {
        Some(entry) => target::ask(&entry, Request::Zones, &mut |_, _| {})?,
        None => {
            let device = Device::parse(&args.target)?;
            let store = info::open_read_only(&device)?;
            store.zone_table().map_err(|e| device.failure(e))?
        }
    };
    if let Some(path) = &args.svg {
        std::fs::write(path, svg::zone_map(&zones)).map_err(|e| Failure::new(path.display(), e))?;
    }
    if args.json {
        output::print_json(&zones)?;
    } else if args.svg.is_none() {
        output::print(text(&zones).trim_end());
    }
    Ok(Outcome::Fine)
}

fn text(zones: &[ZoneStatus]) -> String {
    let mut text = format!(
        "{:>6}  {:<8} {:<16} {:>10} {:>10} {:>10} {:>6} {:>10}\n",
        "zone", "class", "state", "written", "capacity", "live", "live%", "age"
    );
    for zone in zones {
        text.push_str(&format!(
            "{:>6}  {:<8} {:<16} {:>10} {:>10} {:>10} {:>5.1}% {:>10}\n",
            zone.zone,
            zone.class,
            zone.state,
            zone.write_pointer,
            zone.capacity,
            zone.live,
            100.0 * zone.live as f64 / zone.capacity.max(1) as f64,
            zone.age
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_zone_is_a_line_under_the_heading() {
        let zone = ZoneStatus {
            zone: 7,
            state: "full".into(),
            class: "hot".into(),
            write_pointer: 100,
            capacity: 100,
            live: 50,
            age: 3,
        };
        let text = text(&[zone.clone(), zone]);
        assert_eq!(text.lines().count(), 3);
        assert!(text.contains("50.0%"), "{text}");
    }
}
