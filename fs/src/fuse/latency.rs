//! Keeps processors from halting while a client waits for one request after the other.
//!
//! A synchronous request crosses from client to daemon and back, and the device interrupts in
//! between; where each time a processor has to be woken from a halt first, that is most of what the
//! request costs (in a virtual machine a wake-up is an exit to the hypervisor on either side). So as
//! drivers of fast devices do, the mount asks for wake-ups without latency while requests keep coming,
//! through the kernel's PM QoS interface (`/dev/cpu_dma_latency`,
//! Documentation/power/pm_qos_interface.rst), and takes that back within [`CALM`] windows of the
//! last burst. Without the right to open that file, where no driver of idle states would heed it (most
//! virtual machines), or with `no_low_latency`, nothing happens.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{self, Thread};
use std::time::Duration;

const INTERFACE: &str = "/dev/cpu_dma_latency";
/// Names the driver of idle states; `none` or missing where there is none.
const DRIVER: &str = "/sys/devices/system/cpu/cpuidle/current_driver";
/// How often requests are counted while there are any.
const WINDOW: Duration = Duration::from_millis(5);
/// Requests in a window that make a burst.
const BURST: u32 = 10;
/// Windows without a burst after which processors may halt again.
const CALM: u32 = 4;
/// The request that constrains nothing, in microseconds.
const UNCONSTRAINED: i32 = i32::MAX;

/// What the event loops note requests in.
#[derive(Default)]
struct Requests {
    count: AtomicU32,
    /// The thread is counting; otherwise the next request wakes it.
    counting: AtomicBool,
}

/// Notes requests for the thread that watches them, which ends when this is dropped.
pub(super) struct Watch(Option<(Arc<Requests>, Thread)>);

impl Watch {
    /// One that watches nothing.
    pub(super) fn off() -> Watch {
        Watch(None)
    }

    /// Starts watching; without the kernel's interface, nothing is watched. Counting wakes a thread
    /// every few milliseconds, which is not done for nothing.
    pub(super) fn start() -> io::Result<Watch> {
        if !heeded(&fs::read_to_string(DRIVER).unwrap_or_default()) {
            tracing::debug!(
                "nothing would heed a wish for short wake-ups: no driver of idle states"
            );
            return Ok(Watch::off());
        }
        let interface = match OpenOptions::new().write(true).open(INTERFACE) {
            Ok(interface) => interface,
            Err(error) => {
                tracing::info!("cannot ask for short wake-ups: {INTERFACE}: {error}");
                return Ok(Watch::off());
            }
        };
        // Opening it is a request already, whose value is set when a burst comes.
        let mut latency = Latency {
            interface,
            held: false,
        };
        latency.set(UNCONSTRAINED);
        let requests = Arc::new(Requests::default());
        let watched = Arc::downgrade(&requests);
        let thread = thread::Builder::new()
            .name("latency".into())
            .spawn(move || watch(&watched, latency))?;
        Ok(Watch(Some((requests, thread.thread().clone()))))
    }

    /// A request begins.
    pub(super) fn note(&self) {
        if let Some((requests, thread)) = &self.0 {
            requests.count.fetch_add(1, Ordering::Relaxed);
            if !requests.counting.load(Ordering::Relaxed)
                && !requests.counting.swap(true, Ordering::AcqRel)
            {
                thread.unpark();
            }
        }
    }
}

/// Whether `driver`, as the kernel names it, chooses among idle states.
fn heeded(driver: &str) -> bool {
    !matches!(driver.trim(), "" | "none")
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some((requests, thread)) = self.0.take() {
            drop(requests);
            thread.unpark();
        }
    }
}

/// The request to the kernel; closing the file takes it back.
struct Latency {
    interface: File,
    held: bool,
}

impl Latency {
    fn set(&mut self, microseconds: i32) {
        if let Err(error) = self.interface.write_all(&microseconds.to_ne_bytes()) {
            tracing::debug!("{INTERFACE}: {error}");
        }
    }

    fn hold(&mut self, hold: bool) {
        if self.held != hold {
            self.held = hold;
            self.set(if hold { 0 } else { UNCONSTRAINED });
        }
    }
}

/// Counts the requests of one window after the other; none of its own doing keeps the mount.
fn watch(requests: &Weak<Requests>, mut latency: Latency) {
    let mut calm = 0;
    loop {
        let Some(current) = requests.upgrade() else {
            return;
        };
        if !current.counting.load(Ordering::Acquire) {
            drop(current);
            thread::park();
            continue;
        }
        if current.count.swap(0, Ordering::Relaxed) >= BURST {
            calm = 0;
            latency.hold(true);
        } else {
            calm += 1;
            if calm >= CALM {
                calm = 0;
                latency.hold(false);
                current.counting.store(false, Ordering::Release);
            }
        }
        drop(current);
        thread::sleep(WINDOW);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn only_a_driver_of_idle_states_heeds_the_wish() {
        assert!(heeded("haltpoll\n") && heeded("intel_idle\n"));
        assert!(!heeded("none\n") && !heeded(""));
    }

    #[test]
    fn the_thread_rests_without_requests_and_ends_with_the_watch() {
        let requests = Arc::new(Requests::default());
        let sink = OpenOptions::new().write(true).open("/dev/null").unwrap();
        let watched = Arc::downgrade(&requests);
        let latency = Latency {
            interface: sink,
            held: false,
        };
        let thread = thread::spawn(move || watch(&watched, latency));
        let watch = Watch(Some((Arc::clone(&requests), thread.thread().clone())));
        watch.note();
        assert!(requests.counting.load(Ordering::Relaxed));
        let begun = Instant::now();
        while requests.counting.load(Ordering::Relaxed) {
            assert!(begun.elapsed() < Duration::from_secs(10), "it rests");
            thread::sleep(WINDOW);
        }
        drop(requests);
        drop(watch);
        thread.join().unwrap();
    }
}
