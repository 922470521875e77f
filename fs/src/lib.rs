//! WarrenFS: a log-structured filesystem for zoned storage.
//!
//! Arrows point at what a module may use: `fuse` and `cli` -> `volume` -> `log` -> {`catalog`,
//! `format`} -> `types`. Only `fuse` knows that FUSE exists; everything below it runs and is tested
//! without a mount.

pub mod catalog;
pub mod cli;
mod error;
pub mod format;
pub mod fsck;
pub mod fuse;
pub mod report;
pub mod size;
pub mod store;
pub mod types;
pub mod volume;

pub use error::{Error, Result};
