//! Activations: owners' registrations of a program, and the executions queued for them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use crate::device::{Core, Done, LoadedProgram};
use crate::queue::{Job, Lane};
use crate::request::{Completion, Failure, Request, Usage};
use crate::stats::{Counters, Statistics};

/// An owner's registration of a program. Dropping it deactivates: what is queued still runs, then
/// the cages it used are wiped.
pub struct Activation {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) core: Arc<Core>,
    pub(crate) program: Arc<LoadedProgram>,
    pub(crate) counters: Counters,
    lane: Arc<Lane<Task>>,
}

impl Activation {
    pub(crate) fn new(core: Arc<Core>, program: Arc<LoadedProgram>) -> Activation {
        Activation {
            inner: Arc::new(Inner {
                core,
                program,
                counters: Counters::default(),
                lane: Arc::new(Lane::new()),
            }),
        }
    }

    /// The program.
    #[must_use]
    pub fn program(&self) -> &Arc<LoadedProgram> {
        &self.inner.program
    }

    /// Statistics of this activation's executions.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.inner.counters.snapshot()
    }

    pub(crate) fn lane(&self) -> &Arc<Lane<Task>> {
        &self.inner.lane
    }

    pub(crate) fn task(&self, request: Request, done: Done) -> Task {
        Task {
            inner: Arc::clone(&self.inner),
            request,
            done,
            submitted: Instant::now(),
        }
    }
}

/// An execution that is queued.
pub(crate) struct Task {
    inner: Arc<Inner>,
    request: Request,
    done: Done,
    submitted: Instant,
}

impl Task {
    fn fail(self, failure: Failure, usage: Usage) {
        self.inner.counters.count(Some(&failure), &usage);
        self.inner.core.totals.count(Some(&failure), &usage);
        finish(
            self.done,
            Completion {
                status: Err(failure),
                output: &[],
                appended: &[],
                usage,
            },
        );
    }

    fn usage(&self) -> Usage {
        Usage {
            queued_ns: u64::try_from(self.submitted.elapsed().as_nanos()).unwrap_or(u64::MAX),
            ..Usage::default()
        }
    }
}

impl Job for Task {
    fn run(self) {
        let usage = self.usage();
        self.fail(Failure::Internal("no engine".into()), usage);
    }

    fn refuse(self) {
        let usage = self.usage();
        self.fail(Failure::Stopped, usage);
    }
}

/// Hands the completion over. A panic of the host's code ends here: the worker goes on.
fn finish(done: Done, completion: Completion<'_>) {
    if catch_unwind(AssertUnwindSafe(|| done(completion))).is_err() {
        tracing::error!("the host panicked on a completion");
    }
}
