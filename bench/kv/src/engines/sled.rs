//! sled.

use super::{Engine, Mode, Options, copy_out};
use ::sled::{Config, Db};
use kv_workload::{Problem, Records, Store};
use std::path::Path;

pub(super) struct Sled {
    entries: Db,
    mode: Mode,
}

impl Sled {
    pub(super) fn open(dir: &Path, options: Options) -> Result<Sled, Problem> {
        let config = Config::new()
            .path(dir.join("sled"))
            .cache_capacity(options.pool_bytes);
        Ok(Sled {
            // Flushed by `sync`, not by a thread of its own.
            entries: config.flush_every_ms(None).open()?,
            mode: options.mode,
        })
    }
}

impl Store for Sled {
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
            let (key, value) = entry?;
            visit(&key, &value);
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), Problem> {
        self.entries.flush()?;
        Ok(())
    }
}

impl Engine for Sled {
    fn load(&self, records: Records) -> Result<(), Problem> {
        for (key, value) in records.sorted() {
            self.entries.insert(key, value)?;
        }
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<(), Problem> {
        self.sync()
    }
}
