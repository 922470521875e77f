//! The bytes on the device: every structure that outlives a mount is encoded and decoded here.

pub mod record;
