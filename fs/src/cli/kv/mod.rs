//! `warren kv`: the key-value store of an index file, from the shell.
//!
//! Keys and values are text with escapes ([`text`]), so that all of them can be typed, printed and loaded
//! again. Commands that read make no file and no tree; only those that write commit.

mod bench;
mod load;
mod report;
mod text;

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::{Deserialize, Serialize};
use vmcache::{IndexFile, IndexOptions, Kv, Tree, WriteBatch};

use super::{CommandResult, Failure, Outcome, output};

/// Keep keys and values in an index file.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Keys and values are text; \\\\, \\t, \\n, \\r and \\xHH stand for a backslash, a tab, a line \
                  feed, a carriage return and any byte, and are printed for them.\n\
                  A file is used by one process at a time. A crash leaves it at its last commit."
)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Set(SetArgs),
    Get(GetArgs),
    Remove(RemoveArgs),
    Scan(ScanArgs),
    Load(load::Args),
    Stats(report::StatsArgs),
    Check(report::CheckArgs),
    Bench(bench::Args),
}

/// Which store, and how much memory for it.
#[derive(Debug, clap::Args)]
struct Target {
    /// Index file
    file: PathBuf,
    /// Tree of the file
    #[arg(long, value_name = "NAME", default_value = Kv::TREE)]
    tree: String,
    #[command(flatten)]
    memory: Memory,
}

#[derive(Debug, clap::Args)]
struct Memory {
    /// Most memory for pages of the file
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = zns_backend::parse_size)]
    cache: u64,
}

/// Set the value of a key, in a file that is made if there is none.
#[derive(Debug, clap::Args)]
struct SetArgs {
    #[command(flatten)]
    target: Target,
    /// The key
    key: OsString,
    /// Its value [default: standard input, as it is]
    value: Option<OsString>,
}

/// Print the value of a key; exit with 1 if there is none.
#[derive(Debug, clap::Args)]
struct GetArgs {
    #[command(flatten)]
    target: Target,
    /// The key
    key: OsString,
    /// Print the value as it is, without escapes and line feed
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Remove keys in one commit; exit with 1 if one of them is not there.
#[derive(Debug, clap::Args)]
struct RemoveArgs {
    #[command(flatten)]
    target: Target,
    /// The keys
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<OsString>,
}

/// Print entries in the order of their keys.
///
/// One line per entry: key, tab, value.
#[derive(Debug, clap::Args)]
struct ScanArgs {
    #[command(flatten)]
    target: Target,
    /// First key
    #[arg(long, value_name = "KEY")]
    from: Option<OsString>,
    /// Key before which to end
    #[arg(long, value_name = "KEY")]
    to: Option<OsString>,
    /// Only keys that begin with this
    #[arg(long, value_name = "PREFIX", conflicts_with_all = ["from", "to"])]
    prefix: Option<OsString>,
    /// From the last key to the first
    #[arg(long)]
    reverse: bool,
    /// At most so many entries
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Without values
    #[arg(long)]
    keys_only: bool,
    /// Print JSON, an object per line
    #[arg(long)]
    json: bool,
}

/// An entry as JSON: a line of `scan --json` and `load --format json-lines`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
}

pub(super) fn run(args: &Args) -> CommandResult {
    match &args.command {
        Command::Set(args) => set(args),
        Command::Get(args) => get(args),
        Command::Remove(args) => remove(args),
        Command::Scan(args) => scan(args),
        Command::Load(args) => load::run(args),
        Command::Stats(args) => report::stats(args),
        Command::Check(args) => report::check(args),
        Command::Bench(args) => bench::run(args),
    }
}

/// What went wrong with a file, in one line.
fn failed(path: &Path, error: vmcache::Error) -> Failure {
    match error {
        vmcache::Error::Io { source, .. } if source.kind() == io::ErrorKind::WouldBlock => {
            Failure::new(path.display(), "in use by another process")
        }
        error => Failure::new(path.display(), error),
    }
}

/// A key or value from the command line.
fn bytes(name: &str, argument: &OsString) -> Result<Vec<u8>, Failure> {
    let text = argument.as_bytes();
    text::unescape(text)
        .map_err(|problem| Failure::usage(format!("{name} {}", argument.display()), problem))
}

impl Memory {
    fn options(&self) -> Result<IndexOptions, Failure> {
        let cache_bytes = usize::try_from(self.cache);
        let cache_bytes =
            cache_bytes.map_err(|_| Failure::usage("--cache", "more than there can be"))?;
        Ok(IndexOptions {
            cache_bytes,
            ..IndexOptions::default()
        })
    }
}

/// Whether there is an index file, by its first look.
fn require(path: &Path) -> Result<(), Failure> {
    match vmcache::is_index_file(path) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::new(path.display(), "not an index file")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(Failure::new(path.display(), "no such file"))
        }
        Err(e) => Err(Failure::new(path.display(), e)),
    }
}

/// Opens an index file, which must be there.
fn open_existing(path: &Path, memory: &Memory) -> Result<IndexFile, Failure> {
    require(path)?;
    IndexFile::open(path, memory.options()?).map_err(|e| failed(path, e))
}

/// Opens an index file, or makes one where there is none or an empty file.
fn open_or_create(path: &Path, memory: &Memory) -> Result<IndexFile, Failure> {
    let is_new = match std::fs::metadata(path) {
        Ok(found) => found.is_file() && found.len() == 0,
        Err(e) => e.kind() == io::ErrorKind::NotFound,
    };
    match is_new {
        true => IndexFile::open(path, memory.options()?).map_err(|e| failed(path, e)),
        false => open_existing(path, memory),
    }
}

impl Target {
    fn failed(&self, error: vmcache::Error) -> Failure {
        failed(&self.file, error)
    }

    /// The file, which must be there and have the tree.
    fn existing(&self) -> Result<IndexFile, Failure> {
        let index = open_existing(&self.file, &self.memory)?;
        let names = index.tree_names();
        if names.contains(&self.tree) {
            return Ok(index);
        }
        let has = match names.is_empty() {
            true => "none".into(),
            false => names.join(", "),
        };
        let problem = format!("there is no tree '{}' in it (there is: {has})", self.tree);
        Err(Failure::new(self.file.display(), problem))
    }

    /// The tree, to read it.
    fn tree(&self) -> Result<Tree, Failure> {
        let tree = self.existing()?.tree(&self.tree);
        tree.map_err(|e| self.failed(e))
    }

    /// The store for writing, made where there is none.
    fn store(&self) -> Result<Kv, Failure> {
        let index = open_or_create(&self.file, &self.memory)?;
        Kv::on_tree(index, &self.tree).map_err(|e| self.failed(e))
    }
}

fn set(args: &SetArgs) -> CommandResult {
    let key = bytes("KEY", &args.key)?;
    let value = match &args.value {
        Some(value) => bytes("VALUE", value)?,
        None => {
            let mut value = Vec::new();
            let read = io::stdin().lock().read_to_end(&mut value);
            read.map_err(|e| Failure::new("standard input", e))?;
            value
        }
    };
    let kv = args.target.store()?;
    let set = kv.set(&key, &value).and_then(|_| kv.close());
    set.map(|()| Outcome::Fine)
        .map_err(|e| args.target.failed(e))
}

fn get(args: &GetArgs) -> CommandResult {
    let key = bytes("KEY", &args.key)?;
    let tree = args.target.tree()?;
    let Some(value) = tree.get(&key).map_err(|e| args.target.failed(e))? else {
        return Ok(Outcome::Absent);
    };
    if args.raw {
        return match io::stdout().lock().write_all(&value) {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new("output", e)),
            _ => Ok(Outcome::Fine),
        };
    }
    let value = text::escape(&value);
    if args.json {
        let key = text::escape(&key);
        output::print_json(&Entry {
            key,
            value: Some(value),
        })?;
    } else {
        output::print(&value);
    }
    Ok(Outcome::Fine)
}

fn remove(args: &RemoveArgs) -> CommandResult {
    let keys = args.keys.iter().map(|key| bytes("KEY", key));
    let keys = keys.collect::<Result<Vec<_>, _>>()?;
    let failed = |e| args.target.failed(e);
    let kv = Kv::on_tree(args.target.existing()?, &args.target.tree).map_err(failed)?;
    let mut outcome = Outcome::Fine;
    let mut batch = WriteBatch::new();
    for key in keys {
        if !kv.get_into(&key, &mut Vec::new()).map_err(failed)? {
            outcome = Outcome::Absent;
        }
        batch.remove(key);
    }
    let removed = kv.apply(&batch).and_then(|()| kv.close());
    removed.map(|()| outcome).map_err(failed)
}

/// The first key above all that begin with `prefix`; none if there is no such key.
fn behind_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte != u8::MAX)?;
    let mut key = prefix[..=last].to_vec();
    key[last] += 1;
    Some(key)
}

/// The keys that a scan goes over.
type Bounds = (Bound<Vec<u8>>, Bound<Vec<u8>>);

impl ScanArgs {
    fn bounds(&self) -> Result<Bounds, Failure> {
        let own = |name: &str, key: &Option<OsString>| {
            key.as_ref().map(|key| bytes(name, key)).transpose()
        };
        let (from, to) = match own("--prefix", &self.prefix)? {
            Some(prefix) => {
                let behind = behind_prefix(&prefix);
                (Some(prefix), behind)
            }
            None => (own("--from", &self.from)?, own("--to", &self.to)?),
        };
        Ok((
            from.map_or(Bound::Unbounded, Bound::Included),
            to.map_or(Bound::Unbounded, Bound::Excluded),
        ))
    }

    fn line(&self, key: &[u8], value: &[u8]) -> Result<String, Failure> {
        let key = text::escape(key);
        let value = (!self.keys_only).then(|| text::escape(value));
        match (self.json, value) {
            (true, value) => {
                serde_json::to_string(&Entry { key, value }).map_err(|e| Failure::new("report", e))
            }
            (false, Some(value)) => Ok(format!("{key}\t{value}")),
            (false, None) => Ok(key),
        }
    }
}

fn scan(args: &ScanArgs) -> CommandResult {
    let bounds = args.bounds()?;
    let mut range = args.target.tree()?.range::<Vec<u8>>(bounds);
    let mut out = io::BufWriter::new(io::stdout().lock());
    for _ in 0..args.limit.unwrap_or(usize::MAX) {
        let next = match args.reverse {
            false => range.next(),
            true => range.next_back(),
        };
        let Some(entry) = next else { break };
        let (key, value) = entry.map_err(|e| args.target.failed(e))?;
        match writeln!(out, "{}", args.line(&key, &value)?) {
            Ok(()) => {}
            // A reader that has seen enough is no error.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(Outcome::Fine),
            Err(e) => return Err(Failure::new("output", e)),
        }
    }
    match out.flush() {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new("output", e)),
        _ => Ok(Outcome::Fine),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_key_that_does_not_have_it() {
        assert_eq!(behind_prefix(b"ab").unwrap(), b"ac");
        assert_eq!(behind_prefix(b"a\xff\xff").unwrap(), b"b");
        assert_eq!(behind_prefix(b"\xff\xff"), None);
        assert_eq!(behind_prefix(b""), None);
    }
}
