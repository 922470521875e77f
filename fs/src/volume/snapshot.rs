//! Files as they were at one moment, for readers that go to the device by themselves.
//!
//! A [`Version`] is the whole filesystem at a moment, with the checks that the kernel makes for
//! ordinary requests and cannot make here: resolving a path, and who may read or write what. A
//! [`FileSnapshot`] is one file of it, as runs of blocks with their addresses and checksums.
//!
//! Contents that live in the catalog have no address; the first reader that needs one has them
//! written to a block that belongs to this snapshot alone, so that nobody sees a change.

use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, OnceLock};

use super::types::{Credentials, FileKind};
use super::{Volume, acl, directory, file, inode, namespace};
use crate::checksum;
use crate::error::{Error, Result};
use crate::format::record::InodeRecord;
use crate::store::PinnedView;
use crate::store::extent::{Backing, for_each_extent};
use crate::types::{BLOCK, BLOCK_SIZE, Ino, Lba};
use zns_backend::ZonedDevice;

/// Most symbolic links on the way to a file, as in path_resolution(7).
const LINKS_MAX: usize = 40;
/// Longest path, links included, in bytes.
const PATH_LEN_MAX: usize = 65536;

/// What is wanted of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading it.
    Read,
    /// Writing it.
    Write,
}

/// The filesystem at a moment. Cheap to take and to copy; keeps what it refers to on the device.
#[derive(Clone)]
pub struct Version(Arc<PinnedView>);

/// Consecutive blocks of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Run {
    /// Reads as zeros.
    Hole {
        /// How many blocks.
        blocks: u64,
    },
    /// On the device.
    Mapped {
        /// Address of the first block.
        lba: Lba,
        /// CRC32C of every block.
        checksums: Vec<u32>,
    },
}

/// A regular file at a moment.
pub struct FileSnapshot {
    version: Version,
    ino: Ino,
    size: u64,
    /// Contents that live in the catalog, padded to a block, and where they have been placed.
    inline: Option<(Box<[u8; BLOCK_SIZE]>, OnceLock<Lba>)>,
}

impl Volume {
    /// The filesystem as it is now.
    #[must_use]
    pub fn version(&self) -> Version {
        Version(Arc::new(self.store.pinned_view()))
    }
}

impl Version {
    /// The inode that `path` names from the root of the filesystem, for somebody who may search
    /// the directories on the way. Symbolic links are followed; an absolute one starts at the root
    /// of the filesystem.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `Access`, `NameTooLong`, `TooManySymlinks`; device errors.
    pub fn resolve(&self, who: &Credentials, path: &[u8]) -> Result<Ino> {
        let mut rest = path.to_vec();
        let mut at = Ino::ROOT;
        let mut links = 0;
        loop {
            let start = rest.iter().position(|&byte| byte != b'/');
            let Some(start) = start else { return Ok(at) };
            let end = rest[start..].iter().position(|&byte| byte == b'/');
            let end = end.map_or(rest.len(), |len| start + len);
            let (name, behind) = (rest[start..end].to_vec(), rest[end..].to_vec());
            let parent = inode::load_directory(&*self.0, at)?;
            if !acl::permits(&*self.0, at, &parent, who, acl::SEARCH)? {
                return Err(Error::Access);
            }
            let next = match name.as_slice() {
                b"." => at,
                b".." => Ino(parent.parent),
                name => {
                    directory::check_name(name)?;
                    directory::find_entry(&*self.0, at, name)?.ino
                }
            };
            let found = inode::load_named(&*self.0, next)?;
            rest = behind;
            match inode::kind(&found) {
                FileKind::Symlink => {
                    let target = namespace::load_target(&*self.0, next, &found)?;
                    links += 1;
                    if links > LINKS_MAX || target.len() + rest.len() > PATH_LEN_MAX {
                        return Err(Error::TooManySymlinks);
                    }
                    if target.starts_with(b"/") {
                        at = Ino::ROOT;
                    }
                    rest = [target.as_slice(), &rest].concat();
                }
                FileKind::Directory => at = next,
                // A slash behind a file asks for a directory.
                _ if rest.is_empty() => return Ok(next),
                _ => return Err(Error::NotDirectory),
            }
        }
    }

    /// A regular file, for somebody who may do `wanted` with it.
    ///
    /// # Errors
    /// `NotFound`, `IsDirectory`, `Invalid` for what is neither; `Access`; device errors.
    pub fn file(&self, who: &Credentials, ino: Ino, wanted: Access) -> Result<FileSnapshot> {
        let inode = inode::load_file(&*self.0, ino)?;
        let want = match wanted {
            Access::Read => acl::READ,
            Access::Write => acl::WRITE,
        };
        if !acl::permits(&*self.0, ino, &inode, who, want)? {
            return Err(Error::Access);
        }
        let inline = if inode.has(InodeRecord::INLINE) {
            let bytes = file::load_inline(&*self.0, ino, &inode, inode.size as usize)?;
            let mut block = Box::new([0; BLOCK_SIZE]);
            block[..bytes.len()].copy_from_slice(&bytes);
            Some((block, OnceLock::new()))
        } else {
            None
        };
        Ok(FileSnapshot {
            version: self.clone(),
            ino,
            size: inode.size,
            inline,
        })
    }
}

impl FileSnapshot {
    /// The same file with nothing in it, for who may not read it.
    #[must_use]
    pub fn without_contents(self) -> FileSnapshot {
        FileSnapshot {
            size: 0,
            inline: None,
            ..self
        }
    }

    /// The file.
    #[must_use]
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// Its length in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// All its bytes, verified.
    ///
    /// # Errors
    /// `BadBlock`, device errors.
    pub fn read(&self) -> Result<Vec<u8>> {
        let len = self.size as usize;
        let mut bytes = match &self.inline {
            Some((block, _)) => block.to_vec(),
            None => {
                let mut bytes = vec![0; len.next_multiple_of(BLOCK_SIZE)];
                self.version.0.read_blocks(self.ino, 0, &mut bytes)?;
                bytes
            }
        };
        bytes.truncate(len);
        Ok(bytes)
    }

    /// All its bytes, verified, through the host's cache of the file that the device is: for what is
    /// read again and again. `None` where the device is no file, and where anything is wrong, which
    /// [`FileSnapshot::read`] then tells.
    #[must_use]
    pub fn read_cached(&self, device: &dyn ZonedDevice) -> Option<Vec<u8>> {
        if self.inline.is_some() {
            return None;
        }
        let blocks = self.size.div_ceil(BLOCK);
        let mut runs = Vec::new();
        self.runs(0, blocks, &mut runs).ok()?;
        let mut bytes = vec![0; (blocks * BLOCK) as usize];
        let mut rest = &mut bytes[..];
        for run in runs {
            let len = match &run {
                Run::Hole { blocks } => *blocks as usize * BLOCK_SIZE,
                Run::Mapped { checksums, .. } => checksums.len() * BLOCK_SIZE,
            };
            let (here, behind) = rest.split_at_mut_checked(len)?;
            if let Run::Mapped { lba, checksums } = run {
                let source = device.map_source(lba, checksums.len() as u64).ok()??;
                read_file(source.fd, source.offset, here)?;
                let sums = here.chunks_exact(BLOCK_SIZE).map(checksum::crc32c);
                if !sums.eq(checksums) {
                    return None;
                }
            }
            rest = behind;
        }
        bytes.truncate(self.size as usize);
        Some(bytes)
    }

    /// Appends to `out` the runs that make up the `blocks` blocks from `first` on. Every address is
    /// that of a block that has been written to the device. What lies behind the end is a hole.
    ///
    /// # Errors
    /// Device errors and `CommitFailed`; for contents from the catalog `NoSpace` and `ReadOnly`.
    pub fn runs(&self, first: u64, blocks: u64, out: &mut Vec<Run>) -> Result<()> {
        let end = first.saturating_add(blocks);
        let limit = end.min(self.size.div_ceil(BLOCK));
        let mut at = first;
        let hole = |out: &mut Vec<Run>, blocks| {
            if blocks > 0 {
                out.push(Run::Hole { blocks });
            }
        };
        if let Some((block, placed)) = &self.inline {
            if at == 0 && limit > 0 {
                let checksums = vec![checksum::crc32c(&block[..])];
                let lba = self.place(block, placed)?;
                out.push(Run::Mapped { lba, checksums });
                at = 1;
            }
            hole(out, end - at);
            return Ok(());
        }
        let mut mapped = Vec::new();
        for_each_extent(&*self.version.0, self.ino, first, limit, &mut |extent| {
            let extent = extent.slice(first, limit);
            if let Backing::Mapped { lba, crcs } = extent.backing {
                mapped.push((extent.start, lba, crcs));
            }
            ControlFlow::Continue(())
        })?;
        for (start, lba, checksums) in mapped {
            hole(out, start - at);
            at = start + checksums.len() as u64;
            let lba = self.version.0.on_device(lba)?;
            out.push(Run::Mapped { lba, checksums });
        }
        hole(out, end - at);
        Ok(())
    }

    fn place(&self, block: &[u8; BLOCK_SIZE], placed: &OnceLock<Lba>) -> Result<Lba> {
        if let Some(lba) = placed.get() {
            return Ok(*lba);
        }
        let lba = self.version.0.place(self.ino, block)?;
        // Another reader may have been faster; both copies stay where they are.
        Ok(*placed.get_or_init(|| lba))
    }
}

/// Fills `bytes` from `offset` of a file on, or gives up.
fn read_file(file: BorrowedFd<'_>, offset: u64, bytes: &mut [u8]) -> Option<()> {
    let mut done = 0;
    while done < bytes.len() {
        let rest = &mut bytes[done..];
        let at = libc::off_t::try_from(offset + done as u64).ok()?;
        // SAFETY: `rest` is writable for its length, and the descriptor is borrowed for the call.
        let got =
            unsafe { libc::pread(file.as_raw_fd(), rest.as_mut_ptr().cast(), rest.len(), at) };
        match usize::try_from(got) {
            Ok(got) if got > 0 => done += got,
            _ => return None,
        }
    }
    Some(())
}
