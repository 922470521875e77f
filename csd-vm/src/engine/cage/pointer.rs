//! What is handed to and got from a cage: checked ranges, and the static data of a program.

use super::PAGE;

/// What a pointer is to be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Writing.
    Write,
}

/// A range of a cage that a program may access in the way it was checked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CagePtr {
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl CagePtr {
    /// First byte, from the base of the cage.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The `len` bytes from byte `from` on, if there are so many.
    #[must_use]
    pub fn part(&self, from: u64, len: u64) -> Option<CagePtr> {
        (from.checked_add(len)? <= self.len).then_some(CagePtr {
            offset: self.offset + from,
            len,
        })
    }
}

/// Memory of the cage that is not there: an unmapped page of the window, or a mapped one whose
/// file was cut off. The program whose request led there ends with [`crate::engine::Exit::Fault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the memory at {0:#x} of the cage cannot be accessed")]
pub struct CageFault(pub u64);

/// Static data of a program.
#[derive(Clone, Copy, Debug)]
pub struct DataImage<'a> {
    /// .rodata, at the start of the data region.
    pub read_only: &'a [u8],
    /// .data, from the next page on.
    pub initialised: &'a [u8],
    /// Bytes of .bss, right after .data.
    pub zeroed: u64,
}

impl DataImage<'_> {
    pub(super) fn read_only_pages(&self) -> u64 {
        (self.read_only.len() as u64).next_multiple_of(PAGE)
    }

    pub(super) fn writable_bytes(&self) -> Option<u64> {
        (self.initialised.len() as u64).checked_add(self.zeroed)
    }
}
