//! Programs by the content of their object.
//!
//! A program stays while someone refers to it; after that, the most recently loaded ones of those
//! nobody refers to stay, up to a bound that holds whenever one is added.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::device::LoadedProgram;

/// The cache. Looked up by the object itself: comparing it is cheaper than a digest.
pub(crate) struct ProgramCache {
    unused_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    programs: HashMap<Arc<[u8]>, Entry>,
    /// Grows with every load.
    clock: u64,
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
        let mut state = self.state.lock();
        state.clock += 1;
        let now = state.clock;
        let entry = state.programs.get_mut(object)?;
        entry.loaded = now;
        Some(Arc::clone(&entry.program))
    }

    /// Adds a program, unless someone else was faster; returns the one that is there now.
    pub(crate) fn insert(&self, program: Arc<LoadedProgram>) -> Arc<LoadedProgram> {
        let mut state = self.state.lock();
        state.clock += 1;
        let loaded = state.clock;
        let object = Arc::clone(&program.object);
        let entry = state.programs.entry(object);
        let entry = entry.or_insert(Entry { program, loaded });
        let program = Arc::clone(&entry.program);
        self.forget_unused(&mut state);
        program
    }

    fn forget_unused(&self, state: &mut State) {
        loop {
            let unused = state
                .programs
                .values()
                .filter(|entry| Arc::strong_count(&entry.program) == 1);
            if unused.clone().count() <= self.unused_max {
                return;
            }
            let oldest = unused.min_by_key(|entry| entry.loaded);
            let Some(object) = oldest.map(|entry| Arc::clone(&entry.program.object)) else {
                return;
            };
            state.programs.remove(&object);
        }
    }
}
