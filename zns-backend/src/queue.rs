//! A queue over any device that carries out each request as it is submitted.
//!
//! Gives devices without asynchronous I/O of their own the queue interface with its exact
//! semantics: completions wait, in order of execution, until somebody takes them. It never fills.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::device::{Completion, DeviceQueue, Request, ZonedDevice};
use crate::error::{Error, Result};
use crate::geometry::{Geometry, Lba};

/// A [`DeviceQueue`] that executes synchronously.
pub struct SyncQueue {
    device: Arc<dyn ZonedDevice>,
    done: Mutex<VecDeque<Completion>>,
    arrived: Condvar,
}

impl SyncQueue {
    /// A queue to `device`.
    #[must_use]
    pub fn new(device: Arc<dyn ZonedDevice>) -> SyncQueue {
        SyncQueue {
            device,
            done: Mutex::new(VecDeque::new()),
            arrived: Condvar::new(),
        }
    }
}

/// Carries a request out.
pub(crate) fn execute(device: &dyn ZonedDevice, token: u64, request: Request) -> Completion {
    let geometry = device.geometry();
    let (result, buffer) = match request {
        Request::Read { lba, mut buffer } => {
            (device.read(lba, &mut buffer).map(|()| lba), Some(buffer))
        }
        Request::Write {
            lba,
            data,
            blocks,
            durable,
        } => {
            let written = payload(geometry, &data, blocks).and_then(|payload| match durable {
                true => device.write_durable(lba, payload),
                false => device.write(lba, payload),
            });
            (written.map(|()| lba), None)
        }
        Request::Append { zone, data, blocks } => {
            let appended =
                payload(geometry, &data, blocks).and_then(|payload| device.append(zone, payload));
            (appended, None)
        }
        Request::Flush => (device.flush().map(|()| Lba(0)), None),
    };
    Completion {
        token,
        result,
        buffer,
    }
}

/// The first `blocks` blocks of `data`.
///
/// # Errors
/// [`Error::BadLength`] if there are none or the buffer is shorter.
pub(crate) fn payload<'a>(geometry: &Geometry, data: &'a [u8], blocks: u64) -> Result<&'a [u8]> {
    usize::try_from(blocks)
        .ok()
        .filter(|&blocks| blocks > 0)
        .and_then(|blocks| blocks.checked_mul(geometry.block_bytes()))
        .and_then(|len| data.get(..len))
        .ok_or(Error::BadLength(data.len()))
}

impl DeviceQueue for SyncQueue {
    fn submit(&self, token: u64, request: Request) -> Result<()> {
        let completion = execute(&*self.device, token, request);
        self.done.lock().push_back(completion);
        self.arrived.notify_one();
        Ok(())
    }

    fn wait(&self, min: usize, out: &mut Vec<Completion>) -> Result<()> {
        let mut done = self.done.lock();
        let mut taken = 0;
        loop {
            taken += done.len();
            out.extend(done.drain(..));
            if taken >= min {
                return Ok(());
            }
            self.arrived.wait(&mut done);
        }
    }
}
