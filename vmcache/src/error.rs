//! What can go wrong in this crate, as one enumeration.
//!
//! Errors are cheap to clone because a commit that several threads share fails for all of them. A
//! broken invariant of the code is an assertion; whatever the medium or the caller supplies is one of
//! these values.

use crate::page::PageId;
use std::io;
use std::sync::Arc;

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an input or output; nothing held in memory was lost.
    #[error("{action}: {source}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The refusal.
        source: Arc<io::Error>,
    },
    /// A page does not hold what was written to it.
    #[error("{page} is damaged: {what}")]
    Damaged {
        /// The page.
        page: PageId,
        /// What does not hold.
        what: &'static str,
    },
    /// The file, or its journal, is not one of ours or not of this version.
    #[error("not a usable index file: {0}")]
    Format(&'static str),
    /// A page number outside the address space that the pool was opened with.
    #[error("{0} lies beyond the largest size the file was opened with")]
    OutOfRange(PageId),
    /// The file has reached the largest size it was opened with.
    #[error("the file has reached its limit of {0} pages")]
    Full(u64),
    /// Every frame of the pool stayed latched or could not be written for too long.
    #[error("no frame of the buffer pool came free")]
    NoFrame,
    /// The options contradict each other or the machine.
    #[error("unusable option: {0}")]
    Option(&'static str),
    /// The key is longer than [`crate::KEY_BYTES_MAX`].
    #[error("a key of {0} bytes is too long")]
    KeyTooLong(usize),
    /// The value is longer than [`crate::VALUE_BYTES_MAX`].
    #[error("a value of {0} bytes is too long")]
    ValueTooLong(usize),
    /// A tree's name is empty, too long, or one too many.
    #[error("unusable tree name: {0}")]
    TreeName(&'static str),
    /// Bulk loading needs an empty tree and strictly ascending keys.
    #[error("bulk load: {0}")]
    BulkLoad(&'static str),
    /// An earlier failure left open what the medium holds, so nothing more is committed until the file
    /// is opened again, which returns it to the last commit. Reads go on.
    #[error("commits are refused after an earlier failure: {0}")]
    Latched(Arc<Error>),
}

impl Error {
    /// Wraps a refusal of the operating system with what was attempted.
    pub(crate) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io {
            action,
            source: Arc::new(source),
        }
    }

    pub(crate) fn damaged(page: PageId, what: &'static str) -> Error {
        Error::Damaged { page, what }
    }
}
