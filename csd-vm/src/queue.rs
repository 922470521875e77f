//! The bounded queue of the device and its worker threads.
//!
//! Each lane (one per activation) queues its own jobs, and workers serve the lanes that have any
//! in turn, one job each: an owner with a deep queue delays another owner's request by at most
//! one job per owner. A lane holds at most `depth` jobs; whoever submits more waits outside.
//!
//! Kernels that run long must not hold up other lanes either. Workers cannot be preempted, but
//! threads can: when jobs wait and no worker has become free for [`PATIENCE`], the supervisor
//! starts a relief worker, up to twice as many as there are regular ones, and the operating
//! system shares the processors out among them. Relief workers leave when they find no job.
//!
//! Every job is either run or, after [`Queue::stop`], refused; none is dropped silently.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

/// How long jobs wait for a busy worker before a relief worker is started.
const PATIENCE: Duration = Duration::from_millis(4);

/// Relief workers per regular worker.
const RELIEF_FACTOR: usize = 2;

/// What workers do.
pub(crate) trait Job: Send + 'static {
    /// Carries the job out. Must not unwind.
    fn run(self);

    /// The device is stopping: ends the job without running it. Must not unwind.
    fn refuse(self);
}

/// The jobs of one activation.
pub(crate) struct Lane<J> {
    /// Only locked by who holds the queue's state.
    jobs: Mutex<VecDeque<J>>,
}

impl<J> Lane<J> {
    pub(crate) fn new() -> Lane<J> {
        Lane {
            jobs: Mutex::new(VecDeque::new()),
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

    /// Jobs waiting and workers alive.
    pub(crate) fn load(&self) -> (usize, usize) {
        let state = self.shared.state.lock();
        (state.queued, state.workers)
    }

    /// Refuses what is queued, waits for what runs, and ends the workers. Called on a worker, it
    /// leaves that one to end by itself.
    pub(crate) fn stop(&self) {
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
            if thread.thread().id() != me && thread.join().is_err() {
                tracing::error!("a worker of the device ended by a panic");
            }
        }
    }
}

impl<J: Job> Drop for Queue<J> {
    fn drop(&mut self) {
        self.stop();
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
        drop(jobs);
        state.queued += 1;
        let wake = state.idle > 0;
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

    /// The next job in turn, if there is any.
    fn take(&self, state: &mut State<J>) -> Option<J> {
        let lane = state.ready.pop_front()?;
        let mut jobs = lane.jobs.lock();
        let job = jobs.pop_front();
        let (more, full) = (!jobs.is_empty(), jobs.len() + 1 >= self.depth);
        drop(jobs);
        if more {
            state.ready.push_back(lane);
        }
        state.queued -= 1;
        state.dispatched += 1;
        if full && state.waiting > 0 {
            self.room.notify_all();
        }
        job
    }

    fn work(&self, relief: bool) {
        IS_WORKER.set(true);
        let mut state = self.state.lock();
        while !state.stopping {
            if let Some(job) = self.take(&mut state) {
                MutexGuard::unlocked(&mut state, || run_guarded(job));
            } else if relief {
                break;
            } else {
                state.idle += 1;
                self.work.wait(&mut state);
                state.idle -= 1;
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
            let stuck = state.queued > 0 && state.idle == 0 && state.dispatched == before;
            if !stuck || state.stopping || state.workers >= self.regular * (1 + RELIEF_FACTOR) {
                continue;
            }
            if let Err(error) = Shared::spawn_worker(self, &mut state, true) {
                tracing::warn!(%error, "a relief worker could not be started");
            }
        }
    }
}

/// Jobs must not unwind; should one do so all the same, its worker goes on.
fn run_guarded<J: Job>(job: J) {
    if catch_unwind(AssertUnwindSafe(|| job.run())).is_err() {
        tracing::error!("a job of the device panicked");
    }
}
