//! One execution: a program is made ready in a cage, runs, and its end is told.

use std::os::raw::c_long;
use std::time::{Duration, Instant};

use crate::abi::{DATA_AT, Execution, Places, REQUEST_BYTES, describe};
use crate::cancellation::{Cancellation, Term};
use crate::cost;
use crate::device::{Core, LoadedProgram};
use crate::engine::cage::{Access, Cage, CageConfig, CageError, DataImage, Layout, Region};
use crate::engine::{Code, Deadline, Engine, Exit, Frame, Linked, Prepared};
use crate::program::{Data, Program};
use crate::request::{BLOCK_SIZE, Failure, Request, Usage};
use crate::window::Window;

/// Programs that a cage keeps code for.
const COMPILED_MAX: usize = 4;

/// Bytes of heap and output that a warm cage keeps its pages of.
pub(crate) const KEPT_BYTES: u64 = 1 << 20;

/// Page faults of an execution from which on it may have used more than [`KEPT_BYTES`]: few, as
/// one may bring in a huge page.
pub(crate) const FAULTS_MIN: c_long = 16;

/// References to a snapshot that a request holds.
const REQUEST_REFERENCES: usize = 1;

/// What stands for an unlimited time.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A program's code for one cage.
struct Compiled {
    hash: [u8; 32],
    code: Box<dyn Code>,
    /// Its data with the addresses of this cage, where it holds any.
    data: Option<Data>,
}

/// A cage with what belongs to it.
pub(crate) struct Instance {
    cage: Cage,
    window: Window,
    appended: Vec<u8>,
    /// Code for this cage, least recently used first.
    compiled: Vec<Compiled>,
    /// The program whose data is in the cage.
    placed: Option<[u8; 32]>,
    /// Page faults since pages of heap and output were given back last.
    faults: c_long,
}

/// How an execution ended.
pub(crate) struct End {
    pub(crate) status: Result<u64, Failure>,
    pub(crate) usage: Usage,
    emitted: u64,
    /// Page faults, but those of bringing blocks of the snapshot in.
    faults: c_long,
}

impl Instance {
    /// A fresh cage.
    pub(crate) fn new() -> Result<Instance, CageError> {
        let cage = Cage::new(&CageConfig::default())?;
        Ok(Instance {
            window: Window::new(&cage),
            cage,
            appended: Vec::new(),
            compiled: Vec::new(),
            placed: None,
            faults: 0,
        })
    }

    /// Its cage.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn cage(&self) -> &Cage {
        &self.cage
    }

    /// The next program is bound anew, even if it is the same in another engine.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn forget_code(&mut self) {
        self.compiled.clear();
    }

    /// Whether it has code for the program with `hash`.
    pub(crate) fn has_code_for(&self, hash: &[u8; 32]) -> bool {
        self.compiled.iter().any(|compiled| compiled.hash == *hash)
    }

    /// Takes away everything of its owner.
    pub(crate) fn wipe(&mut self) -> Result<(), CageError> {
        self.placed = None;
        self.appended = Vec::new();
        self.window.forget(&mut self.cage)?;
        self.cage.wipe()
    }

    /// Binds `program` to this cage; tells whether that was not done before.
    pub(crate) fn bind(&mut self, program: &LoadedProgram) -> Result<bool, String> {
        let hash = program.hash();
        if let Some(at) = self.compiled.iter().position(|c| c.hash == hash) {
            self.compiled[at..].rotate_left(1);
            return Ok(false);
        }
        let code = program.prepared.bind(&self.cage)?;
        let base = self.cage.address(Region::Data);
        let linked = &program.program;
        let data = linked.data_has_pointers().then(|| linked.data_at(base));
        if self.compiled.len() >= COMPILED_MAX {
            self.compiled.remove(0);
        }
        self.compiled.push(Compiled { hash, code, data });
        Ok(true)
    }

    /// Runs `program`, which was bound last.
    pub(crate) fn run(
        &mut self,
        core: &Core,
        program: &Program,
        request: &Request,
        cancellation: Option<&Cancellation>,
    ) -> End {
        match self.prepare(program, request) {
            Ok(places) => self.run_prepared(core, request, cancellation, places),
            Err(error) => End {
                status: Err(Failure::Internal(error.to_string())),
                usage: Usage::default(),
                emitted: 0,
                faults: 0,
            },
        }
    }

    /// What was emitted and what was appended, until [`Instance::settle`].
    pub(crate) fn results(&self, end: &End) -> (&[u8], &[u8]) {
        let at = self.cage.address(Region::Output);
        let output = self
            .cage
            .check(at, end.emitted, Access::Read)
            .and_then(|output| self.cage.bytes(output));
        (output.unwrap_or_default(), &self.appended)
    }

    /// Puts the cage aside until the next execution of its owner, whose last request still exists.
    /// A snapshot that nobody else holds, such as that of a single write, is let go.
    pub(crate) fn settle(&mut self, end: &End) -> Result<(), CageError> {
        self.appended.clear();
        self.appended.shrink_to(KEPT_BYTES as usize);
        if self.window.holds_alone(REQUEST_REFERENCES) {
            self.window.forget(&mut self.cage)?;
        }
        // Executions that touch a few new pages each add up.
        self.faults += end.faults;
        if self.faults >= FAULTS_MIN {
            self.faults = 0;
            for region in [Region::Heap, Region::Output] {
                let size = self.cage.accessible(region);
                if size > KEPT_BYTES {
                    self.cage.limit(region, KEPT_BYTES)?;
                    self.cage.limit(region, size)?;
                }
            }
        }
        Ok(())
    }

    fn prepare(&mut self, program: &Program, request: &Request) -> Result<Places, CageError> {
        self.place_data(program)?;
        let limits = &request.limits;
        let heap_size = self.limit(Region::Heap, limits.heap)?;
        let output_limit = self.limit(Region::Output, limits.output)?;
        let places = Places {
            data: self.place_input(&request.data)?,
            heap: self.cage.address(Region::Heap),
            heap_size,
            output_limit,
        };
        self.cage.write_call(0, &describe(request, &places))?;
        self.window.begin(&mut self.cage, &request.snapshot)?;
        self.appended.clear();
        Ok(places)
    }

    fn place_data(&mut self, program: &Program) -> Result<(), CageError> {
        let own = self.compiled.last().and_then(|c| c.data.as_ref());
        let data = own.unwrap_or(program.data());
        let image = DataImage {
            read_only: &data.read_only,
            initialised: &data.initialised,
            zeroed: data.zeroed,
        };
        if self.placed == Some(program.hash()) {
            return self.cage.reset_data(&image);
        }
        self.placed = None;
        self.cage.place_data(&image)?;
        self.placed = Some(program.hash());
        Ok(())
    }

    /// Limits a region to `bytes`, or to what it has.
    fn limit(&mut self, region: Region, bytes: u64) -> Result<u64, CageError> {
        let room = self.cage.layout().span(region).len;
        let bytes = bytes.min(room);
        let pages = bytes.next_multiple_of(BLOCK_SIZE as u64);
        if self.cage.accessible(region) != pages {
            self.cage.limit(region, bytes)?;
        }
        Ok(bytes)
    }

    /// Puts the data handed in into the call area, padded to a block with zeros.
    fn place_input(&mut self, data: &[u8]) -> Result<u64, CageError> {
        if data.is_empty() {
            return Ok(0);
        }
        let padded = data.len().next_multiple_of(BLOCK_SIZE) as u64;
        let area = self.cage.call_area(DATA_AT, padded)?;
        area[..data.len()].copy_from_slice(data);
        area[data.len()..].fill(0);
        Ok(self.cage.address(Region::Call) + DATA_AT)
    }

    fn run_prepared(
        &mut self,
        core: &Core,
        request: &Request,
        cancellation: Option<&Cancellation>,
        places: Places,
    ) -> End {
        let time = request.limits.time.min(FOREVER);
        let call = [self.cage.address(Region::Call), REQUEST_BYTES as u64];
        let before = (cost::processor(), cost::faults());
        let start = Instant::now();
        let term = Term {
            deadline: start + time,
            time: request.limits.time,
            stopping: &core.stopping,
            cancellation,
        };
        let mut execution = Execution::new(
            (&*core.storage, core.frames.as_ref()),
            request,
            &mut self.window,
            &mut self.appended,
            places,
            term,
        );
        let exit = match self.compiled.last() {
            Some(compiled) => {
                let mut deadline = Deadline::after(time).in_group(core.group);
                if let Some(own) = cancellation.map(Cancellation::group) {
                    deadline = deadline.in_group(own);
                }
                if let Some(processor) = request.limits.processor.filter(|limit| *limit < time) {
                    deadline = deadline.with_processor_time(processor);
                }
                compiled
                    .code
                    .run(&mut self.cage, call, &mut execution, deadline)
            }
            None => Exit::Aborted,
        };
        let mut usage = execution.usage;
        let elapsed = start.elapsed();
        usage.run_ns = nanos(elapsed);
        usage.processor_ns = nanos(cost::processor().saturating_sub(before.0));
        let (emitted, failure) = (execution.emitted, execution.failure.take());
        let status = match status(exit, failure, &term) {
            Err(Failure::TimedOut(_)) if elapsed < time => Err(Failure::ProcessorTime(
                request.limits.processor.unwrap_or(request.limits.time),
            )),
            status => status,
        };
        if status.is_ok() {
            usage.bytes_returned = emitted;
            usage.bytes_appended = self.appended.len() as u64;
        }
        End {
            status,
            usage,
            emitted,
            faults: cost::faults() - before.1 - self.window.take_faults(),
        }
    }
}

/// Makes a program ready for the cages that [`Instance::new`] makes.
pub(crate) fn prepare(engine: &dyn Engine, program: &Program) -> Result<Box<dyn Prepared>, String> {
    let layout = Layout::new(&CageConfig::default()).map_err(|error| error.to_string())?;
    let functions: Vec<Frame> = program.functions().iter().map(frame).collect();
    let linked = Linked {
        instructions: &|base| program.instructions(base),
        functions: &functions,
    };
    engine.prepare(&linked, &layout)
}

fn frame(function: &crate::program::Function) -> Frame {
    Frame {
        first_slot: u32::try_from(function.first).unwrap_or(u32::MAX),
        stack_bytes: u16::try_from(function.stack_bytes).unwrap_or(u16::MAX),
    }
}

fn status(exit: Exit, failure: Option<Failure>, term: &Term<'_>) -> Result<u64, Failure> {
    match exit {
        Exit::Returned(value) => returned(value),
        Exit::Fault(at) => Err(Failure::Fault(at)),
        Exit::StackOverflow => Err(Failure::StackOverflow),
        Exit::TimedOut => Err(term.failure()),
        Exit::Aborted => {
            Err(failure.unwrap_or_else(|| Failure::Internal("a helper panicked".into())))
        }
    }
}

/// What r0 means: negative numbers are failures, of 64 bits or, as an `int main` leaves them, of
/// 32.
fn returned(value: u64) -> Result<u64, Failure> {
    let signed = match u32::try_from(value) {
        Ok(half) => i64::from(half.cast_signed()),
        Err(_) => value.cast_signed(),
    };
    if signed < 0 {
        return Err(Failure::Returned(signed));
    }
    Ok(value)
}

pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_results_of_either_width_are_failures() {
        assert_eq!(returned(0), Ok(0));
        assert_eq!(returned(0x7fff_ffff), Ok(0x7fff_ffff));
        assert_eq!(returned(u64::from(u32::MAX)), Err(Failure::Returned(-1)));
        assert_eq!(returned(0xffff_fffe), Err(Failure::Returned(-2)));
        assert_eq!(returned(1 << 32), Ok(1 << 32));
        assert_eq!(returned(u64::MAX), Err(Failure::Returned(-1)));
    }
}
