//! Where hostile programs are tried: every object is linked, compiled and interpreted in one cage,
//! with the real helpers, and all that can be seen of the two executions has to be the same.
//!
//! What is compared: the result or the failure with its text, output, appended bytes, statistics
//! but for times, logged lines, and every byte of the cage that programs can write. An endless program
//! is one that takes more than so many interpreted instructions; compiled, it has to end soon. Around
//! the cage lie pages of a pattern that nobody may touch.
//!
//! For tests and fuzzers of this crate; no product is built with it.

mod canaries;
mod file;
mod log;
mod outcome;

use std::sync::Arc;
use std::time::Duration;

use zns_backend::{Geometry, MemDevice, ZonedDevice};

use self::canaries::Canaries;
use self::log::Log;
pub use self::outcome::{Ending, Outcome};
use crate::device::{Core, DeviceConfig, LoadedProgram};
use crate::engine::cage::{Cage, CageError, PAGE};
use crate::engine::interpreter::{Meter, Metered};
use crate::engine::{Engine, ubpf};
use crate::execution::{End, Instance, prepare};
use crate::program::fuzz::Fuzzer;
use crate::program::{LinkLimits, Program};
use crate::request::{Failure, FileIdentity, Limits, Operation, Request, SnapshotMap};

/// Time that an execution may take whose instructions are few.
const PATIENCE: Duration = Duration::from_secs(10);

/// Time that a program gets which was endless before.
const ENDLESS: Duration = Duration::from_millis(2);

/// What the compiler says of programs that are fine but too much for it.
const TOO_MUCH: &str = "can be compiled";

/// What became of an object.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It was not accepted, for this reason.
    Refused(String),
    /// It ran, and both engines agree.
    Ran {
        /// What both saw.
        outcome: Box<Outcome>,
        /// Instructions interpreted.
        instructions: u64,
        /// Accesses to memory among them.
        accesses: u64,
    },
    /// It would run longer than the laboratory has patience for.
    Endless,
}

/// Runs a program in a cage that it is bound to.
fn run_bound(
    instance: &mut Instance,
    core: &Core,
    loaded: &LoadedProgram,
    request: &Request,
) -> End {
    instance.run(core, &loaded.program, request, None)
}

/// Mostly a number that means something to kernels.
fn argument(random: &mut Fuzzer) -> u64 {
    match random.below(4) {
        0 => random.number(),
        1 => random.below(100_000) as u64,
        _ => random.below(4) as u64,
    }
}

/// A cage, a device with some files, and both engines.
pub struct Laboratory {
    core: Core,
    instance: Instance,
    meter: Arc<Meter>,
    files: Vec<Arc<dyn SnapshotMap>>,
    log: Log,
    canaries: Canaries,
    /// What [`Laboratory::run`] ran last, the latest at the end.
    known: Vec<(Vec<u8>, bool, Arc<LoadedProgram>)>,
}

impl Laboratory {
    /// Programs may run for `instructions_max` instructions.
    ///
    /// # Errors
    /// There is no memory for a cage.
    ///
    /// # Panics
    /// There is no memory for a device.
    pub fn new(instructions_max: u64) -> Result<Laboratory, CageError> {
        let geometry = Geometry {
            block_size: PAGE as u32,
            zones: 64,
            zone_size: 256,
            zone_capacity: 224,
            max_open: 0,
            max_active: 0,
            max_append: 0,
        };
        let storage: Arc<dyn ZonedDevice> =
            Arc::new(MemDevice::new(geometry).expect("memory for a device"));
        let files = file::all(&*storage);
        let instance = Instance::new()?;
        Ok(Laboratory {
            core: Core::new(storage, &DeviceConfig::default()),
            canaries: Canaries::around(instance.cage()),
            instance,
            meter: Arc::new(Meter::new(instructions_max)),
            files,
            log: Log::new(),
            known: Vec::new(),
        })
    }

    /// The cage everything runs in.
    #[must_use]
    pub fn cage(&self) -> &Cage {
        self.instance.cage()
    }

    /// A request to try a program with: mostly a read, of any of the files.
    pub fn request(&self, random: &mut Fuzzer) -> Request {
        let operation = match random.below(8) {
            0 => Operation::WriteStream,
            1 => Operation::ReadEvent,
            2 => Operation::WriteEvent,
            _ => Operation::ReadStream,
        };
        let snapshot = Arc::clone(&self.files[random.below(self.files.len())]);
        let bytes = usize::try_from(snapshot.size()).unwrap_or(usize::MAX);
        let offset = random.below(bytes + 1);
        let size = random.below(9000).min(bytes - offset);
        let (offset, size) = match random.below(3) {
            0 => (0, bytes),
            _ => (offset, size),
        };
        let has_data = operation != Operation::ReadStream;
        let data = if has_data { size } else { 0 };
        let few = random.below(8) == 0;
        Request {
            operation,
            offset: offset as u64,
            size: size as u64,
            snapshot,
            file: FileIdentity {
                inode: 77,
                parent: 1,
            },
            data: (0..data).map(|_| random.number() as u8).collect(),
            arguments: (0..random.below(5)).map(|_| argument(random)).collect(),
            limits: Limits {
                time: PATIENCE,
                processor: None,
                heap: 64 << 10,
                output: if few { 100 } else { 64 << 10 },
                blocks_read: if few { 3 } else { 1 << 20 },
                blocks_appended: if few { 1 } else { 16 },
            },
        }
    }

    /// Tries an object in both engines.
    ///
    /// # Errors
    /// What must not be: the two disagree, one of them does not take what the validator took, or
    /// a byte around the cage has changed.
    pub fn try_object(&mut self, object: &[u8], request: &mut Request) -> Result<Verdict, String> {
        let program = match Program::link(object, &LinkLimits::default()) {
            Ok(program) => program,
            Err(reason) => return Ok(Verdict::Refused(reason.to_string())),
        };
        let compiled = match self.load(&ubpf::Compiler, &program, object) {
            Ok(compiled) => compiled,
            Err(reason) if reason.contains(TOO_MUCH) => return Ok(Verdict::Refused(reason)),
            Err(reason) => return Err(format!("validated, but not compiled: {reason}")),
        };
        let interpreter = Metered(Arc::clone(&self.meter));
        let interpreted = self
            .load(&interpreter, &program, object)
            .map_err(|reason| format!("validated, but not interpreted: {reason}"))?;
        let expected = self.execute(&interpreted, request)?;
        let (instructions, accesses) = (self.meter.instructions(), self.meter.accesses());
        if let Err(Failure::TimedOut(_) | Failure::ProcessorTime(_)) = expected.status {
            request.limits.time = ENDLESS;
            self.execute(&compiled, request)?;
            return Ok(Verdict::Endless);
        }
        let seen = self.execute(&compiled, request)?;
        match expected.difference(&seen) {
            None => Ok(Verdict::Ran {
                outcome: Box::new(seen),
                instructions,
                accesses,
            }),
            Some(difference) => Err(format!("interpreted and compiled, {difference}")),
        }
    }

    /// Runs an object in one engine, `compiled` or not.
    ///
    /// # Errors
    /// It is not accepted, or a byte around the cage has changed.
    pub fn run(
        &mut self,
        object: &[u8],
        request: &Request,
        compiled: bool,
    ) -> Result<Outcome, String> {
        const KNOWN_MAX: usize = 8;
        let known = self
            .known
            .iter()
            .find(|(of, how, _)| *how == compiled && of == object);
        let loaded = match known {
            Some((_, _, loaded)) => Arc::clone(loaded),
            None => {
                let program = Program::link(object, &LinkLimits::default());
                let program = program.map_err(|reason| reason.to_string())?;
                let metered = Metered(Arc::clone(&self.meter));
                let engine: &dyn Engine = if compiled { &ubpf::Compiler } else { &metered };
                let loaded = Arc::new(self.load(engine, &program, object)?);
                if self.known.len() >= KNOWN_MAX {
                    self.known.remove(0);
                }
                self.known
                    .push((object.to_vec(), compiled, Arc::clone(&loaded)));
                loaded
            }
        };
        self.execute(&loaded, request)
    }

    fn load(
        &self,
        engine: &dyn Engine,
        program: &Program,
        object: &[u8],
    ) -> Result<LoadedProgram, String> {
        Ok(LoadedProgram {
            object: object.into(),
            prepared: prepare(engine, program)?,
            program: program.clone(),
        })
    }

    /// One execution in the cage as a new owner finds it.
    fn execute(&mut self, loaded: &LoadedProgram, request: &Request) -> Result<Outcome, String> {
        let instance = &mut self.instance;
        instance.wipe().map_err(|error| error.to_string())?;
        instance.forget_code();
        instance.bind(loaded)?;
        let core = &self.core;
        let (end, log) = self
            .log
            .lines_of(|| run_bound(instance, core, loaded, request));
        let (output, appended) = match end.status {
            Ok(_) => instance.results(&end),
            Err(_) => Default::default(),
        };
        let outcome = Outcome {
            output: output.to_vec(),
            appended: appended.to_vec(),
            usage: outcome::without_times(end.usage),
            status: end.status,
            log,
            memory: instance.cage().contents(),
        };
        self.canaries.check()?;
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cage::Region;
    use crate::execution::{FAULTS_MIN, KEPT_BYTES};
    use crate::program::fuzz::Parts;

    #[test]
    fn executions_that_touch_a_few_pages_each_do_not_add_up() {
        const HEAP: u64 = 64 << 20;
        const STEP: u64 = 16 << 10;
        let mut laboratory = Laboratory::new(u64::MAX).expect("memory");
        let mut request = laboratory.request(&mut Fuzzer::new(1));
        request.limits.heap = HEAP;
        // Stores into the heap, at the offset of the request.
        let slots = [
            0x0038_1279,
            0x0008_1379,
            0x320f,
            0x0000_0001_0000_027a,
            0xb7,
            0x95,
        ];
        let object = Parts::of_code(&slots).object();
        let program = Program::link(&object, &LinkLimits::default()).expect("links");
        let loaded = laboratory.load(&ubpf::Compiler, &program, &object);
        let loaded = loaded.expect("compiles");
        let Laboratory { core, instance, .. } = &mut laboratory;
        instance.bind(&loaded).expect("is bound");
        let mut most = 0;
        for at in (0..HEAP).step_by(STEP as usize) {
            request.offset = at;
            let end = run_bound(instance, core, &loaded, &request);
            assert_eq!(end.status, Ok(0));
            instance.settle(&end).expect("is put aside");
            most = most.max(instance.cage().resident(Region::Heap));
        }
        let huge = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
        let page = match huge.is_ok_and(|setting| setting.contains("[always]")) {
            true => 2 << 20,
            false => PAGE,
        };
        let bound = KEPT_BYTES + 2 * FAULTS_MIN.unsigned_abs() * page;
        assert!(most <= bound, "{most} of {HEAP}, expected {bound} at most");
    }
}
