//! LMDB through heed. It has no cache of its own: its memory is the page cache, which the limit on the
//! process bounds. One writer at a time, no group commit.

use super::{Engine, Mode, Options, batches, copy_out};
use heed::types::Bytes;
use heed::{Database, Env, EnvFlags, EnvOpenOptions, PutFlags, WithoutTls};
use kv_workload::{Problem, Records, Store};
use std::ops::Bound;
use std::path::Path;

/// Address space for the file.
const MAP_BYTES: usize = 64 << 30;

pub(super) struct Lmdb {
    env: Env<WithoutTls>,
    entries: Database<Bytes, Bytes>,
}

impl Lmdb {
    pub(super) fn open(dir: &Path, options: Options) -> Result<Lmdb, Problem> {
        let mut flags = EnvFlags::empty();
        if options.mode == Mode::Relaxed {
            flags |= EnvFlags::NO_SYNC;
        }
        if options.is_large {
            flags |= EnvFlags::NO_READ_AHEAD;
        }
        let mut env = EnvOpenOptions::new().read_txn_without_tls();
        env.map_size(MAP_BYTES).max_readers(64);
        // SAFETY: the flags do not change what memory may be touched; the directory is used by this
        // process alone, and nobody else changes the file that is mapped.
        let env = unsafe { env.flags(flags).open(dir)? };
        let mut txn = env.write_txn()?;
        let entries = env.create_database(&mut txn, None)?;
        txn.commit()?;
        Ok(Lmdb { env, entries })
    }
}

impl Store for Lmdb {
    fn read(&self, key: &[u8], out: &mut Vec<u8>) -> Result<bool, Problem> {
        let txn = self.env.read_txn()?;
        Ok(copy_out(self.entries.get(&txn, key)?, out))
    }

    fn write(&self, key: &[u8], value: &[u8]) -> Result<(), Problem> {
        let mut txn = self.env.write_txn()?;
        self.entries.put(&mut txn, key, value)?;
        Ok(txn.commit()?)
    }

    fn scan(
        &self,
        from: &[u8],
        count: usize,
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<(), Problem> {
        let txn = self.env.read_txn()?;
        let bounds = (Bound::Included(from), Bound::Unbounded);
        for entry in self.entries.range(&txn, &bounds)?.take(count) {
            let (key, value) = entry?;
            visit(key, value);
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), Problem> {
        Ok(self.env.force_sync()?)
    }
}

impl Engine for Lmdb {
    fn load(&self, records: Records) -> Result<(), Problem> {
        for batch in batches(records) {
            let mut txn = self.env.write_txn()?;
            for (key, value) in batch {
                self.entries
                    .put_with_flags(&mut txn, PutFlags::APPEND, &key, &value)?;
            }
            txn.commit()?;
        }
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<(), Problem> {
        self.env.force_sync()?;
        self.env.prepare_for_closing().wait();
        Ok(())
    }
}
