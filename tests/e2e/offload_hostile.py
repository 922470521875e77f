"""Offloading by users who mean harm: to others, to programs with more rights, to the mount."""

import contextlib
import errno
import mmap
import os
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time

from harness import Skip, WARREN, as_user, case, eventually, fails_with, need, need_root, run
from e2e.kernels import (FAILS, FAULTS, LOOPS, READ_EVENT, READ_STREAM, STATS, UPPER, WRITE_EVENT, WRITE_STREAM,
                         attach, attached, forked, in_child, kernel, opened, pins, registrations, stats, text_of)
from e2e.offload_ends import FOREVER, IN_HELPERS, SOON, descriptors, quietly, requests_now, settles, time_to_end

# As much as the kernel knows of what is in the file.
SEEN = """
WARREN_KERNEL(request)
{
    u64 seen[2] = { request->snapshot_size, 0 };
    warren_read(0, &seen[1], 8);
    return warren_emit(seen, 16);
}
"""

# Calls itself for ever, and does something with what comes back.
RECURSES = """
__attribute__((noinline)) static s64 down(u64 n) { return n == 1 ? 1 : down(n * 3) + 1; }
WARREN_KERNEL(request) { return down(request->size * 2); }
"""

# As much output and heap as there can be, all of it touched.
HUGE = """
WARREN_KERNEL(request)
{
    u8 *heap = (u8 *)request->heap;
    for (u64 at = 0; at < request->heap_size; at += 4096)
        heap[at] = at;
    warren_emit(heap, request->heap_size < request->output_limit ? request->heap_size : request->output_limit);
    return 0;
}
"""

# Pointers to everywhere, in helpers and in loads and stores; some wrap around into the cage.
WILD = """
WARREN_KERNEL(request)
{
    u64 at = request->offset * 0x9e3779b97f4a7c15ull + 0x7fff00000000ull;
    for (u64 i = 0; i < 100000; i++) {
        at = at * 6364136223846793005ull + 1442695040888963407ull;
        *(volatile u64 *)at = i;
        warren_read(i, (void *)at, at >> 40);
        warren_emit((void *)at, at & 0xffff);
    }
    return 0;
}
"""

# Not provable: an index that only the contents of the file bound.
UNPROVABLE = """
static u64 table[4];
WARREN_KERNEL(request)
{
    u64 index = 0;
    warren_read(0, &index, 8);
    table[index]++;
    return warren_emit(table, sizeof(table));
}
"""


def read_direct(fd, size=4096):
    """Reads through a handle that may want alignment."""
    with mmap.mmap(-1, size) as page:
        return page[: os.preadv(fd, [page], 0)]


def as_uid(uid):
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


@case
def users_have_a_part_of_what_there_is_for_all(bench):
    need_root()
    upper, huge = kernel(bench.dir, UPPER, "upper.o"), kernel(bench.dir, HUGE, "huge.o")
    path = bench.dir / "f"
    path.write_bytes(b"abc")
    path.chmod(0o666)
    files = [bench.dir / f"f{number}" for number in range(300)]
    for file in files:
        file.touch()
        file.chmod(0o666)
    made = []

    def registers_too_many():
        for file in files:
            for name in [READ_STREAM, READ_EVENT, WRITE_STREAM, WRITE_EVENT]:
                attach(file, upper, name=name)
                made.append(file)

    def stops_at_the_limit():
        try:
            registers_too_many()
        finally:
            # What is there can be replaced all the same.
            attach(files[0], upper)
            if len(made) != 1024:
                raise OSError(errno.EBADMSG, f"{len(made)} registrations")

    def keeps_too_much():
        attach(path, huge, ";view" + FOREVER)
        fds = [os.open(path, os.O_RDONLY) for _ in range(5)]
        for fd in fds:
            os.pread(fd, 1, 0)

    assert as_user(1001, stops_at_the_limit) == errno.ENOSPC
    assert "the limit of 1024 registrations of one user is reached" in bench.image.log.read_text()
    assert eventually(lambda: registrations(bench.image.dir) == 0)
    assert as_user(1001, keeps_too_much) == errno.ENOMEM
    assert "bytes of views kept of one user is reached" in bench.image.log.read_text()
    assert eventually(lambda: stats(bench.image.dir)["kernels"]["view_bytes_kept"] == 0)
    with attached(path, upper):
        assert path.read_bytes() == b"ABC"


@case
def handles_are_of_who_opened_them_and_numbers_used_again_show_nothing(bench):
    need_root()
    last = pathlib.Path("/proc/sys/kernel/ns_last_pid")
    object, path = kernel(bench.dir, UPPER), bench.dir / "f"
    path.write_bytes(b"abc" + bytes(4093))
    fds, numbers = [], []

    def opens():
        numbers.append(threading.get_native_id())
        fds.append(os.open(path, os.O_RDONLY | os.O_DIRECT))

    thread = threading.Thread(target=opens)
    thread.start()
    thread.join()

    def attacks():
        # It has a handle of its own, so that setting is not refused, and the one it inherited.
        with opened(path, os.O_RDONLY | os.O_DIRECT) as own:
            attach(path, object)
            assert read_direct(own)[:3] == b"ABC"
            assert read_direct(fds[0])[:3] == b"abc", "it did not open that one"
            time.sleep(60)

    for _ in range(50):
        try:
            last.write_text(str(numbers[0] - 1))
        except OSError as error:
            raise Skip("numbers of processes cannot be chosen here") from error
        attacker = forked(attacks)
        if attacker == numbers[0]:
            break
        os.kill(attacker, 9)
        os.waitpid(attacker, 0)
    else:
        raise Skip("the number was not given out again")
    try:
        assert eventually(lambda: registrations(bench.image.dir) == 1)
        time.sleep(0.2)
        assert os.waitpid(attacker, os.WNOHANG) == (0, 0), "the attacker goes on"
        assert read_direct(fds[0])[:3] == b"abc"
    finally:
        os.kill(attacker, 9)
        os.waitpid(attacker, 0)
    # The thread is gone, but its process is not: the handle is of this process.
    attach(path, object)
    assert read_direct(fds[0])[:3] == b"ABC"
    os.close(fds[0])
    assert eventually(lambda: os.listxattr(path) == [])


@case
def a_handle_that_another_opened_is_no_reason_to_register(bench):
    object, path = kernel(bench.dir, UPPER), bench.dir / "f"
    path.write_bytes(b"abc" + bytes(4093))
    with opened(path, os.O_RDONLY | os.O_DIRECT) as fd:

        def registers():
            with fails_with(errno.EBUSY):
                attach(path, object)
            os.close(fd)
            attach(path, object)
            return path.read_bytes()[:3]

        assert in_child(registers) == b"ABC"
        assert read_direct(fd)[:3] == b"abc"


@case
def programs_with_more_rights_read_what_is_there(bench):
    need_root()
    object, path = kernel(bench.dir, UPPER), bench.dir / "f"
    path.write_bytes(b"abc")
    path.chmod(0o666)
    programs = {"plain": 0o755, "set-user-ID": 0o4755, "set-group-ID": 0o2755, "capable": 0o755}
    scratch = bench.scratch()
    scratch.chmod(0o755)
    for name, mode in programs.items():
        shutil.copy(shutil.which("cat"), scratch / name)
        os.chown(scratch / name, 0, 0)
        (scratch / name).chmod(mode)
    if os.statvfs(scratch).f_flag & os.ST_NOSUID:
        raise Skip("set-user-ID programs do nothing here")
    # vfs_cap_data of version 2, effective: CAP_NET_RAW.
    words = [0x02000001, 1 << 13, 0, 0, 0]
    capable = b"".join(word.to_bytes(4, "little") for word in words)
    os.setxattr(scratch / "capable", "security.capability", capable)
    expected = {name: b"ABC" if name == "plain" else b"abc" for name in programs}

    def reads():
        attach(path, object, f";owner={os.getpid()}")
        said = {name: subprocess.run([scratch / name, path], capture_output=True).stdout for name in programs}
        if said != expected:
            print(said, flush=True)
            raise OSError(errno.EBADMSG, "read something else")

    def becomes(name):
        # The process that registered executes the program itself.
        attach(path, object)
        os.dup2(os.open(out, os.O_WRONLY | os.O_TRUNC), 1)
        os.execv(scratch / name, ["cat", str(path)])

    def hands_over(name):
        # It hands over a handle that the kernel answers.
        attach(path, object)
        os.dup2(os.open(path, os.O_RDONLY), 0)
        os.dup2(os.open(out, os.O_WRONLY | os.O_TRUNC), 1)
        os.execv(scratch / name, ["cat"])

    out = scratch / "out"
    out.touch()
    out.chmod(0o666)
    assert as_user(1001, reads) == 0
    for name in programs:
        assert as_user(1001, lambda: becomes(name)) == 0
        assert out.read_bytes() == expected[name], name
    for name in ["plain", "set-user-ID", "set-group-ID"]:
        assert as_user(1001, lambda: hands_over(name)) == 0
        assert out.read_bytes() == expected[name], name
    # Root could have become anybody.
    with attached(path, object, f";owner={os.getpid()}"):
        assert in_child(lambda: (as_uid(1001), path.read_bytes())[1]) == b"ABC"
        assert run(scratch / "set-user-ID", path).stdout == "ABC"


@case
def who_may_only_write_learns_nothing_of_what_is_there(bench):
    need_root()
    object, path = kernel(bench.dir, SEEN), bench.dir / "f"
    path.write_bytes(b"a secret of 20 bytes")

    def writes():
        attach(path, object, name=WRITE_STREAM)
        with opened(path, os.O_WRONLY) as fd:
            os.pwrite(fd, b"x", 100)

    path.chmod(0o222)
    assert as_user(1001, writes) == 0
    assert path.read_bytes()[100:116] == bytes(16)
    path.chmod(0o666)
    assert as_user(1001, writes) == 0
    assert path.read_bytes()[100:116] == (116).to_bytes(8, "little") + b"a secret"


@case
def a_place_in_the_file_system_is_no_handle(bench):
    object, path = kernel(bench.dir, UPPER), bench.dir / "f"
    path.write_bytes(b"abc")
    # Somebody has the file open, so that it is looked who.
    with subprocess.Popen(["sleep", "60"], stdin=open(path, "rb")) as other, opened(path, os.O_PATH):
        with attached(path, object):
            assert path.read_bytes() == b"ABC"
            assert os.listxattr(path) == [READ_STREAM], "no handle was there that could be the last"
        other.kill()


@case
def owners_with_very_many_descriptors_keep_nobody_waiting(bench):
    need_root()
    object, path = kernel(bench.dir, UPPER), bench.dir / "f"
    path.write_bytes(b"abc" + bytes(4093))
    ready, go = os.pipe(), os.pipe()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, 80000))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)

    def owner():
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        cached, direct = os.open(path, os.O_RDONLY), os.open(path, os.O_RDONLY | os.O_DIRECT)
        many = [os.dup(ready[1]) for _ in range(min(15000, most - 100))]
        attach(path, object)
        # From now on every closing of the file may be that of the owner's last handle.
        os.close(direct)
        os.write(ready[1], b"1")
        os.read(go[0], 1)
        os.close(cached)
        os.write(ready[1], b"2")
        if most < 80000:
            return
        os.read(go[0], 1)
        many += [os.dup(ready[1]) for _ in range(60000)]
        with opened(path, os.O_RDONLY | os.O_DIRECT), fails_with(errno.EBUSY):
            attach(path, object)
        os.write(ready[1], b"3")

    child = forked(owner)
    try:
        assert os.read(ready[0], 1) == b"1"
        begun = time.monotonic()
        for _ in range(200):
            with opened(path) as fd:
                assert os.pread(fd, 3, 0) == b"abc"
        took = time.monotonic() - begun
        assert took < 3, f"200 times opened and closed in {took:.2f} s"
        assert registrations(bench.image.dir) == 1, "the owner has the file open"
        os.write(go[1], b"x")
        assert os.read(ready[0], 1) == b"2"
        assert eventually(lambda: registrations(bench.image.dir) == 0)
        if most >= 80000:
            os.write(go[1], b"x")
            assert os.read(ready[0], 1) == b"3"
            assert "too many descriptors" in bench.image.log.read_text()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for end in [*ready, *go]:
            os.close(end)


@case
def names_that_mean_nothing_are_refused(bench):
    path = bench.dir / "f"
    path.write_bytes(b"abc")
    for name in ["user.process.csd_", "user.process.csd_readstream", "user.process.csd_read_stream2"]:
        with fails_with(errno.EINVAL):
            os.setxattr(path, name, b"1")
        with fails_with(errno.ENODATA):
            os.getxattr(path, name)
    said = "user.process.csd_* are read_stream, write_stream, read_event, write_event"
    assert said in bench.image.log.read_text()
    with fails_with(errno.EPERM):
        os.setxattr(path, STATS, b"1")
    os.setxattr(path, "user.process.other", b"1")
    assert os.listxattr(path) == ["user.process.other"]


@case
def threads_and_zombies_own_nothing(bench):
    object, path = kernel(bench.dir, UPPER), bench.dir / "f"
    path.write_bytes(b"abc")
    zombie = forked(lambda: None)
    time.sleep(0.1)
    stop, numbers = threading.Event(), []
    thread = threading.Thread(target=lambda: (numbers.append(threading.get_native_id()), stop.wait()))
    thread.start()
    assert eventually(lambda: numbers)
    for owner in [zombie, numbers[0], 2**31 - 1]:
        with fails_with(errno.ESRCH):
            attach(path, object, f";owner={owner}")
    stop.set()
    thread.join()
    os.waitpid(zombie, 0)
    assert registrations(bench.image.dir) == 0


@case
def a_handle_that_is_passed_on_is_answered_as_long_as_its_owner_lives(bench):
    object, path = kernel(bench.dir, UPPER), bench.dir / "f"
    path.write_bytes(b"abc")
    mine, theirs = socket.socketpair()

    def owner():
        attach(path, object)
        fd = os.open(path, os.O_RDONLY)
        socket.send_fds(theirs, [b"x"], [fd])
        theirs.recv(1)

    child = forked(owner)
    _, [fd], _, _ = socket.recv_fds(mine, 1, 1)
    try:
        assert os.pread(fd, 10, 0) == b"ABC" and in_child(lambda: os.pread(fd, 10, 0)) == b"ABC"
        # Mappings have the file as it is, and so has the page cache.
        with mmap.mmap(fd, 3, mmap.MAP_PRIVATE, mmap.PROT_READ) as mapped:
            assert mapped[:] == b"abc"
        assert path.read_bytes() == b"abc"
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert eventually(lambda: os.pread(fd, 10, 0) == b"abc")
    os.close(fd)
    mine.close()
    theirs.close()


@case(image=True)
def verification_refuses_or_reports_as_the_mount_says(bench):
    scratch = bench.scratch()
    fine, unprovable = kernel(scratch, SEEN, "fine.o"), kernel(scratch, UNPROVABLE, "unprovable.o")
    check = lambda object, *options: run(WARREN, "kernel", "check", *options, object, check=False)
    assert check(fine).returncode == 0 and check(unprovable).returncode == 0
    assert check(fine, "--verify").returncode == 0, check(fine, "--verify")
    refused = check(unprovable, "--verify")
    assert refused.returncode == 1 and "not verified" in refused.stdout + refused.stderr, refused
    # Within the table whatever is read: wrong in theory only.
    contents = (2).to_bytes(8, "little")
    image = bench.new_image("512M")
    for mode in ["require", "report"]:
        directory = image.mount(f"csd_verify={mode}")
        path = directory / "f"
        path.write_bytes(contents)
        lines = len(image.log.read_text().splitlines())
        with attached(path, kernel(directory, SEEN, "fine.o")), opened(path) as fd:
            assert os.pread(fd, 16, 0) == (8).to_bytes(8, "little") + contents
        assert "not verified" not in image.log.read_text()
        object = kernel(directory, UNPROVABLE, "unprovable.o")
        if mode == "require":
            with fails_with(errno.EINVAL):
                attach(path, object)
            assert os.listxattr(path) == [] and path.read_bytes() == contents
        else:
            with attached(path, object), opened(path) as fd:
                assert os.pread(fd, 100, 0) == bytes(16) + (1).to_bytes(8, "little") + bytes(8)
        said = [line for line in image.log.read_text().splitlines()[lines:] if "not verified" in line]
        assert len(said) == 1 and "instruction" in said[0], said
        image.unmount()
        image.log.write_text("")


HOSTILE = {
    "loops": LOOPS, "recurses": RECURSES, "helpers": IN_HELPERS, "wild": WILD, "huge": HUGE, "fails": FAILS,
    "faults": FAULTS,
}


def attack(path, objects, write_to):
    """What a hostile process does until it is killed."""
    for turn in range(1 << 30):
        object = objects[(os.getpid() + turn) % len(objects)]
        view = ";view" if turn % 3 == 0 else ""
        quietly(lambda: attach(path, object, f";timeout_ms=300{view}"))
        quietly(lambda: attach(write_to, object, ";timeout_ms=300", WRITE_STREAM))
        threads = [threading.Thread(target=lambda: quietly(path.read_bytes)) for _ in range(4)]
        threads.append(threading.Thread(target=lambda: quietly(lambda: write_to.write_bytes(b"x" * 5000))))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@case
def others_go_on_while_several_users_attack(bench):
    need_root()
    objects = [kernel(bench.dir, source, f"{name}.o") for name, source in HOSTILE.items()]
    upper, path = kernel(bench.dir, UPPER, "upper.o"), bench.dir / "f"
    data = text_of(100000)
    path.write_bytes(data)
    before, open_before = pins(bench.image.dir), descriptors(bench.image)
    children = []
    for number in range(12):
        target, written = bench.dir / f"target{number}", bench.dir / f"written{number}"
        target.write_bytes(text_of(1 << 16, number) * 16)
        written.touch()
        for file in [target, written]:
            file.chmod(0o666)
        attacks = lambda: (as_uid(1001 + number % 3), attack(target, objects, written))
        children.append(forked(lambda: quietly(attacks)))
    worst = {"file": 0.0, "kernel": 0.0}
    try:
        until, rounds = time.monotonic() + 6, 0
        while time.monotonic() < until:
            begun = time.monotonic()
            own = bench.dir / f"own{rounds % 7}"
            own.write_bytes(data)
            assert own.read_bytes() == data
            between = time.monotonic()
            with attached(path, upper):
                assert path.read_bytes() == data.upper()
            ended = time.monotonic()
            worst["file"] = max(worst["file"], between - begun)
            worst["kernel"] = max(worst["kernel"], ended - between)
            rounds += 1
        took = time_to_end(children)
        children.clear()
    finally:
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)
    assert rounds > 3 and worst["file"] < 3 and worst["kernel"] < 5, (rounds, worst)
    assert took < 3, f"ended after {took:.2f} s"
    assert settles(bench, before), stats(bench.image.dir)["kernels"]
    assert eventually(lambda: descriptors(bench.image) <= open_before + 2), descriptors(bench.image)
    assert stats(bench.image.dir)["kernels"]["view_bytes_kept"] == 0


@case
def kernels_of_one_user_that_never_end_keep_no_other_waiting(bench):
    need_root()
    loops, object = kernel(bench.dir, LOOPS), kernel(bench.dir, UPPER, "upper.o")
    path = bench.dir / "f"
    path.write_bytes(b"abc")
    path.chmod(0o666)

    def hog():
        as_uid(1001)
        attach(path, loops, FOREVER)
        threads = [threading.Thread(target=lambda: quietly(path.read_bytes)) for _ in range(32)]
        for thread in threads:
            thread.start()
        time.sleep(60)

    child = forked(hog)
    try:
        assert eventually(lambda: requests_now(bench.image.dir) == 32)
        begun = time.monotonic()
        with attached(path, object):
            for _ in range(3):
                assert path.read_bytes() == b"ABC"
        took = time.monotonic() - begun
    finally:
        ended = time_to_end([child])
    assert took < 3 and ended < SOON, (took, ended)
    assert eventually(lambda: registrations(bench.image.dir) == 0)


@case
def a_kernel_can_be_its_own_file(bench):
    object = kernel(bench.dir, UPPER)
    plain = object.read_bytes()
    with attached(object, object):
        assert object.read_bytes() == plain.upper()
        object.write_bytes(b"")
        assert object.read_bytes() == plain.upper(), "kernel and snapshot are those of the moment"
    assert object.read_bytes() == b""


@case
def created_and_replaced_as_the_flags_say(bench):
    need("getfattr")
    object, path = kernel(bench.dir, UPPER), bench.dir / "f"
    path.write_bytes(b"abc")
    value = str(object.stat().st_ino).encode()
    with fails_with(errno.ENODATA):
        os.setxattr(path, READ_STREAM, value, os.XATTR_REPLACE)
    os.setxattr(path, READ_STREAM, value, os.XATTR_CREATE)
    with fails_with(errno.EEXIST):
        os.setxattr(path, READ_STREAM, value, os.XATTR_CREATE)
    os.setxattr(path, READ_STREAM, value + b";view", os.XATTR_REPLACE)
    assert os.getxattr(path, READ_STREAM) == value + b";view"
    assert run("getfattr", "-d", path, check=False).stdout == "", "the child sees nothing"
    os.removexattr(path, READ_STREAM)
    assert registrations(bench.image.dir) == 0
