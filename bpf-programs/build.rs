//! Compiles every kernel to BPF with clang, and natively as its C twin: by the host's compiler under
//! `warren_kernel_NAME`, and by clang, which uses more vectors than gcc, under `warren_vector_NAME`.
//!
//! `WARREN_CLANG` names another clang than the one on the path. The BPF objects go to `OUT_DIR`,
//! from where the library embeds them; the twins are linked.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The flags of `bpf-programs/build`, which users' kernels are built with; a test compares them.
/// Freestanding: clang must not turn loops into calls of a C library that BPF does not have.
const FLAGS: &[&str] = &[
    "-O2",
    "-g0",
    "-target",
    "bpf",
    "-mcpu=v3",
    "-ffreestanding",
    "-Wall",
    "-Wextra",
];

/// What the kernels and the runtime are made of, beside the kernels themselves.
const WATCHED: &[&str] = &["build.rs", "include", "kernels", "native"];

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    println!("cargo::rerun-if-env-changed=WARREN_CLANG");
    for watched in WATCHED {
        println!("cargo::rerun-if-changed={watched}");
    }
    let clang = env::var("WARREN_CLANG").unwrap_or_else(|_| "clang".to_owned());
    let mut twins = Vec::new();
    for source in kernels(&root.join("kernels")) {
        let name = source.file_stem().expect("a source has a name");
        let name = name.to_str().expect("names of kernels are ASCII");
        if let Err(reason) = compile(&clang, &root, &source, &out.join(format!("{name}.o"))) {
            eprintln!("error: {reason}");
            std::process::exit(1);
        }
        let entry = format!("warren_kernel_{name}");
        twins.extend(twin(&root, &source, &entry, None, &out));
        let (entry, apart) = (format!("warren_vector_{name}"), out.join("vector"));
        twins.extend(twin(&root, &source, &entry, Some(&clang), &apart));
    }
    library(&root, &twins);
}

/// The sources, in order.
fn kernels(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).expect("the kernels can be listed");
    let mut sources: Vec<_> = entries
        .map(|entry| entry.expect("the kernels can be listed").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "c"))
        .collect();
    sources.sort();
    sources
}

fn compile(clang: &str, root: &Path, source: &Path, object: &Path) -> Result<(), String> {
    let mut command = Command::new(clang);
    command.args(FLAGS);
    command.arg("-I").arg(root.join("include"));
    command.arg("-c").arg(source).arg("-o").arg(object);
    let output = command.output().map_err(|error| {
        format!(
            "cannot run '{clang}': {error}\n\
             the kernels are compiled with clang, 14 or later (Debian, Ubuntu: apt install clang; \
             Fedora: dnf install clang); WARREN_CLANG=/path/to/clang names another one"
        )
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "'{clang}' cannot compile {} for BPF ({}):\n{}\
         a clang with the BPF target is needed, 14 or later; `clang --print-targets` lists bpf; \
         WARREN_CLANG=/path/to/clang names another one",
        source.display(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    ))
}

/// A compiler for the host, at the optimisation kernels are compared with, whatever the profile.
fn native(root: &Path) -> cc::Build {
    let mut build = cc::Build::new();
    build.opt_level(2).debug(false).warnings(true);
    build
        .include(root.join("include"))
        .define("WARREN_NATIVE", "1");
    build
}

/// The kernel as plain C, its entry renamed.
fn twin(
    root: &Path,
    source: &Path,
    entry: &str,
    compiler: Option<&str>,
    out: &Path,
) -> Vec<PathBuf> {
    let mut build = native(root);
    build.file(source).out_dir(out);
    if let Some(compiler) = compiler {
        build.compiler(compiler);
    }
    build.define("WARREN_ENTRY", entry);
    // OpenCSD kernels have a main; of other kernels it is no word.
    build.define("main", entry);
    build.compile_intermediates()
}

fn library(root: &Path, twins: &[PathBuf]) {
    let mut build = native(root);
    build.objects(twins);
    build.file(root.join("native/runtime.c"));
    build.file(root.join("native/opencsd.c"));
    build.compile("warren_kernels");
}
