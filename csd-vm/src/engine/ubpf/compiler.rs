//! Programs compiled to machine code whose every load and store is masked into one cage.
//!
//! The code lies in pages of its own that are writable while it is made and executable afterwards,
//! never both.

use std::ptr::null_mut;

use super::ffi;
use super::machine::{Machine, outcome};
use crate::engine::cage::Cage;
use crate::engine::{Code, Deadline, Engine, Exit, Helpers, Linked, guard};

/// Upper bounds of the code of a slot, and of what every program has.
const BYTES_PER_SLOT: usize = 192;
const BYTES_FIXED: usize = 4096;

/// The engine of production.
#[derive(Clone, Copy, Debug, Default)]
pub struct Compiler;

impl Engine for Compiler {
    fn compile(&self, program: &Linked<'_>, cage: &Cage) -> Result<Box<dyn Code>, String> {
        let machine = Machine::load(program)?;
        let mask = cage.layout().size() - 1;
        let mask = i32::try_from(mask).map_err(|_| "the cage is too large".to_owned())?;
        // SAFETY: the machine is valid and in nobody else's use.
        unsafe {
            ffi::ubpf_set_jit_pointer_mask_and_offset(machine.vm(), mask, cage.base() as usize);
        }
        let code = CodePages::translate(&machine, program.instructions.len())?;
        let base = cage.base();
        Ok(Box::new(Compiled { code, base }))
    }
}

struct Compiled {
    code: CodePages,
    base: u64,
}

impl Code for Compiled {
    fn run(
        &self,
        cage: &mut Cage,
        arguments: [u64; 2],
        helpers: &mut dyn Helpers,
        deadline: Deadline,
    ) -> Exit {
        assert_eq!(self.base, cage.base(), "code of another cage");
        let program = guard::Program::Compiled {
            start: self.code.start as u64,
            len: self.code.len as u64,
        };
        // SAFETY: uBPF compiled it for this cage: it masks its addresses into there, uses the
        // stack by balanced pushes and calls, and calls the dispatcher only. The pages are
        // executable and stay while `self` is borrowed.
        unsafe { guard::run(program, cage, arguments, helpers, deadline) }
    }
}

/// Pages of machine code.
struct CodePages {
    start: usize,
    /// Bytes of code.
    len: usize,
    /// Bytes mapped.
    mapped: usize,
}

impl CodePages {
    fn translate(machine: &Machine, slots: usize) -> Result<CodePages, String> {
        let room = (slots * BYTES_PER_SLOT + BYTES_FIXED).next_multiple_of(4096);
        let mut pages = CodePages::writable(room)?;
        let mut len = room;
        let mut error = null_mut();
        // SAFETY: the machine has a program loaded, `room` bytes from `start` on are writable, and
        // uBPF writes no more than that.
        let done = unsafe {
            let buffer = pages.start as *mut u8;
            let mode = ffi::EXTENDED_MODE;
            ffi::ubpf_translate_ex(machine.vm(), buffer, &mut len, &mut error, mode)
        };
        outcome(done, error)?;
        pages.finish(len)?;
        Ok(pages)
    }

    fn writable(bytes: usize) -> Result<CodePages, String> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: no address is asked for, so nothing that exists is replaced.
        let start = unsafe { libc::mmap(null_mut(), bytes, writable, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(system("mapping pages for code"));
        }
        Ok(CodePages {
            start: start as usize,
            len: 0,
            mapped: bytes,
        })
    }

    /// Gives back what is not needed and makes the rest executable.
    fn finish(&mut self, len: usize) -> Result<(), String> {
        let used = len.next_multiple_of(4096);
        let executable = libc::PROT_READ | libc::PROT_EXEC;
        // SAFETY: both ranges are in the mapping of `self`, and nothing is in use behind `used`.
        unsafe {
            if used < self.mapped {
                libc::munmap((self.start + used) as *mut _, self.mapped - used);
                self.mapped = used;
            }
            if libc::mprotect(self.start as *mut _, used, executable) != 0 {
                return Err(system("making code executable"));
            }
        }
        self.len = len;
        Ok(())
    }
}

impl Drop for CodePages {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody can run it any more.
        unsafe { libc::munmap(self.start as *mut _, self.mapped) };
    }
}

fn system(what: &str) -> String {
    format!("{what}: {}", std::io::Error::last_os_error())
}
