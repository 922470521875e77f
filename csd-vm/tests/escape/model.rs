//! What of a cage can be accessed: by its layout, byte by byte.

use csd_vm::engine::cage::{Access, Cage, Layout, PAGE, REACH, Region};
use csd_vm::request::Failure;

use crate::FILE;

/// What a program of [`crate::object`] finds that has mapped the file.
pub(crate) struct Model {
    layout: Layout,
    /// Bytes that can be accessed, and from which on they can be written, by region.
    regions: [(Region, u64, u64); 6],
}

impl Model {
    /// With so many bytes of heap and output.
    pub(crate) fn new(cage: &Cage, heap: u64, output: u64) -> Model {
        let layout = *cage.layout();
        let call = layout.span(Region::Call).len;
        let stack = layout.span(Region::Stack).len;
        let mapped = FILE.next_multiple_of(PAGE);
        Model {
            layout,
            regions: [
                (Region::Data, 2 * PAGE, PAGE),
                (Region::Call, call, call),
                (Region::Stack, stack, 0),
                (Region::Heap, heap, 0),
                (Region::Output, output, 0),
                (Region::Window, mapped, mapped),
            ],
        }
    }

    /// The mask of addresses.
    pub(crate) fn mask(&self) -> u64 {
        REACH - 1
    }

    /// The address that an atomic operation at `address` takes: it is masked further.
    pub(crate) fn of_atomic(&self, address: u64) -> u64 {
        address & (self.layout.size() - 1)
    }

    /// Offsets at which something begins or ends.
    pub(crate) fn edges(&self) -> Vec<u64> {
        let mut edges = vec![0, self.layout.size(), REACH];
        for (region, accessible, writable_from) in self.regions {
            let span = self.layout.span(region);
            let ends = [0, writable_from, accessible, span.len];
            edges.extend(ends.map(|at| span.start + at));
        }
        edges.sort_unstable();
        edges.dedup();
        edges
    }

    /// Whether the byte at `offset` can be accessed. None can behind the cage.
    fn can(&self, offset: u64, access: Access) -> bool {
        self.regions
            .iter()
            .any(|(region, accessible, writable_from)| {
                let start = self.layout.span(*region).start;
                let first = if access == Access::Write {
                    *writable_from
                } else {
                    0
                };
                (start + first..start + accessible).contains(&offset)
            })
    }

    /// The first of `len` bytes at `address` that cannot be accessed.
    pub(crate) fn missing(&self, address: u64, len: u64, access: Access) -> Option<u64> {
        let start = address & self.mask();
        (start..start + len).find(|offset| !self.can(*offset, access))
    }

    /// Whether a helper may access `len` bytes at `address`.
    pub(crate) fn allows(&self, address: u64, len: u64, access: Access) -> bool {
        const FAR: u64 = 1 << 20;
        let start = address & self.mask();
        match len {
            0 => true,
            // Ends are near enough to look at each byte, or nowhere.
            len if len > FAR => start.checked_add(len).is_some_and(|end| {
                self.regions
                    .iter()
                    .any(|(region, accessible, writable_from)| {
                        let at = self.layout.span(*region).start;
                        let first = if access == Access::Write {
                            *writable_from
                        } else {
                            0
                        };
                        start >= at + first && end <= at + accessible
                    })
            }),
            len => self.missing(address, len, access).is_none(),
        }
    }

    /// How an access may end that is not possible: by the first byte that is missing, or by the first
    /// one on its second page, if that is missing too: the processor chooses. Nothing if it is
    /// possible.
    pub(crate) fn faults(
        &self,
        address: u64,
        len: u64,
        access: Access,
    ) -> Vec<Result<u64, Failure>> {
        let start = address & self.mask();
        let second = start.next_multiple_of(PAGE);
        let crosses = second > start && second < start + len;
        let second = (crosses && !self.can(second, access)).then_some(second);
        let missing = self.missing(address, len, access).into_iter().chain(second);
        missing.map(|offset| Err(self.fault(offset))).collect()
    }

    /// How a fault at `offset` is told: one in the guard below the stack is a stack that overflowed.
    fn fault(&self, offset: u64) -> Failure {
        const GUARD: u64 = 64 << 10;
        let stack = self.layout.span(Region::Stack).start;
        match (stack - GUARD..stack).contains(&offset) {
            true => Failure::StackOverflow,
            false => Failure::Fault(offset),
        }
    }
}
