//! Kernels on files, without a mount: requests go to [`Offload`] as the FUSE adapter hands them on.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use bpf_programs::{Input, KERNELS, Kernel, Operation};
use warren_fs::offload::value::Attribute;
use warren_fs::offload::{Offload, Options, Requester, SetRequest, WriteRequest};
use warren_fs::store::{FormatOptions, Store, StoreOptions};
use warren_fs::types::Ino;
use warren_fs::volume::Volume;
use warren_fs::volume::types::{Caller, Time, XattrFlags};
use warren_fs::{Error, Result};
use zns_backend::{Geometry, MemDevice, ZonedDevice};

const STREAM: &[u8] = b"user.process.csd_read_stream";
const EVENT: &[u8] = b"user.process.csd_write_event";

/// A request by a thread that acts as this process's user.
fn by(thread: u32) -> Requester {
    let (_, uid, gid) = me();
    Requester { thread, uid, gid }
}

fn me() -> (u32, u32, u32) {
    // SAFETY: these have no arguments and cannot fail.
    unsafe { (libc::gettid() as u32, libc::geteuid(), libc::getegid()) }
}

/// A filesystem in memory and what runs kernels on it.
struct Bench {
    volume: Arc<Volume>,
    offload: Arc<Offload>,
}

impl Bench {
    fn new() -> Bench {
        let geometry = Geometry {
            block_size: 4096,
            zones: 64,
            zone_size: 1024,
            zone_capacity: 1024,
            max_open: 14,
            max_active: 14,
            max_append: 256,
        };
        let device: Arc<dyn ZonedDevice> = Arc::new(MemDevice::new(geometry).unwrap());
        Store::format(&device, &FormatOptions::default()).unwrap();
        let volume = Arc::new(Volume::open(device, &StoreOptions::default()).unwrap());
        let options = Options {
            workers: 2,
            ..Options::default()
        };
        let offload = Offload::new(Arc::clone(&volume), options).unwrap();
        Bench { volume, offload }
    }

    fn file(&self, name: &str, contents: &[u8]) -> Ino {
        let (pid, uid, gid) = me();
        let caller = Caller {
            uid,
            gid,
            pid,
            umask: 0o022,
        };
        let mode = libc::S_IFREG | 0o644;
        let made = self
            .volume
            .mknod(&caller, Ino::ROOT, name.as_bytes(), mode, 0);
        let ino = made.unwrap().ino;
        self.write(ino, 0, contents);
        ino
    }

    fn write(&self, ino: Ino, offset: u64, data: &[u8]) {
        self.volume
            .write(ino, offset, data, false, Some(Time::now()))
            .unwrap();
    }

    fn contents(&self, ino: Ino) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.volume.read(ino, 0, 1 << 30, &mut bytes).unwrap();
        bytes
    }

    fn set(&self, ino: Ino, name: &[u8], value: &str) -> Result<()> {
        let (thread, uid, gid) = me();
        let prepared = self.offload.prepare(&SetRequest {
            thread,
            uid,
            gid,
            ino,
            attribute: Attribute::from_name(name).unwrap(),
            value: value.as_bytes(),
            flags: XattrFlags::default(),
        })?;
        self.offload.register(prepared)
    }

    /// Reads through a handle opened by this thread; the errno if that fails.
    fn read(&self, ino: Ino, offset: u64, size: usize) -> std::result::Result<Vec<u8>, i32> {
        let (thread, ..) = me();
        let opened = self.offload.open(ino, thread, false);
        let number = opened.number.expect("the handle is bound");
        let job = self.offload.read_job(ino, number, by(thread)).unwrap();
        let (sender, receiver) = channel();
        let reply = Box::new(move |answer: std::result::Result<&[u8], i32>| {
            sender.send(answer.map(<[u8]>::to_vec)).unwrap();
        });
        self.offload.read(ino, job, offset, size, reply);
        let answer = receiver.recv().unwrap();
        self.offload.close(ino, Some(number));
        answer
    }

    fn sees(&self, ino: Ino, thread: u32) -> bool {
        let attribute = Attribute::from_name(STREAM).unwrap();
        let mut names = Vec::new();
        self.offload.list(ino, thread, &mut names);
        let value = self.offload.value(ino, thread, attribute);
        assert_eq!(value.is_ok(), !names.is_empty());
        assert_eq!(self.offload.open(ino, thread, false).bound, value.is_ok());
        value.is_ok()
    }

    fn kept(&self) -> u64 {
        self.volume.store().stats().groups["collector"]["kept_versions"]
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.offload.shutdown();
        if !std::thread::panicking() {
            assert_eq!(self.kept(), 0, "all versions have been let go of");
            self.volume.close().unwrap();
        }
    }
}

fn sleeper() -> Child {
    let mut command = Command::new("sleep");
    command.arg("100").stdin(Stdio::null()).spawn().unwrap()
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < until, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Writes `data` in pieces and out of order, and makes holes in it, which `data` then has too.
fn scatter(bench: &Bench, ino: Ino, data: &mut [u8], seed: u64) {
    let piece = 3000 + seed as usize * 977;
    let starts: Vec<usize> = (0..data.len()).step_by(piece).collect();
    for start in starts.iter().rev() {
        let end = data.len().min(start + piece);
        bench.write(ino, *start as u64, &data[*start..end]);
    }
    if seed.is_multiple_of(2) && data.len() > 30_000 {
        let (pid, uid, gid) = me();
        let caller = Caller {
            uid,
            gid,
            pid,
            umask: 0,
        };
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        bench
            .volume
            .fallocate(&caller, ino, 9_000, 13_000, mode)
            .unwrap();
        data[9_000..22_000].fill(0);
    }
}

fn check_against_twin(bench: &Bench, kernel: &Kernel, object: Ino, seed: u64, size: usize) {
    let mut data = (kernel.generate)(seed, size);
    let ino = bench.file(&format!("{}.{seed}.{size}", kernel.name), &[]);
    scatter(bench, ino, &mut data, seed);
    if data.is_empty() {
        return;
    }
    for arguments in (kernel.arguments)(seed) {
        let mut value = format!("{object};view;timeout_ms=60000");
        if !arguments.is_empty() {
            let list: Vec<String> = arguments.iter().map(u64::to_string).collect();
            value.push_str(&format!(";arg={}", list.join(",")));
        }
        bench.set(ino, STREAM, &value).unwrap();
        let expected = (kernel.native)(&Input::view(&data, &arguments)).map_err(|_| libc::EIO);
        let seen = bench.read(ino, 0, 256 << 20);
        assert!(
            seen == expected,
            "{} seed {seed} size {size} {arguments:?}",
            kernel.name
        );
    }
}

#[test]
fn every_kernel_does_on_files_of_every_shape_what_its_twin_does() {
    let bench = Bench::new();
    for kernel in KERNELS {
        if !kernel.operations.contains(&Operation::ReadStream) {
            continue;
        }
        let object = bench.file(&format!("{}.o", kernel.name), kernel.object);
        for (seed, size) in [(1, 300), (2, 50_000), (3, 4097), (4, 300_000)] {
            check_against_twin(&bench, kernel, object, seed, size);
        }
    }
}

#[test]
fn a_registration_is_for_its_process_and_ends_when_it_is_removed() {
    let bench = Bench::new();
    let object = bench.file("k", Kernel::named("passthrough").unwrap().object);
    let f = bench.file("f", b"contents");
    assert!(!bench.sees(f, me().0));
    bench.set(f, STREAM, &object.to_string()).unwrap();
    assert!(bench.sees(f, me().0) && !bench.sees(f, 1) && !bench.sees(object, me().0));
    let elsewhere = Arc::clone(&bench.offload);
    let in_a_thread = move || elsewhere.open(f, me().0, false).bound;
    assert!(
        std::thread::spawn(in_a_thread).join().unwrap(),
        "all threads of a process"
    );
    bench.write(f, 0, b"CHANGED!");
    assert_eq!(bench.read(f, 2, 3), Ok(b"nte".to_vec()));
    assert_eq!(bench.read(f, 8, 3), Ok(Vec::new()));
    assert_eq!(bench.kept(), 1);
    let attribute = Attribute::from_name(STREAM).unwrap();
    assert!(matches!(
        bench.offload.remove(f, 1, attribute),
        Err(Error::NoAttribute)
    ));
    bench.offload.remove(f, me().0, attribute).unwrap();
    assert!(!bench.sees(f, me().0));
    // The last execution lets go of its snapshot a moment after it has answered.
    eventually("the snapshot is gone", || bench.kept() == 0);
}

#[test]
fn registrations_for_others_end_with_them() {
    let bench = Bench::new();
    let object = bench.file("k", Kernel::named("passthrough").unwrap().object);
    let f = bench.file("f", b"contents");
    let (mut first, mut second) = (sleeper(), sleeper());
    for child in [&first, &second] {
        bench
            .set(f, STREAM, &format!("{object};owner={}", child.id()))
            .unwrap();
        bench
            .set(object, STREAM, &format!("{object};owner={}", child.id()))
            .unwrap();
    }
    assert!(bench.sees(f, first.id()) && bench.sees(f, second.id()) && !bench.sees(f, me().0));
    assert_eq!(bench.kept(), 4);
    first.kill().unwrap();
    eventually("the first is gone", || bench.kept() == 2);
    assert!(bench.sees(f, second.id()));
    second.kill().unwrap();
    eventually("the second is gone", || bench.kept() == 0);
    for child in [&mut first, &mut second] {
        child.wait().unwrap();
        let refused = bench.set(f, STREAM, &format!("{object};owner={}", child.id()));
        assert!(matches!(refused, Err(Error::NoProcess(_))));
    }
}

#[test]
fn a_handle_from_before_is_bound_if_it_bypasses_the_cache() {
    let bench = Bench::new();
    let object = bench.file("k", Kernel::named("passthrough").unwrap().object);
    let f = bench.file("f", b"contents");
    let thread = me().0;
    assert_eq!(
        bench.offload.open(f, thread, false).number,
        None,
        "the system caches it"
    );
    let number = bench.offload.open(f, thread, true).number.unwrap();
    let strange = bench.offload.open(f, 1, true).number.unwrap();
    assert!(bench.offload.read_job(f, number, by(thread)).is_none());
    bench.set(f, STREAM, &object.to_string()).unwrap();
    assert!(bench.offload.read_job(f, number, by(thread)).is_some());
    assert!(bench.offload.read_job(f, strange, by(1)).is_none());
    assert!(
        bench.offload.write_job(f, number, by(thread)).is_none(),
        "that is another operation"
    );
    bench.offload.close(f, Some(number));
    assert!(bench.offload.read_job(f, number, by(thread)).is_none());
}

#[test]
fn a_handle_belongs_to_who_opened_it_even_when_that_is_gone() {
    let bench = Bench::new();
    let object = bench.file("k", Kernel::named("passthrough").unwrap().object);
    let f = bench.file("f", b"contents");
    let mut child = sleeper();
    let strange = bench.offload.open(f, child.id(), true).number.unwrap();
    let nameless = bench.offload.open(f, 0, true).number.unwrap();
    // A thread of ours, of which only the handle is left.
    let offload = Arc::clone(&bench.offload);
    let opens = move || offload.open(f, me().0, true).number.unwrap();
    let ours = std::thread::spawn(opens).join().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    bench.set(f, STREAM, &object.to_string()).unwrap();
    let thread = me().0;
    let answered = |number| bench.offload.read_job(f, number, by(thread)).is_some();
    assert!(
        !answered(strange) && !answered(nameless),
        "whoever uses them"
    );
    assert!(answered(ours));
}

#[test]
fn who_acts_as_somebody_else_is_answered_if_the_setter_could_have_been_that() {
    let bench = Bench::new();
    let object = bench.file("k", Kernel::named("passthrough").unwrap().object);
    let f = bench.file("f", b"contents");
    bench.set(f, STREAM, &object.to_string()).unwrap();
    let (thread, uid, gid) = me();
    let number = bench.offload.open(f, thread, false).number.unwrap();
    let requester = |thread, uid| Requester { thread, uid, gid };
    let answered = |who| bench.offload.read_job(f, number, who).is_some();
    assert!(answered(requester(thread, uid)));
    // The request says another user than the handle's opener was: this thread is looked at, and
    // it has the rights of whoever set the attribute; of one that is gone nothing is known.
    assert!(answered(requester(thread, uid + 1)));
    assert!(!answered(requester(0x7fff_fff0, uid + 1)) && !answered(requester(0, uid + 1)));
}

/// An object of a kernel that never ends.
fn endless() -> Vec<u8> {
    let mut clang = Command::new("clang")
        .args(["-O2", "-target", "bpf", "-x", "c", "-c", "-", "-o", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let source = b"int main(void) { volatile int n = 1; while (n) n |= 2; return 0; }";
    clang.stdin.take().unwrap().write_all(source).unwrap();
    clang.wait_with_output().unwrap().stdout
}

type Answer = std::result::Result<Vec<u8>, i32>;

/// Begins a read by `thread` through a handle that this thread opened.
fn begin_read(bench: &Bench, ino: Ino, number: u64, thread: u32) -> Receiver<Answer> {
    let job = bench.offload.read_job(ino, number, by(thread)).unwrap();
    let (sender, receiver) = channel();
    let reply = Box::new(move |answer: std::result::Result<&[u8], i32>| {
        // Whoever does not care has dropped the receiver.
        let _ = sender.send(answer.map(<[u8]>::to_vec));
    });
    bench.offload.read(ino, job, 0, 100, reply);
    receiver
}

fn ends_soon(answer: &Receiver<Answer>) {
    let got = answer.recv_timeout(Duration::from_secs(5));
    assert_eq!(got, Ok(Err(libc::EIO)), "long before its time is over");
}

/// Runs `body` with a file that an endless kernel answers, the value of its attribute, and the number of
/// a handle: for a kernel of each read and for one of each handle.
fn with_endless_kernels(body: impl Fn(&Bench, Ino, &str, u64)) {
    let bench = Bench::new();
    let object = bench.file("k", &endless());
    let f = bench.file("f", b"contents");
    for options in ["timeout_ms=60000", "view;timeout_ms=60000"] {
        let value = format!("{object};{options}");
        bench.set(f, STREAM, &value).unwrap();
        let number = bench.offload.open(f, me().0, false).number.unwrap();
        body(&bench, f, &value, number);
        bench.offload.close(f, Some(number));
    }
    eventually("nothing is under way", || {
        bench.offload.stats()["kernels"]["requests_now"] == 0
    });
}

fn take_back(bench: &Bench, ino: Ino) {
    let attribute = Attribute::from_name(STREAM).unwrap();
    bench.offload.remove(ino, me().0, attribute).unwrap();
}

#[test]
fn what_runs_for_a_registration_ends_with_it() {
    let thread = me().0;
    with_endless_kernels(|bench, f, value, number| {
        let answers = [(); 3].map(|()| begin_read(bench, f, number, thread));
        // It is replaced, and then taken back.
        bench.set(f, STREAM, value).unwrap();
        answers.iter().for_each(ends_soon);
        let answer = begin_read(bench, f, number, thread);
        take_back(bench, f);
        ends_soon(&answer);
    });
}

#[test]
fn what_runs_for_a_process_that_is_killed_ends_and_nothing_else_does() {
    let thread = me().0;
    with_endless_kernels(|bench, f, _, number| {
        let mut child = sleeper();
        let theirs = begin_read(bench, f, number, child.id());
        let ours = begin_read(bench, f, number, thread);
        std::thread::sleep(Duration::from_millis(120));
        assert!(theirs.try_recv().is_err(), "it lives");
        child.kill().unwrap();
        ends_soon(&theirs);
        child.wait().unwrap();
        assert!(ours.recv_timeout(Duration::from_millis(200)).is_err());
        take_back(bench, f);
        ends_soon(&ours);
    });
}

#[test]
fn an_event_appends_after_the_write_it_hears_of() {
    let bench = Bench::new();
    let kernel = Kernel::named("line_index").unwrap();
    assert!(kernel.operations.contains(&Operation::WriteEvent));
    let object = bench.file("k", kernel.object);
    let f = bench.file("f", b"");
    bench.set(f, EVENT, &object.to_string()).unwrap();
    let thread = me().0;
    let number = bench.offload.open(f, thread, false).number.unwrap();
    let data = b"one\ntwo\nthree\n";
    let job = bench.offload.write_job(f, number, by(thread)).unwrap();
    let (sender, receiver) = channel();
    let write = WriteRequest {
        ino: f,
        offset: 0,
        data: data.to_vec(),
        kill_privileges: false,
        sync: true,
    };
    let reply = Box::new(move |outcome| sender.send(outcome).unwrap());
    bench.offload.write(job, write, reply);
    receiver.recv().unwrap().unwrap();
    let arguments = [];
    let input = Input::data(Operation::WriteEvent, 0, data, &arguments);
    let expected = [data.to_vec(), (kernel.native)(&input).unwrap()].concat();
    assert_eq!(bench.contents(f), expected);
}

#[test]
fn nothing_is_registered_after_the_end() {
    let bench = Bench::new();
    let object = bench.file("k", Kernel::named("passthrough").unwrap().object);
    bench.offload.shutdown();
    let refused = bench.set(object, STREAM, &object.to_string());
    assert!(matches!(refused, Err(Error::Busy(_))));
}
