//! A zoned namespace through libxnvme, with the engine its user names: commands of the Linux kernel in
//! several ways, or a driver in user space (SPDK, libvfn) where the library has one.
//!
//! A namespace behaves as in [`crate::nvme`], whose types do the work; here are the ways of the library
//! ([`library`], [`channel`], [`queue`]) and what its answers mean ([`outcome`]). Without the cargo
//! feature `xnvme` only the form of its arguments is known ([`uri`]).
//!
//! The library has engines that take some commands and not others, and one that carries nothing out.
//! Each engine is therefore tried when the device is opened, with a command that no device can carry
//! out: it has to come back as the controller's refusal.

#[cfg(feature = "xnvme")]
mod channel;
#[cfg(feature = "xnvme")]
mod device;
#[cfg(feature = "xnvme")]
mod library;
#[cfg(any(feature = "xnvme", test))]
mod outcome;
#[cfg(feature = "xnvme")]
mod queue;
mod uri;

#[cfg(feature = "xnvme")]
pub use device::XnvmeDevice;
pub(crate) use uri::SCHEME;
pub use uri::{XnvmeTarget, XnvmeUri};
