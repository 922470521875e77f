//! What became of the cases.

use std::fmt;

use csd_vm::lab::{Ending, Verdict};

use crate::cases::Kind;

/// The counts, in the order of their names.
const NAMES: [&str; 14] = [
    "refused",
    "returned",
    "failed",
    "faulted",
    "overflowed",
    "ended by a helper",
    "at a limit",
    "endless",
    "otherwise",
    "10 instructions",
    "100 instructions",
    "1000 instructions",
    "10 accesses",
    "a helper call",
];
const REFUSED: usize = 0;
const ENDLESS: usize = 7;
/// First of those that count what executions did.
const DEPTHS: usize = 9;

#[derive(Clone, Default)]
pub(crate) struct Tally {
    counts: [u64; NAMES.len()],
    pub(crate) seconds: f64,
}

impl Tally {
    pub(crate) fn count(&mut self, verdict: &Verdict) {
        let (outcome, instructions, accesses) = match verdict {
            Verdict::Refused(_) => return self.counts[REFUSED] += 1,
            Verdict::Endless => {
                self.counts[ENDLESS] += 1;
                return self.counts[DEPTHS..]
                    .iter_mut()
                    .for_each(|count| *count += 1);
            }
            Verdict::Ran {
                outcome,
                instructions,
                accesses,
            } => (outcome, *instructions, *accesses),
        };
        self.counts[match outcome.ending() {
            Ending::Returned => 1,
            Ending::Failed => 2,
            Ending::Fault => 3,
            Ending::StackOverflow => 4,
            Ending::Helper => 5,
            Ending::Limit => 6,
            Ending::TimedOut | Ending::Other => 8,
        }] += 1;
        let reached = [
            instructions >= 10,
            instructions >= 100,
            instructions >= 1000,
            accesses >= 10,
            outcome.usage.helper_calls > 0,
        ];
        for (count, reached) in self.counts[DEPTHS..].iter_mut().zip(reached) {
            *count += u64::from(reached);
        }
    }

    pub(crate) fn tried(&self) -> u64 {
        self.counts[..DEPTHS].iter().sum()
    }

    fn ran(&self) -> u64 {
        self.tried() - self.counts[REFUSED]
    }

    pub(crate) fn plus(&self, other: &Tally) -> Tally {
        let mut sum = self.clone();
        for (count, more) in sum.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        sum
    }

    /// For [`Tally::parse`].
    pub(crate) fn line(&self) -> String {
        self.counts.map(|count| count.to_string()).join(" ")
    }

    pub(crate) fn parse(line: &str) -> Tally {
        let mut tally = Tally::default();
        for (count, word) in tally.counts.iter_mut().zip(line.split(' ')) {
            *count = word.parse().unwrap_or(0);
        }
        tally
    }

    pub(crate) fn brief(&self) -> String {
        format!("{} ran", self.ran())
    }

    /// Why the cases do not prove much, if they do not.
    pub(crate) fn shallow(&self, kind: Kind) -> Vec<String> {
        // Of those that were tried, those that ran; of those, the depths in percent.
        let (ran, depths) = match kind {
            Kind::Stream => (85, [90, 55, 20, 65, 65]),
            Kind::Object => (60, [85, 40, 20, 55, 80]),
        };
        let mut reasons = Vec::new();
        if self.tried() < 1000 {
            return reasons;
        }
        let mut need = |what: &str, count: u64, of: u64, percent: u64| {
            if count * 100 < of * percent {
                reasons.push(format!("{what}: {count} of {of}, wanted {percent} %"));
            }
        };
        need("accepted", self.ran(), self.tried(), ran);
        let named = NAMES[DEPTHS..].iter().zip(&self.counts[DEPTHS..]);
        for ((name, count), percent) in named.zip(depths) {
            need(name, *count, self.ran(), percent);
        }
        reasons
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.tried() as f64 / self.seconds.max(1e-9);
        write!(f, "{} cases, {rate:.0} per second;", self.tried())?;
        for (name, count) in NAMES.iter().zip(self.counts).take(DEPTHS) {
            write!(f, " {name} {count},")?;
        }
        let percent = |count: u64| 100 * count / self.ran().max(1);
        write!(f, " of {} that ran", self.ran())?;
        for (name, count) in NAMES.iter().zip(self.counts).skip(DEPTHS) {
            write!(f, ", {} % {name}", percent(count))?;
        }
        Ok(())
    }
}
