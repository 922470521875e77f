//! Outputs of kernels that ran over a whole file, read by a handle like the contents of a file.
//!
//! The first read through a handle starts the kernel; reads that come meanwhile wait for it without
//! a thread. The output is kept until the handle is closed, within a budget of all handles.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Most bytes of outputs that are kept at once.
pub(super) const KEPT_BYTES_MAX: u64 = 1 << 30;

/// Answers a read with its bytes, or with an errno.
pub type ReadReply = Box<dyn FnOnce(Result<&[u8], i32>) + Send>;

/// The output of a kernel; its bytes count against the budget.
pub(super) struct Output {
    bytes: Vec<u8>,
    budget: Arc<AtomicU64>,
}

/// A read of an output.
pub(super) struct Waiting {
    pub(super) offset: u64,
    pub(super) size: usize,
    pub(super) reply: ReadReply,
}

enum View {
    Running(Vec<Waiting>),
    Ready(Arc<Output>),
    Failed(i32),
}

/// The outputs that one handle reads, by the number of the registration.
#[derive(Default)]
pub(super) struct Views(Mutex<HashMap<u64, View>>);

impl Output {
    /// Keeps a copy; `None` if that would be too much.
    pub(super) fn keep(bytes: &[u8], budget: &Arc<AtomicU64>) -> Option<Arc<Output>> {
        let len = bytes.len() as u64;
        if budget.fetch_add(len, Ordering::Relaxed) + len > KEPT_BYTES_MAX {
            budget.fetch_sub(len, Ordering::Relaxed);
            return None;
        }
        Some(Arc::new(Output {
            bytes: bytes.to_vec(),
            budget: Arc::clone(budget),
        }))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.budget
            .fetch_sub(self.bytes.len() as u64, Ordering::Relaxed);
    }
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
    /// Answers a read when its output is there. True if the caller is to produce it.
    pub(super) fn read(&self, registration: u64, read: Waiting) -> bool {
        let mut views = self.0.lock();
        match views.entry(registration) {
            Entry::Vacant(vacant) => {
                vacant.insert(View::Running(vec![read]));
                // A handle has one view at a time: the output of one that was replaced is let go.
                views.retain(|number, view| {
                    *number == registration || matches!(view, View::Running(_))
                });
                true
            }
            Entry::Occupied(mut occupied) => {
                let output = match occupied.get_mut() {
                    View::Running(waiting) => {
                        waiting.push(read);
                        return false;
                    }
                    View::Ready(output) => Ok(Arc::clone(output)),
                    View::Failed(errno) => Err(*errno),
                };
                drop(views);
                read.answer(output.as_ref().map(|o| o.bytes.as_slice()).map_err(|e| *e));
                false
            }
        }
    }

    /// The output is there, or will not be: answers all who wait for it.
    pub(super) fn finish(&self, registration: u64, output: Result<Arc<Output>, i32>) {
        let state = match &output {
            Ok(output) => View::Ready(Arc::clone(output)),
            Err(errno) => View::Failed(*errno),
        };
        let before = self.0.lock().insert(registration, state);
        if let Some(View::Running(waiting)) = before {
            for read in waiting {
                read.answer(output.as_ref().map(|o| o.bytes.as_slice()).map_err(|e| *e));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};

    fn read(offset: u64, size: usize) -> (Waiting, Receiver<Result<Vec<u8>, i32>>) {
        let (sender, receiver) = channel();
        let reply = Box::new(move |answer: Result<&[u8], i32>| {
            sender.send(answer.map(<[u8]>::to_vec)).unwrap();
        });
        let waiting = Waiting {
            offset,
            size,
            reply,
        };
        (waiting, receiver)
    }

    #[test]
    fn reads_wait_for_the_one_run_and_then_see_a_file_that_ends() {
        let (views, budget) = (Views::default(), Arc::default());
        let (first, first_answer) = read(0, 3);
        let (second, second_answer) = read(3, 100);
        assert!(views.read(1, first) && !views.read(1, second));
        assert!(first_answer.try_recv().is_err());
        views.finish(1, Ok(Output::keep(b"output", &budget).unwrap()));
        assert_eq!(first_answer.recv().unwrap(), Ok(b"out".to_vec()));
        assert_eq!(second_answer.recv().unwrap(), Ok(b"put".to_vec()));
        for (offset, expected) in [(5, &b"t"[..]), (6, b""), (u64::MAX, b"")] {
            let (late, answer) = read(offset, 10);
            assert!(!views.read(1, late));
            assert_eq!(answer.recv().unwrap(), Ok(expected.to_vec()));
        }
        assert_eq!(budget.load(Ordering::Relaxed), 6);
        drop(views);
        assert_eq!(budget.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_failure_is_what_every_read_gets() {
        let views = Views::default();
        let (first, answer) = read(0, 1);
        assert!(views.read(1, first));
        views.finish(1, Err(libc::EIO));
        assert_eq!(answer.recv().unwrap(), Err(libc::EIO));
        let (next, answer) = read(0, 1);
        assert!(!views.read(1, next));
        assert_eq!(answer.recv().unwrap(), Err(libc::EIO));
    }

    #[test]
    fn outputs_keep_within_their_budget() {
        let budget = Arc::new(AtomicU64::new(KEPT_BYTES_MAX - 2));
        assert!(Output::keep(b"abc", &budget).is_none());
        let kept = Output::keep(b"ab", &budget).unwrap();
        assert!(Output::keep(b"a", &budget).is_none());
        drop(kept);
        assert_eq!(budget.load(Ordering::Relaxed), KEPT_BYTES_MAX - 2);
    }
}
