"""Images: full devices, crashes of the daemon, unmounting, the mount helper, bad input."""

import contextlib
import errno
import hashlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading

from harness import WARREN, case, eventually, need_root, run


def fill(directory, size=1 << 20):
    """Writes files until the device is full; returns their names."""
    names = []
    data = os.urandom(size)
    while True:
        path = directory / f"fill-{len(names)}"
        try:
            with open(path, "wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            names.append(path)
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
            return names
        assert len(names) < 10_000, "the device never fills"


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refused(*arguments):
    """The command fails, within time, with one line that says why, and no panic."""
    done = run(WARREN, *arguments, check=False, timeout=60)
    assert done.returncode in (1, 2), f"exit code {done.returncode}: {done.stderr}"
    text = done.stderr.strip()
    assert text and "panicked" not in text and "RUST_BACKTRACE" not in text, text
    return text


@case(image=True)
def a_full_device_refuses_and_stays_usable(bench):
    image = bench.new_image("256M")
    root = image.mount()
    keep = root / "keep"
    keep.write_bytes(os.urandom(100_000))
    want = digest(keep)
    (root / "dir/sub").mkdir(parents=True)
    for turn in range(3):
        names = fill(root)
        assert len(names) > 50, f"full after {len(names)} MiB of 256 (turn {turn})"
        os.rmdir(root / "dir/sub")
        os.truncate(names[0], 0)
        os.rename(names[1], root / "renamed")
        for path in [root / "renamed", *names[2:]]:
            os.unlink(path)
        assert eventually(lambda: os.statvfs(root).f_bavail * 4096 > 100 << 20), os.statvfs(root)
        os.mkdir(root / "dir/sub")
        with open(root / "again", "wb") as out:
            out.write(os.urandom(20 << 20))
            out.flush()
            os.fsync(out.fileno())
        os.unlink(root / "again")
    assert digest(keep) == want
    image.unmount()
    image.fsck()


@case(image=True)
def a_full_device_can_be_mounted_again(bench):
    image = bench.new_image("128M")
    root = image.mount()
    names = fill(root)
    sums = {path.name: digest(path) for path in names[::7]}
    root = image.remount()
    assert all(digest(root / name) == want for name, want in sums.items())
    for path in names:
        os.unlink(path)
    (root / "after").write_bytes(os.urandom(1 << 20))
    image.unmount()
    image.fsck()


@case(image=True)
def overwriting_many_times_the_device_goes_on(bench):
    image = bench.new_image("256M")
    root = image.mount()
    chance = random.Random(5)
    contents = {}
    for turn in range(600):
        name = f"f{chance.randrange(20)}"
        data = chance.randbytes(chance.randrange(1 << 21))
        (root / name).write_bytes(data)
        contents[name] = hashlib.sha256(data).hexdigest()
        if turn % 50 == 0:
            os.sync()
    assert all(digest(root / name) == want for name, want in contents.items())
    root = image.remount()
    assert all(digest(root / name) == want for name, want in contents.items())
    image.unmount()
    image.fsck()


@case(image=True)
def kill_loses_nothing_that_was_synced(bench):
    image = bench.new_image("1G")
    chance = random.Random(11)
    synced = {}
    for turn in range(5):
        root = image.mount()
        for name, want in synced.items():
            assert digest(root / name) == want, f"{name} after kill {turn}"
        stop = threading.Event()

        def unsynced():
            i = 0
            while not stop.is_set():
                try:
                    (root / f"noise-{i % 10}").write_bytes(os.urandom(50_000))
                except OSError:
                    return
                i += 1

        thread = threading.Thread(target=unsynced)
        thread.start()
        for i in range(60):
            name = f"synced-{chance.randrange(80)}"
            data = chance.randbytes(chance.randrange(100_000))
            temporary = root / f"tmp-{i}"
            with open(temporary, "wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            os.rename(temporary, root / name)
            fd = os.open(root, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
            synced[name] = hashlib.sha256(data).hexdigest()
        image.kill()
        stop.set()
        thread.join()
        image.fsck()


@case(image=True)
def orphans_of_a_killed_daemon_are_reclaimed(bench):
    image = bench.new_image("512M")
    root = image.mount()
    before = os.statvfs(root).f_bfree
    fd = os.open(root / "f", os.O_RDWR | os.O_CREAT)
    os.write(fd, os.urandom(64 << 20))
    os.unlink(root / "f")
    os.fsync(fd)
    # FUSE does not hand sync(2) on; a directory's fsync commits the names.
    here = os.open(root, os.O_RDONLY)
    os.fsync(here)
    os.close(here)
    image.kill()
    with contextlib.suppress(OSError):
        os.close(fd)
    root = image.mount()
    assert os.listdir(root) == []
    assert eventually(lambda: before - os.statvfs(root).f_bfree < (8 << 20) // 4096), os.statvfs(root)
    image.unmount()
    image.fsck()


@case(image=True)
def signals_unmount_cleanly(bench):
    image = bench.new_image("256M")
    for number in (signal.SIGTERM, signal.SIGINT):
        root = image.mount()
        (root / f"file-{number}").write_text("unsynced, yet written")
        image.daemon.send_signal(number)
        assert image.daemon.wait(timeout=30) == 0, image.messages()
        image.daemon = None
        assert not os.path.ismount(image.dir)
        image.fsck()
    root = image.mount()
    for number in (signal.SIGTERM, signal.SIGINT):
        assert (root / f"file-{number}").read_text() == "unsynced, yet written"
    image.unmount()


@case(image=True)
def everything_persists_across_mounts(bench):
    image = bench.new_image("1G")
    root = image.mount()
    shutil.copytree("/usr/include/linux", root / "tree", symlinks=True)
    os.link(root / "tree/fuse.h", root / "linked")
    os.symlink("tree", root / "sym")
    os.setxattr(root / "linked", "user.kept", b"yes")
    listing = "find . -printf '%p %y %m %U %G %n %T@ %l\\n' | sort"
    want = subprocess.run(listing, shell=True, cwd=root, capture_output=True, check=True).stdout
    for _ in range(3):
        root = image.remount()
        got = subprocess.run(listing, shell=True, cwd=root, capture_output=True, check=True).stdout
        assert got == want
        run("diff", "-r", "/usr/include/linux", root / "tree")
        assert os.getxattr(root / "linked", "user.kept") == b"yes"
    image.unmount()
    image.fsck()


@case(image=True)
def mount_in_the_background_and_umount(bench):
    image = bench.new_image("256M")
    run(WARREN, "mount", image.path, image.dir)
    assert os.path.ismount(image.dir)
    (image.dir / "f").write_text("x")
    run(WARREN, "umount", image.dir)
    assert not os.path.ismount(image.dir)
    assert eventually(lambda: run(WARREN, "fsck", image.path, check=False).returncode == 0)


@case(image=True)
def mount_through_the_helper(bench):
    need_root()
    image = bench.new_image("256M")
    helper = pathlib.Path("/sbin/mount.fuse.warren")
    mine = not helper.exists()
    if mine:
        helper.symlink_to(WARREN)
    try:
        run("mount", "-t", "fuse.warren", "-o", "noatime,nosuid", image.path, image.dir)
        assert os.path.ismount(image.dir)
        line = next(l for l in open("/proc/self/mounts") if str(image.dir) in l)
        assert " fuse.warren " in line and "nosuid" in line, line
        (image.dir / "f").write_text("x")
        run("umount", image.dir)
        assert eventually(lambda: run(WARREN, "fsck", image.path, check=False).returncode == 0)
    finally:
        if mine:
            helper.unlink()


@case(image=True)
def read_only_mounts_refuse_changes(bench):
    image = bench.new_image("256M")
    (image.mount() / "f").write_text("x")
    image.unmount()
    root = image.mount("ro")
    assert (root / "f").read_text() == "x"
    for attempt in (lambda: (root / "g").touch(), lambda: os.unlink(root / "f"), lambda: os.chmod(root / "f", 0)):
        try:
            attempt()
            raise AssertionError("a read-only mount took a change")
        except OSError as error:
            assert error.errno == errno.EROFS
    image.unmount()


@case(image=True)
def one_image_is_mounted_once(bench):
    image = bench.new_image("256M")
    image.mount()
    other = bench.scratch()
    refused("mount", image.path, other)
    refused("mount", bench.new_image("256M").path, image.dir / "none")
    refused("mkfs", "--force", image.path)
    assert not os.path.ismount(other)
    image.unmount()


@case(image=True)
def making_a_filesystem_spares_what_is_there(bench):
    image = bench.new_image("256M")
    (image.mount() / "f").write_text("x")
    image.unmount()
    refused("mkfs", image.path)
    assert (image.mount() / "f").read_text() == "x"
    image.unmount()
    run(WARREN, "mkfs", "--force", image.path)
    assert os.listdir(image.mount()) == []
    image.unmount()


@case(image=True)
def bad_input_gets_one_clear_line(bench):
    scratch = bench.scratch()
    foreign, empty, short = scratch / "foreign", scratch / "empty", scratch / "short"
    foreign.write_bytes(os.urandom(8 << 20))
    empty.touch()
    image = bench.new_image("256M")
    short.write_bytes(image.path.read_bytes()[:10_000])
    directory = scratch / "dir"
    directory.mkdir()
    for path in (foreign, empty, short, directory, scratch / "missing", "/dev/null"):
        for command in (["fsck", path], ["info", path], ["mount", path, image.dir], ["zones", path]):
            refused(*command)
    for shape in (["--size", "0"], ["--size", "12Q"], ["--size", "1"], ["--size", "1G", "--zone-size", "1000"],
                  ["--size", "1G", "--zone-capacity", "1T"], ["--zones", "0", "--zone-size", "4M"],
                  ["--zones", "4294967295", "--zone-size", "9999999T"], ["--size", "-1"]):
        refused("mkfs", scratch / "new", *shape)
        assert not (scratch / "new").exists(), f"mkfs {shape} left a file"
    refused("mount", image.path, scratch / "nowhere")
    refused("mount", image.path, foreign)
    refused("umount", scratch)
    refused("stats", scratch)
    refused("scrub", scratch)
    refused("nonsense")


@case(image=True)
def a_truncated_image_is_refused_or_reads_right(bench):
    image = bench.new_image("256M")
    root = image.mount()
    data = {f"f{i}": os.urandom(1 << 20) for i in range(20)}
    for name, content in data.items():
        (root / name).write_bytes(content)
    image.unmount()
    size = image.path.stat().st_size
    for share in (0.0001, 0.01, 0.1, 0.5, 0.99):
        cut = bench.new_image("256M")
        shutil.copyfile(image.path, cut.path)
        os.truncate(cut.path, int(size * share))
        check_damaged(cut, data)
        cut.dispose()


@case(image=True)
def flipped_bits_are_never_wrong_data(bench):
    image = bench.new_image("128M")
    root = image.mount()
    data = {f"d{i % 5}/f{i}": os.urandom(random.Random(i).randrange(200_000)) for i in range(60)}
    for name, content in data.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
    image.unmount()
    seed = int(os.environ.get("WARREN_SEED", "1"))
    print(f"    seed {seed}", flush=True)
    chance = random.Random(seed)
    extents = written_ranges(image.path)
    for _ in range(25):
        flipped = bench.new_image("128M")
        run("cp", "--sparse=always", image.path, flipped.path)
        flips = []
        with open(flipped.path, "r+b") as out:
            for _ in range(chance.choice([1, 1, 1, 5])):
                start, end = chance.choice(extents)
                at = chance.randrange(start, end)
                out.seek(at)
                byte = out.read(1)[0]
                out.seek(at)
                out.write(bytes([byte ^ (1 << chance.randrange(8))]))
                flips.append(at)
        try:
            check_damaged(flipped, data)
        except AssertionError as error:
            raise AssertionError(f"with flips at bytes {flips}: {error}") from None
        flipped.dispose()


def written_ranges(path):
    ranges, at = [], 0
    fd = os.open(path, os.O_RDONLY)
    try:
        while True:
            start = os.lseek(fd, at, os.SEEK_DATA)
            at = os.lseek(fd, start, os.SEEK_HOLE)
            ranges.append((start, at))
    except OSError as error:
        assert error.errno == errno.ENXIO
    finally:
        os.close(fd)
    return ranges


def check_damaged(image, data):
    """A damaged image is refused, answers EIO, or shows exactly what was written."""
    fsck = run(WARREN, "fsck", image.path, check=False, timeout=60)
    assert fsck.returncode in (0, 1) and "panicked" not in fsck.stderr, fsck.stderr
    try:
        root = image.mount()
    except AssertionError:
        text = image.messages()
        assert "panicked" not in text, text
        image.dispose()
        return
    script = (
        "import os, sys\n"
        "for name in sys.stdin.read().split('\\n'):\n"
        "    try: print(name, __import__('hashlib').sha256(open(os.path.join(sys.argv[1], name), 'rb').read()).hexdigest())\n"
        "    except OSError as error: print(name, 'errno', error.errno)\n"
    )
    # In a process of its own, so that a daemon that hangs fails this case and not the run.
    out = run(sys.executable, "-c", script, root, input="\n".join(data), timeout=60).stdout
    for line in out.splitlines():
        name, *answer = line.split()
        if answer[0] == "errno":
            assert int(answer[1]) == errno.EIO, f"{line}: only EIO is an honest answer"
        else:
            assert answer[0] == hashlib.sha256(data[name]).hexdigest(), f"{name} reads wrong"
    run("umount", "-l", root, check=False)
    image.daemon.wait(timeout=30)
    image.daemon = None
    image.no_panic()
