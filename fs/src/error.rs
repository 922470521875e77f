//! The one error type of the filesystem, and the one place where an errno is chosen.

use crate::types::{Ino, Lba};

/// Result of a filesystem operation.
pub type Result<T> = std::result::Result<T, Error>;

/// What there is none left of when a limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scarce {
    /// Places: something must go first.
    Space,
    /// Memory.
    Memory,
    /// Turns: trying again later will do.
    Turn,
}

/// Everything a filesystem operation can answer besides success.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such file, directory entry or inode.
    #[error("no such file or directory")]
    NotFound,
    /// The name or object exists already.
    #[error("file exists")]
    Exists,
    /// A directory was needed.
    #[error("not a directory")]
    NotDirectory,
    /// A directory was given where none is allowed.
    #[error("is a directory")]
    IsDirectory,
    /// The directory still has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// An argument makes no sense.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// The name is longer than 255 bytes.
    #[error("name too long")]
    NameTooLong,
    /// The file would grow beyond the largest file size.
    #[error("file too large")]
    TooLarge,
    /// The inode has as many links as it can.
    #[error("too many links")]
    TooManyLinks,
    /// No space left.
    #[error("no space left on device")]
    NoSpace,
    /// No such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// An attribute value or list does not fit.
    #[error("attribute value too large")]
    AttributeTooLarge,
    /// The caller's buffer is too small.
    #[error("buffer too small")]
    BufferTooSmall,
    /// The operation is not permitted on this object.
    #[error("operation not permitted")]
    NotPermitted,
    /// The caller lacks the permission.
    #[error("permission denied")]
    Access,
    /// The operation is not supported.
    #[error("operation not supported: {0}")]
    Unsupported(&'static str),
    /// No data or hole at or after the offset (lseek).
    #[error("no such offset")]
    NoOffset,
    /// The filesystem is mounted read-only, or became so after an error.
    #[error("read-only filesystem")]
    ReadOnly,
    /// A commit failed; what was not durable before must be taken for lost.
    #[error("the commit failed, and the filesystem is read-only from now on")]
    CommitFailed,
    /// An atomic write cannot be committed, since a part of it is missing.
    #[error("a write failed, so that the atomic write it was part of did not happen")]
    AtomicWriteLost,
    /// What was read is not what had been written.
    #[error("corrupt {what}: {detail}")]
    Corrupt {
        /// The structure: catalog node, file block, checkpoint.
        what: &'static str,
        /// Which one, and what is wrong with it.
        detail: String,
    },
    /// A block of a file does not match its checksum.
    #[error("checksum mismatch in inode {ino} at byte {offset} (LBA {lba})")]
    BadBlock {
        /// The file.
        ino: Ino,
        /// Byte offset in it.
        offset: u64,
        /// Where the block was read.
        lba: Lba,
    },
    /// Too many symbolic links on the way to a file.
    #[error("too many symbolic links")]
    TooManySymlinks,
    /// There is no such process.
    #[error("there is no process {0}")]
    NoProcess(u32),
    /// It is in use in a way that is in the way.
    #[error("{0}")]
    Busy(&'static str),
    /// The value of an offload attribute is malformed.
    #[error("{0}")]
    BadRegistration(String),
    /// An object is no kernel at all.
    #[error("{0}")]
    NotExecutable(String),
    /// A kernel is refused.
    #[error("the kernel is refused: {0}")]
    KernelRefused(String),
    /// A kernel failed.
    #[error("{0}")]
    KernelFailed(String),
    /// A kernel ran out of time.
    #[error("{0}")]
    KernelTimedOut(String),
    /// A limit on what is shared is reached.
    #[error("the limit of {most} {what} {whose} is reached")]
    LimitReached {
        /// The limit.
        most: u64,
        /// Of what.
        what: &'static str,
        /// For whom.
        whose: &'static str,
        /// What there is none left of.
        scarce: Scarce,
    },
    /// There is not enough memory left for this.
    #[error("not enough memory for {0}")]
    NoMemory(&'static str),
    /// The image, its version or its geometry cannot be mounted.
    #[error("{0}")]
    BadImage(String),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] zns_backend::Error),
}

impl Error {
    /// The errno this error is reported as.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Error::NotFound => libc::ENOENT,
            Error::Exists => libc::EEXIST,
            Error::NotDirectory => libc::ENOTDIR,
            Error::IsDirectory => libc::EISDIR,
            Error::NotEmpty => libc::ENOTEMPTY,
            Error::Invalid(_) => libc::EINVAL,
            Error::NameTooLong => libc::ENAMETOOLONG,
            Error::TooLarge => libc::EFBIG,
            Error::TooManyLinks => libc::EMLINK,
            Error::NoSpace => libc::ENOSPC,
            Error::NoAttribute => libc::ENODATA,
            Error::AttributeTooLarge => libc::E2BIG,
            Error::BufferTooSmall => libc::ERANGE,
            Error::NotPermitted => libc::EPERM,
            Error::Access => libc::EACCES,
            Error::Unsupported(_) => libc::EOPNOTSUPP,
            Error::NoOffset => libc::ENXIO,
            Error::ReadOnly => libc::EROFS,
            Error::TooManySymlinks => libc::ELOOP,
            Error::NoProcess(_) => libc::ESRCH,
            Error::Busy(_) => libc::EBUSY,
            Error::BadRegistration(_) | Error::KernelRefused(_) => libc::EINVAL,
            Error::NotExecutable(_) => libc::ENOEXEC,
            Error::KernelTimedOut(_) => libc::ETIME,
            Error::NoMemory(_) => libc::ENOMEM,
            Error::LimitReached { scarce, .. } => match scarce {
                Scarce::Space => libc::ENOSPC,
                Scarce::Memory => libc::ENOMEM,
                Scarce::Turn => libc::EAGAIN,
            },
            Error::KernelFailed(_)
            | Error::CommitFailed
            | Error::AtomicWriteLost
            | Error::Corrupt { .. }
            | Error::BadBlock { .. }
            | Error::BadImage(_)
            | Error::Device(_) => libc::EIO,
        }
    }
}
