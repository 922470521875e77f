//! Optional verification: PREVAIL (Gershuni et al., PLDI 2019) proves that a program stays in the
//! memory it was given and calls helpers with valid arguments.
//!
//! A program that is accepted has been shown to be free of such mistakes under the model in
//! `model`; the cage holds either way. A program that is refused need not be wrong. Two things
//! help: give `warren_map` and `warren_reserve` constant sizes, and mask an index or compare it
//! right before the access, as bounds that only a loop's end condition implies get lost. Pointers
//! in global variables, pointers read from the request description and recursion cannot be
//! verified. What the model takes for granted: a helper maps as many bytes as it was asked for, and
//! the heap has its default size.
//!
//! Termination is not checked; programs have a time limit anyway. The analysis itself runs on a
//! thread of its own, bounded in the size of its input and in time. It cannot be interrupted
//! everywhere, so only a few are let run at once.

mod model;

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use prevail::crab::ebpf_domain::DomainContext;
use prevail::crab::var_registry::VariableRegistry;
use prevail::elf_loader::UnmarshalError;
use prevail::fwd_analyzer::analyze;
use prevail::ir::program::Program as Graph;
use prevail::ir::unmarshal::{UnmarshalError as DecodeError, unmarshal};
use prevail::linux::linux_platform::conformance_groups::DEFAULT_GROUPS;
use prevail::linux::spec_prototypes::HelperPrototype;
use prevail::platform::EbpfPlatform;
use prevail::spec::config::EbpfVerifierOptions;
use prevail::spec::ebpf_base::EbpfCtxDescriptor;
use prevail::spec::type_descriptors::{
    EbpfMapDescriptor, EbpfMapType, EbpfMapValueType, EbpfProgramType, ProgramInfo,
};
use prevail::spec::vm_isa::EbpfInst;

use crate::program::insn::{CALL, Insn, LDDW};
use crate::program::{Place, Program};
pub use model::REQUEST_BYTES;
use model::{Modelled, START_SLOTS, helper_prototype, model};

/// Analyses at the same time, those included that ran out of time and have not noticed.
const RUNNING_MAX: usize = 4;
/// Bytes of stack of an analysis, which is recursive; touched only as needed.
const STACK_BYTES: usize = 256 << 20;
/// No verification takes longer, whatever its limits say.
const TIME_MAX: Duration = Duration::from_secs(3600);
/// Reasons reported.
const REASONS_MAX: usize = 5;
/// Functions that may be active at once, helpers that are modelled by functions included.
const FRAMES_MAX: i32 = 10;

/// Bounds of a verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyLimits {
    /// Wall time. Default 2 s.
    pub time: Duration,
    /// Slots once every call is replaced by what it calls. Default 20000.
    pub slots: u64,
}

impl Default for VerifyLimits {
    fn default() -> VerifyLimits {
        VerifyLimits {
            time: Duration::from_secs(2),
            slots: 20_000,
        }
    }
}

/// The outcome of a verification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Why the program is refused: the first reasons in the order of instructions. None if it is
    /// accepted.
    pub reasons: Vec<Reason>,
    /// How long it took.
    pub time: Duration,
}

impl Report {
    /// Whether the program was shown to be safe.
    #[must_use]
    pub fn accepted(&self) -> bool {
        self.reasons.is_empty()
    }
}

/// Something that could not be shown to be safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Where, if it is about one instruction.
    pub place: Option<Place>,
    /// What.
    pub text: String,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.place {
            Some(place) => write!(f, "{place}: {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

/// Why a verification has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// It took too long.
    #[error("the verification took longer than {0:?}")]
    TimedOut(Duration),
    /// The program is too large once every call is replaced by what it calls.
    #[error("too large to verify: more than {0} instructions when calls are expanded")]
    TooLarge(u64),
    /// Others were running all the time.
    #[error("other verifications took all the time")]
    Busy,
    /// The verifier failed.
    #[error("the verifier failed: {0}")]
    Failed(String),
}

/// Verifies `program`.
///
/// # Errors
/// When there is no outcome; a program that is refused is an outcome.
pub fn verify(program: &Program, limits: &VerifyLimits) -> Result<Report, VerifyError> {
    let started = Instant::now();
    let modelled = model(program);
    match expanded_slots(&modelled) {
        None => return Ok(nested_too_deeply(started)),
        Some(slots) if slots > limits.slots => return Err(VerifyError::TooLarge(limits.slots)),
        Some(_) => {}
    }
    let findings = run(modelled, limits.time)?;
    let reasons = findings
        .into_iter()
        .map(|finding| reason(program, finding))
        .collect();
    Ok(Report {
        reasons,
        time: started.elapsed(),
    })
}

fn nested_too_deeply(started: Instant) -> Report {
    let text = format!("calls are nested more than {FRAMES_MAX} deep, or without end");
    Report {
        reasons: vec![Reason { place: None, text }],
        time: started.elapsed(),
    }
}

/// Slots when every call is replaced by what it calls, as the analysis does; `None` if calls are nested
/// deeper than it goes.
fn expanded_slots(modelled: &Modelled) -> Option<u64> {
    fn expand(
        modelled: &Modelled,
        numbers: &BTreeMap<usize, usize>,
        function: usize,
        depth: usize,
        known: &mut [Option<u64>],
    ) -> Option<u64> {
        if let Some(known) = known[function] {
            return Some(known);
        }
        if depth > FRAMES_MAX as usize {
            return None;
        }
        let (first, slots) = modelled.functions[function];
        let mut total = slots as u64;
        let mut at = first;
        while at < first + slots {
            let insn = Insn::decode(modelled.slots[at]);
            if insn.opcode == CALL && insn.src == 1 {
                let target = at as i64 + 1 + i64::from(insn.imm);
                let callee = numbers.get(&(target as usize)).copied()?;
                let called = expand(modelled, numbers, callee, depth + 1, known)?;
                total = total.saturating_add(called);
            }
            at += if insn.opcode == LDDW { 2 } else { 1 };
        }
        known[function] = Some(total);
        Some(total)
    }
    let starts = modelled.functions.iter().enumerate();
    let numbers = starts
        .map(|(number, (first, _))| (*first, number))
        .collect();
    let mut known = vec![None; modelled.functions.len()];
    expand(modelled, &numbers, 0, 0, &mut known)
}

/// Something the analysis complains about.
struct Finding {
    /// Slot in the model.
    slot: Option<usize>,
    /// Slots of the calls that lead there, outermost first.
    calls: Vec<usize>,
    text: String,
}

/// The payload with which an analysis ends itself.
struct Expired;

/// How many analyses run.
static RUNNING: Mutex<usize> = Mutex::new(0);
static ONE_ENDED: Condvar = Condvar::new();

/// Counts an analysis for as long as it runs.
struct Running;

impl Running {
    /// Waits for others to end, until `deadline` at most.
    fn start(deadline: Instant) -> Option<Running> {
        let mut running = RUNNING.lock();
        while *running >= RUNNING_MAX {
            if ONE_ENDED.wait_until(&mut running, deadline).timed_out() {
                return None;
            }
        }
        *running += 1;
        Some(Running)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        *RUNNING.lock() -= 1;
        ONE_ENDED.notify_one();
    }
}

/// Analyses on a thread of its own, which is left alone when it takes too long.
fn run(modelled: Modelled, time: Duration) -> Result<Vec<Finding>, VerifyError> {
    let deadline = Instant::now() + time.min(TIME_MAX);
    let running = Running::start(deadline).ok_or(VerifyError::Busy)?;
    let (sender, receiver) = channel();
    let worker = thread::Builder::new()
        .name("csd-verify".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let _running = running;
            let findings = analysis(&modelled, deadline);
            // Nobody listens any more after the deadline.
            let _ = sender.send(findings);
        })
        .map_err(|error| VerifyError::Failed(error.to_string()))?;
    match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(findings) => Ok(findings),
        Err(RecvTimeoutError::Timeout) => Err(VerifyError::TimedOut(time)),
        Err(RecvTimeoutError::Disconnected) => Err(match worker.join() {
            Err(payload) if payload.is::<Expired>() => VerifyError::TimedOut(time),
            Err(payload) => VerifyError::Failed(panic_text(&*payload)),
            Ok(()) => VerifyError::Failed("it ended without an outcome".to_owned()),
        }),
    }
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied());
    text.unwrap_or("it panicked").to_owned()
}

/// What the analysis complains about; nothing if it accepts the program.
fn analysis(modelled: &Modelled, deadline: Instant) -> Vec<Finding> {
    let platform = Platform {
        regions: modelled.regions.iter().zip(0..).map(region).collect(),
        deadline,
    };
    let mut options = EbpfVerifierOptions::default();
    options.runtime.max_call_stack_frames = FRAMES_MAX;
    let mut info = ProgramInfo {
        map_descriptors: platform.regions.clone(),
        program_type: program_type(),
        supported_conformance_groups: DEFAULT_GROUPS,
        ..ProgramInfo::default()
    };
    let whole = |text: String| {
        vec![Finding {
            slot: None,
            calls: Vec::new(),
            text,
        }]
    };
    let insns: Vec<EbpfInst> = modelled.slots.iter().map(|slot| convert(*slot)).collect();
    let sequence = match unmarshal(&insns, &mut Vec::new(), &info, &platform, &options) {
        Ok(sequence) => sequence,
        Err(DecodeError::InvalidInstruction { pc, message }) => {
            return vec![Finding {
                slot: Some(pc),
                calls: Vec::new(),
                text: message,
            }];
        }
        Err(error) => return whole(error.to_string()),
    };
    let graph = match Graph::from_sequence(&sequence, &mut info, &platform, &options) {
        Ok(graph) => graph,
        Err(error) => return whole(error.to_string()),
    };
    let context = DomainContext {
        program_info: &info,
        program: &graph,
        runtime: &options.runtime,
        options: &options,
        platform: &platform,
    };
    let result = analyze(&graph, &context, &mut VariableRegistry::new());
    if !result.failed {
        return Vec::new();
    }
    let reachable = result.invariants.iter().filter(|(_, i)| !i.pre.is_bottom());
    let mut findings: Vec<Finding> = reachable
        .filter_map(|(label, invariant)| {
            let error = invariant.error.as_ref()?;
            let calls = label.stack_frame_prefix.split('/');
            Some(Finding {
                slot: usize::try_from(label.from).ok(),
                calls: calls.filter_map(|call| call.parse().ok()).collect(),
                text: error.message.clone(),
            })
        })
        .take(REASONS_MAX)
        .collect();
    if findings.is_empty() {
        findings = whole("not shown to be safe".to_owned());
    }
    findings
}

fn convert(slot: u64) -> EbpfInst {
    let insn = Insn::decode(slot);
    EbpfInst {
        opcode: insn.opcode,
        dst_src: insn.dst | insn.src << 4,
        offset: insn.offset,
        imm: insn.imm,
    }
}

/// Places a finding in the program; one about a helper's model is about the call.
fn reason(program: &Program, finding: Finding) -> Reason {
    let own = |slot: usize| {
        let slot = slot.checked_sub(START_SLOTS)?;
        program.place(slot)
    };
    let direct = finding.slot.and_then(own);
    let calls = finding.calls.iter().rev();
    let place = direct.or_else(|| calls.copied().find_map(own));
    Reason {
        place,
        text: finding.text,
    }
}

/// What the verifier asks about the world of a program.
struct Platform {
    regions: Vec<EbpfMapDescriptor>,
    deadline: Instant,
}

/// A region of memory: to the verifier, a map with a single value.
fn region((bytes, number): (&u32, i32)) -> EbpfMapDescriptor {
    EbpfMapDescriptor {
        original_fd: number,
        key_size: 4,
        value_size: *bytes,
        max_entries: 1,
        name: format!("region {number}"),
        ..EbpfMapDescriptor::default()
    }
}

/// A program gets the address of the request description. What it says are numbers.
static REQUEST: EbpfCtxDescriptor = EbpfCtxDescriptor {
    size: REQUEST_BYTES,
    data: -1,
    end: -1,
    meta: -1,
};

fn program_type() -> EbpfProgramType {
    EbpfProgramType {
        name: "warren".to_owned(),
        ctx_descriptor: Some(&REQUEST),
        ..EbpfProgramType::default()
    }
}

impl Platform {
    /// Ends the analysis when its time is up: these calls are where it can be reached.
    fn check_time(&self) {
        if Instant::now() > self.deadline {
            resume_unwind(Box::new(Expired));
        }
    }
}

impl EbpfPlatform for Platform {
    fn get_program_type(&self, _section: &str, _path: &str) -> EbpfProgramType {
        program_type()
    }

    fn get_helper_prototype(&self, n: i32) -> &HelperPrototype {
        // The trait leaves no other way; is_helper_usable() is asked first.
        helper_prototype(n).expect("a known helper")
    }

    fn try_get_helper_prototype(&self, n: i32) -> Option<&HelperPrototype> {
        helper_prototype(n)
    }

    fn is_helper_usable(&self, n: i32) -> bool {
        self.check_time();
        helper_prototype(n).is_some()
    }

    fn map_record_size(&self) -> usize {
        0
    }

    fn parse_maps_section(
        &mut self,
        _descriptors: &mut Vec<EbpfMapDescriptor>,
        _data: &[u8],
        _record_size: usize,
        _count: usize,
        _options: &EbpfVerifierOptions,
    ) {
    }

    fn resolve_inner_map_references(
        &self,
        _descriptors: &mut Vec<EbpfMapDescriptor>,
    ) -> Result<(), UnmarshalError> {
        Ok(())
    }

    fn get_map_descriptor(&self, map_fd: i32) -> Option<&EbpfMapDescriptor> {
        self.check_time();
        usize::try_from(map_fd)
            .ok()
            .and_then(|number| self.regions.get(number))
    }

    fn get_map_type(&self, platform_specific_type: u32) -> EbpfMapType {
        EbpfMapType {
            platform_specific_type,
            name: "memory".to_owned(),
            is_array: true,
            value_type: EbpfMapValueType::Any,
        }
    }

    fn supported_conformance_groups(&self) -> u32 {
        DEFAULT_GROUPS
    }
}

#[cfg(test)]
mod tests;
