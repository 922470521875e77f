//! Every emulated device under the conformance suite, in several geometries.

use std::sync::Arc;

use zns_backend::conformance::{check_all, geometries};
use zns_backend::{Clock, FaultDevice, FileDevice, MemDevice, Profile, TimedDevice};

#[test]
fn memory_device_conforms() {
    for geometry in geometries() {
        check_all(|| Arc::new(MemDevice::new(geometry).expect("device")));
    }
}

#[test]
fn fault_device_without_faults_conforms() {
    for geometry in geometries() {
        check_all(|| {
            let device = MemDevice::new(geometry).expect("device");
            Arc::new(FaultDevice::new(device).expect("fault device"))
        });
        check_all(|| {
            let device = MemDevice::new(geometry).expect("device");
            let device = FaultDevice::new(device).expect("fault device");
            Arc::new(device.with_durable_writes())
        });
    }
}

#[test]
fn device_rebuilt_from_a_log_conforms() {
    use zns_backend::{CrashPoint, Survival};
    for geometry in geometries() {
        check_all(|| {
            let device = FaultDevice::new(MemDevice::new(geometry).expect("device"));
            let log = device.expect("fault device").log();
            Arc::new(
                log.device_after(CrashPoint::after(0), Survival::None)
                    .expect("rebuild"),
            )
        });
    }
}

#[test]
fn file_device_conforms() {
    for directory in [".", "/dev/shm"] {
        let directory = tempfile::tempdir_in(directory).expect("directory");
        let image = directory.path().join("image");
        for geometry in geometries() {
            check_all(|| Arc::new(FileDevice::create(&image, &geometry, true).expect("device")));
        }
    }
}

#[test]
fn timed_device_conforms() {
    for geometry in geometries() {
        check_all(|| {
            let device = Arc::new(MemDevice::new(geometry).expect("device"));
            Arc::new(TimedDevice::new(device, Profile::ZN540, Clock::Virtual))
        });
    }
}
