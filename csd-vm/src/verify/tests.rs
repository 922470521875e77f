//! What verification accepts and refuses.

use super::*;
use crate::program::testing::link;
use crate::program::{LinkLimits, fuzz};

const DECLARATIONS: &str = "
    typedef unsigned long u64;
    extern long warren_request(void *out, u64 size);
    extern long warren_map(u64 offset, u64 size, const void **at);
    extern long warren_read(u64 offset, void *to, u64 size);
    extern long warren_emit(const void *from, u64 size);
    extern void *warren_reserve(u64 size);
    extern long warren_argument(unsigned index, u64 *value);
    extern long warren_log(const char *text, u64 size);
    static void (*bpf_return_data)(void *, u64) = (void *)1;
    static int (*bpf_read)(u64, u64, u64, u64, void *) = (void *)2;
    static int (*bpf_write)(u64, u64 *, u64, u64, void *) = (void *)3;
    static u64 (*bpf_get_sector_size)(void) = (void *)4;
    static void (*bpf_get_mem_info)(void **, u64 *) = (void *)7;
    static void (*bpf_get_call_info)(void **) = (void *)8;
    static void (*bpf_debug)(const char *) = (void *)9;
    struct request { unsigned version, op; u64 offset, size, snapshot_size; };
";

fn report(source: &str) -> Report {
    let source =
        format!("#pragma clang diagnostic ignored \"-Wunused-variable\"\n{DECLARATIONS}{source}");
    let program = link(&source).expect("links");
    verify(&program, &VerifyLimits::default()).expect("there is an outcome")
}

fn accepts(source: &str) {
    let report = report(source);
    let reasons: Vec<String> = report.reasons.iter().map(ToString::to_string).collect();
    assert!(report.accepted(), "{source}\n{}", reasons.join("\n"));
}

fn refuses(source: &str, because: &str) {
    let report = report(source);
    let Some(reason) = report.reasons.first() else {
        panic!("accepted:\n{source}");
    };
    assert!(reason.to_string().contains(because), "{reason}");
}

#[test]
fn kernels_that_stay_in_their_memory_are_accepted() {
    accepts("int kernel(void) { return 0; }");
    accepts("int kernel(struct request *r, u64 size) { return r->size > 10 && size == 80; }");
    // A histogram: a mapped range, a table among the variables, local calls.
    accepts(
        "static u64 counts[256];
         static __attribute__((noinline)) void count(unsigned char byte) { counts[byte]++; }
         int kernel(struct request *r) {
             const unsigned char *at;
             long n = warren_map(r->offset, 4096, (const void **)&at);
             if (n < 0) return -1;
             for (long i = 0; i < n; i++) count(at[i & 4095]);
             warren_log(\"done\", 4);
             return warren_emit(counts, sizeof counts);
         }",
    );
    accepts(
        "int kernel(struct request *r) {
             char buffer[256]; u64 limit;
             if (warren_argument(0, &limit)) return -1;
             if (warren_read(r->offset, buffer, sizeof buffer) < 0) return -1;
             u64 *out = warren_reserve(16);
             if (!out) return -1;
             out[0] = limit; out[1] = buffer[limit & 255];
             return 0;
         }",
    );
}

#[test]
fn kernels_of_the_opencsd_abi_are_modelled() {
    accepts(
        "struct call { unsigned op; u64 size, offset; } __attribute__((packed));
         int main(void) {
             struct call *call; char *memory; u64 size, sector = 3;
             bpf_get_call_info((void **)&call);
             bpf_get_mem_info((void **)&memory, &size);
             if (bpf_get_sector_size() > 4096 || call->op > 1) return -1;
             bpf_read(1, 2, 0, 4096, memory);
             bpf_write(1, &sector, 0, 4096, memory);
             bpf_return_data(memory, 4096);
             return 0;
         }",
    );
}

#[test]
fn accesses_outside_the_memory_are_refused() {
    refuses(
        "int kernel(int *p) { return *(int *)0x1234; }",
        "section .text, function kernel, instruction",
    );
    refuses(
        "int kernel(struct request *r) { return ((int *)r)[20]; }",
        "",
    );
    refuses(
        "int table[1024]; int kernel(struct request *r) { return table[r->size]; }",
        "",
    );
    refuses(
        "int kernel(struct request *r) {
             const char *at; warren_map(0, 100, (const void **)&at); return at[100]; }",
        "",
    );
    refuses(
        "int kernel(struct request *r) { u64 *out = warren_reserve(16); *out = 1; return 0; }",
        "null",
    );
}

#[test]
fn bad_arguments_of_helpers_are_refused() {
    refuses("int kernel(void) { return warren_emit((void *)5, 5); }", "");
    // Through a model of a helper the place is that of the call.
    refuses(
        "int kernel(void) { char b[8]; return bpf_read(0, 0, 0, 80, b); }",
        "function kernel",
    );
}

#[test]
fn recursion_is_refused_and_expansion_is_bounded() {
    refuses(
        "__attribute__((noinline)) int f(int x) { return x ? f(x - 1) + x * f(x - 2) : 0; }
         int main(int x) { return f(x); }",
        "nested",
    );
    let mut source =
        String::from("__attribute__((noinline)) int f0(int x) { return x * x + 1; }\n");
    for i in 1..9 {
        let callee = i - 1;
        let calls: String = (0..20)
            .map(|c| format!("x ^= f{callee}(x + {c});"))
            .collect();
        source += &format!("__attribute__((noinline)) int f{i}(int x) {{ {calls} return x; }}\n");
    }
    source += "int main(int x) { return f8(x); }";
    let program = link(&source).expect("links");
    let error = verify(&program, &VerifyLimits::default()).expect_err("20^8 calls");
    assert_eq!(error, VerifyError::TooLarge(20_000));
}

#[test]
fn an_analysis_ends_when_its_time_is_up() {
    let source = "static int t[9]; int main(int x) { for (int i = 0; i < x; i++) t[x % 9u]++; return t[0]; }";
    let limits = VerifyLimits {
        time: Duration::ZERO,
        ..VerifyLimits::default()
    };
    let error = verify(&link(source).expect("links"), &limits).expect_err("no time");
    assert_eq!(error, VerifyError::TimedOut(Duration::ZERO));
}

#[test]
fn whatever_the_program_there_is_an_outcome_or_an_error() {
    let seed = fuzz::seed(3);
    let limits = VerifyLimits {
        time: Duration::from_secs(1),
        ..VerifyLimits::default()
    };
    let (mut outcomes, mut failures) = (0, 0);
    for case in 0..fuzz::cases(20_000) / 200 {
        let mut fuzzer = fuzz::Fuzzer::new(seed.wrapping_add(case));
        let length = fuzzer.below(60);
        let slots = fuzzer.stream(length);
        let Ok(program) = Program::from_slots(&slots, &LinkLimits::default()) else {
            continue;
        };
        match verify(&program, &limits) {
            Ok(_) => outcomes += 1,
            // The verifier panics over some graphs that no compiler makes.
            Err(_) => failures += 1,
        }
    }
    assert!(failures <= outcomes / 10, "WARREN_SEED={seed}: {failures}");
}
