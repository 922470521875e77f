//! The compiler does what the interpreter does.

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::cage::{Access, Region};
use super::assembler::*;
use super::*;

fn both(code: &[u64], arguments: [u64; 2]) -> Exit {
    let mut cage = cage();
    let [compiled, interpreted] = engines().map(|e| run(e, code, &mut cage, arguments));
    assert_eq!(compiled, interpreted, "{code:x?} with {arguments:x?}");
    compiled
}

#[test]
fn arguments_arrive_and_r0_returns() {
    let code = [mov_register(0, 1), add_register(0, 2), exit()];
    assert_eq!(both(&code, [40, 2]), Exit::Returned(42));
    assert_eq!(both(&code, [u64::MAX, 2]), Exit::Returned(1));
}

#[test]
fn loops_count() {
    let code = [
        mov(0, 0),
        mov(3, 1000),
        add(0, 3),
        add(3, -1),
        jump_unless_equal(3, 0, -3),
        exit(),
    ];
    assert_eq!(both(&code, [0, 0]), Exit::Returned(3000));
}

#[test]
fn all_other_registers_start_as_zero() {
    let mut code = vec![];
    for register in [3, 4, 5, 6, 7, 8, 9] {
        code.push(or_register(0, register));
    }
    code.push(exit());
    assert_eq!(both(&code, [u64::MAX; 2]), Exit::Returned(0));
}

#[test]
fn helpers_leave_no_registers_behind_but_r0_and_the_kept_ones() {
    let mut code = vec![mov(6, 1), mov(7, 2), mov(8, 3), mov(9, 4)];
    code.extend((1..=5).map(|register| mov(register, i32::from(register) * 11)));
    code.push(call(7));
    code.extend((1..=5).map(|register| or_register(0, register)));
    code.extend((6..=9).map(|register| add_register(0, register)));
    code.push(exit());
    for engine in engines() {
        let mut cage = cage();
        let compiled = compile(engine, &code, &cage);
        let mut seen = vec![];
        let mut helpers = With(|_: &mut Cage, number: u32, arguments: [u64; 5]| {
            seen.push((number, arguments));
            Called::Value(1 << 32)
        });
        let end = compiled.run(&mut cage, [0, 0], &mut helpers, soon());
        assert_eq!(end, Exit::Returned((1 << 32) + 10));
        assert_eq!(seen, [(7, [11, 22, 33, 44, 55])]);
    }
}

#[test]
fn functions_have_frames_of_their_own() {
    // The caller keeps a value at r10-8 and r6; the callee uses both for another.
    let code = [
        mov(6, 5),
        store(10, -8, 6),
        mov(1, 9),
        call_local(4),
        load(1, 10, -8),
        add_register(0, 1),
        add_register(0, 6),
        exit(),
        store(10, -8, 1),
        mov(6, 100),
        load(0, 10, -8),
        exit(),
    ];
    assert_eq!(both(&code, [0, 0]), Exit::Returned(9 + 5 + 5));
}

#[test]
fn every_region_is_there_and_helpers_see_what_programs_wrote() {
    for engine in engines() {
        for region in [Region::Stack, Region::Heap, Region::Output] {
            let mut cage = cage();
            let at = cage.address(region);
            let code = code(&[
                &lddw(6, at),
                &lddw(7, 0x1122_3344_5566_7788),
                &[store(6, 16, 7), mov_register(1, 6), call(1)],
                &[load(1, 6, 24), add_register(0, 1), exit()],
            ]);
            let compiled = compile(engine, &code, &cage);
            let mut helpers = With(|cage: &mut Cage, _: u32, [at, ..]: [u64; 5]| {
                let read = cage.check(at + 16, 8, Access::Read).unwrap();
                let mut bytes = [0; 8];
                cage.read_bytes(read, &mut bytes).unwrap();
                assert_eq!(u64::from_le_bytes(bytes), 0x1122_3344_5566_7788);
                assert_eq!(cage.bytes(read).unwrap(), bytes);
                let write = cage.check(at + 24, 8, Access::Write).unwrap();
                cage.write_bytes(write, &7u64.to_le_bytes()).unwrap();
                cage.bytes_mut(write).unwrap()[1] = 1;
                Called::Value(5)
            });
            let end = compiled.run(&mut cage, [0, 0], &mut helpers, soon());
            assert_eq!(end, Exit::Returned(5 + 7 + 256));
        }
    }
}

/// Loads and stores at several distances from `base`, each from or to `value`, whose contents end up
/// in the heap: everything is in its first two pages.
fn accesses(opcode: u8, base: u8, value: u8, heap: u64) -> Vec<u64> {
    let mut code = vec![];
    let offsets = [0, 1, 127, 128, 2047, -1, -128, -129];
    for (at, offset) in (0u64..).zip(offsets) {
        let other = (value + 1) % 10;
        code.extend(lddw(value, 0x8182_8384_8586_8788));
        code.extend(lddw(base, heap + 4096));
        code.push(slot(0x7a, base, 0, offset, -0x1234_5678));
        let (dst, src) = match opcode & 7 {
            1 => (value, base),
            2 => (base, 0),
            _ => (base, value),
        };
        let constant = if opcode & 7 == 2 { -0x0789_abcd } else { 0 };
        code.push(slot(opcode, dst, src, offset, constant));
        code.extend(lddw(other, heap + 8 * at));
        code.push(store(other, 0, value));
    }
    code.push(exit());
    code
}

#[test]
fn every_form_of_access_does_what_the_interpreted_one_does() {
    let loads = [0x61, 0x69, 0x71, 0x79, 0x81, 0x89, 0x91];
    let stores = [0x62, 0x6a, 0x72, 0x7a, 0x63, 0x6b, 0x73, 0x7b];
    let mut cage = cage();
    let heap = cage.address(Region::Heap);
    for opcode in loads.into_iter().chain(stores) {
        for base in 0..=9 {
            for value in 0..=9 {
                let code = accesses(opcode, base, value, heap);
                let [compiled, interpreted] =
                    engines().map(|engine| outcome(engine, &code, &mut cage).unwrap());
                assert!(compiled == interpreted, "{opcode:#x} r{base} r{value}");
                assert!(matches!(compiled.0, Exit::Returned(_)), "{:?}", compiled.0);
            }
        }
    }
}

/// Registers a random program computes with; r9 holds the base of its memory.
const COMPUTED: [u8; 9] = [0, 1, 2, 3, 4, 5, 6, 7, 8];

/// A random program of straight code and forward jumps, which always ends, whose accesses are in
/// the first page of the heap or, now and then, anywhere.
fn random_program(random: &mut ChaCha8Rng, heap: u64) -> Vec<u64> {
    let slots = random.random_range(1..60);
    let mut code = lddw(9, heap).to_vec();
    let mut starts = vec![];
    let mut jumps = vec![];
    for _ in 0..slots {
        starts.push(code.len());
        let dst = *COMPUTED.choose(random).unwrap();
        let src = *COMPUTED.choose(random).unwrap();
        match random.random_range(0..100) {
            0..55 => code.push(random_arithmetic(random, dst, src)),
            55..60 => code.extend(lddw(dst, random_number(random))),
            60..75 => code.extend(random_access(random, dst, src)),
            75..78 => code.push(call(random.random_range(1..40))),
            _ => {
                jumps.push((code.len(), starts.len()));
                code.push(random_jump(random, dst, src));
            }
        }
    }
    starts.push(code.len());
    for (at, next) in jumps {
        let target = starts[random.random_range(next..starts.len())];
        let offset = (target - at - 1) as u16;
        code[at] |= u64::from(offset) << 16;
    }
    // Everything that was computed counts.
    for register in 1..=8 {
        code.push(slot(0x27, 0, 0, 0, 31));
        code.push(add_register(0, register));
    }
    code.push(exit());
    code
}

fn random_number(random: &mut ChaCha8Rng) -> u64 {
    let edges = [
        0,
        1,
        2,
        u64::MAX,
        i64::MIN as u64,
        i64::MAX as u64,
        1 << 31,
        1 << 32,
    ];
    match random.random_range(0..3) {
        0 => *edges.choose(random).unwrap(),
        1 => random.random_range(0..256),
        _ => random.random(),
    }
}

fn random_arithmetic(random: &mut ChaCha8Rng, dst: u8, src: u8) -> u64 {
    let wide = random.random_bool(0.5);
    let class = if wide { 0x07 } else { 0x04 };
    let bits = if wide { 64 } else { 32 };
    let operation = *[0u8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
        .choose(random)
        .unwrap();
    let register = random.random_bool(0.5);
    let number = random_number(random) as i32;
    let opcode = operation << 4 | class;
    match operation {
        // Negation and byte order have no second operand.
        8 => slot(opcode, dst, 0, 0, 0),
        13 => {
            let width = *[16, 32, 64].choose(random).unwrap();
            let swap = !wide && register;
            slot(opcode | if swap { 8 } else { 0 }, dst, 0, 0, width)
        }
        // Shifts by constants are less than the width.
        6 | 7 | 12 if !register => slot(opcode, dst, 0, 0, random.random_range(0..bits)),
        // Division and remainder may be signed.
        3 | 9 => {
            let signed = i16::from(random.random_bool(0.5));
            match register {
                true => slot(opcode | 8, dst, src, signed, 0),
                false => slot(opcode, dst, 0, signed, number),
            }
        }
        // Moves may extend a sign.
        11 if register => {
            let widths: &[i16] = if wide { &[0, 8, 16, 32] } else { &[0, 8, 16] };
            slot(opcode | 8, dst, src, *widths.choose(random).unwrap(), 0)
        }
        _ if register => slot(opcode | 8, dst, src, 0, 0),
        _ => slot(opcode, dst, 0, 0, number),
    }
}

fn random_access(random: &mut ChaCha8Rng, dst: u8, src: u8) -> Vec<u64> {
    let size = *[0x00u8, 0x08, 0x10, 0x18].choose(random).unwrap();
    let offset = random.random_range(0..4000i16);
    let number = random_number(random) as i32;
    let wild = random.random_bool(0.02);
    let base = if wild { dst } else { 9 };
    vec![match random.random_range(0..5) {
        0 => slot(0x61 | size, dst, base, offset, 0),
        1 => slot(0x62 | size, base, 0, offset, number),
        2 => slot(0x63 | size, base, src, offset, 0),
        3 if size != 0x18 => slot(0x81 | size, dst, base, offset, 0),
        _ => {
            let operations = [0x00, 0x01, 0x40, 0x41, 0x50, 0x51, 0xa0, 0xa1, 0xe1, 0xf1];
            let operation = *operations.choose(random).unwrap();
            let opcode = *[0xc3u8, 0xdb].choose(random).unwrap();
            slot(opcode, base, src, offset & !7, operation)
        }
    }]
}

/// A jump whose offset is set later.
fn random_jump(random: &mut ChaCha8Rng, dst: u8, src: u8) -> u64 {
    let class = *[0x05u8, 0x06].choose(random).unwrap();
    let conditions = [
        0x10u8, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xa0, 0xb0, 0xc0, 0xd0,
    ];
    let opcode = class | *conditions.choose(random).unwrap();
    match random.random_range(0..7) {
        0 => slot(0x05, 0, 0, 0, 0),
        1..4 => slot(opcode | 8, dst, src, 0, 0),
        _ => slot(opcode, dst, 0, 0, random_number(random) as i32),
    }
}

/// How many random programs to try: `WARREN_FUZZ_CASES`, or a few.
pub(super) fn cases(default: u64) -> u64 {
    let set = std::env::var("WARREN_FUZZ_CASES");
    set.map_or(default, |cases| {
        cases.parse().expect("WARREN_FUZZ_CASES is a number")
    })
}

/// Runs a program and tells how it ended and what its heap was then.
fn outcome(engine: &dyn Engine, code: &[u64], cage: &mut Cage) -> Result<(Exit, Vec<u8>), String> {
    cage.wipe().unwrap();
    let heap = cage.address(Region::Heap);
    let functions = [Frame {
        first_slot: 0,
        stack_bytes: 64,
    }];
    let compiled = engine.compile(
        &Linked {
            instructions: &|_| code.to_vec(),
            functions: &functions,
        },
        cage,
    )?;
    let mut helpers = With(|_: &mut Cage, number: u32, [a, b, c, d, e]: [u64; 5]| {
        Called::Value(a ^ b.rotate_left(7) ^ c.rotate_left(14) ^ d ^ e ^ u64::from(number))
    });
    let end = compiled.run(cage, [1, 2], &mut helpers, soon());
    let first = cage.check(heap, 8192, Access::Read).unwrap();
    Ok((end, cage.bytes(first).unwrap().to_vec()))
}

#[test]
fn compiled_random_programs_do_what_interpreted_ones_do() {
    let mut finished = 0;
    let mut cage = cage();
    let cases = cases(1500);
    for seed in 0..cases {
        let random = &mut ChaCha8Rng::seed_from_u64(seed);
        let code = random_program(random, cage.address(Region::Heap));
        let interpreted = outcome(&Interpreter, &code, &mut cage);
        let compiled = outcome(&Compiler, &code, &mut cage);
        let interpreted = interpreted.unwrap_or_else(|reason| panic!("seed {seed}: {reason}"));
        let compiled = compiled.unwrap_or_else(|reason| panic!("seed {seed}: {reason}"));
        assert_eq!(compiled.0, interpreted.0, "seed {seed}");
        assert!(
            compiled.1 == interpreted.1,
            "seed {seed}: their heaps differ"
        );
        finished += u64::from(matches!(interpreted.0, Exit::Returned(_)));
    }
    assert!(finished > cases / 2, "only {finished} programs finished");
}
