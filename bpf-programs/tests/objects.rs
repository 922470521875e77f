//! The objects, the headers and the build script are what users and the loader expect.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bpf_programs::KERNELS;

/// Instructions of the largest kernel may grow to this; the loader takes far more.
const OBJECT_BYTES_MAX: usize = 32 * 1024;
const INSTRUCTIONS_MAX: usize = 2048;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn clang() -> String {
    std::env::var("WARREN_CLANG").unwrap_or_else(|_| "clang".to_owned())
}

/// A scratch directory of this test.
fn scratch(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&path).expect("the scratch directory can be made");
    path
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(out).into_owned() + &String::from_utf8_lossy(err)
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("the command runs");
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    text(&output)
}

fn half(object: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([object[at], object[at + 1]]))
}

fn word(object: &[u8], at: usize) -> usize {
    u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| object[at + i])) as usize
}

/// Bytes of the sections that hold instructions.
fn code_bytes(object: &[u8]) -> usize {
    const EXECUTABLE: usize = 4;
    let (table, size, count) = (word(object, 40), half(object, 58), half(object, 60));
    let sections = (0..count).map(|index| table + index * size);
    let code = sections.filter(|&section| word(object, section + 8) & EXECUTABLE != 0);
    code.map(|section| word(object, section + 32)).sum()
}

#[test]
fn every_object_is_a_relocatable_bpf_elf_of_modest_size() {
    const RELOCATABLE: usize = 1;
    const BPF: usize = 247;
    for kernel in KERNELS {
        let object = kernel.object;
        assert_eq!(object[..6], *b"\x7fELF\x02\x01", "{}", kernel.name);
        assert_eq!(half(object, 16), RELOCATABLE, "{}", kernel.name);
        assert_eq!(half(object, 18), BPF, "{}", kernel.name);
        assert!(
            object.len() <= OBJECT_BYTES_MAX,
            "{}: {}",
            kernel.name,
            object.len()
        );
        let code = code_bytes(object);
        assert!(
            code > 0 && code.is_multiple_of(8),
            "{}: {code}",
            kernel.name
        );
        assert!(
            code / 8 <= INSTRUCTIONS_MAX,
            "{}: {}",
            kernel.name,
            code / 8
        );
    }
}

#[test]
fn the_table_of_kernels_is_the_folder_of_kernels() {
    let entries = std::fs::read_dir(root().join("kernels")).expect("the folder is there");
    let stem = |path: PathBuf| {
        path.file_stem()
            .map(|stem| stem.to_string_lossy().into_owned())
    };
    let mut files: Vec<_> = entries
        .filter_map(|entry| stem(entry.ok()?.path()))
        .collect();
    files.sort();
    let names: Vec<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
    assert_eq!(files, names);
    let readme = std::fs::read_to_string(root().join("README.md")).expect("the readme is there");
    for name in names {
        assert!(
            readme.contains(&format!("| `{name}` |")),
            "README.md lacks {name}"
        );
    }
}

#[test]
fn the_build_script_makes_the_objects_that_are_embedded() {
    let out = scratch("objects");
    let printed = run(Command::new(root().join("build")).arg(&out));
    assert_eq!(printed.lines().count(), KERNELS.len(), "{printed}");
    for kernel in KERNELS {
        let object = std::fs::read(out.join(format!("{}.o", kernel.name))).expect("it is built");
        assert!(object == kernel.object, "{}", kernel.name);
    }
}

#[test]
fn the_build_script_says_what_is_missing() {
    let mut build = Command::new(root().join("build"));
    let output = build
        .env("WARREN_CLANG", "no-such-clang")
        .output()
        .expect("it runs");
    assert!(!output.status.success());
    assert!(
        text(&output).contains("apt install clang"),
        "{}",
        text(&output)
    );
    let mut build = Command::new(root().join("build"));
    let output = build.arg("no-such-file.c").output().expect("it runs");
    assert!(
        text(&output).contains("no file no-such-file.c"),
        "{}",
        text(&output)
    );
}

/// A kernel in the manner of OpenCSD's, with every name of its headers.
const OPENCSD_KERNEL: &str = r"
#include <stdint.h>
#include <math.h>
#include <bpf_helpers_prog.h>
#include <bpf_helpers_flfs.h>

int main() {
    struct flfs_call *call = 0;
    bpf_get_call_info((void**)&call);
    uint64_t *cur_data_lba = (uint64_t*)call;
    find_data_lba((uint64_t**)&cur_data_lba, call->op == FLFS_WRITE_EVENT);
    if (call->ino.type == FLFS_DIR || call->ino.inode == call->ino.parent) return -1;
    uint64_t zone_size = bpf_get_zone_size(), sector_size = bpf_get_sector_size();
    if (bpf_get_zone_capacity() == 0) bpf_debug((void*)0);
    void *buffer; uint64_t buffer_size, zone, sector;
    bpf_get_mem_info(&buffer, &buffer_size);
    struct flfs_write_return done = { WRITE_SUCCESS, call->dims.size };
    if (call->op == FLFS_WRITE_EVENT) {
        struct flfs_write_call *write = (struct flfs_write_call*)(call + 1);
        lba_to_position(write->wp_ptr, zone_size, &zone, &sector);
        if (bpf_write(zone, &sector, write->pre_pad + write->post_pad, sector_size, buffer))
            done.status = write->start_ptr < write->end_ptr ? WRITE_FAIL : WRITE_DEVICE_FULL_FAIL;
    }
    lba_to_position(*cur_data_lba, zone_size, &zone, &sector);
    bpf_read(zone, sector, 0, call->dims.offset + sector_size, buffer + 8);
    next_data_lba(&cur_data_lba);
    bpf_return_data(&done, sizeof(done));
    return done.status == WRITE_DEVICE_FULL_SUCCESS ? -2 : 0;
}
";

#[test]
fn kernels_with_the_names_of_opencsd_headers_compile_unchanged() {
    let source = scratch("opencsd").join("kernel.c");
    std::fs::write(&source, OPENCSD_KERNEL).expect("it can be written");
    run(Command::new(root().join("build")).arg(&source));
    let object = std::fs::read(source.with_extension("o")).expect("it is built");
    assert!(object.starts_with(b"\x7fELF"));
}

/// The shortest kernel, as users would write it.
const KERNEL: &str = r"
#include <warren.h>
WARREN_KERNEL(request)
{
    const void *at;
    s64 got = warren_map(request->offset, request->size, &at);
    return got < 0 ? got : warren_emit(at, got);
}
";

#[test]
fn helpers_by_name_leave_relocations_and_helpers_by_number_none() {
    let source = scratch("names").join("kernel.c");
    std::fs::write(&source, KERNEL).expect("it can be written");
    let object = source.with_extension("o");
    for (flags, by_name) in [("", false), ("-DWARREN_HELPERS_BY_NAME", true)] {
        let mut build = Command::new(root().join("build"));
        run(build.env("WARREN_CFLAGS", flags).arg(&source));
        let bytes = std::fs::read(&object).expect("it is built");
        let named = bytes.windows(11).any(|at| at == b"warren_emit");
        assert_eq!(named, by_name, "{flags}");
    }
}

#[test]
fn the_headers_need_no_c_library_and_no_special_flags() {
    let source = scratch("plain").join("kernel.c");
    std::fs::write(&source, KERNEL).expect("it can be written");
    let mut plain = Command::new(clang());
    plain
        .args(["-O2", "-nostdinc", "-target", "bpf", "-I"])
        .arg(root().join("include"));
    plain
        .args(["-c", "-o"])
        .arg(source.with_extension("o"))
        .arg(&source);
    run(&mut plain);
}

#[test]
fn the_kernel_of_the_tutorial_compiles() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("the readme is there");
    let (_, rest) = readme
        .split_once("cat > high.c <<'EOF'\n")
        .expect("it writes a kernel");
    let (kernel, _) = rest.split_once("    EOF\n").expect("which ends");
    let source = scratch("tutorial").join("high.c");
    std::fs::write(&source, kernel).expect("it can be written");
    let printed = run(Command::new(root().join("build")).arg(&source));
    assert!(!printed.contains("warning"), "{printed}");
}
