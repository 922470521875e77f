//! Device arguments, and opening what they name.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use zns_backend::{DeviceSpec, Error, Timing, XnvmeTarget, ZonedDevice};

use super::Failure;

/// How long a device in use is waited for: its last daemon may be writing its last checkpoint.
const BUSY_WAIT: Duration = Duration::from_secs(10);
/// Time between two attempts.
const BUSY_POLL: Duration = Duration::from_millis(20);

/// A device argument, with its path made absolute: the daemon changes its directory, and mount(8)
/// shows it.
#[derive(Clone, Debug)]
pub(super) struct Device {
    /// As given.
    pub(super) name: String,
    /// What it names.
    pub(super) spec: DeviceSpec,
    /// How it is timed, if it is.
    pub(super) timing: Option<Timing>,
    /// As [`zns_backend::open_device`] takes it, wherever the process stands.
    pub(super) absolute: String,
}

impl Device {
    /// Reads a device argument.
    pub(super) fn parse(argument: &str) -> Result<Device, Failure> {
        let usage = |e| Failure::usage("", e);
        let spec = DeviceSpec::parse(argument).map_err(usage)?;
        let (bare, timing) = Timing::split(argument).map_err(usage)?;
        let absolute = match &spec {
            DeviceSpec::File(path) => {
                let path = std::path::absolute(path).map_err(|e| Failure::new(argument, e))?;
                let path = path.canonicalize().unwrap_or(path);
                match path.to_str() {
                    // A path could look like another kind of device.
                    Some(path) if DeviceSpec::parse(path).ok() == Some(spec_of(path)) => {
                        path.into()
                    }
                    Some(path) => format!("file:{path}"),
                    None => return Err(Failure::new(argument, "the path is not valid UTF-8")),
                }
            }
            DeviceSpec::Nvme(path) => {
                let path = std::path::absolute(path).map_err(|e| Failure::new(argument, e))?;
                let path = path
                    .to_str()
                    .ok_or_else(|| Failure::new(argument, "the path is not valid UTF-8"))?;
                format!("nvme:{path}")
            }
            DeviceSpec::Xnvme(uri) => {
                let mut uri = uri.clone();
                if let XnvmeTarget::Node(path) = &mut uri.target {
                    *path = std::path::absolute(&*path).map_err(|e| Failure::new(argument, e))?;
                }
                uri.to_string()
            }
            DeviceSpec::Mem(_) => bare.into(),
        };
        let suffix = timing.map(|timing| timing.to_string());
        Ok(Device {
            name: argument.into(),
            spec,
            timing,
            absolute: absolute + &suffix.unwrap_or_default(),
        })
    }

    /// Whether the device is made when it is opened.
    pub(super) fn is_volatile(&self) -> bool {
        matches!(self.spec, DeviceSpec::Mem(_))
    }

    /// Opens it, and waits a while for its last user to finish.
    pub(super) fn open_waiting(&self, read_only: bool) -> Result<Arc<dyn ZonedDevice>, Failure> {
        self.check_exists()?;
        let deadline = Instant::now() + BUSY_WAIT;
        loop {
            match zns_backend::open_device(&self.absolute, read_only) {
                Err(Error::Busy(_)) if Instant::now() < deadline => thread::sleep(BUSY_POLL),
                result => return result.map_err(|e| self.failure(e)),
            }
        }
    }

    fn check_exists(&self) -> Result<(), Failure> {
        match &self.spec {
            DeviceSpec::File(path) if !path.exists() => Err(Failure::new(
                &self.name,
                "no such file (warren mkfs makes one)",
            )),
            _ => Ok(()),
        }
    }

    /// An error of the device, which may name the device already.
    pub(super) fn failure(&self, error: impl std::fmt::Display) -> Failure {
        let text = error.to_string();
        let named = text
            .strip_prefix(&self.absolute)
            .or_else(|| text.strip_prefix(&self.name))
            .map(|rest| rest.trim_start_matches([':', ' ']).to_owned());
        Failure::new(&self.name, named.unwrap_or(text))
    }
}

fn spec_of(path: &str) -> DeviceSpec {
    DeviceSpec::File(PathBuf::from(path))
}
