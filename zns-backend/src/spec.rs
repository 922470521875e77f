//! Device arguments as people type them: `mem:1G`, `file:PATH`, `PATH`, `nvme:/dev/ng0n1`,
//! `xnvme:/dev/ng0n1?async=ENGINE`, each perhaps with `?timing=PROFILE`.

use std::path::PathBuf;
use std::sync::Arc;

use crate::device::ZonedDevice;
use crate::error::{Error, Result};
use crate::file::FileDevice;
use crate::geometry::Geometry;
use crate::mem::MemDevice;
use crate::nvme::NvmeDevice;
use crate::timed::Timing;
use crate::xnvme::{self, XnvmeUri};

/// What a device argument names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceSpec {
    /// `mem:SIZE`: a fresh device in memory of at most that many bytes.
    Mem(u64),
    /// `file:PATH` or just `PATH`: an image file.
    File(PathBuf),
    /// `nvme:PATH`: a zoned namespace.
    Nvme(PathBuf),
    /// `xnvme:URI`: a zoned namespace through libxnvme.
    Xnvme(XnvmeUri),
}

impl DeviceSpec {
    /// Reads a device argument, apart from its timing.
    ///
    /// # Errors
    /// [`Error::BadImage`] saying what is wrong with it.
    pub fn parse(spec: &str) -> Result<DeviceSpec> {
        let (spec, _) = Timing::split(spec)?;
        if let Some(size) = spec.strip_prefix("mem:") {
            return Ok(DeviceSpec::Mem(parse_size(size)?));
        }
        if spec.starts_with(xnvme::SCHEME) {
            return Ok(DeviceSpec::Xnvme(XnvmeUri::parse(spec)?));
        }
        if let Some(path) = spec.strip_prefix("nvme:") {
            if path.is_empty() {
                return Err(Error::BadImage(format!(
                    "'{spec}' names no device (nvme:/dev/ng0n1 does)"
                )));
            }
            return Ok(DeviceSpec::Nvme(path.into()));
        }
        let path = spec.strip_prefix("file:").unwrap_or(spec);
        if path.is_empty() {
            return Err(Error::BadImage(format!("'{spec}' names no device")));
        }
        Ok(DeviceSpec::File(path.into()))
    }
}

/// Opens the device an argument names. A memory device is always fresh.
///
/// # Errors
/// As [`DeviceSpec::parse`], [`FileDevice::open`], [`NvmeDevice::open`], `XnvmeDevice::open` and
/// [`MemDevice::new`].
pub fn open_device(spec: &str, read_only: bool) -> Result<Arc<dyn ZonedDevice>> {
    let (_, timing) = Timing::split(spec)?;
    let device: Arc<dyn ZonedDevice> = match DeviceSpec::parse(spec)? {
        DeviceSpec::Mem(size) => Arc::new(MemDevice::new(Geometry::for_size(size)?)?),
        DeviceSpec::File(path) => Arc::new(FileDevice::open(path, read_only)?),
        DeviceSpec::Nvme(path) => Arc::new(NvmeDevice::open(path, read_only)?),
        DeviceSpec::Xnvme(uri) => open_xnvme(&uri, read_only)?,
    };
    Ok(match timing {
        Some(timing) => timing.apply(device),
        None => device,
    })
}

#[cfg(feature = "xnvme")]
fn open_xnvme(uri: &XnvmeUri, read_only: bool) -> Result<Arc<dyn ZonedDevice>> {
    Ok(Arc::new(xnvme::XnvmeDevice::open(uri, read_only)?))
}

#[cfg(not(feature = "xnvme"))]
fn open_xnvme(uri: &XnvmeUri, _: bool) -> Result<Arc<dyn ZonedDevice>> {
    Err(Error::BadImage(format!(
        "{uri}: built without libxnvme; the cargo feature xnvme adds it"
    )))
}

/// Reads a number of bytes: decimal digits, then perhaps K, M, G or T (powers of 1024; a trailing
/// `iB` or `B` may follow).
///
/// # Errors
/// [`Error::BadImage`] naming the text.
pub fn parse_size(text: &str) -> Result<u64> {
    let bad = || Error::BadImage(format!("'{text}' is not a size such as 512M or 4G"));
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.to_ascii_uppercase();
    let shift = match unit
        .strip_suffix("IB")
        .or(unit.strip_suffix('B'))
        .unwrap_or(&unit)
    {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    number
        .checked_mul(1 << shift)
        .filter(|&bytes| bytes > 0)
        .ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [
            ("1", 1),
            ("4096", 4096),
            ("64K", 64 << 10),
            ("16m", 16 << 20),
            ("2GiB", 2 << 30),
            ("1TB", 1 << 40),
        ] {
            assert_eq!(parse_size(text).expect(text), bytes);
        }
        for text in ["", "K", "0", "-1", "1X", "1.5G", "99999999999T", "1 G"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn device_arguments_are_told_apart() {
        let spec = |text| DeviceSpec::parse(text);
        assert_eq!(spec("mem:1G").expect("mem"), DeviceSpec::Mem(1 << 30));
        assert_eq!(
            spec("file:/a/b").expect("file"),
            DeviceSpec::File("/a/b".into())
        );
        assert_eq!(
            spec("a.img").expect("path"),
            DeviceSpec::File("a.img".into())
        );
        assert_eq!(
            spec("nvme:/dev/ng0n1").expect("nvme"),
            DeviceSpec::Nvme("/dev/ng0n1".into())
        );
        for text in ["xnvme:0000:03:00.0", "xnvme:/dev/ng0n1?async=emu"] {
            let uri = XnvmeUri::parse(text).expect(text);
            assert_eq!(spec(text).expect(text), DeviceSpec::Xnvme(uri));
        }
        for text in ["", "file:", "mem:", "mem:x", "nvme:", "xnvme:"] {
            assert!(spec(text).is_err(), "{text}");
        }
    }

    #[test]
    fn timing_follows_the_options_of_xnvme() {
        let spec = DeviceSpec::parse("xnvme:/dev/ng0n1?async=emu?timing=zn540");
        let uri = XnvmeUri::parse("xnvme:/dev/ng0n1?async=emu").expect("well-formed");
        assert_eq!(spec.expect("both"), DeviceSpec::Xnvme(uri));
    }

    #[cfg(not(feature = "xnvme"))]
    #[test]
    fn a_build_without_libxnvme_names_the_feature() {
        let Err(error) = open_device("xnvme:/dev/ng0n1?async=emu", false) else {
            panic!("opened without the library");
        };
        let line = error.to_string();
        assert!(
            line.starts_with("xnvme:/dev/ng0n1?async=emu: ") && line.contains("feature xnvme"),
            "{line}"
        );
    }
}
