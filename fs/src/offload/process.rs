//! Processes, as `/proc` shows them: who makes a request, what it may do, what it has open.
//!
//! A request names the thread that made it. A process is identified by its PID and the time it
//! started, since PIDs are used again. A thread that waits for the answer to a request cannot be gone,
//! so what it is told to be then is certain.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Read};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;

use super::dying::Signals;
use super::limits::DESCRIPTORS_MAX;
use super::rights::{Rights, same_user_namespace};
use crate::error::{Error, Result};
use crate::volume::types::Credentials;

/// Most generations between a process and the ancestor it is looked for.
const GENERATIONS_MAX: usize = 256;

const CAP_DAC_OVERRIDE: u64 = 1 << 1;
const CAP_DAC_READ_SEARCH: u64 = 1 << 2;
/// Flag of a thread that has begun to end (PF_EXITING).
const EXITING: u64 = 4;

/// A process: its PID, which is used again, and when it started (in clock ticks since boot).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ProcessId {
    /// Number of the thread group.
    pub(super) pid: u32,
    /// When it started.
    pub(super) started: u64,
}

/// What `/proc/PID/stat` tells of who has not ended.
pub(super) struct Stat {
    parent: u32,
    pub(super) started: u64,
    /// It is about to end.
    pub(super) exiting: bool,
}

/// What `/proc/TID/status` tells.
pub(super) struct Status {
    pub(super) thread_group: u32,
    /// Real, effective, saved, and that of the filesystem.
    pub(super) users: Vec<u32>,
    pub(super) groups: Vec<u32>,
    pub(super) supplementary: Vec<u32>,
    effective: u64,
    pub(super) permitted: u64,
    pub(super) signals: Signals,
    pub(super) has_memory: bool,
}

/// How far processes are away from an ancestor. What was found out once is not looked up again.
pub(super) struct Descent {
    /// Generations, of those who descend from it.
    known: HashMap<ProcessId, Option<usize>>,
}

impl Descent {
    /// That from `ancestor`.
    pub(super) fn from(ancestor: ProcessId) -> Descent {
        Descent {
            known: HashMap::from([(ancestor, Some(0))]),
        }
    }

    /// How many generations a process is away; `None` if it does not descend from it.
    pub(super) fn generations(&mut self, process: ProcessId) -> Option<usize> {
        let mut path = Vec::new();
        let mut at = Some(process);
        let mut found = None;
        while let Some(next) = at.filter(|_| path.len() <= GENERATIONS_MAX) {
            if let Some(known) = self.known.get(&next) {
                found = *known;
                break;
            }
            path.push(next);
            at = next.parent();
        }
        for below in path.into_iter().rev() {
            found = found.map(|generations| generations + 1);
            self.known.insert(below, found);
        }
        found
    }
}

/// Who opened a file: never changes, whatever becomes of the process.
#[derive(Clone, Debug)]
pub(super) struct Opener {
    pub(super) process: ProcessId,
    /// As they were then.
    pub(super) rights: Arc<Rights>,
}

impl Opener {
    /// The process of a thread that waits for its file to be opened; `None` if it has no number
    /// here.
    pub(super) fn of(thread: u32) -> Option<Opener> {
        let status = Status::read(thread)?;
        Some(Opener {
            process: ProcessId::leading(status.thread_group).ok()?,
            rights: Arc::new(Rights::of(thread, &status)?),
        })
    }
}

/// The descriptors that a process has of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Descriptors {
    /// How many there are.
    Counted(usize),
    /// The process has more descriptors than are looked through.
    TooMany,
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
    pub(super) fn leading(pid: u32) -> Result<ProcessId> {
        let stat = Stat::read(pid).ok_or(Error::NoProcess(pid))?;
        Ok(ProcessId {
            pid,
            started: stat.started,
        })
    }

    /// Whether it is still the process with its PID.
    #[must_use]
    pub(super) fn is_alive(self) -> bool {
        Stat::read(self.pid).is_some_and(|stat| stat.started == self.started)
    }

    /// The process it descends from; `None` if either has ended, or if that is the first of all.
    fn parent(self) -> Option<ProcessId> {
        let stat = Stat::read(self.pid).filter(|stat| stat.started == self.started)?;
        if stat.parent <= 1 {
            return None;
        }
        let started = Stat::read(stat.parent)?.started;
        // Otherwise it is another process, with a number that was used again.
        (started <= self.started).then_some(ProcessId {
            pid: stat.parent,
            started,
        })
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
            !status.users.is_empty() && status.users.iter().all(|id| *id == uid)
        })
    }

    /// The descriptors it has of the inode `ino` on the filesystem with this device number. Those
    /// that only name the file (O_PATH) do not count.
    ///
    /// # Errors
    /// When its descriptors cannot be listed.
    pub(super) fn descriptors(
        self,
        (major, minor): (u32, u32),
        ino: u64,
    ) -> io::Result<Descriptors> {
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
        let mut found = 0;
        let entries = fs::read_dir(format!("/proc/{}/fdinfo", self.pid))?;
        for (count, entry) in entries.enumerate() {
            if count >= DESCRIPTORS_MAX {
                return Ok(Descriptors::TooMany);
            }
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
                found += usize::from(flags.unwrap_or(0) & libc::O_PATH == 0);
            }
        }
        Ok(Descriptors::Counted(found))
    }
}

/// The process of the thread that made a request, what it may do, and what it may become. `uid` and
/// `gid` are those of the request. `known` finds processes by their PIDs among those that are watched,
/// and live.
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
) -> Result<(Opener, Credentials)> {
    let credentials = |groups, privileges: u64| Credentials {
        uid,
        gid,
        groups,
        overrides: privileges & CAP_DAC_OVERRIDE != 0,
        reads_all: privileges & CAP_DAC_READ_SEARCH != 0,
    };
    // The first thread of a process has its number. Of who may do anything, groups say nothing.
    if let Some(process) = known(thread)
        && let Some((effective, permitted)) = capabilities(thread)
        && effective & CAP_DAC_OVERRIDE != 0
        && let Some(rights) = Rights::almighty((uid, gid), permitted)
        && same_user_namespace(thread)
    {
        let rights = Arc::new(rights);
        return Ok((
            Opener { process, rights },
            credentials(Vec::new(), effective),
        ));
    }
    let status = Status::read(thread).ok_or(Error::NoProcess(thread))?;
    let process = match known(status.thread_group) {
        Some(process) => process,
        None => ProcessId::leading(status.thread_group).map_err(|_| Error::NoProcess(thread))?,
    };
    let rights = Rights::of(thread, &status).ok_or(Error::NoProcess(thread))?;
    let requester = Opener {
        process,
        rights: Arc::new(rights),
    };
    let privileges = status.effective & (CAP_DAC_OVERRIDE | CAP_DAC_READ_SEARCH);
    let counts = privileges != 0 && same_user_namespace(thread);
    let privileges = if counts { privileges } else { 0 };
    Ok((requester, credentials(status.supplementary, privileges)))
}

/// The capabilities a thread may use now, and those it may take up: what `/proc` tells as `CapEff` and
/// `CapPrm`, in a tenth of the time.
fn capabilities(thread: u32) -> Option<(u64, u64)> {
    /// `_LINUX_CAPABILITY_VERSION_3`: two words of each set.
    const VERSION: u32 = 0x2008_0522;
    /// Effective, permitted, inheritable.
    type Words = [u32; 3];
    let mut header = [VERSION, thread];
    let mut sets: [Words; 2] = Default::default();
    // SAFETY: both are as the call takes them for this version: the header, a version and a number
    // of a thread, and two triples of words, which it fills.
    let failed = unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()) };
    let set = |which: usize| u64::from(sets[1][which]) << 32 | u64::from(sets[0][which]);
    (failed == 0).then(|| (set(0), set(1)))
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

impl Stat {
    pub(super) fn read(pid: u32) -> Option<Stat> {
        Stat::parse(&read_whole(&format!("/proc/{pid}/stat")).ok()?)
    }

    /// The name of the program, in parentheses, may hold anything, parentheses included.
    fn parse(bytes: &[u8]) -> Option<Stat> {
        let behind = bytes.iter().rposition(|&byte| byte == b')')?;
        let text = std::str::from_utf8(bytes.get(behind + 2..)?).ok()?;
        let mut fields = text.split(' ');
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        let flags: u64 = fields.nth(4)?.parse().ok()?;
        let started = fields.nth(12)?.parse().ok()?;
        // A zombie has ended; only its parent has not noticed yet.
        (!matches!(state, "Z" | "X")).then_some(Stat {
            parent,
            started,
            exiting: flags & EXITING != 0,
        })
    }
}

impl Status {
    pub(super) fn read(thread: u32) -> Option<Status> {
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
        let set = |name: &str| u64::from_str_radix(field(name)?, 16).ok();
        Some(Status {
            thread_group: field("Tgid:")?.parse().ok()?,
            users: numbers(field("Uid:")?),
            groups: numbers(field("Gid:")?),
            supplementary: numbers(field("Groups:")?),
            effective: set("CapEff:")?,
            permitted: set("CapPrm:")?,
            signals: Signals {
                pending: set("SigPnd:")? | set("ShdPnd:")?,
                blocked: set("SigBlk:")?,
                ignored: set("SigIgn:")?,
                caught: set("SigCgt:")?,
                traced: field("TracerPid:")? != "0",
            },
            has_memory: field("VmSize:").is_some(),
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
        let opener = Opener::of(unsafe { libc::gettid() } as u32).unwrap();
        assert_eq!(opener.process, me);
        assert!(Opener::of(thread).is_none(), "it has ended");
        assert!(Opener::of(0).is_none(), "it has no number here");
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
        assert_eq!((first.process, second.process), (me, me));
        assert!(first.rights.reach(&second.rights) && second.rights.reach(&first.rights));
        let rights = |c: &Credentials| (c.uid, c.gid, c.overrides, c.reads_all);
        assert_eq!(rights(&unknown), rights(&known));
        assert!(known.overrides || known.groups == unknown.groups);
        let status = Status::read(me.pid).unwrap();
        let told = (status.effective, status.permitted);
        assert_eq!(capabilities(me.pid), Some(told));
        assert_eq!(capabilities(0x7fff_fff0), None);
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
        let generations = |from, to: ProcessId| Descent::from(from).generations(to);
        let mut mine = Descent::from(myself());
        for _ in 0..2 {
            assert_eq!(mine.generations(grandchild), Some(2));
            assert_eq!(mine.generations(child), Some(1));
            assert_eq!(mine.generations(myself()), Some(0));
        }
        assert_eq!(generations(child, myself()), None);
        assert_eq!(generations(child, grandchild), Some(1));
        let reused = ProcessId {
            started: child.started + 1,
            ..child
        };
        assert_eq!(generations(reused, grandchild), None);
        shell.kill().unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while child.is_alive() {
            assert!(std::time::Instant::now() < until, "a zombie has ended");
            std::thread::yield_now();
        }
        assert_eq!(generations(myself(), grandchild), None);
        shell.wait().unwrap();
        assert_eq!(child.watch().unwrap_err().errno(), libc::ESRCH);
        Command::new("kill").arg(line.trim()).status().unwrap();
    }

    #[test]
    fn open_descriptors_are_found_by_inode() {
        use std::os::fd::AsRawFd;
        use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
        let file = tempfile::tempfile().unwrap();
        let seen = file.metadata().unwrap();
        let device = (libc::major(seen.dev()), libc::minor(seen.dev()));
        let count = |device| myself().descriptors(device, seen.ino()).unwrap();
        assert_eq!(count(device), Descriptors::Counted(1));
        assert_eq!(count((0, 0)), Descriptors::Counted(0));
        let second = file.try_clone().unwrap();
        assert_eq!(count(device), Descriptors::Counted(2));
        drop(second);
        // One that only names the file is no handle of it.
        let named = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
            .unwrap();
        assert_eq!(count(device), Descriptors::Counted(1));
        drop((file, named));
        assert_eq!(count(device), Descriptors::Counted(0));
    }

    #[test]
    fn the_state_of_a_thread_is_read_as_it_is_told() {
        let text = "Name:\tx\nTgid:\t7\nTracerPid:\t0\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n\
            Groups:\t9 10 \nVmSize:\t  10 kB\nSigPnd:\t0000000000000100\n\
            ShdPnd:\t0000000000000001\nSigBlk:\t2\nSigIgn:\t4\nSigCgt:\t8\n\
            CapPrm:\t3\nCapEff:\t1\n";
        let status = Status::parse(text).unwrap();
        assert_eq!((status.thread_group, status.has_memory), (7, true));
        assert_eq!(
            (status.users, status.groups),
            (vec![1, 2, 3, 4], vec![5, 6, 7, 8])
        );
        assert_eq!((status.effective, status.permitted), (1, 3));
        assert_eq!(status.supplementary, [9, 10]);
        let signals = Signals {
            pending: 0x101,
            blocked: 2,
            ignored: 4,
            caught: 8,
            traced: false,
        };
        assert_eq!(status.signals, signals);
        assert!(Status::parse("Name:\tx\n").is_none());
    }

    #[test]
    fn names_of_programs_do_not_confuse() {
        let line = b"7 (a) S (b)) R 3 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4242 9 9\n";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((stat.parent, stat.started, stat.exiting), (3, 4242, false));
        let line = b"7 (a) D 3 7 7 0 -1 4194308 1 0 0 0 0 0 0 0 20 0 1 0 4242 9 9\n";
        assert!(Stat::parse(line).unwrap().exiting);
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
