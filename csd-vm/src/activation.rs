//! Activations: owners' registrations of a program, and the executions queued for them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use crate::cancellation::Cancellation;
use crate::device::{Core, Done, LoadedProgram};
use crate::engine;
use crate::execution::{End, Instance, KEPT_BYTES, nanos};
use crate::pool::{Owner, Taken};
use crate::queue::{Ending, Job, Lane, Tenant};
use crate::request::{Completion, Failure, Operation, Request, Usage};
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
    owner: Owner,
    ended: AtomicBool,
}

impl Inner {
    fn count(&self, failure: Option<&Failure>, usage: &Usage) {
        self.counters.count(failure, usage);
        self.core.totals.count(failure, usage);
    }

    /// Keeps a cage for the next execution.
    fn keep(&self, mut instance: Instance, end: &End) {
        let pool = &self.core.pool;
        match instance.settle(end) {
            Ok(()) if !matches!(end.status, Err(Failure::Internal(_))) => {
                pool.give_back(self.owner, &self.ended, instance);
            }
            _ => pool.discard(instance),
        }
    }
}

impl Activation {
    pub(crate) fn new(core: Arc<Core>, program: Arc<LoadedProgram>, tenant: Tenant) -> Activation {
        let owner = Owner(core.owners.fetch_add(1, Relaxed));
        Activation {
            inner: Arc::new(Inner {
                core,
                program,
                counters: Counters::default(),
                lane: Arc::new(Lane::new(tenant)),
                owner,
                ended: AtomicBool::new(false),
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

    pub(crate) fn task(
        &self,
        request: Request,
        cancellation: Option<Cancellation>,
        done: Done,
    ) -> Task {
        Task {
            inner: Arc::clone(&self.inner),
            request,
            cancellation,
            done,
            submitted: Instant::now(),
        }
    }
}

impl Drop for Activation {
    fn drop(&mut self) {
        let inner = &self.inner;
        inner.core.pool.retire(inner.owner, &inner.ended);
    }
}

/// An execution that is queued.
pub(crate) struct Task {
    inner: Arc<Inner>,
    request: Request,
    cancellation: Option<Cancellation>,
    done: Done,
    submitted: Instant,
}

impl Task {
    /// Runs the kernel in a cage of its owner's.
    fn execute(&self) -> Result<(Instance, End), Failure> {
        let Inner { core, program, .. } = &*self.inner;
        if self.is_cancelled() {
            return Err(Failure::Cancelled);
        }
        let internal = |error: &dyn std::fmt::Display| Failure::Internal(error.to_string());
        let taken = core.pool.take(self.inner.owner, &program.hash());
        let Taken { mut instance, warm } = taken.map_err(|error| internal(&error))?;
        if warm {
            core.warm_starts.fetch_add(1, Relaxed);
        }
        // What panics leave behind is thrown away with the cage.
        let run = catch_unwind(AssertUnwindSafe(|| {
            if instance.bind(program)? {
                core.bindings.fetch_add(1, Relaxed);
            }
            let cancellation = self.cancellation.as_ref();
            Ok(instance.run(core, &program.program, &self.request, cancellation))
        }));
        match run {
            Ok(Ok(end)) => Ok((instance, end)),
            Ok(Err(error)) => {
                core.pool.recycle(instance);
                Err(Failure::Internal(error))
            }
            Err(_) => {
                core.pool.discard(instance);
                Err(Failure::Internal("an execution panicked".into()))
            }
        }
    }

    /// Counts the execution and hands its end over.
    fn complete(self, instance: Instance, mut end: End, queued_ns: u64, ending: &Ending<'_>) {
        end.usage.queued_ns = queued_ns;
        self.inner.count(end.status.as_ref().err(), &end.usage);
        let (output, appended) = match end.status {
            Ok(_) => instance.results(&end),
            Err(_) => Default::default(),
        };
        let completion = Completion {
            status: end.status.clone(),
            output,
            appended,
            usage: end.usage,
        };
        let pool = &self.inner.core.pool;
        pool.announce(self.inner.owner);
        // A reader is given the output, no more; what a writer is to be told may take longer.
        if self.request.operation == Operation::ReadStream && output.len() as u64 <= KEPT_BYTES {
            ending.is_near();
        }
        finish(self.done, completion);
        self.inner.keep(instance, &end);
        pool.keep_word(self.inner.owner);
        drop(self.request);
    }

    fn fail(self, failure: Failure, queued_ns: u64) {
        let usage = Usage {
            queued_ns,
            ..Usage::default()
        };
        self.inner.count(Some(&failure), &usage);
        let completion = Completion {
            status: Err(failure),
            output: &[],
            appended: &[],
            usage,
        };
        finish(self.done, completion);
    }
}

impl Job for Task {
    fn run(self, ending: &Ending<'_>) {
        let queued_ns = nanos(self.submitted.elapsed());
        match self.execute() {
            Ok((instance, end)) => self.complete(instance, end, queued_ns, ending),
            Err(failure) => self.fail(failure, queued_ns),
        }
        engine::settle();
    }

    fn refuse(self) {
        let queued_ns = nanos(self.submitted.elapsed());
        let why = match self.is_cancelled() {
            true => Failure::Cancelled,
            false => Failure::Stopped,
        };
        self.fail(why, queued_ns);
    }

    fn is_cancelled(&self) -> bool {
        self.cancellation
            .as_ref()
            .is_some_and(Cancellation::is_asked)
    }
}

/// Hands the completion over. A panic of the host's code ends here: the worker goes on.
fn finish(done: Done, completion: Completion<'_>) {
    if catch_unwind(AssertUnwindSafe(|| done(completion))).is_err() {
        tracing::error!("the host panicked on a completion");
    }
}
