//! The device from end to end: kernels compiled from C, files on emulated zoned devices.

mod common;
mod opencsd;
mod warren;
