//! Runs C twins: a safe cover of `native/runtime.h`.

use core::ffi::{c_int, c_void};
use std::ptr::NonNull;

use crate::{Input, Operation};

/// A C twin as the linker has it.
pub(crate) type RawEntry = unsafe extern "C" fn(*const c_void) -> i64;

/// A C twin. There are those of this crate only.
#[derive(Clone, Copy)]
pub struct Entry {
    function: RawEntry,
    returns_int: bool,
}

impl Entry {
    /// An entry by `WARREN_KERNEL`.
    pub(crate) const fn returning_i64(function: RawEntry) -> Self {
        Self {
            function,
            returns_int: false,
        }
    }

    /// A `main(void)`, which takes no notice of what it is given and returns an int.
    pub(crate) const fn returning_int(function: RawEntry) -> Self {
        Self {
            function,
            returns_int: true,
        }
    }
}

/// `struct warren_native_input`.
#[repr(C)]
struct RawInput {
    operation: u32,
    argument_count: u32,
    offset: u64,
    size: u64,
    snapshot: *const u8,
    snapshot_size: u64,
    data: *const u8,
    data_size: u64,
    arguments: *const u64,
}

/// `struct warren_native`.
#[repr(C)]
struct RawNative {
    private: [u8; 0],
}

unsafe extern "C" {
    fn warren_native_new(heap_size: u64, output_limit: u64) -> *mut RawNative;
    fn warren_native_free(native: *mut RawNative);
    fn warren_native_run(
        native: *mut RawNative,
        entry: RawEntry,
        returns_int: c_int,
        input: *const RawInput,
    ) -> i64;
    fn warren_native_output(native: *const RawNative, size: *mut u64) -> *const u8;
    fn warren_native_appended(native: *const RawNative, size: *mut u64) -> *const u8;
}

/// The system gave no memory for a [`Runtime`].
#[derive(Debug)]
pub struct OutOfMemory;

impl std::fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no memory for the heap and the output of kernels")
    }
}

impl std::error::Error for OutOfMemory {}

/// Memory for one run of a C twin after the other.
///
/// The twins keep state in static variables, which they set up anew in each run: runs of one kernel
/// must not overlap, so [`Runtime::run`] lets one run at a time in the process go on.
pub struct Runtime {
    native: NonNull<RawNative>,
}

/// Held while a twin runs: see [`Runtime`].
static RUNNING: std::sync::Mutex<()> = std::sync::Mutex::new(());

impl Runtime {
    /// A runtime with this much heap and output, in bytes. Memory is used when it is touched.
    ///
    /// # Errors
    /// When the system has no address space left for it.
    pub fn new(heap: u64, output_limit: u64) -> Result<Self, OutOfMemory> {
        // SAFETY: takes any sizes; answers null where it fails.
        let native = unsafe { warren_native_new(heap, output_limit) };
        let native = NonNull::new(native).ok_or(OutOfMemory)?;
        Ok(Self { native })
    }

    /// Runs a twin. Its output, borrowed until the next run.
    ///
    /// # Errors
    /// The negative number that the kernel returned.
    pub fn run(&mut self, entry: Entry, input: &Input<'_>) -> Result<&[u8], i64> {
        let is_read = input.operation == Operation::ReadStream;
        let raw = RawInput {
            operation: input.operation as u32,
            argument_count: u32::try_from(input.arguments.len()).unwrap_or(u32::MAX),
            offset: input.offset,
            size: input.size,
            snapshot: input.snapshot.as_ptr(),
            snapshot_size: input.snapshot.len() as u64,
            data: if is_read {
                std::ptr::null()
            } else {
                input.data.as_ptr()
            },
            data_size: if is_read { 0 } else { input.data.len() as u64 },
            arguments: input.arguments.as_ptr(),
        };
        let guard = RUNNING
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        // SAFETY: `native` is one of ours and not in use, as self is borrowed mutably; the input's
        // pointers hold for the call with the lengths beside them; the entry is a kernel of this
        // crate, alone by the lock, and kernels stay within what the helpers give them.
        let value = unsafe {
            warren_native_run(
                self.native.as_ptr(),
                entry.function,
                c_int::from(entry.returns_int),
                &raw const raw,
            )
        };
        drop(guard);
        if value < 0 {
            Err(value)
        } else {
            Ok(self.output())
        }
    }

    /// The output of the last run.
    fn output(&self) -> &[u8] {
        let mut size = 0;
        // SAFETY: the runtime answers with memory it holds, and how much of it has been filled;
        // neither changes before the next run, which borrows self mutably.
        unsafe {
            let at = warren_native_output(self.native.as_ptr(), &raw mut size);
            std::slice::from_raw_parts(at, size as usize)
        }
    }

    /// What the last run appended.
    #[must_use]
    pub fn appended(&self) -> &[u8] {
        let mut size = 0;
        // SAFETY: as for the output.
        unsafe {
            let at = warren_native_appended(self.native.as_ptr(), &raw mut size);
            std::slice::from_raw_parts(at, size as usize)
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // SAFETY: made by warren_native_new, freed once, and nothing borrows from it any more.
        unsafe { warren_native_free(self.native.as_ptr()) }
    }
}

// SAFETY: the runtime is plain memory that any one thread at a time may use; which run goes on is
// kept per thread and only while it goes on.
unsafe impl Send for Runtime {}
