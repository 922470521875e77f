//! uBPF behind the traits of the engine: the compiler with its pointer cage, and the interpreter.
//!
//! The C code comes with the crate `async-ebpf`, which carries uBPF with a patch that masks the
//! addresses of all loads and stores of compiled code; `segment` makes that cheaper. uBPF's own ELF
//! loader is not used, and its validation is a second line behind this crate's.
//!
//! What the two engines agree on, so that one can be the oracle of the other: r0, r3 to r9 are 0
//! at the start, r1 to r5 are 0 after a helper. Where they differ: the interpreter takes absolute
//! addresses only and ends the program at one outside of its regions, where compiled code masks
//! it; it allows 8 nested calls.
//!
//! Constant blinding is off: it guards against jumps into the middle of constants, and nothing a
//! program controls is ever the target of a jump: calls and jumps are fixed when it is compiled,
//! and return addresses are on a stack outside of its cage.

mod compiler;
mod ffi;
mod interpreter;
mod machine;
mod segment;

pub use compiler::Compiler;
#[cfg(feature = "measure-uncaged")]
pub use compiler::UncagedCompiler;
pub use interpreter::Interpreter;
