//! The bounded queue of the device and its worker threads.
//!
//! Each lane (one per activation) queues its own jobs, and workers serve the lanes that have any
//! in turn, one job each: an owner with a deep queue delays another owner's request by at most
//! one job per owner. A lane holds at most `depth` jobs; whoever submits more waits outside.
//!
//! Kernels that run long must not hold up other lanes either. Workers cannot be preempted, but
//! threads can: when jobs wait and no worker has become free for [`PATIENCE`], the supervisor
//! starts a relief worker, and the operating system shares the processors out among them. Relief
//! workers serve only lanes of which nothing runs, and only [`RELIEF_PER_TENANT`] of one tenant,
//! so that nobody's slow kernels take all of them; they leave when they have found nothing to do
//! for [`LINGER`].
//!
//! Who is told the end of a job often submits the next one at once, while the worker is still on its
//! way back to the queue. Waking another worker for that would take longer than the way back, and
//! the two would wait for each other: jobs of a lane are left to workers that have said that they are
//! about to end one of it ([`Ending`]).
//!
//! Every job is either run or, after [`Queue::stop`], refused; none is dropped silently.

use std::cell::Cell;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

/// How long jobs wait for a busy worker before a relief worker is started.
const PATIENCE: Duration = Duration::from_millis(4);

/// How long what is ended is given to end.
const PAUSE: Duration = Duration::from_millis(1);
/// How long a relief worker stays without a job, for the next one not to wait for a new worker.
const LINGER: Duration = Duration::from_millis(100);
/// Jobs of one tenant that run at once before relief workers leave the rest of them waiting.
const RELIEF_PER_TENANT: usize = 24;
/// Most relief workers. There are more cages than workers, for all of them to run.
const RELIEF_MAX: usize = 96;

/// Who activations belong to, as the host counts users: what one of them runs delays the others
/// by their share of the processors at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tenant(pub u64);

/// What workers do.
pub(crate) trait Job: Send + 'static {
    /// Carries the job out, and may say before its end that it is near. Must not unwind.
    fn run(self, ending: &Ending<'_>);

    /// Ends the job without running it: it was cancelled, or the device is stopping. Must not
    /// unwind.
    fn refuse(self);

    /// Whether nobody wants it any more.
    fn is_cancelled(&self) -> bool;
}

/// By which a job says that its worker will look for the next one at once.
pub(crate) struct Ending<'a> {
    /// Where workers are counted that are about to end a job of this lane; not those that may not take
    /// any job.
    count: Option<&'a AtomicUsize>,
    said: Cell<bool>,
}

impl Ending<'_> {
    /// What is left to do takes less time than waking a thread, or little more.
    pub(crate) fn is_near(&self) {
        if let Some(count) = self.count
            && !self.said.replace(true)
        {
            count.fetch_add(1, SeqCst);
        }
    }
}

/// The jobs of one activation. What is in here is only touched by who holds the queue's state.
pub(crate) struct Lane<J> {
    tenant: Tenant,
    jobs: Mutex<VecDeque<J>>,
    running: AtomicUsize,
    /// Workers that are about to end a job of it: taken away by who holds the queue's state.
    ending: AtomicUsize,
}

impl<J> Lane<J> {
    pub(crate) fn new(tenant: Tenant) -> Lane<J> {
        Lane {
            tenant,
            jobs: Mutex::new(VecDeque::new()),
            running: AtomicUsize::new(0),
            ending: AtomicUsize::new(0),
        }
    }
}

struct State<J> {
    /// Lanes that have jobs, each once, in the order they are served.
    ready: VecDeque<Arc<Lane<J>>>,
    /// Jobs in all lanes.
    queued: usize,
    /// Jobs handed to workers so far; the supervisor watches it move.
    dispatched: u64,
    /// Jobs that run, by tenant.
    running: HashMap<Tenant, usize>,
    /// Workers waiting for a job.
    idle: usize,
    /// Submitters waiting for room in their lane.
    waiting: usize,
    /// Workers alive.
    workers: usize,
    /// The supervisor has nothing to watch and sleeps.
    unwatched: bool,
    stopping: bool,
    threads: Vec<JoinHandle<()>>,
}

struct Shared<J> {
    state: Mutex<State<J>>,
    work: Condvar,
    room: Condvar,
    watch: Condvar,
    regular: usize,
    depth: usize,
}

thread_local! {
    /// Whether this thread works for some queue: such a one never waits for room, as it may be the
    /// one that would make it.
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };
}

/// The queue and its workers.
pub(crate) struct Queue<J: Job> {
    shared: Arc<Shared<J>>,
}

impl<J: Job> Queue<J> {
    /// Starts `workers` threads for lanes of at most `depth` jobs.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub(crate) fn start(workers: usize, depth: usize) -> io::Result<Queue<J>> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                queued: 0,
                dispatched: 0,
                running: HashMap::new(),
                idle: 0,
                waiting: 0,
                workers: 0,
                unwatched: false,
                stopping: false,
                threads: Vec::new(),
            }),
            work: Condvar::new(),
            room: Condvar::new(),
            watch: Condvar::new(),
            regular: workers.max(1),
            depth: depth.max(1),
        });
        let queue = Queue { shared };
        for _ in 0..queue.shared.regular {
            Shared::spawn_worker(&queue.shared, &mut queue.shared.state.lock(), false)?;
        }
        let watched = Arc::clone(&queue.shared);
        let supervisor = thread::Builder::new()
            .name("csd-supervisor".into())
            .spawn(move || watched.supervise())?;
        queue.shared.state.lock().threads.push(supervisor);
        Ok(queue)
    }

    /// Queues a job, waiting for room in its lane first. After [`Queue::stop`] the job is refused
    /// at once, on this thread.
    pub(crate) fn submit(&self, lane: &Arc<Lane<J>>, job: J) {
        if let Err(job) = self.shared.enqueue(lane, job) {
            job.refuse();
        }
    }

    /// Takes the cancelled jobs out of a lane and refuses them, on this thread.
    pub(crate) fn weed(&self, lane: &Lane<J>) {
        for job in self.shared.take_cancelled(lane) {
            job.refuse();
        }
    }

    /// Jobs waiting and workers alive.
    pub(crate) fn load(&self) -> (usize, usize) {
        let state = self.shared.state.lock();
        (state.queued, state.workers)
    }

    /// Refuses what is queued, waits for what runs, and ends the workers; `hurry` ends what runs
    /// now, and is called until nothing does. Called on a worker, it leaves that one to end by
    /// itself.
    pub(crate) fn stop(&self, hurry: impl Fn()) {
        let (lanes, threads) = {
            let mut state = self.shared.state.lock();
            state.stopping = true;
            state.queued = 0;
            (
                std::mem::take(&mut state.ready),
                std::mem::take(&mut state.threads),
            )
        };
        self.shared.work.notify_all();
        self.shared.room.notify_all();
        self.shared.watch.notify_all();
        for lane in lanes {
            let jobs = std::mem::take(&mut *lane.jobs.lock());
            jobs.into_iter().for_each(J::refuse);
        }
        let me = thread::current().id();
        for thread in threads {
            while thread.thread().id() != me && !thread.is_finished() {
                hurry();
                thread::sleep(PAUSE);
            }
            if thread.thread().id() != me && thread.join().is_err() {
                tracing::error!("a worker of the device ended by a panic");
            }
        }
    }
}

impl<J: Job> Drop for Queue<J> {
    fn drop(&mut self) {
        self.stop(|| {});
    }
}

impl<J: Job> Shared<J> {
    fn enqueue(&self, lane: &Arc<Lane<J>>, job: J) -> Result<(), J> {
        let mut state = self.state.lock();
        if !IS_WORKER.get() {
            state.waiting += 1;
            self.room.wait_while(&mut state, |state| {
                !state.stopping && lane.jobs.lock().len() >= self.depth
            });
            state.waiting -= 1;
        }
        if state.stopping {
            return Err(job);
        }
        let mut jobs = lane.jobs.lock();
        jobs.push_back(job);
        if jobs.len() == 1 {
            state.ready.push_back(Arc::clone(lane));
        }
        let left_to_others = jobs.len() <= lane.ending.load(SeqCst);
        drop(jobs);
        state.queued += 1;
        let wake = state.idle > 0 && !left_to_others;
        let watch = state.unwatched && state.queued > state.idle;
        drop(state);
        if wake {
            self.work.notify_one();
        }
        if watch {
            self.watch.notify_one();
        }
        Ok(())
    }

    fn take_cancelled(&self, lane: &Lane<J>) -> VecDeque<J> {
        let mut state = self.state.lock();
        if state.stopping {
            // All of them are being refused.
            return VecDeque::new();
        }
        let mut jobs = lane.jobs.lock();
        if !jobs.iter().any(J::is_cancelled) {
            return VecDeque::new();
        }
        let (cancelled, wanted): (VecDeque<J>, _) = jobs.drain(..).partition(J::is_cancelled);
        *jobs = wanted;
        let emptied = jobs.is_empty();
        drop(jobs);
        state.queued -= cancelled.len();
        if emptied {
            state.ready.retain(|ready| !std::ptr::eq(&**ready, lane));
        }
        if state.waiting > 0 {
            self.room.notify_all();
        }
        cancelled
    }

    /// Which lane's turn it is; `choosy`: among those that relief workers serve.
    fn turn(state: &State<J>, choosy: bool) -> Option<usize> {
        let of_tenant = |tenant| state.running.get(&tenant).copied().unwrap_or(0);
        state.ready.iter().position(|lane| {
            !choosy || lane.running.load(Relaxed) == 0 && of_tenant(lane.tenant) < RELIEF_PER_TENANT
        })
    }

    /// The next job in turn, if there is any for this worker.
    fn take(&self, state: &mut State<J>, relief: bool) -> Option<(J, Arc<Lane<J>>)> {
        // As many workers as there are regular ones may do anything.
        let choosy = relief && state.workers - state.idle > self.regular;
        let turn = Self::turn(state, choosy)?;
        let lane = state.ready.remove(turn)?;
        let mut jobs = lane.jobs.lock();
        let job = jobs.pop_front();
        let (more, full) = (!jobs.is_empty(), jobs.len() + 1 >= self.depth);
        drop(jobs);
        if more {
            state.ready.push_back(Arc::clone(&lane));
        }
        state.queued -= 1;
        state.dispatched += 1;
        lane.running.fetch_add(1, Relaxed);
        *state.running.entry(lane.tenant).or_default() += 1;
        if full && state.waiting > 0 {
            self.room.notify_all();
        }
        job.map(|job| (job, lane))
    }

    /// A job of `lane` has ended.
    fn ended(state: &mut State<J>, lane: &Lane<J>) {
        lane.running.fetch_sub(1, Relaxed);
        if let Entry::Occupied(mut running) = state.running.entry(lane.tenant) {
            *running.get_mut() -= 1;
            if *running.get() == 0 {
                running.remove();
            }
        }
    }

    fn work(&self, relief: bool) {
        IS_WORKER.set(true);
        let mut state = self.state.lock();
        while !state.stopping {
            if let Some((job, lane)) = self.take(&mut state, relief) {
                let ending = Ending {
                    count: (!relief).then_some(&lane.ending),
                    said: Cell::new(false),
                };
                MutexGuard::unlocked(&mut state, || run_guarded(job, &ending));
                if ending.said.get() {
                    // What was left to this worker is taken before anybody else has the state.
                    lane.ending.fetch_sub(1, SeqCst);
                }
                Self::ended(&mut state, &lane);
                continue;
            }
            state.idle += 1;
            let idled = relief && self.work.wait_for(&mut state, LINGER).timed_out();
            if !relief {
                self.work.wait(&mut state);
            }
            state.idle -= 1;
            if idled {
                break;
            }
        }
        state.workers -= 1;
    }

    fn spawn_worker(this: &Arc<Self>, state: &mut State<J>, relief: bool) -> io::Result<()> {
        let shared = Arc::clone(this);
        let name = if relief { "csd-relief" } else { "csd-worker" };
        let thread = thread::Builder::new()
            .name(name.into())
            .spawn(move || shared.work(relief))?;
        state.workers += 1;
        state.threads.retain(|thread| !thread.is_finished());
        state.threads.push(thread);
        Ok(())
    }

    fn supervise(self: &Arc<Self>) {
        let mut state = self.state.lock();
        while !state.stopping {
            if state.queued == 0 {
                state.unwatched = true;
                self.watch.wait(&mut state);
                state.unwatched = false;
                continue;
            }
            let before = state.dispatched;
            self.watch.wait_for(&mut state, PATIENCE);
            let stuck =
                state.idle == 0 && state.dispatched == before && Self::turn(&state, true).is_some();
            if !stuck || state.stopping || state.workers >= self.regular + RELIEF_MAX {
                continue;
            }
            if let Err(error) = Shared::spawn_worker(self, &mut state, true) {
                tracing::warn!(%error, "a relief worker could not be started");
            }
        }
    }
}

/// Jobs must not unwind; should one do so all the same, its worker goes on.
fn run_guarded<J: Job>(job: J, ending: &Ending<'_>) {
    if catch_unwind(AssertUnwindSafe(|| job.run(ending))).is_err() {
        tracing::error!("a job of the device panicked");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
    use std::thread::ThreadId;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// Tells who runs it, and that it is about to end if it is; ends when it may.
    struct Told {
        near: bool,
        runs: Sender<ThreadId>,
        may_end: Receiver<()>,
    }

    impl Job for Told {
        fn run(self, ending: &Ending<'_>) {
            if self.near {
                ending.is_near();
            }
            self.runs.send(thread::current().id()).expect("listened to");
            self.may_end.recv_timeout(LONG).expect("told to end");
        }

        fn refuse(self) {}

        fn is_cancelled(&self) -> bool {
            false
        }
    }

    /// A job, where it tells who runs it, and by what it is told to end.
    fn job(near: bool) -> (Told, Receiver<ThreadId>, Sender<()>) {
        let (runs, who) = channel();
        let (end, may_end) = channel();
        let job = Told {
            near,
            runs,
            may_end,
        };
        (job, who, end)
    }

    #[test]
    fn the_next_job_of_a_lane_is_left_to_the_worker_that_is_about_to_end_one() {
        let queue = Queue::start(2, 4).expect("workers");
        let lane = Arc::new(Lane::new(Tenant(1)));
        let (first, who, end) = job(true);
        queue.submit(&lane, first);
        let worker = who.recv_timeout(LONG).expect("it runs");
        // The other one has begun to wait.
        while queue.shared.state.lock().idle == 0 {
            thread::sleep(PAUSE);
        }
        let (next, who, end_next) = job(false);
        queue.submit(&lane, next);
        let early = who.recv_timeout(Duration::from_millis(20));
        assert_eq!(early, Err(RecvTimeoutError::Timeout));
        end.send(()).expect("it listens");
        assert_eq!(who.recv_timeout(LONG), Ok(worker));
        end_next.send(()).expect("it listens");
    }

    #[test]
    fn what_is_more_or_of_another_lane_is_run_meanwhile() {
        let queue = Queue::start(3, 4).expect("workers");
        let (lane, other) = (
            Arc::new(Lane::new(Tenant(1))),
            Arc::new(Lane::new(Tenant(1))),
        );
        for near in [true, false] {
            let (first, who, end) = job(near);
            queue.submit(&lane, first);
            let worker = who.recv_timeout(LONG).expect("it runs");
            let (elsewhere, who, end_elsewhere) = job(false);
            queue.submit(&other, elsewhere);
            assert_ne!(who.recv_timeout(LONG).expect("it runs"), worker);
            // Of two one is left to the first worker at most.
            let jobs = [job(false), job(false)].map(|(next, who, end)| {
                queue.submit(&lane, next);
                (who, end)
            });
            let begun = jobs.iter().any(|(who, _)| {
                let worker_of_it = who.recv_timeout(Duration::from_secs(2));
                worker_of_it.is_ok_and(|of_it| of_it != worker)
            });
            assert!(begun, "near: {near}");
            for end in [end, end_elsewhere] {
                end.send(()).expect("it listens");
            }
            for (_, end) in jobs {
                end.send(()).expect("it listens");
            }
        }
    }
}
