"""Contents: append, mmap, direct I/O, holes, preallocation, big offsets, many writers."""

import ctypes
import errno
import mmap
import os
import random
import subprocess
import sys
import threading

from harness import case, fails_with, run

LIBC = ctypes.CDLL(None, use_errno=True)
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE = 1, 2, 8, 16


def fallocate(fd, mode, offset, length):
    call = LIBC.fallocate64
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if call(fd, mode, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def opened(path, flags=0):
    return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o644)


@case
def appends_of_several_processes_interleave_whole(bench):
    path = bench.dir / "log"
    script = (
        "import os,sys\n"
        "fd=os.open(sys.argv[1],os.O_WRONLY|os.O_CREAT|os.O_APPEND,0o644)\n"
        "for i in range(500): os.write(fd,(sys.argv[2]*99+'\\n').encode())\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(path), c]) for c in "abcd"]
    assert all(writer.wait() == 0 for writer in writers)
    lines = path.read_text().splitlines()
    assert len(lines) == 2000 and all(len(line) == 99 and len(set(line)) == 1 for line in lines)


@case
def odd_offsets_and_sizes(bench):
    chance = random.Random(7)
    want = bytearray()
    fd = opened(bench.dir / "f")
    for _ in range(400):
        offset, size = chance.randrange(300_000), chance.randrange(20_000)
        data = chance.randbytes(size)
        if chance.random() < 0.1:
            os.ftruncate(fd, offset)
            del want[offset:]
            want.extend(bytes(offset - len(want)))
            continue
        os.pwrite(fd, data, offset)
        want.extend(bytes(max(0, offset + size - len(want))))
        want[offset:offset + size] = data
        if chance.random() < 0.1:
            os.fsync(fd)
    assert os.pread(fd, len(want) + 1, 0) == want
    os.close(fd)


@case
def shared_mappings_and_the_file_are_one(bench):
    fd = opened(bench.dir / "f")
    os.ftruncate(fd, 1 << 20)
    with mmap.mmap(fd, 1 << 20) as one, mmap.mmap(fd, 1 << 20) as two:
        one[5000:5005] = b"first"
        assert two[5000:5005] == b"first" and os.pread(fd, 5, 5000) == b"first"
        os.pwrite(fd, b"second", 9000)
        assert one[9000:9006] == b"second"
        one.flush()
    size = os.fstat(fd).st_size
    os.close(fd)
    assert size == 1 << 20 and (bench.dir / "f").read_bytes()[5000:5005] == b"first"


@case
def private_mappings_stay_private(bench):
    fd = opened(bench.dir / "f")
    os.write(fd, b"original" * 1024)
    with mmap.mmap(fd, 8192, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as own:
        own[0:8] = b"changed!"
        assert os.pread(fd, 8, 0) == b"original" and own[0:8] == b"changed!"
    os.close(fd)


@case
def mapped_bytes_reach_the_device(bench):
    path = bench.dir / "f"
    fd = opened(path)
    os.ftruncate(fd, 1 << 20)
    with mmap.mmap(fd, 1 << 20) as mapped:
        for page in range(0, 1 << 20, 4096):
            mapped[page:page + 8] = page.to_bytes(8, "little")
        mapped.flush()
    os.close(fd)
    if bench.image:
        ours = path.relative_to(bench.image.dir)
        path = bench.image.remount() / ours
    data = path.read_bytes()
    assert all(data[p:p + 8] == p.to_bytes(8, "little") for p in range(0, 1 << 20, 4096))


@case
def direct_and_buffered_access_agree(bench):
    path = bench.dir / "f"
    fd = opened(path, os.O_DIRECT)
    block = mmap.mmap(-1, 64 << 10)
    block.write(random.Random(1).randbytes(64 << 10))
    for i in range(16):
        assert os.pwritev(fd, [block], i * (64 << 10)) == 64 << 10
    buffered = opened(path)
    assert os.pread(buffered, 64 << 10, 5 * (64 << 10)) == block[:]
    os.pwrite(buffered, b"BUFFERED", 100)
    into = mmap.mmap(-1, 4096)
    assert os.preadv(fd, [into], 0) == 4096
    assert into[100:108] == b"BUFFERED"
    block[0:6] = b"DIRECT"
    os.pwritev(fd, [block], 0)
    assert os.pread(buffered, 6, 0) == b"DIRECT"
    os.close(fd)
    os.close(buffered)


@case
def preallocation_and_holes(bench):
    fd = opened(bench.dir / "f")
    fallocate(fd, 0, 0, 1 << 20)
    assert os.fstat(fd).st_size == 1 << 20 and os.pread(fd, 10, 1000) == bytes(10)
    fallocate(fd, KEEP_SIZE, 1 << 20, 1 << 20)
    assert os.fstat(fd).st_size == 1 << 20
    os.pwrite(fd, b"x" * (1 << 20), 0)
    fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 5000, 100_000)
    data = os.pread(fd, 1 << 20, 0)
    assert data[:5000] == b"x" * 5000 and data[5000:105_000] == bytes(100_000)
    assert data[105_000:] == b"x" * ((1 << 20) - 105_000)
    fallocate(fd, ZERO_RANGE, (1 << 20) - 10, 100)
    assert os.fstat(fd).st_size == (1 << 20) + 90
    fallocate(fd, ZERO_RANGE | KEEP_SIZE, 1 << 20, 1 << 20)
    assert os.fstat(fd).st_size == (1 << 20) + 90
    assert os.pread(fd, 200, (1 << 20) - 11) == b"x" + bytes(100)
    for mode, length in [(0, 0), (PUNCH_HOLE, 4096)]:
        with fails_with(errno.EINVAL, errno.EOPNOTSUPP):
            fallocate(fd, mode, 0, length)
    os.close(fd)


@case
def punching_gives_space_back(bench):
    fd = opened(bench.dir / "f")
    os.write(fd, os.urandom(8 << 20))
    os.fsync(fd)
    full = os.fstat(fd).st_blocks
    assert full * 512 >= 8 << 20, f"{full} blocks for 8 MiB"
    fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 1 << 20, 6 << 20)
    os.fsync(fd)
    left = os.fstat(fd).st_blocks
    assert left * 512 <= (2 << 20) + (64 << 10), f"{left} blocks after punching 6 of 8 MiB"
    os.close(fd)


@case
def data_and_holes_can_be_found(bench):
    fd = opened(bench.dir / "f")
    os.pwrite(fd, b"a" * 4096, 1 << 20)
    os.pwrite(fd, b"b" * 4096, 3 << 20)
    os.ftruncate(fd, 4 << 20)
    os.fsync(fd)
    assert os.lseek(fd, 0, os.SEEK_DATA) == 1 << 20
    assert os.lseek(fd, 1 << 20, os.SEEK_HOLE) == (1 << 20) + 4096
    assert os.lseek(fd, (1 << 20) + 4096, os.SEEK_DATA) == 3 << 20
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
    with fails_with(errno.ENXIO):
        os.lseek(fd, (3 << 20) + 4096, os.SEEK_DATA)
    with fails_with(errno.ENXIO):
        os.lseek(fd, 4 << 20, os.SEEK_HOLE)
    os.close(fd)


@case
def sparse_copies_stay_sparse(bench):
    run("truncate", "-s", "1G", bench.dir / "a")
    fd = opened(bench.dir / "a")
    os.pwrite(fd, b"end", 900 << 20)
    os.close(fd)
    run("cp", "--sparse=always", bench.dir / "a", bench.dir / "b")
    assert (bench.dir / "b").stat().st_blocks < 1000
    run("cmp", bench.dir / "a", bench.dir / "b")


@case
def files_of_15_terabytes(bench):
    fd = opened(bench.dir / "f")
    far = 15 << 40
    os.pwrite(fd, b"far out", far)
    os.fsync(fd)
    assert os.fstat(fd).st_size == far + 7 and os.fstat(fd).st_blocks < 1000
    assert os.pread(fd, 100, far - 50) == bytes(50) + b"far out"
    with fails_with(errno.EFBIG, errno.EINVAL):
        os.ftruncate(fd, 1 << 62)
    os.ftruncate(fd, 10)
    assert os.pread(fd, 100, 0) == bytes(10)
    os.close(fd)


@case
def truncation_never_shows_what_was_cut_off(bench):
    fd = opened(bench.dir / "f")
    os.write(fd, b"secret" * 10_000)
    os.ftruncate(fd, 1234)
    os.ftruncate(fd, 60_000)
    assert os.pread(fd, 60_000, 1234) == bytes(60_000 - 1234)
    os.pwrite(fd, b"x", 80_000)
    assert os.pread(fd, 20_000, 60_000) == bytes(20_000)
    os.close(fd)


@case
def ranges_are_copied_inside(bench):
    a, b = opened(bench.dir / "a"), opened(bench.dir / "b")
    data = os.urandom(300_000)
    os.write(a, data)
    copied = 0
    while copied < len(data):
        count = os.copy_file_range(a, b, len(data) - copied, copied, copied + 100)
        assert count > 0
        copied += count
    assert os.pread(b, 400_000, 0) == bytes(100) + data
    os.close(a)
    os.close(b)


def writers_and_readers(bench, flags, check):
    """Eight writers of records of one byte value each, all records of a file in turns, while two readers apply `check` to
    the number of a record and what they read of it."""
    record, count, rounds = 8192, 64, 40
    path = bench.dir / "f"
    path.write_bytes(bytes(record * count))
    wrong, stop = [], threading.Event()

    def value(turn, i):
        return 1 + (turn + i) % 250

    def write(thread):
        fd = os.open(path, os.O_RDWR | flags)
        buffer = mmap.mmap(-1, record)
        for turn in range(rounds):
            for i in range(thread, count, 8):
                buffer[:] = bytes([value(turn, i)]) * record
                os.pwrite(fd, buffer, i * record)
            os.fdatasync(fd)
        os.close(fd)

    def read():
        fd = os.open(path, os.O_RDONLY | flags)
        buffer = mmap.mmap(-1, record)
        while not stop.is_set():
            for i in range(count):
                got = os.preadv(fd, [buffer], i * record)
                valid = {0} | {value(turn, i) for turn in range(rounds)}
                if got != record or not check(set(buffer[:]), valid):
                    wrong.append((i, got, sorted(set(buffer[:]))[:5]))
        os.close(fd)

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [threading.Thread(target=write, args=[t]) for t in range(8)]
    [t.start() for t in readers + writers]
    [t.join() for t in writers]
    stop.set()
    [t.join() for t in readers]
    assert not wrong, wrong[:10]
    data = path.read_bytes()
    for i in range(count):
        assert data[i * record:(i + 1) * record] == bytes([value(rounds - 1, i)]) * record


@case
def readers_of_what_is_being_written_see_what_was_written_there(bench):
    # The page cache copies to a reader while it copies from a writer: parts of both, and nothing else.
    writers_and_readers(bench, 0, lambda found, valid: found <= valid)


@case
def direct_readers_see_whole_records(bench):
    # A request is answered from one version of the filesystem.
    writers_and_readers(bench, os.O_DIRECT, lambda found, valid: len(found) == 1 and found <= valid)


@case
def every_way_to_sync_works(bench):
    fd = opened(bench.dir / "f", os.O_SYNC)
    os.write(fd, b"x" * 10_000)
    os.fsync(fd)
    os.fdatasync(fd)
    os.close(fd)
    fd = opened(bench.dir / "g", os.O_DSYNC)
    os.write(fd, b"x" * 10_000)
    os.close(fd)
    fd = os.open(bench.dir, os.O_RDONLY)
    os.fsync(fd)
    assert LIBC.syncfs(fd) == 0
    os.close(fd)
