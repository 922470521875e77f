//! A file in memory, for indexes that need not outlive the process and for tests.

use super::Storage;
use parking_lot::RwLock;
use std::io;

/// Bytes in memory; nothing survives.
#[derive(Debug, Default)]
pub struct MemoryStorage {
    bytes: RwLock<Vec<u8>>,
}

impl MemoryStorage {
    /// A file of these bytes.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> MemoryStorage {
        MemoryStorage {
            bytes: RwLock::new(bytes),
        }
    }

    /// A copy of what the file holds.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.bytes.read().clone()
    }
}

impl Storage for MemoryStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.read().len() as u64)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes.read();
        let from = usize::try_from(offset)
            .ok()
            .and_then(|offset| bytes.get(offset..)?.get(..into.len()));
        into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        let start =
            usize::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let end = start
            .checked_add(from.len())
            .ok_or(io::ErrorKind::FileTooLarge)?;
        let mut bytes = self.bytes.write();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[start..end].copy_from_slice(from);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
