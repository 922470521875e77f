//! The helpers of the Warren ABI.

use csd_vm::request::Operation;

use crate::common::{BLOCK, Bench, PASSTHROUGH, Shape, both_engines, pattern, read, warren, write};

#[test]
fn the_request_is_described_in_memory_and_by_the_helper() {
    let object = warren(
        "struct warren_request c;
         if (warren_request(&c, sizeof c + 100) != sizeof c) return -1;
         if (warren_request(&c, 8) != 8) return -2;
         const u8 *a = (const u8 *)r, *b = (const u8 *)&c;
         for (int i = 0; i < sizeof c; i++) if (a[i] != b[i]) return -3;
         warren_emit(&c, sizeof c);
         warren_emit((void *)r->data, r->data_size);
         return 5;",
    );
    for config in both_engines() {
        let bench = Bench::with(&object, &pattern(10_000), Shape::Contiguous, config);
        let mut request = write(&bench.snapshot, Operation::WriteStream, 123, b"hello");
        request.arguments = [7, 8, 9].into();
        request.limits.output = 1000;
        request.limits.heap = 12345;
        let finished = bench.run(request);
        assert_eq!(finished.value, 5);
        assert_eq!(&finished.output[80..], b"hello");
        let u32_at =
            |at: usize| u32::from_le_bytes(finished.output[at..at + 4].try_into().expect("4"));
        let u64_at =
            |at: usize| u64::from_le_bytes(finished.output[at..at + 8].try_into().expect("8"));
        assert_eq!((u32_at(0), u32_at(4)), (1, 2));
        assert_eq!((u64_at(8), u64_at(16), u64_at(24)), (123, 5, 10_000));
        assert_eq!((u32_at(32), u32_at(36)), (3, 0));
        assert_eq!((u64_at(48), u64_at(64), u64_at(72)), (5, 12345, 1000));
    }
}

#[test]
fn output_is_emitted_again_as_it_was_though_source_and_target_overlap() {
    const LEN: usize = 1 << 20;
    let fill = "u8 *o = warren_reserve(1 << 20);
        for (u64 i = 0; i < 1 << 20; i++) o[i] = i * 2654435761u >> 13;";
    let filled: Vec<u8> = (0..LEN as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    // What is emitted again ends behind where it goes to, or begins behind that.
    let up = format!("{fill} warren_emit(o + 1000, 1 << 20); return 0;");
    let down =
        format!("{fill} warren_trim(1 << 20); warren_emit(o + 1000, (1 << 20) - 1000); return 0;");
    for config in both_engines() {
        let bench = Bench::with(
            &warren(&up),
            &pattern(10),
            Shape::Contiguous,
            config.clone(),
        );
        let output = bench.read(0, 10).output;
        assert!(output[..LEN] == filled && output[LEN..2 * LEN - 1000] == filled[1000..]);
        assert!(output[2 * LEN - 1000..].iter().all(|byte| *byte == 0));
        let bench = Bench::with(&warren(&down), &pattern(10), Shape::Contiguous, config);
        assert!(bench.read(0, 10).output == filled[1000..]);
    }
}

#[test]
fn passthrough_emits_any_range_of_any_layout() {
    let mut data = pattern(900_003);
    data[10 * BLOCK..60 * BLOCK].fill(0);
    let object = warren(PASSTHROUGH);
    for config in both_engines() {
        for shape in [Shape::Contiguous, Shape::Fragmented, Shape::Sparse] {
            let bench = Bench::with(&object, &data, shape, config.clone());
            for (offset, size) in [
                (0, 900_003),
                (0, 1),
                (1, 4096),
                (4095, 2),
                (77_777, 500_000),
                (900_002, 1),
                (524_288, 375_715),
            ] {
                let finished = bench.read(offset, size);
                let expected = &data[offset as usize..(offset + size) as usize];
                assert!(finished.output == expected, "{shape:?} {offset}+{size}");
                assert_eq!(finished.usage.bytes_read, size);
            }
        }
    }
}

#[test]
fn nothing_past_the_end_of_the_snapshot_is_visible() {
    let data = pattern(3 * BLOCK + 10);
    let object = warren(
        "const u8 *p;
         if (warren_map(0, -1ULL, (const void **)&p) != 3 * 4096 + 10) return -1;
         if (warren_map(3 * 4096 + 10, 1, (const void **)&p) != 0) return -2;
         if (warren_map(-1ULL, 1, (const void **)&p) != 0) return -3;
         if (warren_map(3 * 4096 + 9, 5, (const void **)&p) != 1) return -4;
         for (int i = 1; i < 4087; i++) if (p[i] != 0) return -5;
         u8 b[32];
         if (warren_read(3 * 4096, b, 32) != 10) return -6;
         if (warren_read(-1ULL, b, 32) != 0) return -7;
         return 0;",
    );
    for config in both_engines() {
        for shape in [Shape::Contiguous, Shape::Fragmented] {
            let bench = Bench::with(&object, &data, shape, config.clone());
            bench.read(0, 1);
            bench.read(0, 1);
        }
    }
}

#[test]
fn reads_copy_what_a_plain_read_would() {
    let data = pattern(600 * BLOCK + 1234);
    let object = warren(
        "u64 offset, size; warren_argument(0, &offset); warren_argument(1, &size);
         s64 n = warren_read(offset, (void *)r->heap, size);
         warren_emit((void *)r->heap, n);
         return 0;",
    );
    for shape in [Shape::Contiguous, Shape::Fragmented] {
        let bench = Bench::with(&object, &data, shape, csd_vm::DeviceConfig::default());
        let mut at = 0;
        for step in [
            1u64,
            100,
            4096,
            4096,
            4096,
            4096,
            200_000,
            3,
            1 << 20,
            1 << 20,
        ] {
            let mut request = read(&bench.snapshot, 0, 0);
            request.arguments = [at, step].into();
            let finished = bench.run(request);
            let end = (at + step).min(data.len() as u64);
            assert!(
                finished.output == data[at as usize..end as usize],
                "{shape:?} {at}+{step}"
            );
            at = end;
        }
    }
}

#[test]
fn output_is_emitted_reserved_and_trimmed_in_order() {
    let object = warren(
        "warren_emit(\"abc\", 3);
         u8 *p = warren_reserve(4);
         if (!p) return -1;
         p[0] = '1'; p[1] = '2'; p[2] = '3'; p[3] = '4';
         warren_emit(\"def\", 3);
         if (warren_trim(100) >= 0) return -2;
         warren_trim(2);
         warren_emit(p, 2);
         if (warren_reserve(-1ULL)) return -3;
         if (warren_reserve(0)) return -4;
         return 0;",
    );
    for config in both_engines() {
        let bench = Bench::with(&object, b"x", Shape::Contiguous, config);
        assert_eq!(bench.read(0, 1).output, b"abc1234d12");
    }
}

#[test]
fn appends_arguments_and_logs_work() {
    let object = warren(
        "u64 v;
         for (u32 i = 0; warren_argument(i, &v) == 0; i++) warren_append(&v, 8);
         if (warren_argument(2, &v) != -2) return -1;
         warren_log(\"one\\ntwo\", 7);
         warren_append(r, 0);
         return 0;",
    );
    let bench = Bench::new(&object, b"x");
    let mut request = write(&bench.snapshot, Operation::WriteEvent, 0, b"y");
    request.arguments = [3, u64::MAX].into();
    let finished = bench.run(request);
    let expected = [3u64.to_le_bytes(), u64::MAX.to_le_bytes()].concat();
    assert_eq!(finished.appended, expected);
    assert_eq!(finished.usage.bytes_appended, 16);
}

#[test]
fn variables_start_anew_in_every_execution() {
    let object = csd_source();
    for config in both_engines() {
        let bench = Bench::with(&object, b"x", Shape::Contiguous, config);
        for _ in 0..3 {
            assert_eq!(bench.read(0, 1).output, [6, 0, 0, 0, 1, 0, 0, 0, b'k']);
        }
    }
}

fn csd_source() -> Vec<u8> {
    crate::common::compile(
        "#include <warren.h>
         int start = 5;
         int zero;
         static const char text[] = \"k\";
         const char *pointer = text;
         int main() {
             start++; zero++;
             warren_emit(&start, 4); warren_emit(&zero, 4); warren_emit(pointer, 1);
             return 0;
         }",
    )
}
