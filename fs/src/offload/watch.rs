//! Owners of registrations, watched: when one ends, however it does, its registrations go.
//!
//! One thread waits for the pidfds of all owners. Whoever adds an owner holds the lock that the
//! thread takes before it removes one's registrations, so that no registration slips in behind the
//! end of its owner.
//!
//! A few owners whose registrations have ended stay watched: as long as a process lives that is
//! watched, its PID is no other's, and nothing about it needs to be looked up for its next one.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::process::ProcessId;
use crate::error::Result;

/// Token of the descriptor that ends the thread.
const STOP: u64 = 0;
/// Most owners that one wait reports.
const BATCH: usize = 64;
/// Owners without attachments that stay watched.
const KEPT_MAX: usize = 64;

/// What the thread waits for.
pub(super) struct Watch {
    epoll: Epoll,
    stop: EventFd,
}

struct Owner {
    token: u64,
    pidfd: OwnedFd,
    attachments: usize,
}

/// The processes that have attachments.
pub(super) struct Owners {
    watch: std::sync::Arc<Watch>,
    owners: HashMap<ProcessId, Owner>,
    tokens: HashMap<u64, ProcessId>,
    /// The last process watched under a PID.
    pids: HashMap<u32, ProcessId>,
    /// Owners without attachments, in the order in which they lost the last one.
    kept: VecDeque<ProcessId>,
    next_token: u64,
}

impl Watch {
    pub(super) fn new() -> std::io::Result<Watch> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
        Ok(Watch { epoll, stop })
    }

    /// Ends the thread that waits.
    pub(super) fn stop(&self) {
        if let Err(error) = self.stop.write(1) {
            tracing::warn!("stopping the watch on owners: {error}");
        }
    }

    /// Waits until owners end; returns their tokens, or `None` when told to stop.
    pub(super) fn wait(&self) -> Option<Vec<u64>> {
        let mut events = [EpollEvent::empty(); BATCH];
        loop {
            match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => {
                    let tokens: Vec<u64> = events[..count].iter().map(EpollEvent::data).collect();
                    return (!tokens.contains(&STOP)).then_some(tokens);
                }
                Err(Errno::EINTR) => {}
                Err(error) => {
                    tracing::error!("the ends of owners go unnoticed from now on: {error}");
                    return None;
                }
            }
        }
    }
}

impl Owners {
    pub(super) fn new(watch: std::sync::Arc<Watch>) -> Owners {
        Owners {
            watch,
            owners: HashMap::new(),
            tokens: HashMap::new(),
            pids: HashMap::new(),
            kept: VecDeque::new(),
            next_token: STOP + 1,
        }
    }

    /// Watches a process for one more attachment.
    ///
    /// # Errors
    /// `NoProcess` if it has ended; when the descriptors run out.
    pub(super) fn hold(&mut self, owner: ProcessId) -> Result<()> {
        if let Some(known) = self.owners.get_mut(&owner) {
            if known.attachments == 0 {
                self.kept.retain(|kept| *kept != owner);
            }
            known.attachments += 1;
            return Ok(());
        }
        let pidfd = owner.watch()?;
        let token = self.next_token;
        let added = self
            .watch
            .epoll
            .add(pidfd.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, token));
        if let Err(error) = added {
            tracing::warn!("process {} cannot be watched: {error}", owner.pid);
            return Err(crate::error::Error::NoMemory("watching another process"));
        }
        self.next_token += 1;
        self.tokens.insert(token, owner);
        self.pids.insert(owner.pid, owner);
        self.owners.insert(
            owner,
            Owner {
                token,
                pidfd,
                attachments: 1,
            },
        );
        Ok(())
    }

    /// A process has one attachment less.
    pub(super) fn let_go(&mut self, owner: ProcessId) {
        let Some(known) = self.owners.get_mut(&owner) else {
            return;
        };
        known.attachments -= 1;
        if known.attachments > 0 {
            return;
        }
        self.kept.push_back(owner);
        if self.kept.len() > KEPT_MAX
            && let Some(oldest) = self.kept.pop_front()
        {
            self.forget(oldest);
        }
    }

    /// Watches a process no longer, which has ended or has no attachments.
    pub(super) fn forget(&mut self, owner: ProcessId) {
        let Some(gone) = self.owners.remove(&owner) else {
            return;
        };
        self.tokens.remove(&gone.token);
        self.kept.retain(|kept| *kept != owner);
        if self.pids.get(&owner.pid) == Some(&owner) {
            self.pids.remove(&owner.pid);
        }
        // Closing the descriptor would do; a copy in a child that is being made would not.
        if let Err(error) = self.watch.epoll.delete(gone.pidfd.as_fd()) {
            tracing::debug!("process {}: {error}", owner.pid);
        }
    }

    /// The process with this PID, if it is watched and lives.
    pub(super) fn living(&self, pid: u32) -> Option<ProcessId> {
        let process = self.pids.get(&pid)?;
        let owner = self.owners.get(process)?;
        let mut ended = [PollFd::new(owner.pidfd.as_fd(), PollFlags::POLLIN)];
        let alive = poll(&mut ended, PollTimeout::ZERO) == Ok(0);
        alive.then_some(*process)
    }

    /// The process that a token stands for.
    pub(super) fn of_token(&self, token: u64) -> Option<ProcessId> {
        self.tokens.get(&token).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::sync::Arc;

    use super::*;

    fn child() -> (Child, ProcessId) {
        let child = Command::new("sleep").arg("100").spawn().unwrap();
        let process = ProcessId::of(child.id()).unwrap();
        (child, process)
    }

    fn end(mut child: Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_process_is_known_as_long_as_it_lives() {
        let watch = Arc::new(Watch::new().unwrap());
        let mut owners = Owners::new(Arc::clone(&watch));
        let (first, process) = child();
        assert_eq!(owners.living(process.pid), None);
        owners.hold(process).unwrap();
        assert_eq!(owners.living(process.pid), Some(process));
        owners.let_go(process);
        assert_eq!(owners.living(process.pid), Some(process));
        owners.hold(process).unwrap();
        end(first);
        assert_eq!(owners.living(process.pid), None);
        let tokens = watch.wait().unwrap();
        assert_eq!(owners.of_token(tokens[0]), Some(process));
        owners.let_go(process);
        owners.forget(process);
        assert_eq!(owners.of_token(tokens[0]), None);
        assert!(owners.hold(process).is_err());
        assert!(owners.owners.is_empty() && owners.pids.is_empty() && owners.kept.is_empty());
    }

    #[test]
    fn only_some_processes_without_attachments_stay_known() {
        let watch = Arc::new(Watch::new().unwrap());
        let mut owners = Owners::new(watch);
        let children: Vec<_> = (0..KEPT_MAX + 2).map(|_| child()).collect();
        for (_, process) in &children {
            owners.hold(*process).unwrap();
        }
        for (_, process) in &children {
            owners.let_go(*process);
        }
        let known = children
            .iter()
            .map(|(_, process)| owners.living(process.pid));
        let known: Vec<_> = known.collect();
        assert_eq!(known[..2], [None, None]);
        assert!(known[2..].iter().all(Option::is_some));
        assert_eq!(owners.kept.len(), KEPT_MAX);
        for (child, _) in children {
            end(child);
        }
    }
}
