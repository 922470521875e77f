//! Our own.

use super::{Engine, Mode, Options};
use ::vmcache::{IndexOptions, Kv};
use kv_workload::{IndexStore, Problem, Records};
use std::path::Path;

pub(super) fn open(dir: &Path, options: Options) -> Result<IndexStore, Problem> {
    let index = IndexOptions {
        cache_bytes: options.pool_bytes as usize,
        ..IndexOptions::default()
    };
    Ok(IndexStore {
        kv: Kv::open(&dir.join("index"), index)?,
        durable: options.mode == Mode::Durable,
    })
}

impl Engine for IndexStore {
    fn load(&self, records: Records) -> Result<(), Problem> {
        self.kv.bulk_load(records.sorted().map(Ok))?;
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<(), Problem> {
        Ok(self.kv.close()?)
    }
}
