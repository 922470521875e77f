"""Whose registrations are whose: how long they last, who may have them, and what is refused."""

import errno
import os
import signal
import subprocess
import time

from harness import as_user, case, eventually, fails_with, need_root, run
from e2e.kernels import (READ_EVENT, READ_STREAM, STATS, UPPER, WRITE_EVENT, WRITE_STREAM, attach, attached, forked,
                         in_child, kernel, opened, pins, registrations, stats)


@case
def registrations_end_with_their_owner_however_it_ends(bench):
    mount = bench.image.dir if bench.image else None
    object, path = kernel(bench.dir, UPPER), bench.dir / "f"
    path.write_bytes(b"abcd" * 5000)
    before = pins(mount)
    for how in [signal.SIGKILL, signal.SIGTERM, None]:
        ready, go = os.pipe(), os.pipe()

        def hold():
            attach(path, object, ";view")
            attach(path, object, name=READ_EVENT)
            fd = os.open(path, os.O_RDONLY)
            ok = os.pread(fd, 4, 0) == b"ABCD"
            os.write(ready[1], b"1" if ok else b"0")
            os.close(go[1])
            os.read(go[0], 1)

        pid = forked(hold)
        os.close(go[0])
        assert os.read(ready[0], 1) == b"1"
        assert registrations(mount) == 2 and pins(mount) >= before + 2
        if how is None:
            os.close(go[1])
        else:
            os.kill(pid, how)
            os.close(go[1])
        os.waitpid(pid, 0)
        assert eventually(lambda: registrations(mount) == 0 and pins(mount) <= before), (how, stats(mount))
        for end in ready:
            os.close(end)


@case
def a_registration_made_with_the_file_open_ends_with_the_last_handle(bench):
    object, path = kernel(bench.dir, UPPER), bench.dir / "f"
    path.write_bytes(b"abcd" * 1024)
    first = os.open(path, os.O_RDONLY | os.O_DIRECT)
    attach(path, object)
    second = os.open(path, os.O_RDONLY)
    os.close(first)
    assert os.listxattr(path) == [READ_STREAM] and os.pread(second, 4, 0) == b"ABCD"
    os.close(second)
    assert eventually(lambda: os.listxattr(path) == [])
    # One made without does not care.
    attach(path, object)
    with opened(path):
        pass
    time.sleep(0.1)
    assert os.listxattr(path) == [READ_STREAM]
    os.removexattr(path, READ_STREAM)


@case
def owners_are_processes_of_the_same_user_and_descendants_follow(bench):
    object, path = kernel(bench.dir, UPPER), bench.dir / "f"
    path.write_bytes(b"abc")
    with attached(path, object, f";owner={os.getpid()}"):
        # The child descends from the owner, so does its child.
        assert in_child(lambda: in_child(path.read_bytes)) == b"ABC"
        assert run("cat", path).stdout == "ABC"
    assert in_child(path.read_bytes) == b"abc"
    with attached(path, object):
        assert in_child(path.read_bytes) == b"abc", "without owner= it is for one process"
    with subprocess.Popen(["sleep", "60"]) as other:
        attach(path, object, f";owner={other.pid}")
        assert path.read_bytes() == b"abc" and os.listxattr(path) == []
        other.kill()


@case
def owners_of_others_are_refused(bench):
    need_root()
    object, path = kernel(bench.dir, UPPER), bench.dir / "f"
    path.write_bytes(b"abc")
    path.chmod(0o666)
    text = f"{object.stat().st_ino};owner={os.getpid()}".encode()
    assert as_user(1001, lambda: os.setxattr(path, READ_STREAM, text)) == errno.EPERM
    mine = lambda: os.setxattr(path, READ_STREAM, f"{object.stat().st_ino};owner={os.getpid()}".encode())
    assert as_user(1001, mine) == 0


@case
def permissions_on_kernel_and_target_are_needed(bench):
    need_root()
    object, path = kernel(bench.dir, UPPER), bench.dir / "f"
    path.write_bytes(b"abc")
    value = str(object.stat().st_ino).encode()
    setting = lambda name=READ_STREAM: lambda: os.setxattr(path, name, value)
    path.chmod(0o666)
    assert as_user(1001, setting()) == 0
    object.chmod(0o600)
    assert as_user(1001, setting()) == errno.EACCES
    object.chmod(0o644)
    path.chmod(0o222)
    assert as_user(1001, setting()) == errno.EACCES
    assert as_user(1001, setting(WRITE_EVENT)) == 0
    path.chmod(0o444)
    assert as_user(1001, setting(WRITE_EVENT)) == errno.EACCES
    # By its path, the directories on the way count.
    path.chmod(0o666)
    hidden = bench.dir / "hidden"
    hidden.mkdir(mode=0o700)
    kernel(hidden, UPPER)
    by_path = f"/{bench.dir.name}/hidden/kernel.o".encode()
    assert as_user(1001, lambda: os.setxattr(path, READ_STREAM, by_path)) == errno.EACCES
    hidden.chmod(0o711)
    assert as_user(1001, lambda: os.setxattr(path, READ_STREAM, by_path)) == 0


@case
def bad_input_is_refused_with_the_right_error_and_changes_nothing(bench):
    object, path = kernel(bench.dir, UPPER), bench.dir / "f"
    path.write_bytes(b"abc")
    inside = f"/{bench.dir.name}"
    (bench.dir / "text").write_text("no kernel at all")
    (bench.dir / "cut").write_bytes(object.read_bytes()[:200])
    (bench.dir / "big").touch()
    os.truncate(bench.dir / "big", 1 << 30)
    os.symlink("kernel.o", bench.dir / "link")
    os.symlink("loop", bench.dir / "loop")
    os.mkfifo(bench.dir / "fifo")
    child = subprocess.Popen(["true"])
    child.wait()
    number = object.stat().st_ino
    wrong = {
        "": errno.EINVAL, ";view": errno.EINVAL, "0": errno.EINVAL, f"{number};frob": errno.EINVAL,
        f"{number};arg=x": errno.EINVAL, f"{number};timeout_ms=0": errno.EINVAL, f"{number};owner=x": errno.EINVAL,
        f"{number};owner={child.pid}": errno.ESRCH, "999999999": errno.ENOENT,
        f"{inside}/none": errno.ENOENT, f"{inside}/f/x": errno.ENOTDIR, f"{inside}/kernel.o/": errno.ENOTDIR,
        inside: errno.EISDIR, str(bench.dir.stat().st_ino): errno.EISDIR, "/": errno.EISDIR,
        f"{inside}/loop": errno.ELOOP, f"{inside}/fifo": errno.EINVAL, f"{inside}/text": errno.ENOEXEC,
        f"{inside}/big": errno.EINVAL, f"{inside}/{'n' * 300}": errno.ENAMETOOLONG,
    }
    for value, expected in wrong.items():
        with fails_with(expected):
            os.setxattr(path, READ_STREAM, value.encode())
    with fails_with(errno.EINVAL, errno.ENOEXEC):
        os.setxattr(path, READ_STREAM, f"{inside}/cut".encode())
    for name in [WRITE_STREAM, READ_EVENT, WRITE_EVENT]:
        with fails_with(errno.EINVAL):
            os.setxattr(path, name, f"{number};view".encode())
    with fails_with(errno.EPERM):
        os.setxattr(path, STATS, b"x")
    with fails_with(errno.EINVAL):
        os.setxattr(path, "user.process.csd_unheard_of", b"x")
    with fails_with(errno.EISDIR):
        attach(bench.dir, object)
    with fails_with(errno.EPERM, errno.EOPNOTSUPP):
        os.setxattr(bench.dir / "link", READ_STREAM, str(number).encode(), follow_symlinks=False)
    assert os.listxattr(path) == [] and path.read_bytes() == b"abc"
    os.setxattr(path, READ_STREAM, f"{inside}/link".encode())
    assert path.read_bytes() == b"ABC"
    # The last setting that worked holds.
    with fails_with(errno.ENOENT):
        os.setxattr(path, READ_STREAM, b"/none")
    assert path.read_bytes() == b"ABC"
    with opened(path) as fd, fails_with(errno.EBADF):
        os.write(fd, b"x")
    os.removexattr(path, READ_STREAM)
    if bench.image:
        log = bench.image.messages()
        assert "csd_read_stream refused" in log, log
