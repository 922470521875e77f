//! Hostile objects through the whole device, queue and pool of cages included: nothing they do ends
//! more than their own execution. That both engines do the same with them is for `tests/fuzz`.

use std::sync::Arc;
use std::time::Duration;

use csd_vm::program::fuzz::{Fuzzer, cases, seed};
use csd_vm::request::{Failure, Request};
use csd_vm::{Device, DeviceConfig};

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
fn devices(data: &[u8]) -> Vec<(Arc<Device>, Arc<Snapshot>)> {
    let device = |config: DeviceConfig| {
        let storage = mem();
        let file = Writer::new(&storage).write(data, Shape::Fragmented);
        (Device::new(storage, config).expect("device"), file)
    };
    both_engines().into_iter().map(device).collect()
}

/// Time for kernels that may never end, and for those that do, at any load.
const HOSTILE: Duration = Duration::from_millis(20);
const HEALTHY: Duration = Duration::from_secs(20);

fn request(file: &Arc<Snapshot>, time: Duration) -> Request {
    let mut request = read(file, 0, file.size);
    request.limits.time = time;
    request.limits.output = 1 << 20;
    request.limits.heap = 1 << 20;
    request
}

/// Runs an object, if it is accepted; the device itself must not fail. What the kernel did is
/// none for one that was refused or ran out of time.
fn run(
    device: &Device,
    file: &Arc<Snapshot>,
    object: &[u8],
    time: Duration,
) -> Option<(u64, Vec<u8>)> {
    let program = device.load(object).ok()?;
    let activation = device.activate(&program);
    match device.execute(&activation, request(file, time)) {
        Ok(finished) => Some((finished.value, finished.output)),
        Err((Failure::Internal(reason), _)) => panic!("the device failed: {reason}"),
        Err(_) => None,
    }
}

#[test]
fn mutated_objects_are_refused_or_run_and_harm_nobody() {
    let seed = seed(0x0bad_cafe);
    let mut fuzzer = Fuzzer::new(seed);
    let originals = originals();
    let data = pattern(20_000);
    let devices = devices(&data);
    let healthy: Vec<_> = originals
        .iter()
        .map(|object| run(&devices[0].0, &devices[0].1, object, HEALTHY).expect("runs"))
        .collect();
    for case in 0..cases(1500) {
        let which = case as usize % originals.len();
        let object = fuzzer.mutate(&originals[which]);
        for (device, file) in &devices {
            run(device, file, &object, HOSTILE);
            if case % 50 == 0 {
                let after = run(device, file, &originals[which], HEALTHY);
                assert_eq!(
                    after.as_ref(),
                    Some(&healthy[which]),
                    "seed {seed}, case {case}"
                );
            }
        }
    }
}
