//! The stores, each with settings that promise the same: so much memory, and when a write is durable.
//!
//! RocksDB is left out for what building it takes; LSM trees are represented by fjall.

mod fjall;
mod lmdb;
mod redb;
mod sled;
mod vmcache;

use kv_workload::{Problem, Records, Store};
use std::path::Path;

/// When a write is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Before it is acknowledged.
    Durable,
    /// With the next [`Store::sync`].
    Relaxed,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Mode::Durable => "durable",
            Mode::Relaxed => "relaxed",
        }
    }
}

/// How to open a store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Memory for its caches.
    pub(crate) pool_bytes: u64,
    pub(crate) mode: Mode,
    /// There is more data than memory for it.
    pub(crate) is_large: bool,
}

/// A store with what a load generator does not need.
pub(crate) trait Engine: Store {
    /// Loads sorted records into the empty store.
    fn load(&self, records: Records) -> Result<(), Problem>;

    /// Closes it in order.
    fn close(self: Box<Self>) -> Result<(), Problem>;
}

/// Replaces `out` by a value that a store found; false if it found none.
fn copy_out(found: Option<&[u8]>, out: &mut Vec<u8>) -> bool {
    out.clear();
    out.extend_from_slice(found.unwrap_or_default());
    found.is_some()
}

/// Records per transaction where a store loads in transactions.
const LOAD_BATCH: usize = 50_000;

/// Opens a store by its name, or makes it.
pub(crate) fn open(name: &str, dir: &Path, options: Options) -> Result<Box<dyn Engine>, Problem> {
    Ok(match name {
        "vmcache" => Box::new(vmcache::open(dir, options)?),
        "lmdb" => Box::new(lmdb::Lmdb::open(dir, options)?),
        "redb" => Box::new(redb::Redb::open(dir, options)?),
        "fjall" => Box::new(fjall::Fjall::open(dir, options)?),
        "sled" => Box::new(sled::Sled::open(dir, options)?),
        _ => return Err(format!("no store is called {name}").into()),
    })
}

/// The records in batches of [`LOAD_BATCH`].
fn batches(records: Records) -> impl Iterator<Item = Vec<([u8; kv_workload::KEY_BYTES], Vec<u8>)>> {
    let mut sorted = records.sorted();
    std::iter::from_fn(move || {
        let batch: Vec<_> = sorted.by_ref().take(LOAD_BATCH).collect();
        (!batch.is_empty()).then_some(batch)
    })
}
