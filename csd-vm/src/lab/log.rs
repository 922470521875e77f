//! The lines that kernels log, kept instead of printed.

use std::fmt::Debug;
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Metadata, Subscriber, dispatcher};

/// What was logged.
pub(super) struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    dispatch: Dispatch,
}

impl Log {
    pub(super) fn new() -> Log {
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let dispatch = Dispatch::new(Lines(Arc::clone(&lines)));
        Log { lines, dispatch }
    }

    /// Carries out `work`, and tells what kernels logged meanwhile on this thread.
    pub(super) fn lines_of<R>(&self, work: impl FnOnce() -> R) -> (R, Vec<String>) {
        let done = dispatcher::with_default(&self.dispatch, work);
        (done, std::mem::take(&mut self.lines.lock()))
    }
}

struct Lines(Arc<Mutex<Vec<String>>>);

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "csd_vm::kernel"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut Message(&mut self.0.lock()));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Message<'a>(&'a mut Vec<String>);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0.push(format!("{value:?}"));
        }
    }
}
