"""Kernels of many processes at once: none disturbs another, none is seen by another, hostile ones harm nobody."""

import contextlib
import errno
import fcntl
import json
import mmap
import os
import random
import signal
import time

from harness import case, eventually, fails_with
from e2e.kernels import (ADD, FAULTS, LOOPS, READ_EVENT, READ_STREAM, STRIDE, SUM, UPPER, WRITE_EVENT, attach,
                         attached, forked, kernel, of_each_byte, opened, punch_hole, read_all, registrations, stats,
                         text_of)

# A constant in the code that makes each kernel another one.
MAGIC = 0x5ad15ad1

# Every byte of the request combined with bytes of its place in the file, of the kernel's own number, and of its
# own variables: which would tell if two kernels shared any.
SIGNED = of_each_byte(f"u64 own = {MAGIC};",
                      "(seen[(at + i) & 63] += own, byte ^ (own >> (((at + i) & 3) * 8)) ^ (seen[(at + i) & 63] / own))",
                      "static u64 seen[64];")


def signed(data, offset, own):
    """What SIGNED makes of `data`, read at `offset`."""
    key = own.to_bytes(4, "little")
    return bytes(byte ^ key[(offset + i) & 3] ^ (1 + i // 64 & 255) for i, byte in enumerate(data))


def numbered(directory, number):
    """A kernel of its own for each number: the same code with another constant."""
    plain = kernel(directory, SIGNED, f"plain{number}.o")
    code = plain.read_bytes()
    assert code.count(MAGIC.to_bytes(4, "little")) >= 1
    own = MAGIC ^ number << 9 ^ number
    plain.write_bytes(code.replace(MAGIC.to_bytes(4, "little"), own.to_bytes(4, "little")))
    return plain, own


def wait_for(pids):
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert codes == [0] * len(pids), codes


class Gate:
    """Lets many processes begin, and end, at once."""

    def __init__(self):
        self.started, self.start = os.pipe()
        self.stopped, self.stop = os.pipe()

    def wait(self):
        os.close(self.start)
        os.read(self.started, 1)
        os.set_blocking(self.stopped, False)
        os.close(self.stop)

    def is_open(self):
        """Whether the processes are to go on."""
        try:
            return os.read(self.stopped, 1) != b""
        except BlockingIOError:
            return True

    def begin(self):
        os.close(self.start)

    def end(self):
        os.close(self.stop)

    def close(self):
        os.close(self.started)
        os.close(self.stopped)


@case
def sixty_four_kernels_of_sixty_four_processes_read_one_file_at_once(bench):
    path = bench.dir / "f"
    data = text_of(150000)
    path.write_bytes(data)
    with open(path, "r+b") as out:
        punch_hole(out.fileno(), 40960, 20480)
    data = path.read_bytes()
    kernels = [numbered(bench.dir, number) for number in range(1, 65)]
    gate = Gate()

    def work(number):
        object, own = kernels[number]
        numbers = random.Random(number)
        spans = [(numbers.randrange(140000), numbers.randrange(1, 40000)) for _ in range(6)]
        expected = [signed(data[at:at + size], at, own) for at, size in spans]
        whole = signed(data, 0, own)
        gate.wait()
        attach(path, object, ";timeout_ms=60000" + (";view" if number % 4 == 3 else ""))
        with opened(path) as fd:
            if number % 4 == 3:
                assert read_all(fd, 65536) == whole
                return
            for _ in range(3):
                for (at, size), output in zip(spans, expected):
                    assert os.pread(fd, size, at) == output, (number, at, size)

    children = [forked(lambda: work(number)) for number in range(64)]
    gate.begin()
    wait_for(children)
    gate.end()
    gate.close()
    assert path.read_bytes() == data
    assert eventually(lambda: bench.image is None or registrations(bench.image.dir) == 0)


def churn(directory, path, gate, seed):
    """Changes a file in every way, under changing names; other files too, so that zones fill up."""
    numbers, name, moves = random.Random(seed), path, 0
    size = path.stat().st_size
    while gate.is_open():
        with opened(name, os.O_RDWR) as fd:
            at = numbers.randrange(size)
            kind = moves % 7
            if kind == 0:
                os.pwrite(fd, os.urandom(numbers.randrange(1, 300000)), at)
            elif kind == 1:
                punch_hole(fd, at, 200000)
            elif kind == 2:
                os.ftruncate(fd, at)
            elif kind == 3:
                os.pwrite(fd, os.urandom(500000), 0)
                os.fsync(fd)
            elif kind == 4:
                moved = directory / f"moved{seed}-{moves}"
                os.rename(name, moved)
                name = moved
            elif kind == 5:
                os.ftruncate(fd, size)
            else:
                # A new file under the old name.
                os.unlink(name)
                name.write_bytes(os.urandom(size // 4))
                os.truncate(name, size)
        for number in range(3):
            (directory / f"fill{seed}-{numbers.randrange(24)}").write_bytes(os.urandom(1 << 20))
        os.sync()
        moves += 1
    os.unlink(name)


@case(image=True)
def snapshots_are_bit_exact_while_writers_change_and_the_collector_moves_everything(bench):
    image = bench.new_image("256M")
    directory = image.mount()
    path = directory / "f"
    data = bytearray(text_of(6 << 20))
    path.write_bytes(data)
    with open(path, "r+b") as out:
        # Fragmented, and with holes.
        for at in range(0, len(data), 300000):
            piece = text_of(5000, at)
            data[at:at + 5000] = piece
            os.pwrite(out.fileno(), piece, at)
            os.fsync(out.fileno())
        punch_hole(out.fileno(), 1 << 20, 1 << 18)
        data[1 << 20:(1 << 20) + (1 << 18)] = bytes(1 << 18)
    add, total = kernel(directory, ADD, "add.o"), kernel(directory, SUM, "sum.o")
    added = bytes(byte + 1 & 255 for byte in data)
    summed = sum(data).to_bytes(8, "little")
    gate, results = Gate(), os.pipe()

    def reads(value, check):
        attach(path, *value)
        rounds = 0
        with opened(path) as fd:
            ready.release()
            gate.wait()
            while gate.is_open():
                check(fd)
                rounds += 1
            # The file has no name any more, or is another one.
            check(fd)
        os.write(results[1], f"{rounds}\n".encode())

    def strides(fd):
        for at in range(0, len(added), STRIDE):
            assert os.pread(fd, STRIDE, at) == added[at:at + STRIDE], f"at {at}"

    def whole(_):
        with opened(path_of_owner) as fd:
            assert read_all(fd) == summed

    ready = Semaphore()
    path_of_owner = directory / "same"
    os.link(path, path_of_owner)
    readers = [
        forked(lambda: reads((add, ";arg=1;timeout_ms=60000"), strides)),
        forked(lambda: reads((total, ";timeout_ms=60000"), lambda fd: check_sum(fd, summed))),
        forked(lambda: reads((total, ";view;timeout_ms=60000"), whole)),
    ]
    ready.acquire(len(readers))
    before = stats(directory)["collector"]
    writer = forked(lambda: (gate.wait(), churn(directory, path, gate, 5)))
    gate.begin()
    begun = time.monotonic()
    moved = lambda: stats(directory)["collector"]["zones_reset"] - before["zones_reset"]
    while time.monotonic() - begun < 6 or (moved() < 4 and time.monotonic() - begun < 40):
        time.sleep(0.2)
    gate.end()
    wait_for(readers + [writer])
    after = stats(directory)["collector"]
    rounds = [int(line) for line in os.read(results[0], 1000).split()]
    gate.close()
    for end in results:
        os.close(end)
    assert len(rounds) == 3 and min(rounds) > 1, rounds
    assert moved() >= 4, (before, after)
    assert eventually(lambda: registrations(directory) == 0)
    image.unmount()
    image.fsck()


def check_sum(fd, expected):
    assert os.pread(fd, 100, 0) == expected


class Semaphore:
    """Counts across processes."""

    def __init__(self):
        self.here, self.there = os.pipe()

    def release(self):
        os.write(self.there, b"x")

    def acquire(self, count):
        while count > 0:
            count -= len(os.read(self.here, count))
        os.close(self.here)
        os.close(self.there)


@case
def nobody_sees_kernel_output_while_kernels_run(bench):
    path = bench.dir / "f"
    size = 1 << 20
    data = text_of(size)
    path.write_bytes(data)
    object = kernel(bench.dir, UPPER)
    shouted = data.upper()
    gate = Gate()

    def owner(view):
        gate.wait()
        attach(path, object, ";timeout_ms=60000" + (";view" if view else ""))
        while gate.is_open():
            with opened(path) as fd:
                assert read_all(fd, 200000) == shouted
                assert os.pread(fd, 7, 12345) == shouted[12345:12352]

    def event_owner():
        gate.wait()
        attach(path, object, ";timeout_ms=60000", READ_EVENT)
        while gate.is_open():
            with opened(path) as fd:
                # What the kernel adds comes behind the end of the file.
                assert os.pread(fd, 300, size - 100) == data[-100:] + shouted[-100:]

    def watch(look):
        gate.wait()
        looks = 0
        while gate.is_open():
            assert look() == data, "kernel output got out"
            looks += 1
        assert looks > 1, looks

    def cached():
        return path.read_bytes()

    def dropped():
        # The page cache is filled anew while kernels run.
        with opened(path) as fd:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            return read_all(fd, 131072)

    def direct():
        with opened(path, os.O_RDONLY | os.O_DIRECT) as fd, mmap.mmap(-1, size) as buffer:
            assert os.readv(fd, [buffer]) == size
            return buffer[:]

    def mapped():
        with opened(path) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as pages:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            return pages[:]

    def private():
        with opened(path) as fd, mmap.mmap(fd, 0, mmap.MAP_PRIVATE) as pages:
            return pages[:]

    def sent():
        target = bench.dir / f"sent{os.getpid()}"
        with opened(path) as fd, opened(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as out:
            while os.sendfile(out, fd, None, 1 << 20):
                pass
        return target.read_bytes()

    def spliced():
        here, there = os.pipe()
        fcntl.fcntl(there, fcntl.F_SETPIPE_SZ, size)
        try:
            with opened(path) as fd:
                seen = b""
                while moved := os.splice(fd, there, size):
                    while moved:
                        part = os.read(here, moved)
                        seen, moved = seen + part, moved - len(part)
                return seen
        finally:
            os.close(here)
            os.close(there)

    def watch_mapping():
        # From before any kernel, looked at all the time.
        with opened(path) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as lasting:
            watch(lambda: lasting[:])

    owners = [forked(lambda: owner(view=number == 0)) for number in range(3)] + [forked(event_owner)]
    looks = [cached, dropped, direct, mapped, private, sent, spliced]
    watchers = [forked(lambda: watch(look)) for look in looks] + [forked(watch_mapping)]
    gate.begin()
    time.sleep(5)
    gate.end()
    wait_for(owners + watchers)
    gate.close()
    assert path.read_bytes() == data
    if bench.image:
        path = bench.image.remount() / path.relative_to(bench.image.dir)
        assert path.read_bytes() == data


@case
def writes_of_one_process_go_through_its_kernels_alone(bench):
    path = bench.dir / "f"
    slots, size = 16, 4096
    path.write_bytes(b"-" * slots * size)
    object = kernel(bench.dir, UPPER)
    gate = Gate()

    def writes(number):
        text = (b"abcdefgh%08d" % number) * (size // 16)
        shouts = number % 2 == 0
        if shouts:
            attach(path, object, ";timeout_ms=60000", "user.process.csd_write_stream")
        gate.wait()
        with opened(path, os.O_RDWR) as fd:
            for _ in range(20):
                assert os.pwrite(fd, text, number * size) == size
        return text.upper() if shouts else text

    children = [forked(lambda: writes(number)) for number in range(slots)]
    gate.begin()
    wait_for(children)
    gate.end()
    gate.close()
    seen = path.read_bytes()
    for number in range(slots):
        text = (b"abcdefgh%08d" % number) * (size // 16)
        expected = text.upper() if number % 2 == 0 else text
        assert seen[number * size:(number + 1) * size] == expected, number


def mutated(numbers, object):
    """`object` with some bytes changed: mostly in its first half, where the code is."""
    out = bytearray(object)
    for _ in range(numbers.randrange(1, 5)):
        at = numbers.randrange(64, len(out) // 2 if numbers.random() < 0.7 else len(out))
        kind = numbers.randrange(4)
        if kind == 0:
            out[at] ^= 1 << numbers.randrange(8)
        elif kind == 1:
            out[at] = numbers.randrange(256)
        elif kind == 2:
            out[at & ~7:(at & ~7) + 8] = numbers.choice([b"\xff" * 8, bytes(8), b"\0" * 7 + b"\x80", numbers.randbytes(8)])
        else:
            other = numbers.randrange(64, len(out) - 8)
            out[at & ~7:(at & ~7) + 8] = out[other & ~7:(other & ~7) + 8]
    return bytes(out[:len(object)])


@case
def hostile_kernels_are_refused_or_fail_and_harm_nobody(bench):
    seed = int(os.environ.get("WARREN_SEED", "1"))
    path, other = bench.dir / "f", bench.dir / "other"
    data = text_of(100000)
    path.write_bytes(data)
    other.write_bytes(data)
    originals = [kernel(bench.dir, source, f"{number}.o") for number, source in enumerate([ADD, SUM, UPPER, FAULTS])]
    good = kernel(bench.dir, UPPER, "good.o")
    daemon = bench.image.daemon.pid if bench.image else None
    gate = Gate()

    def attacks(number):
        numbers = random.Random(seed * 1000 + number)
        codes = [one.read_bytes() for one in originals]
        object, accepted = bench.dir / f"hostile{number}.o", 0
        gate.wait()
        for round in range(60):
            object.write_bytes(mutated(numbers, numbers.choice(codes)))
            try:
                attach(path, object, ";timeout_ms=50;arg=3")
            except OSError as error:
                assert error.errno in (errno.EINVAL, errno.ENOEXEC), (seed, number, round, error)
                continue
            accepted += 1
            with opened(path) as fd:
                try:
                    os.pread(fd, 65536, 4096)
                except OSError as error:
                    assert error.errno in (errno.EIO, errno.ETIME), (seed, number, round, error)
            os.removexattr(path, READ_STREAM)
        assert accepted > 5, f"seed {seed}, process {number}: only {accepted} ran"

    def goes_on():
        attach(other, good, ";timeout_ms=60000")
        gate.wait()
        with opened(other) as fd:
            while gate.is_open():
                assert os.pread(fd, 100000, 0) == data.upper()

    attackers = [forked(lambda: attacks(number)) for number in range(6)]
    victim = forked(goes_on)
    gate.begin()
    wait_for(attackers)
    gate.end()
    wait_for([victim])
    gate.close()
    assert path.read_bytes() == data and other.read_bytes() == data
    if bench.image:
        assert bench.image.daemon.poll() is None and bench.image.daemon.pid == daemon
        assert eventually(lambda: registrations(bench.image.dir) == 0)


@case
def kernels_that_end_badly_leave_nothing_to_those_that_run_beside_them(bench):
    path = bench.dir / "f"
    data = text_of(50000)
    path.write_bytes(data)
    bad = [kernel(bench.dir, source, name) for source, name in [(FAULTS, "faults.o"), (LOOPS, "loops.o")]]
    good = kernel(bench.dir, SUM, "sum.o")
    expected = sum(data).to_bytes(8, "little")
    gate = Gate()

    def fails(object, wanted, time_ms):
        attach(path, object, f";timeout_ms={time_ms}")
        gate.wait()
        with opened(path) as fd:
            while gate.is_open():
                with fails_with(wanted):
                    os.pread(fd, 4096, 0)

    def succeeds():
        attach(path, good, ";timeout_ms=60000")
        gate.wait()
        with opened(path) as fd:
            while gate.is_open():
                assert os.pread(fd, 4096, 0) == expected
        seen = json.loads(os.getxattr(path, "user.process.csd_stats"))
        assert len(seen) == 1 and seen[0]["failures"] == 0 and seen[0]["executions"] > 3, seen

    children = [forked(lambda: fails(bad[0], errno.EIO, 60000)), forked(lambda: fails(bad[1], errno.ETIME, 20))]
    children += [forked(succeeds) for _ in range(4)]
    gate.begin()
    time.sleep(3)
    gate.end()
    wait_for(children)
    gate.close()


@case
def an_owner_that_is_killed_while_its_kernel_runs_takes_nothing_along(bench):
    path = bench.dir / "f"
    path.write_bytes(b"abc" * 1000)
    loops, upper = kernel(bench.dir, LOOPS, "loops.o"), kernel(bench.dir, UPPER, "upper.o")
    for _ in range(5):
        def hangs():
            attach(path, loops, ";timeout_ms=300")
            attach(path, upper, "", WRITE_EVENT)
            with opened(path) as fd, contextlib.suppress(OSError):
                os.pread(fd, 10, 0)

        child = forked(hangs)
        time.sleep(0.1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with attached(path, upper), opened(path) as fd:
            assert os.pread(fd, 3, 0) == b"ABC"
    assert eventually(lambda: bench.image is None or registrations(bench.image.dir) == 0)
    assert path.read_bytes() == b"abc" * 1000
