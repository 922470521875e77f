//! The control socket of a running mount: how `stats`, `zones`, `scrub` and `umount` reach the
//! daemon.
//!
//! One socket per mount, `/run/warren/MAJOR-MINOR.sock`, named after the device number of the
//! mount, in a directory only its owner may enter. A connection carries one request and its
//! replies, a line of JSON each. A connection that watches is answered by its end, which comes
//! when the daemon has closed the device.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::fuse::mountinfo::DeviceNumber;
use crate::offload::Offload;
use crate::volume::Volume;

/// Longest request, in bytes.
const REQUEST_LEN_MAX: u64 = 4096;
/// How long after a connection that could not be served the next is looked for.
const RETRY: Duration = Duration::from_millis(100);

/// What can be asked of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Request {
    /// Its identity and usage.
    Info,
    /// Its counters.
    Stats,
    /// Its zone table.
    Zones,
    /// To read and verify all live blocks.
    Scrub,
    /// To make everything durable.
    Sync,
    /// To keep the connection open until the device is closed.
    Watch,
}

/// A line of the answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Reply {
    /// How far the work is; more follows.
    Progress(u64, u64),
    /// The report that was asked for.
    Done(Value),
    /// Why there is none.
    Failed(String),
}

/// Where the socket of a mount is.
fn socket_path(device: DeviceNumber) -> PathBuf {
    directory().join(format!("{}-{}.sock", device.major, device.minor))
}

fn directory() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return "/run/warren".into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(runtime) => Path::new(&runtime).join("warren"),
        None => format!("/tmp/warren-{}", nix::unistd::geteuid()).into(),
    }
}

/// The listening end; removes the socket when dropped.
pub(super) struct Server {
    path: PathBuf,
    /// Held while the last references are dropped: no answer is in the making then.
    mount: Arc<Mutex<Served>>,
}

/// What is asked about, while it is there.
#[derive(Default)]
struct Served {
    volume: Weak<Volume>,
    offload: Weak<Offload>,
}

impl Served {
    fn get(&self) -> Option<(Arc<Volume>, Arc<Offload>)> {
        Some((self.volume.upgrade()?, self.offload.upgrade()?))
    }
}

impl Server {
    /// Starts to answer for a mount, which it does not keep alive.
    pub(super) fn start(
        device: DeviceNumber,
        volume: &Arc<Volume>,
        offload: &Arc<Offload>,
    ) -> io::Result<Server> {
        let directory = directory();
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)?;
        let path = socket_path(device);
        // A daemon that died left its socket; the kernel gives device numbers again.
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        let mount = Arc::new(Mutex::new(Served {
            volume: Arc::downgrade(volume),
            offload: Arc::downgrade(offload),
        }));
        let served = Arc::clone(&mount);
        thread::Builder::new()
            .name("control".into())
            .spawn(move || accept(&listener, &served))?;
        Ok(Server { path, mount })
    }

    /// Ends the answers that still need the volume. Connections that watch stay open.
    pub(super) fn stop(&self) {
        *self.mount.lock() = Served::default();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Left behind it does no harm: the next mount of this number replaces it.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn accept(listener: &UnixListener, mount: &Arc<Mutex<Served>>) {
    for connection in listener.incoming() {
        let mount = Arc::clone(mount);
        let spawned = connection.and_then(|connection| {
            thread::Builder::new()
                .name("control".into())
                .spawn(move || serve(connection, &mount))
        });
        if let Err(error) = spawned {
            tracing::warn!("control connection: {error}");
            // Out of descriptors or threads: whoever waits is still there to be accepted.
            thread::sleep(RETRY);
        }
    }
}

fn serve(connection: UnixStream, mount: &Mutex<Served>) {
    let mut line = String::new();
    let mut reader = BufReader::new((&connection).take(REQUEST_LEN_MAX));
    if reader.read_line(&mut line).is_err() {
        return;
    }
    let reply = match serde_json::from_str(&line) {
        Ok(Request::Watch) => {
            // Blocks until the watcher goes away; when this process ends, the watcher knows.
            let _ = (&connection).read(&mut [0]);
            return;
        }
        Ok(request) => match mount.lock().get() {
            Some((volume, offload)) => carry_out(request, &volume, &offload, &|done, total| {
                let _ = send(&connection, &Reply::Progress(done, total));
            }),
            None => Reply::Failed("the mount is being closed".into()),
        },
        Err(error) => Reply::Failed(format!("bad request: {error}")),
    };
    // Whoever asked may have gone; that is no concern of ours.
    let _ = send(&connection, &reply);
}

fn send(mut connection: &UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    connection.write_all(&line)
}

fn carry_out(
    request: Request,
    volume: &Volume,
    offload: &Offload,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Reply {
    let store = volume.store();
    let report = match request {
        Request::Info => Ok(serde_json::to_value(store.info())),
        Request::Stats => {
            let mut stats = store.stats();
            stats.groups.extend(offload.stats());
            Ok(serde_json::to_value(stats))
        }
        Request::Zones => store.zone_table().map(serde_json::to_value),
        Request::Scrub => Ok(serde_json::to_value(store.scrub(progress))),
        Request::Sync => volume.sync().map(serde_json::to_value),
        Request::Watch => Ok(Ok(Value::Null)),
    };
    match report {
        Ok(Ok(report)) => Reply::Done(report),
        Ok(Err(error)) => Reply::Failed(error.to_string()),
        Err(error) => Reply::Failed(error.to_string()),
    }
}

/// Asks the daemon of a mount, and hands its progress on.
///
/// # Errors
/// When there is no daemon, or it reports an error.
pub(super) fn ask(
    device: DeviceNumber,
    request: Request,
    progress: &mut dyn FnMut(u64, u64),
) -> io::Result<Value> {
    let connection = open(device, request)?;
    for line in BufReader::new(connection).lines() {
        match serde_json::from_str(&line?)? {
            Reply::Progress(done, total) => progress(done, total),
            Reply::Done(report) => return Ok(report),
            Reply::Failed(problem) => return Err(io::Error::other(problem)),
        }
    }
    Err(io::Error::other("the daemon ended before it answered"))
}

fn open(device: DeviceNumber, request: Request) -> io::Result<UnixStream> {
    let mut connection = UnixStream::connect(socket_path(device))?;
    let mut line = serde_json::to_vec(&request)?;
    line.push(b'\n');
    connection.write_all(&line)?;
    Ok(connection)
}

/// A watch on a daemon.
pub(super) struct Watch(Option<UnixStream>);

impl Watch {
    /// Starts to watch the daemon of a mount. If none answers there is nothing to wait for.
    pub(super) fn start(device: DeviceNumber) -> Watch {
        Watch(open(device, Request::Watch).ok())
    }

    /// Waits until the daemon has closed its device and ended.
    pub(super) fn wait(self) {
        if let Some(mut connection) = self.0 {
            // Nothing is ever sent: this returns at the end of the connection, however it ends.
            let _ = connection.read(&mut [0]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_replies_are_single_lines_of_json() {
        assert_eq!(
            serde_json::to_string(&Request::Stats).unwrap(),
            r#""stats""#
        );
        let reply = Reply::Failed("two\nlines".into());
        let line = serde_json::to_string(&reply).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Reply>(&line).unwrap(), reply);
    }

    #[test]
    fn a_mount_without_a_daemon_is_not_waited_for() {
        let nowhere = DeviceNumber {
            major: u32::MAX,
            minor: u32::MAX,
        };
        Watch::start(nowhere).wait();
        assert!(ask(nowhere, Request::Stats, &mut |_, _| {}).is_err());
    }
}
