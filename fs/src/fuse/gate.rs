//! How many event loops wait for requests.
//!
//! The kernel hands requests to waiting threads in turn, so a crowd of them means that every
//! request wakes another one, with cold caches; but a thread that waits for the device serves
//! nobody, and the device wants many reads at a time. So only a few threads wait for requests, and
//! the rest are parked here. A thread that is going to wait for the device steps out; if it was
//! the last one serving, a parked thread takes its place.
//!
//! While one brief request follows another, as single pages that are written back, half as many do: the
//! system needs processors too to make the requests, and a thread that finds the next one when it has done
//! one need not be woken for it. (Two threads on two processors were switched once per page, one of them
//! once per forty.)
//!
//! Invariant: as long as a thread is parked, another one that has had a turn serves or is going to.
//! When its event loop ends, the mount is gone, and all parked threads are let out to notice.

use std::cell::OnceCell;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::latency::Watch;

/// Brief turns in a row after which fewer threads serve.
const BRIEF_TURNS: u32 = 32;

#[derive(Default)]
struct State {
    /// Threads that have had a turn and wait for requests, or work on one without waiting for the
    /// device.
    serving: usize,
    parked: usize,
    /// Parked threads that have been called and have not come out yet.
    called: usize,
    /// Brief turns since another one.
    brief: u32,
    /// Nobody is parked any more.
    open: bool,
}

thread_local! {
    /// Opens the gate when the event loop of this thread has ended.
    static LOOP_END: OnceCell<LoopEnd> = const { OnceCell::new() };
}

struct LoopEnd(Arc<Gate>);

impl Drop for LoopEnd {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// Keeps the number of serving threads small.
pub(super) struct Gate {
    state: Mutex<State>,
    call: Condvar,
    /// Threads that may serve without one being parked, as long as not all turns are brief.
    keep: usize,
    watch: Watch,
}

/// One request of an event loop; when it ends, the thread parks if there are too many.
pub(super) struct Turn<'a> {
    gate: &'a Gate,
    is_brief: bool,
}

/// A wait for the device inside a [`Turn`].
pub(super) struct Absence<'a>(&'a Gate);

impl Gate {
    /// A gate that has `keep` (at least one) threads serve, and lets `watch` know of requests.
    pub(super) fn new(keep: usize, watch: Watch) -> Arc<Gate> {
        Arc::new(Gate {
            state: Mutex::default(),
            call: Condvar::new(),
            keep: keep.max(1),
            watch,
        })
    }

    /// A request begins on this event loop.
    pub(super) fn turn(self: &Arc<Gate>) -> Turn<'_> {
        LOOP_END.with(|end| {
            end.get_or_init(|| {
                self.state.lock().serving += 1;
                LoopEnd(Arc::clone(self))
            });
        });
        self.watch.note();
        Turn {
            gate: self,
            is_brief: false,
        }
    }

    /// The thread may wait for the device until the result is dropped.
    pub(super) fn step_out(&self) -> Absence<'_> {
        let mut state = self.state.lock();
        state.brief = 0;
        state.serving -= 1;
        if state.serving == 0 && state.parked > state.called {
            state.called += 1;
            state.serving += 1;
            self.call.notify_one();
        }
        Absence(self)
    }

    /// Threads that may serve now without one being parked.
    fn keep(&self, state: &State) -> usize {
        match state.brief {
            ..BRIEF_TURNS => self.keep,
            BRIEF_TURNS.. => (self.keep / 2).max(1),
        }
    }

    fn open(&self) {
        self.state.lock().open = true;
        self.call.notify_all();
    }
}

impl Turn<'_> {
    /// The request takes about as long as waking a thread does, and others like it follow.
    pub(super) fn is_brief(&mut self) {
        self.is_brief = true;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let gate = self.gate;
        let mut state = gate.state.lock();
        if self.is_brief {
            state.brief = state.brief.saturating_add(1);
        } else {
            state.brief = 0;
            if state.serving < gate.keep && state.parked > state.called {
                state.called += 1;
                state.serving += 1;
                gate.call.notify_one();
            }
        }
        if state.serving <= gate.keep(&state) || state.open {
            return;
        }
        state.serving -= 1;
        state.parked += 1;
        while state.called == 0 && !state.open {
            gate.call.wait(&mut state);
        }
        state.called = state.called.saturating_sub(1);
        state.parked -= 1;
    }
}

impl Drop for Absence<'_> {
    fn drop(&mut self) {
        self.0.state.lock().serving += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parked_thread(gate: &Arc<Gate>) -> std::thread::JoinHandle<()> {
        let before = gate.state.lock().parked;
        let gate_of_thread = Arc::clone(gate);
        let thread = std::thread::spawn(move || drop(gate_of_thread.turn()));
        while gate.state.lock().parked == before {
            std::thread::yield_now();
        }
        thread
    }

    #[test]
    fn a_parked_thread_takes_the_place_of_the_last_one_that_steps_out() {
        let gate = Gate::new(1, Watch::off());
        gate.state.lock().serving = 1;
        let other = parked_thread(&gate);
        assert_eq!(gate.state.lock().serving, 1);
        let absence = gate.step_out();
        other.join().unwrap();
        assert_eq!(gate.state.lock().serving, 1);
        drop(absence);
        assert_eq!(gate.state.lock().serving, 2);
    }

    #[test]
    fn fewer_threads_serve_while_all_turns_are_brief() {
        let gate = Gate::new(2, Watch::off());
        gate.state.lock().serving = 1;
        let (other_gate, (go, wait)) = (Arc::clone(&gate), std::sync::mpsc::channel());
        let other = std::thread::spawn(move || {
            while wait.recv().is_ok() {
                other_gate.turn().is_brief();
            }
        });
        let turns = |n| (0..n).for_each(|_| go.send(()).unwrap());
        let until = |what: &dyn Fn(&State) -> bool| {
            while !what(&gate.state.lock()) {
                std::thread::yield_now();
            }
        };
        turns(BRIEF_TURNS - 1);
        until(&|state| state.brief == BRIEF_TURNS - 1);
        assert_eq!(gate.state.lock().serving, 2, "two may serve");
        turns(1);
        until(&|state| state.parked == 1);
        drop(gate.step_out());
        until(&|state| state.parked == 0);
        let serving = || gate.state.lock().serving;
        assert_eq!(serving(), 2, "one has waited for the device");
        turns(BRIEF_TURNS);
        until(&|state| state.parked == 1);
        drop(Turn {
            gate: &gate,
            is_brief: false,
        });
        until(&|state| state.parked == 0);
        assert_eq!(serving(), 2, "one was not brief");
        drop(go);
        other.join().unwrap();
    }

    #[test]
    fn the_end_of_an_event_loop_lets_everybody_out() {
        let gate = Gate::new(1, Watch::off());
        gate.state.lock().serving = 1;
        let others = [parked_thread(&gate), parked_thread(&gate)];
        drop(LoopEnd(Arc::clone(&gate)));
        others.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(gate.state.lock().parked, 0);
    }
}
