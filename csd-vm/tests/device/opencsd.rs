//! Kernels written for FluffleFS: what they read, compute and write is what they did there.

use csd_vm::DeviceConfig;
use csd_vm::request::{Failure, Operation};

use crate::common::{BLOCK, Bench, Shape, both_engines, compile, pattern, read, write};

/// Opens a kernel of FluffleFS's kind: call information, geometry, heap.
const PROLOGUE: &str = "
#include <opencsd.h>
int main() {
    struct flfs_call *call = 0;
    bpf_get_call_info((void **)&call);
    uint64_t *lba = (uint64_t *)call;
    uint64_t zone_size = bpf_get_zone_size();
    uint64_t sector_size = bpf_get_sector_size();
    uint64_t zone, sector, heap_size, count = 0;
    uint8_t *heap;
    bpf_get_mem_info((void **)&heap, &heap_size);
";

fn read_kernel(init: &str, per_sector: &str, end: &str) -> Vec<u8> {
    compile(&format!(
        "{PROLOGUE}
    find_data_lba(&lba, 0);
    if (*lba == 0) return -2;
    if (call->op != FLFS_READ_STREAM) return -3;
    uint64_t limit = call->dims.size < call->ino.size ? call->dims.size : call->ino.size;
    {init}
    for (uint64_t done = 0; done < limit; done += sector_size, lba++) {{
        lba_to_position(*lba, zone_size, &zone, &sector);
        {per_sector}
    }}
    {end}
    return 0;
}}"
    ))
}

fn passthrough() -> Vec<u8> {
    read_kernel(
        "",
        "bpf_read(zone, sector, 0, sector_size, heap + done);",
        "bpf_return_data(heap, limit);",
    )
}

#[test]
fn passthrough_returns_the_file_whatever_its_layout() {
    let mut data = pattern(700_001);
    data[40 * BLOCK..90 * BLOCK].fill(0);
    for config in both_engines() {
        for shape in [Shape::Contiguous, Shape::Fragmented, Shape::Sparse] {
            let bench = Bench::with(&passthrough(), &data, shape, config.clone());
            let finished = bench.read(0, data.len() as u64);
            assert!(finished.output == data, "{shape:?}");
            let part = bench.read(512 << 10, 1000);
            assert!(part.output == data[512 << 10..][..1000], "{shape:?}");
        }
    }
}

#[test]
fn average_counts_integers_above_the_threshold() {
    let data = pattern(300 * BLOCK);
    let object = read_kernel(
        "",
        "bpf_read(zone, sector, 0, sector_size, heap);
         for (uint64_t j = 0; j < sector_size / 4; j++)
             if (((uint32_t *)heap)[j] > 2147483647 / 2) count++;",
        "bpf_return_data(&count, sizeof count);",
    );
    let words = data.chunks_exact(4);
    let expected = words
        .filter(|w| u32::from_le_bytes((*w).try_into().expect("4")) > 0x7fff_ffff / 2)
        .count() as u64;
    for config in both_engines() {
        let bench = Bench::with(&object, &data, Shape::Fragmented, config);
        let finished = bench.read(0, data.len() as u64);
        assert_eq!(finished.output, expected.to_le_bytes());
        assert_eq!(finished.usage.bytes_read, data.len() as u64);
        assert_eq!(finished.usage.bytes_returned, 8);
    }
}

#[test]
fn histogram_counts_every_byte_and_zeros_past_the_end() {
    let data = pattern(10 * BLOCK + 100);
    let object = read_kernel(
        "uint32_t *bins = (uint32_t *)(heap + sector_size);
         for (int i = 0; i < 256; i++) bins[i] = 0;",
        "bpf_read(zone, sector, 0, sector_size, heap);
         for (uint64_t j = 0; j < sector_size; j++) bins[heap[j]]++;",
        "bpf_return_data(bins, 1024);",
    );
    let mut expected = [0u32; 256];
    data.iter()
        .for_each(|byte| expected[usize::from(*byte)] += 1);
    expected[0] += (BLOCK - 100) as u32;
    let finished = Bench::new(&object, &data).read(0, data.len() as u64);
    let expected: Vec<u8> = expected.iter().flat_map(|bin| bin.to_le_bytes()).collect();
    assert_eq!(finished.output, expected);
}

#[test]
fn call_information_has_the_layout_of_flufflefs() {
    let object = compile(&format!(
        "{PROLOGUE}
    uint8_t *at = (uint8_t *)call;
    for (int i = 0; i < 52 + 24; i++) heap[i] = at[i];
    bpf_return_data(heap, 52 + 24);
    return 0; }}"
    ));
    let data = pattern(20 * BLOCK);
    let bench = Bench::new(&object, &data);
    let output = bench.read(BLOCK as u64, 3 * BLOCK as u64).output;
    let lba = |block: usize| bench.snapshot.blocks[block].expect("mapped").0.0;
    let mut expected = vec![];
    expected.extend(0u32.to_le_bytes());
    expected.extend((3 * BLOCK as u64).to_le_bytes());
    expected.extend((BLOCK as u64).to_le_bytes());
    expected.extend(77u64.to_le_bytes());
    expected.extend(1u64.to_le_bytes());
    expected.extend([0; 8]);
    expected.extend((data.len() as u64).to_le_bytes());
    (1..4).for_each(|block| expected.extend(lba(block).to_le_bytes()));
    assert_eq!(output, expected);
}

/// Reads the data written and writes it, each byte plus one, to the reserved sectors.
fn incrementing_writer() -> Vec<u8> {
    compile(&format!(
        "{PROLOGUE}
    find_data_lba(&lba, 1);
    struct flfs_write_call *w = (struct flfs_write_call *)((uint8_t *)call + sizeof *call);
    uint64_t left = call->dims.size, at = w->start_ptr;
    if (w->wp_ptr != w->start_ptr || w->pre_pad != 0) return -4;
    for (; left > 0; lba++, at++) {{
        lba_to_position(*lba, zone_size, &zone, &sector);
        bpf_read(zone, sector, 0, sector_size, heap);
        uint64_t n = left < sector_size ? left : sector_size;
        for (uint64_t j = 0; j < n; j++) heap[j]++;
        lba_to_position(at, zone_size, &zone, &sector);
        bpf_write(zone, &sector, 0, n, heap);
        left -= n;
    }}
    bpf_return_data(&w->post_pad, 8);
    return 0; }}"
    ))
}

#[test]
fn write_kernels_read_the_data_and_append_to_reserved_sectors() {
    let data = pattern(5 * BLOCK + 17);
    for config in both_engines() {
        let bench = Bench::with(
            &incrementing_writer(),
            &pattern(100),
            Shape::Contiguous,
            config,
        );
        let request = write(&bench.snapshot, Operation::WriteEvent, 100, &data);
        let finished = bench.run(request);
        let expected: Vec<u8> = data.iter().map(|byte| byte.wrapping_add(1)).collect();
        assert!(finished.appended == expected);
        assert_eq!(finished.output, (BLOCK as u64 - 17).to_le_bytes());
    }
}

#[test]
fn writes_past_the_reserved_sectors_end_the_kernel() {
    let bench = Bench::new(&incrementing_writer(), &pattern(100));
    let mut request = write(
        &bench.snapshot,
        Operation::WriteEvent,
        0,
        &pattern(4 * BLOCK),
    );
    request.limits.blocks_appended = 3;
    let failure = bench.fail(request);
    assert!(failure.to_string().contains("not reserved"), "{failure}");
}

#[test]
fn read_events_see_the_data_just_read() {
    let object = compile(&format!(
        "{PROLOGUE}
    find_data_lba(&lba, 0);
    if (call->op != 3) return -3;
    lba_to_position(*lba, zone_size, &zone, &sector);
    bpf_read(zone, sector, 5, 10, heap);
    bpf_return_data(heap, 10);
    return 0; }}"
    ));
    let bench = Bench::new(&object, &pattern(100));
    let data: Vec<u8> = (0..12).collect();
    let finished = bench.run(write(&bench.snapshot, Operation::ReadEvent, 0, &data));
    assert_eq!(finished.output, [5, 6, 7, 8, 9, 10, 11, 0, 0, 0]);
}

#[test]
fn reads_of_what_is_not_of_the_request_end_the_kernel() {
    for (zone, sector, offset, size) in [
        ("0", "0", "0", "4096"),
        ("*lba / zone_size", "*lba % zone_size + 40", "0", "4096"),
        ("*lba / zone_size", "*lba % zone_size", "0", "4096 * 11"),
        ("*lba / zone_size", "*lba % zone_size", "4096 * 10", "1"),
        ("*lba / zone_size", "*lba % zone_size", "-1ULL", "2"),
        ("*lba / zone_size", "zone_size", "0", "1"),
        ("-1ULL", "0", "0", "1"),
        ("-1ULL / zone_size", "zone_size - 1", "8192", "1"),
        ("64", "0", "0", "1"),
    ] {
        let object = compile(&format!(
            "{PROLOGUE}
    find_data_lba(&lba, 0);
    bpf_read({zone}, {sector}, {offset}, {size}, heap);
    return 0; }}"
        ));
        let bench = Bench::new(&object, &pattern(100 * BLOCK));
        let failure = bench.fail(read(&bench.snapshot, 0, 10 * BLOCK as u64));
        let is_read = matches!(
            failure,
            Failure::Helper {
                helper: "bpf_read",
                ..
            }
        );
        assert!(is_read, "{zone} {sector} {offset} {size}: {failure}");
    }
}

#[test]
fn a_read_may_span_sectors_of_the_request() {
    let object = compile(&format!(
        "{PROLOGUE}
    find_data_lba(&lba, 0);
    lba_to_position(*lba, zone_size, &zone, &sector);
    bpf_read(zone, sector, 100, 3 * sector_size, heap);
    bpf_return_data(heap, 3 * sector_size);
    return 0; }}"
    ));
    let data = pattern(50 * BLOCK);
    let bench = Bench::new(&object, &data);
    let finished = bench.read(8 * BLOCK as u64, 4 * BLOCK as u64);
    assert!(finished.output == data[8 * BLOCK + 100..][..3 * BLOCK]);
}

#[test]
fn an_empty_request_has_a_first_address_that_is_not_zero() {
    let bench = Bench::with(
        &passthrough(),
        &[],
        Shape::Contiguous,
        DeviceConfig::default(),
    );
    assert_eq!(bench.read(0, 0).output, []);
}
