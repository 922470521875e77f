//! What libxnvme's answers mean.
//!
//! A synchronous call answers a negative errno, and -EIO when the controller refused the command, whose
//! status is in the completion then. A queued command has the completion alone, in which engines hide
//! errors of the host in ways of their own. Of those only `io_uring_cmd` can be told from statuses for
//! certain (nearly: see [`of_queued`]); under `emu` and `thrpool` an errno looks like a generic status,
//! and both mean a request that failed for no reason of its zone.

use std::ffi::c_int;
use std::io;

use crate::nvme::command::Failure;
use crate::nvme::status::Status;

/// The engine whose commands are entries of io_uring.
pub(super) const IO_URING_CMD: &str = "io_uring_cmd";

/// The end of a synchronous call that answered `code`; `field` is the status field of its completion,
/// phase bit included.
pub(super) fn of_call(code: c_int, field: u16) -> Result<(), Failure> {
    let status = Status(field >> 1);
    match code.saturating_abs() {
        0 if status.is_success() => Ok(()),
        0 => Err(Failure::Refused(status)),
        libc::EIO if !status.is_success() => Err(Failure::Refused(status)),
        errno => Err(Failure::Host(io::Error::from_raw_os_error(errno))),
    }
}

/// The end of a queued command.
///
/// `io_uring_cmd` cuts an errno to its last eleven bits: vendor-specific type, code 256 less errno.
/// A vendor's own status with so high a code would be taken for one.
pub(super) fn of_queued(engine: &str, field: u16) -> Result<(), Failure> {
    /// No errno is above this.
    const ERRNO_MAX: u16 = 133;
    let status = Status(field >> 1);
    if status.is_success() {
        return Ok(());
    }
    let errno = 0x100 - status.code_of_type();
    if engine == IO_URING_CMD && status.is_vendor_specific() && errno <= ERRNO_MAX {
        let source = io::Error::from_raw_os_error(errno.into());
        return Err(Failure::Host(source));
    }
    Err(Failure::Refused(status))
}

/// Whether the command never reached the device, so that it may be given again: no tag was free, a
/// full ring, or a signal.
pub(super) fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAGAIN | libc::EBUSY | libc::ECANCELED | libc::EINTR)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A status field as controllers send it: phase, code, type, do-not-retry.
    fn field(status_type: u16, code: u16) -> u16 {
        1 << 15 | status_type << 9 | code << 1 | 1
    }

    fn shown(outcome: Result<(), Failure>) -> String {
        match outcome {
            Ok(()) => "done".into(),
            Err(Failure::Refused(status)) => status.to_string(),
            Err(Failure::Host(error)) => format!("errno {:?}", error.raw_os_error()),
        }
    }

    #[test]
    fn a_refusal_by_the_controller_is_told_from_an_error_of_the_host() {
        assert_eq!(shown(of_call(0, 1)), "done");
        let full = "NVMe status type 0x1, code 0xb9";
        assert_eq!(shown(of_call(-libc::EIO, field(1, 0xB9))), full);
        // A user-space driver may leave the refusal to the completion.
        assert_eq!(shown(of_call(0, field(1, 0xB9))), full);
        // Linux: the errno is also in the completion.
        let denied = of_call(-libc::EACCES, (libc::EACCES as u16) << 1);
        assert_eq!(shown(denied), format!("errno {:?}", Some(libc::EACCES)));
        assert_eq!(
            shown(of_call(-libc::EIO, 0)),
            format!("errno {:?}", Some(libc::EIO))
        );
    }

    #[test]
    fn a_queued_command_has_its_status_or_the_errno_that_io_uring_cmd_cut_short() {
        for engine in [IO_URING_CMD, "emu", "nvme"] {
            assert_eq!(shown(of_queued(engine, 0)), "done");
            assert_eq!(
                shown(of_queued(engine, field(1, 0xBC))),
                "NVMe status type 0x1, code 0xbc"
            );
        }
        for errno in [libc::EAGAIN, libc::ECANCELED, libc::EINVAL] {
            let cut = (-errno) as u16;
            let field = (cut & 0xFF) << 1 | (cut >> 8 & 7) << 9;
            assert_eq!(
                shown(of_queued(IO_URING_CMD, field)),
                format!("errno {:?}", Some(errno))
            );
            assert!(shown(of_queued("nvme", field)).contains("type 0x7"));
        }
        assert!(shown(of_queued(IO_URING_CMD, field(7, 1))).contains("type 0x7"));
    }

    #[test]
    fn statuses_through_the_library_are_those_of_passthrough() {
        let Err(Failure::Refused(status)) = of_queued("emu", field(1, 0xBD)) else {
            panic!("a status");
        };
        // As Linux hands it over: without the phase, with the do-not-retry bit.
        assert_eq!(status, Status(0x41BD));
    }

    #[test]
    fn only_what_never_reached_the_device_is_given_again() {
        let of = io::Error::from_raw_os_error;
        assert!(is_passing(&of(libc::EAGAIN)) && is_passing(&of(libc::ECANCELED)));
        assert!(!is_passing(&of(libc::EIO)) && !is_passing(&of(libc::ENOSYS)));
    }
}
