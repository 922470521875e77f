//! The arrows of `ARCHITECTURE.md` and the list of `docs/dependencies.md` hold.
//!
//! Both are found by reading: `crate::NAME` in the sources, dependency tables in the manifests. A
//! text search can be deceived, by macros for instance; it is here against slips, not against
//! intent.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const ARCHITECTURE: &str = include_str!("../../ARCHITECTURE.md");
const DEPENDENCIES: &str = include_str!("../../docs/dependencies.md");

fn workspace() -> PathBuf {
    let fs = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs.parent().expect("fs lies in the workspace").to_owned()
}

/// The cells of the tables in a text, without their two lines of head.
fn rows(text: &str) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut line_of_table = 0;
    for line in text.lines() {
        if !line.starts_with('|') {
            line_of_table = 0;
            continue;
        }
        line_of_table += 1;
        if line_of_table > 2 {
            let cells = line.trim_matches('|').split('|');
            rows.push(cells.map(|cell| cell.trim().to_owned()).collect());
        }
    }
    rows
}

fn section<'t>(text: &'t str, heading: &str) -> &'t str {
    let (_, behind) = text.split_once(heading).expect("the heading is there");
    behind.split("\n## ").next().unwrap_or(behind)
}

/// The Rust files below a directory or the file itself.
fn sources(path: &Path, out: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("sources can be listed") {
            sources(&entry.expect("sources can be listed").path(), out);
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        out.push(path.to_owned());
    }
}

/// The text of a file without its comments.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a source is text");
    let lines = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or(""));
    lines.collect::<Vec<_>>().join("\n")
}

fn names_a_path(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == ':'
}

/// The paths behind `crate::` in a text, as far as they are written out.
fn crate_paths(text: &str) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for piece in text.split("crate::").skip(1) {
        let list = match piece.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or(list).split(',').collect(),
            None => vec![piece],
        };
        for path in list {
            let path = path.trim_start();
            let end = path.find(|c| !names_a_path(c)).unwrap_or(path.len());
            paths.insert(match path[..end].trim_end_matches(':') {
                // The crate's root passes these on.
                "Error" | "Result" => "error".to_owned(),
                path => path.to_owned(),
            });
        }
    }
    paths
}

#[test]
fn modules_use_only_what_the_arrows_allow() {
    let allowed: BTreeMap<String, Vec<String>> = rows(section(ARCHITECTURE, "## Arrows"))
        .into_iter()
        .map(|row| {
            let uses = row[1].split(',').map(|name| name.trim().to_owned());
            (
                row[0].clone(),
                uses.filter(|name| !name.is_empty()).collect(),
            )
        })
        .collect();
    let root = workspace().join("fs/src");
    let modules: BTreeSet<String> = fs::read_dir(&root)
        .expect("fs/src is there")
        .map(|entry| entry.expect("fs/src can be listed").path())
        .filter_map(|path| {
            path.file_stem()
                .map(|stem| stem.to_string_lossy().into_owned())
        })
        .filter(|name| name != "lib" && name != "main")
        .collect();
    let listed: BTreeSet<String> = allowed.keys().cloned().collect();
    assert_eq!(
        modules, listed,
        "the modules of fs/src and those of ARCHITECTURE.md"
    );

    let mut wrong = Vec::new();
    let mut unused: BTreeSet<(String, String)> = allowed
        .iter()
        .flat_map(|(module, uses)| uses.iter().map(|used| (module.clone(), used.clone())))
        .collect();
    for (module, uses) in &allowed {
        let mut files = Vec::new();
        sources(&root.join(module), &mut files);
        sources(&root.join(format!("{module}.rs")), &mut files);
        for file in files.iter().filter(|file| file.exists()) {
            for path in crate_paths(&code(file)) {
                let first = path.split("::").next().unwrap_or_default().to_owned();
                if !modules.contains(&first) || first == *module {
                    continue;
                }
                let allows = |used: &&String| {
                    **used == first || path == **used || path.starts_with(&format!("{used}::"))
                };
                match uses.iter().find(allows) {
                    Some(used) => {
                        unused.remove(&(module.clone(), used.clone()));
                    }
                    None => wrong.push(format!("{} uses crate::{path}", file.display())),
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "against the arrows:\n{}",
        wrong.join("\n")
    );
    assert!(unused.is_empty(), "allowed and not needed: {unused:?}");
}

#[test]
fn only_the_adapter_names_fuser() {
    let mut files = Vec::new();
    sources(&workspace().join("fs/src"), &mut files);
    let adapter = workspace().join("fs/src/fuse");
    let others: Vec<&PathBuf> = files
        .iter()
        .filter(|file| !file.starts_with(&adapter) && code(file).contains("fuser::"))
        .collect();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn index_files_are_a_matter_of_the_command_line() {
    let mut files = Vec::new();
    sources(&workspace().join("fs/src"), &mut files);
    let front_end = workspace().join("fs/src/cli/kv");
    for name in ["vmcache::", "kv_workload::"] {
        let (inside, outside): (Vec<&PathBuf>, Vec<&PathBuf>) = files
            .iter()
            .filter(|file| code(file).contains(name))
            .partition(|file| file.starts_with(&front_end));
        assert!(
            !inside.is_empty() && outside.is_empty(),
            "{name}: {outside:?}"
        );
    }
    let libraries = [("vmcache", None), ("kv-workload", Some("vmcache"))];
    for (library, knows) in libraries {
        let mut known = dependencies(&workspace().join(library).join("Cargo.toml"));
        if let Some(knows) = knows {
            assert!(known.remove(knows), "{library} stands on {knows}");
        }
        let ours = [
            "warren-fs",
            "zns-backend",
            "csd-vm",
            "vmcache",
            "kv-workload",
        ];
        assert!(
            ours.iter().all(|name| !known.contains(*name)),
            "{library}: {known:?}"
        );
    }
}

#[test]
fn devices_know_no_filesystem() {
    let mut files = Vec::new();
    sources(&workspace().join("zns-backend/src"), &mut files);
    assert!(files.len() > 10, "the sources are found");
    let knowing: Vec<&PathBuf> = files
        .iter()
        .filter(|file| code(file).contains("warren_fs"))
        .collect();
    assert!(knowing.is_empty(), "{knowing:?}");
}

/// Crates a manifest names in its dependency tables.
fn dependencies(manifest: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(manifest).expect("a manifest is text");
    let mut found = BTreeSet::new();
    let mut inside = false;
    for line in text.lines() {
        if let Some(table) = line.trim().strip_prefix('[') {
            inside = table.trim_end_matches(']').ends_with("dependencies");
        } else if inside && let Some((name, _)) = line.split_once('=') {
            let name = name.trim().trim_end_matches(".workspace");
            if !name.is_empty() && !name.starts_with('#') {
                found.insert(name.to_owned());
            }
        }
    }
    found
}

#[test]
fn every_dependency_is_listed_with_its_users_and_a_reason() {
    let root = workspace();
    let mut users: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let below = |directory: &Path| {
        let entries = fs::read_dir(directory).expect("the workspace can be listed");
        entries.map(|entry| entry.expect("the workspace can be listed").path())
    };
    for directory in below(&root).chain(below(&root.join("bench"))) {
        let manifest = directory.join("Cargo.toml");
        if manifest.exists() {
            let member = directory.strip_prefix(&root).expect("it lies below");
            for name in dependencies(&manifest) {
                let member = member.to_string_lossy().into_owned();
                users.entry(name).or_default().insert(member);
            }
        }
    }
    let used_by_all = dependencies(&root.join("Cargo.toml"));
    let nobody: Vec<&String> = used_by_all
        .iter()
        .filter(|name| !users.contains_key(*name))
        .collect();
    assert!(
        nobody.is_empty(),
        "named in the workspace and used by nobody: {nobody:?}"
    );

    let listed: BTreeMap<String, BTreeSet<String>> = rows(DEPENDENCIES)
        .into_iter()
        .map(|row| {
            assert!(row[2].len() > 10, "{} has no reason", row[0]);
            (
                row[0].clone(),
                row[1]
                    .split(',')
                    .map(|user| user.trim().to_owned())
                    .collect(),
            )
        })
        .collect();
    assert_eq!(listed, users, "docs/dependencies.md and the manifests");
}
