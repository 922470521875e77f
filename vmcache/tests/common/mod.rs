//! A medium with faults: files whose writes are volatile until a sync, cut off at any operation.
//!
//! A power cut keeps what was synced, and of every later write each 512-byte sector or not, at random
//! from a seed. Optionally single writes fail without an end, as on a full disk. The first file has atomic
//! writes: a session's are volatile until its commit, of which a cut leaves all or nothing.

#![allow(dead_code, reason = "each test uses a part")]

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::io;
use std::sync::{Arc, Mutex};
use vmcache::{AtomicStorage, Storage};

const SECTOR_BYTES: usize = 512;

#[derive(Default, Clone)]
struct File {
    /// What a reader sees.
    current: Vec<u8>,
    /// What survives for certain.
    durable: Vec<u8>,
    /// Writes since the last sync, in order.
    pending: Vec<(usize, Vec<u8>)>,
    /// What the file was when the session began that is under way.
    before_session: Option<Vec<u8>>,
    /// The power was cut in the commit of a session.
    committing: bool,
    /// Writes that made the file longer.
    extensions: u64,
}

#[derive(Default)]
struct State {
    files: [File; 3],
    operations: u64,
    cut_at: Option<u64>,
    is_cut: bool,
    /// Of a hundred writes so many fail, in an order that the seed determines.
    failures_percent: u32,
    failures: Option<StdRng>,
}

/// A disk with three files.
#[derive(Clone, Default)]
pub(crate) struct Disk {
    state: Arc<Mutex<State>>,
}

/// One of the files.
pub(crate) struct DiskFile {
    disk: Disk,
    which: usize,
}

fn put(bytes: &mut Vec<u8>, offset: usize, from: &[u8]) {
    if bytes.len() < offset + from.len() {
        bytes.resize(offset + from.len(), 0);
    }
    bytes[offset..offset + from.len()].copy_from_slice(from);
}

impl Disk {
    pub(crate) fn file(&self, which: usize) -> Arc<dyn Storage> {
        self.disk_file(which)
    }

    /// The first file, to be used by atomic writes.
    pub(crate) fn atomic_file(&self) -> Arc<dyn AtomicStorage> {
        self.disk_file(0)
    }

    fn disk_file(&self, which: usize) -> Arc<DiskFile> {
        Arc::new(DiskFile {
            disk: self.clone(),
            which,
        })
    }

    /// Writes and syncs so far.
    pub(crate) fn operations(&self) -> u64 {
        self.state.lock().unwrap().operations
    }

    /// Cuts the power in the given write or sync, counted from now.
    pub(crate) fn cut_after(&self, operations: u64) {
        let mut state = self.state.lock().unwrap();
        state.cut_at = Some(state.operations + operations);
    }

    pub(crate) fn fail_writes(&self, percent: u32, seed: u64) {
        let mut state = self.state.lock().unwrap();
        state.failures_percent = percent;
        state.failures = Some(StdRng::seed_from_u64(seed));
    }

    pub(crate) fn flip_byte(&self, which: usize, at: usize, bits: u8) {
        let mut state = self.state.lock().unwrap();
        state.files[which].current[at] ^= bits;
        state.files[which].durable[at] ^= bits;
    }

    /// A disk of its own, with the same contents.
    pub(crate) fn copy(&self) -> Disk {
        let files = self.state.lock().unwrap().files.clone();
        Disk {
            state: Arc::new(Mutex::new(State {
                files,
                ..State::default()
            })),
        }
    }

    /// Writes so far that made a file longer.
    pub(crate) fn extensions(&self, which: usize) -> u64 {
        self.state.lock().unwrap().files[which].extensions
    }

    pub(crate) fn bytes(&self, which: usize) -> Vec<u8> {
        self.state.lock().unwrap().files[which].current.clone()
    }

    pub(crate) fn set_bytes(&self, which: usize, bytes: Vec<u8>) {
        let mut state = self.state.lock().unwrap();
        state.files[which] = File {
            durable: bytes.clone(),
            current: bytes,
            ..File::default()
        };
    }

    /// What is on the disk when the power comes back.
    pub(crate) fn after_cut(&self, seed: u64) -> Disk {
        let mut rng = StdRng::seed_from_u64(seed);
        // From losing everything that was not synced to losing nothing.
        let kept = [0.0, 0.1, 0.5, 0.9, 1.0][rng.random_range(0..5)];
        let state = self.state.lock().unwrap();
        let files = state.files.clone().map(|file| {
            if file.committing && rng.random() {
                return File {
                    durable: file.current.clone(),
                    current: file.current,
                    ..File::default()
                };
            }
            let mut bytes = file.durable;
            for (offset, written) in file.pending {
                for (index, sector) in written.chunks(SECTOR_BYTES).enumerate() {
                    if rng.random_bool(kept) {
                        put(&mut bytes, offset + index * SECTOR_BYTES, sector);
                    }
                }
            }
            // Where the end of the file was extended, whole pages exist.
            bytes.resize(bytes.len().next_multiple_of(4096), 0);
            File {
                current: bytes.clone(),
                durable: bytes,
                ..File::default()
            }
        });
        Disk {
            state: Arc::new(Mutex::new(State {
                files,
                ..State::default()
            })),
        }
    }
}

impl State {
    /// Counts an operation; false in the one in which the power is cut.
    fn operation(&mut self) -> io::Result<bool> {
        if self.is_cut {
            return Err(io::Error::other("the power is cut"));
        }
        self.operations += 1;
        self.is_cut = self.cut_at == Some(self.operations);
        Ok(!self.is_cut)
    }
}

impl Storage for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state.lock().unwrap().files[self.which]
            .current
            .len() as u64)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let state = self.disk.state.lock().unwrap();
        if state.is_cut {
            return Err(io::Error::other("the power is cut"));
        }
        let bytes = &state.files[self.which].current;
        let from = bytes
            .get(offset as usize..)
            .and_then(|bytes| bytes.get(..into.len()));
        into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state.lock().unwrap();
        let completes = state.operation()?;
        let percent = f64::from(state.failures_percent) / 100.0;
        if completes
            && state
                .failures
                .as_mut()
                .is_some_and(|rng| rng.random_bool(percent))
        {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = &mut state.files[self.which];
        if file.before_session.is_none() {
            file.pending.push((offset as usize, from.to_vec()));
        }
        file.extensions += u64::from(offset as usize + from.len() > file.current.len());
        put(&mut file.current, offset as usize, from);
        if completes {
            Ok(())
        } else {
            Err(io::Error::other("the power is cut"))
        }
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state.lock().unwrap();
        if !state.operation()? {
            return Err(io::Error::other("the power is cut"));
        }
        let file = &mut state.files[self.which];
        file.durable.clone_from(&file.current);
        file.pending.clear();
        Ok(())
    }
}

impl AtomicStorage for DiskFile {
    fn start(&self) -> io::Result<()> {
        let mut state = self.disk.state.lock().unwrap();
        if state.is_cut {
            return Err(io::Error::other("the power is cut"));
        }
        let file = &mut state.files[self.which];
        assert!(file.before_session.is_none(), "one session at a time");
        file.before_session = Some(file.current.clone());
        Ok(())
    }

    fn commit(&self) -> io::Result<()> {
        let mut state = self.disk.state.lock().unwrap();
        let completes = state.operation()?;
        let file = &mut state.files[self.which];
        assert!(file.before_session.take().is_some(), "there is a session");
        if !completes {
            file.committing = true;
            return Err(io::Error::other("the power is cut"));
        }
        file.durable.clone_from(&file.current);
        file.pending.clear();
        Ok(())
    }

    fn abort(&self) -> io::Result<()> {
        let file = &mut self.disk.state.lock().unwrap().files[self.which];
        if let Some(before) = file.before_session.take() {
            file.current = before;
        }
        Ok(())
    }
}
