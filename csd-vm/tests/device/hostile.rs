//! Kernels that mean harm: bad pointers to every helper, escapes, spying on the owner before.

use csd_vm::DeviceConfig;
use csd_vm::engine::cage::{CageConfig, Layout, Region};
use csd_vm::request::Failure;

use crate::common::{Bench, Shape, both_engines, compile, pattern, read, warren};

/// Pointers that no helper may follow, as C expressions; `top` is the end of the heap.
const BAD_POINTERS: [&str; 6] = [
    "0",
    "8",
    "(top - 7)",
    "(top + 60000)",
    "0x7fffffff0000ULL",
    "-1ULL",
];

/// Calls with `P` in place of a pointer that is written or read for 8 bytes or more.
const CALLS: [(&str, &str); 14] = [
    ("bpf_return_data", "bpf_return_data((void *)P, 64);"),
    ("bpf_read", "bpf_read(0, 0, 0, 64, (void *)P);"),
    (
        "bpf_write",
        "bpf_write(0, (void *)P, 0, 8, (void *)r->heap);",
    ),
    (
        "bpf_write",
        "u64 s = 0; bpf_write(0, &s, 0, 64, (void *)P);",
    ),
    (
        "bpf_get_mem_info",
        "u64 s; bpf_get_mem_info((void *)P, &s);",
    ),
    (
        "bpf_get_mem_info",
        "void *s; bpf_get_mem_info(&s, (void *)P);",
    ),
    ("bpf_get_call_info", "bpf_get_call_info((void *)P);"),
    ("warren_request", "warren_request((void *)P, 80);"),
    ("warren_map", "warren_map(0, 1, (void *)P);"),
    ("warren_read", "warren_read(0, (void *)P, 64);"),
    ("warren_emit", "warren_emit((void *)P, 64);"),
    ("warren_append", "warren_append((void *)P, 64);"),
    ("warren_argument", "warren_argument(0, (void *)P);"),
    ("warren_log", "warren_log((void *)P, 64);"),
];

fn both_headers(body: &str) -> Vec<u8> {
    compile(&format!(
        "#include <warren.h>
         #include <opencsd.h>
         int main(const struct warren_request *r) {{
             u64 top = r->heap + r->heap_size;
             {body}
             return 0;
         }}"
    ))
}

/// The text of a helper call names the helper that refused it.
fn refused_by(failure: &Failure, name: &str) -> bool {
    matches!(failure, Failure::Helper { helper, .. } if *helper == name)
}

#[test]
fn bad_pointers_end_the_kernel_by_the_name_of_the_helper() {
    for (helper, call) in CALLS {
        for pointer in BAD_POINTERS {
            let object = both_headers(&call.replace('P', pointer));
            let bench = Bench::new(&object, &pattern(4096));
            let failure = bench.fail(read(&bench.snapshot, 0, 4096));
            assert!(
                refused_by(&failure, helper),
                "{call} at {pointer}: {failure}"
            );
        }
    }
}

#[test]
fn read_only_memory_is_not_written_by_helpers_or_stores() {
    let targets = [
        "(u64)r",
        "({ const void *p; warren_map(0, 1, &p); (u64)p; })",
        "(u64)constant",
    ];
    for target in targets {
        for (helper, call) in [
            ("warren_read", "warren_read(0, (void *)P, 8);"),
            ("warren_request", "warren_request((void *)P, 8);"),
            ("bpf_get_call_info", "bpf_get_call_info((void *)P);"),
            ("", "*(volatile u64 *)P = 1;"),
        ] {
            let body = format!(
                "static const volatile u64 constant[2] = {{1, 2}};
                 if (constant[0] != 1) return -9;
                 u64 at = {target}; {}",
                call.replace('P', "at")
            );
            for config in both_engines() {
                let object = both_headers(&body);
                let bench = Bench::with(&object, &pattern(4096), Shape::Contiguous, config);
                let failure = bench.fail(read(&bench.snapshot, 0, 4096));
                let expected = match helper {
                    "" => matches!(failure, Failure::Fault(_)),
                    _ => refused_by(&failure, helper),
                };
                assert!(expected, "{call} at {target}: {failure}");
            }
        }
    }
}

#[test]
fn sizes_that_wrap_around_are_refused() {
    for size in [
        "-1ULL",
        "-8ULL",
        "(1ULL << 63)",
        "(1ULL << 32)",
        "0x7fffffffULL",
        "(2ULL << 30)",
    ] {
        for (helper, call) in CALLS {
            if !call.contains(" 64") {
                continue;
            }
            let call = call.replace(" 64", size).replace('P', "r->heap");
            let object = both_headers(&call);
            let bench = Bench::new(&object, &pattern(4096));
            let failure = bench.fail(read(&bench.snapshot, 0, 4096));
            assert!(refused_by(&failure, helper), "{call}: {failure}");
        }
    }
}

#[test]
fn wild_loads_and_stores_end_the_kernel_and_the_device_goes_on() {
    for access in [
        "*(volatile u64 *)0 = 1;",
        "return *(volatile u8 *)(top + 100);",
        "*(volatile u64 *)(top - 4) = 1;",
        "for (u64 a = 0; ; a += 4096) *(volatile u8 *)a = 1;",
        "for (u64 a = r->heap; ; a += 4096) *(volatile u8 *)a = 1;",
        "for (u64 a = r->heap; ; a -= 4096) *(volatile u8 *)a = 1;",
    ] {
        for config in both_engines() {
            let bench = Bench::with(&both_headers(access), b"x", Shape::Contiguous, config);
            let failure = bench.fail(read(&bench.snapshot, 0, 1));
            assert!(matches!(failure, Failure::Fault(_)), "{access}: {failure}");
            let program = bench.device.load(&warren("return 3;")).expect("loads");
            let other = bench.device.activate(&program);
            let next = bench.device.execute(&other, read(&bench.snapshot, 0, 1));
            assert_eq!(next.map(|finished| finished.value), Ok(3));
        }
    }
}

/// Leaves a secret wherever a kernel can.
const HIDE: &str = "
    #include <warren.h>
    u64 variable = 1; u64 zero[1000];
    int main(const struct warren_request *r) {
        u64 secret = 0x5ec4e75ec4e7abcdULL, stack[40];
        const void *p;
        for (int i = 0; i < 40; i++) ((volatile u64 *)stack)[i] = secret;
        for (int i = 0; i < 100000; i++) ((volatile u64 *)r->heap)[i] = secret;
        for (int i = 0; i < 1000; i++) ((volatile u64 *)zero)[i] = secret;
        *(volatile u64 *)&variable = secret;
        ((volatile u64 *)(r->heap + r->heap_size))[-1] = secret;
        for (int i = 0; i < 10000; i++) warren_emit(&secret, 8);
        warren_map(0, -1ULL, &p);
        warren_append(&secret, 8);
        return 0;
    }";

/// Fails if the secret is in a range of the cage or in its own variables.
const SPY: &str = "
    #include <warren.h>
    u64 zero[3000];
    int main(const struct warren_request *r) {
        u64 from, to;
        for (int i = 0; i < 3000; i++) if (((volatile u64 *)zero)[i]) return -6;
        warren_argument(0, &from); warren_argument(1, &to);
        for (u64 page = from; page < to; page += 4096)
            for (u64 at = page; at < page + 4096; at += 8) {
                u64 v = *(volatile u64 *)at;
                if (v == 0x5ec4e75ec4e7abcdULL) return -5;
            }
        return 0;
    }";

#[test]
fn nothing_of_an_owner_is_left_for_the_next_one() {
    let config = DeviceConfig {
        workers: 1,
        idle_cages_max: 1,
        ..DeviceConfig::default()
    };
    // The file, the data and the arguments of the first owner hold the secret too.
    let secret = 0x5ec4_e75e_c4e7_abcd_u64.to_le_bytes().repeat(40_000);
    let bench = Bench::with(&compile(HIDE), &secret, Shape::Fragmented, config);
    let mut request = read(&bench.snapshot, 0, 8);
    request.data = secret.clone();
    bench.run(request);
    let Bench {
        device,
        snapshot,
        activation,
    } = bench;
    let before = device.counters();
    drop(activation);
    let spy = device.load(&compile(SPY)).expect("loads");
    let empty = crate::common::Writer::new(&crate::common::mem()).write(b"", Shape::Contiguous);
    drop(snapshot);
    let spying = device.activate(&spy);
    let layout = Layout::new(&CageConfig::default()).expect("layout");
    for region in [Region::Call, Region::Stack, Region::Heap, Region::Output] {
        let span = layout.span(region);
        let mut request = read(&empty, 0, 0);
        request.arguments = [span.start, span.end()].into();
        let seen = device.execute(&spying, request);
        assert!(seen.is_ok(), "{region:?}: {seen:?}");
    }
    let window = layout.span(Region::Window);
    for page in (window.start..window.start + (1 << 20)).step_by(4096) {
        let mut request = read(&empty, 0, 0);
        request.arguments = [page, page + 4096].into();
        let seen = device.execute(&spying, request);
        assert!(
            matches!(seen, Err((Failure::Fault(_), _))),
            "{page:#x}: {seen:?}"
        );
    }
    assert_eq!(
        device.counters().cages_made,
        before.cages_made,
        "another cage was used"
    );
}
