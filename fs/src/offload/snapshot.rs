//! A file at a moment as the device wants it.

use std::sync::Arc;

use csd_vm::request::{Piece, SnapshotMap};

use crate::volume::snapshot::{FileSnapshot, Run};

/// The blocks of a file at a moment, with addresses that hold as long as this lives.
pub(super) struct Map(pub(super) FileSnapshot);

impl SnapshotMap for Map {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn resolve(&self, first: u64, blocks: u64, out: &mut Vec<Piece>) -> Result<(), String> {
        let mut runs = Vec::new();
        self.0
            .runs(first, blocks, &mut runs)
            .map_err(|error| format!("inode {}: {error}", self.0.ino()))?;
        out.extend(runs.into_iter().map(|run| match run {
            Run::Hole { blocks } => Piece::Hole { blocks },
            Run::Mapped { lba, checksums } => Piece::Mapped {
                lba,
                checksums: Arc::from(checksums),
            },
        }));
        Ok(())
    }
}
