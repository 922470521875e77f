//! Commands of the NVM and the Zoned Namespace command set, whoever carries them out.
//!
//! A [`Command`] is what a submission queue entry says apart from where its data lies; a [`Channel`]
//! carries one out and waits. Section numbers are those of the specifications named in [`super::wire`].

use std::io;

use super::status::Status;
use crate::geometry::Lba;

/// A zone action (ZNS 3.4.3: Zone Send Action).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ZoneAction {
    Close = 1,
    Finish = 2,
    Open = 3,
    Reset = 4,
}

impl ZoneAction {
    pub(crate) fn name(self) -> &'static str {
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
pub(crate) enum Identify {
    Namespace = 0x00,
    Controller = 0x01,
    ZonedNamespace = 0x05,
    ZonedController = 0x06,
}

/// Bit 30 of word 12 of reads and writes.
const FORCE_UNIT_ACCESS: u32 = 1 << 30;
/// Command set identifier of zoned namespaces.
const CSI_ZONED: u32 = 2;

/// The part of a command that is not its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    pub(super) opcode: u8,
    admin: bool,
    pub(super) cdw10: u32,
    pub(super) cdw11: u32,
    pub(super) cdw12: u32,
    pub(super) cdw13: u32,
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
    pub(crate) const FLUSH: Command = Command::new(0x00, 0, 0, 0);

    /// Write (NVM 3.2.6). `blocks`: 1 to 65536. `durable`: with Force Unit Access, which has it on
    /// the medium before it completes.
    pub(crate) fn write(lba: Lba, blocks: u64, durable: bool) -> Command {
        let control = if durable { FORCE_UNIT_ACCESS } else { 0 };
        Command::new(0x01, lba.0, control | (blocks as u32 - 1), 0)
    }

    /// Read (NVM 3.2.4). `blocks`: 1 to 65536.
    pub(crate) fn read(lba: Lba, blocks: u64) -> Command {
        Command::new(0x02, lba.0, blocks as u32 - 1, 0)
    }

    /// Zone Append (ZNS 3.4.1): `start` is that of the zone; the result is the address assigned.
    pub(crate) fn append(start: Lba, blocks: u64) -> Command {
        Command::new(0x7D, start.0, blocks as u32 - 1, 0)
    }

    /// Zone Management Send (ZNS 3.4.3).
    pub(crate) fn manage(start: Lba, action: ZoneAction) -> Command {
        Command::new(0x79, start.0, 0, action as u32)
    }

    /// Zone Management Receive (ZNS 3.4.2): a report of all zones from `start` on, as many as fit
    /// in `bytes`.
    pub(crate) fn report(start: Lba, bytes: usize) -> Command {
        /// Bit 16: count only the zones that fit.
        const PARTIAL: u32 = 1 << 16;
        Command::new(0x7A, start.0, bytes as u32 / 4 - 1, PARTIAL)
    }

    /// Identify (base 5.17).
    pub(crate) fn identify(structure: Identify) -> Command {
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

    /// The namespace it names where `namespace` is meant.
    pub(crate) fn namespace(self, namespace: u32) -> u32 {
        if self.is_controllers() { 0 } else { namespace }
    }

    /// Whether it belongs to the admin queue.
    pub(crate) fn is_admin(self) -> bool {
        self.admin
    }

    /// Words 0 to 15 of the submission queue entry (base 3.3.3.1), without identifier and data.
    #[cfg(any(feature = "xnvme", test))]
    pub(crate) fn entry(self, namespace: u32) -> [u32; 16] {
        let mut words = [0; 16];
        words[0] = u32::from(self.opcode);
        words[1] = self.namespace(namespace);
        words[10..14].copy_from_slice(&[self.cdw10, self.cdw11, self.cdw12, self.cdw13]);
        words
    }

    /// Bits 1:0 of an opcode say which way its data goes (base 3.3.3.1).
    pub(crate) fn direction(self) -> Direction {
        match self.opcode & 3 {
            1 => Direction::ToController,
            2 => Direction::FromController,
            _ => Direction::NoData,
        }
    }
}

/// Which way the data of a command goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    NoData,
    ToController,
    FromController,
}

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The kernel did not carry it out.
    Host(io::Error),
    /// The controller refused.
    Refused(Status),
}

/// Carries out commands on one namespace and waits for each.
///
/// `Ok` holds the 64 bits of the result, which only Zone Append gives a meaning.
pub(crate) trait Channel: Send + Sync {
    /// Carries out a command that fills `data`.
    fn receive(&self, command: Command, data: &mut [u8]) -> Result<u64, Failure>;

    /// Carries out a command that takes `data`, which is empty for commands without data.
    fn send(&self, command: Command, data: &[u8]) -> Result<u64, Failure>;
}
