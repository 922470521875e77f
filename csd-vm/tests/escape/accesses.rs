//! Loads, stores and atomic operations at every edge.

use csd_vm::engine::cage::Access;
use csd_vm::lab::{Ending, Laboratory};
use csd_vm::program::fuzz::{Fuzzer, seed};
use csd_vm::request::Request;

use crate::model::Model;
use crate::*;

/// An instruction that accesses memory: opcode, immediate, bytes, what it needs.
type Kind = (u8, i32, u64, Access);

/// All sizes of all of them.
fn kinds() -> Vec<Kind> {
    let sizes = [(0x10u8, 1), (0x08, 2), (0x00, 4), (0x18, 8)];
    let mut kinds = Vec::new();
    for (size, bytes) in sizes {
        kinds.push((0x61 | size, 0, bytes, Access::Read));
        if bytes < 8 {
            kinds.push((0x81 | size, 0, bytes, Access::Read));
        }
        kinds.push((0x62 | size, -2, bytes, Access::Write));
        kinds.push((0x63 | size, 0, bytes, Access::Write));
    }
    for (opcode, bytes) in [(0xc3, 4), (0xdb, 8)] {
        for operation in [0x00, 0x01, 0x40, 0x41, 0x50, 0x51, 0xa0, 0xa1, 0xe1, 0xf1] {
            kinds.push((opcode, operation, bytes, Access::Write));
        }
    }
    kinds
}

/// A program that carries out one access at the address it is given, plus a displacement.
fn program((opcode, imm, _, _): Kind, displacement: i16) -> Vec<u8> {
    let access = match opcode & 7 {
        1 => slot(opcode, 2, 1, displacement, 0),
        2 => slot(opcode, 1, 0, displacement, imm),
        _ => slot(opcode, 1, 2, displacement, imm),
    };
    let slots = [
        mapping(),
        given(1),
        vec![load(1, 10, given_at(0)), mov(2, -3)],
        vec![access, mov(0, 1), exit()],
    ];
    object(&slots.concat())
}

struct Bench {
    laboratory: Laboratory,
    request: Request,
    model: Model,
}

impl Bench {
    fn new() -> Bench {
        let laboratory = laboratory();
        let request = request(&laboratory);
        let limits = &request.limits;
        let model = Model::new(laboratory.cage(), limits.heap, limits.output);
        Bench {
            laboratory,
            request,
            model,
        }
    }

    /// Whether an access ends as the model says; tells whether it was possible.
    fn try_access(&mut self, kind: Kind, address: u64, displacement: i16) -> bool {
        let object = program(kind, displacement);
        self.request.arguments = [address].into();
        let outcome = both(&mut self.laboratory, &object, &self.request);
        let target = address.wrapping_add_signed(displacement.into());
        let is_atomic = kind.0 & 0xc7 == 0xc3;
        let target = if is_atomic {
            self.model.of_atomic(target)
        } else {
            target
        };
        let faults = self.model.faults(target, kind.2, kind.3);
        let as_expected = match faults[..] {
            [] => outcome.status == Ok(1),
            _ => faults.contains(&outcome.status),
        };
        assert!(
            as_expected,
            "{kind:x?} at {address:#x} + {displacement}: {:?}, expected {faults:x?}",
            outcome.status
        );
        outcome.status.is_ok()
    }
}

#[test]
fn every_access_at_every_edge_happens_whole_or_faults_at_the_first_byte_it_cannot_have() {
    let mut bench = Bench::new();
    let (mut happened, mut faulted) = (0, 0);
    for kind in kinds() {
        for edge in bench.model.edges() {
            for distance in [-8i64, -7, -5, -4, -3, -2, -1, 0, 1, 8] {
                let address = edge.wrapping_add_signed(distance);
                match bench.try_access(kind, address, 0) {
                    true => happened += 1,
                    false => faulted += 1,
                }
            }
        }
    }
    assert!(happened > 1000 && faulted > 1000, "{happened} {faulted}");
}

#[test]
fn displacements_and_upper_bits_of_any_size_lead_to_the_masked_address() {
    let seed = seed(3);
    let mut random = Fuzzer::new(seed);
    let mut bench = Bench::new();
    let (edges, kinds) = (bench.model.edges(), kinds());
    let displacements = [i16::MIN, -4097, -8, -1, 0, 1, 7, 4096, i16::MAX];
    for case in 0..1500 {
        let edge = edges[random.below(edges.len())];
        let target = edge.wrapping_add_signed(random.below(65) as i64 - 32);
        let upper = match random.below(4) {
            0 => !bench.model.mask(),
            1 => 1 << 63,
            2 => bench.model.mask() + 1,
            _ => random.number() & !bench.model.mask(),
        };
        let displacement = displacements[random.below(displacements.len())];
        let base = target.wrapping_add(upper).wrapping_sub(displacement as u64);
        let kind = kinds[random.below(kinds.len())];
        // Shown when the case fails.
        println!("WARREN_SEED={seed}, case {case}");
        bench.try_access(kind, base, displacement);
    }
}

#[test]
fn pointers_that_overflow_stay_in_the_cage_or_fault() {
    let mut bench = Bench::new();
    let addresses = [
        u64::MAX,
        u64::MAX - 7,
        1 << 63,
        (1 << 63) - 1,
        1 << 32,
        1 << 31,
    ];
    for address in addresses {
        for displacement in [i16::MIN, -8, -1, 0, 1, 8, i16::MAX] {
            for kind in kinds() {
                bench.try_access(kind, address, displacement);
            }
        }
    }
}

#[test]
fn the_stack_ends_where_it_ends() {
    let mut bench = Bench::new();
    // The distance is unknown to the validator, which refuses what it sees.
    let at = |distance: i32| {
        let slots = [mov(2, distance), copy(1, 10), slot(0x0f, 1, 2, 0, 0)];
        object(&[&slots[..], &[store(1, 0, 2), mov(0, 1), exit()]].concat())
    };
    let stack = 256 << 10;
    for (distance, expected) in [
        (-8, Ending::Returned),
        (-stack, Ending::Returned),
        (-stack - 1, Ending::StackOverflow),
        (-stack - 8, Ending::StackOverflow),
        (-stack - 65_528, Ending::StackOverflow),
        (-7, Ending::Fault),
        (0, Ending::Fault),
        (65_528, Ending::Fault),
    ] {
        let outcome = both(&mut bench.laboratory, &at(distance), &bench.request);
        assert_eq!(outcome.ending(), expected, "at r10 + {distance}");
    }
}

#[test]
fn references_beside_the_data_of_an_object_lead_back_to_it() {
    let mut bench = Bench::new();
    let secret = 0x0807_0605_0403_0201_u64;
    for section in [DataSection::ReadOnly, DataSection::Initialised] {
        for addend in [0, -8, -4096, 4096, 1 << 20, -(1 << 20), i32::MIN, i32::MAX] {
            let parts = Parts {
                slots: [
                    &[slot(0x18, 1, 0, 0, addend), 0][..],
                    &constant(2, i64::from(addend).cast_unsigned()),
                    &[slot(0x1f, 1, 2, 0, 0), load(0, 1, 8), exit()],
                ]
                .concat(),
                read_only: [[0; 8], secret.to_le_bytes()].concat(),
                initialised: [[0; 8], secret.to_le_bytes()].concat(),
                zeroed: 0,
                references: vec![(0, section)],
            };
            let outcome = both(&mut bench.laboratory, &parts.object(), &bench.request);
            assert_eq!(outcome.status, Ok(secret), "{section:?} {addend}");
        }
    }
}
