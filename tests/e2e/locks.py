"""Locks between processes: flock and fcntl."""

import errno
import fcntl
import os
import struct

from harness import case


def in_child(path, attempt):
    """Whether `attempt(fd)` succeeds in another process that opens `path` itself."""
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            fd = os.open(path, os.O_RDWR)
            attempt(fd)
            code = 0
        except OSError as error:
            code = 1 if error.errno in (errno.EAGAIN, errno.EACCES) else 3
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 1), f"the attempt ended with {code}"
    return code == 0


@case
def flock_excludes_other_processes(bench):
    path = bench.dir / "f"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    other = lambda kind: in_child(path, lambda fd: fcntl.flock(fd, kind | fcntl.LOCK_NB))
    fcntl.flock(fd, fcntl.LOCK_SH)
    assert other(fcntl.LOCK_SH) and not other(fcntl.LOCK_EX)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert not other(fcntl.LOCK_SH)
    fcntl.flock(fd, fcntl.LOCK_UN)
    assert other(fcntl.LOCK_EX)
    os.close(fd)


@case
def fcntl_locks_ranges(bench):
    path = bench.dir / "f"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, bytes(1000))
    lock = lambda kind, start, length: (
        lambda fd: fcntl.lockf(fd, kind | fcntl.LOCK_NB, length, start, os.SEEK_SET))
    lock(fcntl.LOCK_EX, 100, 100)(fd)
    assert not in_child(path, lock(fcntl.LOCK_EX, 150, 10))
    assert not in_child(path, lock(fcntl.LOCK_SH, 199, 1))
    assert in_child(path, lock(fcntl.LOCK_EX, 200, 100))
    fcntl.lockf(fd, fcntl.LOCK_UN, 40, 120, os.SEEK_SET)
    assert in_child(path, lock(fcntl.LOCK_EX, 120, 40))
    assert not in_child(path, lock(fcntl.LOCK_EX, 110, 20))

    def who(child):
        query = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 100, 10, 0)
        answer = struct.unpack("hhqqi", fcntl.fcntl(child, fcntl.F_GETLK, query))
        assert answer[0] == fcntl.F_WRLCK
    assert in_child(path, who)
    os.close(fd)
    assert in_child(path, lock(fcntl.LOCK_EX, 0, 0))


@case
def locks_end_with_their_process(bench):
    path = bench.dir / "f"
    path.touch()
    assert in_child(path, lambda fd: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB))
    assert in_child(path, lambda fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB))
    assert in_child(path, lambda fd: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB))


@case
def a_waiting_lock_is_granted(bench):
    path = bench.dir / "f"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    ready_read, ready_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            own = os.open(path, os.O_RDWR)
            os.write(ready_write, b"x")
            fcntl.lockf(own, fcntl.LOCK_EX)
            code = 0
        finally:
            os._exit(code)
    os.read(ready_read, 1)
    fcntl.lockf(fd, fcntl.LOCK_UN)
    assert os.waitpid(pid, 0)[1] == 0
    os.close(fd)
