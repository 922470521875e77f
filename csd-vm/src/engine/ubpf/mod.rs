//! uBPF behind the traits of the engine: the compiler with its pointer cage.
//!
//! The C code comes with the crate `async-ebpf`, which carries uBPF with a patch that masks the
//! addresses of all loads and stores of compiled code; `segment` makes that cheaper. uBPF's own ELF
//! loader and its interpreter are not used, and its validation is a second line behind this crate's.
//!
//! r0, r3 to r9 are 0 at the start, r1 to r5 are 0 after a helper (`guard` clears them): nothing of
//! the host is left in them, and programs do the same in every run.
//!
//! Constant blinding is off: it guards against jumps into the middle of constants, and nothing a
//! program controls is ever the target of a jump: calls and jumps are fixed when it is compiled,
//! and return addresses are on a stack outside of its cage.

mod compiler;
mod ffi;
mod machine;
mod segment;

pub use compiler::Compiler;
#[cfg(feature = "measure-uncaged")]
pub use compiler::UncagedCompiler;
