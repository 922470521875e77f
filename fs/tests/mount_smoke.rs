//! A real mount, served by the real program: what the kernel makes of our answers.
//!
//! Needs `/dev/fuse` and the right to mount; without them the tests say so and pass.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const WARREN: &str = env!("CARGO_BIN_EXE_warren");
const BLOCK: usize = 4096;

fn can_mount() -> bool {
    let can = File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .is_ok()
        && nix::unistd::geteuid().is_root();
    if !can {
        eprintln!("SKIPPED: no /dev/fuse, or not root");
    }
    can
}

fn warren(arguments: &[&str]) -> Output {
    Command::new(WARREN).args(arguments).output().unwrap()
}

fn succeed(output: Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

fn is_mounted(dir: &Path) -> bool {
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .contains(&format!(" {} ", dir.display()))
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A memory device mounted in a directory of its own.
struct Mount {
    _base: TempDir,
    dir: PathBuf,
    log: PathBuf,
}

impl Mount {
    fn new(options: &str) -> Mount {
        let base = TempDir::new().unwrap();
        let dir = base.path().canonicalize().unwrap().join("mnt");
        fs::create_dir(&dir).unwrap();
        let log = base.path().join("log");
        let options = format!("{options},log={}", log.display());
        succeed(warren(&[
            "mount",
            "mem:256M",
            dir.to_str().unwrap(),
            "-o",
            &options,
        ]));
        Mount {
            _base: base,
            dir,
            log,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A new file, open for reading and writing.
    fn create(&self, name: &str) -> File {
        File::create_new(self.path(name)).unwrap()
    }

    fn unmount(self) {
        succeed(warren(&["umount", self.dir.to_str().unwrap()]));
        let log = fs::read_to_string(&self.log).unwrap();
        assert_eq!(log, "", "the daemon complained");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if is_mounted(&self.dir) {
            let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
        }
    }
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// A page-aligned buffer for O_DIRECT.
#[repr(align(4096))]
struct Aligned([u8; BLOCK]);

/// Drops the kernel's clean pages, entries and inodes, so that what follows asks the daemon.
fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

#[test]
fn files_directories_and_links_behave() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new("rw");
    fs::write(mount.path("a"), b"hello").unwrap();
    fs::create_dir(mount.path("d")).unwrap();
    fs::hard_link(mount.path("a"), mount.path("d/b")).unwrap();
    std::os::unix::fs::symlink("d/b", mount.path("l")).unwrap();
    drop_caches();
    assert_eq!(fs::read(mount.path("l")).unwrap(), b"hello");
    assert_eq!(fs::metadata(mount.path("a")).unwrap().nlink(), 2);
    fs::set_permissions(mount.path("a"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::rename(mount.path("a"), mount.path("d/c")).unwrap();
    assert!(!mount.path("a").exists());
    drop_caches();
    let moved = fs::metadata(mount.path("d/c")).unwrap();
    assert_eq!((moved.mode() & 0o7777, moved.len()), (0o640, 5));
    fs::remove_file(mount.path("d/b")).unwrap();
    let error = fs::remove_dir(mount.path("d")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTEMPTY));
    fs::remove_file(mount.path("d/c")).unwrap();
    fs::remove_dir(mount.path("d")).unwrap();
    let statistics = nix::sys::statvfs::statvfs(&mount.dir).unwrap();
    assert_eq!(
        (statistics.name_max(), statistics.block_size()),
        (255, 4096)
    );
    mount.unmount();
}

#[test]
fn rename_flags_are_honoured() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new("rw");
    fs::write(mount.path("a"), b"a").unwrap();
    fs::write(mount.path("b"), b"b").unwrap();
    let rename = |flags| {
        let (a, b) = (c_path(&mount.path("a")), c_path(&mount.path("b")));
        // SAFETY: both paths are NUL-terminated strings that outlive the call.
        unsafe {
            libc::renameat2(
                libc::AT_FDCWD,
                a.as_ptr(),
                libc::AT_FDCWD,
                b.as_ptr(),
                flags,
            )
        }
    };
    assert_eq!(rename(libc::RENAME_NOREPLACE), -1);
    assert_eq!(rename(libc::RENAME_EXCHANGE), 0);
    assert_eq!(fs::read(mount.path("a")).unwrap(), b"b");
    mount.unmount();
}

#[test]
fn mapped_direct_and_ordinary_access_see_the_same_bytes() {
    if !can_mount() {
        return;
    }
    for options in ["rw", "no_writeback", "direct_io"] {
        let mount = Mount::new(options);
        let path = mount.path("f");
        let open = |flags| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .custom_flags(flags)
                .open(&path)
                .unwrap()
        };
        let (file, direct) = (open(0), open(libc::O_DIRECT));
        let mut block = Box::new(Aligned([b'd'; BLOCK]));
        direct.write_all_at(&block.0, 0).unwrap();
        direct.write_all_at(&block.0, BLOCK as u64).unwrap();
        file.write_all_at(b"cached", 10).unwrap();
        direct.read_exact_at(&mut block.0, 0).unwrap();
        assert_eq!(&block.0[8..18], b"ddcacheddd", "{options}");
        // SAFETY: a fresh shared mapping of two blocks of a file that is as long.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                2 * BLOCK,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(map, libc::MAP_FAILED, "{options}");
        // SAFETY: the mapping is two blocks long and nobody else in this process uses it.
        unsafe {
            std::ptr::copy_nonoverlapping(b"mapped".as_ptr(), map.cast::<u8>().add(BLOCK), 6);
            assert_eq!(libc::msync(map, 2 * BLOCK, libc::MS_SYNC), 0);
            assert_eq!(libc::munmap(map, 2 * BLOCK), 0);
        }
        direct.read_exact_at(&mut block.0, BLOCK as u64).unwrap();
        assert_eq!(&block.0[..8], b"mappeddd", "{options}");
        drop((file, direct));
        mount.unmount();
    }
}

#[test]
fn direct_writes_move_the_modification_time() {
    if !can_mount() {
        return;
    }
    for options in ["rw", "no_writeback", "direct_io"] {
        let mount = Mount::new(options);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .custom_flags(libc::O_DIRECT)
            .open(mount.path("f"))
            .unwrap();
        let block = Box::new(Aligned([1; BLOCK]));
        let mut last = 0;
        for offset in [0, 0, BLOCK as u64] {
            file.write_all_at(&block.0, offset).unwrap();
            let meta = file.metadata().unwrap();
            let now = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
            assert!(now > last, "{options}, offset {offset}");
            last = now;
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(file);
        mount.unmount();
    }
}

#[test]
fn seeking_for_data_finds_pages_that_are_still_dirty() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new("rw");
    let mut file = mount.create("f");
    file.write_all_at(b"data", 1 << 20).unwrap();
    let seek = |file: &File, offset, whence| {
        // SAFETY: lseek takes a descriptor and touches no memory.
        unsafe { libc::lseek(file.as_raw_fd(), offset, whence) }
    };
    assert_eq!(seek(&file, 0, libc::SEEK_DATA), 1 << 20);
    assert_eq!(seek(&file, 0, libc::SEEK_HOLE), 0);
    file.set_len(8 << 20).unwrap();
    file.write_all_at(b"more", 4 << 20).unwrap();
    assert_eq!(seek(&file, 2 << 20, libc::SEEK_DATA), 4 << 20);
    assert_eq!(seek(&file, 5 << 20, libc::SEEK_DATA), -1);
    let mut text = [0; 4];
    file.seek(SeekFrom::Start(4 << 20)).unwrap();
    file.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"more");
    drop(file);
    mount.unmount();
}

#[test]
fn an_unlinked_file_lives_until_it_is_closed() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new("rw");
    let mut file = mount.create("f");
    file.write_all(b"still here").unwrap();
    fs::remove_file(mount.path("f")).unwrap();
    assert!(!mount.path("f").exists());
    file.sync_all().unwrap();
    drop_caches();
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(
        (text.as_str(), file.metadata().unwrap().nlink()),
        ("still here", 0)
    );
    drop(file);
    mount.unmount();
}

#[test]
fn extended_attributes_follow_the_size_protocol() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new("rw");
    fs::write(mount.path("f"), b"").unwrap();
    let (path, name) = (c_path(&mount.path("f")), c"user.test");
    // SAFETY: the strings end in NUL, and every buffer is as long as is said.
    unsafe {
        let set = |flags| {
            libc::setxattr(
                path.as_ptr(),
                name.as_ptr(),
                b"value".as_ptr().cast(),
                5,
                flags,
            )
        };
        assert_eq!(set(libc::XATTR_REPLACE), -1);
        assert_eq!(set(libc::XATTR_CREATE), 0);
        assert_eq!(set(libc::XATTR_CREATE), -1);
        let mut value = [0u8; 8];
        let mut get =
            |len| libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), len);
        assert_eq!(get(0), 5);
        assert_eq!(get(4), -1);
        assert_eq!(
            std::io::Error::last_os_error().raw_os_error(),
            Some(libc::ERANGE)
        );
        assert_eq!(get(8), 5);
        assert_eq!(&value[..5], b"value");
        let mut names = [0u8; 64];
        let len = libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), 64);
        assert_eq!(&names[..len as usize], b"user.test\0");
        assert_eq!(libc::removexattr(path.as_ptr(), name.as_ptr()), 0);
        assert_eq!(libc::removexattr(path.as_ptr(), name.as_ptr()), -1);
    }
    mount.unmount();
}

#[test]
fn a_large_directory_lists_every_entry_once() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new("rw");
    let names: Vec<String> = (0..1000)
        .map(|i| format!("{i}-{}", "n".repeat(i % 200)))
        .collect();
    for name in &names {
        File::create(mount.path(name)).unwrap();
    }
    for _ in 0..2 {
        drop_caches();
        let mut listed: Vec<String> = fs::read_dir(&mount.dir)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                assert!(entry.metadata().unwrap().is_file());
                entry.file_name().into_string().unwrap()
            })
            .collect();
        listed.sort();
        let mut expected = names.clone();
        expected.sort();
        assert_eq!(listed, expected);
    }
    mount.unmount();
}

#[test]
fn times_before_1970_survive() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new("rw");
    let file = File::create(mount.path("f")).unwrap();
    for (tv_sec, tv_nsec) in [
        (-1, 999_999_999),
        (-2, 800_000_000),
        (-(1 << 40), 1),
        (i64::MIN, 0),
    ] {
        let time = libc::timespec { tv_sec, tv_nsec };
        let times = [time, time];
        // SAFETY: futimens reads two timespecs, and the array holds two.
        let result = unsafe { libc::futimens(file.as_raw_fd(), times.as_ptr()) };
        assert_eq!(result, 0);
        let meta = file.metadata().unwrap();
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (tv_sec, tv_nsec));
        assert_eq!((meta.atime(), meta.atime_nsec()), (tv_sec, tv_nsec));
    }
    drop(file);
    mount.unmount();
}

#[test]
fn a_read_only_mount_refuses_changes() {
    if !can_mount() {
        return;
    }
    let base = TempDir::new().unwrap();
    let image = base.path().join("image");
    let dir = base.path().join("mnt");
    fs::create_dir(&dir).unwrap();
    let (image, dir) = (image.to_str().unwrap(), dir.to_str().unwrap());
    succeed(warren(&[
        "mkfs", image, "--size", "128M", "--label", "barn",
    ]));
    succeed(warren(&["mount", image, dir, "-o", "ro"]));
    let error = fs::write(Path::new(dir).join("f"), b"").unwrap_err();
    succeed(warren(&["umount", dir]));
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
}

/// A daemon in the foreground, and where it is mounted.
fn foreground() -> (TempDir, PathBuf, Child) {
    let base = TempDir::new().unwrap();
    let dir = base.path().canonicalize().unwrap().join("mnt");
    fs::create_dir(&dir).unwrap();
    let child = Command::new(WARREN)
        .args(["mount", "--foreground", "mem:256M"])
        .arg(&dir)
        .spawn()
        .unwrap();
    wait_until("it is mounted", || is_mounted(&dir));
    // Answered when the handshake is over; a mount that is taken away before that has failed.
    fs::metadata(&dir).unwrap();
    (base, dir, child)
}

fn signal(child: &Child, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, signal).unwrap();
}

#[test]
fn a_termination_signal_unmounts_and_exits_cleanly() {
    if !can_mount() {
        return;
    }
    use nix::sys::signal::Signal;
    for number in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let (_base, dir, mut child) = foreground();
        fs::write(dir.join("f"), b"x").unwrap();
        signal(&child, number);
        assert_eq!(child.wait().unwrap().code(), Some(0), "{number}");
        assert!(!is_mounted(&dir));
    }
}

#[test]
fn a_termination_signal_detaches_a_mount_in_use() {
    if !can_mount() {
        return;
    }
    let (_base, dir, mut child) = foreground();
    let mut held = File::create(dir.join("f")).unwrap();
    held.write_all(b"dirty").unwrap();
    signal(&child, nix::sys::signal::Signal::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!is_mounted(&dir));
    assert!(held.metadata().is_err());
}

#[test]
fn umount_by_others_ends_the_daemon() {
    if !can_mount() {
        return;
    }
    let (_base, dir, mut child) = foreground();
    // Somebody may be looking into the fresh mount for a moment: a forked child of another test.
    let begun = std::time::Instant::now();
    while let Err(error) = nix::mount::umount(&dir) {
        assert_eq!(error, nix::errno::Errno::EBUSY);
        assert!(begun.elapsed() < Duration::from_secs(10), "busy for ever");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn reports_of_a_running_mount_are_available() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new("rw");
    fs::write(mount.path("f"), vec![7; 100_000]).unwrap();
    let dir = mount.dir.to_str().unwrap();
    for arguments in [
        &["stats", dir, "--json"][..],
        &["zones", dir, "--json"],
        &["scrub", dir, "--json"],
    ] {
        let text = succeed(warren(arguments));
        serde_json::from_str::<serde_json::Value>(&text).unwrap();
    }
    let svg = mount._base.path().join("zones.svg");
    succeed(warren(&["zones", dir, "--svg", svg.to_str().unwrap()]));
    assert!(fs::read_to_string(svg).unwrap().starts_with("<svg"));
    let busy = warren(&["mount", "mem:256M", dir]);
    assert_eq!(busy.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&busy.stderr).contains("already mounted"));
    mount.unmount();
}
