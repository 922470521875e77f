//! No object and no stream of instructions makes the linker or the validator panic, and what they
//! accept keeps the promises that engines rely on.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::program::fuzz::{Fuzzer, cases, seed};
use crate::program::insn::{Insn, Kind};
use crate::program::testing::compile;
use crate::program::{LinkLimits, Program, helper_name};

/// Objects with every section and relocation that linking knows.
fn objects() -> Vec<Vec<u8>> {
    let source = "
        typedef unsigned long u64;
        extern long warren_emit(const void *from, u64 size);
        static int (*bpf_read)(u64, u64, u64, u64, void *) = (void *)2;
        static const int table[5] = {0, 1, 4, 9, 16};
        int counter = 5, common;
        static int zeroed[10];
        static const char *const names[3] = {\"a\", \"bb\", \"ccc\"};
        __attribute__((noinline)) static int local(int x) { return x * table[x & 3] + zeroed[x & 7]; }
        __attribute__((section(\"other\"), noinline)) int far(int x) { return local(x) + 1; }
        int main(int x) {
            char buffer[100];
            bpf_read(1, 2, 3, 100, buffer);
            for (int i = 0; i < 100; i++) zeroed[i & 7] += buffer[i];
            warren_emit(names[x & 1], common++);
            return far(counter) + local(2) + (x == 5 ? 0x123456789abcdefUL : 1);
        }";
    let fluffle = "
        static void (*bpf_return_data)(void *, unsigned long) = (void *)1;
        int main(void) { int x = 1; bpf_return_data(&x, 4); return 0; }";
    vec![
        compile(source, &["-O2", "-fcommon"]),
        compile(source, &["-O2", "-g", "-mcpu=v3"]),
        compile(fluffle, &["-O1"]),
    ]
}

#[test]
fn no_mutated_object_makes_linking_panic() {
    let objects = objects();
    let limits = LinkLimits::default();
    let seed = seed(1);
    let (mut accepted, cases) = (0u64, cases(20_000));
    for case in 0..cases {
        let mut fuzzer = Fuzzer::new(seed.wrapping_add(case));
        let original = &objects[fuzzer.below(objects.len())];
        let object = fuzzer.mutate(original);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            if let Ok(program) = Program::link(&object, &limits) {
                check_promises(&program);
                return true;
            }
            false
        }));
        let Ok(linked) = outcome else {
            panic!("panicked; WARREN_SEED={}", seed.wrapping_add(case));
        };
        accepted += u64::from(linked);
    }
    // The mutations are neither all harmless nor all fatal.
    assert!(
        cases < 1000 || (cases / 50..cases / 2).contains(&accepted),
        "{accepted} of {cases}"
    );
}

#[test]
fn no_instruction_stream_makes_the_validator_panic() {
    let limits = LinkLimits::default();
    let seed = seed(2);
    let (mut accepted, cases) = (0u64, cases(20_000));
    for case in 0..cases {
        let mut fuzzer = Fuzzer::new(seed.wrapping_add(case));
        let length = fuzzer.below(100);
        let slots = match case % 4 {
            0 => fuzzer.noise(length),
            _ => fuzzer.stream(length),
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            if let Ok(program) = Program::from_slots(&slots, &limits) {
                check_promises(&program);
                return true;
            }
            false
        }));
        let Ok(valid) = outcome else {
            panic!("panicked; WARREN_SEED={}", seed.wrapping_add(case));
        };
        accepted += u64::from(valid);
    }
    assert!(
        cases < 1000 || (cases / 5..cases).contains(&accepted),
        "{accepted} of {cases}"
    );
}

/// What an engine relies on, told independently of how the validator goes about it.
fn check_promises(program: &Program) {
    let slots = program.instructions(0x1000);
    let mut in_function = vec![usize::MAX; slots.len()];
    let mut next = 0;
    for (number, function) in program.functions().iter().enumerate() {
        assert_eq!(function.first, next, "functions leave no gap");
        next += function.slots;
        in_function[function.first..next].fill(number);
        assert!(function.stack_bytes >= 512 && function.stack_bytes.is_multiple_of(16));
    }
    assert_eq!(next, slots.len());
    let starts = instruction_starts(&slots);
    for (at, slot) in slots.iter().enumerate().filter(|(at, _)| starts[*at]) {
        let insn = Insn::decode(*slot);
        let goes = |distance: i64| {
            let to = usize::try_from(at as i64 + 1 + distance).expect("a jump into the program");
            assert!(
                starts[to] && in_function[to] == in_function[at],
                "{at} to {to}"
            );
            to
        };
        match insn.kind().expect("a known opcode") {
            Kind::Call if insn.src == 0 => {
                let number = u32::try_from(insn.imm).expect("a helper");
                assert!(helper_name(number).is_some() && program.helpers().contains(&number));
            }
            Kind::Call => {
                let to = (at as i64 + 1 + i64::from(insn.imm)) as usize;
                assert!(program.functions().iter().any(|f| f.first == to));
            }
            Kind::Exit => {}
            Kind::Jump => _ = goes(insn.offset.into()),
            Kind::JumpLong => _ = goes(insn.imm.into()),
            Kind::Branch { .. } => _ = (goes(insn.offset.into()), goes(0)),
            Kind::Constant => _ = goes(1),
            _ => _ = goes(0),
        }
    }
    let data = program.data_at(0x1000);
    assert_eq!(data.size(), program.data().size());
}

fn instruction_starts(slots: &[u64]) -> Vec<bool> {
    let mut starts = vec![true; slots.len()];
    let mut at = 0;
    while at < slots.len() {
        let constant = Insn::decode(slots[at]).kind() == Some(Kind::Constant);
        if constant {
            starts[at + 1] = false;
        }
        at += 1 + usize::from(constant);
    }
    starts
}
