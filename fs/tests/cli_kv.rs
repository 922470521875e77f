//! `warren kv`: what it prints, what it keeps, its exit codes, and one clear line for what is wrong.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

const WARREN: &str = env!("CARGO_BIN_EXE_warren");

fn kv_with(dir: &Path, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(WARREN)
        .arg("kv")
        .args(arguments)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that fails before it reads closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn kv(dir: &Path, arguments: &[&str]) -> Output {
    kv_with(dir, arguments, b"")
}

/// What a command that succeeds prints.
fn printed(dir: &Path, arguments: &[&str]) -> String {
    printed_with(dir, arguments, b"")
}

fn printed_with(dir: &Path, arguments: &[&str], input: &[u8]) -> String {
    let output = kv_with(dir, arguments, input);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    assert_eq!(stderr, "", "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The one line of a command that fails.
fn complaint(dir: &Path, arguments: &[&str], input: &[u8], code: i32) -> String {
    let output = kv_with(dir, arguments, input);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    assert_eq!(output.stdout, b"", "{arguments:?}");
    assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
    let line = stderr.trim_end().strip_prefix("warren: ");
    line.unwrap_or_else(|| panic!("{stderr}")).to_owned()
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn what_is_set_is_got_scanned_and_removed() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    for (key, value) in [
        ("b", "two"),
        ("a", "one"),
        ("b", "three"),
        ("ab", ""),
        ("\\xff", "\\x00\\t"),
    ] {
        assert_eq!(printed(dir, &["set", "f", key, value]), "");
    }
    assert_eq!(printed(dir, &["get", "f", "b"]), "three\n");
    assert_eq!(printed(dir, &["get", "f", "\\xFF"]), "\\x00\\t\n");
    assert_eq!(printed(dir, &["get", "f", "\\xff", "--raw"]), "\0\t");
    assert_eq!(
        json(&printed(dir, &["get", "f", "b", "--json"])),
        serde_json::json!({"key": "b", "value": "three"})
    );
    assert_eq!(
        printed(dir, &["scan", "f"]),
        "a\tone\nab\t\nb\tthree\n\\xff\t\\x00\\t\n"
    );
    assert_eq!(printed(dir, &["remove", "f", "a", "\\xff"]), "");
    assert_eq!(printed(dir, &["scan", "f", "--keys-only"]), "ab\nb\n");
}

#[test]
fn a_key_that_is_not_there_is_exit_code_1_and_silence() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    printed(dir, &["set", "f", "a", "1"]);
    for arguments in [
        &["get", "f", "b"][..],
        &["get", "f", "b", "--json"],
        &["remove", "f", "a", "b"],
    ] {
        let output = kv(dir, arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(
            output.stdout.is_empty() && output.stderr.is_empty(),
            "{output:?}"
        );
    }
    assert_eq!(
        printed(dir, &["scan", "f"]),
        "",
        "the one that was there is gone"
    );
}

#[test]
fn values_come_from_standard_input_as_they_are() {
    let dir = TempDir::new().unwrap();
    let value: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
    printed_with(dir.path(), &["set", "f", "binary"], &value);
    let got = kv(dir.path(), &["get", "f", "binary", "--raw"]);
    assert!(got.status.success() && got.stdout == value);
}

#[test]
fn scans_have_ends_directions_and_limits() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let lines: String = (0..300).map(|i| format!("k{i:03}\t{i}\n")).collect();
    printed_with(dir, &["load", "f"], lines.as_bytes());
    printed(dir, &["set", "f", "k\\xff\\xff", "last"]);
    let keys = |options: &[&str]| {
        let arguments = [&["scan", "f", "--keys-only"], options].concat();
        printed(dir, &arguments)
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        keys(&["--from", "k010", "--to", "k013"]),
        ["k010", "k011", "k012"]
    );
    assert_eq!(
        keys(&["--from", "k010", "--to", "k013", "--reverse"]),
        ["k012", "k011", "k010"]
    );
    assert_eq!(keys(&["--prefix", "k29", "--limit", "2"]), ["k290", "k291"]);
    assert_eq!(keys(&["--prefix", "k\\xff"]), ["k\\xff\\xff"]);
    assert_eq!(keys(&["--reverse", "--limit", "1"]), ["k\\xff\\xff"]);
    assert_eq!(keys(&["--limit", "0"]).len(), 0);
    assert_eq!(keys(&[]).len(), 301);
    assert_eq!(
        printed(dir, &["scan", "f", "--prefix", "k007", "--json"]),
        "{\"key\":\"k007\",\"value\":\"7\"}\n"
    );
    assert_eq!(
        printed(
            dir,
            &["scan", "f", "--prefix", "k007", "--json", "--keys-only"]
        ),
        "{\"key\":\"k007\"}\n"
    );
}

#[test]
fn what_scan_prints_load_reads_in_both_formats() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let odd = [
        "\\x00",
        "\\xff\\xfe",
        "größe",
        "a\\\\b",
        "tab\\there",
        "\"quoted\"",
        "line\\nfeed",
    ];
    for (index, key) in odd.iter().enumerate() {
        printed(dir, &["set", "f", key, odd[odd.len() - 1 - index]]);
    }
    let tsv = printed(dir, &["scan", "f"]);
    let objects = printed(dir, &["scan", "f", "--json"]);
    printed_with(dir, &["load", "g", "-"], tsv.as_bytes());
    printed_with(
        dir,
        &["load", "h", "--format", "json-lines", "--sorted"],
        objects.as_bytes(),
    );
    fs::write(dir.join("lines"), format!("\n{tsv}\n")).unwrap();
    let report = json(&printed(
        dir,
        &["load", "f", "lines", "--tree", "other", "--json"],
    ));
    assert_eq!(report["entries"], odd.len());
    for arguments in [
        &["scan", "g"][..],
        &["scan", "h"],
        &["scan", "f", "--tree", "other"],
    ] {
        assert_eq!(printed(dir, arguments), tsv, "{arguments:?}");
    }
}

#[test]
fn wrong_input_is_named_by_file_and_line_and_nothing_is_loaded() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    printed(dir, &["set", "f", "a", "1"]);
    fs::write(dir.join("lines"), "b\t2\nc\t3\nno tab\n").unwrap();
    let cases: [(&[&str], &str, &str); 6] = [
        (&["load", "f", "lines"], "", "lines:3: there is no tab"),
        (
            &["load", "f"],
            "b\t2\nc\\q\t3\n",
            "standard input:2: key: \\q is no escape",
        ),
        (
            &["load", "f"],
            "b\t2\t3\n",
            "standard input:1: there is a second tab",
        ),
        (
            &["load", "f", "--format", "json-lines"],
            "{\"key\":\"b\",\"value\":\"2\"}\n\n{}\n",
            "standard input:3: missing field",
        ),
        (
            &["load", "f", "--tree", "t", "--sorted"],
            "b\t2\nc\t3\nc\t4\n",
            "standard input:3: its key is not above",
        ),
        (
            &["load", "f", "--sorted"],
            "b\t2\n",
            "f: bulk load: the tree is not empty",
        ),
    ];
    for (arguments, input, expected) in cases {
        let line = complaint(dir, arguments, input.as_bytes(), 1);
        assert!(line.starts_with(expected), "{line}");
        assert_eq!(printed(dir, &["scan", "f"]), "a\t1\n");
    }
    let long = format!("b\t2\n{}\t3\n", "k".repeat(1025));
    let line = complaint(dir, &["load", "f"], long.as_bytes(), 1);
    assert_eq!(line, "standard input:2: a key of 1025 bytes is too long");
    assert_eq!(
        complaint(dir, &["load", "f", "nothing"], b"", 1),
        "nothing: No such file or directory (os error 2)"
    );
}

#[test]
fn a_large_load_needs_little_memory_and_keeps_everything() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let lines: String = (0..30_000_u64)
        .map(|i| {
            format!(
                "{:08}\t{}\n",
                i * 7919 % 30_011,
                "v".repeat((i % 150) as usize)
            )
        })
        .collect();
    printed_with(dir, &["load", "f", "--cache", "128K"], lines.as_bytes());
    let mut sorted: Vec<&str> = lines.lines().collect();
    sorted.sort_unstable();
    assert!(
        printed(dir, &["scan", "f", "--cache", "64K"])
            .lines()
            .eq(sorted.iter().copied())
    );
    let mut sorted = sorted.join("\n");
    sorted.push('\n');
    printed_with(
        dir,
        &["load", "g", "--sorted", "--cache", "128K"],
        sorted.as_bytes(),
    );
    assert_eq!(printed(dir, &["scan", "g"]), sorted);
}

#[test]
fn stats_and_check_tell_what_is_there() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let lines: String = (0..20_000).map(|i| format!("key{i:06}\tvalue\n")).collect();
    printed_with(dir, &["load", "f"], lines.as_bytes());
    printed_with(dir, &["set", "f", "long", "--tree", "second"], &[7; 10_000]);
    let stats = json(&printed(dir, &["stats", "f", "--json"]));
    let trees = stats["trees"].as_array().unwrap();
    assert_eq!(
        (
            trees.len(),
            &trees[0]["entries"],
            &trees[1]["overflow_pages"]
        ),
        (2, &20_000.into(), &3.into())
    );
    assert!(
        trees[0]["leaf_fill"].as_f64().unwrap() > 0.9,
        "keys that ascend fill pages: {stats}"
    );
    assert_eq!(
        stats["file_bytes"],
        fs::metadata(dir.join("f")).unwrap().len()
    );
    let text = printed(dir, &["stats", "f"]);
    assert!(
        text.starts_with("f: ") && text.contains("entries                     20000"),
        "{text}"
    );
    let verdict = json(&printed(dir, &["check", "f", "--json"]));
    assert_eq!(
        (&verdict["entries"], &verdict["pages_lost"]),
        (&20_001.into(), &0.into())
    );
    assert!(printed(dir, &["check", "f"]).starts_with("f: clean (20001 entries, 2 trees, "));
}

#[test]
fn damage_is_told_in_one_line_by_every_command() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let lines: String = (0..20_000).map(|i| format!("key{i:06}\tvalue\n")).collect();
    printed_with(dir, &["load", "f"], lines.as_bytes());
    let mut bytes = fs::read(dir.join("f")).unwrap();
    // Every page behind the bitmap.
    for page in bytes.chunks_mut(4096).skip(2) {
        page[2000] ^= 1;
    }
    fs::write(dir.join("f"), bytes).unwrap();
    for arguments in [
        &["get", "f", "key000001"][..],
        &["scan", "f"],
        &["stats", "f"],
        &["set", "f", "a", "b"],
    ] {
        let line = complaint(dir, arguments, b"", 1);
        assert!(
            line.starts_with("f: page ")
                && line.ends_with("is damaged: its checksum does not match"),
            "{line}"
        );
    }
    let checked = kv(dir, &["check", "f"]);
    let stdout = String::from_utf8(checked.stdout).unwrap();
    assert_eq!((checked.status.code(), checked.stderr.len()), (Some(1), 0));
    assert!(
        stdout.starts_with("f: page ") && stdout.lines().count() == 1,
        "{stdout}"
    );
    let checked = kv(dir, &["check", "f", "--json"]);
    assert_eq!(checked.status.code(), Some(1));
    assert_eq!(
        json(&String::from_utf8(checked.stdout).unwrap())["errors"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn files_that_cannot_be_used_are_named_and_left_alone() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    fs::write(dir.join("text"), "this is no index file").unwrap();
    fs::create_dir(dir.join("d")).unwrap();
    printed(dir, &["set", "f", "a", "1"]);
    let cases: [(&[&str], i32, &str); 12] = [
        (&["get", "nothing", "a"], 1, "nothing: no such file"),
        (&["scan", "nothing"], 1, "nothing: no such file"),
        (&["stats", "nothing"], 1, "nothing: no such file"),
        (&["check", "nothing"], 1, "nothing: no such file"),
        (&["remove", "nothing", "a"], 1, "nothing: no such file"),
        (&["get", "text", "a"], 1, "text: not an index file"),
        (&["set", "text", "a", "b"], 1, "text: not an index file"),
        (&["check", "text"], 1, "text: not an index file"),
        (
            &["set", "d", "a", "b"],
            1,
            "d: Is a directory (os error 21)",
        ),
        (
            &["get", "f", "a", "--tree", "t"],
            1,
            "f: there is no tree 't' in it (there is: kv)",
        ),
        (
            &["bench", "f"],
            1,
            "f: it exists: the file is made, and removed at the end",
        ),
        (
            &["set", "no/such/directory", "a", "b"],
            1,
            "no/such/directory: open: No such file or directory (os error 2)",
        ),
    ];
    for (arguments, code, expected) in cases {
        assert_eq!(
            complaint(dir, arguments, b"", code),
            expected,
            "{arguments:?}"
        );
    }
    assert_eq!(
        complaint(dir, &["get", "f", "a\\q"], b"", 2),
        "KEY a\\q: \\q is no escape: a backslash is \\\\"
    );
    assert_eq!(
        complaint(dir, &["get", "f", "a", "--cache", "4K"], b"", 1),
        "f: unusable option: a pool needs at least 16 frames"
    );
    assert_eq!(
        fs::read(dir.join("text")).unwrap(),
        b"this is no index file"
    );
    let mut left: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["d", "f", "f-journal-0", "f-journal-1", "text"]);
}

#[test]
fn a_file_in_use_is_refused_and_works_afterwards() {
    let dir = TempDir::new().unwrap();
    let path = dir.path();
    printed(path, &["set", "f", "a", "1"]);
    {
        let _open =
            vmcache::IndexFile::open(&path.join("f"), vmcache::IndexOptions::default()).unwrap();
        for arguments in [
            &["get", "f", "a"][..],
            &["set", "f", "a", "2"],
            &["check", "f"],
        ] {
            assert_eq!(
                complaint(path, arguments, b"", 1),
                "f: in use by another process"
            );
        }
    }
    assert_eq!(printed(path, &["get", "f", "a"]), "1\n");
}

#[test]
fn every_load_of_bench_runs_and_cleans_up() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    for workload in ["a", "b", "c", "d", "e", "F"] {
        let arguments = [
            "bench",
            "f",
            "--workload",
            workload,
            "--records",
            "5000",
            "--operations",
            "1000",
            "--threads",
            "2",
            "--value-size",
            "64",
            "--cache",
            "256K",
            "--seed",
            "3",
            "--json",
        ];
        let report = json(&printed(dir, &arguments));
        assert_eq!(
            (&report["all"]["operations"], &report["records"]),
            (&1000.into(), &5000.into())
        );
        assert!(report["operations_per_s"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
    let text = printed(
        dir,
        &[
            "bench",
            "f",
            "--records",
            "100",
            "--operations",
            "50",
            "--durable",
            "--keep",
        ],
    );
    assert!(text.starts_with("f: load a: 50 operations in "), "{text}");
    assert!(printed(dir, &["check", "f"]).starts_with("f: clean (100 entries"));
}
