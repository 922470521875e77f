//! Device nodes of a namespace: which of them an argument means, who may use it, and what its
//! request queue takes.
//!
//! Linux gives a namespace two nodes: `/dev/ngXnY`, a character device that takes any command, and
//! `/dev/nvmeXnY`, a block device, which is missing where the kernel does not work with its zones.
//! Two locks keep others out while it is open for writing: `flock` on the first, which other
//! programs of ours respect, and an exclusive open of the second, which keeps out everything that
//! mounts or formats block devices. Programs that send commands without asking are not kept out.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Segments of memory a request may have where the kernel does not say.
const SEGMENTS_DEFAULT: u64 = 64;

/// The numbers in a node's name: controller (or subsystem) and namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Numbers {
    controller: u32,
    namespace: u32,
}

/// Reads `ngXnY` or `nvmeXnY`.
fn numbers(name: &str) -> Option<Numbers> {
    let rest = name
        .strip_prefix("nvme")
        .or_else(|| name.strip_prefix("ng"))?;
    let (controller, namespace) = rest.split_once('n')?;
    let number = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| text.parse().ok())
            .flatten()
    };
    Some(Numbers {
        controller: number(controller)?,
        namespace: number(namespace)?,
    })
}

/// The two nodes of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nodes {
    /// The character device.
    pub(crate) generic: PathBuf,
    /// The block device, which need not exist.
    block: PathBuf,
}

impl Nodes {
    /// The nodes of the namespace that `path` names, links followed.
    ///
    /// # Errors
    /// [`Error::BadImage`] if it names none; [`Error::Io`].
    pub(crate) fn find(path: &Path) -> Result<Nodes> {
        let shown = path.display();
        let real = path
            .canonicalize()
            .map_err(|source| Error::io(format!("opening {shown}"), source))?;
        let name = real.file_name().and_then(|name| name.to_str());
        let Some(Numbers {
            controller,
            namespace,
        }) = name.and_then(numbers)
        else {
            return Err(Error::BadImage(format!(
                "{shown} is no NVMe namespace (/dev/ng0n1 is the first of the first controller)"
            )));
        };
        let nodes = Nodes {
            generic: real.with_file_name(format!("ng{controller}n{namespace}")),
            block: real.with_file_name(format!("nvme{controller}n{namespace}")),
        };
        let is_device = |path: &Path| {
            path.metadata()
                .is_ok_and(|found| found.file_type().is_char_device())
        };
        if !is_device(&nodes.generic) {
            return Err(Error::BadImage(format!(
                "{shown}: {} is missing (Linux 5.13 or later has it)",
                nodes.generic.display()
            )));
        }
        Ok(nodes)
    }

    /// Bytes that one request may carry: what the kernel's queue takes, in as many pages as
    /// segments, as a buffer may be scattered.
    pub(crate) fn request_bytes_max(&self) -> u64 {
        const PAGE_BYTES: u64 = 4096;
        let name = self.block.file_name().unwrap_or_default();
        let queue = Path::new("/sys/block").join(name).join("queue");
        let limit = |file: &str| {
            let text = std::fs::read_to_string(queue.join(file)).ok()?;
            text.trim().parse::<u64>().ok().filter(|&limit| limit > 0)
        };
        // One page less: a buffer that begins within a page touches one more.
        let segments = limit("max_segments").map_or(SEGMENTS_DEFAULT, |segments| segments - 1);
        let bytes = limit("max_hw_sectors_kb").map_or(u64::MAX, |kib| kib << 10);
        bytes.min(segments.max(1) * PAGE_BYTES)
    }

    /// Opens the namespace; for writing nobody else gets it meanwhile.
    ///
    /// # Errors
    /// [`Error::Busy`]; [`Error::Io`].
    pub(crate) fn claim(&self, read_only: bool) -> Result<Claim> {
        let shown = self.generic.display().to_string();
        let fail = |source: io::Error| match source.raw_os_error() {
            Some(libc::EBUSY | libc::EWOULDBLOCK) => Error::Busy(shown.clone()),
            _ => Error::io(format!("opening {shown}"), source),
        };
        let generic = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(&self.generic)
            .map_err(fail)?;
        let kind = if read_only {
            libc::LOCK_SH
        } else {
            libc::LOCK_EX
        };
        // SAFETY: a plain call on an open descriptor; no memory is passed.
        if unsafe { libc::flock(generic.as_raw_fd(), kind | libc::LOCK_NB) } != 0 {
            return Err(fail(io::Error::last_os_error()));
        }
        let block = if read_only {
            None
        } else {
            self.claim_block(fail)?
        };
        Ok(Claim { generic, block })
    }

    fn claim_block(&self, fail: impl Fn(io::Error) -> Error) -> Result<Option<File>> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_EXCL);
        match options.open(&self.block) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Err(fail(error)),
            Err(error) => {
                let path = self.block.display();
                tracing::debug!(%path, %error, "no block device to keep others away from");
                Ok(None)
            }
        }
    }
}

/// Gives the lock of [`Nodes::claim`] back. Closing the file is not enough: a ring that was dropped
/// may hold on to it for a while.
pub(crate) fn release(generic: &File) {
    // SAFETY: a plain call on an open descriptor; no memory is passed.
    unsafe { libc::flock(generic.as_raw_fd(), libc::LOCK_UN) };
}

/// An open namespace with the locks on it.
#[derive(Debug)]
pub(crate) struct Claim {
    /// Takes the commands.
    pub(crate) generic: File,
    /// Held for its lock alone.
    pub(crate) block: Option<File>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_told_from_controllers_and_partitions() {
        let of = |controller, namespace| {
            Some(Numbers {
                controller,
                namespace,
            })
        };
        assert_eq!(numbers("ng0n1"), of(0, 1));
        assert_eq!(numbers("nvme12n34"), of(12, 34));
        for name in [
            "nvme0",
            "nvme0n1p1",
            "nvme0c0n1",
            "ngn1",
            "ng0n",
            "ng+1n1",
            "sda",
            "",
        ] {
            assert_eq!(numbers(name), None, "{name}");
        }
    }

    #[test]
    fn what_is_no_namespace_is_refused_by_its_name() {
        for path in ["/dev/null", "/dev/there/is/none"] {
            let error = Nodes::find(Path::new(path)).expect_err(path).to_string();
            assert!(error.contains(path), "{error}");
        }
    }
}
