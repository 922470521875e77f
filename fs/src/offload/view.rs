//! Outputs of kernels that ran over a whole file, read by a handle like the contents of a file.
//!
//! The first read through a handle starts the kernel; reads that come meanwhile wait for it without
//! a thread. The output is kept until the handle is closed, within a budget of all handles. A run
//! goes on as long as somebody waits for it, whoever started it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::dying::Waiter;
use super::limits::Share;

/// Answers a read with its bytes, or with an errno.
pub type ReadReply = Box<dyn FnOnce(Result<&[u8], i32>) + Send>;

/// The output of a kernel, and its part of what may be kept.
pub(super) struct Output {
    pub(super) bytes: Vec<u8>,
    pub(super) _share: Share,
}

/// Why there is no output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unanswered {
    pub(super) errno: i32,
    /// The same would happen again, so it holds for the reads to come.
    pub(super) lasting: bool,
}

/// A read of an output.
pub(super) struct Waiting {
    pub(super) offset: u64,
    pub(super) size: usize,
    pub(super) waiter: Waiter,
    pub(super) reply: ReadReply,
}

/// Names a run of a kernel for a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The number of the registration.
    pub(super) registration: u64,
    run: u64,
}

enum View {
    Running { run: u64, waiting: Vec<Waiting> },
    Ready(Arc<Output>),
    Failed(i32),
}

/// The outputs that one handle reads, by the number of the registration.
#[derive(Default)]
pub(super) struct Views {
    views: Mutex<HashMap<u64, View>>,
    runs: AtomicU64,
}

impl Waiting {
    fn answer(self, output: Result<&[u8], i32>) {
        (self.reply)(output.map(|bytes| {
            let start = bytes
                .len()
                .min(usize::try_from(self.offset).unwrap_or(usize::MAX));
            let end = bytes.len().min(start.saturating_add(self.size));
            &bytes[start..end]
        }));
    }
}

impl Views {
    /// Answers a read when its output is there. If the caller is to produce that, names the run.
    pub(super) fn read(&self, registration: u64, read: Waiting) -> Option<Run> {
        let mut views = self.views.lock();
        match views.entry(registration) {
            Entry::Vacant(vacant) => {
                let run = self.runs.fetch_add(1, Ordering::Relaxed);
                let waiting = vec![read];
                vacant.insert(View::Running { run, waiting });
                // A handle has one view at a time: the output of one that was replaced is let go.
                views.retain(|number, view| {
                    *number == registration || matches!(view, View::Running { .. })
                });
                Some(Run { registration, run })
            }
            Entry::Occupied(mut occupied) => {
                let output = match occupied.get_mut() {
                    View::Running { waiting, .. } => {
                        waiting.push(read);
                        return None;
                    }
                    View::Ready(output) => Ok(Arc::clone(output)),
                    View::Failed(errno) => Err(*errno),
                };
                drop(views);
                read.answer(output.as_ref().map(|o| o.bytes.as_slice()).map_err(|e| *e));
                None
            }
        }
    }

    /// The output is there, or will not be: answers all who wait for it. Does nothing if nobody
    /// does any more.
    pub(super) fn finish(&self, run: Run, output: Result<Arc<Output>, Unanswered>) {
        let mut views = self.views.lock();
        let Some(waiting) = Views::waiting(&mut views, run).map(std::mem::take) else {
            return;
        };
        match &output {
            Ok(output) => {
                views.insert(run.registration, View::Ready(Arc::clone(output)));
            }
            Err(Unanswered {
                errno,
                lasting: true,
            }) => {
                views.insert(run.registration, View::Failed(*errno));
            }
            Err(_) => {
                views.remove(&run.registration);
            }
        }
        drop(views);
        for read in waiting {
            let output = output.as_ref().map(|output| output.bytes.as_slice());
            read.answer(output.map_err(|unanswered| unanswered.errno));
        }
    }

    /// Who waits for a run.
    pub(super) fn waiters(&self, run: Run) -> Vec<Waiter> {
        let mut views = self.views.lock();
        let waiting = Views::waiting(&mut views, run);
        waiting.map_or_else(Vec::new, |waiting| {
            waiting.iter().map(|read| read.waiter).collect()
        })
    }

    /// Answers the reads of those who are gone with an errno. Tells whether nobody waits for the run
    /// any more: it is over then, and the next read starts another.
    pub(super) fn abandon(&self, run: Run, gone: &[Waiter], errno: i32) -> bool {
        let mut views = self.views.lock();
        let Some(waiting) = Views::waiting(&mut views, run) else {
            return true;
        };
        let (left, stay): (Vec<Waiting>, _) = std::mem::take(waiting)
            .into_iter()
            .partition(|read| gone.contains(&read.waiter));
        let deserted = stay.is_empty();
        *waiting = stay;
        if deserted {
            views.remove(&run.registration);
        }
        drop(views);
        left.into_iter().for_each(|read| read.answer(Err(errno)));
        deserted
    }

    fn waiting(views: &mut HashMap<u64, View>, of: Run) -> Option<&mut Vec<Waiting>> {
        match views.get_mut(&of.registration) {
            Some(View::Running { run, waiting }) if *run == of.run => Some(waiting),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::limits::{Accounts, Resource};
    use std::sync::mpsc::{Receiver, channel};

    type Answer = Receiver<Result<Vec<u8>, i32>>;

    fn waiter(thread: u32) -> Waiter {
        Waiter {
            thread,
            process: None,
        }
    }

    fn read_by(thread: u32, offset: u64, size: usize) -> (Waiting, Answer) {
        let (sender, receiver) = channel();
        let reply = Box::new(move |answer: Result<&[u8], i32>| {
            sender.send(answer.map(<[u8]>::to_vec)).unwrap();
        });
        let waiting = Waiting {
            offset,
            size,
            waiter: waiter(thread),
            reply,
        };
        (waiting, receiver)
    }

    fn read(offset: u64, size: usize) -> (Waiting, Answer) {
        read_by(1, offset, size)
    }

    fn output(accounts: &Accounts, bytes: &[u8]) -> Arc<Output> {
        let share = accounts.of(0).take(Resource::ViewBytes, bytes.len() as u64);
        Arc::new(Output {
            bytes: bytes.to_vec(),
            _share: share.unwrap(),
        })
    }

    #[test]
    fn reads_wait_for_the_one_run_and_then_see_a_file_that_ends() {
        let (views, accounts) = (Views::default(), Accounts::default());
        let (first, first_answer) = read(0, 3);
        let (second, second_answer) = read(3, 100);
        let run = views.read(1, first).unwrap();
        assert_eq!(views.read(1, second), None);
        assert!(first_answer.try_recv().is_err());
        views.finish(run, Ok(output(&accounts, b"output")));
        assert_eq!(first_answer.recv().unwrap(), Ok(b"out".to_vec()));
        assert_eq!(second_answer.recv().unwrap(), Ok(b"put".to_vec()));
        for (offset, expected) in [(5, &b"t"[..]), (6, b""), (u64::MAX, b"")] {
            let (late, answer) = read(offset, 10);
            assert_eq!(views.read(1, late), None);
            assert_eq!(answer.recv().unwrap(), Ok(expected.to_vec()));
        }
        assert_eq!(accounts.used(Resource::ViewBytes), 6);
        drop(views);
        assert_eq!(accounts.used(Resource::ViewBytes), 0);
    }

    #[test]
    fn a_failure_that_lasts_is_what_every_read_gets_and_another_is_forgotten() {
        let views = Views::default();
        for lasting in [false, true] {
            let (first, answer) = read(0, 1);
            let run = views.read(1, first).unwrap();
            let errno = libc::EIO;
            views.finish(run, Err(Unanswered { errno, lasting }));
            assert_eq!(answer.recv().unwrap(), Err(libc::EIO));
        }
        let (next, answer) = read(0, 1);
        assert_eq!(views.read(1, next), None);
        assert_eq!(answer.recv().unwrap(), Err(libc::EIO));
    }

    #[test]
    fn a_run_goes_on_as_long_as_anybody_waits_for_it() {
        let (views, accounts) = (Views::default(), Accounts::default());
        let (first, first_answer) = read_by(1, 0, 9);
        let (second, second_answer) = read_by(2, 0, 9);
        let run = views.read(7, first).unwrap();
        assert_eq!(views.read(7, second), None);
        assert_eq!(views.waiters(run), [waiter(1), waiter(2)]);
        assert!(!views.abandon(run, &[waiter(1), waiter(3)], libc::EIO));
        assert_eq!(first_answer.recv().unwrap(), Err(libc::EIO));
        assert_eq!(views.waiters(run), [waiter(2)]);
        views.finish(run, Ok(output(&accounts, b"there")));
        assert_eq!(second_answer.recv().unwrap(), Ok(b"there".to_vec()));
    }

    #[test]
    fn a_run_that_everybody_left_makes_room_for_another() {
        let (views, accounts) = (Views::default(), Accounts::default());
        let (first, first_answer) = read_by(1, 0, 9);
        let old = views.read(7, first).unwrap();
        assert!(views.abandon(old, &[waiter(1)], libc::EIO));
        assert_eq!(first_answer.recv().unwrap(), Err(libc::EIO));
        let (second, second_answer) = read_by(2, 0, 9);
        let new = views.read(7, second).unwrap();
        // The end of the old one is nobody's.
        views.finish(old, Ok(output(&accounts, b"old")));
        assert!(second_answer.try_recv().is_err() && views.waiters(old).is_empty());
        views.finish(new, Ok(output(&accounts, b"new")));
        assert_eq!(second_answer.recv().unwrap(), Ok(b"new".to_vec()));
    }
}
