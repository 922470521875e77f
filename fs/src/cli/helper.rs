//! The mount helper: what mount(8) calls for `-t fuse.warren` and for fstab(5), as
//! `mount.fuse.warren DEVICE DIRECTORY [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`.

use std::ffi::OsString;
use std::path::PathBuf;

use super::{CommandResult, Failure, Outcome, mount};
use crate::fuse::options::MountOptions;

const USAGE: &str = "usage: mount.fuse.warren DEVICE DIRECTORY [-sfnv] [-o OPTIONS] [-t TYPE]";

#[derive(Debug, Default, PartialEq)]
struct Arguments {
    operands: Vec<String>,
    options: Vec<String>,
    sloppy: bool,
    fake: bool,
}

pub(super) fn run(arguments: &[OsString]) -> CommandResult {
    let arguments = parse(arguments)?;
    let [device, mountpoint] = arguments.operands.as_slice() else {
        return Err(Failure::usage("", USAGE));
    };
    let mut options = MountOptions::default();
    for list in &arguments.options {
        options
            .parse(list, arguments.sloppy)
            .map_err(|e| Failure::usage("", e))?;
    }
    if arguments.fake {
        return Ok(Outcome::Fine);
    }
    mount::execute(&mount::Plan {
        device: device.clone(),
        mountpoint: PathBuf::from(mountpoint),
        options,
        foreground: false,
    })
}

/// Letters may be joined (`-sn`), values attached (`-oro`), and operands come before or after.
fn parse(arguments: &[OsString]) -> Result<Arguments, Failure> {
    let mut parsed = Arguments::default();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let argument = argument
            .to_str()
            .ok_or_else(|| Failure::usage(argument.display(), "not valid UTF-8"))?;
        let Some(letters) = argument.strip_prefix('-').filter(|l| !l.is_empty()) else {
            parsed.operands.push(argument.into());
            continue;
        };
        for (at, letter) in letters.char_indices() {
            match letter {
                's' => parsed.sloppy = true,
                'f' => parsed.fake = true,
                // No mtab is written and nothing is said anyway.
                'n' | 'v' => {}
                'o' | 't' | 'N' => {
                    let attached = &letters[at + 1..];
                    let value = if attached.is_empty() {
                        rest.next().and_then(|v| v.to_str()).map(str::to_owned)
                    } else {
                        Some(attached.to_owned())
                    };
                    let value = value.ok_or_else(|| {
                        Failure::usage("", format!("-{letter} needs a value\n{USAGE}"))
                    })?;
                    match letter {
                        'o' => parsed.options.push(value),
                        'N' => {
                            return Err(Failure::usage("", "-N: namespaces are not supported"));
                        }
                        _ => {}
                    }
                    break;
                }
                _ => {
                    return Err(Failure::usage(
                        "",
                        format!("unknown option -{letter}\n{USAGE}"),
                    ));
                }
            }
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Arguments, Failure> {
        parse(&arguments.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_forms_of_mount8_are_understood() {
        let expected = Arguments {
            operands: vec!["a.img".into(), "/mnt".into()],
            options: vec!["rw,noatime".into()],
            ..Arguments::default()
        };
        assert_eq!(parsed(&["a.img", "/mnt", "-o", "rw,noatime"]), Ok(expected));
        let all = parsed(&["a.img", "/mnt", "-sfnv", "-oro", "-t", "fuse.warren"]).unwrap();
        assert!(all.sloppy && all.fake);
        assert_eq!(all.options, ["ro"]);
        assert_eq!(all.operands.len(), 2);
    }

    #[test]
    fn bad_arguments_are_usage_errors() {
        for arguments in [&["-x"][..], &["-o"], &["a", "/b", "-N", "1"]] {
            assert!(parsed(arguments).unwrap_err().usage, "{arguments:?}");
        }
        assert!(run(&["only-one".into()]).unwrap_err().usage);
    }
}
