//! Whatever a program does, it ends in time, and nothing else does.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::super::cage::{Access, PAGE, Region};
use super::super::settle;
use super::assembler::*;
use super::*;

/// What a program may overrun its deadline by.
const OVERRUN_MAX: Duration = Duration::from_millis(20);

/// Calls itself for ever, with `stack_bytes` of stack each time.
fn recursion(engine: &dyn Engine, body: &[u64], stack_bytes: u16, cage: &Cage) -> Box<dyn Code> {
    let len = body.len() as i32;
    let code = code(&[
        &[call_local(1), exit()],
        body,
        &[call_local(-len - 1), exit()],
    ]);
    let functions = [0, 2].map(|first_slot| Frame {
        first_slot,
        stack_bytes,
    });
    let program = Linked {
        instructions: &|_| code.clone(),
        functions: &functions,
    };
    engine.compile(&program, cage).unwrap()
}

#[test]
fn endless_recursion_overflows_the_stack() {
    for engine in engines() {
        for stack_bytes in [0, 16, 512] {
            let mut cage = cage();
            let idle = recursion(engine, &[], stack_bytes, &cage);
            let busy = recursion(engine, &[store(10, -8, 1)], stack_bytes, &cage);
            for code in [idle, busy] {
                let end = code.run(&mut cage, [0, 0], &mut NoHelpers, soon());
                assert_eq!(end, Exit::StackOverflow, "{stack_bytes} bytes");
            }
        }
    }
}

#[test]
fn endless_recursion_that_calls_helpers_overflows_the_stack() {
    let mut cage = cage();
    let code = recursion(&Compiler, &[call(1)], 0, &cage);
    let mut calls = 0;
    let mut helpers = With(|_: &mut Cage, _: u32, _: [u64; 5]| {
        calls += 1;
        // Helpers have room, however deep the program is.
        let room = std::hint::black_box([1u8; 64 << 10]);
        Called::Value(u64::from(room[calls % room.len()]))
    });
    let end = code.run(&mut cage, [0, 0], &mut helpers, soon());
    assert_eq!(end, Exit::StackOverflow);
    assert!(calls > 1000, "{calls}");
}

/// Runs with a deadline and tells by how much it was overrun.
fn overrun(
    code: &dyn Code,
    cage: &mut Cage,
    helpers: &mut dyn Helpers,
    time: Duration,
) -> Duration {
    let start = Instant::now();
    let end = code.run(cage, [0, 0], helpers, Deadline::after(time));
    let ran = start.elapsed();
    settle();
    assert_eq!(end, Exit::TimedOut);
    assert!(ran >= time, "ended after {ran:?} of {time:?}");
    ran - time
}

/// Endless programs: a loop, and a loop of helper calls.
fn endless() -> [Vec<u64>; 2] {
    [
        vec![add(3, 1), jump(-2), exit()],
        vec![call(1), jump(-2), exit()],
    ]
}

/// Whether this process may give threads a real-time priority; without that, load delays them.
fn may_lend_priorities() -> bool {
    let tried = std::thread::spawn(|| {
        let priority = libc::sched_param { sched_priority: 1 };
        // SAFETY: the structure is valid; the thread is this one, which ends right away.
        unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &priority) }
    });
    tried.join().unwrap() == 0
}

#[test]
fn endless_programs_end_at_their_deadline_at_any_load() {
    let stop = AtomicBool::new(false);
    let load = if may_lend_priorities() { 16 } else { 0 };
    std::thread::scope(|scope| {
        for _ in 0..load {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let workers: Vec<_> = (0..4u64)
            .map(|worker| scope.spawn(move || time_out_for(worker)))
            .collect();
        let worst = workers.into_iter().map(|worker| worker.join().unwrap());
        let worst = worst.max().unwrap();
        stop.store(true, Ordering::Relaxed);
        assert!(worst < OVERRUN_MAX, "{worst:?}");
    });
}

/// Lets endless programs time out; the most that a deadline was overrun by.
fn time_out_for(worker: u64) -> Duration {
    let mut worst = Duration::ZERO;
    let mut calls = 0u64;
    let mut helpers = With(|_: &mut Cage, _: u32, _: [u64; 5]| {
        calls += 1;
        Called::Value(calls)
    });
    for engine in engines() {
        for code in endless() {
            let mut cage = cage();
            let code = compile(engine, &code, &cage);
            for round in 0..5 {
                let time = Duration::from_millis(5 + 7 * round + worker);
                let over = overrun(&*code, &mut cage, &mut helpers, time);
                worst = worst.max(over);
            }
        }
    }
    worst
}

#[test]
fn a_deadline_in_a_helper_ends_the_program_when_it_returns() {
    for engine in engines() {
        let mut cage = cage();
        let code = compile(engine, &[call(1), mov(0, 1), exit()], &cage);
        let mut finished = 0;
        let mut helpers = With(|_: &mut Cage, _: u32, _: [u64; 5]| {
            std::thread::sleep(Duration::from_millis(300));
            finished += 1;
            Called::Value(0)
        });
        // Long enough for the program to reach its helper on a busy machine.
        let time = Duration::from_millis(100);
        let end = code.run(&mut cage, [0, 0], &mut helpers, Deadline::after(time));
        assert_eq!(end, Exit::TimedOut);
        assert_eq!(finished, 1);
    }
}

#[test]
fn what_a_program_waits_for_is_no_processor_time() {
    let limit = Duration::from_millis(50);
    let deadline = || Deadline::after(Duration::from_secs(60)).with_processor_time(limit);
    for engine in engines() {
        let mut cage = cage();
        let code = compile(engine, &[call(1), mov(0, 1), exit()], &cage);
        let mut helpers = With(|_: &mut Cage, _: u32, _: [u64; 5]| {
            std::thread::sleep(4 * limit);
            Called::Value(0)
        });
        let end = code.run(&mut cage, [0, 0], &mut helpers, deadline());
        assert_eq!(end, Exit::Returned(1));
        let [endless, _] = endless();
        let endless = compile(engine, &endless, &cage);
        let begun = processor_time();
        let end = endless.run(&mut cage, [0, 0], &mut NoHelpers, deadline());
        assert_eq!(end, Exit::TimedOut);
        let used = processor_time() - begun;
        let range = limit..limit + OVERRUN_MAX;
        assert!(range.contains(&used), "{used:?} of {limit:?}");
        settle();
    }
}

/// What this thread has used.
fn processor_time() -> Duration {
    // SAFETY: a zeroed `timespec` is a valid one, and the call only writes to it.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time);
        time
    };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[test]
fn a_worker_goes_on_after_every_ending() {
    for engine in engines() {
        let mut cage = cage();
        let [endless, _] = endless();
        let endless = compile(engine, &endless, &cage);
        let faulty = compile(engine, &[load(0, 3, 0), exit()], &cage);
        let good = compile(engine, &[mov(0, 3), exit()], &cage);
        for _ in 0..20 {
            let deadline = Deadline::after(Duration::from_micros(200));
            let end = endless.run(&mut cage, [0, 0], &mut NoHelpers, deadline);
            assert_eq!(end, Exit::TimedOut);
            let end = faulty.run(&mut cage, [0, 0], &mut NoHelpers, soon());
            assert!(matches!(end, Exit::Fault(_)), "{end:?}");
            let end = good.run(&mut cage, [0, 0], &mut NoHelpers, soon());
            assert_eq!(end, Exit::Returned(3));
        }
        let end = endless.run(
            &mut cage,
            [0, 0],
            &mut NoHelpers,
            Deadline::after(Duration::ZERO),
        );
        assert_eq!(end, Exit::TimedOut);
        settle();
        // SAFETY: no arguments but the thread itself.
        let policy = unsafe { libc::sched_getscheduler(0) };
        assert_eq!(policy, libc::SCHED_OTHER, "the priority was only lent");
    }
}

#[test]
fn programs_end_on_threads_that_have_blocked_all_signals() {
    let blocked = std::thread::spawn(|| {
        // SAFETY: the set is initialised by the first call; only this thread is affected.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
        }
        let mut cage = cage();
        let null = [load(0, 3, 0), exit()];
        assert_eq!(run(&Compiler, &null, &mut cage, [0, 0]), Exit::Fault(0));
        let [endless, _] = endless();
        let endless = compile(&Compiler, &endless, &cage);
        let deadline = Deadline::after(Duration::from_millis(1));
        let end = endless.run(&mut cage, [0, 0], &mut NoHelpers, deadline);
        assert_eq!(end, Exit::TimedOut);
    });
    blocked.join().unwrap();
}

#[test]
fn a_helper_can_end_the_program_and_so_does_its_panic() {
    for engine in engines() {
        let mut cage = cage();
        let code = compile(engine, &[call(1), mov(0, 1), exit()], &cage);
        let mut abort = With(|_: &mut Cage, _: u32, _: [u64; 5]| Called::Abort);
        let end = code.run(&mut cage, [0, 0], &mut abort, soon());
        assert_eq!(end, Exit::Aborted);
        struct Dropped<'a>(&'a mut u32);
        impl Drop for Dropped<'_> {
            fn drop(&mut self) {
                *self.0 += 1;
            }
        }
        let mut drops = 0;
        let mut panics = With(|_: &mut Cage, _: u32, _: [u64; 5]| {
            let _dropped = Dropped(&mut drops);
            std::panic::resume_unwind(Box::new("as a bug would"));
        });
        let end = code.run(&mut cage, [0, 0], &mut panics, soon());
        assert_eq!(end, Exit::Aborted);
        assert_eq!(drops, 1);
    }
}

/// A file of two pages of 7s.
fn file() -> File {
    let file = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[7; 2 * PAGE as usize], 0).unwrap();
    file
}

#[test]
fn a_file_cut_off_under_its_mapping_ends_the_program() {
    for engine in engines() {
        let file = file();
        let mut cage = cage();
        cage.map_window(0, file.as_fd(), 0, 2 * PAGE, false)
            .unwrap();
        let window = cage.address(Region::Window);
        let code = code(&[&lddw(1, window), &[load(0, 1, 4096), exit()]]);
        let code = compile(engine, &code, &cage);
        let end = code.run(&mut cage, [0, 0], &mut NoHelpers, soon());
        assert_eq!(end, Exit::Returned(0x0707_0707_0707_0707));
        file.set_len(PAGE).unwrap();
        let end = code.run(&mut cage, [0, 0], &mut NoHelpers, soon());
        assert_eq!(end, Exit::Fault(window + PAGE - cage.base()));
        file.set_len(0).unwrap();
        let mut calls = 0;
        let mut helpers = With(|cage: &mut Cage, _: u32, _: [u64; 5]| {
            let at = cage.check(window, 8, Access::Read).unwrap();
            assert!(cage.read_bytes(at, &mut [0; 8]).is_err());
            // Such as a checksum over a mapped block reads it.
            // SAFETY: the pages are mapped, and replaced by zeros when that fails.
            let byte = unsafe { (window as *const u8).read_volatile() };
            assert_eq!(byte, 0);
            calls += 1;
            Called::Value(0)
        });
        let code = compile(engine, &[call(1), exit()], &cage);
        let end = code.run(&mut cage, [0, 0], &mut helpers, soon());
        assert_eq!(end, Exit::Fault(window - cage.base()));
        assert_eq!(calls, 1);
    }
}

#[test]
fn a_look_at_blocks_tells_of_those_that_are_not_there() {
    let file = file();
    let mut cage = cage();
    let window = cage.address(Region::Window);
    let both = cage.check(window, 2 * PAGE, Access::Read).unwrap();
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    let second = window + PAGE - cage.base();
    cage.map_window(0, file.as_fd(), 0, PAGE, false).unwrap();
    assert_eq!(cage.look(both, sum).unwrap_err().0, second);
    cage.map_window(0, file.as_fd(), 0, 2 * PAGE, false)
        .unwrap();
    assert_eq!(cage.look(both, sum), Ok(7 * 2 * PAGE));
    file.set_len(PAGE).unwrap();
    assert_eq!(cage.look(both, sum).unwrap_err().0, second);
    let heap = cage
        .check(cage.address(Region::Heap), 8, Access::Read)
        .unwrap();
    assert!(cage.look(heap, sum).is_err());
}

#[test]
fn thousands_of_runs_in_many_threads_do_not_meet() {
    std::thread::scope(|scope| {
        for worker in 0..8u64 {
            scope.spawn(move || {
                let mut cage = cage();
                let heap = cage.address(Region::Heap);
                let start = code(&[&lddw(6, heap), &[load(0, 6, 0), add_register(0, 1)]]);
                let good = code(&[&start, &[store(6, 0, 0), call(1), exit()]]);
                let bad = code(&[&start, &[mov(1, 0), store(1, 0, 0), exit()]]);
                let (good, bad) = (
                    compile(&Compiler, &good, &cage),
                    compile(&Compiler, &bad, &cage),
                );
                let mut helpers = With(|_: &mut Cage, _: u32, _: [u64; 5]| Called::Value(worker));
                let mut sum = 0u64;
                for round in 0..2000u64 {
                    let end = good.run(&mut cage, [round, 0], &mut helpers, soon());
                    assert_eq!(end, Exit::Returned(worker));
                    sum += round;
                    let end = bad.run(&mut cage, [0, 0], &mut helpers, soon());
                    assert_eq!(end, Exit::Fault(0));
                }
                let at = cage.check(heap, 8, Access::Read).unwrap();
                assert_eq!(cage.bytes(at).unwrap(), sum.to_le_bytes());
            });
        }
    });
}

#[test]
fn faults_elsewhere_go_to_who_handled_them_before() {
    // A process of its own: it is to die of its fault, after a run has installed the handlers.
    const CHILD: &str = "WARREN_TEST_FAULT_ELSEWHERE";
    if std::env::var_os(CHILD).is_some() {
        let end = run(&Compiler, &[mov(0, 1), exit()], &mut cage(), [0, 0]);
        assert_eq!(end, Exit::Returned(1));
        // SAFETY: none; that it faults is the point of the test.
        unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(1) };
    }
    let name = "engine::tests::endings::faults_elsewhere_go_to_who_handled_them_before";
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let signal = std::os::unix::process::ExitStatusExt::signal(&child.status);
    assert_eq!(signal, Some(libc::SIGSEGV), "{child:?}");
}
