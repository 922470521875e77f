//! Zoned block devices behind one trait, [`ZonedDevice`].
//!
//! Every emulated device shares one zone state machine that follows the NVMe Zoned Namespace
//! Command Set; wrappers such as the fault device stack on any device. Nothing here knows what a
//! filesystem is.
//!
//! | device | what it is |
//! |---|---|
//! | [`MemDevice`] | in memory, zones in a memfd |
//! | [`FileDevice`] | an image file with persistent zone states |
//! | [`NvmeDevice`] | a zoned NVMe namespace through Linux passthrough |
//! | `XnvmeDevice` | the same through libxnvme, with the cargo feature `xnvme` |
//! | [`FaultDevice`] | a memory device that fails as planned and remembers what was written |
//! | [`TimedDevice`] | any of them with the times of a NAND device |

mod buffer;
mod burst;
#[cfg(feature = "conformance")]
pub mod conformance;
mod device;
mod error;
mod fault;
mod file;
mod geometry;
mod host;
mod lanes;
mod mem;
mod nvme;
mod pool;
mod queue;
mod ring;
mod shared_zones;
mod spec;
mod timed;
mod xnvme;
mod zone_state;

pub use buffer::DmaBuffer;
pub use device::{Completion, DeviceQueue, MapSource, Request, ZoneInfo, ZoneState, ZonedDevice};
pub use error::{Error, Result};
pub use fault::{CrashPoint, Fault, FaultDevice, LoggedOp, Survival, When, WriteLog};
pub use file::FileDevice;
pub use geometry::{Geometry, Lba, ZoneId};
pub use mem::MemDevice;
pub use nvme::NvmeDevice;
pub use queue::SyncQueue;
pub use spec::{DeviceSpec, open_device, parse_size};
pub use timed::{Clock, Count, Profile, Tally, TimedDevice, Timing};
#[cfg(feature = "xnvme")]
pub use xnvme::XnvmeDevice;
pub use xnvme::{XnvmeTarget, XnvmeUri};
