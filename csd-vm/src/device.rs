//! The device: programs are loaded, activated by owners, and executed with requests.
//!
//! The names follow NVMe Computational Programs: [`Device::load`], [`Device::activate`],
//! [`Device::submit`]; dropping an [`Activation`] deactivates, dropping the last reference to a
//! [`LoadedProgram`] unloads (a bounded number stays cached).

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc;

use zns_backend::ZonedDevice;

use crate::activation::{Activation, Task};
use crate::cache::ProgramCache;
use crate::cancellation::Cancellation;
use crate::engine::interpreter::Interpreter;
use crate::engine::{self, Engine, Group, Prepared, ubpf};
use crate::execution::prepare;
use crate::frames::Frames;
use crate::pool::Pool;
use crate::program::{self, LinkLimits, Program, helper_name};
use crate::queue::{Queue, Tenant};
use crate::request::{BLOCK_SIZE, Completion, Failure, Request, Usage};
use crate::stats::{Counters, DeviceCounters, Statistics};

/// How a device is set up.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// Worker threads; 0 takes the number of processors, at least 2.
    pub workers: usize,
    /// Requests that may wait per activation; further submitters wait outside.
    pub queue_depth: usize,
    /// Cages that exist at once, at least one per worker that can run.
    pub cages_max: usize,
    /// Wiped cages kept for the next owner.
    pub idle_cages_max: usize,
    /// Programs kept linked after their last reference is gone.
    pub cached_programs_max: usize,
    /// Memory for blocks of storage that is not in memory itself, in bytes; taken as it is needed, and
    /// given back with the snapshots they are of.
    pub frame_bytes: u64,
    /// Runs kernels in the interpreter instead of compiling them: slow, for tests.
    pub interpret: bool,
    /// Compiles kernels without the cage: never but to measure what the cage costs.
    #[cfg(feature = "measure-uncaged")]
    pub uncaged: bool,
}

/// Most memory for blocks, unless a configuration says otherwise.
const FRAME_BYTES_MAX: u64 = 512 << 20;
/// The part of the machine's memory that it is at most.
const FRAME_SHARE: u64 = 16;

/// Bytes of memory of the machine.
fn memory_bytes() -> u64 {
    // SAFETY: the call has numbers alone.
    let ask = |name| u64::try_from(unsafe { libc::sysconf(name) }).unwrap_or(0);
    ask(libc::_SC_PHYS_PAGES).saturating_mul(ask(libc::_SC_PAGESIZE))
}

impl Default for DeviceConfig {
    fn default() -> DeviceConfig {
        DeviceConfig {
            workers: 0,
            queue_depth: 64,
            cages_max: 128,
            idle_cages_max: 16,
            cached_programs_max: 64,
            frame_bytes: FRAME_BYTES_MAX.min(memory_bytes() / FRAME_SHARE),
            interpret: false,
            #[cfg(feature = "measure-uncaged")]
            uncaged: false,
        }
    }
}

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The storage has blocks of another size than kernels know.
    #[error("the device has blocks of {0} bytes; kernels work on blocks of {BLOCK_SIZE}")]
    BlockSize(u32),
    /// A worker thread could not be started.
    #[error("a worker could not be started: {0}")]
    Worker(#[from] std::io::Error),
}

/// Why an object was not loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// It is no BPF ELF object at all.
    #[error("not a BPF object: {0}")]
    NotBpf(String),
    /// It is one, and something in it is not accepted: a relocation, a helper, an instruction, a
    /// size. The text names section and instruction.
    #[error("{0}")]
    Refused(String),
    /// The device could not take it: no memory for a cage, the compiler failed.
    #[error("the device failed: {0}")]
    Device(String),
}

/// What `submit` calls at the end of an execution, on a worker thread.
pub type Done = Box<dyn FnOnce(Completion<'_>) + Send>;

/// What [`Device::execute`] gives back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// What the kernel returned; not negative as a signed number.
    pub value: u64,
    /// What it emitted.
    pub output: Vec<u8>,
    /// What it appended.
    pub appended: Vec<u8>,
    /// What it cost.
    pub usage: Usage,
}

/// What there is to say of a program, for people.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Description {
    /// SHA-256 of the object, in hexadecimal.
    pub hash: String,
    /// Name of the function execution begins with.
    pub entry: String,
    /// Its functions, the entry first.
    pub functions: Vec<FunctionDescription>,
    /// Instruction slots of 8 bytes, all functions together.
    pub slots: u64,
    /// Names of the helpers it calls.
    pub helpers: Vec<String>,
    /// Bytes of constants.
    pub read_only_bytes: u64,
    /// Bytes of initialised variables.
    pub initialised_bytes: u64,
    /// Bytes of variables that start as zeros.
    pub zeroed_bytes: u64,
}

/// One function of a program.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct FunctionDescription {
    /// Its symbol.
    pub name: String,
    /// Instruction slots of 8 bytes.
    pub slots: u64,
    /// Bytes of stack it uses.
    pub stack_bytes: u64,
}

/// A program that was linked and validated.
pub struct LoadedProgram {
    pub(crate) object: Arc<[u8]>,
    pub(crate) program: Program,
    /// Compiled for any cage.
    pub(crate) prepared: Box<dyn Prepared>,
}

impl LoadedProgram {
    /// The object it was loaded from.
    #[must_use]
    pub fn object(&self) -> &[u8] {
        &self.object
    }

    /// SHA-256 of the object.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        self.program.hash()
    }

    /// What was made of it, for verification.
    #[must_use]
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// What there is to say of it.
    #[must_use]
    pub fn describe(&self) -> Description {
        let program = &self.program;
        let data = program.data();
        let functions = program.functions().iter().map(|f| FunctionDescription {
            name: f.name.clone(),
            slots: f.slots as u64,
            stack_bytes: u64::from(f.stack_bytes),
        });
        let helpers = program
            .helpers()
            .iter()
            .map(|number| helper_name(*number).map_or_else(|| number.to_string(), str::to_owned));
        Description {
            hash: program.hash().iter().map(|b| format!("{b:02x}")).collect(),
            entry: program.entry_name().to_owned(),
            functions: functions.collect(),
            slots: program.slots() as u64,
            helpers: helpers.collect(),
            read_only_bytes: data.read_only.len() as u64,
            initialised_bytes: data.initialised.len() as u64,
            zeroed_bytes: data.zeroed,
        }
    }
}

/// What the device and its workers share.
pub(crate) struct Core {
    pub(crate) storage: Arc<dyn ZonedDevice>,
    pub(crate) frames: Option<Frames>,
    engine: Box<dyn Engine>,
    pub(crate) pool: Pool,
    pub(crate) stopping: AtomicBool,
    /// The kernels that run here.
    pub(crate) group: Group,
    pub(crate) totals: Counters,
    pub(crate) bindings: AtomicU64,
    pub(crate) warm_starts: AtomicU64,
    /// Activations so far.
    pub(crate) owners: AtomicU64,
    programs: ProgramCache,
    linked: AtomicU64,
    cache_hits: AtomicU64,
}

/// The engine that a configuration asks for.
fn engine(config: &DeviceConfig) -> Box<dyn Engine> {
    #[cfg(feature = "measure-uncaged")]
    if config.uncaged {
        return Box::new(ubpf::UncagedCompiler);
    }
    match config.interpret {
        true => Box::new(Interpreter),
        false => Box::new(ubpf::Compiler),
    }
}

impl Core {
    pub(crate) fn new(storage: Arc<dyn ZonedDevice>, config: &DeviceConfig) -> Core {
        Core {
            frames: Frames::new(&storage, config.frame_bytes),
            storage,
            engine: engine(config),
            pool: Pool::new(config.cages_max, config.idle_cages_max),
            stopping: AtomicBool::new(false),
            group: Group::new(),
            totals: Counters::default(),
            bindings: AtomicU64::new(0),
            warm_starts: AtomicU64::new(0),
            owners: AtomicU64::new(0),
            programs: ProgramCache::new(config.cached_programs_max),
            linked: AtomicU64::new(0),
            cache_hits: AtomicU64::new(0),
        }
    }
}

impl From<program::LoadError> for LoadError {
    fn from(error: program::LoadError) -> LoadError {
        match error {
            program::LoadError::Format { reason } => LoadError::NotBpf(reason),
            other => LoadError::Refused(other.to_string()),
        }
    }
}

/// The emulated computational storage device.
pub struct Device {
    core: Arc<Core>,
    queue: Queue<Task>,
}

impl Device {
    /// A device next to `storage`.
    ///
    /// # Errors
    /// When the storage has blocks of another size than 4 KiB, or threads cannot be started.
    pub fn new(
        storage: Arc<dyn ZonedDevice>,
        config: DeviceConfig,
    ) -> Result<Arc<Device>, DeviceError> {
        let block_size = storage.geometry().block_size;
        if block_size as usize != BLOCK_SIZE {
            return Err(DeviceError::BlockSize(block_size));
        }
        let workers = match config.workers {
            0 => std::thread::available_parallelism().map_or(2, |count| count.get().max(2)),
            given => given,
        };
        let queue = Queue::start(workers, config.queue_depth)?;
        let core = Arc::new(Core::new(storage, &config));
        Ok(Arc::new(Device { core, queue }))
    }

    /// Links, validates and compiles `object`, unless that was done before: programs are cached by
    /// content.
    ///
    /// # Errors
    /// What is wrong with the object.
    pub fn load(&self, object: &[u8]) -> Result<Arc<LoadedProgram>, LoadError> {
        let core = &self.core;
        if let Some(program) = core.programs.get(object) {
            core.cache_hits.fetch_add(1, Relaxed);
            return Ok(program);
        }
        let program = Program::link(object, &LinkLimits::default())?;
        core.linked.fetch_add(1, Relaxed);
        let prepared = prepare(&*core.engine, &program).map_err(LoadError::Device)?;
        Ok(core.programs.insert(Arc::new(LoadedProgram {
            object: object.into(),
            program,
            prepared,
        })))
    }

    /// Registers an owner of `program`. Cages used by this activation are shared with no other one
    /// before they are wiped; compiled code and mapped blocks are kept between its executions.
    #[must_use]
    pub fn activate(&self, program: &Arc<LoadedProgram>) -> Activation {
        self.activate_for(program, Tenant::default())
    }

    /// As [`Device::activate`], of an owner that belongs to `tenant`.
    #[must_use]
    pub fn activate_for(&self, program: &Arc<LoadedProgram>, tenant: Tenant) -> Activation {
        Activation::new(Arc::clone(&self.core), Arc::clone(program), tenant)
    }

    /// Queues an execution. `done` is called exactly once, on a worker thread, whatever happens;
    /// after [`Device::shutdown`] it is called at once, on this thread, with
    /// [`Failure::Stopped`]. Waits while the activation has `queue_depth` requests queued, unless
    /// called from a `done`. The next request of the same activation may wait for the `done` of a
    /// [`ReadStream`](crate::request::Operation::ReadStream), which is expected to take no longer
    /// than handing the output on. An activation belongs to the device that made it.
    pub fn submit(&self, activation: &Activation, request: Request, done: Done) {
        let task = activation.task(request, None, done);
        self.queue.submit(activation.lane(), task);
    }

    /// As [`Device::submit`], of an execution that [`Device::cancel`] can call off.
    pub fn submit_cancellable(
        &self,
        activation: &Activation,
        request: Request,
        cancellation: &Cancellation,
        done: Done,
    ) {
        let task = activation.task(request, Some(cancellation.clone()), done);
        self.queue.submit(activation.lane(), task);
        if cancellation.is_asked() {
            // Who asked may have looked before it was there.
            self.queue.weed(activation.lane());
        }
    }

    /// Calls off what was submitted to `activation` with any of `cancellations`: it ends with
    /// [`Failure::Cancelled`], unless it has ended or ends by itself. What waits does so now, and
    /// `done` is called on this thread; what runs does so as soon as it can be interrupted; what is
    /// submitted later, at once.
    pub fn cancel<'a>(
        &self,
        activation: &Activation,
        cancellations: impl IntoIterator<Item = &'a Cancellation>,
    ) {
        cancellations.into_iter().for_each(Cancellation::ask);
        self.queue.weed(activation.lane());
    }

    /// Executes and waits for the end.
    ///
    /// # Errors
    /// Why the execution failed, and what it cost nevertheless.
    pub fn execute(
        &self,
        activation: &Activation,
        request: Request,
    ) -> Result<Finished, (Failure, Usage)> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let done = Box::new(move |completion: Completion<'_>| {
            let usage = completion.usage;
            let finished = match completion.status {
                Ok(value) => Ok(Finished {
                    value,
                    output: completion.output.to_vec(),
                    appended: completion.appended.to_vec(),
                    usage,
                }),
                Err(failure) => Err((failure, usage)),
            };
            // The receiver waits below; if it is gone, so is who wanted the answer.
            let _ = sender.send(finished);
        });
        self.submit(activation, request, done);
        receiver
            .recv()
            .unwrap_or_else(|_| Err((Failure::Stopped, Usage::default())))
    }

    /// Statistics of all executions of this device.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.core.totals.snapshot()
    }

    /// What its caches and its queue did.
    #[must_use]
    pub fn counters(&self) -> DeviceCounters {
        let (queued, workers) = self.queue.load();
        let core = &self.core;
        DeviceCounters {
            programs_linked: core.linked.load(Relaxed),
            program_cache_hits: core.cache_hits.load(Relaxed),
            bindings: core.bindings.load(Relaxed),
            warm_starts: core.warm_starts.load(Relaxed),
            cages_made: core.pool.made.load(Relaxed),
            cages_wiped: core.pool.wiped.load(Relaxed),
            queued_now: queued as u64,
            workers_now: workers as u64,
        }
    }

    /// Refuses what is queued, ends what runs, waits for that, and ends the workers. Later
    /// submissions fail with [`Failure::Stopped`]. Dropping the device does the same.
    pub fn shutdown(&self) {
        self.core.stopping.store(true, SeqCst);
        self.queue.stop(|| engine::expire(self.core.group));
        if let Some(frames) = &self.core.frames {
            frames.stop();
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.shutdown();
    }
}
