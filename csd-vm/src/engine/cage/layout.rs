//! Where the regions of a cage lie.
//!
//! From the bottom: the null page, data, call area, stack, heap, output, window; unmapped guards
//! between them and after the last. The window takes what is left of the power of two. The rest of
//! the addresses that a program can form ([`REACH`]) is unmapped.

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// Bytes of addresses that belong to a cage: programs address them with 32 bits.
pub const REACH: u64 = 1 << 32;

/// Unmapped bytes before every region and after the last: more than any displacement of an
/// instruction reaches (32 KiB) added to the largest frame of a function's stack.
pub(super) const GUARD: u64 = 64 << 10;

/// Most bytes of regions and guards: the mask of atomic operations in compiled code is a
/// sign-extended 32-bit constant.
const SIZE_MAX: u64 = 2 << 30;

/// Bytes of the regions of a cage; each is rounded up to whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CageConfig {
    /// Room for .rodata, .data and .bss.
    pub data: u64,
    /// Room for what the host hands in, read-only for the program.
    pub call: u64,
    /// Stack of the program.
    pub stack: u64,
    /// Heap.
    pub heap: u64,
    /// Output.
    pub output: u64,
    /// Least size of the window for blocks of the snapshot.
    pub window: u64,
}

impl Default for CageConfig {
    fn default() -> CageConfig {
        CageConfig {
            data: 16 << 20,
            call: 16 << 20,
            stack: 256 << 10,
            heap: 64 << 20,
            output: 64 << 20,
            window: 512 << 20,
        }
    }
}

/// A region of a cage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Region {
    /// .rodata (read-only), .data and .bss.
    Data,
    /// What the host hands in; read-only.
    Call,
    /// The stack.
    Stack,
    /// The heap.
    Heap,
    /// The output.
    Output,
    /// Blocks of the snapshot; read-only.
    Window,
}

impl Region {
    /// All of them, from the bottom of the cage.
    pub const ALL: [Region; 6] = [
        Region::Data,
        Region::Call,
        Region::Stack,
        Region::Heap,
        Region::Output,
        Region::Window,
    ];
}

/// A range of a cage, in bytes from its base.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

impl Span {
    /// First byte after it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// Why there is no cage, or a region cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CageError {
    /// The regions do not fit into 2 GiB.
    #[error("the regions of a cage take more than 2 GiB")]
    TooLarge,
    /// A range is not within its region, or not whole pages.
    #[error("{len} bytes at {start} are no whole pages of the {region:?} region")]
    Range {
        /// The region.
        region: Region,
        /// First byte, from the start of the region.
        start: u64,
        /// Bytes.
        len: u64,
    },
    /// The operating system refused.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What it said.
        error: std::io::Error,
    },
}

impl CageError {
    pub(super) fn last(what: &'static str) -> CageError {
        CageError::System {
            what,
            error: std::io::Error::last_os_error(),
        }
    }
}

/// The regions of a cage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    size: u64,
    spans: [Span; 6],
}

impl Layout {
    /// The smallest cage that holds `config`.
    ///
    /// # Errors
    /// [`CageError::TooLarge`].
    pub fn new(config: &CageConfig) -> Result<Layout, CageError> {
        let wanted = [
            config.data,
            config.call,
            config.stack,
            config.heap,
            config.output,
            config.window,
        ];
        let mut spans = [Span::default(); 6];
        let mut at = 0u64;
        for (span, bytes) in spans.iter_mut().zip(wanted) {
            if bytes > SIZE_MAX {
                return Err(CageError::TooLarge);
            }
            *span = Span {
                start: at + GUARD,
                len: bytes.max(1).next_multiple_of(PAGE),
            };
            at = span.end();
        }
        let size = (at + GUARD).next_power_of_two();
        if size > SIZE_MAX {
            return Err(CageError::TooLarge);
        }
        let window = &mut spans[Region::Window as usize];
        window.len = size - GUARD - window.start;
        Ok(Layout { size, spans })
    }

    /// Bytes from the base to the end of the last guard, a power of two.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where `region` lies.
    #[must_use]
    pub fn span(&self, region: Region) -> Span {
        self.spans[region as usize]
    }

    /// The region that `offset` is in.
    #[must_use]
    pub fn region_of(&self, offset: u64) -> Option<Region> {
        Region::ALL.into_iter().find(|region| {
            let span = self.span(*region);
            offset >= span.start && offset < span.end()
        })
    }

    /// Whether `offset` is in the guard below the stack, where endless recursion ends.
    #[must_use]
    pub(in crate::engine) fn below_stack(&self, offset: u64) -> bool {
        let stack = self.span(Region::Stack).start;
        (stack - GUARD..stack).contains(&offset)
    }
}
