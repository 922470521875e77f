//! Attributes the kernel does not know to be old.
//!
//! Under the writeback cache the kernel keeps size and times of a file itself and never asks for
//! the number of allocated blocks again, which changes when its pages are written. So files that
//! were written are told to it: when they are synced or closed, and within [`TICK`] in any case,
//! but not more often than every [`PAUSE`], since each time costs a request for the attributes.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use fuser::{INodeNo, Notifier};
use parking_lot::Mutex;

use super::Core;
use crate::types::Ino;

/// Longest time an allocation is shown that is not true any more.
const TICK: Duration = Duration::from_millis(250);
/// Shortest time between two notifications that are made in the path of a request.
const PAUSE: Duration = Duration::from_millis(10);

#[derive(Default)]
struct State {
    written: HashSet<Ino>,
    last_told: Option<Instant>,
}

/// Files whose allocation may have changed since the kernel asked.
#[derive(Default)]
pub(super) struct StaleAttributes {
    state: Mutex<State>,
    notifier: OnceLock<Notifier>,
}

impl StaleAttributes {
    /// A file has been written.
    pub(super) fn note(&self, ino: Ino) {
        self.state.lock().written.insert(ino);
    }

    /// Tells the kernel of a file now, unless it was told of one a moment ago.
    pub(super) fn tell(&self, ino: Ino) {
        let mut state = self.state.lock();
        let now = Instant::now();
        if state.last_told.is_some_and(|last| now - last < PAUSE) || !state.written.remove(&ino) {
            return;
        }
        state.last_told = Some(now);
        drop(state);
        self.invalidate(ino);
    }

    /// Tells the kernel at once.
    pub(super) fn tell_now(&self, ino: Ino) {
        self.state.lock().written.remove(&ino);
        self.invalidate(ino);
    }

    fn tell_all(&self) {
        let written = std::mem::take(&mut self.state.lock().written);
        for ino in written {
            self.invalidate(ino);
        }
    }

    fn invalidate(&self, ino: Ino) {
        // A negative offset means the attributes alone. An inode the kernel has forgotten is no
        // error that matters.
        if let Some(notifier) = self.notifier.get()
            && let Err(error) = notifier.inval_inode(INodeNo(ino.0), -1, 0)
        {
            tracing::debug!(inode = ino.0, "attributes: {error}");
        }
    }
}

/// Starts the thread that tells of what no request did. It ends when the adapter is gone.
pub(super) fn start(core: &Arc<Core>, notifier: Notifier) -> io::Result<()> {
    // Set only here, once per adapter.
    let _ = core.stale.notifier.set(notifier);
    let core: Weak<Core> = Arc::downgrade(core);
    thread::Builder::new()
        .name("attributes".into())
        .spawn(move || {
            loop {
                thread::sleep(TICK);
                match core.upgrade() {
                    Some(core) => {
                        core.stale.tell_all();
                        core.refuse_late_opens();
                    }
                    None => return,
                }
            }
        })?;
    Ok(())
}
