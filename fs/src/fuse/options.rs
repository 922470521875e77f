//! The options behind `-o`: those of mount(8), those of FUSE, and our own.
//!
//! An unknown option is an error that names it. Options that only tell mount(8) or fstab(5)
//! something are taken and dropped, as the helpers of other filesystems do.

use std::path::PathBuf;
use std::time::Duration;

use zns_backend::parse_size;

use crate::offload::Verify;
use crate::offload::limits::{self, TIMEOUT_MS_MAX};

/// Longest lifetime of what the kernel caches, where nothing else is asked for: a day.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
/// Largest request, in bytes. The kernel's own limit is 256 pages unless an administrator raises
/// it.
const DEFAULT_REQUEST_BYTES: u32 = 1 << 20;
/// Four requests: one stream keeps as many under way while it consumes what came before.
const DEFAULT_READAHEAD_BYTES: u32 = 4 * DEFAULT_REQUEST_BYTES;
/// Largest request `fuser` has buffers for, in bytes.
const REQUEST_BYTES_MAX: u64 = 16 << 20;
/// Smallest request: one page.
const REQUEST_BYTES_MIN: u64 = 4096;

/// Options of a mount.
#[derive(Clone, Debug, PartialEq)]
pub struct MountOptions {
    /// Refuse every change (`ro`).
    pub read_only: bool,
    /// Ignore set-ID bits (`nosuid`).
    pub nosuid: bool,
    /// Refuse to open device files (`nodev`).
    pub nodev: bool,
    /// Refuse to execute files (`noexec`).
    pub noexec: bool,
    /// Passed on to the kernel (`noatime`).
    pub noatime: bool,
    /// Passed on to the kernel (`nodiratime`).
    pub nodiratime: bool,
    /// Every change is durable when its call returns (`sync`).
    pub sync: bool,
    /// Every change of a directory is durable when its call returns (`dirsync`).
    pub dirsync: bool,
    /// Other users than the one who mounts get in (`allow_other`, the default).
    pub allow_other: bool,
    /// Every handle bypasses the page cache (`direct_io`).
    pub direct_io: bool,
    /// Writes are gathered in the page cache (`writeback`, the default; `no_writeback`).
    pub writeback: bool,
    /// Processors are kept from halting while requests keep coming (`low_latency`, the default;
    /// `no_low_latency`).
    pub low_latency: bool,
    /// Bound on the metadata cache, in bytes (`cache=SIZE`).
    pub cache_bytes: Option<usize>,
    /// Event loops (`threads=N`).
    pub threads: Option<usize>,
    /// Where the daemon logs to (`log=FILE`).
    pub log: Option<PathBuf>,
    /// The source shown by mount(8) (`fsname=NAME`); otherwise the device.
    pub fsname: Option<String>,
    /// Largest read request, in bytes (`max_read=SIZE`).
    pub max_read: Option<u32>,
    /// Largest write request, in bytes (`max_write=SIZE`).
    pub max_write: u32,
    /// Readahead, in bytes (`max_readahead=SIZE`).
    pub max_readahead: u32,
    /// Background requests in flight before the kernel waits (`max_background=N`).
    pub max_background: u16,
    /// Whether kernels are verified before they are registered
    /// (`csd_verify=off|report|require`).
    pub csd_verify: Verify,
    /// Worker threads for kernels (`csd_workers=N`); 0: as many as there are processors.
    pub csd_workers: usize,
    /// Longest run of a kernel that does not ask for another (`csd_timeout_ms=N`).
    pub csd_timeout: Duration,
    /// How long attributes are valid (`attr_timeout=SECONDS`).
    pub attr_timeout: Duration,
    /// How long entries are valid (`entry_timeout=SECONDS`).
    pub entry_timeout: Duration,
    /// How long the absence of an entry is valid (`negative_timeout=SECONDS`).
    pub negative_timeout: Duration,
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions {
            read_only: false,
            nosuid: false,
            nodev: false,
            noexec: false,
            noatime: false,
            nodiratime: false,
            sync: false,
            dirsync: false,
            allow_other: true,
            direct_io: false,
            writeback: true,
            low_latency: true,
            cache_bytes: None,
            threads: None,
            log: None,
            fsname: None,
            max_read: None,
            max_write: DEFAULT_REQUEST_BYTES,
            max_readahead: DEFAULT_READAHEAD_BYTES,
            max_background: 128,
            csd_verify: Verify::Off,
            csd_workers: 0,
            csd_timeout: limits::DEFAULT_TIMEOUT,
            attr_timeout: DEFAULT_TIMEOUT,
            entry_timeout: DEFAULT_TIMEOUT,
            negative_timeout: DEFAULT_TIMEOUT,
        }
    }
}

/// An option that cannot be used, and why.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Nobody knows it.
    #[error("unknown mount option '{0}'")]
    Unknown(String),
    /// It needs a value, or its value is none.
    #[error("mount option '{option}': {problem}")]
    BadValue {
        /// The option as given.
        option: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A running mount cannot be changed.
    #[error("mount option 'remount' is not supported: unmount and mount again")]
    Remount,
}

impl MountOptions {
    /// Adds the comma-separated options of one `-o`. Later ones win. `sloppy` (mount(8) `-s`)
    /// passes over unknown ones.
    ///
    /// # Errors
    /// The first option that is unknown or has a bad value.
    pub fn parse(&mut self, list: &str, sloppy: bool) -> Result<(), OptionError> {
        for option in list.split(',').filter(|option| !option.is_empty()) {
            match self.apply(option) {
                Err(OptionError::Unknown(_)) if sloppy => {}
                result => result?,
            }
        }
        Ok(())
    }

    fn apply(&mut self, option: &str) -> Result<(), OptionError> {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        match value {
            None => self.apply_flag(option),
            Some(value) => self.apply_value(option, name, value),
        }
    }

    fn apply_flag(&mut self, option: &str) -> Result<(), OptionError> {
        match option {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "nosuid" => self.nosuid = true,
            "suid" => self.nosuid = false,
            "nodev" => self.nodev = true,
            "dev" => self.nodev = false,
            "noexec" => self.noexec = true,
            "exec" => self.noexec = false,
            "noatime" => self.noatime = true,
            "atime" | "relatime" | "strictatime" | "norelatime" | "nostrictatime" => {
                self.noatime = false;
            }
            "nodiratime" => self.nodiratime = true,
            "diratime" => self.nodiratime = false,
            "sync" => self.sync = true,
            "async" => self.sync = false,
            "dirsync" => self.dirsync = true,
            "allow_other" => self.allow_other = true,
            "no_allow_other" => self.allow_other = false,
            "direct_io" => self.direct_io = true,
            "writeback" => self.writeback = true,
            "no_writeback" => self.writeback = false,
            "low_latency" => self.low_latency = true,
            "no_low_latency" => self.low_latency = false,
            // What fstab(5) says for restricted users implies these.
            "user" | "users" | "owner" | "group" => {
                self.nosuid = true;
                self.nodev = true;
                if matches!(option, "user" | "users") {
                    self.noexec = true;
                }
            }
            "default_permissions"
            | "defaults"
            | "auto"
            | "noauto"
            | "nouser"
            | "nousers"
            | "noowner"
            | "nogroup"
            | "nofail"
            | "_netdev"
            | "lazytime"
            | "nolazytime"
            | "iversion"
            | "noiversion"
            | "silent"
            | "loud" => {}
            "remount" => return Err(OptionError::Remount),
            "cache" | "threads" | "log" | "fsname" | "subtype" | "max_read" | "max_write"
            | "max_readahead" | "max_background" | "attr_timeout" | "entry_timeout"
            | "negative_timeout" | "csd_verify" | "csd_workers" | "csd_timeout_ms" => {
                return Err(bad(option, "needs a value"));
            }
            _ if is_comment(option) => {}
            _ => return Err(OptionError::Unknown(option.into())),
        }
        Ok(())
    }

    fn apply_value(&mut self, option: &str, name: &str, value: &str) -> Result<(), OptionError> {
        match name {
            "cache" => {
                let bytes = parse_size(value).map_err(|e| bad(option, &e.to_string()))?;
                let bytes = usize::try_from(bytes).map_err(|_| bad(option, "too large"))?;
                self.cache_bytes = Some(bytes);
            }
            "threads" => self.threads = Some(number(option, value, 1, 1024)? as usize),
            "log" => self.log = Some(value.into()),
            "fsname" => self.fsname = Some(value.into()),
            "max_read" => self.max_read = Some(request_size(option, value)?),
            "max_write" => self.max_write = request_size(option, value)?,
            "max_readahead" => self.max_readahead = request_size(option, value)?,
            "max_background" => self.max_background = number(option, value, 4, 65535)? as u16,
            "csd_verify" => {
                self.csd_verify = match value {
                    "off" => Verify::Off,
                    "report" => Verify::Report,
                    "require" => Verify::Require,
                    _ => return Err(bad(option, "not one of off, report and require")),
                }
            }
            "csd_workers" => self.csd_workers = number(option, value, 1, 256)? as usize,
            "csd_timeout_ms" => {
                let ms = number(option, value, 1, TIMEOUT_MS_MAX)?;
                self.csd_timeout = Duration::from_millis(ms);
            }
            "attr_timeout" => self.attr_timeout = seconds(option, value)?,
            "entry_timeout" => self.entry_timeout = seconds(option, value)?,
            "negative_timeout" => self.negative_timeout = seconds(option, value)?,
            "subtype" | "user" | "uhelper" | "helper" => {}
            _ if is_comment(name) => {}
            _ => return Err(OptionError::Unknown(option.into())),
        }
        Ok(())
    }
}

fn is_comment(name: &str) -> bool {
    name == "comment" || name.starts_with("x-") || name.starts_with("X-")
}

fn bad(option: &str, problem: &str) -> OptionError {
    OptionError::BadValue {
        option: option.into(),
        problem: problem.into(),
    }
}

fn number(option: &str, value: &str, min: u64, max: u64) -> Result<u64, OptionError> {
    match value.parse() {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        _ => Err(bad(option, &format!("not a number from {min} to {max}"))),
    }
}

fn request_size(option: &str, value: &str) -> Result<u32, OptionError> {
    match parse_size(value) {
        Ok(bytes) if (REQUEST_BYTES_MIN..=REQUEST_BYTES_MAX).contains(&bytes) => Ok(bytes as u32),
        Ok(_) => Err(bad(option, "not a size from 4K to 16M")),
        Err(error) => Err(bad(option, &error.to_string())),
    }
}

fn seconds(option: &str, value: &str) -> Result<Duration, OptionError> {
    value
        .parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| bad(option, "not a number of seconds"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(list: &str) -> Result<MountOptions, OptionError> {
        let mut options = MountOptions::default();
        options.parse(list, false)?;
        Ok(options)
    }

    #[test]
    fn options_of_fstab_are_understood() {
        let options = parsed("defaults,ro,nosuid,nodev,noexec,noatime,nofail,_netdev").unwrap();
        assert!(options.read_only && options.nosuid && options.nodev && options.noexec);
        assert!(options.noatime && options.allow_other && options.writeback);
        let ignored = "x-systemd.automount,x-gvfs-show,X-mount.mkdir=0755,comment=a,,user=joe";
        assert_eq!(parsed(ignored).unwrap(), MountOptions::default());
    }

    #[test]
    fn later_options_win() {
        let options = parsed("ro,user,rw,exec,sync,async,no_writeback,writeback").unwrap();
        assert!(!options.read_only && !options.noexec && options.nosuid && !options.sync);
        assert!(options.writeback);
    }

    #[test]
    fn values_are_parsed() {
        let options = parsed(
            "csd_verify=require,csd_workers=3,csd_timeout_ms=250,cache=256M,threads=3,log=/l,fsname=f,max_read=64K,max_write=128K,attr_timeout=0.5",
        )
        .unwrap();
        assert_eq!(options.cache_bytes, Some(256 << 20));
        assert_eq!(options.threads, Some(3));
        assert_eq!(options.log.as_deref(), Some("/l".as_ref()));
        assert_eq!(options.fsname.as_deref(), Some("f"));
        assert_eq!(
            (options.max_read, options.max_write),
            (Some(64 << 10), 128 << 10)
        );
        assert_eq!(options.attr_timeout, Duration::from_millis(500));
        assert_eq!(options.csd_verify, Verify::Require);
        assert_eq!(options.csd_workers, 3);
        assert_eq!(options.csd_timeout, Duration::from_millis(250));
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_name() {
        assert_eq!(
            parsed("ro,frobnicate").unwrap_err(),
            OptionError::Unknown("frobnicate".into())
        );
        assert_eq!(
            parsed("size=3").unwrap_err(),
            OptionError::Unknown("size=3".into())
        );
        assert_eq!(parsed("remount,ro").unwrap_err(), OptionError::Remount);
        for list in [
            "cache",
            "cache=lots",
            "threads=0",
            "threads=x",
            "max_write=1",
            "max_read=1T",
            "max_background=0",
            "attr_timeout=-1",
            "entry_timeout=nan",
            "csd_verify",
            "csd_verify=maybe",
            "csd_workers=0",
            "csd_workers",
            "csd_timeout_ms=0",
            "csd_timeout_ms=1s",
        ] {
            let error = parsed(list).unwrap_err();
            assert!(
                matches!(&error, OptionError::BadValue { option, .. } if option == list),
                "{list}: {error:?}"
            );
        }
    }

    #[test]
    fn sloppy_parsing_passes_over_unknown_options_only() {
        let mut options = MountOptions::default();
        options.parse("frobnicate,ro", true).unwrap();
        assert!(options.read_only);
        assert!(options.parse("threads=0", true).is_err());
    }
}
