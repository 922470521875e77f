//! Reading the chunks of a zone one after the other.

use zns_backend::ZonedDevice;

use crate::checksum;
use crate::error::Result;
use crate::format::chunk::{Body, CHUNK_BLOCKS, ChunkInfo, parse_header};
use crate::types::{BLOCK_SIZE, Lba};

/// A chunk found on the device, its header and body verified.
pub(crate) struct FoundChunk {
    pub(crate) info: ChunkInfo,
    pub(crate) body: Body,
}

/// The chunk at `lba`, of which at most `limit` blocks can be read. `None`: there is none, or it
/// is torn.
pub(crate) fn read_chunk(
    device: &dyn ZonedDevice,
    fsid: &[u8; 16],
    lba: Lba,
    limit: u64,
) -> Result<Option<FoundChunk>> {
    if limit == 0 {
        return Ok(None);
    }
    let mut block = vec![0; BLOCK_SIZE];
    device.read(lba, &mut block)?;
    let Some(header) = parse_header(&block, lba, fsid) else {
        return Ok(None);
    };
    if header.info.blocks > limit {
        return Ok(None);
    }
    let (tail_lba, tail_blocks) = header.tail();
    let mut tail = vec![0; tail_blocks as usize * BLOCK_SIZE];
    if tail_blocks > 0 {
        device.read(tail_lba, &mut tail)?;
    }
    match header.body(&tail) {
        Ok(body) => Ok(Some(FoundChunk {
            info: header.info,
            body,
        })),
        Err(error) => {
            tracing::debug!("{error}");
            Ok(None)
        }
    }
}

impl FoundChunk {
    /// Address of the first payload block.
    pub(crate) fn payload_lba(&self) -> Lba {
        self.info.lba.plus(1)
    }

    /// Whether it stands elsewhere than it was first meant to.
    pub(crate) fn is_moved(&self) -> bool {
        self.info.origin != self.info.lba
    }

    /// Whether every payload block is what the payload table says.
    pub(crate) fn payload_is_sound(&self, device: &dyn ZonedDevice) -> Result<bool> {
        let blocks = self.info.payload_blocks;
        if blocks == 0 {
            return Ok(true);
        }
        debug_assert!(blocks < CHUNK_BLOCKS);
        let mut payload = device.buffer(blocks as usize * BLOCK_SIZE);
        let bytes = &mut payload[..blocks as usize * BLOCK_SIZE];
        device.read(self.payload_lba(), bytes)?;
        let sound = bytes
            .chunks_exact(BLOCK_SIZE)
            .zip(&self.body.crcs)
            .all(|(block, crc)| checksum::crc32c(block) == *crc);
        Ok(sound)
    }
}
