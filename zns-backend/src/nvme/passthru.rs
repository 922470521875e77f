//! The two ways Linux takes commands: the passthrough ioctl, which waits, and the command area of an
//! io_uring entry (`include/uapi/linux/nvme_ioctl.h`).
//!
//! Needs Linux 5.4 for the ioctl with 64-bit results, 5.13 for the character devices of namespaces,
//! 5.19 for io_uring.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use zerocopy::{Immutable, IntoBytes};

use super::command::{Channel, Command, Direction, Failure};
use super::status::Status;

/// Bytes of the command area of a 128-byte submission entry.
pub(super) const URING_AREA_BYTES: usize = 80;

/// `NVME_IOCTL_ID`: answers the namespace's number.
const IOCTL_ID: libc::c_ulong = io_number(0x40);
/// `NVME_IOCTL_ADMIN64_CMD`.
const IOCTL_ADMIN64: libc::c_ulong = read_write(0x47, size_of::<RawCommand64>());
/// `NVME_IOCTL_IO64_CMD`.
const IOCTL_IO64: libc::c_ulong = read_write(0x48, size_of::<RawCommand64>());
/// `NVME_URING_CMD_IO`.
pub(super) const URING_IO: u32 = read_write(0x80, size_of::<RawCommand>()) as u32;

const fn io_number(number: libc::c_ulong) -> libc::c_ulong {
    (b'N' as libc::c_ulong) << 8 | number
}

/// `_IOWR('N', number, a struct of this size)`.
const fn read_write(number: libc::c_ulong, size: usize) -> libc::c_ulong {
    3 << 30 | (size as libc::c_ulong) << 16 | io_number(number)
}

const _: () = assert!(IOCTL_ADMIN64 == 0xC050_4E47 && IOCTL_IO64 == 0xC050_4E48);
const _: () = assert!(URING_IO == 0xC048_4E80);

/// `struct nvme_uring_cmd`.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct RawCommand {
    opcode: u8,
    flags: u8,
    reserved: u16,
    namespace: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    address: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout_ms: u32,
    reserved_too: u32,
}

/// `struct nvme_passthru_cmd64`.
#[repr(C)]
struct RawCommand64 {
    command: RawCommand,
    result: u64,
}

const _: () = assert!(size_of::<RawCommand>() == 72);
const _: () = assert!(size_of::<RawCommand64>() == 80);

impl RawCommand {
    fn new(command: Command, namespace: u32, address: u64, data_len: u32) -> RawCommand {
        RawCommand {
            opcode: command.opcode,
            flags: 0,
            reserved: 0,
            namespace: command.namespace(namespace),
            cdw2: 0,
            cdw3: 0,
            metadata: 0,
            address,
            metadata_len: 0,
            data_len,
            cdw10: command.cdw10,
            cdw11: command.cdw11,
            cdw12: command.cdw12,
            cdw13: command.cdw13,
            cdw14: 0,
            cdw15: 0,
            timeout_ms: 0,
            reserved_too: 0,
        }
    }
}

/// A command as an io_uring entry carries it. `address` and `data_len` name its data.
pub(super) fn uring_area(
    command: Command,
    namespace: u32,
    address: u64,
    data_len: u32,
) -> [u8; URING_AREA_BYTES] {
    let mut area = [0; URING_AREA_BYTES];
    area[..size_of::<RawCommand>()]
        .copy_from_slice(RawCommand::new(command, namespace, address, data_len).as_bytes());
    area
}

/// An open namespace that takes commands one at a time.
#[derive(Debug)]
pub(super) struct Passthru {
    file: File,
    namespace: u32,
}

impl Passthru {
    /// A channel to the namespace behind a character (or block) device.
    ///
    /// # Errors
    /// When it is none.
    pub(super) fn new(file: File) -> io::Result<Passthru> {
        // SAFETY: the request takes no argument memory; on other kinds of file it fails.
        let namespace = unsafe { libc::ioctl(file.as_raw_fd(), IOCTL_ID as _) };
        let namespace = u32::try_from(namespace).map_err(|_| io::Error::last_os_error())?;
        Ok(Passthru { file, namespace })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn namespace(&self) -> u32 {
        self.namespace
    }

    /// # Safety
    /// `address` is valid for `len` bytes in the direction of the command.
    unsafe fn call(&self, command: Command, address: u64, len: usize) -> Result<u64, Failure> {
        let request = if command.is_admin() {
            IOCTL_ADMIN64
        } else {
            IOCTL_IO64
        };
        let too_long = |_| Failure::Host(io::ErrorKind::InvalidInput.into());
        let mut raw = RawCommand64 {
            command: RawCommand::new(
                command,
                self.namespace,
                address,
                u32::try_from(len).map_err(too_long)?,
            ),
            result: 0,
        };
        // SAFETY: the request takes exactly this structure, which lives until the call returns; the
        // caller vouches for the memory it names.
        let status = unsafe { libc::ioctl(self.file.as_raw_fd(), request as _, &raw mut raw) };
        match status {
            0 => Ok(raw.result),
            1.. => Err(Failure::Refused(Status(status as u16))),
            _ => Err(Failure::Host(io::Error::last_os_error())),
        }
    }
}

impl Channel for Passthru {
    fn receive(&self, command: Command, data: &mut [u8]) -> Result<u64, Failure> {
        assert_eq!(command.direction(), Direction::FromController);
        // SAFETY: `data` can be written for its whole length until the call returns.
        unsafe { self.call(command, data.as_mut_ptr() as u64, data.len()) }
    }

    fn send(&self, command: Command, data: &[u8]) -> Result<u64, Failure> {
        assert!(
            data.is_empty() || command.direction() == Direction::ToController,
            "the data of a command that takes some"
        );
        let address = if data.is_empty() {
            0
        } else {
            data.as_ptr() as u64
        };
        // SAFETY: the command only reads memory, and `data` is readable for its whole length until
        // the call returns.
        unsafe { self.call(command, address, data.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::command::{Identify, ZoneAction};
    use super::*;
    use crate::geometry::Lba;

    /// Words 0, 1 and 10 to 13 of the command, as they lie in the entry.
    fn words(command: Command) -> [u32; 6] {
        let area = uring_area(command, 7, 0x1122_3344_5566, 0x2000);
        let word =
            |at: usize| u32::from_le_bytes([area[at], area[at + 1], area[at + 2], area[at + 3]]);
        assert_eq!(
            (word(24), word(28), word(36)),
            (0x3344_5566, 0x1122, 0x2000)
        );
        let words = [0, 4, 40, 44, 48, 52].map(word);
        // Linux has taken over the layout of a submission queue entry.
        let entry = command.entry(7);
        assert_eq!(words, [0, 1, 10, 11, 12, 13].map(|at| entry[at]));
        words
    }

    #[test]
    fn commands_lie_where_the_specification_puts_them() {
        let lba = Lba(0x9_0000_0010);
        for (command, expected) in [
            (Command::FLUSH, [0x00, 7, 0, 0, 0, 0]),
            (Command::write(lba, 2, false), [0x01, 7, 0x10, 9, 1, 0]),
            (
                Command::write(lba, 2, true),
                [0x01, 7, 0x10, 9, 0x4000_0001, 0],
            ),
            (Command::read(lba, 1), [0x02, 7, 0x10, 9, 0, 0]),
            (Command::append(lba, 16), [0x7D, 7, 0x10, 9, 15, 0]),
            (
                Command::manage(lba, ZoneAction::Reset),
                [0x79, 7, 0x10, 9, 0, 4],
            ),
            (
                Command::report(lba, 4096),
                [0x7A, 7, 0x10, 9, 1023, 0x10000],
            ),
            (
                Command::identify(Identify::ZonedNamespace),
                [0x06, 7, 5, 0x0200_0000, 0, 0],
            ),
            (
                Command::identify(Identify::Controller),
                [0x06, 0, 1, 0, 0, 0],
            ),
        ] {
            assert_eq!(words(command), expected, "{command:?}");
        }
    }

    #[test]
    fn a_file_that_is_no_namespace_is_refused() {
        let file = File::open("/dev/null").expect("open");
        assert!(Passthru::new(file).is_err());
    }
}
