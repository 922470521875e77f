//! Programs touch their cage only, and in there what is theirs only.

use std::ops::Range;
use std::os::fd::AsFd;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::cage::{Access, CageError, DataImage, PAGE, REACH, Region};
use super::assembler::*;
use super::*;

/// Static data with something in every part.
fn image() -> DataImage<'static> {
    DataImage {
        read_only: &[1; 100],
        initialised: &[2; 5000],
        zeroed: 300,
    }
}

fn fault(cage: &Cage, address: u64) -> Exit {
    Exit::Fault(address - cage.base())
}

#[test]
fn null_is_not_there() {
    for engine in engines() {
        for offset in [0, 8, 4096, 32760] {
            let mut cage = cage();
            let load = [load(0, 1, offset), exit()];
            let end = run(engine, &load, &mut cage, [0, 0]);
            assert_eq!(end, Exit::Fault(offset as u64));
        }
    }
}

#[test]
fn read_only_regions_are_read_but_not_written() {
    for engine in engines() {
        let mut cage = cage();
        cage.place_data(&image()).unwrap();
        cage.write_call(0, &[3; 8]).unwrap();
        let filled: Result<(), ()> = cage
            .fill_window(0, PAGE, |page| {
                page.fill(4);
                Ok(())
            })
            .unwrap();
        filled.unwrap();
        for (region, byte) in [(Region::Data, 1), (Region::Call, 3), (Region::Window, 4)] {
            let at = cage.address(region);
            let read = code(&[&lddw(1, at), &[load(0, 1, 0), exit()]]);
            let end = run(engine, &read, &mut cage, [0, 0]);
            assert_eq!(end, Exit::Returned(u64::from_le_bytes([byte; 8])));
            let write = code(&[&lddw(1, at), &[store(1, 0, 1), exit()]]);
            let end = run(engine, &write, &mut cage, [0, 0]);
            assert_eq!(end, fault(&cage, at));
            assert!(cage.check(at, 8, Access::Read).is_some());
            assert_eq!(cage.check(at, 1, Access::Write), None);
            let end = run(engine, &read, &mut cage, [0, 0]);
            assert_eq!(end, Exit::Returned(u64::from_le_bytes([byte; 8])));
        }
    }
}

#[test]
fn static_data_is_as_linked_at_every_start() {
    for engine in engines() {
        let mut cage = cage();
        cage.place_data(&image()).unwrap();
        let data = cage.address(Region::Data) + PAGE;
        let code = code(&[
            &lddw(1, data + 4992),
            // The last of .data, and the first of .bss.
            &[
                load(0, 1, 0),
                load(2, 1, 8),
                slot(0x67, 2, 0, 0, 8),
                or_register(0, 2),
            ],
            &[mov(3, -1), store(1, 0, 3), store(1, 8, 3), exit()],
        ]);
        for _ in 0..3 {
            let end = run(engine, &code, &mut cage, [0, 0]);
            assert_eq!(end, Exit::Returned(0x0202_0202_0202_0202));
            cage.reset_data(&image()).unwrap();
        }
    }
}

#[test]
fn prepared_programs_run_in_every_cage_with_its_static_data() {
    let functions = [Frame {
        first_slot: 0,
        stack_bytes: 0,
    }];
    // The last of .data, and what .rodata starts with, through constants of their own.
    let instructions = |data: u64| {
        let (first, last) = (lddw(1, data), lddw(2, data + PAGE + 4992));
        code(&[
            &first,
            &last,
            &[load(0, 1, 0), load(2, 2, 0), add_register(0, 2), exit()],
        ])
    };
    let program = Linked {
        instructions: &instructions,
        functions: &functions,
    };
    for engine in engines() {
        let mut cages = [cage(), cage(), cage()];
        let prepared = engine.prepare(&program, cages[0].layout()).unwrap();
        for cage in &mut cages {
            cage.place_data(&image()).unwrap();
            let code = prepared.bind(cage).unwrap();
            let end = code.run(cage, [0, 0], &mut NoHelpers, soon());
            assert_eq!(end, Exit::Returned(0x0303_0303_0303_0303));
        }
        let other = CageConfig {
            heap: 2 << 20,
            ..small()
        };
        assert!(prepared.bind(&Cage::new(&other).unwrap()).is_err());
    }
}

/// Compilers refer to the element before the first one, or far behind the last, and add an index.
#[test]
fn references_beside_the_static_data_are_relocated_too() {
    const FAR: u64 = 1 << 31;
    let instructions = |data: u64| {
        code(&[
            &lddw(1, data.wrapping_sub(8)),
            &[load(0, 1, 16)],
            &lddw(1, data.wrapping_add(FAR)),
            &lddw(2, FAR),
            &[slot(0x1f, 1, 2, 0, 0), load(2, 1, 8), add_register(0, 2)],
            &[exit()],
        ])
    };
    let program = Linked {
        instructions: &instructions,
        functions: &[],
    };
    let number = 0x0123_4567u64;
    let data = [[0; 8], number.to_le_bytes()].concat();
    let image = DataImage {
        read_only: &data,
        initialised: &[],
        zeroed: 0,
    };
    for engine in engines() {
        let mut cage = cage();
        cage.place_data(&image).unwrap();
        let prepared = engine.prepare(&program, cage.layout()).unwrap();
        let bound = prepared.bind(&cage).unwrap();
        let end = bound.run(&mut cage, [0, 0], &mut NoHelpers, soon());
        assert_eq!(end, Exit::Returned(2 * number));
    }
}

#[test]
fn helpers_take_pointers_as_compiled_code_does() {
    let mut cage = cage();
    let heap = cage.address(Region::Heap);
    let random = &mut ChaCha8Rng::seed_from_u64(5);
    for _ in 0..50 {
        let offset = random.random_range(0..1 << 18) * 8;
        let alias = (heap + offset).wrapping_add(REACH.wrapping_mul(random.random()));
        let code = code(&[&lddw(1, alias), &[mov(2, 77), store(1, 0, 2), exit()]]);
        let end = run(&Compiler, &code, &mut cage, [0, 0]);
        assert_eq!(run(&Interpreter, &code, &mut cage, [0, 0]), end);
        let checked = cage.check(alias, 8, Access::Write);
        let Some(at) = checked else {
            assert!(matches!(end, Exit::Fault(_)), "{alias:#x}: {end:?}");
            continue;
        };
        assert!(matches!(end, Exit::Returned(_)), "{alias:#x}: {end:?}");
        assert_eq!(cage.bytes(at).unwrap(), 77u64.to_le_bytes());
        assert_eq!(at.offset(), heap - cage.base() + offset);
    }
}

#[test]
fn ranges_are_wholly_in_one_region() {
    let mut cage = cage();
    cage.place_data(&image()).unwrap();
    for region in Region::ALL {
        let (start, len) = (cage.address(region), cage.accessible(region));
        assert!(cage.check(start, len, Access::Read).is_some());
        assert!(cage.check(start + len - 1, 1, Access::Read).is_some());
        for (at, len) in [
            (start - 1, 1),
            (start - 1, 2),
            (start + len, 1),
            (start + len - 1, 2),
            (start, len + 1),
            (start, u64::MAX),
            (start + 1, u64::MAX),
        ] {
            assert_eq!(
                cage.check(at, len, Access::Read),
                None,
                "{region:?} {at:#x} {len:#x}"
            );
        }
    }
    assert!(cage.check(0, 0, Access::Write).is_some());
    let data = cage.address(Region::Data);
    assert_eq!(cage.check(data + PAGE - 1, 2, Access::Write), None);
    assert!(cage.check(data + PAGE, 2, Access::Write).is_some());
}

#[test]
fn the_host_is_told_of_memory_that_is_not_there() {
    let mut cage = cage();
    let window = cage
        .check(cage.address(Region::Window), 8, Access::Read)
        .unwrap();
    assert!(cage.read_bytes(window, &mut [0; 8]).is_err());
    assert!(cage.bytes(window).is_none());
    let heap = cage
        .check(cage.address(Region::Heap), 8, Access::Write)
        .unwrap();
    assert!(cage.copy(window, heap).is_err());
    assert!(cage.copy(heap, heap).is_err());
    let call = cage
        .check(cage.address(Region::Call), 8, Access::Read)
        .unwrap();
    assert!(cage.write_bytes(call, &[1; 8]).is_err());
    assert!(cage.bytes_mut(call).is_none());
    cage.copy(call, heap).unwrap();
    let file = tempfile::tempfile().unwrap();
    for (at, len) in [(1, PAGE), (0, 1), (u64::MAX - 4095, PAGE), (0, 1 << 40)] {
        let mapped = cage.map_window(at, file.as_fd(), 0, len, false);
        assert!(matches!(mapped, Err(CageError::Range { .. })), "{at} {len}");
    }
    let huge = DataImage {
        zeroed: u64::MAX,
        ..image()
    };
    assert!(cage.place_data(&huge).is_err());
    assert!(cage.write_call(u64::MAX, &[1]).is_err());
}

#[test]
fn texts_end_at_their_zero_byte_or_their_region() {
    let mut cage = cage();
    let heap = cage.address(Region::Heap);
    let at = cage.check(heap, 6, Access::Write).unwrap();
    cage.write_bytes(at, b"hello\0").unwrap();
    assert_eq!(cage.text(heap, 100).unwrap(), b"hello");
    assert_eq!(cage.text(heap, 4).unwrap(), b"hell");
    let end = heap + cage.accessible(Region::Heap);
    let at = cage.check(end - 2, 2, Access::Write).unwrap();
    cage.write_bytes(at, b"ok").unwrap();
    assert_eq!(cage.text(end - 2, 100).unwrap(), b"ok");
    assert_eq!(cage.text(end, 100), None);
    cage.limit(Region::Heap, PAGE).unwrap();
    assert_eq!(cage.text(heap + PAGE, 100), None);
    let filled: Result<(), ()> = cage
        .fill_window(0, PAGE, |page| {
            page[4090..].copy_from_slice(b"abcde\0");
            Ok(())
        })
        .unwrap();
    filled.unwrap();
    let window = cage.address(Region::Window);
    assert_eq!(cage.text(window + 4090, 100_000).unwrap(), b"abcde");
    assert_eq!(cage.text(window + PAGE, 10), None);
}

#[test]
fn heap_and_output_are_as_large_as_they_are_let_be() {
    for region in [Region::Heap, Region::Output] {
        let mut cage = cage();
        let start = cage.address(region);
        let touch = |cage: &mut Cage, at: u64| {
            let code = code(&[&lddw(1, at), &[load(0, 1, 0), store(1, 0, 1), exit()]]);
            run(&Compiler, &code, cage, [0, 0])
        };
        assert_eq!(touch(&mut cage, start + PAGE), Exit::Returned(0));
        cage.limit(region, 1).unwrap();
        assert_eq!(cage.accessible(region), PAGE);
        assert_eq!(touch(&mut cage, start + PAGE), fault(&cage, start + PAGE));
        assert_eq!(touch(&mut cage, start), Exit::Returned(0));
        assert_eq!(cage.check(start, PAGE + 1, Access::Read), None);
        cage.limit(region, 2 * PAGE).unwrap();
        assert_eq!(touch(&mut cage, start + PAGE), Exit::Returned(0));
        assert!(cage.limit(region, 1 << 40).is_err());
        cage.limit(region, 0).unwrap();
        assert_eq!(touch(&mut cage, start), fault(&cage, start));
        cage.wipe().unwrap();
    }
}

/// Every byte of a cage that can be read.
fn whole(cage: &Cage) -> Vec<u8> {
    let mut all = vec![];
    for region in Region::ALL {
        for at in (0..cage.accessible(region)).step_by(PAGE as usize) {
            let page = cage
                .check(cage.address(region) + at, PAGE, Access::Read)
                .unwrap();
            let mut bytes = [0; PAGE as usize];
            if cage.read_bytes(page, &mut bytes).is_ok() {
                all.extend(bytes);
            }
        }
    }
    all
}

#[test]
fn a_wiped_cage_holds_nothing() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(PAGE).unwrap();
    let mut cage = cage();
    let fresh = whole(&cage);
    assert!(fresh.iter().all(|byte| *byte == 0));
    for call_bytes in [8, 64 << 10] {
        cage.place_data(&image()).unwrap();
        cage.write_call(0, &vec![9; call_bytes]).unwrap();
        cage.map_window(4 * PAGE, file.as_fd(), 0, PAGE, true)
            .unwrap();
        let filled: Result<(), ()> = cage
            .fill_window(8 * PAGE, PAGE, |page| {
                page.fill(8);
                Ok(())
            })
            .unwrap();
        filled.unwrap();
        for region in [Region::Stack, Region::Heap, Region::Output] {
            let at = cage.address(region) + cage.accessible(region) - 8;
            let code = code(&[&lddw(1, at), &[store(1, 0, 1), exit()]]);
            assert_eq!(run(&Compiler, &code, &mut cage, [0, 0]), Exit::Returned(0));
        }
        assert_ne!(whole(&cage), fresh);
        cage.wipe().unwrap();
        assert!(whole(&cage) == fresh);
    }
}

#[test]
fn what_fails_to_be_filled_in_is_not_there() {
    let mut cage = cage();
    let window = cage
        .check(cage.address(Region::Window), 8, Access::Read)
        .unwrap();
    let failed = cage.fill_window(0, PAGE, |_| Err("no blocks")).unwrap();
    assert_eq!(failed, Err("no blocks"));
    assert!(cage.read_bytes(window, &mut [0; 8]).is_err());
    let panic = std::panic::AssertUnwindSafe(|| {
        let _: Result<Result<(), ()>, _> =
            cage.fill_window(0, PAGE, |_| std::panic::resume_unwind(Box::new(())));
    });
    assert!(std::panic::catch_unwind(panic).is_err());
    assert!(cage.read_bytes(window, &mut [0; 8]).is_err());
}

#[test]
fn cages_are_counted() {
    // Others come and go in other tests: only that ours count is known.
    let cages: Vec<Cage> = (0..50).map(|_| cage()).collect();
    assert!(Cage::live() >= cages.len());
}

#[test]
fn regions_that_do_not_fit_are_refused() {
    let config = CageConfig {
        heap: 2 << 30,
        ..small()
    };
    assert!(matches!(Cage::new(&config), Err(CageError::TooLarge)));
    let config = CageConfig {
        heap: u64::MAX,
        ..small()
    };
    assert!(matches!(Cage::new(&config), Err(CageError::TooLarge)));
    let config = CageConfig {
        heap: 1 << 30,
        ..CageConfig::default()
    };
    let mut cage = Cage::new(&config).unwrap();
    assert_eq!(cage.layout().size(), 2 << 30);
    let last = cage.address(Region::Heap) + (1 << 30) - 8;
    let code = code(&[
        &lddw(1, last),
        &[mov(2, 3), store(1, 0, 2), load(0, 1, 0), exit()],
    ]);
    assert_eq!(run(&Compiler, &code, &mut cage, [0, 0]), Exit::Returned(3));
}

/// Pages of a pattern right before and right after a range of addresses.
struct Canaries(Vec<Range<u64>>);

impl Canaries {
    const LEN: u64 = 16 * PAGE;

    fn around(range: Range<u64>) -> Canaries {
        let places = [range.start - Canaries::LEN, range.end];
        let mut mapped = vec![];
        for place in places {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let len = Canaries::LEN as usize;
            // SAFETY: nothing that exists is replaced.
            let at = unsafe { libc::mmap(place as *mut _, len, access, flags, -1, 0) };
            if at as u64 == place {
                // SAFETY: just mapped, ours.
                unsafe { (at as *mut u8).write_bytes(0x5a, len) };
                mapped.push(place..place + Canaries::LEN);
            }
        }
        Canaries(mapped)
    }

    fn assert_alive(&self, seed: u64) {
        for range in &self.0 {
            // SAFETY: mapped until dropped, and written by nobody who should.
            let bytes = unsafe {
                std::slice::from_raw_parts(range.start as *const u8, Canaries::LEN as usize)
            };
            assert!(bytes.iter().all(|byte| *byte == 0x5a), "seed {seed}");
        }
    }
}

impl Drop for Canaries {
    fn drop(&mut self) {
        for range in &self.0 {
            // SAFETY: mapped by `around`, used no more.
            unsafe { libc::munmap(range.start as *mut _, Canaries::LEN as usize) };
        }
    }
}

/// Stores and loads at wild addresses, most of them near the edges of the cage or of a region.
fn wild_program(random: &mut ChaCha8Rng, cage: &Cage) -> Vec<u64> {
    let (base, size) = (cage.base(), cage.layout().size());
    let region = Region::ALL[random.random_range(0..6)];
    let edges = [
        base,
        base + size,
        base + REACH,
        0,
        size,
        cage.address(region),
        cage.address(region) + cage.accessible(region),
    ];
    let near = edges[random.random_range(0..edges.len())]
        .wrapping_add_signed(random.random_range(-70_000..70_000));
    let at = if random.random_bool(0.8) {
        near
    } else {
        random.random()
    };
    let offset = random.random();
    let kinds = [
        0x61u8, 0x69, 0x71, 0x79, 0x62, 0x6a, 0x72, 0x7a, 0x63, 0x6b, 0x73, 0x7b, 0xc3, 0xdb,
    ];
    let kind = kinds[random.random_range(0..kinds.len())];
    let (dst, src) = if kind & 7 == 1 { (2, 1) } else { (1, 2) };
    let atomic = kind & 0xc0 == 0xc0;
    let imm = if atomic {
        [0x00, 0x01, 0xe1, 0xf1][random.random_range(0..4)]
    } else {
        -1
    };
    let imm = if kind & 7 == 1 || (kind & 7 == 3 && !atomic) {
        0
    } else {
        imm
    };
    let src = if kind & 7 == 2 { 0 } else { src };
    code(&[
        &lddw(1, at),
        &[
            mov(2, -1),
            slot(kind, dst, src, offset, imm),
            mov(0, 1),
            exit(),
        ],
    ])
}

#[test]
fn wild_accesses_change_nothing_outside_of_the_cage_and_of_what_is_writable() {
    let mut cage = cage();
    cage.place_data(&image()).unwrap();
    cage.write_call(0, &[9; 9000]).unwrap();
    let guard = 64 << 10;
    let outside = cage.base() - guard..cage.base() + REACH + guard;
    let canaries = Canaries::around(outside);
    let read_only = |cage: &Cage| {
        let spans = [(Region::Data, PAGE), (Region::Call, 64 << 10)];
        spans.map(|(region, len)| {
            let at = cage.check(cage.address(region), len, Access::Read).unwrap();
            cage.bytes(at).unwrap().to_vec()
        })
    };
    let before = read_only(&cage);
    let (mut faults, mut returns) = (0, 0);
    for seed in 0..super::agreement::cases(3000) {
        let random = &mut ChaCha8Rng::seed_from_u64(seed);
        let code = wild_program(random, &cage);
        let interpreted = run(&Interpreter, &code, &mut cage, [0, 0]);
        let end = run(&Compiler, &code, &mut cage, [0, 0]);
        assert_eq!(end, interpreted, "seed {seed}");
        match end {
            Exit::Returned(1) => returns += 1,
            Exit::Fault(offset) => {
                assert!(offset <= REACH + 8, "seed {seed}: {offset:#x}");
                faults += 1;
            }
            Exit::StackOverflow => faults += 1,
            other => panic!("seed {seed}: {other:?}"),
        }
        canaries.assert_alive(seed);
    }
    assert!(read_only(&cage) == before);
    assert!(
        faults > 100 && returns > 100,
        "{faults} faults, {returns} returns"
    );
}
