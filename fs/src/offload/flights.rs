//! Requests under way: who waits for which execution, so that none goes on for nobody.
//!
//! An execution is called off when its registration ends, however that happens, and when all who
//! wait for it are being killed. The kernel keeps a thread that waits from ending, even with
//! SIGKILL; so while requests wait longer than [`PERIOD`], the thread that watches owners looks at
//! those who made them ([`is_dying`]), and again every period. Shorter requests are never looked
//! at; as long as there is none at all, the thread sleeps.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use csd_vm::{Cancellation, Device};
use parking_lot::Mutex;

use super::dying::{Waiter, is_dying};
use super::process::ProcessId;
use super::registry::{Handle, Registration};
use super::view::Run;

/// How often those are looked at who wait.
pub(super) const PERIOD: Duration = Duration::from_millis(50);
/// Looking takes one part in so many of a processor's time at most.
const LOOKING_PART: u32 = 5;
/// What is answered when an execution is called off: what reads and writes fail with whatever else
/// becomes of a kernel.
pub(super) const CALLED_OFF: i32 = libc::EIO;

/// Who waits for an execution.
pub(super) enum Waits {
    /// A thread.
    Thread(Waiter),
    /// Those who read a view.
    View(Arc<Handle>, Run),
}

/// An execution somebody waits for.
struct Flight {
    registration: Arc<Registration>,
    waits: Waits,
    cancellation: Cancellation,
    begun: Instant,
    /// The processes of those who wait, as far as they have been looked at.
    processes: Mutex<HashMap<u32, Option<ProcessId>>>,
}

/// All requests under way.
#[derive(Default)]
pub(super) struct Flights {
    flights: Mutex<HashMap<u64, Arc<Flight>>>,
    next: AtomicU64,
    /// Somebody looks after them.
    watched: AtomicBool,
}

/// A request under way, until it is dropped.
pub(super) struct Ticket {
    flights: Arc<Flights>,
    number: u64,
    pub(super) cancellation: Cancellation,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let flight = self.flights.flights.lock().remove(&self.number);
        // It may be the last that refers to a registration: not under the lock.
        drop(flight);
    }
}

impl Flight {
    /// Answers those of its readers who are being killed; tells whether nobody is left.
    fn is_deserted(&self) -> bool {
        let mut processes = self.processes.lock();
        let mut dying = |waiter: &Waiter| {
            let process = processes.entry(waiter.thread).or_insert(waiter.process);
            is_dying(waiter.thread, process)
        };
        match &self.waits {
            Waits::Thread(waiter) => dying(waiter),
            Waits::View(handle, run) => {
                let mut gone = handle.views.waiters(*run);
                gone.retain(dying);
                !gone.is_empty() && handle.views.abandon(*run, &gone, CALLED_OFF)
            }
        }
    }
}

impl Flights {
    /// A request sets out. The second value tells that the caller must wake the watch.
    pub(super) fn begin(
        self: &Arc<Flights>,
        registration: &Arc<Registration>,
        waits: Waits,
    ) -> (Ticket, bool) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let cancellation = Cancellation::new();
        let flight = Arc::new(Flight {
            registration: Arc::clone(registration),
            waits,
            cancellation: cancellation.clone(),
            begun: Instant::now(),
            processes: Mutex::default(),
        });
        self.flights.lock().insert(number, flight);
        let ticket = Ticket {
            flights: Arc::clone(self),
            number,
            cancellation,
        };
        let unwatched = !self.watched.load(Ordering::SeqCst);
        (
            ticket,
            unwatched && !self.watched.swap(true, Ordering::SeqCst),
        )
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.flights.lock().len()
    }

    /// Calls off what was started for registrations that have ended.
    pub(super) fn call_off(&self, device: &Device, ended: &[Arc<Registration>]) {
        if ended.is_empty() {
            return;
        }
        let flights = self.those(|flight| flight.registration.has_ended());
        for registration in ended {
            let own = flights
                .iter()
                .filter(|flight| Arc::ptr_eq(&flight.registration, registration));
            let cancellations = own.map(|flight| &flight.cancellation);
            device.cancel(&registration.activation, cancellations);
        }
    }

    /// Looks who waits, and calls off what nobody does any more. Returns when to look again;
    /// `None` if nobody waits, until [`Flights::begin`] says otherwise.
    pub(super) fn look(&self, device: Option<&Device>) -> Option<Duration> {
        let begun = Instant::now();
        let late = self.those(|flight| begun.duration_since(flight.begun) >= PERIOD);
        for flight in late {
            if flight.is_deserted()
                && let Some(device) = device
            {
                device.cancel(&flight.registration.activation, [&flight.cancellation]);
            }
        }
        if self.count() > 0 {
            return Some(PERIOD.max(begun.elapsed() * (LOOKING_PART - 1)));
        }
        self.watched.store(false, Ordering::SeqCst);
        // One that set out meanwhile may have taken it for watched.
        let again = self.count() > 0 && !self.watched.swap(true, Ordering::SeqCst);
        again.then_some(PERIOD)
    }

    fn those(&self, which: impl Fn(&Flight) -> bool) -> Vec<Arc<Flight>> {
        let flights = self.flights.lock();
        let found = flights.values().filter(|flight| which(flight));
        found.cloned().collect()
    }
}
