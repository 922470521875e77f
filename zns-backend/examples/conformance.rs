//! The conformance suite on a device of this machine, whose contents it destroys.
//!
//! `conformance nvme:/dev/ng0n1 [DEVICE..]`; the geometry has to be one the suite can use (see
//! `zns_backend::conformance`). Prints a line per device and fails with the check that failed.

use std::process::ExitCode;
use std::sync::Arc;

use zns_backend::conformance::check_all;
use zns_backend::{ZoneId, ZonedDevice, open_device};

/// The device with all zones empty.
fn fresh(spec: &str) -> Result<Arc<dyn ZonedDevice>, zns_backend::Error> {
    let device = open_device(spec, false)?;
    for zone in 0..device.geometry().zones {
        device.reset(ZoneId(zone))?;
    }
    Ok(device)
}

fn main() -> ExitCode {
    let devices: Vec<String> = std::env::args().skip(1).collect();
    if devices.is_empty() {
        eprintln!("usage: conformance DEVICE..");
        return ExitCode::from(2);
    }
    for spec in devices {
        let geometry = match fresh(&spec) {
            Ok(device) => *device.geometry(),
            Err(error) => {
                eprintln!("{spec}: {error}");
                return ExitCode::FAILURE;
            }
        };
        check_all(|| fresh(&spec).expect("opened before"));
        println!("{spec} conforms ({geometry:?})");
    }
    ExitCode::SUCCESS
}
