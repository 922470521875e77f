//! fjall, an LSM tree. Its memtables come out of the memory it may use.

use super::{Engine, Mode, Options, copy_out};
use ::fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use kv_workload::{Problem, Records, Store};
use std::path::Path;

pub(super) struct Fjall {
    database: Database,
    entries: Keyspace,
    mode: Mode,
}

impl Fjall {
    pub(super) fn open(dir: &Path, options: Options) -> Result<Fjall, Problem> {
        let memtable_bytes = options.pool_bytes / 8;
        let database = Database::builder(dir.join("fjall"))
            .cache_size(options.pool_bytes - 2 * memtable_bytes)
            .open()?;
        let entries = database.keyspace("kv", || {
            KeyspaceCreateOptions::default().max_memtable_size(memtable_bytes)
        })?;
        Ok(Fjall {
            database,
            entries,
            mode: options.mode,
        })
    }
}

impl Store for Fjall {
    fn read(&self, key: &[u8], out: &mut Vec<u8>) -> Result<bool, Problem> {
        Ok(copy_out(self.entries.get(key)?.as_deref(), out))
    }

    fn write(&self, key: &[u8], value: &[u8]) -> Result<(), Problem> {
        self.entries.insert(key, value)?;
        match self.mode {
            Mode::Durable => self.sync(),
            Mode::Relaxed => Ok(()),
        }
    }

    fn scan(
        &self,
        from: &[u8],
        count: usize,
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<(), Problem> {
        for entry in self.entries.range(from..).take(count) {
            let (key, value) = entry.into_inner()?;
            visit(&key, &value);
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), Problem> {
        Ok(self.database.persist(PersistMode::SyncData)?)
    }
}

impl Engine for Fjall {
    fn load(&self, records: Records) -> Result<(), Problem> {
        let mut ingestion = self.entries.start_ingestion()?;
        for (key, value) in records.sorted() {
            ingestion.write(key, value)?;
        }
        Ok(ingestion.finish()?)
    }

    fn close(self: Box<Self>) -> Result<(), Problem> {
        Ok(self.database.persist(PersistMode::SyncAll)?)
    }
}
