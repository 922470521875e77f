//! The command line, and what `cargo test` adds to it.

use std::path::PathBuf;

use csd_vm::program::fuzz;

use crate::cases::Kind;

/// Cases as in CI.
const STREAMS: u64 = 10_000;
const OBJECTS: u64 = 6000;

/// Options that `cargo test` may pass on, which mean nothing here, and those of them with a value.
const OF_LIBTEST: [&str; 9] = [
    "--nocapture",
    "--no-capture",
    "--exact",
    "--quiet",
    "-q",
    "--show-output",
    "--include-ignored",
    "--test",
    "--bench",
];
const OF_LIBTEST_WITH_VALUE: [&str; 5] = ["--test-threads", "--format", "--color", "--skip", "-Z"];

pub(crate) enum Mode {
    /// Tells the names of the tests.
    List,
    /// Tries all cases in children.
    All,
    /// Is such a child.
    Child { kind: Kind, first: u64, last: u64 },
    /// Tries one object.
    One {
        object: PathBuf,
        request: u64,
        /// The kernel it was made from.
        like: String,
    },
}

pub(crate) struct Arguments {
    pub(crate) mode: Mode,
    pub(crate) streams: u64,
    pub(crate) objects: u64,
    pub(crate) first: u64,
    pub(crate) seed: u64,
    pub(crate) keep: PathBuf,
    filters: Vec<String>,
}

impl Arguments {
    pub(crate) fn of_process() -> Result<Arguments, String> {
        let mut out = Arguments {
            mode: Mode::All,
            streams: fuzz::cases(STREAMS),
            objects: fuzz::cases(OBJECTS),
            first: 0,
            seed: fuzz::seed(1),
            keep: crate::scratch().join("fuzz-failures"),
            filters: Vec::new(),
        };
        let mut words = std::env::args().skip(1);
        let (mut one, mut request, mut like, mut child) = (None, 0, String::new(), None);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--streams" => out.streams = number(&value()?)?,
                "--objects" => out.objects = number(&value()?)?,
                "--cases" => {
                    out.streams = number(&value()?)?;
                    out.objects = out.streams / 2;
                }
                "--first" => out.first = number(&value()?)?,
                "--seed" => out.seed = number(&value()?)?,
                "--keep" => out.keep = value()?.into(),
                "--one" => one = Some(PathBuf::from(value()?)),
                "--request" => request = number(&value()?)?,
                "--like" => like = value()?,
                "--child" => child = Some(Kind::named(&value()?)?),
                "--list" => out.mode = Mode::List,
                flag if OF_LIBTEST.contains(&flag) || flag.contains("=") => {}
                flag if OF_LIBTEST_WITH_VALUE.contains(&flag) => _ = value()?,
                flag if flag.starts_with('-') => return Err(format!("there is no option {flag}")),
                filter => out.filters.push(filter.to_owned()),
            }
        }
        if let Some(kind) = child {
            let bounds: Vec<u64> = out.filters.drain(..).flat_map(|n| number(&n)).collect();
            let [first, last] = bounds[..] else {
                return Err("--child needs the first case and the one after the last".into());
            };
            out.mode = Mode::Child { kind, first, last };
        }
        if let Some(object) = one {
            out.mode = Mode::One {
                object,
                request,
                like,
            };
        }
        Ok(out)
    }

    /// Whether cases of this kind are among those that were asked for by name.
    pub(crate) fn wants(&self, kind: Kind) -> bool {
        let name = format!("fuzz::{}", kind.name());
        self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter))
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text} is no number"))
}
