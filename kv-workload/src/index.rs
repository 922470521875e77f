//! An index file of vmcache under load.

use crate::run::{Problem, Store};
use std::ops::ControlFlow;
use vmcache::Kv;

/// A store of vmcache, and when its writes are durable.
pub struct IndexStore {
    /// The store; clones of the handle may be used beside the load.
    pub kv: Kv,
    /// A write is durable before it is acknowledged, in a commit that it may share with others. Else it
    /// is with the next [`Store::sync`].
    pub durable: bool,
}

impl Store for IndexStore {
    fn read(&self, key: &[u8], out: &mut Vec<u8>) -> Result<bool, Problem> {
        out.clear();
        Ok(self.kv.get_into(key, out)?)
    }

    fn write(&self, key: &[u8], value: &[u8]) -> Result<(), Problem> {
        self.kv.set(key, value)?;
        match self.durable {
            true => self.sync(),
            false => Ok(()),
        }
    }

    fn scan(
        &self,
        from: &[u8],
        count: usize,
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<(), Problem> {
        let scanned = self.kv.for_first(count, from.., |key, value| {
            visit(key, value);
            ControlFlow::Continue(())
        });
        Ok(scanned?)
    }

    fn sync(&self) -> Result<(), Problem> {
        Ok(self.kv.commit()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Plan, Records, Until, Workload, run};
    use vmcache::IndexOptions;

    #[test]
    fn every_load_runs_on_an_index_file_with_and_without_durable_writes() {
        let dir = tempfile::tempdir().unwrap();
        for durable in [false, true] {
            let path = dir.path().join(format!("durable-{durable}"));
            let kv = Kv::open(&path, IndexOptions::default()).unwrap();
            let records = Records {
                loaded: 3000,
                value_bytes: 100,
                seed: 7,
            };
            kv.bulk_load(records.sorted().map(Ok)).unwrap();
            let store = IndexStore { kv, durable };
            let mut inserted = 0;
            for workload in Workload::ALL {
                let plan = Plan {
                    workload,
                    records,
                    inserted,
                    threads: 2,
                    until: Until::Operations(300),
                    seed: 7,
                    sync_every: None,
                };
                inserted = run(&store, &plan).unwrap().inserted;
            }
            let report = store.kv.check().unwrap();
            assert_eq!(report.trees[0].1.entries, 3000 + inserted);
            store.kv.close().unwrap();
        }
    }
}
