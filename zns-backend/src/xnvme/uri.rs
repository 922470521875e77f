//! Device arguments for libxnvme: `xnvme:/dev/ng0n1?async=io_uring_cmd`, `xnvme:0000:03:00.0?nsid=1`.
//!
//! What is known here is their form; which engines there are is for the library to say when the
//! device is opened. Read in every build, so that one without libxnvme can tell what it misses.

use std::fmt;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// With what such an argument begins.
pub(crate) const SCHEME: &str = "xnvme:";

/// What libxnvme is to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum XnvmeTarget {
    /// A namespace's device node.
    Node(PathBuf),
    /// A controller by its PCI address, `0000:03:00.0`, for a user-space driver.
    Pci(String),
}

/// An argument that begins with `xnvme:`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XnvmeUri {
    /// The device.
    pub target: XnvmeTarget,
    /// `be`: the backend, such as `linux`, `spdk` or `vfio`.
    pub backend: Option<String>,
    /// `async`: what carries out the commands of queues.
    pub asynchronous: Option<String>,
    /// `sync`: what carries out other commands.
    pub synchronous: Option<String>,
    /// `admin`: what carries out Identify.
    pub admin: Option<String>,
    /// `nsid`: the namespace's number, from 1.
    pub nsid: Option<u32>,
}

impl XnvmeUri {
    /// Reads an argument, without what it may say of timing.
    ///
    /// # Errors
    /// [`Error::BadImage`] saying what is wrong with it.
    pub fn parse(argument: &str) -> Result<XnvmeUri> {
        let bad = |problem: String| Error::BadImage(format!("{argument}: {problem}"));
        let rest = argument.strip_prefix(SCHEME).unwrap_or(argument);
        let (target, options) = match rest.split_once('?') {
            Some((target, options)) => (target, Some(options)),
            None => (rest, None),
        };
        if target.is_empty() {
            return Err(bad(
                "names no device (xnvme:/dev/ng0n1 does, or a PCI address)".into(),
            ));
        }
        let mut uri = XnvmeUri {
            target: match pci_address(target) {
                Some(address) => XnvmeTarget::Pci(address),
                None => XnvmeTarget::Node(target.into()),
            },
            backend: None,
            asynchronous: None,
            synchronous: None,
            admin: None,
            nsid: None,
        };
        for option in options.into_iter().flat_map(|options| options.split('&')) {
            uri.set(option).map_err(bad)?;
        }
        Ok(uri)
    }

    fn set(&mut self, option: &str) -> std::result::Result<(), String> {
        let (key, value) = option
            .split_once('=')
            .ok_or_else(|| format!("'{option}' is no KEY=VALUE"))?;
        let name = match key {
            "be" => &mut self.backend,
            "async" => &mut self.asynchronous,
            "sync" => &mut self.synchronous,
            "admin" => &mut self.admin,
            "nsid" if self.nsid.is_none() => {
                self.nsid = Some(namespace_number(value)?);
                return Ok(());
            }
            "nsid" => return Err("nsid is given twice".into()),
            "timing" => return Err("the timing comes last, as ?timing=PROFILE".into()),
            _ => {
                return Err(format!(
                    "'{key}' is none of async, sync, admin, be and nsid"
                ));
            }
        };
        if !is_name(value) {
            return Err(format!("{key}='{value}' names no engine"));
        }
        if name.replace(value.to_owned()).is_some() {
            return Err(format!("{key} is given twice"));
        }
        Ok(())
    }
}

/// The names of libxnvme's engines are words.
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// 0 and all ones are no namespace (base 3.2.1.2).
fn namespace_number(text: &str) -> std::result::Result<u32, String> {
    text.parse()
        .ok()
        .filter(|&number| number != 0 && number != u32::MAX)
        .ok_or_else(|| format!("nsid='{text}' is no number of a namespace"))
}

/// `[DDDD:]BB:DD.F` in hexadecimal, with its domain.
fn pci_address(text: &str) -> Option<String> {
    let number = |text: &str, digits: usize, max: u32| {
        let is_hex = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let value = is_hex.then(|| u32::from_str_radix(text, 16).ok())??;
        (value <= max).then_some(value)
    };
    let (rest, function) = text.split_once('.')?;
    let mut parts: Vec<&str> = rest.split(':').collect();
    if parts.len() == 2 {
        parts.insert(0, "0000");
    }
    let [domain, bus, device] = parts[..] else {
        return None;
    };
    let domain = number(domain, 4, 0xFFFF)?;
    let bus = number(bus, 2, 0xFF)?;
    let device = number(device, 2, 0x1F)?;
    let function = number(function, 1, 7)?;
    Some(format!("{domain:04x}:{bus:02x}:{device:02x}.{function}"))
}

impl fmt::Display for XnvmeTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            XnvmeTarget::Node(path) => path.display().fmt(f),
            XnvmeTarget::Pci(address) => address.fmt(f),
        }
    }
}

/// As it is read, with its options in a fixed order.
impl fmt::Display for XnvmeUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.target)?;
        let nsid = self.nsid.map(|nsid| nsid.to_string());
        let options = [
            ("be", &self.backend),
            ("async", &self.asynchronous),
            ("sync", &self.synchronous),
            ("admin", &self.admin),
            ("nsid", &nsid),
        ];
        let given = options
            .into_iter()
            .filter_map(|(key, value)| Some((key, value.as_ref()?)));
        for ((key, value), separator) in
            given.zip(std::iter::once('?').chain(std::iter::repeat('&')))
        {
            write!(f, "{separator}{key}={value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_written_as_they_were_read() {
        for argument in [
            "xnvme:/dev/ng0n1",
            "xnvme:ng0n1",
            "xnvme:/dev/ng0n1?async=io_uring_cmd",
            "xnvme:/dev/ng0n1?async=thrpool&sync=nvme&admin=nvme&nsid=1",
            "xnvme:0000:03:00.0?nsid=2",
            "xnvme:0000:03:00.0?be=vfio",
        ] {
            let uri = XnvmeUri::parse(argument).expect(argument);
            assert_eq!(uri.to_string(), argument);
        }
    }

    #[test]
    fn every_option_goes_where_it_belongs_in_any_order() {
        let uri = XnvmeUri::parse("xnvme:/dev/ng0n1?nsid=7&admin=a&sync=b&async=c_1&be=linux");
        let expected = XnvmeUri {
            target: XnvmeTarget::Node("/dev/ng0n1".into()),
            backend: Some("linux".into()),
            asynchronous: Some("c_1".into()),
            synchronous: Some("b".into()),
            admin: Some("a".into()),
            nsid: Some(7),
        };
        assert_eq!(uri.expect("well-formed"), expected);
    }

    #[test]
    fn pci_addresses_are_told_from_paths() {
        let target = |text: &str| {
            XnvmeUri::parse(&format!("{SCHEME}{text}"))
                .expect(text)
                .target
        };
        for (text, address) in [
            ("0000:03:00.0", "0000:03:00.0"),
            ("03:00.0", "0000:03:00.0"),
            ("ABCD:ff:1F.7", "abcd:ff:1f.7"),
        ] {
            assert_eq!(target(text), XnvmeTarget::Pci(address.into()));
        }
        for text in ["0000:03:20.0", "03:00.8", "3:0.0", "03:00", "/dev/03:00.0"] {
            assert_eq!(target(text), XnvmeTarget::Node(text.into()), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (argument, problem) in [
            ("xnvme:", "names no device"),
            ("xnvme:?async=emu", "names no device"),
            ("xnvme:/dev/ng0n1?", "'' is no KEY=VALUE"),
            ("xnvme:/dev/ng0n1?emu", "'emu' is no KEY=VALUE"),
            ("xnvme:/dev/ng0n1?engine=emu", "'engine' is none of"),
            ("xnvme:/dev/ng0n1?async=", "async='' names no engine"),
            ("xnvme:/dev/ng0n1?async=a b", "names no engine"),
            ("xnvme:/dev/ng0n1?async=a&async=b", "async is given twice"),
            ("xnvme:/dev/ng0n1?nsid=0", "nsid='0' is no number"),
            ("xnvme:/dev/ng0n1?nsid=x", "nsid='x' is no number"),
            ("xnvme:/dev/ng0n1?nsid=4294967295", "is no number"),
            ("xnvme:/dev/ng0n1?nsid=1&nsid=1", "nsid is given twice"),
            ("xnvme:/dev/ng0n1?async=emu&timing=zn540", "comes last"),
        ] {
            let error = XnvmeUri::parse(argument).expect_err(argument).to_string();
            assert!(
                error.contains(problem) && error.starts_with(argument),
                "{error}"
            );
        }
    }
}
