//! Hostile objects and instruction streams through the whole device: nothing they do ends more
//! than their own execution, and compiled code does what the interpreter does.

use std::time::Duration;

use csd_vm::program::fuzz::{Fuzzer, cases, seed};
use csd_vm::request::{Failure, Request};
use csd_vm::{Activation, Device, DeviceConfig, Finished};

use crate::common::{
    PASSTHROUGH, Shape, Snapshot, Writer, both_engines, compile, mem, pattern, read, warren,
};

fn originals() -> Vec<Vec<u8>> {
    vec![
        warren(PASSTHROUGH),
        warren(
            "static u32 bins[256]; static const char name[] = \"bins\";
             const u8 *p;
             s64 n = warren_map(0, r->size, (const void **)&p);
             for (s64 i = 0; i < n; i++) bins[p[i]]++;
             warren_emit(name, 4); warren_emit(bins, 1024);
             return 0;",
        ),
        compile(
            "#include <opencsd.h>
             int table[4] = {1, 2, 3, 4};
             __attribute__((noinline)) int pick(int i) { return i < 2 ? table[i] : pick(i - 2); }
             int main() {
                 uint64_t size, *call; uint8_t *heap;
                 bpf_get_mem_info((void **)&heap, &size);
                 bpf_get_call_info((void **)&call);
                 uint64_t *lba = call;
                 find_data_lba(&lba, 0);
                 uint64_t z = bpf_get_zone_size();
                 bpf_read(*lba / z, *lba % z, 0, 4096, heap);
                 heap[0] = pick(heap[1] & 15);
                 bpf_return_data(heap, 4096);
                 return 0;
             }",
        ),
    ]
}

/// The devices of both engines with the same file on each.
fn devices(data: &[u8]) -> Vec<(std::sync::Arc<Device>, std::sync::Arc<Snapshot>)> {
    let device = |config: DeviceConfig| {
        let storage = mem();
        let file = Writer::new(&storage).write(data, Shape::Fragmented);
        (Device::new(storage, config).expect("device"), file)
    };
    both_engines().into_iter().map(device).collect()
}

fn request(file: &std::sync::Arc<Snapshot>) -> Request {
    let mut request = read(file, 0, file.size);
    request.limits.time = Duration::from_millis(20);
    request.limits.output = 1 << 20;
    request.limits.heap = 1 << 20;
    request
}

type Outcome = Result<(u64, Vec<u8>, Vec<u8>), Failure>;

/// What two runs must agree on. How a run that went wrong was caught may differ: one engine finds
/// the access, the other its consequence.
fn outcome(device: &Device, activation: &Activation, request: Request) -> Option<Outcome> {
    match device.execute(activation, request) {
        Ok(Finished {
            value,
            output,
            appended,
            ..
        }) => Some(Ok((value, output, appended))),
        Err((Failure::TimedOut(_), _)) => None,
        Err((Failure::Internal(reason), _)) => panic!("the device failed: {reason}"),
        Err((failure, _)) => Some(Err(failure)),
    }
}

#[test]
fn mutated_objects_are_refused_or_run_alike_and_harm_nobody() {
    let seed = seed(0x0bad_cafe);
    let mut fuzzer = Fuzzer::new(seed);
    let originals = originals();
    let data = pattern(20_000);
    let devices = devices(&data);
    let healthy = warren(PASSTHROUGH);
    let mut ran = 0;
    for case in 0..cases(1500) {
        let object = fuzzer.mutate(&originals[case as usize % originals.len()]);
        if case == 176 {
            std::fs::write("/tmp/dev176.o", &object).unwrap();
        }
        let mut outcomes = Vec::new();
        for (device, file) in &devices {
            let Ok(program) = device.load(&object) else {
                continue;
            };
            let activation = device.activate(&program);
            outcomes.push(outcome(device, &activation, request(file)));
        }
        if let [Some(compiled), Some(interpreted)] = &outcomes[..] {
            ran += 1;
            assert!(
                compiled == interpreted || is_address(compiled, interpreted),
                "seed {seed}, case {case}: {compiled:?} compiled, {interpreted:?} interpreted"
            );
        }
    }
    assert!(ran > 0, "no mutated object ran");
    for (device, file) in &devices {
        let activation = device.activate(&device.load(&healthy).expect("loads"));
        let finished = device
            .execute(&activation, read(file, 0, 20_000))
            .expect("runs");
        assert!(finished.output == data);
    }
}

/// Whether what differs may be an address, which no two cages have in common.
fn is_address(one: &Outcome, other: &Outcome) -> bool {
    let address = |value: u64| value >= 1 << 32;
    match (one, other) {
        (Err(_), Err(_)) => true,
        (Ok((a, x, y)), Ok((b, u, v))) => {
            let values = a == b || (address(*a) && address(*b));
            values && x.len() == u.len() && y.len() == v.len()
        }
        _ => false,
    }
}
