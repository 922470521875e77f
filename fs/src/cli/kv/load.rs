//! `warren kv load`: many entries from a file or from standard input, in one commit.
//!
//! Nothing is committed before the end, so that a load which fails has changed nothing. Wrong input is
//! named by its file and line.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use super::{Entry, Target, open_or_create, text};
use crate::cli::output::{self, Bar};
use crate::cli::{CommandResult, Failure, Outcome};

/// Bytes read at once.
const BUFFER_BYTES: usize = 1 << 20;
/// Lines between two looks at the progress.
const LINES_PER_SHOW: u64 = 1024;

/// Load entries from a file or from standard input, in one commit.
///
/// If a line is wrong, nothing is loaded. A key that comes twice has its last value.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    target: Target,
    /// File to read, - for standard input
    #[arg(default_value = "-")]
    input: PathBuf,
    /// What a line is
    #[arg(long, value_enum, default_value = "tsv")]
    format: Format,
    /// The keys ascend and the tree is empty: build it from the bottom, each page written once
    #[arg(long)]
    sorted: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What a line of the input is.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    /// Key, tab, value
    Tsv,
    /// {"key": "..", "value": ".."}
    JsonLines,
}

#[derive(Debug, Serialize)]
struct Report {
    entries: u64,
    input_bytes: u64,
    seconds: f64,
}

type Pair = (Vec<u8>, Vec<u8>);

/// The input, line by line.
struct Lines {
    reader: Box<dyn BufRead>,
    name: String,
    format: Format,
    /// Bytes of the input, if it has an end that is known.
    total: Option<u64>,
    line: Vec<u8>,
    number: u64,
    bytes: u64,
    bar: Bar,
}

impl Lines {
    fn open(path: &Path, format: Format) -> Result<Lines, Failure> {
        let label = "loading";
        let (name, total, source): (_, _, Box<dyn Read>) = if path == Path::new("-") {
            ("standard input".into(), None, Box::new(io::stdin()))
        } else {
            let name = path.display().to_string();
            let open = || {
                let file = File::open(path)?;
                let metadata = file.metadata()?;
                if metadata.is_dir() {
                    return Err(io::ErrorKind::IsADirectory.into());
                }
                Ok((metadata.is_file().then_some(metadata.len()), file))
            };
            let (total, file) = open().map_err(|e: io::Error| Failure::new(&name, e))?;
            (name, total, Box::new(file))
        };
        Ok(Lines {
            reader: Box::new(BufReader::with_capacity(BUFFER_BYTES, source)),
            name,
            format,
            total,
            line: Vec::new(),
            number: 0,
            bytes: 0,
            bar: total.map_or_else(|| Bar::counter(label), |_| Bar::new(label)),
        })
    }

    /// Something is wrong with the line that was read last.
    fn wrong(&self, problem: impl std::fmt::Display) -> Failure {
        Failure::new(format!("{}:{}", self.name, self.number), problem)
    }

    /// The next entry; empty lines are passed over.
    fn next(&mut self) -> Result<Option<Pair>, Failure> {
        loop {
            self.line.clear();
            let read = self.reader.read_until(b'\n', &mut self.line);
            let read = read.map_err(|e| Failure::new(&self.name, e))?;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            self.bytes += read as u64;
            if self.number.is_multiple_of(LINES_PER_SHOW) {
                match self.total {
                    Some(total) => self.bar.show(self.bytes, total),
                    None => self.bar.count(self.number),
                }
            }
            let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
            if !line.is_empty() {
                let parsed = match self.format {
                    Format::Tsv => parse_tsv(line),
                    Format::JsonLines => parse_json(line),
                };
                return parsed.map(Some).map_err(|problem| self.wrong(problem));
            }
        }
    }
}

fn parse_tsv(line: &[u8]) -> Result<Pair, String> {
    let tab = line.iter().position(|&byte| byte == b'\t');
    let tab = tab.ok_or("there is no tab between key and value")?;
    let (key, value) = (&line[..tab], &line[tab + 1..]);
    if value.contains(&b'\t') {
        return Err("there is a second tab: a tab in a value is \\t".into());
    }
    let part = |name: &str, text| text::unescape(text).map_err(|e| format!("{name}: {e}"));
    Ok((part("key", key)?, part("value", value)?))
}

fn parse_json(line: &[u8]) -> Result<Pair, String> {
    let entry: Entry = serde_json::from_slice(line).map_err(|e| e.to_string())?;
    let value = entry.value.ok_or("there is no \"value\"")?;
    let part = |name: &str, text: &str| {
        text::unescape(text.as_bytes()).map_err(|e| format!("{name}: {e}"))
    };
    Ok((part("key", &entry.key)?, part("value", &value)?))
}

pub(super) fn run(args: &Args) -> CommandResult {
    let begun = Instant::now();
    let mut lines = Lines::open(&args.input, args.format)?;
    let target = &args.target;
    let index = open_or_create(&target.file, &target.memory)?;
    let tree = index.tree(&target.tree).map_err(|e| target.failed(e))?;
    let entries = match args.sorted {
        true => load_sorted(target, &tree, &mut lines)?,
        false => load(&tree, &mut lines)?,
    };
    drop(tree);
    index.close().map_err(|e| target.failed(e))?;
    let report = Report {
        entries,
        input_bytes: lines.bytes,
        seconds: begun.elapsed().as_secs_f64(),
    };
    drop(lines);
    if args.json {
        output::print_json(&report)?;
    } else {
        let (file, seconds) = (target.file.display(), report.seconds);
        output::print(&format!(
            "{file}: {entries} entries loaded in {seconds:.1} s"
        ));
    }
    Ok(Outcome::Fine)
}

fn load(tree: &vmcache::Tree, lines: &mut Lines) -> Result<u64, Failure> {
    let mut entries = 0;
    while let Some((key, value)) = lines.next()? {
        tree.set(&key, &value).map_err(|e| lines.wrong(e))?;
        entries += 1;
    }
    Ok(entries)
}

fn load_sorted(target: &Target, tree: &vmcache::Tree, lines: &mut Lines) -> Result<u64, Failure> {
    let mut problem = None;
    let mut last: Option<Vec<u8>> = None;
    let mut next = || match lines.next()? {
        Some((key, _)) if last.as_ref().is_some_and(|last| *last >= key) => {
            Err(lines.wrong("its key is not above the one before: load without --sorted"))
        }
        Some((key, value)) => {
            last = Some(key.clone());
            Ok(Some((key, value)))
        }
        None => Ok(None),
    };
    let entries = std::iter::from_fn(|| match next() {
        Ok(entry) => entry.map(Ok),
        Err(failure) => {
            problem = Some(failure);
            Some(Err(vmcache::Error::BulkLoad("the input is wrong")))
        }
    });
    let loaded = tree.bulk_load(entries);
    match (problem, loaded) {
        (Some(failure), _) => Err(failure),
        (None, loaded) => loaded.map_err(|e| target.failed(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_entries_in_either_format() {
        let pair = (b"a\tb".to_vec(), b"\xff\\".to_vec());
        assert_eq!(parse_tsv(b"a\\tb\t\\xff\\\\").unwrap(), pair);
        assert_eq!(
            parse_json(br#"{"key": "a\\tb", "value": "\\xff\\\\"}"#).unwrap(),
            pair
        );
        assert_eq!(parse_tsv(b"\t").unwrap(), (vec![], vec![]));
    }

    #[test]
    fn wrong_lines_are_told_by_what_is_wrong() {
        for (line, part) in [
            ("ab", "no tab"),
            ("a\tb\tc", "second tab"),
            ("a\\q\tb", "key: \\q"),
            ("a\tb\\", "value: "),
        ] {
            assert!(
                parse_tsv(line.as_bytes()).unwrap_err().contains(part),
                "{line}"
            );
        }
        for line in [
            "{}",
            "{\"key\": \"a\"}",
            "[]",
            "{\"key\": \"a\", \"value\": \"b\", \"more\": 1}",
            "{\"key\": 1, \"value\": \"\"}",
        ] {
            assert!(parse_json(line.as_bytes()).is_err(), "{line}");
        }
    }
}
