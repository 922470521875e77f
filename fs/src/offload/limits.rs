//! Every limit of offloading, and the accounts by which users share what all of them have.
//!
//! What lasts or piles up - registrations, objects, outputs that are kept, requests under way - is
//! counted for the whole mount and for the user whose registration it is for: who set the
//! attribute. Root is bounded by what there is for all alone; everybody else also by a part of it,
//! so that no user can have what others need. A limit that is reached refuses what is new and
//! touches nothing that is there.
//!
//! `docs/offloading.md` has the numbers of what is shared as a table; a test here compares.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use crate::error::{Error, Result, Scarce};

/// Largest object that is looked at, in bytes.
pub const OBJECT_LEN_MAX: u64 = 16 << 20;
/// Most arguments of a kernel.
pub const ARGUMENTS_MAX: usize = 1024;
/// Longest time a kernel can ask for, in milliseconds.
pub const TIMEOUT_MS_MAX: u64 = 60 * 1000;
/// Longest run of a kernel whose registration does not say otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of a view that the default time is given for; larger views get as much more.
pub(super) const VIEW_STEP: u64 = 64 << 20;

/// Heap of a kernel, in bytes.
pub(super) const HEAP_BYTES: u64 = 64 << 20;
/// Most bytes an execution returns.
pub(super) const OUTPUT_BYTES: u64 = 64 << 20;
/// Most bytes an execution appends.
pub(super) const APPENDED_BYTES: u64 = 64 << 20;
/// A kernel may read every block of its snapshot this many times, and [`BLOCKS_READ_MIN`] at least.
pub(super) const PASSES: u64 = 4;
pub(super) const BLOCKS_READ_MIN: u64 = 1 << 18;

/// Requests of one registration that may be under way.
pub(super) const QUEUE_DEPTH: usize = 4096;

/// Descriptors of a process that are looked through for those of a file.
pub(super) const DESCRIPTORS_MAX: usize = 1 << 16;

/// What is shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Registrations: each pins a version of the filesystem.
    Registrations,
    /// Bytes of the objects and values of registrations, each counted by itself.
    KernelBytes,
    /// Bytes of the outputs of views that are kept.
    ViewBytes,
    /// Requests that wait for kernels or run them.
    Requests,
    /// Bytes of data that these have handed in.
    RequestBytes,
}

/// How much of a resource there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The resource.
    pub resource: Resource,
    /// What there is of it, in words: behind a number.
    pub what: &'static str,
    /// For a user other than root.
    pub user: u64,
    /// For all users together.
    pub mount: u64,
    /// How a refusal is told.
    pub scarce: Scarce,
}

/// All that is shared out, in the order of [`Resource`].
pub const SHARED: [Limit; 5] = [
    Limit {
        resource: Resource::Registrations,
        what: "registrations",
        user: 1024,
        mount: 16384,
        scarce: Scarce::Space,
    },
    Limit {
        resource: Resource::KernelBytes,
        what: "bytes of registered kernels",
        user: 128 << 20,
        mount: 1 << 30,
        scarce: Scarce::Memory,
    },
    Limit {
        resource: Resource::ViewBytes,
        what: "bytes of views kept",
        user: 256 << 20,
        mount: 1 << 30,
        scarce: Scarce::Memory,
    },
    Limit {
        resource: Resource::Requests,
        what: "requests under way",
        user: 4096,
        mount: 16384,
        scarce: Scarce::Turn,
    },
    Limit {
        resource: Resource::RequestBytes,
        what: "bytes of requests under way",
        user: 256 << 20,
        mount: 1 << 30,
        scarce: Scarce::Turn,
    },
];

/// How much is in use of each resource.
#[derive(Default)]
struct Used([AtomicU64; SHARED.len()]);

/// The accounts of all users that have something.
#[derive(Default)]
pub(super) struct Accounts {
    all: Arc<Used>,
    users: Mutex<HashMap<u32, Weak<Account>>>,
}

/// What a user has.
pub(super) struct Account {
    uid: u32,
    used: Used,
    all: Arc<Used>,
}

/// A part of a resource, given back when dropped.
pub(super) struct Share {
    account: Arc<Account>,
    resource: Resource,
    amount: u64,
}

impl Used {
    fn of(&self, resource: Resource) -> &AtomicU64 {
        &self.0[resource as usize]
    }

    /// Adds to what is used unless it gets more than `most`.
    fn take(&self, resource: Resource, amount: u64, most: u64) -> bool {
        let used = self.of(resource);
        let fits = |before: u64| before.checked_add(amount).filter(|now| *now <= most);
        used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .is_ok()
    }

    fn give_back(&self, resource: Resource, amount: u64) {
        self.of(resource).fetch_sub(amount, Ordering::Relaxed);
    }
}

impl Accounts {
    /// The account of a user.
    pub(super) fn of(&self, uid: u32) -> Arc<Account> {
        let mut users = self.users.lock();
        if let Some(known) = users.get(&uid).and_then(Weak::upgrade) {
            return known;
        }
        users.retain(|_, account| account.strong_count() > 0);
        let account = Arc::new(Account {
            uid,
            used: Used::default(),
            all: Arc::clone(&self.all),
        });
        users.insert(uid, Arc::downgrade(&account));
        account
    }

    /// How much of a resource all users have together.
    pub(super) fn used(&self, resource: Resource) -> u64 {
        self.all.of(resource).load(Ordering::Relaxed)
    }
}

impl Account {
    /// Takes a part of a resource.
    ///
    /// # Errors
    /// `LimitReached` that names the limit.
    pub(super) fn take(self: &Arc<Account>, resource: Resource, amount: u64) -> Result<Share> {
        let limit = &SHARED[resource as usize];
        let refused = |whose: &'static str, most: u64| Error::LimitReached {
            most,
            what: limit.what,
            whose,
            scarce: limit.scarce,
        };
        let most = match self.uid {
            0 => u64::MAX,
            _ => limit.user,
        };
        if !self.used.take(resource, amount, most) {
            return Err(refused("of one user", limit.user));
        }
        if !self.all.take(resource, amount, limit.mount) {
            self.used.give_back(resource, amount);
            return Err(refused("of all users", limit.mount));
        }
        Ok(Share {
            account: Arc::clone(self),
            resource,
            amount,
        })
    }
}

impl Share {
    /// Whether it is a part of what `account` has.
    pub(super) fn is_of(&self, account: &Arc<Account>) -> bool {
        Arc::ptr_eq(&self.account, account)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.account.used.give_back(self.resource, self.amount);
        self.account.all.give_back(self.resource, self.amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: u64 = SHARED[0].user;
    const MOUNT: u64 = SHARED[0].mount;

    fn refusal(outcome: Result<Share>) -> (i32, String) {
        match outcome {
            Ok(_) => panic!("not refused"),
            Err(error) => (error.errno(), error.to_string()),
        }
    }

    #[test]
    fn limits_are_listed_in_the_order_of_resources_and_users_have_less_than_all() {
        for (at, limit) in SHARED.iter().enumerate() {
            assert_eq!(limit.resource as usize, at);
            assert!(limit.user <= limit.mount / 4);
        }
    }

    #[test]
    fn the_document_has_these_numbers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/offloading.md");
        let document = std::fs::read_to_string(path).unwrap();
        let amount = |number: u64| match number >> 20 {
            0 => number.to_string(),
            mib if mib % 1024 == 0 => format!("{} GiB", mib / 1024),
            mib => format!("{mib} MiB"),
        };
        for limit in SHARED {
            let start = format!("| {}", limit.what);
            let row = document.lines().find(|line| line.starts_with(&start));
            let row = row.unwrap_or_else(|| panic!("no row for {}", limit.what));
            let errno = match limit.scarce {
                Scarce::Space => "ENOSPC",
                Scarce::Memory => "ENOMEM",
                Scarce::Turn => "EAGAIN",
            };
            let cells = format!("| {} | {} |", amount(limit.user), amount(limit.mount));
            assert!(row.contains(errno) && row.contains(&cells), "{row}");
        }
    }

    #[test]
    fn a_user_takes_nothing_from_others_and_gets_back_what_is_dropped() {
        let accounts = Accounts::default();
        let (hog, other) = (accounts.of(1000), accounts.of(1001));
        let mut held: Vec<Share> = (0..USER)
            .map(|_| hog.take(Resource::Registrations, 1).unwrap())
            .collect();
        let (errno, said) = refusal(hog.take(Resource::Registrations, 1));
        assert_eq!(errno, libc::ENOSPC);
        assert_eq!(
            said,
            "the limit of 1024 registrations of one user is reached"
        );
        assert!(other.take(Resource::Registrations, USER).is_ok());
        assert!(hog.take(Resource::ViewBytes, 1).is_ok(), "of another kind");
        held.pop();
        assert!(hog.take(Resource::Registrations, 2).is_err());
        assert!(hog.take(Resource::Registrations, 1).is_ok());
        drop(held);
        assert_eq!(accounts.used(Resource::Registrations), 0);
    }

    #[test]
    fn root_and_many_users_end_where_there_is_nothing_left() {
        let accounts = Accounts::default();
        let root = accounts.of(0);
        let most = root.take(Resource::Registrations, MOUNT - 1).unwrap();
        let user = accounts.of(7);
        let last = user.take(Resource::Registrations, 1).unwrap();
        for account in [&root, &user] {
            let (_, said) = refusal(account.take(Resource::Registrations, 1));
            assert!(said.contains("16384 registrations of all users"), "{said}");
        }
        drop(most);
        // What was refused was not counted anywhere.
        assert!(user.take(Resource::Registrations, USER - 1).is_ok());
        drop(last);
        assert_eq!(accounts.used(Resource::Registrations), 0);
    }

    #[test]
    fn amounts_that_overflow_are_refused_and_scarcity_has_its_errno() {
        let accounts = Accounts::default();
        let root = accounts.of(0);
        let _one = root.take(Resource::RequestBytes, 1).unwrap();
        for (resource, expected) in [
            (Resource::RequestBytes, libc::EAGAIN),
            (Resource::Requests, libc::EAGAIN),
            (Resource::ViewBytes, libc::ENOMEM),
            (Resource::KernelBytes, libc::ENOMEM),
        ] {
            assert_eq!(refusal(root.take(resource, u64::MAX)).0, expected);
        }
    }

    #[test]
    fn accounts_of_users_that_have_nothing_are_forgotten() {
        let accounts = Accounts::default();
        for uid in 0..100 {
            drop(accounts.of(uid));
        }
        let kept = accounts.of(100).take(Resource::Requests, 1).unwrap();
        assert!(kept.is_of(&accounts.of(100)));
        assert!(accounts.users.lock().len() <= 2);
    }
}
