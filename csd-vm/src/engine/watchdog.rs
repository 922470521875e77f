//! One thread that ends programs whose time is over.
//!
//! A run publishes its deadline in the slot of its thread: two atomic operations, no system call.
//! The watchdog sleeps until the earliest deadline it knows; whoever publishes an earlier one
//! wakes it. A thread that is overdue is signalled, again and again until its program has ended.
//!
//! A limit on processor time is a reading of the thread's clock, which gets there no faster than
//! wall time passes: the watchdog looks again when as much has passed as the thread had left.
//!
//! So that this works at any load the watchdog runs with a real-time priority, and lends one to an
//! overdue thread, where the process may do that (as root, or with CAP_SYS_NICE); elsewhere both
//! wait for their turn like everyone. The thread keeps the priority until it has had the time to
//! report the end ([`settle`]).
//!
//! The protocol of a slot: the owner stores a deadline and swaps it for [`NONE`] at the end; the
//! watchdog, holding `lent`, marks it as overdue by compare-and-swap and then acts. An owner that
//! finds the mark at its end owes: it waits for `lent` and gives the priority back when it
//! settles. A signal that arrives late finds no mark and is ignored ([`is_overdue`]).

use std::cell::Cell;
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64};
use std::thread::Thread;
use std::time::Duration;

use parking_lot::Mutex;

use super::guard;

/// No program runs.
const NONE: u64 = OVERDUE - 1;
/// The bit that marks a deadline as passed.
const OVERDUE: u64 = 1 << 63;

/// How often an overdue thread is signalled.
const REPEAT: Duration = Duration::from_millis(2);
/// How long the watchdog lets a thread be that has little processor time left, in nanoseconds.
const LOOK_MIN: u64 = 1_000_000;

/// A point in time by which a program must have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    at: u64,
    /// Nanoseconds of processor time, or [`NONE`].
    processor: u64,
    group: u64,
}

impl Deadline {
    /// The deadline `time` from now.
    #[must_use]
    pub fn after(time: Duration) -> Deadline {
        let time = u64::try_from(time.as_nanos()).unwrap_or(NONE);
        Deadline {
            at: now().saturating_add(time).min(NONE - 1),
            processor: NONE,
            group: 0,
        }
    }

    /// The same for a program that may use as much processor time, from its start on.
    #[must_use]
    pub fn with_processor_time(self, time: Duration) -> Deadline {
        let time = u64::try_from(time.as_nanos()).unwrap_or(NONE);
        Deadline {
            processor: time.min(NONE),
            ..self
        }
    }

    /// The same for a program of `group`, so that [`expire`] ends it earlier.
    #[must_use]
    pub fn in_group(self, group: Group) -> Deadline {
        Deadline {
            group: group.0,
            ..self
        }
    }
}

/// Programs that are ended together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group(u64);

impl Group {
    /// A group without programs.
    #[must_use]
    pub fn new() -> Group {
        static GROUPS: AtomicU64 = AtomicU64::new(0);
        Group(GROUPS.fetch_add(1, Relaxed) + 1)
    }
}

impl Default for Group {
    fn default() -> Group {
        Group::new()
    }
}

/// The time of all programs of `group` that run now is over.
pub fn expire(group: Group) {
    for slot in all().filter(|slot| slot.group.load(SeqCst) == group.0) {
        let deadline = slot.deadline.load(SeqCst);
        if deadline < NONE {
            // A program that ends meanwhile needs nothing; one that begins meanwhile may be of
            // another group, or of this one and too late.
            let _ = slot.deadline.compare_exchange(deadline, 0, SeqCst, SeqCst);
        }
    }
    if let Some(watchdog) = WATCHDOG.get() {
        watchdog.unpark();
    }
}

/// Nanoseconds of the monotonic clock.
fn now() -> u64 {
    // This clock always exists.
    read(libc::CLOCK_MONOTONIC).unwrap_or(0)
}

/// Nanoseconds of a clock; nothing if it is that of a thread that has ended.
fn read(clock: libc::clockid_t) -> Option<u64> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the structure is valid.
    let failed = unsafe { libc::clock_gettime(clock, &mut time) };
    (failed == 0).then_some(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// The scheduling of a thread before it was lent a priority.
type Lent = Option<(i32, libc::sched_param)>;

/// What a thread and the watchdog share. Never freed, but used again by other threads: so the
/// watchdog needs no lock to go through the list, which a thread that waits for its turn would
/// hold up.
struct Shared {
    thread: AtomicI32,
    /// The clock of the thread's processor time.
    clock: AtomicI32,
    /// What that clock may come to, or [`NONE`]; stored before the deadline.
    processor: AtomicU64,
    /// Whether it belongs to a thread.
    taken: AtomicBool,
    /// [`NONE`], a deadline, or one with the mark [`OVERDUE`].
    deadline: AtomicU64,
    /// The group of the program; stored before its deadline.
    group: AtomicU64,
    lent: Mutex<Lent>,
    next: Option<&'static Shared>,
}

/// The newest of the list, each of which leads to the one before it.
static NEWEST: AtomicPtr<Shared> = AtomicPtr::new(null_mut());

/// When the watchdog looks again by itself; 0 while it is looking.
static WAKES_AT: AtomicU64 = AtomicU64::new(0);

static WATCHDOG: OnceLock<Thread> = OnceLock::new();

thread_local! {
    /// What the slot of this thread shares; for signal handlers, hence without destructor.
    static WATCHED: Cell<Option<&'static Shared>> = const { Cell::new(None) };
}

fn newest() -> Option<&'static Shared> {
    // SAFETY: null, or put there by `register` from a box that is never freed.
    unsafe { NEWEST.load(SeqCst).as_ref() }
}

fn all() -> impl Iterator<Item = &'static Shared> {
    std::iter::successors(newest(), |shared| shared.next)
}

/// The place of a thread in the watchdog's list.
pub(super) struct Slot {
    shared: &'static Shared,
    /// Whether the watchdog may have lent a priority.
    owes: Cell<bool>,
}

/// Starts the watchdog unless it runs, and waits until it does: a new thread has no priority yet.
pub(super) fn start() {
    WATCHDOG.get_or_init(|| {
        let (started, is_started) = std::sync::mpsc::channel();
        let watch = move || {
            raise_own_priority();
            // Whoever started us waits for it.
            let _ = started.send(());
            watch();
        };
        let name = "csd-watchdog".to_owned();
        let spawned = std::thread::Builder::new().name(name).spawn(watch);
        let watchdog = spawned.expect("no thread for the watchdog");
        is_started.recv().expect("the watchdog starts");
        watchdog.thread().clone()
    });
}

/// Enters this thread into the list.
pub(super) fn register() -> Slot {
    start();
    let free = |shared: &&Shared| {
        shared
            .taken
            .compare_exchange(false, true, SeqCst, SeqCst)
            .is_ok()
    };
    let shared = all().find(free).unwrap_or_else(add_slot);
    let mut clock = libc::CLOCK_THREAD_CPUTIME_ID;
    // SAFETY: gettid and pthread_self have no arguments and no effects; the other call fills in a
    // number for a thread that exists, this one.
    unsafe {
        shared.thread.store(libc::gettid(), SeqCst);
        libc::pthread_getcpuclockid(libc::pthread_self(), &mut clock);
    }
    shared.clock.store(clock, SeqCst);
    WATCHED.set(Some(shared));
    Slot {
        shared,
        owes: Cell::new(false),
    }
}

fn add_slot() -> &'static Shared {
    let new = Box::leak(Box::new(Shared {
        thread: AtomicI32::new(0),
        clock: AtomicI32::new(0),
        processor: AtomicU64::new(NONE),
        taken: AtomicBool::new(true),
        deadline: AtomicU64::new(NONE),
        group: AtomicU64::new(0),
        lent: Mutex::new(None),
        next: None,
    }));
    loop {
        let next = newest();
        new.next = next;
        let next = next.map_or(null_mut(), |next| std::ptr::from_ref(next).cast_mut());
        if NEWEST.compare_exchange(next, new, SeqCst, SeqCst).is_ok() {
            return new;
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // A thread that is being signalled has a program; when none is left to be settled, nobody
        // signals it any more.
        self.settle();
        WATCHED.set(None);
        self.shared.taken.store(false, SeqCst);
    }
}

impl Slot {
    /// Watches this thread until the value is dropped.
    pub(super) fn watch(&self, deadline: Deadline) -> Watch<'_> {
        self.settle();
        // Sequentially consistent, as the watchdog's accesses to the same two are: either it sees
        // our deadline in the look after it announced when it wakes, or we see the announcement.
        self.shared.group.store(deadline.group, SeqCst);
        let mut first_look = deadline.at;
        let mut processor = NONE;
        if deadline.processor < NONE {
            let used = read(libc::CLOCK_THREAD_CPUTIME_ID).unwrap_or(0);
            processor = used.saturating_add(deadline.processor).min(NONE);
            first_look = first_look.min(now().saturating_add(deadline.processor));
        }
        self.shared.processor.store(processor, SeqCst);
        self.shared.deadline.store(deadline.at, SeqCst);
        if first_look < WAKES_AT.load(SeqCst)
            && let Some(thread) = WATCHDOG.get()
        {
            thread.unpark();
        }
        Watch(self)
    }

    /// Gives back the priority this thread was lent, if it was.
    pub(super) fn settle(&self) {
        if !self.owes.replace(false) {
            return;
        }
        // The lock is given back first: this thread may not run again soon after.
        let lent = self.shared.lent.lock().take();
        if let Some((policy, parameter)) = lent {
            // SAFETY: the structure is valid, the thread is this one.
            unsafe { libc::sched_setscheduler(0, policy, &parameter) };
        }
    }
}

/// A program under watch.
pub(super) struct Watch<'a>(&'a Slot);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let before = self.0.shared.deadline.swap(NONE, SeqCst);
        self.0.owes.set(before & OVERDUE != 0);
    }
}

/// Whether the time of the program on this thread is over. Safe in signal handlers.
pub(super) fn is_overdue() -> bool {
    let watched = WATCHED.get();
    watched.is_some_and(|shared| shared.deadline.load(Relaxed) & OVERDUE != 0)
}

/// The watchdog itself.
fn watch() {
    loop {
        WAKES_AT.store(0, SeqCst);
        let next = look();
        WAKES_AT.store(next, SeqCst);
        // Deadlines published before the announcement may have been missed by the first look.
        if look() < next {
            continue;
        }
        let wait = next.saturating_sub(now());
        if wait > 0 {
            std::thread::park_timeout(Duration::from_nanos(wait));
        }
    }
}

/// Signals who is overdue; tells when to look again.
fn look() -> u64 {
    let now = now();
    let next = all().map(|slot| look_at(slot, now)).min();
    next.unwrap_or(NONE)
}

/// Processor time that the program of a slot has left; nothing without a limit.
fn processor_left(slot: &Shared) -> Option<u64> {
    let limit = slot.processor.load(SeqCst);
    if limit == NONE {
        return None;
    }
    Some(limit.saturating_sub(read(slot.clock.load(SeqCst))?))
}

fn look_at(slot: &Shared, now: u64) -> u64 {
    let deadline = slot.deadline.load(SeqCst);
    if deadline == NONE {
        return NONE;
    }
    // Neither holds for one that has been found overdue.
    if deadline > now && deadline & OVERDUE == 0 {
        match processor_left(slot) {
            None => return deadline,
            Some(0) => {}
            Some(left) => return deadline.min(now.saturating_add(left.max(LOOK_MIN))),
        }
    }
    let mut lent = slot.lent.lock();
    let marked = deadline | OVERDUE;
    let ours = slot
        .deadline
        .compare_exchange(deadline, marked, SeqCst, SeqCst);
    if ours.is_err() {
        // The program has ended, and perhaps the next has begun: look again soon.
        return now + 1;
    }
    let thread = slot.thread.load(SeqCst);
    if lent.is_none() {
        *lent = lend_priority(thread);
    }
    let (process, signal) = (std::process::id() as i32, guard::deadline_signal());
    // SAFETY: a signal to a thread of ours that has not left: it would settle first, for which it
    // waits for `lent`. Its handler ignores it unless the program is overdue.
    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal) };
    now + REPEAT.as_nanos() as u64
}

/// Gives `thread` a real-time priority, and tells what it had; nothing where that is not allowed.
fn lend_priority(thread: libc::pid_t) -> Lent {
    // SAFETY: the structures are valid; the thread is one of ours.
    unsafe {
        let mut old: libc::sched_param = std::mem::zeroed();
        let policy = libc::sched_getscheduler(thread);
        if policy < 0 || libc::sched_getparam(thread, &mut old) != 0 {
            return None;
        }
        let lent = realtime(1);
        let done = libc::sched_setscheduler(thread, libc::SCHED_RR, &lent);
        (done == 0).then_some((policy, old))
    }
}

fn raise_own_priority() {
    // SAFETY: the structure is valid; the thread is this one.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &realtime(2)) };
}

fn realtime(priority: i32) -> libc::sched_param {
    libc::sched_param {
        sched_priority: priority,
    }
}
