"""Attributes: permissions, owners, times, extended attributes, ACLs, special files, space."""

import errno
import os
import socket
import stat
import time

from harness import as_user, case, fails_with, need, need_root, run, shell


@case
def permissions_hold_for_others(bench):
    need_root()
    secret, shared = bench.dir / "secret", bench.dir / "shared"
    secret.write_text("s")
    secret.chmod(0o600)
    shared.mkdir(mode=0o755)
    assert as_user(1001, lambda: os.open(secret, os.O_RDONLY)) == errno.EACCES
    assert as_user(1001, lambda: os.mkdir(shared / "x")) == errno.EACCES
    assert as_user(1001, lambda: os.chmod(secret, 0o777)) == errno.EPERM
    assert as_user(1001, lambda: os.chown(secret, 1001, 1001)) == errno.EPERM
    secret.chmod(0o640)
    os.chown(secret, 0, 1001)
    assert as_user(1001, lambda: os.close(os.open(secret, os.O_RDONLY))) == 0
    assert as_user(1001, lambda: os.open(secret, os.O_WRONLY)) == errno.EACCES
    shared.chmod(0o711)
    assert as_user(1001, lambda: os.listdir(shared)) == errno.EACCES


@case
def new_files_belong_to_their_maker(bench):
    need_root()
    bench.dir.chmod(0o777)
    def make():
        os.umask(0o027)
        (bench.dir / "f").write_text("x")
        (bench.dir / "d").mkdir()
        os.symlink("f", bench.dir / "l")
    assert as_user(1001, make) == 0
    for name, mode in [("f", 0o640), ("d", 0o750)]:
        seen = (bench.dir / name).stat()
        assert (seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode)) == (1001, 1001, mode)
    assert (bench.dir / "l").lstat().st_uid == 1001


@case
def set_group_id_directories_pass_their_group_on(bench):
    need_root()
    os.chown(bench.dir, 0, 1234)
    bench.dir.chmod(0o2775)
    (bench.dir / "f").write_text("x")
    (bench.dir / "d").mkdir()
    assert (bench.dir / "f").stat().st_gid == 1234
    seen = (bench.dir / "d").stat()
    assert seen.st_gid == 1234 and seen.st_mode & stat.S_ISGID


@case
def set_id_bits_end_with_writes_and_new_owners(bench):
    need_root()
    path = bench.dir / "f"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o6755)
    os.chown(path, 1001, 1001)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    path.chmod(0o6777)
    def write():
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, b"x")
        os.close(fd)
    assert as_user(1002, write) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o777
    path.chmod(0o6777)
    assert as_user(1002, lambda: os.truncate(path, 1)) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o777


@case
def times_are_kept_to_the_nanosecond(bench):
    path = bench.dir / "f"
    path.write_text("x")
    for atime, mtime in [(1, 2), (1_600_000_000_123_456_789, 1_700_000_000_987_654_321), (-5_000_000_001, -1)]:
        os.utime(path, ns=(atime, mtime))
        seen = path.stat()
        assert (seen.st_atime_ns, seen.st_mtime_ns) == (atime, mtime), seen
    if bench.image:
        ours = path.relative_to(bench.image.dir)
        seen = (bench.image.remount() / ours).stat()
        assert seen.st_mtime_ns == -1


@case
def changes_move_the_times(bench):
    path, early = bench.dir / "f", 1_000_000_000_000_000_000
    def moved(change, mtime, where=path):
        before = where.lstat()
        time.sleep(0.02)
        change()
        after = where.lstat()
        assert (after.st_mtime_ns > before.st_mtime_ns) == mtime, (before, after)
        assert after.st_ctime_ns > before.st_ctime_ns
    path.write_text("x")
    os.utime(path, ns=(early, early))
    def append():
        with open(path, "a") as out:
            out.write("more")
    moved(append, True)
    moved(lambda: os.truncate(path, 2), True)
    moved(lambda: path.chmod(0o600), False)
    moved(lambda: os.link(path, bench.dir / "g"), False)
    moved(lambda: (bench.dir / "new").touch(), True, bench.dir)
    moved(lambda: os.rename(bench.dir / "new", bench.dir / "newer"), True, bench.dir)
    moved(lambda: os.unlink(bench.dir / "newer"), True, bench.dir)


@case
def extended_attributes(bench):
    path = bench.dir / "f"
    path.write_text("x")
    values = {"user.empty": b"", "user.text": b"hello", "user.large": os.urandom(3000)}
    for name, value in values.items():
        os.setxattr(path, name, value)
    assert set(os.listxattr(path)) == set(values)
    for name, value in values.items():
        assert os.getxattr(path, name) == value
    with fails_with(errno.EEXIST):
        os.setxattr(path, "user.text", b"", os.XATTR_CREATE)
    with fails_with(errno.ENODATA):
        os.setxattr(path, "user.none", b"", os.XATTR_REPLACE)
    os.removexattr(path, "user.text")
    with fails_with(errno.ENODATA):
        os.getxattr(path, "user.text")
    with fails_with(errno.EOPNOTSUPP):
        os.setxattr(path, "unheard.of", b"x")
    os.symlink("f", bench.dir / "l")
    with fails_with(errno.EPERM, errno.EOPNOTSUPP):
        os.setxattr(bench.dir / "l", "user.x", b"x", follow_symlinks=False)
    if os.geteuid() == 0:
        os.setxattr(path, "trusted.t", b"t")
        os.setxattr(path, "security.s", b"s")
        assert as_user(1001, lambda: os.getxattr(path, "trusted.t")) in (errno.ENODATA, errno.EPERM)


@case
def access_control_lists(bench):
    need_root()
    need("setfacl", "getfacl")
    path = bench.dir / "f"
    path.write_text("x")
    path.chmod(0o600)
    run("setfacl", "-m", "u:1001:r", path)
    assert "user:1001:r--" in run("getfacl", "-n", path).stdout
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert as_user(1001, lambda: os.close(os.open(path, os.O_RDONLY))) == 0
    assert as_user(1002, lambda: os.open(path, os.O_RDONLY)) == errno.EACCES
    run("setfacl", "-b", path)
    assert as_user(1001, lambda: os.open(path, os.O_RDONLY)) == errno.EACCES
    path.chmod(0o600)
    run("setfacl", "-d", "-m", "u:1001:rwx", bench.dir)
    (bench.dir / "sub").mkdir()
    (bench.dir / "sub/new").write_text("x")
    assert "default:user:1001:rwx" in run("getfacl", "-n", bench.dir / "sub").stdout
    assert "user:1001:rwx" in run("getfacl", "-n", bench.dir / "sub/new").stdout
    assert as_user(1001, lambda: os.close(os.open(bench.dir / "sub/new", os.O_RDWR))) == 0


@case
def fifos_sockets_and_devices(bench):
    fifo, sock = bench.dir / "fifo", bench.dir / "sock"
    os.mkfifo(fifo)
    assert shell("cat fifo & echo through > fifo; wait", bench.dir) == "through\n"
    listener = socket.socket(socket.AF_UNIX)
    # Socket paths are short: go there.
    here = os.getcwd()
    os.chdir(bench.dir)
    try:
        listener.bind("sock")
        listener.listen()
        client = socket.socket(socket.AF_UNIX)
        client.connect("sock")
        client.close()
    finally:
        os.chdir(here)
        listener.close()
    assert stat.S_ISSOCK(sock.stat().st_mode) and stat.S_ISFIFO(fifo.stat().st_mode)
    if os.geteuid() == 0:
        os.mknod(bench.dir / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(bench.dir / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 70000))
        assert (bench.dir / "null").stat().st_rdev == os.makedev(1, 3)
        assert (bench.dir / "disk").stat().st_rdev == os.makedev(259, 70000)


@case
def space_is_accounted_for(bench):
    def free():
        fd = os.open(bench.dir, os.O_RDONLY)
        os.fsync(fd)
        seen = os.fstatvfs(fd)
        os.close(fd)
        assert seen.f_namemax == 255 and 0 < seen.f_bfree <= seen.f_blocks
        return seen.f_bfree * seen.f_frsize
    before = free()
    with open(bench.dir / "f", "wb") as out:
        out.write(os.urandom(32 << 20))
        out.flush()
        os.fsync(out.fileno())
    used = before - free()
    assert 30 << 20 <= used <= 48 << 20, f"32 MiB took {used} bytes"
    blocks = (bench.dir / "f").stat().st_blocks * 512
    assert 32 << 20 <= blocks <= 33 << 20, f"st_blocks says {blocks}"
    if bench.image:
        (bench.dir / "f").unlink()
        assert abs(before - free()) < 8 << 20
