//! Where the program writes: logs, progress, JSON.

use std::fs::File;
use std::io::IsTerminal;
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tracing_subscriber::layer::Layered;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use super::Failure;
use crate::fuse::late::WithoutLateAnswers;

/// Environment variable that sets what is logged.
const LOG_VARIABLE: &str = "WARREN_LOG";

fn filter() -> EnvFilter {
    EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new("warn"))
}

/// Starts logging.
fn start(
    lines: impl Layer<Layered<WithoutLateAnswers, Layered<EnvFilter, Registry>>> + Send + Sync,
) {
    tracing_subscriber::registry()
        .with(filter())
        .with(WithoutLateAnswers)
        .with(lines)
        .init();
}

/// Logs go to standard error.
pub(super) fn log_to_stderr() {
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    start(lines.with_target(false));
}

/// Logs go to a file, as do the reports of panics.
pub(super) fn log_to_file(file: File) {
    let lines = fmt::layer().with_writer(Mutex::new(file)).with_ansi(false);
    start(lines.with_target(false));
}

/// Panics are reported through the log, where standard error leads nowhere.
pub(super) fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed").to_owned();
        tracing::error!(thread = name, "internal error: {panic}");
    }));
}

/// Prints a report as JSON on standard output.
pub(super) fn print_json(report: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(report).map_err(|e| Failure::new("report", e))?;
    print(&text);
    Ok(())
}

/// Prints lines on standard output. A reader that has seen enough is no error.
pub(super) fn print(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// A progress bar on standard error if that is a terminal, otherwise nothing.
pub(super) struct Bar(ProgressBar);

impl Bar {
    /// A bar with a label.
    pub(super) fn new(label: &'static str) -> Bar {
        Bar::with(label, "{msg} {wide_bar} {percent:>3} % {eta:>4}")
    }

    /// A counter with a label, for work of unknown length.
    pub(super) fn counter(label: &'static str) -> Bar {
        Bar::with(label, "{msg} {spinner} {human_pos} ({per_sec})")
    }

    fn with(label: &'static str, template: &'static str) -> Bar {
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new(0)
        } else {
            ProgressBar::hidden()
        };
        let style = ProgressStyle::with_template(template);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(label);
        Bar(bar)
    }

    /// Shows how much is done.
    pub(super) fn count(&self, done: u64) {
        self.0.set_position(done);
    }

    /// Shows how much of how much is done.
    pub(super) fn show(&self, done: u64, total: u64) {
        self.0.set_length(total);
        self.0.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
