//! What `fuser` reports and is no error: kept out of the log.
//!
//! `fuser` answers FUSE_INTERRUPT, by which the kernel says that a signal came for whoever waits for a
//! request, with ENOSYS: requests are not given up half way. io_uring's own notices count as such signals,
//! so a database that uses it brings about some per second. With several event loops the message is mostly
//! read by another loop than its request was, or comes when the request has been answered; the kernel
//! knows no such request there, says ENOENT, and needs no answer either. `fuser` reports that as an error
//! of its own. Here it is taken out; an answer that fails otherwise is reported.
//!
//! That a request is answered twice, which would look the same, `fuser` rules out: an answer is an object
//! that is used up.

use std::fmt::Debug;
use std::io;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// Takes reports of answers out that nobody waited for; see the module's text.
pub struct WithoutLateAnswers;

impl<S: Subscriber> Layer<S> for WithoutLateAnswers {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        // The target of what comes through the crate `log`.
        if *event.metadata().level() != Level::ERROR || event.metadata().target() != "log" {
            return true;
        }
        let mut record = Record::default();
        event.record(&mut record);
        let none_waited = io::Error::from_raw_os_error(libc::ENOENT);
        !(record.target.starts_with("fuser")
            && record.message == format!("Failed to send FUSE reply: {none_waited}"))
    }
}

/// What an event says, and where it comes from.
#[derive(Default)]
struct Record {
    target: String,
    message: String,
}

impl Visit for Record {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "log.target" => self.target = value.to_owned(),
            "message" => self.message = value.to_owned(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::prelude::*;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn only_answers_that_nobody_waited_for_are_kept_out() {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry()
            .with(WithoutLateAnswers)
            .with(layer);
        let failed = |code| io::Error::from_raw_os_error(code);
        tracing::subscriber::with_default(subscriber, || {
            // As `tracing-log` passes on what `fuser` logs.
            for code in [libc::ENOENT, libc::EINVAL] {
                let error = failed(code);
                tracing::error!(
                    target: "log",
                    { "log.target" = "fuser::reply" },
                    "Failed to send FUSE reply: {error}"
                );
            }
            let error = failed(libc::ENOENT);
            tracing::error!("Failed to send FUSE reply: {error}");
            tracing::error!(target: "log", { "log.target" = "fuser::session" }, "lost: {error}");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let kept = text.lines().map(|line| {
            let late = line.contains("reply: No such file");
            (
                late,
                line.contains("Invalid argument"),
                line.contains("lost"),
            )
        });
        let expected = [
            (false, true, false),
            (true, false, false),
            (false, false, true),
        ];
        assert!(kept.eq(expected), "{text}");
    }
}
