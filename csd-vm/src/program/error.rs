//! Why an object does not become a program. Every error names what is wrong and where.
//!
//! Names taken from an object are cut and escaped before they get into a message, so that a
//! message fits a log line whatever the object holds.

use std::fmt;

/// Characters of a name from the object that a message shows.
const NAME_SHOWN: usize = 96;

/// Why an object was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The object is no BPF object file at all (ENOEXEC).
    #[error("not a BPF object: {reason}")]
    Format {
        /// What it lacks.
        reason: String,
    },
    /// Something is larger than the limits allow.
    #[error("too large: {found} {what}, at most {limit} are allowed")]
    TooLarge {
        /// What was counted, in the plural and with its unit.
        what: &'static str,
        /// How many there are, or the first count past the limit.
        found: u64,
        /// How many may be there.
        limit: u64,
    },
    /// A BPF object file whose tables contradict each other.
    #[error("damaged object: {reason}")]
    Malformed {
        /// What is damaged.
        reason: String,
    },
    /// The function to start with cannot be determined.
    #[error("no entry: {reason}")]
    Entry {
        /// Why.
        reason: String,
    },
    /// An instruction refers to something that cannot be linked.
    #[error("{place}: {problem}")]
    Link {
        /// Which instruction.
        place: Place,
        /// What is wrong with what it refers to.
        problem: LinkProblem,
    },
    /// A pointer in a data section cannot be linked.
    #[error("section {section}, offset {offset:#x}: {problem}")]
    Data {
        /// Name of the section.
        section: String,
        /// Byte in the section.
        offset: u64,
        /// What is wrong with what it refers to.
        problem: LinkProblem,
    },
    /// An instruction that no program may hold.
    #[error("{place}: {violation}")]
    Refused {
        /// Which instruction.
        place: Place,
        /// Which rule it breaks.
        violation: Violation,
    },
}

impl LoadError {
    /// Whether the object is no BPF object at all, as opposed to one that is not accepted.
    #[must_use]
    pub fn is_format(&self) -> bool {
        matches!(self, LoadError::Format { .. })
    }

    pub(super) fn malformed(reason: impl fmt::Display) -> LoadError {
        LoadError::Malformed {
            reason: reason.to_string(),
        }
    }
}

/// An instruction of the object, as a disassembler counts them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Name of its section.
    pub section: String,
    /// Name of its function.
    pub function: String,
    /// Its 8-byte slot, from 0 at the start of the section.
    pub instruction: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "section {}, function {}, instruction {}",
            self.section, self.function, self.instruction
        )
    }
}

/// Why a reference cannot be linked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkProblem {
    /// The name is no function of the object and no helper.
    #[error("{0} is neither defined here nor a helper")]
    UnknownFunction(String),
    /// The name is no variable of the object.
    #[error("variable {0} is not defined here")]
    UnknownVariable(String),
    /// The address of a function is taken; there are no indirect calls.
    #[error("takes the address of function {0}: indirect calls are not supported")]
    FunctionAddress(String),
    /// A call of something that is no function.
    #[error("calls {0}, which is not the start of a function")]
    NotAFunction(String),
    /// A variable without a place in memory.
    #[error("{0} has no place in the program's memory")]
    NoMemory(String),
    /// A relocation of a type that has no meaning here.
    #[error("relocation type {0} is not supported here")]
    RelocationType(u32),
    /// A relocation of something that holds no reference.
    #[error("a relocation of what is neither a call nor a 64-bit constant")]
    Misplaced,
    /// Two relocations of one reference.
    #[error("more than one relocation")]
    Repeated,
    /// It lies outside its section.
    #[error("lies outside its section")]
    Outside,
}

/// A rule that an instruction breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The opcode is none of those the engine executes.
    #[error("unknown opcode {0:#04x}")]
    Opcode(u8),
    /// A call through a register.
    #[error("indirect calls are not supported")]
    IndirectCall,
    /// A register past r10.
    #[error("there is no register r{0}")]
    Register(u8),
    /// A field that has to be zero for this instruction.
    #[error("the {0} field must be zero")]
    Reserved(&'static str),
    /// A write to the frame pointer.
    #[error("r10 cannot be written")]
    FramePointer,
    /// The frame pointer as the left side of a comparison, which the engine does not know.
    #[error("r10 cannot be the left side of a comparison")]
    FramePointerCompared,
    /// A division or modulo by the constant zero.
    #[error("division by the constant zero")]
    DivisionByZero,
    /// A shift by a constant that is negative or not below the width.
    #[error("shift by {0}")]
    Shift(i32),
    /// A byte swap of a width that is not 16, 32 or 64.
    #[error("byte swap of {0} bits")]
    Swap(i32),
    /// A sign extension of a width that does not exist.
    #[error("sign extension from {0} bits")]
    SignExtension(i16),
    /// An atomic operation that does not exist.
    #[error("unknown atomic operation {0:#x}")]
    Atomic(i32),
    /// A jump out of its function.
    #[error("jumps out of its function, to {0}")]
    JumpOutside(i64),
    /// A jump to the second slot of a 64-bit constant.
    #[error("jumps into the middle of a 64-bit constant, at {0}")]
    JumpIntoConstant(i64),
    /// A jump to itself, which can only be an endless loop.
    #[error("jumps to itself")]
    JumpToItself,
    /// A call of something that is not the first instruction of a function.
    #[error("calls slot {0} of the program, which starts no function")]
    CallTarget(i64),
    /// A call of an unknown helper.
    #[error("there is no helper {0}")]
    Helper(i32),
    /// A 64-bit constant without its second slot.
    #[error("a 64-bit constant lacks its second half")]
    IncompleteConstant,
    /// Execution would run past the end of a function.
    #[error("the function does not end here")]
    FallsThrough,
    /// The stack frame is too large.
    #[error("uses {used} bytes of stack, at most {limit} are allowed")]
    Stack {
        /// How far below the frame pointer it reaches.
        used: u64,
        /// The limit.
        limit: u64,
    },
    /// An access at or above the frame pointer.
    #[error("accesses the caller's stack frame")]
    AboveFrame,
}

/// `name` cut and escaped for a message.
pub(super) fn shown(name: &str) -> String {
    if name.is_empty() {
        return "(no name)".to_owned();
    }
    let mut out: String = name
        .chars()
        .take(NAME_SHOWN)
        .flat_map(char::escape_default)
        .collect();
    if name.chars().nth(NAME_SHOWN).is_some() {
        out.push_str("..");
    }
    out
}
