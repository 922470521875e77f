//! Tests of the engines: what programs can do, and what they cannot.

mod agreement;
mod assembler;
mod confinement;
mod endings;

use std::time::Duration;

use super::cage::{Cage, CageConfig};
use super::interpreter::Interpreter;
use super::ubpf::Compiler;
use super::{Called, Code, Deadline, Engine, Exit, Frame, Helpers, Linked};

/// A small cage: tests make many.
fn small() -> CageConfig {
    CageConfig {
        data: 64 << 10,
        call: 64 << 10,
        stack: 16 << 10,
        heap: 1 << 20,
        output: 1 << 20,
        window: 1 << 20,
    }
}

fn cage() -> Cage {
    Cage::new(&small()).unwrap()
}

fn engines() -> [&'static dyn Engine; 2] {
    [&Compiler, &Interpreter]
}

fn compile(engine: &dyn Engine, code: &[u64], cage: &Cage) -> Box<dyn Code> {
    let functions = [Frame {
        first_slot: 0,
        stack_bytes: 64,
    }];
    let program = Linked {
        instructions: &|_| code.to_vec(),
        functions: &functions,
    };
    engine.compile(&program, cage).unwrap()
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

/// Runs `code` with its first two registers and no helpers.
fn run(engine: &dyn Engine, code: &[u64], cage: &mut Cage, arguments: [u64; 2]) -> Exit {
    let code = compile(engine, code, cage);
    code.run(cage, arguments, &mut NoHelpers, soon())
}

/// Aborts.
struct NoHelpers;

impl Helpers for NoHelpers {
    fn call(&mut self, _: &mut Cage, _: u32, _: [u64; 5]) -> Called {
        Called::Abort
    }
}

/// A closure as helpers.
struct With<F>(F);

impl<F: FnMut(&mut Cage, u32, [u64; 5]) -> Called> Helpers for With<F> {
    fn call(&mut self, cage: &mut Cage, number: u32, arguments: [u64; 5]) -> Called {
        (self.0)(cage, number, arguments)
    }
}
