//! The data descriptor of an image: O_DIRECT where the host allows it, buffered where not.
//!
//! Callers' slices that direct I/O cannot take go through an aligned bounce buffer of the calling
//! thread. No locks; any number of threads.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::buffer::{ALIGNMENT, DmaBuffer};
use crate::host;

/// Longest piece that goes through a bounce buffer at once.
const BOUNCE_BYTES: usize = 256 << 10;

thread_local! {
    static BOUNCE: RefCell<Option<DmaBuffer>> = const { RefCell::new(None) };
}

pub(crate) struct DirectFile {
    file: File,
    /// Alignment direct I/O demands of memory; `None` when I/O is buffered.
    memory_alignment: Option<usize>,
}

impl DirectFile {
    /// Opens `path` for I/O in units of `block` bytes.
    pub(crate) fn open(path: &Path, read_only: bool, block: usize) -> io::Result<DirectFile> {
        let mut options = OpenOptions::new();
        options.read(true).write(!read_only);
        if let Ok(file) = options.clone().custom_flags(libc::O_DIRECT).open(path)
            && let Some((memory, offset)) = direct_alignment(&file)
            && offset <= block
            && memory <= ALIGNMENT
        {
            return Ok(DirectFile {
                file,
                memory_alignment: Some(memory),
            });
        }
        let file = options.open(path)?;
        tracing::debug!(path = %path.display(), "no direct I/O here, going through the page cache");
        Ok(DirectFile {
            file,
            memory_alignment: None,
        })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn is_direct(&self) -> bool {
        self.memory_alignment.is_some()
    }

    /// Whether memory is aligned as the file wants it.
    pub(crate) fn takes(&self, slice: &[u8]) -> bool {
        self.memory_alignment
            .is_none_or(|alignment| slice.as_ptr().addr().is_multiple_of(alignment))
    }

    /// Reads whole blocks at a multiple of the block size.
    pub(crate) fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if self.takes(buf) {
            return host::read_at(&self.file, buf, offset);
        }
        with_bounce(|bounce| {
            let mut at = offset;
            for piece in buf.chunks_mut(BOUNCE_BYTES) {
                let bounce = &mut bounce[..piece.len()];
                host::read_at(&self.file, bounce, at)?;
                piece.copy_from_slice(bounce);
                at += piece.len() as u64;
            }
            Ok(())
        })
    }

    /// Writes whole blocks at a multiple of the block size.
    pub(crate) fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        if self.takes(data) {
            return host::write_at(&self.file, data, offset);
        }
        with_bounce(|bounce| {
            let mut at = offset;
            for piece in data.chunks(BOUNCE_BYTES) {
                let bounce = &mut bounce[..piece.len()];
                bounce.copy_from_slice(piece);
                host::write_at(&self.file, bounce, at)?;
                at += piece.len() as u64;
            }
            Ok(())
        })
    }
}

fn with_bounce<R>(run: impl FnOnce(&mut [u8]) -> R) -> R {
    BOUNCE.with_borrow_mut(|slot| run(slot.get_or_insert_with(|| DmaBuffer::new(BOUNCE_BYTES))))
}

/// Alignment direct I/O to `file` needs: (of memory, of offsets and lengths). `None` if the host
/// says that there is no direct I/O; page alignment if it does not say.
fn direct_alignment(file: &File) -> Option<(usize, usize)> {
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    let mask = libc::STATX_DIOALIGN;
    // SAFETY: an empty path with AT_EMPTY_PATH means the descriptor; `stat` has room for the result.
    let stat = unsafe {
        let flags = libc::AT_EMPTY_PATH;
        if libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            flags,
            mask,
            stat.as_mut_ptr(),
        ) != 0
        {
            return Some((ALIGNMENT, ALIGNMENT));
        }
        stat.assume_init()
    };
    if stat.stx_mask & mask == 0 {
        return Some((ALIGNMENT, ALIGNMENT));
    }
    let (memory, offset) = (
        stat.stx_dio_mem_align as usize,
        stat.stx_dio_offset_align as usize,
    );
    (memory != 0 && offset != 0).then_some((memory, offset))
}
