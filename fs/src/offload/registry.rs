//! Who has registered which kernels for which files, and the handles they act on.
//!
//! An [`Attachment`] is what one process has registered for one inode, a slot per operation. A
//! handle that its owner opens is *bound* to it: requests through the handle look at the slots. So
//! a request knows in two steps, without asking who makes it, whether a kernel is to run.
//!
//! Handles that are cached by the kernel are not known here at all; those that are not (O_DIRECT,
//! or every one with the mount option `direct_io`) are, from their opening on, since they can be
//! bound to what is registered later. As long as nothing is registered, all that ordinary requests
//! see of this is one load of a counter.
//!
//! Locks: who adds or removes registrations holds [`Registry::changes`], which is shown by handing
//! the [`Owners`] on; everything else is held for an instant.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use csd_vm::Activation;
use csd_vm::request::{Operation, SnapshotMap};
use parking_lot::{Mutex, MutexGuard, RwLock};

use super::process::ProcessId;
use super::value::OPERATIONS;
use super::view::Views;
use super::watch::Owners;
use crate::error::Result;
use crate::types::Ino;

const SHARDS: usize = 16;

/// A kernel that is registered for an operation on a file, with its snapshot.
pub(super) struct Registration {
    pub(super) number: u64,
    pub(super) ino: Ino,
    pub(super) owner: ProcessId,
    pub(super) operation: Operation,
    /// The attribute's value as it was given.
    pub(super) value: Vec<u8>,
    pub(super) activation: Activation,
    pub(super) snapshot: Arc<dyn SnapshotMap>,
    pub(super) arguments: Arc<[u64]>,
    /// Longest run; `None` where the default holds, which grows with the size of a view.
    pub(super) timeout: Option<Duration>,
    /// Most processor time of a run, where the registration says so.
    pub(super) processor: Option<Duration>,
    pub(super) view: bool,
    /// It is for the descendants of its owner as well.
    pub(super) inherited: bool,
    /// The owner had the file open, and closing it ends the registration.
    pub(super) ends_with_handles: bool,
    /// Requests that have not been answered.
    pub(super) in_flight: AtomicUsize,
    pub(super) failures: AtomicU64,
}

/// What a process has registered for an inode.
pub(super) struct Attachment {
    pub(super) ino: Ino,
    pub(super) owner: ProcessId,
    slots: RwLock<[Option<Arc<Registration>>; OPERATIONS.len()]>,
    /// Handles of the owner itself that are bound to it.
    handles: AtomicUsize,
}

/// An attachment as a handle sees it.
#[derive(Clone)]
pub(super) struct Bound {
    pub(super) attachment: Arc<Attachment>,
    /// How many generations whoever has the handle is away from the owner.
    generations: usize,
}

/// A handle whose requests come to us one by one.
pub(super) struct Handle {
    ino: Ino,
    /// The thread that opened it.
    opener: u32,
    /// Nearest first.
    bound: RwLock<Vec<Bound>>,
    /// Something was registered that it could belong to, and who opened it is gone: the first who
    /// uses it shows where it belongs.
    unresolved: AtomicBool,
    pub(super) views: Views,
}

/// Handles by inode and number.
type Shard = RwLock<BTreeMap<(Ino, u64), Arc<Handle>>>;

/// All registrations and the handles they can concern.
pub(super) struct Registry {
    /// Registrations in all: 0 says that there is nothing to look for.
    active: AtomicUsize,
    changes: Mutex<Owners>,
    attachments: RwLock<HashMap<Ino, Vec<Arc<Attachment>>>>,
    handles: [Shard; SHARDS],
    next_handle: AtomicU64,
}

fn slot(operation: Operation) -> usize {
    OPERATIONS
        .iter()
        .position(|(known, _)| *known == operation)
        .unwrap_or(0)
}

impl Attachment {
    /// The registration for an operation.
    pub(super) fn get(&self, operation: Operation) -> Option<Arc<Registration>> {
        self.slots.read()[slot(operation)].clone()
    }

    /// All its registrations.
    pub(super) fn all(&self) -> Vec<Arc<Registration>> {
        self.slots.read().iter().flatten().cloned().collect()
    }

    fn is_empty(&self) -> bool {
        self.slots.read().iter().all(Option::is_none)
    }

    fn is_inherited(&self) -> bool {
        self.slots.read().iter().flatten().any(|r| r.inherited)
    }
}

impl Bound {
    /// The registration for an operation that whoever has the handle may use.
    pub(super) fn get(&self, operation: Operation) -> Option<Arc<Registration>> {
        let found = self.attachment.get(operation)?;
        (self.generations == 0 || found.inherited).then_some(found)
    }
}

impl Handle {
    /// The kernel that requests of this kind go to.
    pub(super) fn registration(&self, operation: Operation) -> Option<Arc<Registration>> {
        self.bound
            .read()
            .iter()
            .find_map(|bound| bound.get(operation))
    }

    fn bind(&self, found: Vec<Bound>) {
        let mut bound = self.bound.write();
        for new in found {
            if !bound
                .iter()
                .any(|b| Arc::ptr_eq(&b.attachment, &new.attachment))
            {
                new.attachment
                    .handles
                    .fetch_add(usize::from(new.generations == 0), Ordering::Relaxed);
                bound.push(new);
            }
        }
        bound.sort_by_key(|bound| bound.generations);
    }

    fn unbind(&self) {
        for bound in std::mem::take(&mut *self.bound.write()) {
            let own = usize::from(bound.generations == 0);
            bound.attachment.handles.fetch_sub(own, Ordering::Relaxed);
        }
    }

    fn is_bound_to(&self, attachment: &Arc<Attachment>) -> bool {
        let bound = self.bound.read();
        bound.iter().any(|b| Arc::ptr_eq(&b.attachment, attachment))
    }
}

impl Registry {
    pub(super) fn new(owners: Owners) -> Registry {
        Registry {
            active: AtomicUsize::new(0),
            changes: Mutex::new(owners),
            attachments: RwLock::default(),
            handles: Default::default(),
            next_handle: AtomicU64::new(1),
        }
    }

    /// Whether nothing is registered.
    pub(super) fn is_idle(&self) -> bool {
        self.active.load(Ordering::Relaxed) == 0
    }

    pub(super) fn count(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    /// Keeps registrations from being added and removed.
    pub(super) fn changes(&self) -> MutexGuard<'_, Owners> {
        self.changes.lock()
    }

    pub(super) fn of_inode(&self, ino: Ino) -> Vec<Arc<Attachment>> {
        self.attachments
            .read()
            .get(&ino)
            .cloned()
            .unwrap_or_default()
    }

    /// Every attachment there is.
    pub(super) fn all(&self) -> Vec<Arc<Attachment>> {
        self.attachments
            .read()
            .values()
            .flatten()
            .cloned()
            .collect()
    }

    /// What a thread sees of what is registered for `ino`: its own process's, then those of
    /// processes it descends from.
    pub(super) fn visible(&self, ino: Ino, thread: u32) -> Vec<Bound> {
        let candidates = self.of_inode(ino);
        if candidates.is_empty() {
            return Vec::new();
        }
        // The first thread of an owner has its number, and an owner is alive.
        let known = candidates
            .iter()
            .find(|a| a.owner.pid == thread)
            .map(|a| a.owner);
        let Some(process) = known.or_else(|| ProcessId::of(thread).ok()) else {
            return Vec::new();
        };
        let mut visible: Vec<Bound> = candidates
            .into_iter()
            .filter_map(|attachment| {
                let generations = match attachment.owner == process {
                    true => 0,
                    false if attachment.is_inherited() => {
                        process.generations_to(attachment.owner)?
                    }
                    false => return None,
                };
                Some(Bound {
                    attachment,
                    generations,
                })
            })
            .collect();
        visible.sort_by_key(|bound| bound.generations);
        visible
    }

    /// The attachment of `owner` to `ino`, made if there is none.
    ///
    /// # Errors
    /// `NoProcess` if the owner has ended.
    pub(super) fn attach(
        &self,
        owners: &mut Owners,
        ino: Ino,
        owner: ProcessId,
    ) -> Result<Arc<Attachment>> {
        let mut attachments = self.attachments.write();
        let known = attachments.get(&ino).into_iter().flatten();
        if let Some(found) = known.into_iter().find(|a| a.owner == owner) {
            return Ok(Arc::clone(found));
        }
        owners.hold(owner)?;
        let attachment = Arc::new(Attachment {
            ino,
            owner,
            slots: RwLock::default(),
            handles: AtomicUsize::new(0),
        });
        let list = attachments.entry(ino).or_default();
        list.push(Arc::clone(&attachment));
        Ok(attachment)
    }

    /// Puts a registration into its slot and returns the one it replaces.
    pub(super) fn insert(
        &self,
        _: &mut Owners,
        attachment: &Arc<Attachment>,
        registration: Arc<Registration>,
    ) -> Option<Arc<Registration>> {
        let at = slot(registration.operation);
        let old = attachment.slots.write()[at].replace(registration);
        if old.is_none() {
            self.active.fetch_add(1, Ordering::Relaxed);
        }
        self.bind_open_handles(attachment);
        old
    }

    /// Binds the handles that are open already and belong to the owner.
    fn bind_open_handles(&self, attachment: &Arc<Attachment>) {
        let ino = attachment.ino;
        let open: Vec<Arc<Handle>> = self
            .shard(ino)
            .read()
            .range((ino, 0)..=(ino, u64::MAX))
            .map(|(_, handle)| Arc::clone(handle))
            .collect();
        for handle in open.iter().filter(|handle| !handle.is_bound_to(attachment)) {
            let generations = if attachment.owner.has_thread(handle.opener) {
                Some(0)
            } else {
                match ProcessId::of(handle.opener) {
                    Ok(opener) if attachment.is_inherited() => {
                        opener.generations_to(attachment.owner)
                    }
                    Ok(_) => None,
                    Err(_) => {
                        handle.unresolved.store(true, Ordering::Relaxed);
                        None
                    }
                }
            };
            if let Some(generations) = generations {
                handle.bind(vec![Bound {
                    attachment: Arc::clone(attachment),
                    generations,
                }]);
            }
        }
    }

    /// Takes the registrations that `which` names out of an attachment, and the attachment away if
    /// it is empty then. The caller drops what it gets when it holds no lock.
    pub(super) fn remove(
        &self,
        owners: &mut Owners,
        attachment: &Arc<Attachment>,
        which: impl Fn(&Registration) -> bool,
    ) -> Vec<Arc<Registration>> {
        let mut removed = Vec::new();
        for slot in attachment.slots.write().iter_mut() {
            removed.extend(slot.take_if(|registration| which(registration)));
        }
        self.active.fetch_sub(removed.len(), Ordering::Relaxed);
        self.drop_if_empty(owners, attachment);
        removed
    }

    /// Takes an attachment without registrations away.
    pub(super) fn drop_if_empty(&self, owners: &mut Owners, attachment: &Arc<Attachment>) {
        if !attachment.is_empty() {
            return;
        }
        let mut attachments = self.attachments.write();
        if let Some(list) = attachments.get_mut(&attachment.ino) {
            let before = list.len();
            list.retain(|a| !Arc::ptr_eq(a, attachment));
            if list.len() < before {
                owners.let_go(attachment.owner);
            }
            if list.is_empty() {
                attachments.remove(&attachment.ino);
            }
        }
    }

    fn shard(&self, ino: Ino) -> &Shard {
        &self.handles[ino.0 as usize % SHARDS]
    }

    /// Takes note of a handle that bypasses the page cache; returns its number.
    pub(super) fn open(&self, ino: Ino, opener: u32, bound: Vec<Bound>) -> u64 {
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        let handle = Handle {
            ino,
            opener,
            bound: RwLock::default(),
            // Something may have been registered since the caller looked.
            unresolved: AtomicBool::new(bound.is_empty() && !self.is_idle()),
            views: Views::default(),
        };
        handle.bind(bound);
        self.shard(ino)
            .write()
            .insert((ino, number), Arc::new(handle));
        number
    }

    /// A handle that is used by a thread.
    pub(super) fn used(&self, ino: Ino, number: u64, thread: u32) -> Option<Arc<Handle>> {
        let handle = self.shard(ino).read().get(&(ino, number)).cloned()?;
        if handle.unresolved.swap(false, Ordering::Relaxed) {
            handle.bind(self.visible(ino, thread));
        }
        Some(handle)
    }

    /// Forgets a handle.
    pub(super) fn close(&self, ino: Ino, number: u64) {
        let closed = self.shard(ino).write().remove(&(ino, number));
        if let Some(handle) = closed {
            debug_assert_eq!(handle.ino, ino);
            handle.unbind();
        }
    }

    /// The attachments to `ino` whose registrations may have ended with a handle that was closed.
    pub(super) fn left_without_handles(&self, ino: Ino) -> Vec<Arc<Attachment>> {
        let mut attachments = self.of_inode(ino);
        attachments.retain(|attachment| {
            attachment.handles.load(Ordering::Relaxed) == 0
                && attachment.all().iter().any(|r| r.ends_with_handles)
        });
        attachments
    }
}

impl Attachment {
    /// Whether the owner has a handle that it can use.
    pub(super) fn has_handles(&self) -> bool {
        self.handles.load(Ordering::Relaxed) > 0
    }
}
