//! Placing data: which sections a program needs, and where each of them starts.
//!
//! Constants come first, padded to whole pages so that they can be protected; variables with
//! initial values follow on a page of their own, then those that start as zeros.

use std::collections::{BTreeSet, HashMap};

use super::elf::{Object, Role};
use super::error::LoadError;
use super::{Data, LinkLimits, PAGE, check_limit};

/// Something that is placed as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Block {
    /// A section, by number.
    Section(usize),
    /// A common variable, by the number of its symbol.
    Common(usize),
}

/// The blocks a program refers to.
#[derive(Default)]
pub(super) struct DataLayout {
    wanted: BTreeSet<Block>,
    /// Sections whose pointers have not been followed.
    unseen: Vec<usize>,
}

/// Blocks in their places.
pub(super) struct Placed {
    pub(super) data: Data,
    /// Where each block starts, from the start of the data.
    pub(super) offsets: HashMap<Block, u64>,
}

impl DataLayout {
    /// The program refers to `block`.
    pub(super) fn want(&mut self, block: Block) {
        if self.wanted.insert(block)
            && let Block::Section(section) = block
        {
            self.unseen.push(section);
        }
    }

    /// A wanted section that has not been returned before.
    pub(super) fn next_section(&mut self) -> Option<usize> {
        self.unseen.pop()
    }

    /// Places every wanted block.
    pub(super) fn place(
        &self,
        object: &Object<'_>,
        limits: &LinkLimits,
    ) -> Result<Placed, LoadError> {
        let mut offsets = HashMap::new();
        let read_only = self.place_bytes(
            object,
            Role::ReadOnly,
            "bytes of constants",
            limits.read_only_bytes,
            0,
            &mut offsets,
        )?;
        let initialised_at = (read_only.len() as u64).next_multiple_of(PAGE);
        let initialised = self.place_bytes(
            object,
            Role::Initialised,
            "bytes of initialised variables",
            limits.initialised_bytes,
            initialised_at,
            &mut offsets,
        )?;
        let zeroed_at = initialised_at + initialised.len() as u64;
        let zeroed = self.place_zeroed(object, limits, zeroed_at, &mut offsets)?;
        let data = Data {
            read_only,
            initialised,
            zeroed,
        };
        Ok(Placed { data, offsets })
    }

    fn place_bytes(
        &self,
        object: &Object<'_>,
        role: Role,
        what: &'static str,
        limit: u64,
        start: u64,
        offsets: &mut HashMap<Block, u64>,
    ) -> Result<Vec<u8>, LoadError> {
        let mut image = Vec::new();
        for &block in &self.wanted {
            let Block::Section(index) = block else {
                continue;
            };
            let section = &object.sections[index];
            if section.role != role {
                continue;
            }
            check_align(section.align)?;
            let at = (image.len() as u64).next_multiple_of(section.align);
            let end = at.saturating_add(section.bytes.len() as u64);
            check_limit(what, end, limit)?;
            image.resize(usize::try_from(at).unwrap_or(usize::MAX), 0);
            image.extend_from_slice(section.bytes);
            offsets.insert(block, start + at);
        }
        Ok(image)
    }

    /// Returns the bytes from `start` to the end of the last zeroed variable.
    fn place_zeroed(
        &self,
        object: &Object<'_>,
        limits: &LinkLimits,
        start: u64,
        offsets: &mut HashMap<Block, u64>,
    ) -> Result<u64, LoadError> {
        let mut end = start;
        for &block in &self.wanted {
            let (size, align) = match block {
                Block::Section(index) if object.sections[index].role == Role::Zeroed => {
                    (object.sections[index].size, object.sections[index].align)
                }
                Block::Section(_) => continue,
                Block::Common(index) => (
                    object.symbols[index].size,
                    object.symbols[index].value.max(1),
                ),
            };
            check_align(align)?;
            let at = end.next_multiple_of(align);
            end = at.saturating_add(size);
            check_limit(
                "bytes of zeroed variables",
                end - start,
                limits.zeroed_bytes,
            )?;
            offsets.insert(block, at);
        }
        Ok(end - start)
    }
}

/// Data starts on a page, so no more than that can be promised.
fn check_align(align: u64) -> Result<(), LoadError> {
    if align.is_power_of_two() && align <= PAGE {
        return Ok(());
    }
    Err(LoadError::malformed(format_args!(
        "an alignment of {align} bytes"
    )))
}
