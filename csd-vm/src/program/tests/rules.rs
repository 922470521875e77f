//! One test for each rule of the validator: what keeps it passes, what breaks it is named.

use crate::program::insn::{
    ADD64_IMM, CALL, CALL_REGISTER, EXIT, Insn, JA, JA_LONG, LDDW, MOV64_IMM, MOV64_REG,
};
use crate::program::{LinkLimits, LoadError, Program, Violation};

const RETURN: Insn = insn(EXIT, 0, 0, 0, 0);

const fn insn(opcode: u8, dst: u8, src: u8, offset: i16, imm: i32) -> Insn {
    Insn {
        opcode,
        dst,
        src,
        offset,
        imm,
    }
}

fn program(insns: &[Insn]) -> Result<Program, LoadError> {
    let slots: Vec<u64> = insns.iter().map(|insn| insn.encode()).collect();
    Program::from_slots(&slots, &LinkLimits::default())
}

/// The instruction and the rule it breaks.
fn violation(insns: &[Insn]) -> (usize, Violation) {
    match program(insns) {
        Err(LoadError::Refused { place, violation }) => (place.instruction, violation),
        other => panic!("expected a violation, not {other:?}"),
    }
}

/// The rule that `first` breaks when a return follows.
fn broken(first: Insn) -> Violation {
    let (at, violation) = violation(&[first, RETURN]);
    assert_eq!(at, 0);
    violation
}

fn keeps(first: Insn) {
    let result = program(&[first, RETURN]);
    assert!(result.is_ok(), "{first:?}: {result:?}");
}

#[test]
fn opcodes_that_do_not_exist_are_refused() {
    // Packet access, packed swaps of both sorts, an unknown class member, a bare second half.
    for opcode in [0x20, 0x28, 0x40, 0xdf, 0xef, 0x99, 0xe7, 0x00] {
        let expected = Violation::Opcode(opcode);
        assert_eq!(broken(insn(opcode, 0, 0, 0, 0)), expected);
    }
    let call = insn(CALL_REGISTER, 0, 0, 0, 1);
    assert_eq!(broken(call), Violation::IndirectCall);
}

#[test]
fn registers_past_r10_are_refused() {
    keeps(insn(MOV64_REG, 9, 10, 0, 0));
    assert_eq!(
        broken(insn(MOV64_REG, 0, 11, 0, 0)),
        Violation::Register(11)
    );
    assert_eq!(
        broken(insn(MOV64_IMM, 15, 0, 0, 0)),
        Violation::Register(15)
    );
}

#[test]
fn the_frame_pointer_is_not_written() {
    let writes = [
        insn(MOV64_IMM, 10, 0, 0, 1),
        insn(0x79, 10, 1, 0, 0),
        insn(0xdc, 10, 0, 0, 64),
        insn(0xdb, 1, 10, 0, 0x01),
    ];
    for write in writes {
        assert_eq!(broken(write), Violation::FramePointer, "{write:?}");
    }
    let constant = [insn(LDDW, 10, 0, 0, 0), Insn::default(), RETURN];
    assert_eq!(violation(&constant), (0, Violation::FramePointer));
    // An addition without the old value only reads it.
    keeps(insn(0xdb, 1, 10, 0, 0x00));
    assert_eq!(
        broken(insn(0x1d, 10, 1, 0, 0)),
        Violation::FramePointerCompared
    );
}

#[test]
fn unused_fields_are_zero() {
    let reserved = [
        (insn(MOV64_IMM, 0, 1, 0, 0), "source"),
        (insn(MOV64_IMM, 0, 0, 8, 0), "offset"),
        (insn(MOV64_REG, 0, 1, 0, 5), "immediate"),
        (insn(ADD64_IMM, 0, 0, 1, 0), "offset"),
        (insn(0x79, 0, 1, 0, 1), "immediate"),
        (insn(0x7a, 1, 1, 0, 1), "source"),
        (insn(JA, 1, 0, 0, 0), "destination"),
        (insn(JA, 0, 0, 0, 1), "immediate"),
        (insn(JA_LONG, 0, 0, 1, 0), "offset"),
        (insn(CALL, 1, 0, 0, 1), "destination"),
        (insn(CALL, 0, 2, 0, 1), "source"),
        (insn(0x87, 0, 0, 0, 1), "immediate"),
        (insn(0x37, 0, 0, 2, 1), "offset"),
    ];
    for (insn, field) in reserved {
        assert_eq!(broken(insn), Violation::Reserved(field), "{insn:?}");
    }
    let exit = insn(EXIT, 0, 0, 0, 7);
    assert_eq!(violation(&[exit]), (0, Violation::Reserved("immediate")));
}

#[test]
fn constants_have_both_halves_and_no_reference() {
    let load = insn(LDDW, 1, 0, 0, -1);
    let half = insn(0, 0, 0, 0, -1);
    program(&[load, half, RETURN]).expect("a constant");
    for bad in [RETURN, insn(0, 1, 0, 0, 0), insn(0, 0, 0, 1, 0)] {
        let found = violation(&[load, bad, RETURN]);
        assert_eq!(found, (0, Violation::IncompleteConstant));
    }
    let found = violation(&[RETURN, load]);
    assert_eq!(found, (1, Violation::IncompleteConstant));
    // The source field would ask for a map.
    let found = violation(&[insn(LDDW, 1, 1, 0, 3), half, RETURN]);
    assert_eq!(found, (0, Violation::Reserved("source")));
}

#[test]
fn division_by_the_constant_zero_is_refused() {
    for opcode in [0x34, 0x37, 0x94, 0x97] {
        assert_eq!(broken(insn(opcode, 1, 0, 0, 0)), Violation::DivisionByZero);
        keeps(insn(opcode, 1, 0, 0, 3));
        // Signed, by a register.
        keeps(insn(opcode | 8, 1, 2, 1, 0));
    }
}

#[test]
fn shifts_swaps_and_sign_extensions_have_widths_that_exist() {
    keeps(insn(0x67, 1, 0, 0, 63));
    assert_eq!(broken(insn(0x67, 1, 0, 0, 64)), Violation::Shift(64));
    assert_eq!(broken(insn(0xc4, 1, 0, 0, 32)), Violation::Shift(32));
    assert_eq!(broken(insn(0x74, 1, 0, 0, -1)), Violation::Shift(-1));
    for opcode in [0xd4, 0xdc, 0xd7] {
        keeps(insn(opcode, 1, 0, 0, 16));
        assert_eq!(broken(insn(opcode, 1, 0, 0, 8)), Violation::Swap(8));
    }
    keeps(insn(MOV64_REG, 1, 2, 32, 0));
    let extension = insn(0xbc, 1, 2, 32, 0);
    assert_eq!(broken(extension), Violation::SignExtension(32));
}

#[test]
fn atomic_operations_are_those_that_exist() {
    for imm in [0x00, 0x01, 0x40, 0x41, 0x50, 0x51, 0xa0, 0xa1, 0xe1, 0xf1] {
        keeps(insn(0xdb, 1, 2, 0, imm));
        keeps(insn(0xc3, 1, 2, 0, imm));
    }
    for imm in [0x10, 0x02, 0xe0, 0xf0, 0x100, -1] {
        assert_eq!(broken(insn(0xdb, 1, 2, 0, imm)), Violation::Atomic(imm));
    }
    // Of a byte.
    assert_eq!(broken(insn(0xd3, 1, 2, 0, 0)), Violation::Opcode(0xd3));
}

#[test]
fn jumps_stay_in_their_function_and_hit_instructions() {
    keeps(insn(JA, 0, 0, 0, 0));
    assert_eq!(broken(insn(JA, 0, 0, 1, 0)), Violation::JumpOutside(2));
    assert_eq!(broken(insn(JA, 0, 0, -2, 0)), Violation::JumpOutside(-1));
    let far = insn(JA_LONG, 0, 0, 0, i32::MAX);
    assert_eq!(broken(far), Violation::JumpOutside(1 << 31));
    assert_eq!(broken(insn(0x15, 1, 0, -1, 0)), Violation::JumpToItself);
    let middle = [
        insn(0x15, 1, 0, 1, 0),
        insn(LDDW, 1, 0, 0, 0),
        Insn::default(),
        RETURN,
    ];
    assert_eq!(violation(&middle), (0, Violation::JumpIntoConstant(2)));
    // Into another function, which starts at 2.
    let other = [insn(CALL, 0, 1, 0, 1), RETURN, RETURN, RETURN];
    program(&other).expect("a call");
    let mut jumping = other;
    jumping[1] = insn(JA, 0, 0, 1, 0);
    assert_eq!(violation(&jumping), (1, Violation::JumpOutside(3)));
}

#[test]
fn calls_lead_to_functions_and_to_helpers_that_exist() {
    for number in [1, 9, 32, 41] {
        keeps(insn(CALL, 0, 0, 0, number));
    }
    for number in [0, 10, 31, 42, -1, i32::MIN] {
        let call = insn(CALL, 0, 0, 0, number);
        assert_eq!(broken(call), Violation::Helper(number));
    }
    assert_eq!(broken(insn(CALL, 0, 1, 0, 5)), Violation::CallTarget(6));
    assert_eq!(broken(insn(CALL, 0, 1, 0, -9)), Violation::CallTarget(-8));
    // Into the middle of a constant: the constant's function then ends in half of it.
    let middle = [
        insn(CALL, 0, 1, 0, 1),
        insn(LDDW, 1, 0, 0, 0),
        Insn::default(),
        RETURN,
    ];
    assert_eq!(violation(&middle), (1, Violation::IncompleteConstant));
}

#[test]
fn functions_end_in_a_return_or_a_jump() {
    let found = violation(&[insn(MOV64_IMM, 0, 0, 0, 1)]);
    assert_eq!(found, (0, Violation::FallsThrough));
    let found = violation(&[RETURN, insn(0x15, 1, 0, -2, 0)]);
    assert_eq!(found, (1, Violation::FallsThrough));
    program(&[RETURN, insn(JA, 0, 0, -2, 0)]).expect("ends in a jump");
    let (at, rule) = violation(&[]);
    assert_eq!((at, rule), (0, Violation::FallsThrough));
}

#[test]
fn stack_frames_are_bounded() {
    keeps(insn(0x7a, 10, 0, -512, 1));
    let stack = |used| Violation::Stack { used, limit: 512 };
    assert_eq!(broken(insn(0x7a, 10, 0, -513, 1)), stack(513));
    assert_eq!(broken(insn(0x79, 1, 10, -520, 0)), stack(520));
    assert_eq!(broken(insn(0x7a, 10, 0, -7, 1)), Violation::AboveFrame);
    assert_eq!(broken(insn(0x71, 1, 10, 0, 0)), Violation::AboveFrame);
    let address = [
        insn(MOV64_REG, 1, 10, 0, 0),
        insn(ADD64_IMM, 1, 0, 0, -600),
        RETURN,
    ];
    assert_eq!(violation(&address), (1, stack(600)));
    let through_register = [
        insn(MOV64_REG, 1, 10, 0, 0),
        insn(ADD64_IMM, 1, 0, 0, -500),
        insn(0x7a, 1, 0, -16, 0),
        RETURN,
    ];
    assert_eq!(violation(&through_register), (2, stack(516)));
    // After a jump target the register may hold anything.
    let unknown = [
        insn(MOV64_REG, 1, 10, 0, 0),
        insn(0x15, 2, 0, 0, 0),
        insn(ADD64_IMM, 1, 0, 0, -600),
        RETURN,
    ];
    program(&unknown).expect("not a constant distance");
}

#[test]
fn larger_frames_are_possible_where_the_limits_say_so() {
    let slots = [insn(0x7a, 10, 0, -1000, 1).encode(), RETURN.encode()];
    let limits = LinkLimits {
        stack_bytes: 4096,
        ..LinkLimits::default()
    };
    let program = Program::from_slots(&slots, &limits).expect("below the limit");
    assert_eq!(program.functions()[0].stack_bytes, 1008);
}

#[test]
fn no_more_instructions_are_taken_than_the_engine_takes() {
    let slots = vec![RETURN.encode(); 65535];
    let limits = LinkLimits {
        instructions: u64::MAX,
        ..LinkLimits::default()
    };
    Program::from_slots(&slots, &limits).expect("as many as the engine takes");
    let slots = vec![RETURN.encode(); 65536];
    let error = Program::from_slots(&slots, &limits).expect_err("one too many");
    assert!(matches!(error, LoadError::TooLarge { .. }), "{error}");
}
