//! How a commit becomes atomic and durable: a seam with room for more than one way.
//!
//! A commit method is the page store under the pool: it decides where a page goes that has to leave
//! memory before its commit, and where it is read from. A commit hands it all dirty pages and asks for
//! two things in order: that they be written, after which the pages may be changed and evicted again,
//! and that they be durable. [`Journal`] does it with a redo log beside the file. On a filesystem with
//! atomic writes, [`AtomicWrites`] does it with none.

mod atomic;
mod journal;
mod log;
mod record;
mod recovery;

pub use atomic::AtomicWrites;
pub use journal::{Journal, JournalOptions};

pub(crate) use recovery::random_id;

use crate::error::Result;
use crate::page::{PageBuf, PageId};
use crate::pool::PageStore;

/// What a commit establishes, apart from its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Consecutive, from one.
    pub number: u64,
    /// Pages of the file from then on.
    pub page_count: u64,
    /// About how many pages it has.
    pub pages_expected: usize,
}

/// A way to make commits atomic and durable.
///
/// Pages written between two commits, by [`PageStore::write_back`] or by the second commit, are in the
/// file together or not at all when it is opened after a crash.
pub trait CommitMethod: PageStore {
    /// What it is, for people.
    fn name(&self) -> &'static str;

    /// Whether the file was never committed to.
    fn is_new(&self) -> bool;

    /// The file's identity: of a new file, the one to use.
    fn file_id(&self) -> u64;

    /// Whether page 0 has to tell the number of the last commit, and so is a part of each.
    fn counts_commits(&self) -> bool;

    /// Starts a commit. Until it is written or dropped, and longer where the method needs it,
    /// [`PageStore::write_back`] waits.
    fn begin(&self, commit: Commit) -> Box<dyn CommitBatch + '_>;

    /// Whether [`CommitMethod::tidy`] has something to do.
    fn is_untidy(&self) -> bool;

    /// Whether committing should wait for [`CommitMethod::tidy`].
    fn is_overdue(&self) -> bool;

    /// Does what is not urgent, next to commits and everything else.
    ///
    /// # Errors
    /// Of the medium; it can be tried again.
    fn tidy(&self) -> Result<()>;

    /// After the last commit, with nobody else there: leaves nothing for tidying.
    ///
    /// # Errors
    /// Of the medium; the next opening does the rest.
    fn close(&self) -> Result<()>;
}

/// A commit under way. Dropped before it is durable, it did not happen.
pub trait CommitBatch {
    /// Adds a sealed image.
    ///
    /// # Errors
    /// Of the medium.
    fn add(&mut self, page: PageId, image: PageBuf) -> Result<()>;

    /// Writes what was added: from then on the pages read back as they were added.
    ///
    /// # Errors
    /// Of the medium: the commit did not happen, or is undecided until the next one, which may follow
    /// unless the error is [`crate::Error::Latched`].
    fn write(&mut self) -> Result<()>;

    /// Makes the commit durable.
    ///
    /// # Errors
    /// Of the medium: it is open whether the commit happened.
    fn sync(self: Box<Self>) -> Result<()>;
}
