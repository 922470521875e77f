//! Statistics: for the owner of registrations, and for whoever runs the mount.

use std::collections::BTreeMap;

use csd_vm::Statistics;
use serde::Serialize;

use super::Offload;
use super::limits::Resource;
use super::registry::Registration;
use super::value::operation_name;
use crate::error::{Error, Result};
use crate::types::Ino;

/// What a registration is and did.
#[derive(Clone, Debug, Serialize)]
pub struct RegistrationReport {
    /// `read_stream`, ...
    pub operation: &'static str,
    /// The attribute's value.
    pub value: String,
    /// The process it belongs to.
    pub owner: u32,
    /// Bytes of the snapshot.
    pub snapshot_bytes: u64,
    /// What its executions did and cost.
    #[serde(flatten)]
    pub statistics: Statistics,
}

impl RegistrationReport {
    fn of(registration: &Registration) -> RegistrationReport {
        RegistrationReport {
            operation: operation_name(registration.operation),
            value: String::from_utf8_lossy(&registration.value).into_owned(),
            owner: registration.owner.pid,
            snapshot_bytes: registration.snapshot.size(),
            statistics: registration.activation.statistics(),
        }
    }
}

/// Counters by name, of what serialises to a flat object of numbers.
fn counters(of: &impl Serialize) -> BTreeMap<String, u64> {
    let value = serde_json::to_value(of).unwrap_or_default();
    let fields = value.as_object().into_iter().flatten();
    fields
        .filter_map(|(name, value)| Some((name.clone(), value.as_u64()?)))
        .collect()
}

impl Offload {
    /// What the registrations for a file did that a thread sees, as JSON.
    pub(super) fn statistics_of(&self, ino: Ino, thread: u32) -> Result<Vec<u8>> {
        let seen = self.seen_by(ino, thread);
        if seen.is_empty() {
            return Err(Error::NoAttribute);
        }
        let reports: Vec<_> = seen.iter().map(|r| RegistrationReport::of(r)).collect();
        serde_json::to_vec(&reports).map_err(|_| Error::Invalid("statistics"))
    }

    /// Counters of the device and of each registration, by group and name.
    #[must_use]
    pub fn stats(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        let mut groups = BTreeMap::new();
        let device = self.device.lock().clone();
        let mut totals = match &device {
            Some(device) => {
                let mut totals = counters(&device.statistics());
                totals.extend(counters(&device.counters()));
                totals
            }
            None => BTreeMap::new(),
        };
        totals.insert("registrations".into(), self.registry.count() as u64);
        totals.insert("requests_now".into(), self.flights.count() as u64);
        totals.insert(
            "view_bytes_kept".into(),
            self.accounts.used(Resource::ViewBytes),
        );
        groups.insert("kernels".into(), totals);
        for attachment in self.registry.all() {
            for registration in attachment.all() {
                let name = format!(
                    "kernel {} {} inode {} pid {}",
                    registration.number,
                    operation_name(registration.operation),
                    registration.ino,
                    registration.owner.pid
                );
                let mut counters = counters(&registration.activation.statistics());
                counters.insert("snapshot_bytes".into(), registration.snapshot.size());
                groups.insert(name, counters);
            }
        }
        groups
    }
}
