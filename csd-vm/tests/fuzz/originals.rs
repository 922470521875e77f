//! The kernels that are mutated: those of `bpf-programs`, and some with what these lack.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use csd_vm::program::fuzz::Fuzzer;
use csd_vm::request::{Operation, Request};

/// Static data of all kinds, pointers in it, an address before the first element, calls.
const TABLES: &str = r#"
    #include <warren.h>
    static const unsigned primes[6] = {2, 3, 5, 7, 11, 13};
    static const char *const names[3] = {"one", "two", "three"};
    u64 counter = 5;
    static u64 sums[16];
    __attribute__((noinline)) static u64 pick(u64 at) { return primes[at % 7 - (at % 7 == 6)] + sums[at & 15]; }
    __attribute__((noinline)) static u64 deep(u64 n) { return n ? deep(n - 1) * 3 + pick(n) : counter; }
    WARREN_KERNEL(request)
    {
        for (u64 at = 1; at <= 16; at++)
            sums[at - 1] += at * pick(at) ^ request->size;
        counter += deep(request->offset % 6);
        warren_log(names[counter % 3], 3);
        return warren_emit(sums, sizeof(sums));
    }
"#;

/// Bytes through the stack, atomics, division, signs.
const NUMBERS: &str = r#"
    #include <warren.h>
    WARREN_KERNEL(request)
    {
        u8 part[256];
        u64 *heap = (u64 *)request->heap;
        s64 got, at = request->offset, total = 0;
        for (int round = 0; round < 40 && (got = warren_read(at, part, sizeof(part))) > 0; round++) {
            for (int i = 0; i < got; i++) {
                total += (signed char)part[i] * (s64)((u64)part[i] / 7 - (u64)part[i] % 5);
                __sync_fetch_and_add(&heap[part[i] & 31], 1);
            }
            at += got;
        }
        heap[32] = total;
        u64 *out = warren_reserve(33 * 8);
        if (!out)
            return -WARREN_EFBIG;
        for (int i = 0; i < 33; i++)
            out[i] = heap[i];
        return total & 0xff;
    }
"#;

fn directory() -> PathBuf {
    crate::scratch().join("fuzz-originals")
}

/// Compiles them, once for all children.
pub(crate) fn compile() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bpf-programs");
    let directory = directory();
    // What is left of earlier runs may be of other sources.
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).expect("a directory for objects");
    for (name, source) in [("tables.c", TABLES), ("numbers.c", NUMBERS)] {
        std::fs::write(directory.join(name), source).expect("a source is written");
    }
    let own = ["tables.c", "numbers.c"].map(|name| directory.join(name));
    for sources in [&[][..], &own] {
        let built = Command::new(root.join("build"))
            .args(sources)
            .arg(&directory)
            .output();
        let built = built.expect("bpf-programs/build runs");
        let said = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "bpf-programs/build: {said}");
    }
}

/// One of them.
pub(crate) struct Original {
    pub(crate) name: String,
    pub(crate) object: Vec<u8>,
}

/// All of them, by name.
pub(crate) fn all() -> &'static [Original] {
    static ORIGINALS: OnceLock<Vec<Original>> = OnceLock::new();
    ORIGINALS.get_or_init(|| {
        let listed = std::fs::read_dir(directory()).expect("objects have been compiled");
        let paths = listed.map(|entry| entry.expect("a directory entry").path());
        let is_object = |path: &PathBuf| path.extension().is_some_and(|e| e == "o");
        let mut paths: Vec<_> = paths.filter(is_object).collect();
        paths.sort();
        let original = |path: &PathBuf| Original {
            name: path
                .file_stem()
                .map_or_else(String::new, |n| n.to_string_lossy().into()),
            object: std::fs::read(path).expect("an object"),
        };
        paths.iter().map(original).collect()
    })
}

/// Makes a request one that the kernel of this name computes on, mostly.
pub(crate) fn suit(name: &str, request: &mut Request, random: &mut Fuzzer) {
    if random.below(8) == 0 {
        return;
    }
    let word = random.number();
    let lists: &[&[u64]] = match name {
        "bloom_probe" => &[&[0, 1, 7, word], &[1, 5, word]],
        "btree_lookup" => &[&[0, 0, 7, word], &[1, 3, u64::MAX]],
        "csv" => &[&[0, 0, 1], &[0, 0, 2, 0, 2], &[1, 0, 0], &[1, 0, 2]],
        "filter" => &[&[], &[word >> 32, 0], &[word >> 32, 1]],
        // Literals of one and two bytes, after their length.
        "grep" => &[&[1, 0x35], &[2, 0x2c31], &[1, word & 0xff]],
        "knn" => &[&[3, 4, word], &[8, 20, word, !word], &[1, 3, word]],
        "sum_min_max" => &[&[], &[4, 1], &[8], &[8, 1]],
        "crc32c" => &[&[], &[4096], &[300]],
        _ => &[&[]],
    };
    request.arguments = random_of(random, lists).into();
    request.operation = match name {
        "compress" => Operation::WriteStream,
        "line_index" | "passthrough" => return,
        _ => Operation::ReadStream,
    };
    request.data = match request.operation {
        Operation::ReadStream => Vec::new(),
        _ => (0..request.size)
            .map(|at| b"abcde"[(at % 5) as usize] ^ (at >> 6) as u8)
            .collect(),
    };
}

fn random_of<'a>(random: &mut Fuzzer, lists: &[&'a [u64]]) -> &'a [u64] {
    lists[random.below(lists.len())]
}
