//! Programs run instruction by instruction, every access checked against the regions of the cage.
//!
//! Before each instruction `before_instruction` looks whether the program is to end, and keeps the
//! registers as compiled code has them: cleared at the start and after helpers. Writes to
//! read-only regions are stopped by the protection of their pages, as in compiled code.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ptr::{null, null_mut};

use super::ffi::{self, Vm};
use super::machine::Machine;
use crate::engine::cage::{Access, Cage, Layout, Region};
use crate::engine::{
    Called, Code, Deadline, Engine, Exit, Frame, Helpers, Linked, Prepared, guard,
};

/// The engine of tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interpreter;

impl Engine for Interpreter {
    fn prepare(&self, program: &Linked<'_>, layout: &Layout) -> Result<Box<dyn Prepared>, String> {
        const SOMEWHERE: u64 = 1 << 40;
        const ELSEWHERE: u64 = SOMEWHERE + (1 << 36);
        let instructions = (program.instructions)(SOMEWHERE);
        let elsewhere = (program.instructions)(ELSEWHERE);
        let differ = |at: &usize| instructions[at - 1..=*at] != elsewhere[at - 1..=*at];
        let seconds = (1..instructions.len()).filter(|at| instructions[at - 1] as u8 == LDDW);
        let addresses = seconds.filter(differ).map(|second| {
            let value = constant(&instructions[second - 1..=second]);
            (second - 1, value.wrapping_sub(SOMEWHERE))
        });
        let source = Source {
            layout: *layout,
            addresses: addresses.collect(),
            functions: program.functions.to_vec(),
            instructions,
        };
        // What is wrong with it shows now.
        Machine::load(&source.instructions, &source.functions)?;
        Ok(Box::new(source))
    }
}

/// The opcode of two-slot constants.
const LDDW: u8 = 0x18;

/// The value of a two-slot constant.
fn constant(slots: &[u64]) -> u64 {
    slots[1] >> 32 << 32 | slots[0] >> 32
}

/// A program and where it has addresses of static data: slot, and byte of the data.
struct Source {
    layout: Layout,
    instructions: Vec<u64>,
    addresses: Vec<(usize, u64)>,
    functions: Vec<Frame>,
}

impl Prepared for Source {
    fn bind(&self, cage: &Cage) -> Result<Box<dyn Code>, String> {
        const REST: u64 = u32::MAX as u64;
        if self.layout != *cage.layout() {
            return Err("the cage has another layout".to_owned());
        }
        let mut instructions = self.instructions.clone();
        for (slot, offset) in &self.addresses {
            let value = cage.address(Region::Data).wrapping_add(*offset);
            let (low, high) = (value << 32, value & !REST);
            instructions[*slot] = instructions[*slot] & REST | low;
            instructions[slot + 1] = instructions[slot + 1] & REST | high;
        }
        let machine = Machine::load(&instructions, &self.functions)?;
        // SAFETY: the machine is valid and in nobody else's use; both functions take no context.
        unsafe {
            ffi::ubpf_toggle_bounds_check(machine.vm(), true);
            ffi::ubpf_register_data_bounds_check(machine.vm(), null_mut(), is_in_cage);
            ffi::ubpf_register_debug_fn(machine.vm(), null_mut(), before_instruction);
        }
        let base = cage.base();
        Ok(Box::new(Interpreted { machine, base }))
    }
}

struct Interpreted {
    machine: Machine,
    base: u64,
}

impl Code for Interpreted {
    fn run(
        &self,
        cage: &mut Cage,
        arguments: [u64; 2],
        helpers: &mut dyn Helpers,
        deadline: Deadline,
    ) -> Exit {
        assert_eq!(self.base, cage.base(), "a program of another cage");
        STATE.with(|state| {
            state.vm.set(self.machine.vm());
            state.next.set(Next::Start(arguments));
        });
        let program = guard::Program::Interpreted(interpret);
        let mut helpers = Noting(helpers);
        // SAFETY: the interpreter checks its accesses, works on the stack it is called on and
        // calls the dispatcher only; `interpret` and the callbacks have nothing to drop.
        unsafe { guard::run(program, cage, arguments, &mut helpers, deadline) }
    }
}

/// What is to be done before the next instruction.
#[derive(Clone, Copy)]
enum Next {
    Nothing,
    /// It is the first, with these in r1 and r2.
    Start([u64; 2]),
    /// The last was a call of a helper.
    Called,
}

struct State {
    vm: Cell<*const Vm>,
    next: Cell<Next>,
}

thread_local! {
    static STATE: State = const {
        State {
            vm: Cell::new(null()),
            next: Cell::new(Next::Nothing),
        }
    };
}

/// Notes calls of helpers for `before_instruction`.
struct Noting<'a>(&'a mut dyn Helpers);

impl Helpers for Noting<'_> {
    fn call(&mut self, cage: &mut Cage, number: u32, arguments: [u64; 5]) -> Called {
        STATE.with(|state| state.next.set(Next::Called));
        self.0.call(cage, number, arguments)
    }

    fn is_called_off(&self) -> bool {
        self.0.is_called_off()
    }
}

/// Runs the machine of this thread. The arguments of the program get into its registers by
/// `before_instruction`: what uBPF calls its memory would be exempt from checks.
unsafe extern "C" fn interpret(_: u64, _: u64, _: u64, stack_end: u64) -> u64 {
    let vm = STATE.with(|state| state.vm.get());
    let stack_len = guard::with_cage(|cage| cage.layout().span(Region::Stack).len).unwrap_or(0);
    let stack = (stack_end - stack_len) as *mut u8;
    let mut value = 0;
    // SAFETY: `vm` is the machine being run, borrowed by `run`; the stack is a region of the cage.
    let ended =
        unsafe { ffi::ubpf_exec_ex(vm, null_mut(), 0, &mut value, stack, stack_len as usize) };
    if ended == 0 {
        return value;
    }
    if !guard::is_stopping() {
        guard::note_stack_overflow();
    }
    // SAFETY: called by the program's entry on its own stack; nothing here is to be dropped.
    unsafe { guard::abandon() }
}

unsafe extern "C" fn is_in_cage(_: *mut c_void, address: u64, size: u64) -> bool {
    let inside = guard::with_cage(|cage| {
        let within = address >= cage.base() && address - cage.base() < cage.layout().size();
        within && cage.check(address, size, Access::Read).is_some()
    });
    let inside = inside == Some(true);
    if !inside {
        guard::note_fault(address);
    }
    inside
}

unsafe extern "C" fn before_instruction(
    _: *mut c_void,
    _: c_int,
    registers: *mut u64,
    _: *const u8,
    _: usize,
    _: u64,
    _: *const u8,
) {
    if guard::is_stopping() {
        // SAFETY: called by the interpreter, not in a helper; the frames up to `interpret` are
        // its own and hold nothing.
        unsafe { guard::abandon() };
    }
    let next = STATE.with(|state| state.next.replace(Next::Nothing));
    // SAFETY: uBPF passes its own array of 16 registers, which is a variable of the interpreter.
    let registers = unsafe { std::slice::from_raw_parts_mut(registers, 11) };
    match next {
        Next::Nothing => {}
        Next::Start(arguments) => {
            registers[..10].fill(0);
            registers[1..3].copy_from_slice(&arguments);
        }
        Next::Called => registers[1..6].fill(0),
    }
}
