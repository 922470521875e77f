//! What the users and capabilities of a process allow it to become, and who may be answered by its
//! kernels.
//!
//! A program that is executed with more rights than its caller had - set-user-ID, set-group-ID, with
//! capabilities of its file - trusts what it reads of files that its caller could not have changed.
//! So a kernel answers only those whose rights whoever set the attribute had or could have given
//! himself: all their user IDs and groups are among his, and so are their capabilities.
//!
//! Capabilities count in the user namespace of this process alone: anybody can make a namespace and
//! have all of them there, which says nothing about files of this filesystem.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use super::process::Status;

const CAP_SETGID: u64 = 1 << 6;
const CAP_SETUID: u64 = 1 << 7;

/// The credentials of a thread at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rights {
    /// Real, effective, saved, and that of the filesystem.
    users: [u32; 4],
    groups: [u32; 4],
    supplementary: Vec<u32>,
    /// Permitted capabilities, which can be made effective at any time.
    capabilities: u64,
}

impl Rights {
    /// What `/proc` shows of a thread; `None` if it shows too little.
    pub(super) fn of(thread: u32, status: &Status) -> Option<Rights> {
        let capabilities = match status.permitted {
            0 => 0,
            _ if same_user_namespace(thread) => status.permitted,
            _ => 0,
        };
        Some(Rights {
            users: status.users.as_slice().try_into().ok()?,
            groups: status.groups.as_slice().try_into().ok()?,
            supplementary: status.supplementary.clone(),
            capabilities,
        })
    }

    /// Those of somebody who acts as this user and group and may become anybody, if these capabilities
    /// allow that: who else he is makes no difference to what he reaches.
    pub(super) fn almighty((user, group): (u32, u32), permitted: u64) -> Option<Rights> {
        (permitted & CAP_SETUID != 0).then(|| Rights {
            users: [user; 4],
            groups: [group; 4],
            supplementary: Vec::new(),
            capabilities: permitted,
        })
    }

    /// The rights of a thread now; `None` if it is gone.
    pub(super) fn of_thread(thread: u32) -> Option<Rights> {
        Rights::of(thread, &Status::read(thread)?)
    }

    /// The user and the group as requests name them.
    pub(super) fn acts_as(&self) -> (u32, u32) {
        (self.users[3], self.groups[3])
    }

    /// Whether a process with these rights could have become one with those of `other` by itself.
    #[must_use]
    pub(super) fn reach(&self, other: &Rights) -> bool {
        // Who may become any user may become root, and have everything.
        self == other
            || self.capabilities & CAP_SETUID != 0
            || self.has_users_of(other)
                && self.has_groups_of(other)
                && other.capabilities & !self.capabilities == 0
    }

    fn has_users_of(&self, other: &Rights) -> bool {
        other.users.iter().all(|user| self.users.contains(user))
    }

    fn has_groups_of(&self, other: &Rights) -> bool {
        let mut groups = other.groups.iter().chain(&other.supplementary);
        self.capabilities & CAP_SETGID != 0
            || groups.all(|group| self.groups.contains(group) || self.supplementary.contains(group))
    }
}

/// Whether a thread is in the user namespace of this process.
pub(super) fn same_user_namespace(thread: u32) -> bool {
    static OURS: OnceLock<Option<PathBuf>> = OnceLock::new();
    let ours = OURS.get_or_init(|| fs::read_link("/proc/self/ns/user").ok());
    let theirs = fs::read_link(format!("/proc/{thread}/ns/user")).ok();
    theirs.is_some() && theirs == *ours
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = (1 << 41) - 1;

    fn user(id: u32) -> Rights {
        Rights {
            users: [id; 4],
            groups: [id; 4],
            supplementary: vec![id, 27],
            capabilities: 0,
        }
    }

    fn root() -> Rights {
        Rights {
            capabilities: ALL,
            ..user(0)
        }
    }

    #[test]
    fn programs_that_gain_rights_are_out_of_reach() {
        let alice = user(1000);
        let set_user_id = Rights {
            users: [1000, 0, 0, 0],
            capabilities: ALL,
            ..alice.clone()
        };
        // Also while it acts as its caller for the moment.
        let acting = Rights {
            users: [1000, 1000, 0, 1000],
            capabilities: 0,
            ..set_user_id.clone()
        };
        let of_bob = Rights {
            users: [1000, 1001, 1001, 1001],
            ..alice.clone()
        };
        let set_group_id = Rights {
            groups: [1000, 42, 42, 42],
            ..alice.clone()
        };
        let capable = Rights {
            capabilities: 1 << 13,
            ..alice.clone()
        };
        let in_more_groups = Rights {
            supplementary: vec![27, 1000, 999],
            ..alice.clone()
        };
        for gained in [
            set_user_id,
            acting,
            of_bob,
            set_group_id,
            capable,
            in_more_groups,
            user(1001),
        ] {
            assert!(!alice.reach(&gained), "{gained:?}");
            assert!(root().reach(&gained), "{gained:?}");
        }
    }

    #[test]
    fn what_a_process_can_make_of_itself_is_in_reach() {
        let alice = user(1000);
        assert!(alice.reach(&alice));
        let fewer_groups = Rights {
            supplementary: Vec::new(),
            ..alice.clone()
        };
        let other_group = Rights {
            groups: [27; 4],
            ..alice.clone()
        };
        assert!(alice.reach(&fewer_groups) && alice.reach(&other_group));
        assert!(!fewer_groups.reach(&other_group));
        // A set-user-ID program of Bob's that registers for itself can go back and forth.
        let between = Rights {
            users: [1000, 1001, 1001, 1001],
            ..alice.clone()
        };
        let back = Rights {
            users: [1000; 4],
            ..alice.clone()
        };
        assert!(between.reach(&back) && !back.reach(&between));
        let may_change_groups = Rights {
            capabilities: CAP_SETGID,
            ..alice.clone()
        };
        let anywhere = Rights {
            groups: [5, 6, 7, 8],
            ..alice.clone()
        };
        assert!(may_change_groups.reach(&anywhere));
        assert!(!may_change_groups.reach(&user(1001)));
        // Root without capabilities is a user like any other.
        assert!(!user(0).reach(&alice) && root().reach(&alice));
    }

    #[test]
    fn this_thread_has_the_rights_the_system_says() {
        // SAFETY: these have no arguments and cannot fail.
        let (thread, uid, gid) = unsafe { (libc::gettid(), libc::geteuid(), libc::getegid()) };
        let rights = Rights::of_thread(thread as u32).unwrap();
        assert_eq!(rights.acts_as(), (uid, gid));
        assert!(rights.reach(&rights));
        assert_eq!(Rights::of_thread(0x7fff_fff0), None);
    }
}
