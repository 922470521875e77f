//! What the engine costs, apart from the programs it runs: entry and exit, helper calls,
//! compilation, cages. Run it optimised: `cargo run --release -p csd-vm --example engine_costs`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use csd_vm::engine::cage::{Cage, CageConfig, Region};
use csd_vm::engine::interpreter::Interpreter;
use csd_vm::engine::ubpf::Compiler;
use csd_vm::engine::{Called, Code, Deadline, Engine, Frame, Helpers, Linked, Prepared};

const EXIT: u64 = 0x95;

fn slot(opcode: u8, dst: u8, src: u8, offset: i16, imm: i32) -> u64 {
    let (offset, imm) = (u64::from(offset as u16), u64::from(imm as u32));
    u64::from(opcode) | u64::from(dst) << 8 | u64::from(src) << 12 | offset << 16 | imm << 32
}

/// `r0 = imm`.
fn mov(imm: i32) -> u64 {
    slot(0xb7, 0, 0, 0, imm)
}

/// Calls a helper `rounds` times.
fn calls(rounds: i32) -> Vec<u64> {
    let (counter, decrement) = (slot(0xb7, 6, 0, 0, rounds), slot(0x07, 6, 0, 0, -1));
    let again = slot(0x55, 6, 0, -3, 0);
    vec![counter, slot(0x85, 0, 0, 0, 1), decrement, again, EXIT]
}

/// Instructions as real programs have them: a third loads and stores, some jumps and calls.
fn large(slots: usize) -> Vec<u64> {
    let pattern = [
        slot(0x79, 1, 10, -8, 0),
        slot(0x67, 1, 0, 0, 16),
        slot(0x7b, 10, 1, -16, 0),
        slot(0x0f, 1, 2, 0, 0),
        slot(0x15, 1, 0, 1, 0),
        slot(0x07, 1, 0, 0, 77),
        slot(0x71, 3, 10, -3, 0),
        slot(0xbf, 4, 3, 0, 0),
        slot(0x2f, 4, 1, 0, 0),
    ];
    let mut code: Vec<u64> = pattern.into_iter().cycle().take(slots).collect();
    let calls = code.iter_mut().skip(100).step_by(100);
    calls.for_each(|at| *at = slot(0x85, 0, 0, 0, 2));
    code.extend([mov(0), EXIT]);
    code
}

struct Nothing;

impl Helpers for Nothing {
    fn call(&mut self, _: &mut Cage, number: u32, _: [u64; 5]) -> Called {
        Called::Value(black_box(u64::from(number)))
    }
}

/// Median of several measurements of `rounds` rounds, for one.
fn measure(what: &str, rounds: u32, mut round: impl FnMut()) {
    let mut times: Vec<Duration> = (0..15)
        .map(|_| {
            let start = Instant::now();
            (0..rounds).for_each(|_| round());
            start.elapsed() / rounds
        })
        .collect();
    times.sort();
    println!("{what:<44} {:>10.1?}", times[times.len() / 2]);
}

fn prepare(engine: &dyn Engine, code: &[u64], cage: &Cage) -> Box<dyn Prepared> {
    let functions = [Frame {
        first_slot: 0,
        stack_bytes: 64,
    }];
    let program = Linked {
        instructions: &|_| code.to_vec(),
        functions: &functions,
    };
    let prepared = engine.prepare(&program, cage.layout());
    prepared.expect("a valid program")
}

fn compile(engine: &dyn Engine, code: &[u64], cage: &Cage) -> Box<dyn Code> {
    prepare(engine, code, cage)
        .bind(cage)
        .expect("a cage of this layout")
}

fn write_page_of(cage: &mut Cage, region: Region) {
    let at = cage.address(region);
    let page = cage.check(at, 8, csd_vm::engine::cage::Access::Write);
    cage.bytes_mut(page.expect("is writable"))
        .expect("is there")[0] = 1;
}

fn main() {
    let config = CageConfig::default();
    let mut cage = Cage::new(&config).expect("address space");
    let deadline = || Deadline::after(Duration::from_secs(10));
    let empty = compile(&Compiler, &[mov(1), EXIT], &cage);
    measure("entry and exit", 20_000, || {
        black_box(empty.run(&mut cage, [0, 0], &mut Nothing, deadline()));
    });
    let fixed = deadline();
    measure("  the deadline given", 20_000, || {
        black_box(empty.run(&mut cage, [0, 0], &mut Nothing, fixed));
    });
    for (engine, name) in [
        (&Compiler as &dyn Engine, "1000 helper calls, compiled"),
        (&Interpreter, "1000 helper calls, interpreted"),
    ] {
        let code = compile(engine, &calls(1000), &cage);
        measure(name, 100, || {
            black_box(code.run(&mut cage, [0, 0], &mut Nothing, deadline()));
        });
    }
    let null = compile(&Compiler, &[slot(0x79, 0, 3, 0, 0), EXIT], &cage);
    measure("a fault", 1000, || {
        black_box(null.run(&mut cage, [0, 0], &mut Nothing, deadline()));
    });
    let code = large(10 * 1024 / 8);
    measure("preparing 10 KiB", 20, || {
        black_box(prepare(&Compiler, &code, &cage));
    });
    measure("preparing two instructions", 20, || {
        black_box(prepare(&Compiler, &[mov(1), EXIT], &cage));
    });
    let prepared = prepare(&Compiler, &code, &cage);
    measure("binding 10 KiB to a cage", 200, || {
        black_box(prepared.bind(&cage).expect("a cage of this layout"));
    });
    measure("a cage made and dropped", 200, || {
        black_box(Cage::new(&config).expect("address space"));
    });
    measure("a wipe of an untouched cage", 1000, || {
        cage.wipe().expect("is wiped");
    });
    measure("three pages touched and wiped", 1000, || {
        write_page_of(&mut cage, Region::Stack);
        write_page_of(&mut cage, Region::Heap);
        write_page_of(&mut cage, Region::Output);
        cage.wipe().expect("is wiped");
    });
    let file = std::fs::File::open("/proc/self/exe").expect("this program");
    let file = std::os::fd::AsFd::as_fd(&file);
    for populate in [false, true] {
        let what = format!("512 KiB mapped and cleared, populate {populate}");
        measure(&what, 200, || {
            let mapped = cage.map_window(0, file, 0, 512 << 10, populate);
            mapped.expect("can be mapped");
            cage.clear_window(0, 512 << 10).expect("is cleared");
        });
    }
}
