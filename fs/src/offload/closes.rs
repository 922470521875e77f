//! Files of which a handle was closed that may have been the last of an owner.
//!
//! To know that, all descriptors of the owner are looked through, which takes as long as it has
//! many: not on the thread that serves the closing, but on one for that, and once for all closings
//! that come meanwhile.

use std::collections::BTreeSet;

use parking_lot::{Condvar, Mutex};

use crate::types::Ino;

#[derive(Default)]
struct State {
    files: BTreeSet<Ino>,
    stopping: bool,
}

/// The queue of the thread that looks.
#[derive(Default)]
pub(super) struct Closes {
    state: Mutex<State>,
    work: Condvar,
}

impl Closes {
    /// A handle of a file was closed.
    pub(super) fn note(&self, ino: Ino) {
        self.state.lock().files.insert(ino);
        self.work.notify_one();
    }

    /// Waits for the next file to look at; `None` when there will be none.
    pub(super) fn wait(&self) -> Option<Ino> {
        let mut state = self.state.lock();
        loop {
            if state.stopping {
                return None;
            }
            match state.files.pop_first() {
                Some(ino) => return Some(ino),
                None => self.work.wait(&mut state),
            }
        }
    }

    /// Ends the thread that waits.
    pub(super) fn stop(&self) {
        self.state.lock().stopping = true;
        self.work.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closings_of_a_file_are_looked_at_once_and_nothing_waits_after_the_end() {
        let closes = Closes::default();
        for ino in [3, 5, 3, 3] {
            closes.note(Ino(ino));
        }
        assert_eq!(closes.wait(), Some(Ino(3)));
        closes.note(Ino(3));
        assert_eq!([closes.wait(), closes.wait()], [Some(Ino(3)), Some(Ino(5))]);
        closes.note(Ino(9));
        closes.stop();
        assert_eq!(closes.wait(), None);
    }
}
