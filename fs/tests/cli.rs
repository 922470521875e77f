//! The command line: bad input gets one line that names it, and the right exit code.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

const WARREN: &str = env!("CARGO_BIN_EXE_warren");

fn run_in(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(WARREN)
        .args(arguments)
        .current_dir(dir)
        .output()
        .unwrap()
}

/// Runs the program and returns the one line it writes to standard error.
fn complaint(dir: &Path, arguments: &[&str], code: i32) -> String {
    let output = run_in(dir, arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    assert_eq!(output.stdout, b"", "{arguments:?}");
    let lines: Vec<&str> = stderr.lines().collect();
    assert_eq!(lines.len(), 1, "{arguments:?}: {stderr}");
    assert!(lines[0].starts_with("warren: "), "{stderr}");
    lines[0]["warren: ".len()..].to_owned()
}

/// A directory with an image, a file that is none, and a mount point.
fn playground() -> TempDir {
    let dir = TempDir::new().unwrap();
    let made = run_in(dir.path(), &["mkfs", "image", "--size", "128M"]);
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    fs::write(dir.path().join("text"), "this is no image").unwrap();
    fs::create_dir(dir.path().join("mnt")).unwrap();
    dir
}

#[test]
fn missing_and_wrong_devices_are_named() {
    let dir = playground();
    for (arguments, subject) in [
        (&["mount", "nothing", "mnt"][..], "nothing: no such file"),
        (&["fsck", "nothing"], "nothing: no such file"),
        (&["info", "nothing"], "nothing: no such file"),
        (&["zones", "nothing"], "nothing: no such file"),
        (&["mount", "text", "mnt"], "text: "),
        (&["fsck", "text"], "text: "),
        (&["info", "text"], "text: "),
        (&["mkfs", "mnt", "--size", "1G"], "mnt: is a directory"),
        (&["umount", "mnt"], "mnt: no WarrenFS is mounted there"),
        (&["stats", "mnt"], "mnt: no WarrenFS is mounted there"),
        (&["scrub", "mnt"], "mnt: no WarrenFS is mounted there"),
        (&["zones", "mnt"], "mnt: no WarrenFS is mounted there"),
        (&["umount", "nowhere"], "nowhere: "),
        (
            &["mount", "image", "nowhere"],
            "nowhere: the mount point does not exist",
        ),
        (
            &["mount", "image", "text"],
            "text: the mount point is not a directory",
        ),
    ] {
        let line = complaint(dir.path(), arguments, 1);
        assert!(line.starts_with(subject), "{arguments:?}: {line}");
    }
}

#[test]
fn arguments_that_make_no_sense_are_usage_errors() {
    let dir = playground();
    for (arguments, part) in [
        (
            &["mount", "image", "mnt", "-o", "ro,frobnicate"][..],
            "'frobnicate'",
        ),
        (&["mount", "image", "mnt", "-o", "cache=lots"], "cache=lots"),
        (&["mount", "image", "mnt", "-o", "remount"], "remount"),
        (&["mount", "mem:lots", "mnt"], "lots"),
        (&["mkfs", "mem:1G"], "when it is mounted"),
        (&["mkfs", "new"], "give --size"),
        (&["mkfs", "new", "--zones", "100"], "give --size"),
        (&["mkfs", "new", "--size", "4K"], "too few"),
        (&["mkfs", "new", "--size", "1G", "--zones", "3"], "too few"),
        (
            &["mkfs", "new", "--zones", "20", "--zone-size", "1000"],
            "--zone-size 1000",
        ),
        (
            &["mkfs", "new", "--size", "1G", "--zone-capacity", "1G"],
            "--zone-capacity",
        ),
        (&["fsck", "mem:1G"], "use scrub"),
        (&["info", "mem:1G"], "give its mount point"),
    ] {
        let line = complaint(dir.path(), arguments, 2);
        assert!(line.contains(part), "{arguments:?}: {line}");
    }
    let label = "x".repeat(65);
    let line = complaint(
        dir.path(),
        &["mkfs", "new", "--size", "1G", "--label", &label],
        2,
    );
    assert!(line.starts_with("--label"), "{line}");
    assert!(!dir.path().join("new").exists());
}

#[test]
fn bad_syntax_is_answered_with_the_usage() {
    let dir = TempDir::new().unwrap();
    for arguments in [
        &["frobnicate"][..],
        &["mkfs"],
        &["mkfs", "new", "--size", "huge"],
        &["mkfs", "new", "--zones", "-1"],
        &["mount", "image"],
        &["mount", "image", "mnt", "--threads", "0"],
        &["fsck", "a", "b"],
    ] {
        let output = run_in(dir.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn what_exists_is_overwritten_only_by_force() {
    let dir = playground();
    let before = fs::read(dir.path().join("text")).unwrap();
    let line = complaint(dir.path(), &["mkfs", "text", "--size", "128M"], 1);
    assert!(
        line.starts_with("text: ") && line.contains("--force"),
        "{line}"
    );
    assert_eq!(fs::read(dir.path().join("text")).unwrap(), before);
    let line = complaint(dir.path(), &["mkfs", "image", "--size", "256M"], 1);
    assert!(line.contains("--force"), "{line}");
    for arguments in [
        ["mkfs", "text", "--size", "128M", "--force"],
        ["mkfs", "image", "--size", "256M", "--force"],
    ] {
        let output = run_in(dir.path(), &arguments);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn the_helper_takes_the_arguments_of_mount8() {
    let dir = playground();
    let helper = dir.path().join("mount.fuse.warren");
    std::os::unix::fs::symlink(WARREN, &helper).unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new(&helper)
            .args(arguments)
            .current_dir(dir.path())
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    assert_eq!(
        run(&["image", "mnt", "-f", "-o", "rw,nofail"]),
        (Some(0), String::new())
    );
    let (code, stderr) = run(&["image", "mnt", "-o", "frobnicate"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("'frobnicate'"), "{stderr}");
    assert_eq!(run(&["image", "mnt", "-sf", "-o", "frobnicate"]).0, Some(0));
    assert_eq!(run(&["image"]).0, Some(2));
}
