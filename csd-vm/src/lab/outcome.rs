//! All that can be seen of an execution.

use crate::engine::cage::PAGE;
use crate::request::{Failure, Usage};

/// What an execution did.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// What it returned, or why it failed.
    pub status: Result<u64, Failure>,
    /// What it emitted; empty after a failure.
    pub output: Vec<u8>,
    /// What it appended; empty after a failure.
    pub appended: Vec<u8>,
    /// What it cost, times set to 0.
    pub usage: Usage,
    /// What it logged.
    pub log: Vec<String>,
    /// The pages of the cage that are not zero, by their offset.
    pub memory: Vec<(u64, Vec<u8>)>,
}

/// How an execution ended, to be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ending {
    /// It succeeded.
    Returned,
    /// It returned a negative number.
    Failed,
    /// It touched memory it does not have.
    Fault,
    /// It recursed too deeply.
    StackOverflow,
    /// A helper ended it.
    Helper,
    /// It exceeded a limit.
    Limit,
    /// Its time was over.
    TimedOut,
    /// Something else.
    Other,
}

pub(super) fn without_times(usage: Usage) -> Usage {
    Usage {
        run_ns: 0,
        processor_ns: 0,
        queued_ns: 0,
        ..usage
    }
}

/// Whether two faults can be of one access, to the end of one page and the start of the next.
fn is_same_fault(a: &Result<u64, Failure>, b: &Result<u64, Failure>) -> bool {
    let is_last_of_page = |offset: &u64| offset % PAGE > PAGE - 8;
    match (a, b) {
        (Err(Failure::Fault(a)), Err(Failure::Fault(b))) => {
            let (first, second) = (a.min(b), a.max(b));
            is_last_of_page(first) && *second == first.next_multiple_of(PAGE)
        }
        // The second page is the guard below the stack.
        (Err(Failure::Fault(at)), Err(Failure::StackOverflow))
        | (Err(Failure::StackOverflow), Err(Failure::Fault(at))) => is_last_of_page(at),
        _ => false,
    }
}

impl Outcome {
    /// How it ended.
    #[must_use]
    pub fn ending(&self) -> Ending {
        match &self.status {
            Ok(_) => Ending::Returned,
            Err(Failure::Returned(_)) => Ending::Failed,
            Err(Failure::Fault(_)) => Ending::Fault,
            Err(Failure::StackOverflow) => Ending::StackOverflow,
            Err(Failure::Helper { .. }) => Ending::Helper,
            Err(Failure::Limit(_)) => Ending::Limit,
            Err(Failure::TimedOut(_) | Failure::ProcessorTime(_)) => Ending::TimedOut,
            Err(_) => Ending::Other,
        }
    }

    /// What is not the same in `other`. A stack that overflows may do so some calls earlier or later,
    /// and where both pages of an access are missing, the processor chooses which one to name.
    #[must_use]
    pub fn difference(&self, other: &Outcome) -> Option<String> {
        let texts = |this: &Outcome| format!("{:?}", this.status);
        if self.status != other.status && !is_same_fault(&self.status, &other.status) {
            return Some(format!("the end: {} and {}", texts(self), texts(other)));
        }
        if [self.ending(), other.ending()].contains(&Ending::StackOverflow) {
            return None;
        }
        if let Some((at, a, b)) = self.first_other_byte(other) {
            return Some(format!(
                "byte {at:#x} of the cage: {a:#x} and {b:#x}, at the end: {}",
                texts(self)
            ));
        }
        if self.output != other.output || self.appended != other.appended {
            return Some(format!(
                "output of {} and {} bytes, appended {} and {}",
                self.output.len(),
                other.output.len(),
                self.appended.len(),
                other.appended.len()
            ));
        }
        if self.usage != other.usage {
            return Some(format!("usage: {:?} and {:?}", self.usage, other.usage));
        }
        (self.log != other.log).then(|| format!("logs: {:?} and {:?}", self.log, other.log))
    }

    /// Where the memory differs first, and what is there.
    fn first_other_byte(&self, other: &Outcome) -> Option<(u64, u8, u8)> {
        let page = |this: &Outcome, at: u64| {
            let found = this.memory.binary_search_by_key(&at, |(offset, _)| *offset);
            found.ok().map(|index| this.memory[index].1.clone())
        };
        let offsets = self.memory.iter().chain(&other.memory).map(|(at, _)| *at);
        for offset in offsets {
            let (mine, theirs) = (page(self, offset), page(other, offset));
            if mine == theirs {
                continue;
            }
            let byte = |page: &Option<Vec<u8>>, at: usize| page.as_ref().map_or(0, |p| p[at]);
            let length = mine.as_ref().or(theirs.as_ref()).map_or(0, Vec::len);
            let at = (0..length).find(|at| byte(&mine, *at) != byte(&theirs, *at))?;
            return Some((offset + at as u64, byte(&mine, at), byte(&theirs, at)));
        }
        None
    }
}
