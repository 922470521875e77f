//! Commands, and the two ways Linux takes them: the passthrough ioctl, which waits, and the command
//! area of an io_uring entry (`include/uapi/linux/nvme_ioctl.h`).
//!
//! Needs Linux 5.4 for the ioctl with 64-bit results, 5.13 for the character devices of namespaces,
//! 5.19 for io_uring.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use zerocopy::{Immutable, IntoBytes};

use super::status::Status;
use crate::geometry::Lba;

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

/// A zone action (ZNS 3.4.3: Zone Send Action).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ZoneAction {
    Close = 1,
    Finish = 2,
    Open = 3,
    Reset = 4,
}

impl ZoneAction {
    pub(super) fn name(self) -> &'static str {
        match self {
            ZoneAction::Close => "close",
            ZoneAction::Finish => "finish",
            ZoneAction::Open => "open",
            ZoneAction::Reset => "reset",
        }
    }
}

/// An Identify structure (base 5.17: CNS) and the command set it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Identify {
    Namespace = 0x00,
    Controller = 0x01,
    ZonedNamespace = 0x05,
    ZonedController = 0x06,
}

/// Command set identifier of zoned namespaces.
const CSI_ZONED: u32 = 2;

/// The part of a command that is not its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Command {
    opcode: u8,
    admin: bool,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
}

impl Command {
    const fn new(opcode: u8, address: u64, cdw12: u32, cdw13: u32) -> Command {
        Command {
            opcode,
            admin: false,
            cdw10: address as u32,
            cdw11: (address >> 32) as u32,
            cdw12,
            cdw13,
        }
    }

    /// Flush (base 7.1).
    pub(super) const FLUSH: Command = Command::new(0x00, 0, 0, 0);

    /// Write (NVM 3.2.6). `blocks`: 1 to 65536.
    pub(super) fn write(lba: Lba, blocks: u64) -> Command {
        Command::new(0x01, lba.0, blocks as u32 - 1, 0)
    }

    /// Read (NVM 3.2.4). `blocks`: 1 to 65536.
    pub(super) fn read(lba: Lba, blocks: u64) -> Command {
        Command::new(0x02, lba.0, blocks as u32 - 1, 0)
    }

    /// Zone Append (ZNS 3.4.1): `start` is that of the zone; the result is the address assigned.
    pub(super) fn append(start: Lba, blocks: u64) -> Command {
        Command::new(0x7D, start.0, blocks as u32 - 1, 0)
    }

    /// Zone Management Send (ZNS 3.4.3).
    pub(super) fn manage(start: Lba, action: ZoneAction) -> Command {
        Command::new(0x79, start.0, 0, action as u32)
    }

    /// Zone Management Receive (ZNS 3.4.2): a report of all zones from `start` on, as many as fit
    /// in `bytes`.
    pub(super) fn report(start: Lba, bytes: usize) -> Command {
        /// Bit 16: count only the zones that fit.
        const PARTIAL: u32 = 1 << 16;
        Command::new(0x7A, start.0, bytes as u32 / 4 - 1, PARTIAL)
    }

    /// Identify (base 5.17).
    pub(super) fn identify(structure: Identify) -> Command {
        let zoned = matches!(
            structure,
            Identify::ZonedNamespace | Identify::ZonedController
        );
        Command {
            opcode: 0x06,
            admin: true,
            cdw10: structure as u32,
            cdw11: if zoned { CSI_ZONED << 24 } else { 0 },
            cdw12: 0,
            cdw13: 0,
        }
    }

    /// Whether it concerns the controller as a whole, and so names no namespace.
    fn is_controllers(self) -> bool {
        self.admin
            && [Identify::Controller, Identify::ZonedController]
                .iter()
                .any(|&structure| structure as u32 == self.cdw10)
    }

    fn raw(self, namespace: u32, address: u64, data_len: u32) -> RawCommand {
        RawCommand {
            opcode: self.opcode,
            flags: 0,
            reserved: 0,
            namespace: if self.is_controllers() { 0 } else { namespace },
            cdw2: 0,
            cdw3: 0,
            metadata: 0,
            address,
            metadata_len: 0,
            data_len,
            cdw10: self.cdw10,
            cdw11: self.cdw11,
            cdw12: self.cdw12,
            cdw13: self.cdw13,
            cdw14: 0,
            cdw15: 0,
            timeout_ms: 0,
            reserved_too: 0,
        }
    }

    /// The command as an io_uring entry carries it. `address` and `data_len` name its data.
    pub(super) fn uring_area(
        self,
        namespace: u32,
        address: u64,
        data_len: u32,
    ) -> [u8; URING_AREA_BYTES] {
        let mut area = [0; URING_AREA_BYTES];
        area[..size_of::<RawCommand>()]
            .copy_from_slice(self.raw(namespace, address, data_len).as_bytes());
        area
    }

    /// Bits 1:0 of an opcode say which way its data goes (base 3.3.3.1).
    fn direction(self) -> u8 {
        self.opcode & 3
    }
}

/// Why a command did not succeed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The kernel did not carry it out.
    Host(io::Error),
    /// The controller refused.
    Refused(Status),
}

/// An open namespace that takes commands one at a time.
#[derive(Debug)]
pub(super) struct Channel {
    file: File,
    namespace: u32,
}

impl Channel {
    /// A channel to the namespace behind a character (or block) device.
    ///
    /// # Errors
    /// When it is none.
    pub(super) fn new(file: File) -> io::Result<Channel> {
        // SAFETY: the request takes no argument memory; on other kinds of file it fails.
        let namespace = unsafe { libc::ioctl(file.as_raw_fd(), IOCTL_ID as _) };
        let namespace = u32::try_from(namespace).map_err(|_| io::Error::last_os_error())?;
        Ok(Channel { file, namespace })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn namespace(&self) -> u32 {
        self.namespace
    }

    /// Carries out a command that fills `data`.
    pub(super) fn receive(&self, command: Command, data: &mut [u8]) -> Result<u64, Failure> {
        assert_eq!(command.direction(), 2, "a command from the controller");
        // SAFETY: `data` can be written for its whole length until the call returns.
        unsafe { self.call(command, data.as_mut_ptr() as u64, data.len()) }
    }

    /// Carries out a command that takes `data`, which is empty for commands without data.
    pub(super) fn send(&self, command: Command, data: &[u8]) -> Result<u64, Failure> {
        assert!(
            data.is_empty() || command.direction() == 1,
            "to the controller"
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

    /// # Safety
    /// `address` is valid for `len` bytes in the direction of the command.
    unsafe fn call(&self, command: Command, address: u64, len: usize) -> Result<u64, Failure> {
        let request = if command.admin {
            IOCTL_ADMIN64
        } else {
            IOCTL_IO64
        };
        let too_long = |_| Failure::Host(io::ErrorKind::InvalidInput.into());
        let mut raw = RawCommand64 {
            command: command.raw(
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Words 0, 1 and 10 to 13 of the command, as they lie in the entry.
    fn words(command: Command) -> [u32; 6] {
        let area = command.uring_area(7, 0x1122_3344_5566, 0x2000);
        let word =
            |at: usize| u32::from_le_bytes([area[at], area[at + 1], area[at + 2], area[at + 3]]);
        assert_eq!(
            (word(24), word(28), word(36)),
            (0x3344_5566, 0x1122, 0x2000)
        );
        [word(0), word(4), word(40), word(44), word(48), word(52)]
    }

    #[test]
    fn commands_lie_where_the_specification_puts_them() {
        let lba = Lba(0x9_0000_0010);
        for (command, expected) in [
            (Command::FLUSH, [0x00, 7, 0, 0, 0, 0]),
            (Command::write(lba, 2), [0x01, 7, 0x10, 9, 1, 0]),
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
        assert!(Channel::new(file).is_err());
    }
}
