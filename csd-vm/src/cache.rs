//! Programs by the content of their object.
//!
//! A program stays while someone refers to it; after that, the most recently loaded ones of those
//! nobody refers to stay, up to a bound that holds whenever one is added.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::device::LoadedProgram;

/// The cache. Looked up by length and CRC32C, then by the object itself: comparing it is cheaper
/// than a digest, and nobody gains by objects of the same CRC.
pub(crate) struct ProgramCache {
    unused_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    programs: HashMap<Key, Vec<Entry>>,
    /// Grows with every load.
    clock: u64,
}

/// Length and CRC32C of an object.
type Key = (usize, u32);

fn key(object: &[u8]) -> Key {
    (object.len(), crc32c::crc32c(object))
}

struct Entry {
    program: Arc<LoadedProgram>,
    loaded: u64,
}

impl ProgramCache {
    /// An empty cache that keeps at most `unused_max` programs nobody refers to.
    pub(crate) fn new(unused_max: usize) -> ProgramCache {
        ProgramCache {
            unused_max,
            state: Mutex::new(State::default()),
        }
    }

    /// The program of `object`, if it is there.
    pub(crate) fn get(&self, object: &[u8]) -> Option<Arc<LoadedProgram>> {
        let key = key(object);
        let mut state = self.state.lock();
        state.clock += 1;
        let now = state.clock;
        let entries = state.programs.get_mut(&key)?;
        let entry = entries.iter_mut().find(|e| *e.program.object == *object)?;
        entry.loaded = now;
        Some(Arc::clone(&entry.program))
    }

    /// Adds a program, unless someone else was faster; returns the one that is there now.
    pub(crate) fn insert(&self, program: Arc<LoadedProgram>) -> Arc<LoadedProgram> {
        let key = key(&program.object);
        let mut state = self.state.lock();
        state.clock += 1;
        let loaded = state.clock;
        let entries = state.programs.entry(key).or_default();
        let known = entries.iter().find(|e| e.program.object == program.object);
        let program = match known {
            Some(entry) => Arc::clone(&entry.program),
            None => {
                let entry = Entry {
                    program: Arc::clone(&program),
                    loaded,
                };
                entries.push(entry);
                program
            }
        };
        self.forget_unused(&mut state);
        program
    }

    fn forget_unused(&self, state: &mut State) {
        loop {
            let unused = state
                .programs
                .values()
                .flatten()
                .filter(|entry| Arc::strong_count(&entry.program) == 1);
            if unused.clone().count() <= self.unused_max {
                return;
            }
            let oldest = unused.min_by_key(|entry| entry.loaded);
            let Some(oldest) = oldest.map(|entry| Arc::clone(&entry.program)) else {
                return;
            };
            let key = key(&oldest.object);
            if let Some(entries) = state.programs.get_mut(&key) {
                entries.retain(|entry| !Arc::ptr_eq(&entry.program, &oldest));
                if entries.is_empty() {
                    state.programs.remove(&key);
                }
            }
        }
    }
}
