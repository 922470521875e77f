//! Processes, as `/proc` shows them: who makes a request, what it may do, what it has open.
//!
//! A request names the thread that made it. A process is identified by its PID and the time it
//! started, since PIDs are used again.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::OnceLock;

use crate::error::{Error, Result};
use crate::volume::types::Credentials;

/// Most generations between a process and the ancestor it is looked for.
const GENERATIONS_MAX: usize = 256;

const CAP_DAC_OVERRIDE: u64 = 1 << 1;
const CAP_DAC_READ_SEARCH: u64 = 1 << 2;

/// A process: its PID, which is used again, and when it started (in clock ticks since boot).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ProcessId {
    /// Number of the thread group.
    pub(super) pid: u32,
    /// When it started.
    pub(super) started: u64,
}

/// What `/proc/PID/stat` tells.
struct Stat {
    parent: u32,
    started: u64,
}

/// What `/proc/TID/status` tells.
struct Status {
    thread_group: u32,
    user_ids: Vec<u32>,
    groups: Vec<u32>,
    capabilities: u64,
}

impl ProcessId {
    /// The process with this PID, or that a thread with this number belongs to.
    ///
    /// # Errors
    /// `NoProcess`.
    pub(super) fn of(thread: u32) -> Result<ProcessId> {
        let status = Status::read(thread).ok_or(Error::NoProcess(thread))?;
        ProcessId::leading(status.thread_group)
    }

    /// The process with this PID.
    fn leading(pid: u32) -> Result<ProcessId> {
        let stat = Stat::read(pid).ok_or(Error::NoProcess(pid))?;
        Ok(ProcessId {
            pid,
            started: stat.started,
        })
    }

    /// Whether a thread belongs to it. `false` if the thread is gone.
    #[must_use]
    pub(super) fn has_thread(self, thread: u32) -> bool {
        let path = format!("/proc/{}/task/{thread}", self.pid);
        (thread == self.pid || fs::exists(path).unwrap_or(false)) && self.is_alive()
    }

    /// Whether it is still the process with its PID.
    #[must_use]
    pub(super) fn is_alive(self) -> bool {
        Stat::read(self.pid).is_some_and(|stat| stat.started == self.started)
    }

    /// How many generations it is away from an `ancestor`; `None` if that is none.
    #[must_use]
    pub(super) fn generations_to(self, ancestor: ProcessId) -> Option<usize> {
        let mut at = self;
        for generation in 1..=GENERATIONS_MAX {
            let stat = Stat::read(at.pid).filter(|stat| stat.started == at.started)?;
            if stat.parent <= 1 {
                return None;
            }
            let started = Stat::read(stat.parent)?.started;
            if started > at.started {
                // Another process, with a number that was used again.
                return None;
            }
            at = ProcessId {
                pid: stat.parent,
                started,
            };
            if at == ancestor {
                return Some(generation);
            }
        }
        None
    }

    /// A descriptor that becomes readable when the process ends.
    ///
    /// # Errors
    /// `NoProcess` if it has ended.
    pub(super) fn watch(self) -> Result<OwnedFd> {
        // SAFETY: pidfd_open takes numbers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0) };
        let fd = i32::try_from(fd)
            .ok()
            .filter(|fd| *fd >= 0)
            .ok_or(Error::NoProcess(self.pid))?;
        // SAFETY: the call has just returned this descriptor, and nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // The descriptor is of this very process if that is there after the descriptor was made.
        match self.is_alive() {
            true => Ok(fd),
            false => Err(Error::NoProcess(self.pid)),
        }
    }

    /// Whether all user IDs of the process are `uid`, so that this user may act for it.
    #[must_use]
    pub(super) fn belongs_to(self, uid: u32) -> bool {
        Status::read(self.pid).is_some_and(|status| {
            !status.user_ids.is_empty() && status.user_ids.iter().all(|id| *id == uid)
        })
    }

    /// The flags of open(2) of every descriptor it has of the inode `ino` on the filesystem with
    /// this device number.
    ///
    /// # Errors
    /// When its descriptors cannot be listed.
    pub(super) fn open_flags(self, (major, minor): (u32, u32), ino: u64) -> io::Result<Vec<i32>> {
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", self.pid))?;
        let device = format!("{major}:{minor}");
        let mounts: HashSet<&str> = mounts
            .lines()
            .filter_map(|line| {
                let mut fields = line.split(' ');
                let id = fields.next()?;
                (fields.nth(1)? == device).then_some(id)
            })
            .collect();
        let mut found = Vec::new();
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", self.pid))? {
            // A descriptor that is closed while we look is not there.
            let Ok(text) = entry.and_then(|entry| fs::read_to_string(entry.path())) else {
                continue;
            };
            let field = |name: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(name));
                line.map(str::trim)
            };
            let same = field("ino:").is_some_and(|number| number.parse() == Ok(ino))
                && field("mnt_id:").is_some_and(|id| mounts.contains(id));
            if same {
                let flags = field("flags:").and_then(|flags| i32::from_str_radix(flags, 8).ok());
                found.push(flags.unwrap_or(0));
            }
        }
        Ok(found)
    }
}

/// The process of the thread that made a request, and what it may do. `uid` and `gid` are those of
/// the request. `known` finds processes by their PIDs among those that are watched, and live.
///
/// Privileges count only in the user namespace of this process: in another one they say nothing
/// about files of this filesystem.
///
/// # Errors
/// `NoProcess` if the thread is gone.
pub(super) fn requester(
    thread: u32,
    (uid, gid): (u32, u32),
    known: impl Fn(u32) -> Option<ProcessId>,
) -> Result<(ProcessId, Credentials)> {
    let credentials = |groups, privileges: u64| Credentials {
        uid,
        gid,
        groups,
        overrides: privileges & CAP_DAC_OVERRIDE != 0,
        reads_all: privileges & CAP_DAC_READ_SEARCH != 0,
    };
    // The first thread of a process has its number. Of who may do anything, groups say nothing.
    if let Some(process) = known(thread)
        && let Some(capabilities) = effective_capabilities(thread)
        && capabilities & CAP_DAC_OVERRIDE != 0
        && same_user_namespace(thread)
    {
        return Ok((process, credentials(Vec::new(), capabilities)));
    }
    let status = Status::read(thread).ok_or(Error::NoProcess(thread))?;
    let process = match known(status.thread_group) {
        Some(process) => process,
        None => ProcessId::leading(status.thread_group).map_err(|_| Error::NoProcess(thread))?,
    };
    let privileges = status.capabilities & (CAP_DAC_OVERRIDE | CAP_DAC_READ_SEARCH);
    let counts = privileges != 0 && same_user_namespace(thread);
    let privileges = if counts { privileges } else { 0 };
    Ok((process, credentials(status.groups, privileges)))
}

/// The capabilities a thread may use now: what `/proc` tells as `CapEff`, in a tenth of the time.
fn effective_capabilities(thread: u32) -> Option<u64> {
    /// `_LINUX_CAPABILITY_VERSION_3`: two words of each set.
    const VERSION: u32 = 0x2008_0522;
    /// Effective, permitted, inheritable.
    type Words = [u32; 3];
    let mut header = [VERSION, thread];
    let mut sets: [Words; 2] = Default::default();
    // SAFETY: both are as the call takes them for this version: the header, a version and a number
    // of a thread, and two triples of words, which it fills.
    let failed = unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()) };
    (failed == 0).then(|| u64::from(sets[1][0]) << 32 | u64::from(sets[0][0]))
}

/// A file of `/proc` about one process, whose size is not known before it is read. These are made
/// all at once, so that a read that does not fill its buffer has come to their end.
fn read_whole(path: &str) -> io::Result<Vec<u8>> {
    let mut file = fs::File::open(path)?;
    let (mut bytes, mut len) = (vec![0; 4096], 0);
    loop {
        if len == bytes.len() {
            bytes.resize(2 * len, 0);
        }
        match file.read(&mut bytes[len..]) {
            Ok(got) if len + got < bytes.len() => {
                len += got;
                break;
            }
            Ok(got) => len += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

fn same_user_namespace(thread: u32) -> bool {
    static OURS: OnceLock<Option<PathBuf>> = OnceLock::new();
    let ours = OURS.get_or_init(|| fs::read_link("/proc/self/ns/user").ok());
    let theirs = fs::read_link(format!("/proc/{thread}/ns/user")).ok();
    theirs.is_some() && theirs == *ours
}

impl Stat {
    fn read(pid: u32) -> Option<Stat> {
        Stat::parse(&read_whole(&format!("/proc/{pid}/stat")).ok()?)
    }

    /// The name of the program, in parentheses, may hold anything, parentheses included.
    fn parse(bytes: &[u8]) -> Option<Stat> {
        let behind = bytes.iter().rposition(|&byte| byte == b')')?;
        let text = std::str::from_utf8(bytes.get(behind + 2..)?).ok()?;
        let mut fields = text.split(' ');
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        let started = fields.nth(17)?.parse().ok()?;
        // A zombie has ended; only its parent has not noticed yet.
        (!matches!(state, "Z" | "X")).then_some(Stat { parent, started })
    }
}

impl Status {
    fn read(thread: u32) -> Option<Status> {
        // The name of the program may be no text.
        let bytes = read_whole(&format!("/proc/{thread}/status")).ok()?;
        Status::parse(&String::from_utf8_lossy(&bytes))
    }

    fn parse(text: &str) -> Option<Status> {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.map(str::trim)
        };
        let numbers = |list: &str| {
            list.split_whitespace()
                .filter_map(|number| number.parse().ok())
                .collect()
        };
        Some(Status {
            thread_group: field("Tgid:")?.parse().ok()?,
            user_ids: numbers(field("Uid:")?),
            groups: numbers(field("Groups:")?),
            capabilities: u64::from_str_radix(field("CapEff:")?, 16).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn myself() -> ProcessId {
        ProcessId::of(std::process::id()).unwrap()
    }

    #[test]
    fn a_thread_leads_to_its_process() {
        let me = myself();
        let elsewhere = std::thread::spawn(|| {
            // SAFETY: gettid has no arguments and cannot fail.
            let thread = unsafe { libc::gettid() } as u32;
            (thread, ProcessId::of(thread).unwrap())
        });
        let (thread, process) = elsewhere.join().unwrap();
        assert_eq!(process, me);
        assert_ne!(thread, me.pid);
        // SAFETY: as above.
        assert!(me.has_thread(unsafe { libc::gettid() } as u32));
        assert!(!me.has_thread(1));
    }

    #[test]
    fn a_known_process_may_do_what_an_unknown_one_may() {
        let me = myself();
        let who = |known: bool| {
            // SAFETY: neither has arguments or can fail.
            let ids = unsafe { (libc::geteuid(), libc::getegid()) };
            requester(me.pid, ids, |pid| (known && pid == me.pid).then_some(me)).unwrap()
        };
        let ((first, unknown), (second, known)) = (who(false), who(true));
        assert_eq!((first, second), (me, me));
        let rights = |c: &Credentials| (c.uid, c.gid, c.overrides, c.reads_all);
        assert_eq!(rights(&unknown), rights(&known));
        assert!(known.overrides || known.groups == unknown.groups);
        let status = Status::read(me.pid).unwrap();
        assert_eq!(effective_capabilities(me.pid), Some(status.capabilities));
        assert_eq!(effective_capabilities(0x7fff_fff0), None);
    }

    #[test]
    fn descent_goes_through_the_living_only() {
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 100 & echo $!; read x"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = io::BufReader::new(shell.stdout.take().unwrap());
        io::BufRead::read_line(&mut out, &mut line).unwrap();
        let child = ProcessId::of(shell.id()).unwrap();
        let grandchild = ProcessId::of(line.trim().parse().unwrap()).unwrap();
        assert_eq!(child.generations_to(myself()), Some(1));
        assert_eq!(grandchild.generations_to(myself()), Some(2));
        assert_eq!(myself().generations_to(child), None);
        assert_eq!(child.generations_to(child), None);
        let reused = ProcessId {
            started: child.started + 1,
            ..child
        };
        assert_eq!(grandchild.generations_to(reused), None);
        shell.kill().unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while child.is_alive() {
            assert!(std::time::Instant::now() < until, "a zombie has ended");
            std::thread::yield_now();
        }
        assert_eq!(grandchild.generations_to(myself()), None);
        shell.wait().unwrap();
        assert_eq!(child.watch().unwrap_err().errno(), libc::ESRCH);
        Command::new("kill").arg(line.trim()).status().unwrap();
    }

    #[test]
    fn open_descriptors_are_found_by_inode() {
        use std::os::unix::fs::MetadataExt;
        let file = tempfile::tempfile().unwrap();
        let seen = file.metadata().unwrap();
        let device = (libc::major(seen.dev()), libc::minor(seen.dev()));
        let flags = myself().open_flags(device, seen.ino()).unwrap();
        assert_eq!(flags.len(), 1);
        assert_eq!(flags[0] & libc::O_ACCMODE, libc::O_RDWR);
        assert!(myself().open_flags((0, 0), seen.ino()).unwrap().is_empty());
    }

    #[test]
    fn names_of_programs_do_not_confuse() {
        let line = b"7 (a) S (b)) R 3 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4242 9 9\n";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((stat.parent, stat.started), (3, 4242));
        assert!(Stat::parse(b"7 (a) Z 3").is_none());
        assert!(Stat::parse(b"").is_none());
    }

    #[test]
    fn a_process_that_does_not_exist_is_named() {
        assert!(matches!(
            ProcessId::of(0x7fff_fff0),
            Err(Error::NoProcess(_))
        ));
    }
}
