use crate::device::DeviceQueue;
use crate::error::Result;
use crate::queue::SyncQueue;
use std::sync::Arc;
pub(super) fn queue(device: &super::FileDevice, _depth: u32) -> Result<Box<dyn DeviceQueue>> {
    Ok(Box::new(SyncQueue::new(Arc::new(device.clone()))))
}
