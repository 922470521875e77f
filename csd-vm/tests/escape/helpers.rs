//! Every helper, with every pointer at every edge, and numbers that overflow.

use csd_vm::engine::cage::Access;
use csd_vm::request::Failure;

use crate::model::Model;
use crate::*;

/// Where a helper has a pointer, and what is behind it.
struct Pointer {
    helper: i32,
    /// Its argument, from r1 on.
    argument: usize,
    /// The argument that has the length, or how many bytes there are.
    length: Result<usize, u64>,
    access: Access,
    /// The other arguments. `BUFFER` stands for some bytes of the stack.
    others: [u64; 5],
}

/// An address that is well, in place of a pointer that is not looked at.
const BUFFER: u64 = 0xb0ff;

const fn pointer(
    helper: i32,
    argument: usize,
    length: Result<usize, u64>,
    access: Access,
    others: [u64; 5],
) -> Pointer {
    Pointer {
        helper,
        argument,
        length,
        access,
        others,
    }
}

const fn pointers() -> [Pointer; 16] {
    use Access::{Read, Write};
    [
        pointer(1, 0, Ok(1), Read, [0; 5]),
        // Of a sector that is not of the request, which is looked at after the pointer.
        pointer(2, 4, Ok(3), Write, [0; 5]),
        pointer(3, 4, Ok(3), Read, [64, BUFFER, 0, 0, 0]),
        pointer(3, 1, Err(8), Write, [64, 0, 0, 0, BUFFER]),
        pointer(7, 0, Err(8), Write, [0, BUFFER, 0, 0, 0]),
        pointer(7, 1, Err(8), Write, [BUFFER, 0, 0, 0, 0]),
        pointer(8, 0, Err(8), Write, [0; 5]),
        pointer(9, 0, Err(1), Read, [0; 5]),
        pointer(32, 0, Err(80), Write, [0, 80, 0, 0, 0]),
        pointer(32, 0, Err(8), Write, [0, 8, 0, 0, 0]),
        pointer(33, 2, Err(8), Write, [0, 1, 0, 0, 0]),
        pointer(34, 1, Ok(2), Write, [0; 5]),
        pointer(35, 0, Ok(1), Read, [0; 5]),
        pointer(37, 0, Ok(1), Read, [0; 5]),
        pointer(38, 1, Err(8), Write, [1, 0, 0, 0, 0]),
        pointer(39, 0, Ok(1), Read, [0; 5]),
    ]
}

/// Where an argument of a helper comes from.
#[derive(Clone, Copy, PartialEq)]
enum Argument {
    Fixed(u64),
    /// Some bytes of the stack.
    Buffer,
    /// This number of the request.
    Given(usize),
}

/// Calls a helper.
fn calling(helper: i32, arguments: [Argument; 5]) -> Vec<u8> {
    let is_given = |argument: &&Argument| matches!(argument, Argument::Given(_));
    let mut slots = [mapping(), given(arguments.iter().filter(is_given).count())].concat();
    // Sector 0 of the zone is what a write begins with.
    slots.push(slot(0x7a, 10, 0, -256, 0));
    for (register, argument) in (1..).zip(arguments) {
        match argument {
            Argument::Buffer => slots.extend([copy(register, 10), add(register, -256)]),
            Argument::Fixed(value) => slots.extend(constant(register, value)),
            Argument::Given(index) => slots.push(load(register, 10, given_at(index))),
        }
    }
    slots.extend([call(helper), mov(0, 1), exit()]);
    object(&slots)
}

impl Pointer {
    /// A program that calls the helper with a pointer and, if there is one, a length.
    fn program(&self) -> Vec<u8> {
        let mut arguments = self.others.map(|value| match value {
            BUFFER => Argument::Buffer,
            value => Argument::Fixed(value),
        });
        arguments[self.argument] = Argument::Given(0);
        if let Ok(at) = self.length {
            arguments[at] = Argument::Given(1);
        }
        calling(self.helper, arguments)
    }
}

/// Whether a program ended because of a pointer.
fn is_of_pointer(status: &Result<u64, Failure>) -> bool {
    match status {
        Err(Failure::Helper { reason, .. }) => reason.starts_with("the kernel cannot"),
        Err(Failure::Fault(_)) => true,
        _ => false,
    }
}

#[test]
fn helpers_follow_pointers_to_what_the_program_has_and_to_nothing_else() {
    let mut laboratory = laboratory();
    let mut request = request(&laboratory);
    request.limits.blocks_appended = 1 << 10;
    let limits = &request.limits;
    let model = Model::new(laboratory.cage(), limits.heap, limits.output);
    let (mut followed, mut refused) = (0, 0);
    for pointer in pointers() {
        let program = pointer.program();
        let lengths: &[u64] = match pointer.length {
            Ok(_) => &[0, 1, 8, 1000],
            Err(_) => &[0],
        };
        for (edge, length) in pairs(&model.edges(), lengths) {
            let bytes = pointer.length.err().unwrap_or(length);
            for distance in [-80, -9, -8, -7, -1, 0, 1, 8i64] {
                let distance = distance - (length / 2).cast_signed();
                let address = edge.wrapping_add_signed(distance);
                request.arguments = [address, length].into();
                let outcome = both(&mut laboratory, &program, &request);
                let allowed = model.allows(address, bytes, pointer.access);
                let what = format!("helper {} at {address:#x}, {bytes} bytes", pointer.helper);
                let status = &outcome.status;
                assert_eq!(is_of_pointer(status), !allowed, "{what}: {status:?}");
                // What a write finds as the number of its sector may be any; a read has none.
                assert!(
                    !allowed || status.is_ok() || [2, 3].contains(&pointer.helper),
                    "{what}: {status:?}"
                );
                match allowed {
                    true => followed += 1,
                    false => refused += 1,
                }
            }
        }
    }
    assert!(followed > 500 && refused > 500, "{followed} {refused}");
}

fn pairs(a: &[u64], b: &[u64]) -> Vec<(u64, u64)> {
    a.iter()
        .flat_map(|a| b.iter().map(move |b| (*a, *b)))
        .collect()
}

#[test]
fn lengths_that_wrap_around_are_refused() {
    let mut laboratory = laboratory();
    let mut request = request(&laboratory);
    let model = Model::new(
        laboratory.cage(),
        request.limits.heap,
        request.limits.output,
    );
    let mask = model.mask();
    let lengths = [
        u64::MAX,
        u64::MAX - 7,
        1 << 63,
        1 << 32,
        mask,
        mask + 1,
        !mask,
        (1 << 31) - 1,
    ];
    for pointer in pointers() {
        if pointer.length.is_err() {
            continue;
        }
        let program = pointer.program();
        for (edge, length) in pairs(&model.edges(), &lengths) {
            request.arguments = [edge, length].into();
            let outcome = both(&mut laboratory, &program, &request);
            let refused = matches!(outcome.status, Err(Failure::Helper { .. }));
            assert!(refused, "{edge:#x} {length:#x}: {:?}", outcome.status);
        }
    }
}

/// Numbers at which sums and products overflow.
const NUMBERS: [u64; 9] = [
    0,
    1,
    255,
    256,
    4095,
    1 << 32,
    (1 << 52) - 1,
    1 << 63,
    u64::MAX,
];

#[test]
fn positions_that_overflow_are_refused_by_name() {
    use Argument::{Buffer, Given};
    let mut laboratory = laboratory();
    let mut request = request(&laboratory);
    let (mut refused, mut done) = (0, 0);
    for (helper, arguments) in [
        (2, [Given(0), Given(1), Given(2), Given(3), Buffer]),
        (3, [Given(0), Buffer, Given(1), Given(2), Buffer]),
    ] {
        let program = calling(helper, arguments);
        for case in 0..NUMBERS.len().pow(3) {
            let number = |digit: u32| NUMBERS[case / NUMBERS.len().pow(digit) % NUMBERS.len()];
            for size in [0, 1, 64, u64::MAX] {
                let given = match helper {
                    2 => vec![number(0), number(1), number(2), size],
                    _ => vec![64 ^ number(0), number(1) ^ number(2), size],
                };
                request.arguments = given.clone().into();
                let outcome = both(&mut laboratory, &program, &request);
                match outcome.status {
                    Ok(_) => done += 1,
                    Err(Failure::Helper { .. } | Failure::Limit(_)) => refused += 1,
                    other => panic!("helper {helper} {given:x?}: {other:?}"),
                }
            }
        }
    }
    assert!(done > 10 && refused > 1000, "{done} {refused}");
}

#[test]
fn numbers_of_any_size_do_no_harm() {
    use Argument::{Buffer, Fixed, Given};
    let mut laboratory = laboratory();
    let mut request = request(&laboratory);
    for (helper, arguments) in [
        (33, [Given(0), Given(1), Buffer, Fixed(0), Fixed(0)]),
        (34, [Given(0), Buffer, Fixed(200), Given(1), Fixed(0)]),
        (36, [Given(0), Given(1), Fixed(0), Fixed(0), Fixed(0)]),
        (38, [Given(0), Buffer, Given(1), Fixed(0), Fixed(0)]),
        (40, [Given(0), Given(1), Fixed(0), Fixed(0), Fixed(0)]),
        (41, [Given(0), Given(1), Fixed(0), Fixed(0), Fixed(0)]),
    ] {
        let program = calling(helper, arguments);
        for (a, b) in pairs(&NUMBERS, &NUMBERS) {
            request.arguments = [a, b].into();
            let outcome = both(&mut laboratory, &program, &request);
            assert_eq!(outcome.status, Ok(1), "helper {helper} {a:#x} {b:#x}");
        }
    }
}
