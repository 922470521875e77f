//! What a modelled device is made of and how long its parts take.

use crate::error::{Error, Result};

/// Nanoseconds.
pub(super) type Nanos = u64;

const MICROSECOND: Nanos = 1_000;
const MILLISECOND: Nanos = 1_000_000;
const SECOND: u128 = 1_000_000_000;

/// Shape and times of a NAND device. Times are nanoseconds, rates bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// As it is named in device arguments.
    pub name: &'static str,
    /// Buses between controller and dies.
    pub channels: u32,
    /// Dies on each channel.
    pub ways: u32,
    /// Planes of a die, which read one page each and are programmed together.
    pub planes: u32,
    /// Bytes of a flash page.
    pub page_bytes: u64,
    /// Time a die needs to read a page into its register.
    pub read: Nanos,
    /// Time a die needs to program one page of each plane.
    pub program: Nanos,
    /// Extra time of a read that suspends a program.
    pub suspend: Nanos,
    /// Bytes per second of a channel.
    pub channel_rate: u64,
    /// Time of a read command outside dies and channels.
    pub read_command: Nanos,
    /// Time of a write command up to its data being in the write buffer, without what is counted
    /// per 4 KiB.
    pub write_command: Nanos,
    /// As `write_command`, of an append.
    pub append_command: Nanos,
    /// Time the controller is taken by each 4 KiB of a write or append.
    pub transfer: Nanos,
    /// Time the controller is taken by each append besides.
    pub append_service: Nanos,
    /// Bytes of the write buffer, safe against power cuts.
    pub buffer_bytes: u64,
    /// Time of a flush, which finds the data in the buffer.
    pub flush: Nanos,
    /// Time to reset an empty zone.
    pub reset_empty: Nanos,
    /// Time to reset a zone that holds next to nothing.
    pub reset_base: Nanos,
    /// What resetting a full zone takes longer.
    pub reset_full: Nanos,
    /// Time to finish a full zone.
    pub finish_base: Nanos,
    /// Bytes per second at which finishing fills the rest of a zone.
    pub finish_rate: u64,
    /// Time to open or close a zone.
    pub transition: Nanos,
}

impl Profile {
    /// A Western Digital Ultrastar DC ZN540 (1 TB): 904 zones of 2 GiB with 1,077 MiB of capacity.
    ///
    /// Fitted to published measurements: 4 KiB at queue depth 1 written in 11.6 us, appended in
    /// 14.7 us, read in 73 us; 437 k random reads a second at depth 256; 1,147 MiB/s of writes;
    /// 132 to 143 k appends a second; resets of 1.6, 11.5 and 16.5 ms (empty, half, full zone);
    /// finishing in 907, 457 and 2.6 ms (one page, half, all but full). What is inside (dies, pages,
    /// program time) is not published; it is chosen to give these figures.
    pub const ZN540: Profile = Profile {
        name: "zn540",
        channels: 8,
        ways: 4,
        planes: 2,
        page_bytes: 16 << 10,
        read: 62 * MICROSECOND,
        program: 872 * MICROSECOND,
        suspend: 15 * MICROSECOND,
        channel_rate: 800_000_000,
        read_command: 5_900,
        write_command: 8_600,
        append_command: 7_450,
        transfer: 3 * MICROSECOND,
        append_service: 4_250,
        buffer_bytes: 8 << 20,
        flush: 5 * MICROSECOND,
        reset_empty: 1_600 * MICROSECOND,
        reset_base: 6_500 * MICROSECOND,
        reset_full: 10 * MILLISECOND,
        finish_base: 2_600 * MICROSECOND,
        finish_rate: 1_187 << 20,
        transition: 10 * MICROSECOND,
    };

    /// The profile of a name.
    ///
    /// # Errors
    /// [`Error::BadImage`] naming those there are.
    pub fn named(name: &str) -> Result<Profile> {
        [Profile::ZN540]
            .into_iter()
            .find(|profile| profile.name == name)
            .ok_or_else(|| Error::BadImage(format!("no timing profile '{name}'; there is: zn540")))
    }

    pub(super) fn dies(&self) -> u32 {
        self.channels * self.ways
    }

    /// Bytes that a die programs at a time.
    pub(super) fn unit_bytes(&self) -> u64 {
        self.page_bytes * u64::from(self.planes)
    }

    /// Time that `bytes` take at `rate` bytes per second.
    pub(super) fn time_at(bytes: u64, rate: u64) -> Nanos {
        Nanos::try_from(u128::from(bytes) * SECOND / u128::from(rate.max(1))).unwrap_or(Nanos::MAX)
    }

    pub(super) fn on_channel(&self, bytes: u64) -> Nanos {
        Profile::time_at(bytes, self.channel_rate)
    }

    pub(super) fn transfer_of(&self, bytes: u64) -> Nanos {
        self.transfer * bytes.div_ceil(4096)
    }
}
