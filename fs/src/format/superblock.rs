//! The superblock: first block of each anchor zone (zones 0 and 1).

use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};
use zns_backend::Geometry;

use super::FORMAT_VERSION;
use crate::checksum;
use crate::error::{Error, Result};
use crate::types::BLOCK_SIZE;

/// `WARRENFS` in ASCII.
pub const MAGIC: [u8; 8] = *b"WARRENFS";
/// Longest label in bytes.
pub const LABEL_MAX: usize = 64;

/// Identity and shape of a filesystem.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Superblock {
    magic: [u8; 8],
    version: U32,
    block_size: U32,
    /// Identity of the filesystem; every chunk and checkpoint repeats it.
    pub fsid: [u8; 16],
    zone_size: U64,
    zone_capacity: U64,
    zones: U32,
    /// Grows by one with every switch of the anchor zone.
    pub generation: U32,
    /// Seconds since 1970 when the filesystem was made.
    pub created: I64,
    label: [u8; LABEL_MAX],
    reserved: [u8; 4],
    crc: U32,
}

const _: () = assert!(size_of::<Superblock>() == 136);

impl Superblock {
    /// The superblock of a new filesystem.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the label is too long.
    pub fn new(
        geometry: &Geometry,
        fsid: [u8; 16],
        label: &str,
        created: i64,
    ) -> Result<Superblock> {
        let mut padded = [0; LABEL_MAX];
        padded
            .get_mut(..label.len())
            .ok_or(Error::Invalid("the label is longer than 64 bytes"))?
            .copy_from_slice(label.as_bytes());
        Ok(Superblock {
            magic: MAGIC,
            version: FORMAT_VERSION.into(),
            block_size: geometry.block_size.into(),
            fsid,
            zone_size: geometry.zone_size.into(),
            zone_capacity: geometry.zone_capacity.into(),
            zones: geometry.zones.into(),
            generation: 0.into(),
            created: created.into(),
            label: padded,
            reserved: [0; 4],
            crc: 0.into(),
        })
    }

    /// The label, as text.
    #[must_use]
    pub fn label(&self) -> String {
        let end = self.label.iter().position(|b| *b == 0).unwrap_or(LABEL_MAX);
        String::from_utf8_lossy(&self.label[..end]).into_owned()
    }

    /// Seconds since 1970 when the filesystem was made.
    #[must_use]
    pub fn created(&self) -> i64 {
        self.created.get()
    }

    fn checksum(&self) -> u32 {
        let mut copy = *self;
        copy.crc = 0.into();
        checksum::crc32c(copy.as_bytes())
    }

    /// The block that holds it, zero behind the structure.
    #[must_use]
    pub fn to_block(&self) -> Vec<u8> {
        let mut copy = *self;
        copy.crc = copy.checksum().into();
        let mut block = vec![0; BLOCK_SIZE];
        block[..size_of::<Superblock>()].copy_from_slice(copy.as_bytes());
        block
    }

    /// Whether a block starts like a superblock of any version.
    #[must_use]
    pub fn looks_like(block: &[u8]) -> bool {
        block.starts_with(&MAGIC)
    }

    /// Reads and checks a superblock against the device it was found on.
    ///
    /// # Errors
    /// [`Error::BadImage`] naming what is wrong.
    pub fn parse(block: &[u8], geometry: &Geometry) -> Result<Superblock> {
        let (this, rest) = Superblock::read_from_prefix(block)
            .map_err(|_| Error::BadImage("the superblock is cut short".into()))?;
        if this.magic != MAGIC {
            return Err(Error::BadImage(
                "no WarrenFS filesystem (no superblock magic)".into(),
            ));
        }
        if this.version.get() != FORMAT_VERSION {
            return Err(Error::BadImage(format!(
                "format version {} (this build reads version {FORMAT_VERSION})",
                this.version
            )));
        }
        if this.crc.get() != this.checksum() || rest.iter().any(|b| *b != 0) {
            return Err(Error::BadImage("the superblock's checksum is wrong".into()));
        }
        let same = this.block_size.get() == geometry.block_size
            && this.zones.get() == geometry.zones
            && this.zone_size.get() == geometry.zone_size
            && this.zone_capacity.get() == geometry.zone_capacity;
        if !same {
            return Err(Error::BadImage(format!(
                "the filesystem was made for {} zones of {} blocks (capacity {}, block size {}), the device has {} of {} ({}, {})",
                this.zones,
                this.zone_size,
                this.zone_capacity,
                this.block_size,
                geometry.zones,
                geometry.zone_size,
                geometry.zone_capacity,
                geometry.block_size,
            )));
        }
        Ok(this)
    }
}
