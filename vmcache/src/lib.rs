//! Virtual-memory assisted buffer management, and crash-safe B-tree index files on it.
//!
//! Three layers, each usable by itself:
//!
//! - [`BufferPool`]: pages of any file or block device at fixed places of one reserved mapping, with
//!   optimistic, shared and exclusive latches, clock eviction and a hard bound on memory.
//! - [`IndexFile`]: named B-trees in one file. A [`Tree`] has point operations, batches, scans in both
//!   directions and bulk load, from many threads at once; [`IndexFile::commit`] is atomic and durable.
//! - [`Kv`]: a key-value store with cheap handles and background tidying.
//!
//! ```
//! # fn main() -> vmcache::Result<()> {
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("index");
//! let kv = vmcache::Kv::open(&path, vmcache::IndexOptions::default())?;
//! kv.set(b"rabbit", b"warren")?;
//! kv.set(b"badger", b"sett")?;
//! kv.commit()?;
//! assert_eq!(kv.get(b"rabbit")?.as_deref(), Some(&b"warren"[..]));
//! let keys: Vec<_> = kv.scan("a".."z").map(|entry| entry.map(|(key, _)| key)).collect::<Result<_, _>>()?;
//! assert_eq!(keys, [b"badger", b"rabbit"]);
//! kv.close()
//! # }
//! ```
//!
//! The format, and what a crash can and cannot do, is in `docs/vmcache.md`.

mod btree;
mod commit;
mod error;
mod index;
mod kv;
mod meta;
mod page;
mod pool;
mod space;
mod storage;

pub use btree::{INLINE_BYTES_MAX, KEY_BYTES_MAX, TreeStats, VALUE_BYTES_MAX};
pub use commit::{AtomicWrites, Commit, CommitBatch, CommitMethod, Journal, JournalOptions};
pub use error::{Error, Result};
pub use index::{
    CheckReport, CommitKind, IndexFile, IndexOptions, Range, Tree, WriteBatch, is_index_file,
    remove_index_file,
};
pub use kv::Kv;
pub use meta::{TREE_NAME_BYTES_MAX, TREES_MAX};
pub use page::{PAGE_BYTES, PageBuf, PageId, PageRead};
pub use pool::{
    BufferPool, Changed, Exclusive, FRAMES_MIN, InPlace, Optimistic, PageStore, PageView,
    PoolOptions, PoolStats, Shared,
};
pub use storage::{AtomicStorage, FileStorage, MemoryStorage, ReadOp, Storage, WriteOp};
