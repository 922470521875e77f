//! Owners of registrations, watched: when one ends, however it does, its registrations go.
//!
//! One thread waits for the pidfds of all owners; it is woken to look after requests under way, too. Whoever adds an owner holds the lock that the
//! thread takes before it removes one's registrations, so that no registration slips in behind the
//! end of its owner.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::process::ProcessId;
use crate::error::Result;

/// Tokens of the descriptors that end the thread and that wake it.
const STOP: u64 = 0;
const WAKE: u64 = 1;
/// Most owners that one wait reports.
const BATCH: usize = 64;

/// What the thread waits for.
pub(super) struct Watch {
    epoll: Epoll,
    stop: EventFd,
    wake: EventFd,
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
    next_token: u64,
}

impl Watch {
    pub(super) fn new() -> std::io::Result<Watch> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let event = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let (stop, wake) = (event()?, event()?);
        epoll.add(&stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        Ok(Watch { epoll, stop, wake })
    }

    /// Ends the thread that waits.
    pub(super) fn stop(&self) {
        if let Err(error) = self.stop.write(1) {
            tracing::warn!("stopping the watch on owners: {error}");
        }
    }

    /// Has the thread return from its wait.
    pub(super) fn wake(&self) {
        if let Err(error) = self.wake.write(1) {
            tracing::warn!("waking the watch on owners: {error}");
        }
    }

    /// Waits until owners end, or somebody wakes it, or for so long; returns the tokens of those
    /// that ended, or `None` when told to stop.
    pub(super) fn wait(&self, longest: Option<Duration>) -> Option<Vec<u64>> {
        let mut events = [EpollEvent::empty(); BATCH];
        let timeout = longest.map_or(EpollTimeout::NONE, |longest| {
            let millis = longest.as_nanos().div_ceil(1_000_000);
            EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::MAX)
        });
        loop {
            match self.epoll.wait(&mut events, timeout) {
                Ok(count) => {
                    let mut tokens: Vec<u64> =
                        events[..count].iter().map(EpollEvent::data).collect();
                    if tokens.contains(&STOP) {
                        return None;
                    }
                    if tokens.contains(&WAKE) {
                        // It is readable, and stays so until this has been done.
                        let _ = self.wake.read();
                        tokens.retain(|token| *token != WAKE);
                    }
                    return Some(tokens);
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
            next_token: WAKE + 1,
        }
    }

    /// Watches a process for one more attachment.
    ///
    /// # Errors
    /// `NoProcess` if it has ended; when the descriptors run out.
    pub(super) fn hold(&mut self, owner: ProcessId) -> Result<()> {
        if let Some(known) = self.owners.get_mut(&owner) {
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
        if known.attachments == 0
            && let Some(gone) = self.owners.remove(&owner)
        {
            self.tokens.remove(&gone.token);
            // Closing the descriptor would do; a copy in a child that is being made would not.
            if let Err(error) = self.watch.epoll.delete(gone.pidfd.as_fd()) {
                tracing::debug!("process {}: {error}", owner.pid);
            }
        }
    }

    /// The process that a token stands for.
    pub(super) fn of_token(&self, token: u64) -> Option<ProcessId> {
        self.tokens.get(&token).copied()
    }
}
