//! Zoned block devices behind one trait, [`ZonedDevice`].
//!
//! Every emulated device shares one zone state machine that follows the NVMe Zoned Namespace
//! Command Set; wrappers such as the fault device stack on any device. Nothing here knows what a
//! filesystem is.

mod buffer;
mod device;
mod error;
mod geometry;

pub use buffer::DmaBuffer;
pub use device::{Completion, DeviceQueue, MapSource, Request, ZoneInfo, ZoneState, ZonedDevice};
pub use error::{Error, Result};
pub use geometry::{Geometry, Lba, ZoneId};
