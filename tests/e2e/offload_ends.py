"""Ends of kernels that nobody waits for any more, or that are not wanted any more."""

import contextlib
import ctypes
import errno
import mmap
import os
import signal
import struct
import threading
import time

from harness import Skip, WARREN, case, eventually, run
from e2e.kernels import (LOOPS, READ_EVENT, READ_STREAM, UPPER, WRITE_EVENT, WRITE_STREAM, attach, attached, forked,
                         kernel, opened, pins, registrations, stats, text_of)

# The longest there is: what ends earlier was ended.
FOREVER = ";timeout_ms=60000"

# From the signal to the end of the process: a tenth of it where the machine does nothing else.
SOON = 1.0

# Helpers that move much, again and again.
IN_HELPERS = """
WARREN_KERNEL(request)
{
    const u8 *out = warren_reserve(16 << 20);
    while (1) {
        warren_read(0, (void *)request->heap, 32 << 20);
        warren_emit(out + 4096, 16 << 20);
        warren_trim(16 << 20);
    }
    return 0;
}
"""


def quietly(function):
    with contextlib.suppress(OSError):
        function()


def requests_now(mount):
    return stats(mount)["kernels"]["requests_now"]


def descriptors(image):
    return len(os.listdir(f"/proc/{image.daemon.pid}/fd"))


def time_to_end(pids, sent=signal.SIGKILL):
    """Seconds from the signal to the end of the last of them."""
    begun = time.monotonic()
    for pid in pids:
        os.kill(pid, sent)
    for pid in pids:
        os.waitpid(pid, 0)
    return time.monotonic() - begun


def settles(bench, before):
    """Nothing is left of what was registered."""
    mount = bench.image.dir
    return eventually(lambda: registrations(mount) == 0 and requests_now(mount) == 0 and pins(mount) <= before)


def ends_soon(bench, work, sent=signal.SIGKILL, running=1):
    """A child that waits in `work` for kernels that run for a minute ends when it gets a signal."""
    before = pins(bench.image.dir)
    child = forked(lambda: quietly(work))
    assert eventually(lambda: requests_now(bench.image.dir) == running), stats(bench.image.dir)["kernels"]
    time.sleep(0.1)
    took = time_to_end([child], sent)
    assert took < SOON, f"{work.__name__}: ended after {took:.2f} s"
    assert settles(bench, before), stats(bench.image.dir)["kernels"]


@case
def who_is_killed_ends_whatever_kernel_it_waits_for(bench):
    loops, helpers = kernel(bench.dir, LOOPS, "loops.o"), kernel(bench.dir, IN_HELPERS, "helpers.o")
    path = bench.dir / "f"
    path.write_bytes(text_of(4 << 20))

    def reads_through_a_loop():
        attach(path, loops, FOREVER)
        path.read_bytes()

    def reads_through_helpers():
        attach(path, helpers, FOREVER)
        path.read_bytes()

    def reads_a_view():
        attach(path, loops, ";view" + FOREVER)
        path.read_bytes()

    def writes():
        attach(path, loops, FOREVER, WRITE_STREAM)
        with opened(path, os.O_RDWR) as fd:
            os.pwrite(fd, b"never", 0)

    def hears_of_a_write():
        attach(path, loops, FOREVER, WRITE_EVENT)
        with opened(path, os.O_RDWR) as fd:
            os.pwrite(fd, text_of(5), 0)

    def hears_of_a_read():
        attach(path, loops, FOREVER, READ_EVENT)
        path.read_bytes()

    before = path.read_bytes()
    for work in [reads_through_a_loop, reads_through_helpers, reads_a_view, writes, hears_of_a_write, hears_of_a_read]:
        ends_soon(bench, work)
    # Python handles SIGINT; the others have their default.
    for sent in [signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1]:
        ends_soon(bench, reads_through_a_loop, sent)
    assert path.read_bytes() == before


class Asynchronous:
    """Reads by io_submit(2), which the system calls of x86-64 are known of."""

    SETUP, GETEVENTS, SUBMIT = 206, 208, 209

    def __init__(self):
        if os.uname().machine != "x86_64":
            raise Skip("the numbers of the calls are known for x86-64 alone")
        self.system = ctypes.CDLL(None, use_errno=True)
        self.context = ctypes.c_ulong()
        self.call(self.SETUP, 8, ctypes.byref(self.context))

    def call(self, number, *arguments):
        done = self.system.syscall(ctypes.c_long(number), *arguments)
        if done < 0:
            raise OSError(ctypes.get_errno(), "asynchronous I/O")
        return done

    def read(self, fd, page):
        at = ctypes.addressof(ctypes.c_char.from_buffer(page))
        block = struct.pack("<QIIHhIQQqQII", 0, 0, 0, 0, 0, fd, at, len(page), 0, 0, 0, 0)
        self.block = ctypes.create_string_buffer(block)
        blocks = (ctypes.c_void_p * 1)(ctypes.addressof(self.block))
        assert self.call(self.SUBMIT, self.context, ctypes.c_long(1), blocks) == 1

    def result(self):
        event = (ctypes.c_int64 * 4)()
        assert self.call(self.GETEVENTS, self.context, ctypes.c_long(1), ctypes.c_long(1), event, None) == 1
        return event[2]


@case
def asynchronous_reads_end_with_their_process_and_not_with_their_thread(bench):
    loops, path = kernel(bench.dir, LOOPS), bench.dir / "f"
    path.write_bytes(bytes(4096))

    def submits_and_waits():
        attach(path, loops, FOREVER)
        asynchronous = Asynchronous()
        asynchronous.read(os.open(path, os.O_RDONLY | os.O_DIRECT), mmap.mmap(-1, 4096))
        asynchronous.result()

    def submits_and_sleeps():
        attach(path, loops, FOREVER)
        Asynchronous().read(os.open(path, os.O_RDONLY | os.O_DIRECT), mmap.mmap(-1, 4096))
        time.sleep(60)

    ends_soon(bench, submits_and_waits)
    ends_soon(bench, submits_and_sleeps)
    # The thread that has submitted it is gone long before the kernel has run out of time.
    asynchronous, page = Asynchronous(), mmap.mmap(-1, 4096)
    with attached(path, loops, ";timeout_ms=600"), opened(path, os.O_RDONLY | os.O_DIRECT) as fd:
        thread = threading.Thread(target=lambda: asynchronous.read(fd, page))
        thread.start()
        thread.join()
        assert requests_now(bench.image.dir) == 1
        got = asynchronous.result()
        assert got == -errno.ETIME, (got, bench.image.log.read_text()[-500:])


@case
def requests_that_wait_for_their_turn_are_dropped_with_who_made_them(bench):
    loops, path = kernel(bench.dir, LOOPS), bench.dir / "f"
    path.write_bytes(b"abc")

    def reads_many_times():
        attach(path, loops, FOREVER)
        threads = [threading.Thread(target=lambda: quietly(path.read_bytes)) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    ends_soon(bench, reads_many_times, running=40)


@case
def a_requester_that_is_killed_takes_nobody_along(bench):
    loops, path = kernel(bench.dir, LOOPS), bench.dir / "f"
    path.write_bytes(b"abc")
    attach(path, loops, f";view;timeout_ms=4000;owner={os.getpid()}")
    # Two descendants wait for one run over a handle that they share.
    with opened(path) as fd:
        codes = []

        def waits():
            try:
                os.pread(fd, 10, 0)
            except OSError as error:
                os._exit(error.errno)

        first = forked(waits)
        assert eventually(lambda: requests_now(bench.image.dir) == 1)
        second = forked(waits)
        time.sleep(0.3)
        assert time_to_end([first]) < SOON
        assert requests_now(bench.image.dir) == 1, "the other one waits for it"
        codes.append(os.waitstatus_to_exitcode(os.waitpid(second, 0)[1]))
        assert codes == [errno.ETIME], codes
    os.removexattr(path, READ_STREAM)
    # A descendant of its own handle, and the owner goes on.
    upper = kernel(bench.dir, UPPER, "upper.o")
    attach(path, loops, FOREVER + f";owner={os.getpid()}")
    child = forked(lambda: quietly(path.read_bytes))
    assert eventually(lambda: requests_now(bench.image.dir) == 1)
    time.sleep(0.1)
    assert time_to_end([child]) < SOON
    assert registrations(bench.image.dir) == 1
    attach(path, upper)
    assert path.read_bytes() == b"ABC"
    os.removexattr(path, READ_STREAM)


@case
def an_owner_that_is_killed_ends_what_runs_for_its_descendants(bench):
    loops, path = kernel(bench.dir, LOOPS), bench.dir / "f"
    path.write_bytes(b"abc")
    before = pins(bench.image.dir)
    here, there = os.pipe()

    def owner():
        attach(path, loops, FOREVER + f";owner={os.getpid()}")
        child = os.fork()
        if child == 0:
            try:
                path.read_bytes()
            except OSError as error:
                os.write(there, str(error.errno).encode())
            os._exit(0)
        time.sleep(60)

    pid = forked(owner)
    os.close(there)
    assert eventually(lambda: requests_now(bench.image.dir) == 1)
    begun = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    said = os.read(here, 100)
    took = time.monotonic() - begun
    os.close(here)
    assert said == str(errno.EIO).encode() and took < SOON, (said, took)
    assert settles(bench, before)


@case
def a_kernel_that_is_taken_back_or_replaced_stops(bench):
    loops, upper = kernel(bench.dir, LOOPS, "loops.o"), kernel(bench.dir, UPPER, "upper.o")
    path = bench.dir / "f"
    path.write_bytes(b"abc")
    before = pins(bench.image.dir)
    for options in [FOREVER, ";view" + FOREVER]:
        for take_back in [lambda: os.removexattr(path, READ_STREAM), lambda: attach(path, upper)]:
            attach(path, loops, options)
            failed = []

            def reads():
                try:
                    path.read_bytes()
                except OSError as error:
                    failed.append(error.errno)

            readers = [threading.Thread(target=reads) for _ in range(4)]
            for reader in readers:
                reader.start()
            assert eventually(lambda: requests_now(bench.image.dir) == 4)
            begun = time.monotonic()
            take_back()
            for reader in readers:
                reader.join(10)
            took = time.monotonic() - begun
            assert failed == [errno.EIO] * 4 and took < SOON, (failed, took)
            quietly(lambda: os.removexattr(path, READ_STREAM))
    assert settles(bench, before)
    assert path.read_bytes() == b"abc"


@case(image=True)
def kernels_are_in_nobodys_way_at_unmount(bench):
    image = bench.new_image("512M")
    directory = image.mount()
    for source, name in [(LOOPS, "loops.o"), (IN_HELPERS, "helpers.o")]:
        kernel(directory, source, name)
    (directory / "f").write_bytes(text_of(2 << 20))

    def reads(number):
        attach(directory / "f", directory / ["loops.o", "helpers.o"][number % 2], FOREVER)
        quietly((directory / "f").read_bytes)

    children = [forked(lambda: reads(number)) for number in range(6)]
    assert eventually(lambda: requests_now(directory) == 6)
    # A mount that is in use is not unmounted by accident.
    assert run(WARREN, "umount", directory, check=False).returncode != 0
    begun = time.monotonic()
    image.daemon.terminate()
    code = image.daemon.wait(timeout=30)
    took = time.monotonic() - begun
    image.daemon = None
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert code == 0 and took < 5, f"exited with {code} after {took:.2f} s: {image.messages()}"
    image.no_panic()
    image.fsck()


@case
def sixty_four_owners_are_killed_at_once(bench):
    loops, path = kernel(bench.dir, LOOPS), bench.dir / "f"
    path.write_bytes(text_of(10000))
    before, open_before = pins(bench.image.dir), descriptors(bench.image)

    def hangs():
        attach(path, loops, FOREVER)
        attach(path, loops, FOREVER, READ_EVENT)
        path.read_bytes()

    children = [forked(lambda: quietly(hangs)) for _ in range(64)]
    assert eventually(lambda: requests_now(bench.image.dir) == 64, 30), stats(bench.image.dir)["kernels"]
    took = time_to_end(children)
    assert took < 3, f"the last of 64 ended after {took:.2f} s"
    assert settles(bench, before), stats(bench.image.dir)["kernels"]
    assert eventually(lambda: descriptors(bench.image) <= open_before + 2), descriptors(bench.image)
