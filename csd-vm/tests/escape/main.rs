//! Programs that try to get out of their cage, in both engines: at every edge of every region, with
//! every access, jump and call, through every helper.
//!
//! Each runs in a [`Laboratory`], which also looks whether a byte around the cage changed. What should
//! happen is told by a model of the cage ([`model::Model`]) that knows the layout and nothing of how
//! accesses are confined.

mod accesses;
mod control;
mod helpers;
mod model;
mod secrets;

use csd_vm::lab::{Laboratory, Outcome};
use csd_vm::program::fuzz::{DataSection, Fuzzer, Parts};
use csd_vm::request::{Operation, Request};

/// Bytes of the file that programs look at, and of it that [`mapping`] maps.
const FILE: u64 = 70_000;

/// Instructions a program may take here.
const INSTRUCTIONS_MAX: u64 = 1_000_000;

fn laboratory() -> Laboratory {
    Laboratory::new(INSTRUCTIONS_MAX).expect("memory for a cage")
}

/// A read of the whole file.
fn request(laboratory: &Laboratory) -> Request {
    let mut random = Fuzzer::new(1);
    loop {
        let mut request = laboratory.request(&mut random);
        let is_plain = request.operation == Operation::ReadStream && request.limits.output > 100;
        if is_plain && request.snapshot.size() == FILE {
            (request.offset, request.size) = (0, FILE);
            request.arguments = [3, 5, 7].into();
            return request;
        }
    }
}

/// One slot.
fn slot(opcode: u8, dst: u8, src: u8, offset: i16, imm: i32) -> u64 {
    u64::from(opcode)
        | u64::from(dst) << 8
        | u64::from(src) << 12
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(imm.cast_unsigned()) << 32
}

/// `dst = value`, in two slots.
fn constant(dst: u8, value: u64) -> [u64; 2] {
    let (low, high) = (value as u32, (value >> 32) as u32);
    [
        slot(0x18, dst, 0, 0, low.cast_signed()),
        slot(0, 0, 0, 0, high.cast_signed()),
    ]
}

/// `dst = imm`.
fn mov(dst: u8, imm: i32) -> u64 {
    slot(0xb7, dst, 0, 0, imm)
}

/// `dst = src`.
fn copy(dst: u8, src: u8) -> u64 {
    slot(0xbf, dst, src, 0, 0)
}

/// `dst += imm`.
fn add(dst: u8, imm: i32) -> u64 {
    slot(0x07, dst, 0, 0, imm)
}

/// `dst = *(u64 *)(src + offset)`.
fn load(dst: u8, src: u8, offset: i16) -> u64 {
    slot(0x79, dst, src, offset, 0)
}

/// `*(u64 *)(dst + offset) = src`.
fn store(dst: u8, offset: i16, src: u8) -> u64 {
    slot(0x7b, dst, src, offset, 0)
}

fn call(helper: i32) -> u64 {
    slot(0x85, 0, 0, 0, helper)
}

fn exit() -> u64 {
    slot(0x95, 0, 0, 0, 0)
}

/// Slots that map the file at the start of the window.
fn mapping() -> Vec<u64> {
    vec![
        mov(1, 0),
        mov(2, FILE as i32),
        copy(3, 10),
        add(3, -16),
        call(33),
    ]
}

/// Slots that load the numbers of the request, `count` of them, to r10-64 and below.
fn given(count: usize) -> Vec<u64> {
    let one = |index: usize| {
        [
            mov(1, index as i32),
            copy(2, 10),
            add(2, i32::from(given_at(index))),
            call(38),
        ]
    };
    (0..count).flat_map(one).collect()
}

/// Where such a number is, from r10.
fn given_at(index: usize) -> i16 {
    -64 - 8 * index as i16
}

/// An object with constants and variables, a page of each, that runs `slots`. r9 is the address of its
/// variables.
fn object(slots: &[u64]) -> Vec<u8> {
    let references = [constant(9, 0), constant(9, 0)].concat();
    let parts = Parts {
        slots: [&references, slots].concat(),
        read_only: vec![1; 100],
        initialised: vec![2; 100],
        zeroed: 100,
        references: vec![(0, DataSection::ReadOnly), (2, DataSection::Initialised)],
    };
    parts.object()
}

/// What an object does, the same in both engines.
fn both(laboratory: &mut Laboratory, object: &[u8], request: &Request) -> Outcome {
    let [interpreted, compiled] = [false, true].map(|compiled| {
        let ran = laboratory.run(object, request, compiled);
        ran.unwrap_or_else(|reason| panic!("compiled {compiled}: {reason}"))
    });
    if let Some(difference) = interpreted.difference(&compiled) {
        panic!("interpreted and compiled, {difference}");
    }
    compiled
}
