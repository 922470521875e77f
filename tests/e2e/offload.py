"""Offloading: kernels attached with extended attributes, run on snapshots, seen by their owner alone."""

import contextlib
import errno
import json
import mmap
import os
import random
import select
import time

from harness import WARREN, case, eventually, fails_with, need, run, shell
from e2e.kernels import (ADD, FAILS, FAULTS, FOUR_BYTES, LOOPS, NOTHING, READ_EVENT, READ_STREAM, RECORD, STATS,
                         STRIDE, SUM, TWICE, UPPER, WRITE_EVENT, WRITE_STREAM, attach, attached, forked, in_child,
                         kernel, opened, punch_hole, read_all, stats, text_of)


def as_fluffle_scripts_do(directory, open_first):
    """open, setxattr with the inode number, pread with a stride of 512 KiB."""
    object = kernel(directory, UPPER)
    data = text_of(3 * STRIDE + 12345)
    path = directory / "data"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDWR) if open_first else None
    os.setxattr(path, READ_STREAM, bytes(str(os.stat(object).st_ino), "utf-8"))
    if fd is None:
        fd = os.open(path, os.O_RDWR)
    try:
        for at in range(0, len(data), STRIDE):
            assert os.pread(fd, STRIDE, at) == data[at:at + STRIDE].upper(), f"at {at}"
        assert os.pread(fd, STRIDE, len(data)) == b""
        assert os.pread(fd, 7, 4095) == data[4095:4102].upper()
        os.removexattr(path, READ_STREAM)
        assert os.pread(fd, STRIDE, STRIDE) == data[STRIDE:2 * STRIDE]
    finally:
        os.close(fd)


@case
def set_then_open_and_read_in_strides(bench):
    as_fluffle_scripts_do(bench.dir, open_first=False)


@case(image=True)
def open_then_set_works_on_direct_mounts(bench):
    image = bench.new_image()
    directory = image.mount("direct_io")
    as_fluffle_scripts_do(directory, open_first=True)
    as_fluffle_scripts_do(directory, open_first=False)
    image.unmount()


@case
def a_shell_attaches_and_reads_with_ordinary_tools(bench):
    need("setfattr", "getfattr")
    kernel(bench.dir, UPPER, "upper.o")
    (bench.dir / "log").write_text("one line\n" * 1000)
    inside = f"/{bench.dir.name}/upper.o"
    seen = shell(f"""
        setfattr -n {READ_STREAM} -v "{inside};view;owner=$$" log
        cat log | head -n 1
        dd if=log bs=64k status=none | tail -n 1
        dd if=log bs=1M status=none | wc -c
        getfattr --only-values -n {READ_STREAM} log; echo
        getfattr -n {STATS} --only-values log | grep -c executions
        setfattr -x {READ_STREAM} log
        cat log | head -n 1
    """, bench.dir).splitlines()
    assert seen[:3] == ["ONE LINE", "ONE LINE", "9000"], seen
    assert seen[3].startswith(f"{inside};view;owner="), seen
    assert seen[4:] == ["1", "one line"], seen


@case
def a_view_is_read_to_its_end_whatever_the_size_of_the_file(bench):
    path = bench.dir / "f"
    data = text_of(100000)
    path.write_bytes(data)
    total = sum(data).to_bytes(8, "little")
    with attached(path, kernel(bench.dir, SUM), ";view"), opened(path) as fd:
        assert os.pread(fd, 100, 0) == total and os.pread(fd, 3, 6) == total[6:]
        assert os.pread(fd, 100, 8) == b"" and os.pread(fd, 1 << 20, 1 << 40) == b""
        assert read_all(fd) == total
        seen = json.loads(os.getxattr(path, STATS))[0]
        assert (seen["executions"], seen["bytes_returned"]) == (1, 8), seen
        assert seen["bytes_not_moved"] >= 90000, seen
    # More than the file holds.
    (bench.dir / "small").write_bytes(b"x")
    with attached(bench.dir / "small", kernel(bench.dir, SUM), ";view"):
        assert run("cat", bench.dir / "small").stdout == "x", "another process reads the file"
        with opened(bench.dir / "small") as fd:
            assert read_all(fd) == ord("x").to_bytes(8, "little")


@case
def every_shape_of_file_is_seen_as_it_is(bench):
    object = kernel(bench.dir, ADD)
    shapes = {"empty": b"", "inline": text_of(300), "odd": text_of(4097), "large": text_of(1 << 20)}
    for name, data in shapes.items():
        (bench.dir / name).write_bytes(data)
    with open(bench.dir / "sparse", "wb") as out:
        for at in [0, 70000, 1 << 20]:
            out.seek(at)
            out.write(text_of(5000, at))
        out.truncate(3 << 20)
    with open(bench.dir / "fragmented", "wb") as out:
        out.write(text_of(1 << 20))
        for at in range(0, 1 << 20, 20000):
            out.seek(at)
            out.write(text_of(3000, at))
            out.flush()
            os.fsync(out.fileno())
    with open(bench.dir / "reserved", "wb") as out:
        out.write(b"start")
        os.posix_fallocate(out.fileno(), 0, 100000)
    for path in sorted(bench.dir.iterdir()):
        if path == object:
            continue
        expected = bytes(byte + 3 & 255 for byte in path.read_bytes())
        blocks = path.stat().st_blocks
        with attached(path, object, ";arg=3"), opened(path) as fd:
            seen = b"".join(os.pread(fd, 100001, at) for at in range(0, max(1, len(expected)), 100001))
        assert seen == expected, path
        assert path.stat().st_blocks == blocks, "looking changes nothing that others see"


@case
def dirty_pages_are_part_of_the_snapshot(bench):
    object, path = kernel(bench.dir, UPPER), bench.dir / "f"
    # A process that has nothing of ours open.
    script = ("import os, sys; os.setxattr(sys.argv[1], sys.argv[2], sys.argv[3].encode());"
              "sys.stdout.buffer.write(open(sys.argv[1], 'rb').read())")
    elsewhere = lambda path: run("python3", "-c", script, path, READ_STREAM, object.stat().st_ino).stdout
    with open(path, "wb") as out:
        out.write(b"written a moment ago")
        out.flush()
        assert elsewhere(path) == "WRITTEN A MOMENT AGO"
    path = bench.dir / "m"
    path.write_bytes(b"." * 4096)
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 4096) as mapped:
        mapped[:6] = b"mapped"
        assert elsewhere(path)[:7] == "MAPPED."
    # The kernel itself may have just been written.
    fresh = bench.dir / "fresh.o"
    with open(fresh, "wb") as out:
        out.write(object.read_bytes())
        out.flush()
        script_of_fresh = run("python3", "-c", script, path, READ_STREAM, fresh.stat().st_ino).stdout
        assert script_of_fresh[:7] == "MAPPED."


@case
def nobody_else_sees_kernel_output_however_it_reads(bench):
    path = bench.dir / "f"
    data = text_of(300000)
    path.write_bytes(data)
    attach(path, kernel(bench.dir, UPPER))

    def others():
        seen = [path.read_bytes()]
        with opened(path, os.O_RDONLY | os.O_DIRECT) as fd:
            buffer = mmap.mmap(-1, 303104)
            seen.append(buffer[:os.readv(fd, [buffer])])
        with opened(path) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
            seen.append(mapped[:])
        with opened(path) as fd, open(bench.dir / "copy", "wb") as out:
            while os.sendfile(out.fileno(), fd, None, 1 << 20):
                pass
        seen.append((bench.dir / "copy").read_bytes())
        with fails_with(errno.ENODATA):
            os.getxattr(path, READ_STREAM)
        with fails_with(errno.ENODATA):
            os.getxattr(path, STATS)
        with fails_with(errno.ENODATA):
            os.removexattr(path, READ_STREAM)
        return [one == data for one in seen], os.listxattr(path)

    with opened(path) as fd:
        for _ in range(3):
            assert os.pread(fd, 300000, 0) == data.upper()
            assert in_child(others) == ([True] * 4, [])
        # The owner's own mapping is the file, too: it is made of the page cache.
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == data
        assert os.pread(fd, 300000, 0) == data.upper()
    assert os.listxattr(path) == [READ_STREAM]
    os.removexattr(path, READ_STREAM)
    assert path.read_bytes() == data and os.listxattr(path) == []


@case
def a_handle_from_the_page_cache_alone_is_in_the_way(bench):
    object, path = kernel(bench.dir, UPPER), bench.dir / "f"
    path.write_bytes(b"abcd" * 1024)
    with opened(path) as cached:
        with fails_with(errno.EBUSY):
            attach(path, object)
        assert os.listxattr(path) == []
        # Another process's handles are no concern of ours.
        assert in_child(lambda: (os.close(cached), attach(path, object), path.read_bytes())[2]) == b"ABCD" * 1024
        with opened(path, os.O_RDONLY | os.O_DIRECT) as direct:
            attach(path, object)
            buffer = mmap.mmap(-1, 4096)
            assert os.preadv(direct, [buffer], 0) == 4096 and buffer[:4] == b"ABCD"
            assert os.pread(cached, 4, 0) == b"abcd"
            os.removexattr(path, READ_STREAM)
            assert os.preadv(direct, [buffer], 0) == 4096 and buffer[:4] == b"abcd"


@case
def handles_from_before_stay_as_they_are(bench):
    object, path = kernel(bench.dir, UPPER), bench.dir / "f"
    path.write_bytes(b"abcd")
    with opened(path, os.O_RDONLY | os.O_DIRECT), opened(path) as before:
        attach(path, object)
        with opened(path) as after:
            assert (os.pread(before, 4, 0), os.pread(after, 4, 0)) == (b"abcd", b"ABCD")
    # The owner had the file open, and has closed it.
    assert eventually(lambda: os.listxattr(path) == [])


@case
def a_second_attribute_has_a_later_snapshot(bench):
    object, path = kernel(bench.dir, UPPER), bench.dir / "f"
    path.write_bytes(b"first")
    attach(path, object)
    with opened(path) as fd:
        in_child(lambda: path.write_bytes(b"second one"))
        assert os.pread(fd, 100, 0) == b"FIRST"
        attach(path, object)
        assert os.pread(fd, 100, 0) == b"SECOND ONE"
        with fails_with(errno.EEXIST):
            os.setxattr(path, READ_STREAM, str(object.stat().st_ino).encode(), os.XATTR_CREATE)
        with fails_with(errno.ENODATA):
            os.setxattr(path, WRITE_EVENT, str(object.stat().st_ino).encode(), os.XATTR_REPLACE)
    # It was set with the file open, and has ended with the last handle.
    assert eventually(lambda: os.listxattr(path) == [])
    with fails_with(errno.ENODATA):
        os.removexattr(path, READ_STREAM)


@case
def a_changed_kernel_is_the_one_that_was_registered(bench):
    object, path = kernel(bench.dir, UPPER), bench.dir / "f"
    path.write_bytes(b"abc")
    with attached(path, object), opened(path) as fd:
        object.write_bytes(b"garbage")
        object.unlink()
        assert os.pread(fd, 10, 0) == b"ABC"


@case
def kernels_that_fail_give_errors_and_change_nothing(bench):
    path = bench.dir / "f"
    data = text_of(10000)
    path.write_bytes(data)
    for source, expected in [(FAILS, errno.EIO), (FAULTS, errno.EIO), (LOOPS, errno.ETIME)]:
        object = kernel(bench.dir, source)
        with attached(path, object, ";timeout_ms=100"), opened(path) as fd, fails_with(expected):
            os.pread(fd, 4096, 0)
        with attached(path, object, ";view;timeout_ms=100"), opened(path) as fd, fails_with(expected):
            os.pread(fd, 4096, 0)
        with attached(path, object, ";timeout_ms=100", READ_EVENT), opened(path) as fd, fails_with(expected):
            os.pread(fd, 4096, 0)
        with attached(path, object, ";timeout_ms=100", WRITE_STREAM), opened(path, os.O_RDWR) as fd:
            with fails_with(expected):
                os.pwrite(fd, b"new", 0)
        assert path.read_bytes() == data
    # An event comes after the write.
    with attached(path, kernel(bench.dir, FAILS), "", WRITE_EVENT), opened(path, os.O_RDWR) as fd:
        with fails_with(errno.EIO):
            os.pwrite(fd, b"new", 0)
    assert path.read_bytes() == b"new" + data[3:]


@case
def a_kernel_ends_at_its_processor_time(bench):
    path = bench.dir / "f"
    path.write_bytes(text_of(10000))
    with attached(path, kernel(bench.dir, LOOPS), ";timeout_ms=60000;cpu_ms=100"), opened(path) as fd:
        begun = time.monotonic()
        with fails_with(errno.ETIME):
            os.pread(fd, 4096, 0)
        assert time.monotonic() - begun < 30, "it had no more processor time"
        [told] = json.loads(os.getxattr(path, STATS))
        assert told["timeouts"] == 1 and 100e6 <= told["processor_ns"] < 200e6, told


@case
def endless_kernels_do_not_keep_others_waiting(bench):
    path = bench.dir / "f"
    path.write_bytes(b"abc")
    loops, upper = kernel(bench.dir, LOOPS, "loops.o"), kernel(bench.dir, UPPER, "upper.o")

    def hog():
        attach(path, loops, ";timeout_ms=1500")
        with opened(path) as fd:
            with contextlib.suppress(OSError):
                os.pread(fd, 10, 0)

    children = [forked(hog) for _ in range(8)]
    time.sleep(0.2)
    attach(path, upper)
    begun = time.monotonic()
    with opened(path) as fd:
        assert os.pread(fd, 10, 0) == b"ABC"
    took = time.monotonic() - begun
    other = bench.dir / "other"
    other.write_bytes(b"x")
    assert other.read_bytes() == b"x"
    for pid in children:
        os.waitpid(pid, 0)
    os.removexattr(path, READ_STREAM)
    assert took < 1.0, f"waited {took:.2f} s behind other processes' kernels"


@case
def write_streams_replace_what_is_written(bench):
    path = bench.dir / "f"
    others = lambda: (path.read_bytes(), path.stat().st_size)
    # As long as the data.
    path.write_bytes(b"-" * 10)
    with attached(path, kernel(bench.dir, UPPER), "", WRITE_STREAM), opened(path, os.O_RDWR) as fd:
        assert os.pwrite(fd, b"shout", 2) == 5
        assert os.pread(fd, 100, 0) == b"--SHOUT---"
    assert in_child(others) == (b"--SHOUT---", 10)
    # Longer: it goes on behind the data.
    with attached(path, kernel(bench.dir, TWICE), "", WRITE_STREAM), opened(path, os.O_RDWR) as fd:
        assert in_child(path.read_bytes) == b"--SHOUT---"
        assert os.pwrite(fd, b"abc", 8) == 3
        assert in_child(others) == (b"--SHOUT-abcabc", 14)
        large = text_of(10000)
        assert os.pwrite(fd, large, 14) == 10000
    assert in_child(others) == (b"--SHOUT-abcabc" + large * 2, 20014)
    # Shorter: the rest of what was written is zeros, and takes no space.
    path.write_bytes(b"-" * 100000)
    with attached(path, kernel(bench.dir, FOUR_BYTES), "", WRITE_STREAM), opened(path, os.O_RDWR) as fd:
        assert os.pwrite(fd, b"x" * 50000, 100) == 50000
        os.fsync(fd)
    expected = b"-" * 100 + b"TINY" + b"\0" * 49996 + b"-" * 49900
    assert in_child(others) == (expected, 100000)
    assert in_child(lambda: path.stat().st_blocks * 512) < 70000
    with attached(path, kernel(bench.dir, NOTHING), "", WRITE_STREAM), opened(path, os.O_RDWR) as fd:
        assert os.pwrite(fd, b"x" * 20, 99990) == 20
    assert in_child(others) == (expected[:99990] + b"\0" * 20, 100010)
    if bench.image:
        path = bench.image.remount() / path.relative_to(bench.image.dir)
        assert path.read_bytes() == expected[:99990] + b"\0" * 20


@case
def write_events_append_what_they_return(bench):
    path = bench.dir / "f"
    path.write_bytes(b"." * 4090)
    assert path.read_bytes() == b"." * 4090, "now it is in the page cache"
    expected = b"." * 4090
    with attached(path, kernel(bench.dir, RECORD), "", WRITE_EVENT), opened(path, os.O_RDWR) as fd:
        for piece in [b"hello", b"x", text_of(5000)]:
            assert os.pwrite(fd, piece, 0) == len(piece)
            expected = piece + expected[len(piece):]
            expected += len(piece).to_bytes(4, "little") + piece[:4]
            assert os.fstat(fd).st_size == len(expected)
            assert in_child(lambda: (path.read_bytes(), path.stat().st_size)) == (expected, len(expected))
        with open(path, "rb") as mine:
            mine.seek(0, os.SEEK_END)
            assert mine.tell() == len(expected)
    # Written through, and durable.
    sync = bench.dir / "sync"
    sync.touch()
    with attached(sync, kernel(bench.dir, RECORD), "", WRITE_EVENT):
        for flags in [os.O_SYNC, os.O_DSYNC]:
            with opened(sync, os.O_WRONLY | flags) as fd:
                assert os.pwrite(fd, b"abcd", 0) == 4
    assert sync.read_bytes() == b"abcd" + b"\4\0\0\0abcd" * 2
    # Two kernels: what the first makes of the data is what the second hears of.
    log = bench.dir / "log"
    log.touch()
    with attached(log, kernel(bench.dir, UPPER, "upper.o"), "", WRITE_STREAM):
        with attached(log, kernel(bench.dir, RECORD), "", WRITE_EVENT), opened(log, os.O_WRONLY | os.O_APPEND) as fd:
            os.write(fd, b"abcdef")
            os.write(fd, b"gh")
    assert log.read_bytes() == b"ABCDEF\6\0\0\0ABCD" + b"GH\2\0\0\0GH"


@case
def read_events_add_to_what_is_read(bench):
    path = bench.dir / "f"
    path.write_bytes(b"hello")
    with attached(path, kernel(bench.dir, RECORD), "", READ_EVENT), opened(path) as fd:
        assert os.pread(fd, 100, 0) == b"hello\5\0\0\0hell"
        assert os.pread(fd, 7, 0) == b"hello\5\0", "within the size asked for"
        assert os.pread(fd, 2, 1) == b"el"
        assert os.pread(fd, 100, 5) == b"", "the end of the file is the end"
        in_child(lambda: path.write_bytes(b"changed"))
        assert os.pread(fd, 100, 0) == b"changed\7\0\0\0chan", "events hear of the file as it is"
    with attached(path, kernel(bench.dir, UPPER, "upper.o")):
        with attached(path, kernel(bench.dir, RECORD), "", READ_EVENT), opened(path) as fd:
            assert os.pread(fd, 100, 0) == b"CHANGED\7\0\0\0CHAN"


@case
def copies_through_kernels_are_made_of_reads(bench):
    path = bench.dir / "f"
    path.write_bytes(b"abc" * 10000)
    with attached(path, kernel(bench.dir, UPPER), f";view;owner={os.getpid()}"):
        with opened(path) as fd, opened(bench.dir / "copy", os.O_RDWR | os.O_CREAT) as out:
            with fails_with(errno.EINVAL):
                os.copy_file_range(fd, out, 1000)
        run("cp", "--reflink=never", path, bench.dir / "copy")
        shell("cat f > cat", bench.dir)
    assert (bench.dir / "cat").read_bytes() == b"ABC" * 10000


@case
def snapshots_hold_while_everything_changes(bench):
    path = bench.dir / "f"
    data = text_of(4 << 20)
    path.write_bytes(data)
    attach(path, kernel(bench.dir, ADD), ";arg=1")
    expected = bytes(byte + 1 & 255 for byte in data)

    def disturb(stopped):
        numbers, moves = random.Random(7), 0
        name = path
        while not stopped():
            fd = os.open(name, os.O_RDWR)
            at = numbers.randrange(4 << 20)
            kind = moves % 6
            if kind == 0:
                os.pwrite(fd, text_of(numbers.randrange(1, 300000), moves), at)
            elif kind == 1:
                punch_hole(fd, at, 200000)
            elif kind == 2:
                os.ftruncate(fd, at)
            elif kind == 3:
                os.pwrite(fd, text_of(500000, moves), 0)
                os.fsync(fd)
            elif kind == 4:
                moved = bench.dir / f"moved{moves}"
                os.rename(name, moved)
                name = moved
            else:
                os.ftruncate(fd, 4 << 20)
            os.close(fd)
            moves += 1
        os.unlink(name)
        return moves

    here, there = os.pipe()
    back, answer = os.pipe()
    stopped = lambda: select.select([here], [], [], 0)[0]
    pid = forked(lambda: os.write(answer, str(disturb(stopped)).encode()))
    with opened(path) as fd:
        until, rounds = time.monotonic() + 4, 0
        try:
            while time.monotonic() < until:
                for at in range(0, len(data), STRIDE):
                    assert os.pread(fd, STRIDE, at) == expected[at:at + STRIDE], f"round {rounds} at {at}"
                rounds += 1
        finally:
            os.write(there, b"x")
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code == 0, "the child failed"
        for at in range(0, len(data), STRIDE):
            assert os.pread(fd, STRIDE, at) == expected[at:at + STRIDE], "without a name"
    moves = int(os.read(back, 100))
    for end in [here, there, back, answer]:
        os.close(end)
    assert rounds > 1 and moves > 5, (rounds, moves)


@case
def many_processes_with_kernels_of_their_own_on_one_file(bench):
    path = bench.dir / "f"
    data = text_of(600000)
    path.write_bytes(data)
    object = kernel(bench.dir, ADD)

    def work(number):
        attach(path, object, f";arg={number};timeout_ms=60000")
        expected = bytes(byte + number & 255 for byte in data)
        with opened(path) as fd:
            for at in range(0, len(data), 200000):
                assert os.pread(fd, 200000, at) == expected[at:at + 200000]

    children = [forked(lambda: work(number)) for number in range(64)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert codes == [0] * 64, codes
    assert path.read_bytes() == data


@case
def statistics_tell_what_was_moved(bench):
    path = bench.dir / "f"
    data = text_of(1 << 20)
    path.write_bytes(data)
    with attached(path, kernel(bench.dir, SUM)), opened(path) as fd:
        assert os.pread(fd, 1 << 20, 0) == sum(data).to_bytes(8, "little")
        seen = json.loads(os.getxattr(path, STATS))
        assert len(seen) == 1 and seen[0]["operation"] == "read_stream"
        assert seen[0]["owner"] == os.getpid() and seen[0]["snapshot_bytes"] == 1 << 20
        assert seen[0]["bytes_read"] == 1 << 20 and seen[0]["bytes_not_moved"] == (1 << 20) - 8
        if bench.image:
            groups = stats(bench.image.dir)
            assert groups["kernels"]["bytes_returned"] >= 8
            named = [name for name in groups if name.startswith("kernel ") and f"inode {path.stat().st_ino} pid" in name]
            assert len(named) == 1, groups.keys()


@case(image=True)
def registrations_are_in_nobodys_way_at_unmount(bench):
    image = bench.new_image()
    directory = image.mount()
    path = directory / "f"
    path.write_bytes(b"abc" * 1000)
    attach(path, kernel(directory, UPPER), f";owner={os.getpid()}")
    with opened(path) as fd:
        assert os.pread(fd, 3, 0) == b"ABC"
    image.unmount()
    image.fsck()
    assert os.listxattr(image.mount() / "f") == [], "nothing was stored"
    image.unmount()


@case(image=True)
def snapshots_outlive_collection(bench):
    image = bench.new_image("256M")
    directory = image.mount()
    path = directory / "f"
    data = text_of(8 << 20)
    path.write_bytes(data)
    attach(path, kernel(directory, ADD), ";arg=1")
    expected = bytes(byte + 1 & 255 for byte in data)
    with opened(path) as fd:
        in_child(lambda: path.write_bytes(b""))
        filler = os.urandom(1 << 20)
        for round in range(12):
            for number in range(40):
                (directory / f"fill{number}").write_bytes(filler)
            os.sync()
        collected = stats(directory)["collector"]
        for at in range(0, len(data), STRIDE):
            assert os.pread(fd, STRIDE, at) == expected[at:at + STRIDE], collected
        assert collected["zones_reset"] > 0, collected
    os.removexattr(path, READ_STREAM)
    image.unmount()
    image.fsck()


@case
def kernels_are_checked_and_run_outside_a_mount(bench):
    scratch = bench.scratch()
    object, bad = kernel(scratch, UPPER, "good.o"), scratch / "bad.o"
    bad.write_bytes(b"\x7fELF and no more")
    (scratch / "in").write_bytes(b"some text")
    seen = json.loads(run(WARREN, "kernel", "check", "--json", object).stdout)
    assert seen[0]["accepted"] and "warren_map" in seen[0]["helpers"], seen
    both = run(WARREN, "kernel", "check", object, bad, check=False)
    assert both.returncode == 1 and "accepted" in both.stdout and "bad.o: " in both.stdout, both
    assert run(WARREN, "kernel", "run", object, scratch / "in").stdout == "SOME TEXT"
    said = run(WARREN, "kernel", "run", object, scratch / "in", "--offset", "5", "--size", "3",
               "--output", scratch / "out", "--json").stdout
    assert (scratch / "out").read_bytes() == b"TEX" and json.loads(said)["output_bytes"] == 3
    added = kernel(scratch, ADD, "add.o")
    assert run(WARREN, "kernel", "run", added, scratch / "in", "--arg", "0x1").stdout == "tpnf!ufyu"
    record = kernel(scratch, RECORD, "record.o")
    seen = run(WARREN, "kernel", "run", record, scratch / "in", "--op", "write-event").stdout
    assert seen == "\t\0\0\0some"
    assert run(WARREN, "kernel", "run", bad, scratch / "in", check=False).returncode == 1
    assert run(WARREN, "kernel", "run", object, scratch / "none", check=False).returncode == 1
