//! The devices these tests run on.

use std::sync::Arc;

use zns_backend::{Geometry, MemDevice, ZonedDevice};

/// Zones of 4 MiB, a little less of it writable, as many as make `mib`.
pub(crate) fn geometry(mib: u32) -> Geometry {
    Geometry {
        block_size: 4096,
        zones: mib / 4,
        zone_size: 1024,
        zone_capacity: 1000,
        max_open: 14,
        max_active: 14,
        max_append: 256,
    }
}

/// A fresh device in memory.
pub(crate) fn in_memory(mib: u32) -> Arc<dyn ZonedDevice> {
    Arc::new(MemDevice::new(geometry(mib)).expect("the geometry is possible"))
}
