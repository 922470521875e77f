//! Who has registered which kernels for which files, and the handles they act on.
//!
//! An [`Attachment`] is what one process has registered for one inode, a slot per operation. A
//! handle that its owner opens is *bound* to it: requests through the handle look at the slots. So
//! a request knows in two steps, without asking more about who makes it than the request says,
//! whether a kernel is to run.
//!
//! Handles that are cached by the kernel are not known here at all; those that are not (O_DIRECT,
//! or every one with the mount option `direct_io`) are, from their opening on, since they can be
//! bound to what is registered later. Whose handle it is gets known when it is opened, while the
//! thread that does so cannot be gone, and never changes: no thread that has its number later is
//! taken for it, and a handle that nobody is known to have opened is never bound.
//!
//! Nor does a kernel answer who has rights that whoever registered it could not have had
//! ([`Rights`]): those of the opener count, and those of who makes a request, if that shows another
//! user or group than the opener had. As long as nothing is registered, all that ordinary requests
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

use super::dying::Waiter;
use super::limits::{Account, Share};
use super::process::{Descent, Opener, ProcessId};
use super::rights::Rights;
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
    /// Of whoever set the attribute.
    pub(super) rights: Arc<Rights>,
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
    /// Whom its requests and outputs are counted for.
    pub(super) account: Arc<Account>,
    /// Its place among the registrations, which one that replaces it takes over.
    pub(super) place: Mutex<Option<Share>>,
    pub(super) _bytes: Share,
    /// Requests that have not been answered.
    pub(super) in_flight: AtomicUsize,
    pub(super) failures: AtomicU64,
    pub(super) ended: AtomicBool,
}

impl Registration {
    /// Whether it is registered no more: what runs for it is called off.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }
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
    /// Of whoever has the handle.
    rights: Arc<Rights>,
}

/// A handle whose requests come to us one by one.
pub(super) struct Handle {
    ino: Ino,
    /// Whoever opened it, if that is known.
    opener: Option<Opener>,
    /// Nearest first.
    bound: RwLock<Vec<Bound>>,
    pub(super) views: Views,
}

/// Who makes a request, as the request says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requester {
    /// The thread; 0 if it is of another PID namespace.
    pub thread: u32,
    /// The user of the filesystem.
    pub uid: u32,
    /// The group of the filesystem.
    pub gid: u32,
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
    /// An attachment as somebody sees it; `None` if he does not.
    fn of(attachment: &Arc<Attachment>, who: &Opener, descent: &mut Descent) -> Option<Bound> {
        let generations = match attachment.owner == who.process {
            true => 0,
            false if attachment.is_inherited() => descent.generations(who.process)?,
            false => return None,
        };
        Some(Bound {
            attachment: Arc::clone(attachment),
            generations,
            rights: Arc::clone(&who.rights),
        })
    }

    /// Whether whoever has the handle may use any of it.
    fn is_of_use(&self) -> bool {
        OPERATIONS
            .iter()
            .any(|(operation, _)| self.get(*operation).is_some())
    }

    /// The registration for an operation that whoever has the handle may use.
    pub(super) fn get(&self, operation: Operation) -> Option<Arc<Registration>> {
        let found = self.attachment.get(operation)?;
        let meant = self.generations == 0 || found.inherited;
        (meant && found.rights.reach(&self.rights)).then_some(found)
    }
}

impl Handle {
    /// The kernels that requests of these kinds go to, when `who` makes them.
    pub(super) fn registrations<const N: usize>(
        &self,
        operations: [Operation; N],
        who: Requester,
    ) -> [Option<Arc<Registration>>; N] {
        let bound = self.bound.read();
        let found = operations.map(|operation| bound.iter().find_map(|bound| bound.get(operation)));
        drop(bound);
        let opener = self.opener.as_ref().map(|opener| opener.rights.acts_as());
        if found.iter().all(Option::is_none) || opener == Some((who.uid, who.gid)) {
            return found;
        }
        // Somebody else uses the handle, or the opener as somebody else.
        let rights = Rights::of_thread(who.thread);
        found.map(|registration| {
            registration.filter(|r| rights.as_ref().is_some_and(|rights| r.rights.reach(rights)))
        })
    }

    /// Whoever made a request and waits for its answer.
    pub(super) fn waiter(&self, who: Requester) -> Waiter {
        Waiter {
            thread: who.thread,
            process: self.opener.as_ref().map(|opener| opener.process),
        }
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

    /// What a thread sees of what is registered for `ino`.
    pub(super) fn visible(&self, ino: Ino, thread: u32) -> Vec<Bound> {
        match self.has_any(ino).then(|| Opener::of(thread)) {
            Some(Some(who)) => self.visible_to(ino, &who),
            _ => Vec::new(),
        }
    }

    /// Whether anybody has registered something for `ino`.
    fn has_any(&self, ino: Ino) -> bool {
        self.attachments.read().contains_key(&ino)
    }

    /// What somebody sees of what is registered for `ino`: what his own process has, then that of
    /// processes it descends from.
    fn visible_to(&self, ino: Ino, who: &Opener) -> Vec<Bound> {
        let mut visible: Vec<Bound> = self
            .of_inode(ino)
            .into_iter()
            .filter_map(|attachment| {
                let mut descent = Descent::from(attachment.owner);
                Bound::of(&attachment, who, &mut descent)
            })
            .filter(Bound::is_of_use)
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
        match &old {
            Some(old) => old.ended.store(true, Ordering::SeqCst),
            None => {
                self.active.fetch_add(1, Ordering::Relaxed);
            }
        }
        old
    }

    /// Binds the handles that are open already and belong to the owner, or to its descendants. Not
    /// under a lock: there may be many.
    pub(super) fn bind_open_handles(&self, attachment: &Arc<Attachment>) {
        let ino = attachment.ino;
        let open: Vec<Arc<Handle>> = self
            .shard(ino)
            .read()
            .range((ino, 0)..=(ino, u64::MAX))
            .map(|(_, handle)| Arc::clone(handle))
            .collect();
        let mut descent = Descent::from(attachment.owner);
        for handle in open.iter().filter(|handle| !handle.is_bound_to(attachment)) {
            if let Some(opener) = &handle.opener
                && let Some(bound) = Bound::of(attachment, opener, &mut descent)
            {
                handle.bind(vec![bound]);
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
        for registration in &removed {
            registration.ended.store(true, Ordering::SeqCst);
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

    /// A thread opens a handle; `uncached`: it bypasses the page cache, and can be bound later.
    /// Returns its number, if it has one, and whether it is bound.
    pub(super) fn open(&self, ino: Ino, thread: u32, uncached: bool) -> (Option<u64>, bool) {
        if !uncached && (self.is_idle() || !self.has_any(ino)) {
            return (None, false);
        }
        let opener = Opener::of(thread);
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        let handle = Arc::new(Handle {
            ino,
            opener,
            bound: RwLock::default(),
            views: Views::default(),
        });
        // First it is known, then it is bound: what is registered meanwhile finds it, or is found.
        self.shard(ino)
            .write()
            .insert((ino, number), Arc::clone(&handle));
        if let Some(opener) = &handle.opener {
            handle.bind(self.visible_to(ino, opener));
        }
        let bound = !handle.bound.read().is_empty();
        if !bound && !uncached {
            self.close(ino, number);
            return (None, false);
        }
        (Some(number), bound)
    }

    /// A handle by its number.
    pub(super) fn handle(&self, ino: Ino, number: u64) -> Option<Arc<Handle>> {
        self.shard(ino).read().get(&(ino, number)).cloned()
    }

    /// Whether a process has opened a handle that can be bound to what it registers.
    pub(super) fn has_handle_of(&self, ino: Ino, process: ProcessId) -> bool {
        self.shard(ino)
            .read()
            .range((ino, 0)..=(ino, u64::MAX))
            .any(|(_, handle)| handle.opener.as_ref().is_some_and(|o| o.process == process))
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
