//! Kernels natively, and pseudo-random bytes.

use std::io;

use bpf_programs::{Entry, Input, Kernel, Runtime};

/// Heap and output that a native run may use, in bytes.
const HEAP: u64 = 64 << 20;

/// The kernel of this name.
pub(crate) fn named(name: &str) -> io::Result<&'static Kernel> {
    Kernel::named(name).ok_or_else(|| io::Error::other(format!("there is no kernel {name}")))
}

/// A kernel as C compiled for this machine.
pub(crate) struct Native {
    entry: Entry,
    runtime: Runtime,
    arguments: Vec<u64>,
}

impl Native {
    pub(crate) fn new(name: &str, arguments: &[u64]) -> io::Result<Native> {
        Native::of(named(name)?.entry, arguments)
    }

    /// The same, compiled with vectors.
    pub(crate) fn vectors(name: &str, arguments: &[u64]) -> io::Result<Native> {
        Native::of(named(name)?.vectors, arguments)
    }

    fn of(entry: Entry, arguments: &[u64]) -> io::Result<Native> {
        Ok(Native {
            entry,
            runtime: Runtime::new(HEAP, HEAP).map_err(io::Error::other)?,
            arguments: arguments.to_vec(),
        })
    }

    /// Runs it over bytes in memory.
    pub(crate) fn run(&mut self, data: &[u8]) -> io::Result<&[u8]> {
        let input = Input::view(data, &self.arguments);
        let done = self.runtime.run(self.entry, &input);
        done.map_err(|code| io::Error::other(format!("the kernel returned {code}")))
    }
}

/// Bytes that depend on `seed` alone: splitmix64.
pub(crate) fn fill(seed: u64, to: &mut [u8]) {
    let mut state = seed;
    for word in to.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = state;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^= value >> 31;
        word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
    }
}
