//! redb. One writer at a time, no group commit.

use super::{Engine, Mode, Options, batches, copy_out};
use ::redb::{Database, Durability, ReadableDatabase, TableDefinition};
use kv_workload::{Problem, Records, Store};
use std::path::Path;

const ENTRIES: TableDefinition<&[u8], &[u8]> = TableDefinition::new("kv");

pub(super) struct Redb {
    database: Database,
    durability: Durability,
}

impl Redb {
    pub(super) fn open(dir: &Path, options: Options) -> Result<Redb, Problem> {
        let mut builder = Database::builder();
        builder.set_cache_size(options.pool_bytes as usize);
        let store = Redb {
            database: builder.create(dir.join("redb"))?,
            durability: match options.mode {
                Mode::Durable => Durability::Immediate,
                Mode::Relaxed => Durability::None,
            },
        };
        let txn = store.database.begin_write()?;
        drop(txn.open_table(ENTRIES)?);
        txn.commit()?;
        Ok(store)
    }
}

impl Store for Redb {
    fn read(&self, key: &[u8], out: &mut Vec<u8>) -> Result<bool, Problem> {
        let txn = self.database.begin_read()?;
        let found = txn.open_table(ENTRIES)?.get(key)?;
        Ok(copy_out(found.as_ref().map(|value| value.value()), out))
    }

    fn write(&self, key: &[u8], value: &[u8]) -> Result<(), Problem> {
        let mut txn = self.database.begin_write()?;
        txn.set_durability(self.durability)?;
        txn.open_table(ENTRIES)?.insert(key, value)?;
        Ok(txn.commit()?)
    }

    fn scan(
        &self,
        from: &[u8],
        count: usize,
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<(), Problem> {
        let txn = self.database.begin_read()?;
        for entry in txn.open_table(ENTRIES)?.range(from..)?.take(count) {
            let (key, value) = entry?;
            visit(key.value(), value.value());
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), Problem> {
        // A durable transaction makes those before it durable.
        Ok(self.database.begin_write()?.commit()?)
    }
}

impl Engine for Redb {
    fn load(&self, records: Records) -> Result<(), Problem> {
        for batch in batches(records) {
            let txn = self.database.begin_write()?;
            {
                let mut entries = txn.open_table(ENTRIES)?;
                for (key, value) in &batch {
                    entries.insert(key.as_slice(), value.as_slice())?;
                }
            }
            txn.commit()?;
        }
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<(), Problem> {
        drop(self.database);
        Ok(())
    }
}
