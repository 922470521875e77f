"""Kernels for the cases of offloading, how they are attached, and what a mount tells of them."""

import contextlib
import ctypes
import json
import os
import pathlib
import random
import signal
import tempfile
import textwrap
import traceback

from harness import ROOT, WARREN, need, run

READ_STREAM = "user.process.csd_read_stream"
WRITE_STREAM = "user.process.csd_write_stream"
READ_EVENT = "user.process.csd_read_event"
WRITE_EVENT = "user.process.csd_write_event"
STATS = "user.process.csd_stats"

STRIDE = 512 << 10

# What is read or written, in capitals: the output is as long as the input.
UPPER = """
static u8 upper(u8 c) { return c >= 'a' && c <= 'z' ? c - 32 : c; }
WARREN_KERNEL(request)
{
    u64 at = request->offset, left = request->op == WARREN_READ_STREAM ? request->size : request->data_size;
    const u8 *data = (const u8 *)request->data;
    while (left) {
        const void *from = data;
        s64 got = left;
        if (request->op == WARREN_READ_STREAM) {
            got = warren_map(at, left, &from);
            if (got <= 0)
                return got;
        }
        u8 *to = warren_reserve(got);
        if (!to)
            return -WARREN_EFBIG;
        for (s64 i = 0; i < got; i++)
            to[i] = upper(((const u8 *)from)[i]);
        at += got;
        left -= got;
    }
    return 0;
}
"""


def of_each_byte(before, to, variables=""):
    """A kernel that makes of every `byte` of a request what `to` says; `before` runs once, the byte is number `i` of
    those from `at` on."""
    return variables + """
WARREN_KERNEL(request)
{
    %s
    u64 at = request->offset, left = request->size;
    while (left) {
        const void *from;
        s64 got = warren_map(at, left, &from);
        if (got <= 0)
            return got;
        u8 *to = warren_reserve(got);
        if (!to)
            return -WARREN_EFBIG;
        for (s64 i = 0; i < got; i++) {
            u8 byte = ((const u8 *)from)[i];
            to[i] = %s;
        }
        at += got;
        left -= got;
    }
    return 0;
}
""" % (before, to)


# Every byte of the request, plus the argument.
ADD = of_each_byte("u64 add = 0; warren_argument(0, &add);", "byte + add")

# The sum of all bytes of the file as 8 bytes, wherever it is read.
SUM = """
WARREN_KERNEL(request)
{
    u64 sum = 0, at = 0;
    while (at < request->snapshot_size) {
        const void *from;
        s64 got = warren_map(at, request->snapshot_size - at < 65536 ? request->snapshot_size - at : 65536, &from);
        if (got <= 0)
            return got;
        for (s64 i = 0; i < got; i++)
            sum += ((const u8 *)from)[i];
        at += got;
        warren_unmap();
    }
    return warren_emit(&sum, sizeof(sum));
}
"""

# The data twice.
TWICE = """
WARREN_KERNEL(request)
{
    s64 bad = warren_emit((const void *)request->data, request->data_size);
    return bad ? bad : warren_emit((const void *)request->data, request->data_size);
}
"""

# A record for every piece of data: its length in 4 bytes and its first 4 bytes.
RECORD = """
WARREN_KERNEL(request)
{
    u32 length = request->data_size;
    s64 bad = warren_emit(&length, 4);
    return bad ? bad : warren_emit((const void *)request->data, length < 4 ? length : 4);
}
"""

FOUR_BYTES = 'WARREN_KERNEL(request) { (void)request; return warren_emit("TINY", 4); }'
NOTHING = "WARREN_KERNEL(request) { (void)request; return 0; }"
FAILS = 'WARREN_KERNEL(request) { (void)request; warren_emit("x", 1); return -5; }'
FAULTS = "WARREN_KERNEL(request) { return *(volatile u64 *)(request->heap - 65536); }"
LOOPS = "WARREN_KERNEL(request) { volatile u64 x = request->size; while (1) x++; return x; }"

BUILT = {}


def kernel(directory, source, name="kernel.o"):
    """Compiles a kernel into a directory of the filesystem."""
    need("clang")
    if source not in BUILT:
        with tempfile.TemporaryDirectory() as scratch:
            code, out = pathlib.Path(scratch, "k.c"), pathlib.Path(scratch, "k.o")
            code.write_text("#include <warren.h>\n" + textwrap.dedent(source))
            run("clang", "-O2", "-target", "bpf", "-ffreestanding", "-I", ROOT / "bpf-programs/include",
                "-c", code, "-o", out)
            BUILT[source] = out.read_bytes()
    path = directory / name
    path.write_bytes(BUILT[source])
    return path


def attach(path, object, options="", name=READ_STREAM):
    os.setxattr(path, name, f"{object.stat().st_ino}{options}".encode())


def read_all(fd, size=1 << 20):
    out = b""
    while piece := os.read(fd, size):
        out += piece
    return out


@contextlib.contextmanager
def opened(path, flags=os.O_RDONLY):
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def attached(path, object, options="", name=READ_STREAM):
    attach(path, object, options, name)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.removexattr(path, name)


def forked(function):
    """Starts a child that runs `function` and nothing else; its number."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            function()
            code = 0
        except BaseException:  # whatever it is, the child ends here
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def in_child(function):
    """The value of `function` in another process."""
    here, there = os.pipe()

    def answer():
        os.close(here)
        with os.fdopen(there, "wb") as out:
            out.write(repr(function()).encode())

    pid = forked(answer)
    os.close(there)
    with os.fdopen(here, "rb") as answer:
        said = answer.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the child failed"
    return eval(said)  # what repr() made


def stats(mount):
    return json.loads(run(WARREN, "stats", mount, "--json").stdout)


def pins(mount):
    return stats(mount)["collector"]["kept_versions"]


def registrations(mount):
    return stats(mount)["kernels"]["registrations"]


def text_of(size, seed=1):
    return bytes(random.Random(seed).choices(b"abcdefghijklmnopqrstuvwxyz 0123456789\n", k=size))


def punch_hole(fd, offset, length):
    keep_size, punch = 1, 2
    ctypes.CDLL(None).fallocate(fd, keep_size | punch, ctypes.c_long(offset), ctypes.c_long(length))
