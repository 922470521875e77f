//! Jumps and calls to everywhere, and recursion.

use csd_vm::lab::Ending;
use csd_vm::program::insn::{Insn, LDDW};

use crate::*;

/// Slots with two-slot constants among them; the first can be a jump or a call.
fn body() -> Vec<u64> {
    let slots = [
        &[mov(0, 0)][..],
        &constant(3, u64::MAX),
        &[add(0, 1)],
        &constant(4, 0x95),
        &constant(5, 0x0500_0000_0000_0095),
        &[add(0, 1), exit(), mov(0, 7), exit()],
    ];
    slots.concat()
}

/// What the first slot leads to when its distance is `distance`.
fn with_first(first: u64) -> Vec<u64> {
    let mut slots = body();
    slots[0] = first;
    slots
}

#[test]
fn jumps_lead_to_instructions_of_the_program_or_are_refused() {
    let mut laboratory = laboratory();
    let request = request(&laboratory);
    let slots = body();
    let is_second = |at: usize| at > 0 && Insn::decode(slots[at - 1]).opcode == LDDW;
    let mut taken = 0;
    for distance in -3i16..=slots.len() as i16 + 2 {
        let target = i64::from(distance) + 1;
        let inside = usize::try_from(target).ok().filter(|at| *at < slots.len());
        // To itself is refused, as it never ends.
        let allowed = inside.is_some_and(|at| at > 0 && !is_second(at));
        for first in [
            slot(0x05, 0, 0, distance, 0),
            slot(0x06, 0, 0, 0, distance.into()),
            slot(0x15, 0, 0, distance, 0),
            slot(0x1e, 0, 1, distance, 0),
        ] {
            let object = Parts::of_code(&with_first(first)).object();
            let accepted = laboratory.run(&object, &request, true).is_ok();
            assert_eq!(accepted, allowed, "{first:#x}");
            if allowed {
                both(&mut laboratory, &object, &request);
                taken += 1;
            }
        }
    }
    assert!(taken > 20, "{taken}");
}

#[test]
fn calls_lead_to_functions_or_are_refused() {
    let mut laboratory = laboratory();
    let request = request(&laboratory);
    let slots = body();
    let is_second = |at: usize| at > 0 && Insn::decode(slots[at - 1]).opcode == LDDW;
    let mut accepted = 0;
    for distance in -3i32..=slots.len() as i32 + 2 {
        let target = usize::try_from(i64::from(distance) + 1).ok();
        // Every target has a symbol; calls of main never end and overflow.
        let first = slot(0x85, 0, 1, 0, distance);
        let object = Parts::of_code(&with_first(first)).object();
        let ran = laboratory.run(&object, &request, true);
        match target.filter(|at| *at < slots.len()) {
            Some(0) => {
                let outcome = ran.expect("calls itself");
                assert_eq!(outcome.ending(), Ending::StackOverflow);
            }
            // Code that runs into the function behind it is refused.
            Some(at) if is_second(at) => assert!(ran.is_err(), "{at}"),
            Some(_) => accepted += u32::from(ran.is_ok()),
            None => assert!(ran.is_err(), "{distance}"),
        }
    }
    assert!(accepted > 0);
    for distance in [i32::MIN, i32::MAX, 1 << 16, -(1 << 16)] {
        let far = with_first(slot(0x85, 0, 1, 0, distance));
        let object = Parts::of_code(&far).object();
        assert!(laboratory.run(&object, &request, true).is_err());
    }
}

/// Calls itself `r1` times, or for ever; `body` is done each time.
fn recursive(times: i32, body: &[u64]) -> Vec<u8> {
    let main = [mov(1, times), mov(0, 0), slot(0x85, 0, 1, 0, 1), exit()];
    let end = [slot(0x15, 1, 0, body.len() as i16 + 2, 0), add(1, -1)];
    let back = -(body.len() as i32) - 3;
    let again = [slot(0x85, 0, 1, 0, back), exit()];
    Parts::of_code(&[&main[..], &end, body, &again].concat()).object()
}

#[test]
fn recursion_goes_as_deep_as_the_stack_in_both_engines() {
    let mut laboratory = laboratory();
    let request = request(&laboratory);
    // Its frame of 512 bytes is used from the top.
    let uses_stack = [store(10, -8, 1), load(2, 10, -8), slot(0x0f, 0, 2, 0, 0)];
    for times in [0, 1, 7, 8, 9, 100, 500] {
        let outcome = both(&mut laboratory, &recursive(times, &uses_stack), &request);
        assert!(outcome.status.is_ok(), "{times}: {:?}", outcome.status);
    }
    for times in [520, 9000] {
        let outcome = both(&mut laboratory, &recursive(times, &[add(0, 1)]), &request);
        assert!(outcome.status.is_ok(), "{times}: {:?}", outcome.status);
        let outcome = both(&mut laboratory, &recursive(times, &uses_stack), &request);
        assert_eq!(outcome.ending(), Ending::StackOverflow, "{times}");
    }
    // A helper clears the registers it may have used.
    for body in [&uses_stack[..], &[add(0, 1)], &[call(4), mov(1, -1)]] {
        let outcome = both(&mut laboratory, &recursive(-1, body), &request);
        assert_eq!(outcome.ending(), Ending::StackOverflow);
    }
}
