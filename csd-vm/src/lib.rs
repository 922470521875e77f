//! An emulated computational storage device: it loads BPF kernels, checks and compiles them, and
//! runs them next to the blocks of a zoned device.
//!
//! Modelled on the command set of NVMe Computational Programs (TP4091): a program is loaded,
//! activated, executed with a request and the ranges of storage it may touch, deactivated and
//! unloaded; every execution ends with a completion status and statistics. The host (the
//! filesystem) says which blocks make up what a kernel sees; the device knows zones and blocks,
//! never a path, an inode table or a lock.

mod abi;
pub mod activation;
mod block_set;
mod blocks;
mod cache;
mod cancellation;
mod cost;
pub mod device;
pub mod engine;
mod execution;
mod extents;
mod frames;
#[cfg(any(test, feature = "fuzzing"))]
pub mod lab;
mod mapping;
mod pool;
pub mod program;
mod queue;
pub mod request;
pub mod stats;
pub mod verify;
mod window;

pub use activation::Activation;
pub use cancellation::Cancellation;
pub use device::{Device, DeviceConfig, DeviceError, Finished, LoadError, LoadedProgram};
pub use queue::Tenant;
pub use stats::{DeviceCounters, Statistics};
