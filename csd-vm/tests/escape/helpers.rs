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

const fn pointers() -> [Pointer; 14] {
    use Access::{Read, Write};
    [
        pointer(1, 0, Ok(1), Read, [0; 5]),
        // The data handed in begins behind the device: a read has none, so nothing is there.
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

/// Calls a helper with these arguments.
fn calling(helper: i32, arguments: [u64; 5]) -> Vec<u8> {
    let mut slots = mapping();
    for (register, value) in (1..).zip(arguments) {
        match value {
            BUFFER => slots.extend([copy(register, 10), add(register, -256)]),
            value => slots.extend(constant(register, value)),
        }
    }
    // Sector 0 of the zone is what a write begins with.
    slots.extend([slot(0x7a, 10, 0, -256, 0), call(helper), mov(0, 1), exit()]);
    object(&slots)
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
        let lengths: &[u64] = match pointer.length {
            Ok(_) => &[0, 1, 8, 4097],
            Err(_) => &[0],
        };
        for (edge, length) in model
            .edges()
            .into_iter()
            .flat_map(|e| lengths.iter().map(move |l| (e, *l)))
        {
            let bytes = pointer.length.err().unwrap_or(length);
            for distance in [-80, -9, -8, -7, -1, 0, 1, 8i64].map(|d| d - (length / 2) as i64) {
                let mut arguments = pointer.others;
                arguments[pointer.argument] = edge.wrapping_add_signed(distance);
                if let Ok(at) = pointer.length {
                    arguments[at] = length;
                }
                let object = calling(pointer.helper, arguments);
                let outcome = both(&mut laboratory, &object, &request);
                let address = arguments[pointer.argument];
                let expected = model.allows(address, bytes, pointer.access);
                let what = format!("helper {} at {address:#x}, {bytes} bytes", pointer.helper);
                assert_eq!(
                    outcome.status.is_ok(),
                    expected,
                    "{what}: {:?}",
                    outcome.status
                );
                match expected {
                    true => followed += 1,
                    false => refused += 1,
                }
            }
        }
    }
    assert!(followed > 500 && refused > 500, "{followed} {refused}");
}

#[test]
fn lengths_that_wrap_around_are_refused() {
    let mut laboratory = laboratory();
    let request = request(&laboratory);
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
        let Ok(at) = pointer.length else { continue };
        for edge in model.edges() {
            for length in lengths {
                let mut arguments = pointer.others;
                (arguments[pointer.argument], arguments[at]) = (edge, length);
                let object = calling(pointer.helper, arguments);
                let outcome = both(&mut laboratory, &object, &request);
                let refused = matches!(outcome.status, Err(Failure::Helper { .. }));
                assert!(refused, "{arguments:x?}: {:?}", outcome.status);
            }
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
    let mut laboratory = laboratory();
    let request = request(&laboratory);
    let (mut refused, mut read) = (0, 0);
    for helper in [2, 3] {
        for case in 0..NUMBERS.len().pow(3) {
            let number = |digit: u32| NUMBERS[case / NUMBERS.len().pow(digit) % NUMBERS.len()];
            for size in [0, 1, 64, 4096, u64::MAX] {
                let mut arguments = [number(0), number(1), number(2), size, BUFFER];
                if helper == 3 {
                    arguments[1] = BUFFER;
                }
                let object = calling(helper, arguments);
                let outcome = both(&mut laboratory, &object, &request);
                match outcome.status {
                    Ok(_) => read += 1,
                    Err(Failure::Helper { .. } | Failure::Limit(_)) => refused += 1,
                    other => panic!("helper {helper} {arguments:x?}: {other:?}"),
                }
            }
        }
    }
    assert!(read > 10 && refused > 1000, "{read} {refused}");
}

#[test]
fn numbers_of_any_size_do_no_harm() {
    let mut laboratory = laboratory();
    let request = request(&laboratory);
    for a in NUMBERS {
        for b in NUMBERS {
            for (helper, arguments) in [
                (33, [a, b, BUFFER, 0, 0]),
                (34, [a, BUFFER, b.min(200), 0, 0]),
                (36, [a, b, 0, 0, 0]),
                (38, [a, BUFFER, b, 0, 0]),
                (40, [a, b, 0, 0, 0]),
                (41, [a, b, 0, 0, 0]),
            ] {
                let outcome = both(&mut laboratory, &calling(helper, arguments), &request);
                assert_eq!(outcome.status, Ok(1), "helper {helper} {arguments:x?}");
            }
        }
    }
}
