//! Our own.

use super::{Engine, Mode, Options};
use ::vmcache::{IndexOptions, Kv};
use kv_workload::{Problem, Records, Store};
use std::ops::ControlFlow;
use std::path::Path;

pub(super) struct Vmcache {
    kv: Kv,
    mode: Mode,
}

impl Vmcache {
    pub(super) fn open(dir: &Path, options: Options) -> Result<Vmcache, Problem> {
        let index = IndexOptions {
            cache_bytes: options.pool_bytes as usize,
            ..IndexOptions::default()
        };
        Ok(Vmcache {
            kv: Kv::open(&dir.join("index"), index)?,
            mode: options.mode,
        })
    }
}

impl Store for Vmcache {
    fn read(&self, key: &[u8], out: &mut Vec<u8>) -> Result<bool, Problem> {
        out.clear();
        Ok(self.kv.get_into(key, out)?)
    }

    fn write(&self, key: &[u8], value: &[u8]) -> Result<(), Problem> {
        self.kv.set(key, value)?;
        match self.mode {
            Mode::Durable => Ok(self.kv.commit()?),
            Mode::Relaxed => Ok(()),
        }
    }

    fn scan(
        &self,
        from: &[u8],
        count: usize,
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<(), Problem> {
        let mut left = count;
        self.kv.for_each(from.., |key, value| {
            visit(key, value);
            left -= 1;
            match left {
                0 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        })?;
        Ok(())
    }

    fn sync(&self) -> Result<(), Problem> {
        Ok(self.kv.commit()?)
    }
}

impl Engine for Vmcache {
    fn load(&self, records: Records) -> Result<(), Problem> {
        self.kv.bulk_load(records.sorted().map(Ok))?;
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<(), Problem> {
        Ok(self.kv.close()?)
    }
}
