//! WarrenFS: a log-structured filesystem for zoned storage.
//!
//! `fuse` and `cli` stand on `offload` and `volume`, which stands on `store` (the log), which stands on `catalog`
//! and `format`. Only `fuse` knows that FUSE exists; everything below it runs and is tested without
//! a mount. `ARCHITECTURE.md` has the map, what may use what, and the invariants.

pub mod catalog;
mod checksum;
pub mod cli;
mod error;
pub mod format;
pub mod fsck;
pub mod fuse;
pub mod offload;
pub mod report;
pub mod size;
pub mod store;
pub mod types;
pub mod volume;

pub use error::{Error, Result};
