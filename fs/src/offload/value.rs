//! The values of the attributes: which kernel, and how it is to run.
//!
//! `KERNEL[;OPTION..]`. KERNEL is an inode number in decimal, or a path from the root of the mount.
//! Options are `owner=PID`, `view`, `arg=U64[,U64..]` (decimal, or hexadecimal behind `0x`),
//! `timeout_ms=N` and `cpu_ms=N`, each at most once. A NUL at the end, which programs in C leave there, is passed
//! over.

use std::time::Duration;

use csd_vm::request::Operation;

use crate::error::{Error, Result};
use crate::types::Ino;

/// Most arguments of a kernel.
pub const ARGUMENTS_MAX: usize = 1024;
/// Longest time a kernel can ask for, in milliseconds.
pub const TIMEOUT_MS_MAX: u64 = 60 * 1000;

const PREFIX: &[u8] = b"user.process.csd_";

/// What an attribute of the namespace `user.process.csd_` is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// A kernel for an operation.
    Kernel(Operation),
    /// Statistics, which can only be read.
    Statistics,
}

/// The kernel operations, with the names of their attributes.
pub const OPERATIONS: [(Operation, &str); 4] = [
    (Operation::ReadStream, "read_stream"),
    (Operation::WriteStream, "write_stream"),
    (Operation::ReadEvent, "read_event"),
    (Operation::WriteEvent, "write_event"),
];

impl Attribute {
    /// The attribute of a name; `None` if that is none of ours.
    #[must_use]
    pub fn from_name(name: &[u8]) -> Option<Attribute> {
        let name = name.strip_prefix(PREFIX)?;
        if name == b"stats" {
            return Some(Attribute::Statistics);
        }
        OPERATIONS
            .iter()
            .find(|(_, known)| known.as_bytes() == name)
            .map(|(operation, _)| Attribute::Kernel(*operation))
    }
}

/// The name of an operation, as its attribute has it.
#[must_use]
pub fn operation_name(operation: Operation) -> &'static str {
    let named = OPERATIONS.iter().find(|(known, _)| *known == operation);
    named.map_or("", |(_, name)| name)
}

/// The full name of the attribute of an operation.
#[must_use]
pub fn attribute_name(operation: Operation) -> Vec<u8> {
    [PREFIX, operation_name(operation).as_bytes()].concat()
}

/// Where the kernel is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelFile {
    /// The file with this inode number.
    Inode(Ino),
    /// The file at this path from the root of the mount.
    Path(Vec<u8>),
}

/// A value, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The kernel.
    pub kernel: KernelFile,
    /// The process it is for, with its descendants; otherwise the one that sets the attribute.
    pub owner: Option<u32>,
    /// Run once over the whole file, and let the handle read the output.
    pub view: bool,
    /// What the kernel can ask for.
    pub arguments: Vec<u64>,
    /// How long an execution may take.
    pub timeout: Option<Duration>,
    /// How much processor time it may use, where that is to be less.
    pub processor: Option<Duration>,
}

impl Value {
    /// Takes the value of an attribute for `operation` apart.
    ///
    /// # Errors
    /// `BadRegistration` that says what is wrong.
    pub fn parse(value: &[u8], operation: Operation) -> Result<Value> {
        let value = value.strip_suffix(b"\0").unwrap_or(value);
        let mut parts = value.split(|&byte| byte == b';');
        let kernel = parse_kernel(parts.next().unwrap_or_default())?;
        let mut parsed = Value {
            kernel,
            owner: None,
            view: false,
            arguments: Vec::new(),
            timeout: None,
            processor: None,
        };
        let mut seen: Vec<&str> = Vec::new();
        for part in parts {
            let option = std::str::from_utf8(part)
                .map_err(|_| bad(format!("option {:?} is no text", part.escape_ascii())))?;
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (option, None),
            };
            if seen.contains(&name) {
                return Err(bad(format!("option '{name}' is given twice")));
            }
            seen.push(name);
            parsed.apply(name, value)?;
        }
        if parsed.view && operation != Operation::ReadStream {
            return Err(bad(format!(
                "'view' goes with read_stream, not with {}",
                operation_name(operation)
            )));
        }
        Ok(parsed)
    }

    fn apply(&mut self, name: &str, value: Option<&str>) -> Result<()> {
        match (name, value) {
            ("view", None) => self.view = true,
            ("view", Some(_)) => return Err(bad("option 'view' takes no value".into())),
            ("owner", Some(value)) => {
                let pid = value
                    .parse()
                    .ok()
                    .filter(|pid| (1..=i32::MAX as u32).contains(pid));
                self.owner = Some(pid.ok_or_else(|| bad(format!("owner: '{value}' is no PID")))?);
            }
            ("arg", Some(list)) => {
                self.arguments = list.split(',').map(parse_argument).collect::<Result<_>>()?;
                if self.arguments.len() > ARGUMENTS_MAX {
                    return Err(bad(format!(
                        "arg: {} numbers, and at most {ARGUMENTS_MAX} are possible",
                        self.arguments.len()
                    )));
                }
            }
            ("timeout_ms", Some(value)) => self.timeout = Some(parse_time(name, value)?),
            ("cpu_ms", Some(value)) => self.processor = Some(parse_time(name, value)?),
            ("owner" | "arg" | "timeout_ms" | "cpu_ms", None) => {
                return Err(bad(format!("option '{name}' needs a value")));
            }
            _ => return Err(bad(format!("unknown option '{name}'"))),
        }
        Ok(())
    }
}

/// The milliseconds that the option of this name has.
fn parse_time(name: &str, value: &str) -> Result<Duration> {
    let ms = value
        .parse()
        .ok()
        .filter(|ms| (1..=TIMEOUT_MS_MAX).contains(ms));
    let ms = ms.ok_or_else(|| {
        bad(format!(
            "{name}: '{value}' is no number from 1 to {TIMEOUT_MS_MAX}"
        ))
    })?;
    Ok(Duration::from_millis(ms))
}

/// A number, decimal or hexadecimal behind `0x`.
///
/// # Errors
/// `BadRegistration` that names it.
pub fn parse_argument(text: &str) -> Result<u64> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        // from_str_radix takes a sign.
        Some(digits) if !digits.starts_with('+') => u64::from_str_radix(digits, 16).ok(),
        Some(_) => None,
        None if text.starts_with('+') => None,
        None => text.parse().ok(),
    };
    parsed.ok_or_else(|| bad(format!("arg: '{text}' is no number of 64 bits")))
}

fn parse_kernel(text: &[u8]) -> Result<KernelFile> {
    if text.is_empty() {
        return Err(bad("the value names no kernel".into()));
    }
    if text.contains(&0) {
        return Err(bad("the name of the kernel has a NUL in it".into()));
    }
    if !text.iter().all(u8::is_ascii_digit) {
        return Ok(KernelFile::Path(text.to_vec()));
    }
    let number = std::str::from_utf8(text)
        .ok()
        .and_then(|digits| digits.parse().ok());
    match number {
        Some(number) if number > 0 => Ok(KernelFile::Inode(Ino(number))),
        _ => Err(bad(format!("{} is no inode number", text.escape_ascii()))),
    }
}

fn bad(problem: String) -> Error {
    Error::BadRegistration(problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(value: &str) -> Result<Value> {
        Value::parse(value.as_bytes(), Operation::ReadStream)
    }

    fn problem(value: &[u8]) -> String {
        let error = Value::parse(value, Operation::ReadStream).unwrap_err();
        assert_eq!(error.errno(), libc::EINVAL, "{error}");
        error.to_string()
    }

    #[test]
    fn a_number_is_an_inode_and_anything_else_a_path() {
        assert_eq!(parsed("17").unwrap().kernel, KernelFile::Inode(Ino(17)));
        assert_eq!(parsed("17\0").unwrap().kernel, KernelFile::Inode(Ino(17)));
        for path in ["/k/f.o", "k/f.o", "17.o", " 17", "-1"] {
            let kernel = KernelFile::Path(path.as_bytes().to_vec());
            assert_eq!(parsed(path).unwrap().kernel, kernel);
        }
    }

    #[test]
    fn options_come_in_any_order() {
        let value =
            parsed("/k.o;timeout_ms=250;arg=1,0xff,18446744073709551615;view;cpu_ms=9;owner=42");
        let expected = Value {
            kernel: KernelFile::Path(b"/k.o".to_vec()),
            owner: Some(42),
            view: true,
            arguments: vec![1, 255, u64::MAX],
            timeout: Some(Duration::from_millis(250)),
            processor: Some(Duration::from_millis(9)),
        };
        assert_eq!(value.unwrap(), expected);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (value, part) in [
            (&b""[..], "no kernel"),
            (b";view", "no kernel"),
            (b"0", "inode number"),
            (b"99999999999999999999", "inode number"),
            (b"a\0b", "NUL"),
            (b"/k;", "unknown option ''"),
            (b"/k;frob", "frob"),
            (b"/k;frob=1", "frob"),
            (b"/k;view=1", "takes no value"),
            (b"/k;view;view", "twice"),
            (b"/k;arg=1;arg=2", "twice"),
            (b"/k;owner", "needs a value"),
            (b"/k;owner=0", "'0' is no PID"),
            (b"/k;owner=me", "'me' is no PID"),
            (b"/k;owner=4294967295", "no PID"),
            (b"/k;arg=", "no number"),
            (b"/k;arg=1,,2", "no number"),
            (b"/k;arg=-1", "'-1'"),
            (b"/k;arg=+1", "'+1'"),
            (b"/k;arg=0x+1", "'0x+1'"),
            (b"/k;arg=18446744073709551616", "no number"),
            (b"/k;timeout_ms=0", "timeout_ms"),
            (b"/k;timeout_ms=1s", "timeout_ms"),
            (b"/k;cpu_ms", "needs a value"),
            (b"/k;cpu_ms=60001", "cpu_ms"),
            (b"/k;\xff", "no text"),
        ] {
            let said = problem(value);
            assert!(said.contains(part), "{}: {said}", value.escape_ascii());
        }
        let many = format!("/k;arg={}", vec!["1"; ARGUMENTS_MAX + 1].join(","));
        assert!(problem(many.as_bytes()).contains("at most 1024"));
    }

    #[test]
    fn a_view_is_for_streams_that_are_read() {
        for (operation, name) in OPERATIONS {
            let value = Value::parse(b"/k;view", operation);
            assert_eq!(value.is_ok(), operation == Operation::ReadStream, "{name}");
        }
    }

    #[test]
    fn names_and_operations_correspond() {
        for (operation, _) in OPERATIONS {
            let attribute = Attribute::from_name(&attribute_name(operation));
            assert_eq!(attribute, Some(Attribute::Kernel(operation)));
        }
        let stats = Attribute::from_name(b"user.process.csd_stats");
        assert_eq!(stats, Some(Attribute::Statistics));
        assert_eq!(Attribute::from_name(b"user.process.csd_"), None);
        assert_eq!(Attribute::from_name(b"user.csd_stats"), None);
    }
}
