//! What clang makes of C is linked so that it computes what the C says.

use crate::program::testing::{Machine, compile, link};
use crate::program::{LinkLimits, LinkProblem, LoadError, PAGE, Program};

/// Constants, variables of every sort, strings, tables of pointers, calls in and across sections.
const EVERYTHING: &str = r#"
typedef unsigned long u64;
extern long warren_emit(const void *from, u64 size);
static const int squares[5] = {0, 1, 4, 9, 16};
int counter = 5;
static int zeroed[10];
int common_variable;
const char *greeting = "hello";
static const char *const names[3] = {"a", "bb", "ccc"};
struct node { const struct node *next; const int *value; };
static int first_value = 100;
static const struct node second = {0, &squares[3]};
static struct node first = {&second, &first_value};
__attribute__((noinline)) static int local(int x) { return x * squares[x & 3] + zeroed[x & 7]; }
__attribute__((section("other"), noinline)) int far(int x) { return local(x) + 1; }
__attribute__((section("other"), noinline)) int farther(int x) { return far(x) + 1; }
int main(int x) {
    volatile struct node *at = &first;
    counter += x;
    zeroed[counter & 7] = 3;
    common_variable += 7;
    int sum = 0;
    for (int i = 0; i < 3; i++)
        for (const char *c = names[(unsigned)(i + x) % 3]; *c; c++) sum += *c;
    for (const char *c = greeting; *c; c++) sum += *c;
    warren_emit("literal", 7);
    while (at) { sum += *at->value; at = (volatile struct node *)at->next; }
    return sum + farther(counter) + local(2) + common_variable + far(1);
}
"#;

fn expected(x: i64) -> u64 {
    let counter = 5 + x;
    let mut zeroed = [0i64; 10];
    zeroed[(counter & 7) as usize] = 3;
    let squares = [0, 1, 4, 9];
    let local = |x: i64| x * squares[(x & 3) as usize] + zeroed[(x & 7) as usize];
    let names = "abbccc".bytes().map(i64::from).sum::<i64>();
    let greeting = "hello".bytes().map(i64::from).sum::<i64>();
    let far = |x| local(x) + 1;
    (names + greeting + 100 + 9 + far(counter) + 1 + local(2) + 7 + far(1)) as u64
}

#[test]
fn every_kind_of_reference_is_linked_at_every_level_of_optimisation() {
    for level in ["-O0", "-O1", "-O2", "-O3", "-Os"] {
        for cpu in ["-mcpu=v1", "-mcpu=v2", "-mcpu=v3"] {
            for (common, debug) in [("-fcommon", "-g"), ("-fno-common", "-g0")] {
                let object = compile(EVERYTHING, &[level, cpu, common, debug]);
                let program = Program::link(&object, &LinkLimits::default())
                    .unwrap_or_else(|e| panic!("{level} {cpu} {common} {debug}: {e}"));
                assert_eq!(program.entry_name(), "main");
                assert_eq!(program.helpers(), [35]);
                for x in [0, 1, 2] {
                    let result = Machine::run(&program, x) & 0xffff_ffff;
                    assert_eq!(result, expected(x as i64), "{level} {cpu} {common} {debug}");
                }
            }
        }
    }
}

#[test]
fn functions_and_data_nobody_reaches_are_left_out() {
    let source = "
        static int table[100] = {1};
        extern int nowhere(int);
        int unused(int x) { return nowhere(x) + table[x]; }
        __attribute__((section(\"more\"))) int unused_too(int x) { return table[x]; }
        int main(void) { return 3; }";
    let program = link(source).expect("links although nowhere() does not exist");
    assert_eq!(program.functions().len(), 1);
    assert_eq!(program.data().size(), 0);
    assert_eq!(Machine::run(&program, 0), 3);
}

#[test]
fn constants_and_variables_are_on_pages_of_their_own() {
    let program = link(
        "static const int table[3] = {1, 2, 3}; int variable = 4; int zeroed[2000];
         int main(int i) { variable++; zeroed[i & 3]++; return table[i & 1] + variable; }",
    )
    .expect("links");
    let data = program.data();
    assert_eq!(data.initialised_at(), PAGE);
    assert_eq!(data.zeroed_at(), PAGE + 4);
    assert_eq!(data.zeroed, 8000);
    assert_eq!(Machine::run(&program, 1), 7);
}

#[test]
fn low_halves_of_addresses_in_data_are_filled_in() {
    let source = r#"
        __asm__(".data\n.globl half\nhalf:\n.4byte value+4\n.text");
        int value[2] = {5, 6};
        extern unsigned int half;
        int main(void) { return (unsigned int)(unsigned long)&value[1] == half; }"#;
    let program = link(source).expect("links");
    assert_eq!(Machine::run(&program, 0), 1);
}

#[test]
fn helpers_are_called_by_name_and_by_number() {
    let program = link(
        "static void (*bpf_return_data)(void *, unsigned long) = (void *)1;
         static int (*bpf_read)(unsigned long, unsigned long, unsigned long, unsigned long, void *)
             = (void *)2;
         extern int warren_map(unsigned long, unsigned long, const void **);
         int main(void) {
             char buffer[64];
             const void *at;
             bpf_read(1, 2, 3, sizeof buffer, buffer);
             warren_map(0, 1, &at);
             bpf_return_data(buffer, sizeof buffer);
             return 0;
         }",
    )
    .expect("links");
    assert_eq!(program.helpers(), [1, 2, 33]);
    assert!(program.functions()[0].stack_bytes >= 72);
}

#[test]
fn string_constants_reach_helpers() {
    let program = link(
        "extern long warren_log(const char *text, unsigned long size);
         int main(void) { warren_log(\"abc\", 3); warren_log(\"defg\", 4); return 0; }",
    );
    let mut machine = Machine::ended(&program.expect("links"), 0);
    let calls = std::mem::take(&mut machine.calls);
    let texts: Vec<Vec<u8>> = calls
        .iter()
        .map(|(helper, [text, size, ..])| {
            assert_eq!(*helper, 39);
            machine.bytes(*text, *size as usize).to_vec()
        })
        .collect();
    assert_eq!(texts, [b"abc".to_vec(), b"defg".to_vec()]);
}

#[test]
fn helpers_called_through_variables_are_refused_as_indirect_calls() {
    let source = "static int (*bpf_read)(int) = (void *)2; int main(void) { return bpf_read(1); }";
    let error = Program::link(&compile(source, &["-O0"]), &LinkLimits::default())
        .expect_err("clang -O0 loads the pointer");
    assert!(error.to_string().contains("indirect calls"), "{error}");
    assert!(error.to_string().contains("function main"), "{error}");
}

#[test]
fn addresses_of_functions_are_refused() {
    let in_code = link(
        "__attribute__((noinline)) int f(int x) { return x; }
         int main(int x) { int (*volatile p)(int) = f; return p(x); }",
    );
    let in_data = link(
        "__attribute__((noinline)) int f(int x) { return x; }
         int (*table[2])(int) = {f, f};
         int main(int x) { return (long)table[x & 1]; }",
    );
    let of_helper = link(
        "extern int warren_log(const char *, unsigned long);
         int main(int x) { void *volatile p = warren_log; return (long)p; }",
    );
    for refused in [in_code, in_data, of_helper] {
        let error = refused.expect_err("a function's address is taken");
        let problem = match &error {
            LoadError::Link { problem, .. } | LoadError::Data { problem, .. } => problem,
            _ => panic!("{error}"),
        };
        assert!(
            matches!(problem, LinkProblem::FunctionAddress(_)),
            "{error}"
        );
    }
}

#[test]
fn unknown_functions_and_variables_are_named() {
    let error =
        link("extern int memcpy_to_mars(int); int main(int x) { return memcpy_to_mars(x); }")
            .expect_err("no such function");
    assert_eq!(
        error.to_string(),
        "section .text, function main, instruction 0: memcpy_to_mars is neither defined here nor a helper"
    );
    let error = link("extern int mars; int main(void) { return mars; }").expect_err("no such");
    assert!(error.to_string().contains("variable mars"), "{error}");
}

#[test]
fn the_entry_is_the_named_one_else_main_else_the_only_global_function() {
    let two = compile(
        "int a(void) { return 1; } int b(void) { return 2; }",
        &["-O2"],
    );
    let error = Program::link(&two, &LinkLimits::default()).expect_err("which one?");
    assert!(matches!(error, LoadError::Entry { .. }), "{error}");
    let limits = |entry: &str| LinkLimits {
        entry: Some(entry.to_owned()),
        ..LinkLimits::default()
    };
    let program = Program::link(&two, &limits("b")).expect("b is there");
    assert_eq!(Machine::run(&program, 0), 2);
    let error = Program::link(&two, &limits("c")).expect_err("c is not");
    assert!(error.to_string().contains("no function c"), "{error}");
    let only = link(
        "static __attribute__((noinline)) int f(int x) { return x + 1; }
         __attribute__((section(\"kernel\"))) int start(int x) { return f(x); }",
    );
    let only = only.expect("the only global function");
    assert_eq!((only.entry_name(), Machine::run(&only, 4)), ("start", 5));
}

#[test]
fn recursion_is_linked() {
    let program = link(
        "__attribute__((noinline)) int odd(int x);
         __attribute__((noinline)) int even(int x) { return x ? odd(x - 1) : 1; }
         int odd(int x) { return x ? even(x - 1) : 0; }
         int main(int x) { return even(x); }",
    );
    let program = program.expect("links");
    assert_eq!(Machine::run(&program, 10), 1);
    assert_eq!(Machine::run(&program, 11), 0);
}

#[test]
fn what_is_no_bpf_object_is_told_from_what_is_refused() {
    let limits = LinkLimits::default();
    let format = |object: &[u8]| {
        Program::link(object, &limits)
            .expect_err("not a program")
            .is_format()
    };
    let good = compile("int main(void) { return 0; }", &["-O2"]);
    assert!(format(b""));
    assert!(format(b"#!/bin/sh\n"));
    assert!(format(&good[..40]));
    assert!(format(
        &std::fs::read("/proc/self/exe").expect("this test")[..1 << 20]
    ));
    let big_endian = compile("int main(void) { return 0; }", &["-target", "bpfeb"]);
    assert!(format(&big_endian));
    assert!(!format(&good[..good.len() - 100]));
    assert!(!format(&compile("int x;", &["-O2"])));
}

#[test]
fn every_limit_is_kept() {
    let source = "int a[100] = {1}; int z[100]; static const int c[100] = {2};
        __attribute__((noinline)) int f(int i) { return c[i]; }
        int main(int i) { z[i]++; return f(i) + a[i] + z[i]; }";
    let object = compile(source, &["-O2"]);
    Program::link(&object, &LinkLimits::default()).expect("links");
    let tight: [fn(&mut LinkLimits); 9] = [
        |l| l.object_bytes = 300,
        |l| l.sections = 3,
        |l| l.symbols = 3,
        |l| l.relocations = 1,
        |l| l.functions = 1,
        |l| l.instructions = 5,
        |l| l.read_only_bytes = 399,
        |l| l.initialised_bytes = 399,
        |l| l.zeroed_bytes = 399,
    ];
    for (number, tighten) in tight.iter().enumerate() {
        let mut limits = LinkLimits::default();
        tighten(&mut limits);
        let error = Program::link(&object, &limits).expect_err("above the limit");
        assert!(
            matches!(error, LoadError::TooLarge { .. }),
            "{number}: {error}"
        );
    }
}

#[test]
fn the_hash_is_that_of_the_object() {
    let object = compile("int main(void) { return 0; }", &["-O2"]);
    let link = |object: &[u8]| Program::link(object, &LinkLimits::default()).expect("links");
    let other = compile("int main(void) { return 1; }", &["-O2"]);
    assert_eq!(link(&object).hash(), link(&object).hash());
    assert_ne!(link(&object).hash(), link(&other).hash());
}
