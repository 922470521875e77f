//! Operations on a filesystem as plain data.
//!
//! Operations name files by path or by handle slot, so that a sequence still makes sense with parts
//! of it cut out, which is how a failing one is made small.

use warren_fs::volume::types::FileKind;

use super::atomic::{End, Piece};
use super::{Change, Maker};

/// Handles that may be open at once.
pub(crate) const SLOTS: usize = 6;

/// A path from the root, without a leading slash; empty is the root.
pub(crate) type Path = String;

/// What an operation works on.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Path(Path),
    Slot(usize),
}

/// One operation.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Mknod {
        path: Path,
        kind: FileKind,
        mode: u32,
        rdev: u32,
        maker: Maker,
    },
    Mkdir {
        path: Path,
        mode: u32,
        maker: Maker,
    },
    Symlink {
        path: Path,
        to: String,
        maker: Maker,
    },
    Tmpfile {
        dir: Path,
        slot: usize,
        mode: u32,
        maker: Maker,
    },
    Link {
        target: Target,
        path: Path,
    },
    Unlink {
        path: Path,
    },
    Rmdir {
        path: Path,
    },
    Rename {
        from: Path,
        to: Path,
        flags: u32,
    },
    Open {
        path: Path,
        slot: usize,
        truncate: bool,
    },
    Close {
        slot: usize,
    },
    Read {
        target: Target,
        offset: u64,
        len: usize,
    },
    Write {
        target: Target,
        offset: u64,
        len: usize,
        seed: u64,
        kill: bool,
    },
    Change {
        target: Target,
        change: Change,
    },
    Fallocate {
        target: Target,
        offset: u64,
        len: u64,
        mode: i32,
    },
    CopyRange {
        from: Target,
        from_offset: u64,
        to: Target,
        to_offset: u64,
        len: u64,
    },
    Seek {
        target: Target,
        offset: u64,
    },
    /// An atomic write from its start to its end.
    Session {
        target: Target,
        pieces: Vec<Piece>,
        end: End,
    },
    SetXattr {
        target: Target,
        name: String,
        len: usize,
        seed: u64,
        create: bool,
        replace: bool,
    },
    GetXattr {
        target: Target,
        name: String,
    },
    RemoveXattr {
        target: Target,
        name: String,
    },
    /// Lists a directory `step` entries at a time, with `meanwhile` happening after the first step.
    List {
        path: Path,
        step: usize,
        meanwhile: Vec<Op>,
    },
    Fsync {
        target: Target,
    },
    Sync,
    Checkpoint,
    Collect {
        zones: usize,
    },
    Remount,
    /// Power is cut; of what was not flushed, the seed decides what survives.
    Crash {
        seed: u64,
    },
    /// Everything visible is compared.
    Compare,
}

/// The bytes that a write with `seed` writes: noise, with a stretch of zeros in some.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    let mut out = vec![0; len];
    for piece in out.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        piece.copy_from_slice(&state.to_le_bytes()[..piece.len()]);
    }
    if seed.is_multiple_of(8) {
        out[len / 4..len / 4 * 3].fill(0);
    }
    out
}
