//! `warren kv stats` and `check`: what is in an index file, and whether it adds up.

use std::path::{Path, PathBuf};

use serde::Serialize;
use vmcache::{Error, IndexFile, PAGE_BYTES, TreeStats};

use super::{Memory, failed, open_existing, require};
use crate::cli::{CommandResult, Failure, Outcome, output};
use crate::size::HumanSize;

/// Show what is in an index file: trees, entries, how full the pages are.
///
/// Reads and verifies all of it.
#[derive(Debug, clap::Args)]
pub(super) struct StatsArgs {
    /// Index file
    file: PathBuf,
    #[command(flatten)]
    memory: Memory,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Check an index file.
///
/// Verifies every page, the order of keys, references and which pages are in use. Exits with 0 if the
/// file is sound, 1 if there are errors. Changes nothing beyond what opening does: it brings the file to
/// its last commit.
#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// Index file
    file: PathBuf,
    #[command(flatten)]
    memory: Memory,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Stats {
    file_bytes: u64,
    page_bytes: usize,
    pages: u64,
    pages_free: u64,
    pages_lost: u64,
    trees: Vec<Tree>,
}

#[derive(Debug, Serialize)]
struct Tree {
    name: String,
    entries: u64,
    height: u64,
    leaf_pages: u64,
    inner_pages: u64,
    overflow_pages: u64,
    /// Of the bytes of all leaves, the part in use.
    leaf_fill: f64,
}

impl Tree {
    fn new(name: &str, stats: &TreeStats) -> Tree {
        let leaf_bytes = stats.leaf_pages * PAGE_BYTES as u64;
        Tree {
            name: name.to_owned(),
            entries: stats.entries,
            height: stats.height,
            leaf_pages: stats.leaf_pages,
            inner_pages: stats.inner_pages,
            overflow_pages: stats.overflow_pages,
            leaf_fill: stats.leaf_bytes as f64 / leaf_bytes.max(1) as f64,
        }
    }
}

#[derive(Debug, Default, Serialize)]
struct Verdict {
    errors: Vec<String>,
    trees: usize,
    entries: u64,
    pages: u64,
    pages_lost: u64,
}

pub(super) fn stats(args: &StatsArgs) -> CommandResult {
    let index = open_existing(&args.file, &args.memory)?;
    let report = index.check().map_err(|e| failed(&args.file, e))?;
    let metadata = std::fs::metadata(&args.file);
    let metadata = metadata.map_err(|e| Failure::new(args.file.display(), e))?;
    let trees = report.trees.iter();
    let stats = Stats {
        file_bytes: metadata.len(),
        page_bytes: PAGE_BYTES,
        pages: report.pages,
        pages_free: report.pages_free,
        pages_lost: report.pages_lost,
        trees: trees.map(|(name, stats)| Tree::new(name, stats)).collect(),
    };
    if args.json {
        output::print_json(&stats)?;
    } else {
        output::print(stats_text(&args.file, &stats).trim_end());
    }
    Ok(Outcome::Fine)
}

fn stats_text(path: &Path, stats: &Stats) -> String {
    let (file, size) = (path.display(), HumanSize(stats.file_bytes));
    let (pages, free, lost) = (stats.pages, stats.pages_free, stats.pages_lost);
    let mut text = format!("{file}: {size}, {pages} pages, {free} free, {lost} lost\n");
    for tree in &stats.trees {
        let mut line = |name: &str, value: String| {
            text.push_str(&format!("  {name:<16} {value:>16}\n"));
        };
        line("tree", tree.name.clone());
        line("entries", tree.entries.to_string());
        line("height", tree.height.to_string());
        line("leaf pages", tree.leaf_pages.to_string());
        line("inner pages", tree.inner_pages.to_string());
        line("overflow pages", tree.overflow_pages.to_string());
        line("fill of leaves", format!("{:.1} %", tree.leaf_fill * 100.0));
    }
    text
}

pub(super) fn check(args: &CheckArgs) -> CommandResult {
    require(&args.file)?;
    let index = IndexFile::open(&args.file, args.memory.options()?);
    let verdict = match index.and_then(|index| index.check()) {
        Ok(report) => Verdict {
            errors: Vec::new(),
            trees: report.trees.len(),
            entries: report.trees.iter().map(|(_, stats)| stats.entries).sum(),
            pages: report.pages,
            pages_lost: report.pages_lost,
        },
        Err(error @ (Error::Damaged { .. } | Error::Format(_))) => Verdict {
            errors: vec![error.to_string()],
            ..Verdict::default()
        },
        Err(error) => return Err(failed(&args.file, error)),
    };
    if args.json {
        output::print_json(&verdict)?;
    } else {
        output::print(&verdict_text(&args.file, &verdict));
    }
    Ok(match verdict.errors.is_empty() {
        true => Outcome::Fine,
        false => Outcome::Damage,
    })
}

fn verdict_text(path: &Path, verdict: &Verdict) -> String {
    let file = path.display();
    if let Some(error) = verdict.errors.first() {
        return format!("{file}: {error}");
    }
    let Verdict {
        trees,
        entries,
        pages,
        pages_lost,
        ..
    } = verdict;
    let lost = match pages_lost {
        0 => String::new(),
        lost => format!(", {lost} pages that nothing uses"),
    };
    format!("{file}: clean ({entries} entries, {trees} trees, {pages} pages{lost})")
}
