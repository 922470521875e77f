//! Calling executions off before their time is over: whoever wanted them has gone, or does not want
//! them any more.
//!
//! A cancellation is asked for once and holds for good. It finds an execution wherever it is: one
//! that has not begun does not begin, a kernel that runs has no time left, and a helper that moves
//! much looks in between. The order makes that certain: who cancels first says so and then looks
//! for the kernel's deadline; a run first publishes its deadline and then looks whether it was
//! cancelled.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use crate::engine::{self, Group};
use crate::request::Failure;

#[derive(Debug)]
struct Shared {
    asked: AtomicBool,
    /// The kernels that run under it.
    group: Group,
}

/// By which the executions that were submitted with it are called off
/// ([`crate::Device::cancel`]). Copies are of the same.
#[derive(Clone, Debug)]
pub struct Cancellation(Arc<Shared>);

impl Cancellation {
    /// One that nobody has asked for.
    #[must_use]
    pub fn new() -> Cancellation {
        Cancellation(Arc::new(Shared {
            asked: AtomicBool::new(false),
            group: Group::new(),
        }))
    }

    /// Whether it was asked for.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.0.asked.load(SeqCst)
    }

    /// Ends what runs under it; what does not run yet will not.
    pub(crate) fn ask(&self) {
        self.0.asked.store(true, SeqCst);
        engine::expire(self.0.group);
    }

    pub(crate) fn group(&self) -> Group {
        self.0.group
    }
}

impl Default for Cancellation {
    fn default() -> Cancellation {
        Cancellation::new()
    }
}

/// How long an execution may go on.
#[derive(Clone, Copy)]
pub(crate) struct Term<'a> {
    /// When its time is over, and how much that was.
    pub(crate) deadline: Instant,
    pub(crate) time: Duration,
    /// The device wants kernels to end.
    pub(crate) stopping: &'a AtomicBool,
    pub(crate) cancellation: Option<&'a Cancellation>,
}

impl Term<'_> {
    /// Whether it has been called off, by whomever.
    pub(crate) fn is_called_off(&self) -> bool {
        self.stopping.load(SeqCst) || self.cancellation.is_some_and(Cancellation::is_asked)
    }

    /// Whether it is over. For work that takes long, in between.
    pub(crate) fn is_over(&self) -> bool {
        self.is_called_off() || Instant::now() >= self.deadline || engine::is_overdue()
    }

    /// Why an execution whose term is over has failed.
    pub(crate) fn failure(&self) -> Failure {
        if self.stopping.load(SeqCst) {
            Failure::Stopped
        } else if self.cancellation.is_some_and(Cancellation::is_asked) {
            Failure::Cancelled
        } else {
            Failure::TimedOut(self.time)
        }
    }
}
