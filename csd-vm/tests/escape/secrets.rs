//! What programs can find out: nothing of the host, nothing of others.

use std::ops::Range;

use csd_vm::engine::cage::{REACH, Region};
use csd_vm::lab::Outcome;

use crate::*;

/// Helpers that do something with these arguments. `BUFFER` is some bytes of the heap.
const CALLS: [(i32, [i32; 5]); 19] = {
    const B: i32 = BUFFER;
    [
        (1, [B, 64, 0, 0, 0]),
        (2, [1, 0, 0, 0, B]),
        (3, [64, B + 2000, 0, 0, B]),
        (4, [0; 5]),
        (5, [0; 5]),
        (6, [0; 5]),
        (7, [B, B + 8, 0, 0, 0]),
        (8, [B + 16, 0, 0, 0, 0]),
        (9, [B, 0, 0, 0, 0]),
        (32, [B, 80, 0, 0, 0]),
        (33, [0, 50_000, B, 0, 0]),
        (34, [100, B, 1000, 0, 0]),
        (35, [B, 64, 0, 0, 0]),
        (36, [64, 0, 0, 0, 0]),
        (37, [B, 64, 0, 0, 0]),
        (38, [1, B, 0, 0, 0]),
        (39, [B, 5, 0, 0, 0]),
        (40, [1, 0, 0, 0, 0]),
        (41, [0; 5]),
    ]
};

/// Offsets in the heap from here on are buffers of [`CALLS`].
const BUFFER: i32 = 1 << 20;

/// Where a program keeps what it has seen, from the start of the heap.
const KEPT: i16 = 0x2000;

/// Registers at the start and after every helper and a function, kept in the heap.
fn observing() -> Vec<u8> {
    let mut slots = vec![load(7, 1, 56)];
    let mut at = KEPT;
    let mut keep = |slots: &mut Vec<u64>, registers: Range<u8>| {
        for register in registers {
            slots.push(store(7, at, register));
            at += 8;
        }
    };
    keep(&mut slots, 0..7);
    keep(&mut slots, 8..11);
    for (helper, arguments) in CALLS {
        for (register, argument) in (1..).zip(arguments) {
            match argument {
                at if at >= BUFFER => slots.extend([copy(register, 7), add(register, at - BUFFER)]),
                number => slots.push(mov(register, number)),
            }
        }
        slots.push(call(helper));
        keep(&mut slots, 0..6);
    }
    // A function that leaves other things behind than it found.
    slots.push(slot(0x85, 0, 1, 0, 7 + 2));
    keep(&mut slots, 0..7);
    slots.extend([mov(0, 1), exit()]);
    slots.extend((1..6).map(|register| mov(register, 77)));
    slots.extend([mov(0, 78), exit()]);
    object(&slots)
}

/// The numbers that were kept.
fn kept(outcome: &Outcome, heap: u64) -> Vec<u64> {
    let at = heap + KEPT as u64;
    let page = outcome.memory.iter().find(|(offset, _)| *offset == at);
    let (words, _) = page.expect("it was written").1.as_chunks::<8>();
    words.iter().map(|word| u64::from_le_bytes(*word)).collect()
}

#[test]
fn registers_hold_arguments_and_results_and_nothing_else() {
    let mut laboratory = laboratory();
    let request = request(&laboratory);
    let outcome = both(&mut laboratory, &observing(), &request);
    assert_eq!(outcome.status, Ok(1));
    let cage = laboratory.cage();
    let kept = kept(&outcome, cage.layout().span(Region::Heap).start);
    let stack_end = cage.base() + cage.layout().span(Region::Stack).end();
    let (start, rest) = kept.split_at(10);
    let (call, variables) = (
        cage.address(Region::Call),
        cage.address(Region::Data) + 4096,
    );
    let expected = [0, call, 80, 0, 0, 0, 0, 0, variables, stack_end];
    assert_eq!(start, expected, "r0 to r6, r8 to r10");
    let (helpers, function) = rest.split_at(6 * CALLS.len());
    for (registers, (helper, _)) in helpers.chunks(6).zip(CALLS) {
        assert_eq!(registers[1..], [0; 5], "after helper {helper}");
        let bound = 1 << 32;
        let in_cage = registers[0].wrapping_sub(cage.base()) < REACH;
        let small = registers[0] < bound || registers[0].wrapping_neg() < bound;
        assert!(
            in_cage || small,
            "helper {helper} returned {:#x}",
            registers[0]
        );
    }
    assert_eq!(function[..7], [78, 77, 77, 77, 77, 77, 0]);
}

/// What is mapped in this process.
fn mappings() -> Vec<Range<u64>> {
    let text = std::fs::read_to_string("/proc/self/maps").expect("it can be read");
    let hexadecimal = |number: &str| u64::from_str_radix(number, 16).expect("a number");
    let range = |line: &str| {
        let (range, _) = line.split_once(' ').expect("a range and more");
        let (start, end) = range.split_once('-').expect("a range");
        hexadecimal(start)..hexadecimal(end)
    };
    text.lines().map(range).collect()
}

#[test]
fn no_address_of_the_host_is_anywhere_in_the_cage() {
    let mut laboratory = laboratory();
    let request = request(&laboratory);
    for compiled in [true, false] {
        let outcome = laboratory
            .run(&observing(), &request, compiled)
            .expect("runs");
        let (base, size) = (laboratory.cage().base(), REACH);
        let mappings = mappings();
        let of_host = |address: u64| {
            let in_cage = address.wrapping_sub(base) < size;
            !in_cage && mappings.iter().any(|mapping| mapping.contains(&address))
        };
        let mut addresses_of_cage = 0;
        for (offset, page) in &outcome.memory {
            for (at, bytes) in page.windows(8).enumerate() {
                let word = u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
                let place = offset + at as u64;
                assert!(
                    !of_host(word),
                    "{word:#x} at {place:#x}, compiled {compiled}"
                );
                addresses_of_cage += u32::from(word.wrapping_sub(base) < size);
            }
        }
        // The request, the variables, the stack, the heap: what is looked for can be found.
        assert!(addresses_of_cage >= 4, "{addresses_of_cage}");
    }
}

#[test]
fn nothing_of_a_program_is_left_for_the_next_one() {
    let mut laboratory = laboratory();
    let request = request(&laboratory);
    let limits = request.limits;
    let layout = *laboratory.cage().layout();
    let places = [
        (Region::Data, 4096, 8192),
        (Region::Stack, 0, layout.span(Region::Stack).len),
        (Region::Heap, 0, limits.heap),
        (Region::Output, 0, limits.output),
    ];
    // r3 goes through the words from r1 on, r2 of them.
    let through = |word: u64, first: u64, last: u64| {
        let words = (last - first) / 8;
        [
            constant(1, first).to_vec(),
            vec![mov(2, words as i32), word, add(1, 8), add(2, -1)],
            vec![slot(0x55, 2, 0, -4, 0)],
        ]
        .concat()
    };
    let mut hiding = constant(4, 0x5ec4_e75e_c4e7_abcd).to_vec();
    let mut spying = vec![mov(0, 0)];
    for (region, from, to) in places {
        let start = layout.span(region).start;
        hiding.extend(through(store(1, 0, 4), start + from, start + to));
        let look = [load(3, 1, 0), slot(0x4f, 0, 3, 0, 0)];
        let words = (to - from) / 8;
        // Its own variables are as they are in the object.
        let skipped = if region == Region::Data { 200 } else { 0 };
        spying.extend(constant(1, start + from + skipped));
        spying.extend([mov(2, (words - skipped / 8) as i32), look[0], look[1]]);
        spying.extend([add(1, 8), add(2, -1), slot(0x55, 2, 0, -5, 0)]);
    }
    hiding.extend([mov(0, 1), exit()]);
    spying.push(exit());
    for compiled in [true, false] {
        let hid = laboratory
            .run(&object(&hiding), &request, compiled)
            .expect("runs");
        assert_eq!(hid.status, Ok(1));
        let full = hid.memory.len() as u64 * 4096;
        assert!(full >= limits.heap + limits.output + (256 << 10));
        let seen = laboratory
            .run(&object(&spying), &request, compiled)
            .expect("runs");
        assert_eq!(seen.status, Ok(0), "compiled {compiled}");
    }
}
