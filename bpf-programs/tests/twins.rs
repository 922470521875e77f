//! The kernels' C sources, run natively, do what the Rust twins do.

use bpf_programs::generate::{Random, bloom_blocks, btree_file, grep};
use bpf_programs::{Input, KERNELS, Kernel, Operation, Runtime, native};

const SIZES: &[usize] = &[
    0, 1, 3, 7, 8, 4095, 4096, 4097, 8192, 20_001, 65_536, 131_073, 1_300_003,
];

fn seed() -> u64 {
    let given = std::env::var("WARREN_SEED").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(20_261)
}

fn runtime() -> Runtime {
    Runtime::new(1 << 20, 1 << 30).expect("there is memory")
}

fn kernel(name: &str) -> &'static Kernel {
    Kernel::named(name).expect("the kernel is there")
}

/// Runs both twins and compares them; what they agreed on.
fn agree(runtime: &mut Runtime, kernel: &Kernel, input: &Input<'_>) -> Result<Vec<u8>, i64> {
    let wanted = (kernel.native)(input);
    let got = runtime.run(kernel.entry, input).map(<[u8]>::to_vec);
    let vectors = runtime.run(kernel.vectors, input).map(<[u8]>::to_vec);
    assert_eq!(got, vectors, "{} with and without vectors", kernel.name);
    let what = || {
        let Input {
            operation,
            offset,
            size,
            snapshot,
            data,
            arguments,
        } = input;
        let (snapshot, data) = (snapshot.len(), data.len());
        format!(
            "{} {operation:?} offset {offset} size {size} of {snapshot}, {data} bytes of data, \
             arguments {arguments:x?}, seed {}",
            kernel.name,
            seed()
        )
    };
    match (&got, &wanted) {
        (Ok(got), Ok(wanted)) => {
            let differ = got.iter().zip(wanted).position(|(a, b)| a != b);
            assert_eq!(differ, None, "{}", what());
            assert_eq!(got.len(), wanted.len(), "{}", what());
        }
        _ => assert_eq!(got, wanted, "{}", what()),
    }
    got
}

fn try_reads(
    runtime: &mut Runtime,
    kernel: &Kernel,
    random: &mut Random,
    file: &[u8],
    arguments: &[u64],
) {
    let size = file.len() as u64;
    let _ = agree(runtime, kernel, &Input::view(file, arguments));
    for _ in 0..4 {
        let offset = random.below(size + 2);
        let bytes = random.below(size + 2);
        let _ = agree(
            runtime,
            kernel,
            &Input::read(file, offset, bytes, arguments),
        );
    }
}

#[test]
fn every_kernel_equals_its_rust_twin_on_every_size_and_range() {
    let mut runtime = runtime();
    let mut random = Random::new(seed());
    for kernel in KERNELS {
        for &size in SIZES {
            let seed = random.word();
            let bytes = (kernel.generate)(seed, size);
            assert_eq!(
                bytes.len(),
                size,
                "{} generates the size asked for",
                kernel.name
            );
            for arguments in (kernel.arguments)(seed) {
                for &operation in kernel.operations {
                    if operation == Operation::ReadStream {
                        try_reads(&mut runtime, kernel, &mut random, &bytes, &arguments);
                        continue;
                    }
                    for offset in [0, 1, 1 << 33] {
                        let input = Input::data(operation, offset, &bytes, &arguments);
                        let _ = agree(&mut runtime, kernel, &input);
                    }
                }
            }
        }
    }
}

#[test]
fn generated_contents_and_arguments_give_output() {
    let mut runtime = runtime();
    for kernel in KERNELS {
        let bytes = (kernel.generate)(seed(), 500_000);
        let mut outputs = (kernel.arguments)(seed()).into_iter().map(|arguments| {
            let input = match kernel.operations[0] {
                Operation::ReadStream => Input::view(&bytes, &arguments),
                operation => Input::data(operation, 0, &bytes, &arguments),
            };
            agree(&mut runtime, kernel, &input)
                .expect("generated input is sound")
                .len()
        });
        assert!(outputs.any(|bytes| bytes > 0), "{}", kernel.name);
    }
}

#[test]
fn kernels_refuse_other_formats_and_senseless_arguments_as_their_twins_do() {
    let mut runtime = runtime();
    let mut random = Random::new(seed());
    let mut refused = 0;
    for kernel in KERNELS {
        for _ in 0..300 {
            let other = &KERNELS[random.below(KERNELS.len() as u64) as usize];
            let mut bytes = (other.generate)(random.word(), random.below(30_000) as usize);
            for _ in 0..random.below(4) * u64::from(!bytes.is_empty()) {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] = random.word() as u8;
            }
            let lists = (kernel.arguments)(random.word());
            let mut arguments = lists[random.below(lists.len() as u64) as usize].clone();
            match random.below(4) {
                0 => arguments.truncate(random.below(3) as usize),
                1 => arguments.push(random.word()),
                2 if !arguments.is_empty() => arguments[0] = random.below(9),
                _ => {}
            }
            let operation =
                kernel.operations[random.below(kernel.operations.len() as u64) as usize];
            let input = match operation {
                Operation::ReadStream => Input::view(&bytes, &arguments),
                operation => Input::data(operation, 0, &bytes, &arguments),
            };
            refused += u32::from(agree(&mut runtime, kernel, &input).is_err());
        }
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn damaged_frames_and_trees_are_refused_or_read_alike() {
    let mut runtime = runtime();
    let mut random = Random::new(seed());
    let mut refused = 0;
    for name in ["decompress", "bloom_probe"] {
        let kernel = kernel(name);
        let sound = (kernel.generate)(seed(), 120_000);
        let arguments = (kernel.arguments)(seed()).remove(0);
        for _ in 0..1500 {
            let mut bytes = sound.clone();
            let near = if random.below(2) == 0 {
                64
            } else {
                bytes.len() as u64
            };
            bytes[random.below(near) as usize] = random.word() as u8;
            bytes.truncate(bytes.len() - random.below(2) as usize * random.below(100_000) as usize);
            let input = Input::view(&bytes, &arguments);
            refused += u32::from(agree(&mut runtime, kernel, &input).is_err());
        }
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn line_kernels_give_the_same_over_any_strides_as_over_the_whole() {
    let mut runtime = runtime();
    for (name, arguments) in [
        ("grep", grep::arguments_for(b"error")),
        ("csv", vec![0, 0, 1, 2]),
        ("line_index", vec![]),
    ] {
        let kernel = kernel(name);
        let file = (kernel.generate)(seed(), 700_001);
        let whole = agree(&mut runtime, kernel, &Input::view(&file, &arguments)).expect("a view");
        for stride in [1000, 4096, 100_003, 524_288] {
            let mut strides: Vec<u8> = Vec::new();
            for offset in (0..file.len() as u64).step_by(stride) {
                let input = Input::read(&file, offset, stride as u64, &arguments);
                strides.extend(runtime.run(kernel.entry, &input).expect("a stride"));
            }
            assert!(
                strides == whole,
                "{name} in strides of {stride}, seed {}",
                seed()
            );
        }
    }
}

#[test]
fn what_compress_writes_decompress_reads() {
    let mut runtime = runtime();
    let mut random = Random::new(seed());
    for size in [1, 4, 12, 13, 100, 65_535, 65_536, 65_537, 400_000] {
        let data = (kernel("compress").generate)(random.word(), size);
        let input = Input::data(Operation::WriteStream, 0, &data, &[]);
        let frames = agree(&mut runtime, kernel("compress"), &input).expect("it compresses");
        let read = agree(
            &mut runtime,
            kernel("decompress"),
            &Input::view(&frames, &[]),
        );
        assert!(read == Ok(data), "{size} bytes, seed {}", seed());
    }
    let text = vec![b'a'; 65_536];
    let input = Input::data(Operation::WriteStream, 0, &text, &[1]);
    let frames = runtime
        .run(kernel("compress").entry, &input)
        .expect("it compresses")
        .len();
    assert!(frames < 400, "{frames}");
}

#[test]
fn compress_in_place_refuses_to_grow() {
    let mut runtime = runtime();
    let noise: Vec<u8> = {
        let mut random = Random::new(seed());
        (0..5000).map(|_| random.word() as u8).collect()
    };
    let input = Input::data(Operation::WriteStream, 0, &noise, &[1]);
    assert_eq!(agree(&mut runtime, kernel("compress"), &input), Err(-27));
}

#[test]
fn the_checksum_is_the_one_of_the_log() {
    let file = (kernel("crc32c").generate)(seed(), 100_003);
    let mut runtime = runtime();
    let got = agree(&mut runtime, kernel("crc32c"), &Input::view(&file, &[])).expect("a checksum");
    assert_eq!(got, crc32c::crc32c(&file).to_le_bytes());
}

#[test]
fn a_tree_of_three_levels_has_every_key() {
    let entries: Vec<(u64, u64)> = (0..70_000).map(|key| (key * 3 + 1, !key)).collect();
    let file = btree_file(&entries);
    assert_eq!(
        u64::from_le_bytes([16, 17, 18, 19, 20, 21, 22, 23].map(|at| file[at])),
        3
    );
    let mut runtime = runtime();
    let mut keys = vec![0];
    keys.extend((0..70_000).step_by(501).map(|key| key * 3 + 1));
    let got = agree(
        &mut runtime,
        kernel("btree_lookup"),
        &Input::view(&file, &keys),
    )
    .expect("a tree");
    assert!(
        got.chunks(16).all(|answer| answer[0] == 1),
        "every key is found"
    );
    let all = agree(
        &mut runtime,
        kernel("btree_lookup"),
        &Input::view(&file, &[1, 0, u64::MAX]),
    );
    assert_eq!(all.expect("a tree").len(), entries.len() * 16);
}

#[test]
fn a_tree_whose_leaves_go_round_in_a_circle_is_refused() {
    let mut file = btree_file(&[(1, 1)]);
    file[4096 + 8] = 1;
    let input = Input::view(&file, &[1, 0, u64::MAX]);
    let kernel = kernel("btree_lookup");
    assert_eq!(
        runtime().run(kernel.entry, &input).map(<[u8]>::len),
        Err(-22)
    );
}

#[test]
fn a_bloom_filter_never_misses_a_key_it_has() {
    let keys: Vec<u64> = (0..2000).map(|key| key * key).collect();
    let file = bloom_blocks(&keys, 6);
    let mut runtime = runtime();
    for probes in keys.chunks(64) {
        let arguments: Vec<u64> = std::iter::once(1).chain(probes.iter().copied()).collect();
        let input = Input::view(&file, &arguments);
        let found = agree(&mut runtime, kernel("bloom_probe"), &input).expect("blocks");
        assert_eq!(found.len(), probes.len() * 16);
    }
}

#[test]
fn the_twins_stand_for_what_they_are_named_after() {
    let file = [0_u32, 5, 6, u32::MAX].map(u32::to_le_bytes).concat();
    let words = |values: &[u64]| {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    assert_eq!(native::filter(&Input::view(&file, &[5])), Ok(words(&[2])));
    let sum = 11 + u64::from(u32::MAX);
    let all = words(&[4, sum, 0, u64::from(u32::MAX)]);
    assert_eq!(native::sum_min_max(&Input::view(&file, &[])), Ok(all));
    let text = b"a,1\nb,-2\nc,x";
    let found = native::grep(&Input::view(text, &grep::arguments_for(b"-2")));
    assert_eq!(found, Ok(b"b,-2\n".to_vec()));
    let column = native::csv(&Input::view(text, &[0, 0, 1]));
    assert_eq!(column, Ok(b"1\n-2\nx\n".to_vec()));
    assert_eq!(
        native::line_index(&Input::view(text, &[])),
        Ok(words(&[0, 4, 9]))
    );
    let near = native::knn(&Input::view(&[0, 0, 9, 0, 3, 0], &[1, 2, 4]));
    assert_eq!(near, Ok(words(&[2, 1, 0, 16])));
}
