//! The device from end to end: kernels compiled from C, files on emulated zoned devices.

mod cancellation;
mod common;
mod fuzz;
mod hostile;
mod lifecycle;
mod limits;
mod opencsd;
mod storage;
mod warren;
