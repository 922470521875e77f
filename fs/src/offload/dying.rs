//! Whether a thread that waits for an answer is being killed.
//!
//! The kernel lets a thread whose request has been taken up wait for the answer even if a signal
//! has killed it; the signal stays pending, and its process cannot end. The kernel says so in a
//! message of its own (FUSE_INTERRUPT), which does not get as far as here, so `/proc` is asked.
//!
//! What counts: SIGKILL, which the kernel also sends to all threads of a process that anything else
//! kills; a signal that ends the process and is neither blocked, ignored nor handled (those that
//! dump core wait for a thread to take them) unless a debugger could still keep it away; the end
//! of the thread and its process. A thread that is gone while its process lives has left a request
//! behind that others may wait for (asynchronous I/O): it goes on.

use super::process::{ProcessId, Stat, Status};

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Signals whose default is not to end the process.
const HARMLESS: u64 = bit(libc::SIGCHLD)
    | bit(libc::SIGCONT)
    | bit(libc::SIGURG)
    | bit(libc::SIGWINCH)
    | bit(libc::SIGSTOP)
    | bit(libc::SIGTSTP)
    | bit(libc::SIGTTIN)
    | bit(libc::SIGTTOU);

/// Who waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiter {
    pub(super) thread: u32,
    /// The process that it belongs to, as far as is known before anybody has looked: that which
    /// opened the handle.
    pub(super) process: Option<ProcessId>,
}

/// Signals of a thread, as sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Signals {
    /// Sent to it or to its process and not taken yet.
    pub(super) pending: u64,
    pub(super) blocked: u64,
    pub(super) ignored: u64,
    pub(super) caught: u64,
    /// A debugger gets them first.
    pub(super) traced: bool,
}

impl Signals {
    /// Whether they will end the process.
    fn are_fatal(self) -> bool {
        let taken = self.pending & !(self.blocked | self.ignored | self.caught | HARMLESS);
        self.pending & bit(libc::SIGKILL) != 0 || taken != 0 && !self.traced
    }
}

/// Whether nobody will hear of an answer to `thread` since it is being killed. `process` is what
/// it belonged to when it was seen last, or presumably, and is updated. Threads of another PID namespace have no
/// number here: nothing is known of them.
pub(super) fn is_dying(thread: u32, process: &mut Option<ProcessId>) -> bool {
    if thread == 0 {
        return false;
    }
    let Some(status) = Status::read(thread) else {
        return !process.is_some_and(lives);
    };
    if status.signals.are_fatal() {
        return true;
    }
    if process.is_none_or(|process| process.pid != status.thread_group) {
        *process = ProcessId::leading(status.thread_group).ok();
    }
    // What has no memory is ending, or belongs to the kernel.
    let ending = !status.has_memory && Stat::read(thread).is_none_or(|stat| stat.exiting);
    ending && !process.is_some_and(lives)
}

/// Whether a process is there and not about to end.
fn lives(process: ProcessId) -> bool {
    Stat::read(process.pid).is_some_and(|stat| stat.started == process.started && !stat.exiting)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::sync::mpsc::channel;

    fn pending(signal: i32) -> Signals {
        Signals {
            pending: bit(signal),
            ..Signals::default()
        }
    }

    #[test]
    fn signals_that_end_the_process_are_fatal() {
        for signal in [
            libc::SIGKILL,
            libc::SIGTERM,
            libc::SIGQUIT,
            libc::SIGSEGV,
            64,
        ] {
            assert!(pending(signal).are_fatal(), "{signal}");
        }
        for signal in [libc::SIGCHLD, libc::SIGSTOP, libc::SIGWINCH] {
            assert!(!pending(signal).are_fatal(), "{signal}");
        }
        assert!(!Signals::default().are_fatal());
    }

    #[test]
    fn signals_that_the_process_deals_with_are_not() {
        let term = pending(libc::SIGTERM);
        let set = bit(libc::SIGTERM);
        let dealt_with = [
            Signals {
                blocked: set,
                ..term
            },
            Signals {
                ignored: set,
                ..term
            },
            Signals {
                caught: set,
                ..term
            },
            Signals {
                traced: true,
                ..term
            },
        ];
        for signals in dealt_with {
            assert!(!signals.are_fatal(), "{signals:?}");
            let killed = Signals {
                pending: signals.pending | bit(libc::SIGKILL),
                ..signals
            };
            assert!(killed.are_fatal(), "{killed:?}");
        }
    }

    #[test]
    fn the_living_are_not_dying_and_the_dead_are() {
        let mut child = Command::new("sleep")
            .arg("100")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut process = None;
        assert!(!is_dying(child.id(), &mut process));
        assert_eq!(process.map(|p| p.pid), Some(child.id()));
        child.kill().unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !is_dying(child.id(), &mut process) {
            assert!(std::time::Instant::now() < until, "a zombie is dead");
        }
        child.wait().unwrap();
        assert!(is_dying(child.id(), &mut process));
        assert!(is_dying(child.id(), &mut None));
        assert!(!is_dying(0, &mut None), "nothing is known");
    }

    #[test]
    fn a_thread_that_left_a_living_process_is_not_dying() {
        let ((tell, told), (leave, left)) = (channel(), channel::<()>());
        let thread = std::thread::spawn(move || {
            // SAFETY: gettid has no arguments and cannot fail.
            tell.send(unsafe { libc::gettid() } as u32).unwrap();
            let _ = left.recv();
        });
        let (number, mut process) = (told.recv().unwrap(), None);
        assert!(!is_dying(number, &mut process));
        assert_eq!(process.map(|p| p.pid), Some(std::process::id()));
        drop(leave);
        thread.join().unwrap();
        assert!(!is_dying(number, &mut process));
        // Also if nobody has looked at it as long as it was there.
        assert!(!is_dying(
            number,
            &mut ProcessId::of(std::process::id()).ok()
        ));
        assert!(is_dying(number, &mut None));
    }
}
