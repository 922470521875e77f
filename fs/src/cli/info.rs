//! `warren info`: what a filesystem is, and how full.

use super::control::Request;
use super::device::Device;
use super::target;
use super::{CommandResult, Failure, Outcome, output};
use crate::report::Info;
use crate::size::HumanSize;
use crate::store::{Store, StoreOptions};

/// Show superblock, checkpoint and usage.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Device, or where it is mounted
    target: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> CommandResult {
    let info: Info = match target::mount_of(&args.target)? {
        Some(entry) => target::ask(&entry, Request::Info, &mut |_, _| {})?,
        None => {
            let device = Device::parse(&args.target)?;
            open_read_only(&device)?.info()
        }
    };
    if args.json {
        output::print_json(&info)?;
    } else {
        output::print(text(&info).trim_end());
    }
    Ok(Outcome::Fine)
}

/// Opens the filesystem of a device to look at it.
pub(super) fn open_read_only(device: &Device) -> Result<std::sync::Arc<Store>, Failure> {
    if device.is_volatile() {
        return Err(Failure::usage(
            &device.name,
            "a memory device exists only while it is mounted: give its mount point",
        ));
    }
    let options = StoreOptions {
        read_only: true,
        background: false,
        ..StoreOptions::default()
    };
    let opened = device.open_waiting(true)?;
    Store::open(opened, &options).map_err(|e| device.failure(e))
}

fn text(info: &Info) -> String {
    let bytes = |blocks: u64| HumanSize(blocks * u64::from(info.block_size));
    let percent = 100.0 * info.used as f64 / info.total.max(1) as f64;
    let state = if info.clean {
        "clean"
    } else {
        "in use or to be recovered"
    };
    let rows = [
        ("label", info.label.clone()),
        ("uuid", info.uuid.clone()),
        ("format version", info.version.to_string()),
        ("state", state.into()),
        ("block size", format!("{} B", info.block_size)),
        (
            "zones",
            format!(
                "{} of {}, {} writable",
                info.zones,
                bytes(info.zone_size),
                bytes(info.zone_capacity)
            ),
        ),
        (
            "used",
            format!(
                "{} of {} ({percent:.1} %)",
                bytes(info.used),
                bytes(info.total)
            ),
        ),
        ("checkpoint", info.checkpoint.to_string()),
        ("log sequence", info.sequence.to_string()),
    ];
    rows.iter()
        .map(|(name, value)| format!("{name:<15} {value}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_names_identity_shape_and_usage() {
        let info = Info {
            label: "barn".into(),
            uuid: "u".into(),
            version: 1,
            created: 0,
            block_size: 4096,
            zones: 16,
            zone_size: 1024,
            zone_capacity: 768,
            checkpoint: 3,
            sequence: 9,
            used: 1024,
            total: 4096,
            clean: true,
        };
        let text = text(&info);
        for part in ["barn", "16 of 4.00 MiB, 3.00 MiB writable", "25.0 %"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
