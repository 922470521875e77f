"""Atomic writes: the ioctls of F2FS, what others see meanwhile, crashes."""

import errno
import fcntl
import mmap
import os
import random
import subprocess
import sys
import threading
import time

from harness import case, eventually, fails_with

START, COMMIT, ABORT, GET_FEATURES = 0xF501, 0xF502, 0xF505, 0x8004F50C
FEATURE = 4
BLOCK = 4096


def opened(path, flags=0):
    return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o644)


def read_all(path):
    """The contents by a handle of its own."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, 1 << 24, 0)
    finally:
        os.close(fd)


def aligned(data):
    """The same bytes where a direct write takes them from."""
    buffer = mmap.mmap(-1, len(data))
    buffer.write(data)
    return buffer


def features(fd):
    answer = bytearray(4)
    fcntl.ioctl(fd, GET_FEATURES, answer)
    return int.from_bytes(answer, sys.byteorder)


@case
def the_ioctls_are_there_for_files_and_for_nothing_else(bench):
    fd = opened(bench.dir / "f")
    assert features(fd) & FEATURE
    reader = os.open(bench.dir / "f", os.O_RDONLY)
    assert features(reader) & FEATURE
    for request in (START, COMMIT, ABORT):
        with fails_with(errno.EBADF):
            fcntl.ioctl(reader, request)
    os.close(reader)
    with fails_with(errno.EINVAL):
        fcntl.ioctl(fd, COMMIT)
    fcntl.ioctl(fd, ABORT)
    fcntl.ioctl(fd, START)
    with fails_with(errno.EINVAL):
        fcntl.ioctl(fd, START)
    fcntl.ioctl(fd, COMMIT)
    for other in (0xF503, 0xF504, 0x5401):
        with fails_with(errno.ENOTTY):
            fcntl.ioctl(fd, other)
    directory = os.open(bench.dir, os.O_RDONLY)
    for request in (START, COMMIT, ABORT):
        with fails_with(errno.ENOTTY, errno.EISDIR, errno.EBADF):
            fcntl.ioctl(directory, request)
    os.close(directory)
    os.close(fd)


@case
def buffered_writes_of_a_session_happen_at_its_commit(bench):
    path = bench.dir / "f"
    path.write_bytes(b"o" * 300_000)
    fd = opened(path)
    # Dirty before the session, and no part of it.
    os.pwrite(fd, b"before", 0)
    for turn in range(20):
        fcntl.ioctl(fd, START)
        os.pwrite(fd, b"pending", 10_000)
        os.pwrite(fd, bytes([65 + turn]) * 100_000, 150_000)
        # Its own reads see it, written back or not.
        os.sync() if turn % 5 == 0 else None
        assert os.pread(fd, 7, 10_000) == b"pending"
        if turn % 2:
            fcntl.ioctl(fd, COMMIT)
            assert os.pread(fd, 100_000, 150_000) == bytes([65 + turn]) * 100_000
        else:
            before = os.pread(fd, 3, 149_998)[:2]
            fcntl.ioctl(fd, ABORT)
            assert os.pread(fd, 2, 149_998) == before
            assert os.pread(fd, 1, 150_000) == (bytes([64 + turn]) if turn else b"o")
            assert os.pread(fd, 7, 10_000) == (b"pending" if turn else b"o" * 7)
    os.close(fd)
    data = path.read_bytes()
    assert data[:6] == b"before" and data[150_000:250_000] == b"T" * 100_000 and len(data) == 300_000


@case
def mapped_writes_of_a_session_happen_at_its_commit(bench):
    path = bench.dir / "f"
    path.write_bytes(b"o" * 65_536)
    fd = opened(path)
    with mmap.mmap(fd, 65_536) as view:
        for keep in (False, True):
            fcntl.ioctl(fd, START)
            view[5000:5006] = b"mapped"
            view[50_000:50_006] = b"mapped"
            fcntl.ioctl(fd, COMMIT if keep else ABORT)
            want = b"mapped" if keep else b"oooooo"
            assert view[5000:5006] == want and view[50_000:50_006] == want
            assert os.pread(fd, 6, 5000) == want
    os.close(fd)


@case
def direct_writes_of_a_session_show_to_others_at_its_commit_and_not_before(bench):
    path = bench.dir / "f"
    path.write_bytes(b"o" * 65_536)
    cached = os.open(path, os.O_RDONLY)
    assert os.pread(cached, 1, 8192) == b"o"
    fd = opened(path, os.O_DIRECT)
    new = aligned(b"n" * 8192)
    out = mmap.mmap(-1, 8192)
    for keep in (False, True):
        fcntl.ioctl(fd, START)
        os.pwrite(fd, new, 4096)
        os.pwrite(fd, new, 32_768)
        os.preadv(fd, [out], 4096)
        assert out[:] == b"n" * 8192, "the owner reads what it wrote"
        late = os.open(path, os.O_RDONLY)
        for reader in (cached, late):
            assert os.pread(reader, 65_536, 0) == b"o" * 65_536, "others read what is committed"
        os.close(late)
        fcntl.ioctl(fd, COMMIT if keep else ABORT)
        data = os.pread(cached, 65_536, 0)
        os.preadv(fd, [out], 4096)
        if keep:
            assert data[4096:12_288] == data[32_768:40_960] == b"n" * 8192 == out[:]
            assert data.count(b"n") == 16_384
        else:
            assert data == b"o" * 65_536 and out[:] == b"o" * 8192
    os.close(cached)
    os.close(fd)


def session(fd, keep=True, writes=()):
    """A session of a direct handle: each write is an offset and the byte that fills its block."""
    fcntl.ioctl(fd, START)
    for offset, byte in writes:
        os.pwrite(fd, aligned(byte * BLOCK), offset)
    fcntl.ioctl(fd, COMMIT if keep else ABORT)


def mapped_writes(path, after_write):
    """Mapped writes through a direct handle before, within and after sessions belong to where they were made.

    `after_write` is called with the mapping where its writes have to count.
    """
    path.write_bytes(b"o" * 16 * BLOCK)
    fd = opened(path, os.O_DIRECT)
    for turn in range(6):
        keep = turn % 2 == 1
        byte = bytes([65 + turn])
        # From here on nothing of the file is cached, and that is known.
        session(fd, writes=[(8 * BLOCK, byte)])
        session(fd, writes=[(9 * BLOCK, byte)])
        with mmap.mmap(fd, 16 * BLOCK) as view:
            view[0:6] = byte * 6
            after_write(view)
            fcntl.ioctl(fd, START)
            view[5000:5006] = byte * 6
            os.pwrite(fd, aligned(byte * BLOCK), 4 * BLOCK)
            view[12 * BLOCK:12 * BLOCK + 6] = byte * 6
            after_write(view)
            fcntl.ioctl(fd, COMMIT if keep else ABORT)
            want = byte if keep else bytes([64 + turn]) if turn else b"o"
            for at in (5000, 4 * BLOCK, 12 * BLOCK):
                assert view[at:at + 6] == want * 6, (turn, at, view[at:at + 6])
            view[2 * BLOCK:2 * BLOCK + 6] = byte * 6
            after_write(view)
            session(fd, keep=False, writes=[(3 * BLOCK, b"x")])
            assert view[3 * BLOCK:3 * BLOCK + 6] == b"o" * 6
        data = read_all(path)
        assert data[:6] == data[2 * BLOCK:2 * BLOCK + 6] == byte * 6, "written outside of the sessions"
        for at in (5000, 4 * BLOCK, 12 * BLOCK):
            assert data[at:at + 6] == want * 6, (turn, at)
        assert data[8 * BLOCK:10 * BLOCK] == byte * 2 * BLOCK
    os.close(fd)
    assert read_all(path)[:6] == byte * 6


@case
def mapped_writes_of_a_direct_handle_belong_to_where_they_were_made(bench):
    mapped_writes(bench.dir / "f", lambda view: None)


@case(image=True)
def mapped_writes_belong_to_where_they_were_synced_without_the_page_cache(bench):
    image = bench.new_image("512M")
    for options in ("direct_io", "no_writeback"):
        image.mount(options)
        mapped_writes(image.dir / options, mmap.mmap.flush)
        image.unmount()
    image.fsck()


@case
def a_mapping_that_outlives_its_descriptor_takes_part(bench):
    path = bench.dir / "f"
    path.write_bytes(b"o" * 4 * BLOCK)
    fd = opened(path, os.O_DIRECT)
    session(fd, writes=[(0, b"a")])
    spare = os.dup(fd)
    view = mmap.mmap(spare, 4 * BLOCK)
    os.close(spare)
    child_may, child_did = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        # Writes by the mapping that it was born with, each time it is told to.
        while byte := os.read(child_may[0], 1):
            view[BLOCK:BLOCK + 6] = byte * 6
            os.write(child_did[1], b"!")
        os._exit(0)

    def have_child_write(byte):
        os.write(child_may[1], byte)
        assert os.read(child_did[0], 1) == b"!"

    have_child_write(b"b")
    fcntl.ioctl(fd, START)
    have_child_write(b"c")
    fcntl.ioctl(fd, ABORT)
    assert read_all(path)[BLOCK:BLOCK + 6] == b"b" * 6
    fcntl.ioctl(fd, START)
    have_child_write(b"d")
    fcntl.ioctl(fd, COMMIT)
    assert read_all(path)[BLOCK:BLOCK + 6] == b"d" * 6
    os.kill(child, 9)
    os.waitpid(child, 0)
    for end in child_may + child_did:
        os.close(end)
    view.close()
    os.close(fd)


@case
def what_is_written_with_o_direct_taken_off_belongs_to_where_it_was_written(bench):
    path = bench.dir / "f"
    path.write_bytes(b"o" * 8 * BLOCK)
    fd = opened(path, os.O_DIRECT)
    direct = fcntl.fcntl(fd, fcntl.F_GETFL)

    def write_cached(offset, byte):
        fcntl.fcntl(fd, fcntl.F_SETFL, direct & ~os.O_DIRECT)
        os.pwrite(fd, byte * BLOCK, offset)
        fcntl.fcntl(fd, fcntl.F_SETFL, direct)

    for turn in range(6):
        byte, keep = bytes([65 + turn]), turn % 2 == 1
        session(fd, writes=[(0, byte)])
        session(fd, writes=[(BLOCK, byte)])
        write_cached(2 * BLOCK, byte)
        fcntl.ioctl(fd, START)
        write_cached(4 * BLOCK, byte)
        os.pwrite(fd, aligned(byte * BLOCK), 6 * BLOCK)
        fcntl.ioctl(fd, COMMIT if keep else ABORT)
        want = byte if keep else bytes([64 + turn]) if turn else b"o"
        data = read_all(path)
        assert data[0:3 * BLOCK] == byte * 2 * BLOCK + byte * BLOCK, turn
        assert data[4 * BLOCK:5 * BLOCK] == data[6 * BLOCK:7 * BLOCK] == want * BLOCK, turn
    os.close(fd)


@case(image=True)
def who_has_pages_cached_sees_a_commit_when_it_returns(bench):
    image = bench.new_image("512M")
    # Mounts with `direct_io` cache what is mapped.
    for options in (None, "no_writeback", "direct_io"):
        image.mount(options)
        path, blocks = image.dir / f"f{options}", 64
        path.write_bytes(bytes(blocks * BLOCK))
        fd = opened(path, os.O_DIRECT)
        committed, begun = [0], [0]
        until = time.monotonic() + 2
        wrong = []

        def look(seed, read):
            chance = random.Random(seed)
            while time.monotonic() < until and not wrong:
                least, block = committed[0], chance.randrange(blocks)
                found = int.from_bytes(read(block * BLOCK), "little")
                if not least <= found <= begun[0]:
                    wrong.append((options, seed, least, found, begun[0]))
                # With pauses, in which nothing is cached.
                time.sleep(chance.choice((0, 0, 0.001, 0.02)))

        reader = os.open(path, os.O_RDONLY)
        view = mmap.mmap(reader, blocks * BLOCK, prot=mmap.PROT_READ)
        readers = [lambda at: os.pread(reader, 8, at), lambda at: view[at:at + 8]]
        threads = [threading.Thread(target=look, args=(seed, read)) for seed, read in enumerate(readers * 2)]
        [thread.start() for thread in threads]
        page = mmap.mmap(-1, blocks * BLOCK)
        while time.monotonic() < until:
            begun[0] += 1
            page[:] = begun[0].to_bytes(8, "little") * (blocks * BLOCK // 8)
            fcntl.ioctl(fd, START)
            os.pwrite(fd, page, 0)
            fcntl.ioctl(fd, COMMIT)
            committed[0] = begun[0]
        [thread.join() for thread in threads]
        assert not wrong, wrong
        assert committed[0] > 20
        view.close()
        os.close(reader)
        os.close(fd)
        image.unmount()
    image.fsck()


@case(image=True)
def sessions_keep_no_mount_busy_and_no_file_alive(bench):
    image = bench.new_image("512M")
    for turn, options in enumerate((None, "direct_io", "no_writeback", None)):
        for flags in (0, os.O_DIRECT):
            image.mount(options)
            path = image.dir / f"{turn}-{flags}"
            fd = opened(path, flags)
            for _ in range(3):
                fcntl.ioctl(fd, START)
                os.pwrite(fd, aligned(b"n" * BLOCK), 0)
                fcntl.ioctl(fd, COMMIT)
            if turn % 2:
                fcntl.ioctl(fd, START)
                os.pwrite(fd, aligned(b"m" * BLOCK), 0)
            os.close(fd)
            # At once, although the daemon has had the file open for its own purposes.
            image.unmount()
            image.mount(options)
            assert path.read_bytes() == b"n" * BLOCK
            fd = opened(path, flags)
            free = os.statvfs(image.dir).f_bfree
            fcntl.ioctl(fd, START)
            os.pwrite(fd, aligned(b"m" * BLOCK), 0)
            fcntl.ioctl(fd, COMMIT)
            path.unlink()
            assert os.statvfs(image.dir).f_bfree <= free
            os.close(fd)
            assert eventually(lambda: os.statvfs(image.dir).f_bfree > free), "an inode without a name"
            image.unmount()
    image.fsck()


@case
def a_session_has_the_file_to_itself(bench):
    path = bench.dir / "f"
    path.write_bytes(b"o" * 8192)
    one, two = opened(path), opened(path)
    with fails_with(errno.EBUSY):
        fcntl.ioctl(one, START)
    os.close(two)
    assert eventually(lambda: started(one)), "the other handle is gone"
    os.pwrite(one, b"n" * 8192, 0)
    with fails_with(errno.EBUSY):
        os.truncate(path, 0)
    # An open waits until the session has ended, and sees all of it.
    seen = []
    reader = threading.Thread(target=lambda: seen.append(read_all(path)))
    reader.start()
    time.sleep(0.3)
    assert not seen
    fcntl.ioctl(one, COMMIT)
    reader.join(10)
    assert seen == [b"n" * 8192]
    assert eventually(lambda: started(one))
    begun = time.monotonic()
    with fails_with(errno.EBUSY):
        os.open(path, os.O_RDONLY)
    assert 4 < time.monotonic() - begun < 8
    fcntl.ioctl(one, ABORT)
    os.close(one)
    # Direct: readers come and go, writers stay away.
    fd = opened(path, os.O_DIRECT)
    other = opened(path)
    with fails_with(errno.EBUSY):
        fcntl.ioctl(fd, START)
    os.close(other)
    assert eventually(lambda: started(fd))
    assert read_all(path) == b"n" * 8192
    fcntl.ioctl(fd, COMMIT)
    os.close(fd)


def started(fd):
    try:
        fcntl.ioctl(fd, START)
        return True
    except OSError as error:
        assert error.errno == errno.EBUSY
        return False


@case
def closing_without_a_commit_undoes_the_session(bench):
    path = bench.dir / "f"
    for flags in (0, os.O_DIRECT):
        path.write_bytes(b"o" * 8192)
        for end in ("close", "exit", "kill"):
            script = (
                "import fcntl,mmap,os,signal,sys\n"
                f"fd=os.open(sys.argv[1],os.O_RDWR|{flags})\n"
                f"fcntl.ioctl(fd,{START})\n"
                "b=mmap.mmap(-1,8192); b.write(b'n'*8192); os.pwrite(fd,b,0); os.pwrite(fd,b,8192)\n"
                f"end={end!r}\n"
                "if end=='close': os.close(fd)\n"
                "if end=='kill': os.kill(os.getpid(),signal.SIGKILL)\n"
            )
            subprocess.run([sys.executable, "-c", script, path])
            assert read_all(path)[:8192] == b"o" * 8192, (flags, end)


@case
def sizes_change_with_the_session(bench):
    path = bench.dir / "f"
    path.write_bytes(b"o" * 20_000)
    fd = opened(path)
    fcntl.ioctl(fd, START)
    os.ftruncate(fd, 5000)
    os.pwrite(fd, b"n" * 100, 40_000)
    want = b"o" * 5000 + bytes(35_000) + b"n" * 100
    assert os.fstat(fd).st_size == 40_100 and os.pread(fd, 50_000, 0) == want
    fcntl.ioctl(fd, COMMIT)
    assert os.fstat(fd).st_size == 40_100 and os.pread(fd, 50_000, 0) == want
    fcntl.ioctl(fd, START)
    os.ftruncate(fd, 10)
    fcntl.ioctl(fd, ABORT)
    assert os.fstat(fd).st_size == 40_100 and os.pread(fd, 50_000, 0) == want
    os.close(fd)
    assert path.read_bytes() == want


@case(image=True)
def everything_holds_without_the_page_cache(bench):
    image = bench.new_image("512M")
    image.mount("direct_io")
    try:
        path = image.dir / "f"
        path.write_bytes(b"o" * 20_000)
        # Several handles may write, one after the other.
        one, two = opened(path), opened(path)
        fcntl.ioctl(one, START)
        os.pwrite(one, b"n" * 30_000, 100)
        assert os.pread(one, 30_000, 100) == b"n" * 30_000
        assert os.pread(two, 20_000, 0) == b"o" * 20_000
        with fails_with(errno.EBUSY):
            os.pwrite(two, b"x", 0)
        with fails_with(errno.EBUSY):
            fcntl.ioctl(two, START)
        fcntl.ioctl(one, ABORT)
        assert os.fstat(one).st_size == 20_000 and os.pread(one, 20_000, 0) == b"o" * 20_000
        fcntl.ioctl(two, START)
        os.pwrite(two, b"m" * 10, 0)
        fcntl.ioctl(two, COMMIT)
        assert os.pread(one, 11, 0) == b"m" * 10 + b"o"
        os.close(one)
        os.close(two)
    finally:
        image.unmount()
    image.fsck()


@case(image=True)
def read_only_mounts_offer_none(bench):
    image = bench.new_image("256M")
    image.mount()
    (image.dir / "f").write_bytes(b"x")
    image.unmount()
    image.mount("ro")
    fd = os.open(image.dir / "f", os.O_RDONLY)
    assert features(fd) == 0
    os.close(fd)
    image.unmount()


# Writes sessions until it is killed: those of every fifth turn are aborted, every seventh one writes
# all blocks, so that it is staged in the log. Says which ones are committed.
WRITER = r"""
import fcntl, mmap, os, random, sys
path, flags, blocks, seed, turn = sys.argv[1], *map(int, sys.argv[2:6])
fd = os.open(path, os.O_RDWR | flags)
chance = random.Random(seed)
page = mmap.mmap(-1, 4096)
while True:
    turn += 1
    chosen = range(blocks) if turn % 7 == 0 else {0, *(chance.randrange(blocks) for _ in range(chance.randrange(40)))}
    fcntl.ioctl(fd, 0xf501)
    for block in chosen:
        page[:] = turn.to_bytes(8, "little") * 512
        os.pwrite(fd, page, block * 4096)
    fcntl.ioctl(fd, 0xf502 if turn % 5 else 0xf505)
    if turn % 5:
        print(turn, flush=True)
"""


class Life:
    """A file of numbered blocks and what it must hold after each commit of the writer."""

    def __init__(self, blocks, seed):
        self.blocks, self.seed, self.turn = blocks, seed, 0
        self.state = [0] * blocks

    def begin(self, path, flags, output):
        self.seed += 1
        arguments = [path, flags, self.blocks, self.seed, self.turn]
        command = [sys.executable, "-c", WRITER, *map(str, arguments)]
        return subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL)

    def check(self, path, output):
        """The file is as some commit left it, the last one that was reported or the next."""
        told = [int(line) for line in output.read_text().splitlines()]
        acknowledged = told[-1] if told else self.turn
        data = path.read_bytes()
        assert len(data) == self.blocks * BLOCK
        found = [data[at:at + BLOCK] for at in range(0, len(data), BLOCK)]
        assert all(block == block[:8] * 512 for block in found), "a torn block"
        found = [int.from_bytes(block[:8], "little") for block in found]
        chance = random.Random(self.seed)
        while found != self.state or self.turn < acknowledged:
            assert self.turn <= acknowledged + 2, f"seed {self.seed}: no state since {acknowledged}"
            self.turn += 1
            chosen = range(self.blocks) if self.turn % 7 == 0 else {
                0, *(chance.randrange(self.blocks) for _ in range(chance.randrange(40)))}
            if self.turn % 5:
                for block in chosen:
                    self.state[block] = self.turn


def crashes(bench, flags, victim, seconds):
    image = bench.new_image("1G")
    image.mount()
    path, output = image.dir / "f", bench.scratch() / "told"
    with open(path, "wb") as out:
        out.write(bytes(2000 * BLOCK))
        out.flush()
        os.fsync(out.fileno())
    life = Life(2000, seed=random.randrange(1 << 30))
    until, turns = time.monotonic() + seconds, 0
    while time.monotonic() < until or turns < 3:
        turns += 1
        with open(output, "w") as told:
            writer = life.begin(path, flags, told)
        time.sleep(random.uniform(0.1, 0.8))
        assert writer.poll() is None, "the writer failed"
        if victim == "daemon":
            image.kill()
        writer.kill()
        writer.wait()
        if victim == "daemon":
            image.mount()
        life.check(path, output)
    image.unmount()
    image.fsck()
    assert life.turn > 5, "hardly anything was written"


@case(image=True)
def a_killed_writer_leaves_its_last_commit(bench):
    crashes(bench, 0, "writer", 4)
    crashes(bench, os.O_DIRECT, "writer", 4)


@case(image=True)
def a_killed_daemon_leaves_the_last_commit(bench):
    crashes(bench, 0, "daemon", 5)
    crashes(bench, os.O_DIRECT, "daemon", 5)
