//! Virtual-memory assisted buffer management, and crash-safe B-tree index files on it.
//!
//! - [`BufferPool`]: pages of any file or block device at fixed places of one reserved mapping, with
//!   optimistic, shared and exclusive latches, clock eviction and a hard bound on memory.

mod btree;
mod error;
mod page;
mod pool;
mod space;
mod storage;

pub use btree::{INLINE_BYTES_MAX, KEY_BYTES_MAX, TreeStats, VALUE_BYTES_MAX};
pub use error::{Error, Result};
pub use page::{PAGE_BYTES, PageBuf, PageId, PageRead};
pub use pool::{
    BufferPool, Changed, Exclusive, FRAMES_MIN, InPlace, Optimistic, PageStore, PageView,
    PoolOptions, PoolStats, Shared,
};
pub use storage::{FileStorage, MemoryStorage, ReadOp, Storage, WriteOp};
