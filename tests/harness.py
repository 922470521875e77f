"""What the end-to-end cases stand on: images, mounts, cases, and running programs.

A case is a function marked with @case. It gets a Bench: a fresh directory on a mounted filesystem
(`bench.dir`), shared image per module; or, marked `image=True`, no mount but images of its own.
"""

import contextlib
import inspect
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
WARREN = os.environ.get("WARREN", str(TARGET / "release" / "warren"))

CASES = []


class Skip(Exception):
    """The machine lacks what the case needs."""


def case(function=None, *, image=False):
    """Registers a case. `image`: it makes and mounts images itself."""

    def register(function):
        module = pathlib.Path(inspect.getfile(function)).stem
        CASES.append((module, function.__name__, function, image))
        return function

    return register(function) if function else register


def run(*command, check=True, timeout=300, **options):
    """Runs a program; its output is captured, and shown when it fails unexpectedly."""
    command = [str(part) for part in command]
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    done = subprocess.run(command, capture_output=True, text=True, errors="replace",
                          timeout=timeout, **options)
    if check and done.returncode != 0:
        tail = (done.stdout + done.stderr)[-3000:]
        raise AssertionError(f"{' '.join(command)} exited with {done.returncode}:\n{tail}")
    return done


def shell(script, cwd, timeout=300):
    return run("bash", "-euo", "pipefail", "-c", script, cwd=cwd, timeout=timeout).stdout


def need(*programs):
    for program in programs:
        if not shutil.which(program):
            raise Skip(f"{program} is not installed")


def need_root():
    if os.geteuid() != 0:
        raise Skip("needs root")


@contextlib.contextmanager
def fails_with(*errnos):
    """The block must raise an OSError with one of the errnos."""
    try:
        yield
    except OSError as error:
        assert error.errno in errnos, f"failed with {error}, expected one of {errnos}"
    else:
        raise AssertionError(f"succeeded, expected errno in {errnos}")


def as_user(uid, function):
    """Runs `function` in a child with another user and no groups; returns its errno or 0."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            function()
            code = 0
        except OSError as error:
            code = error.errno
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def eventually(condition, seconds=10):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return False


class Image:
    """An image file and, while mounted, its daemon."""

    def __init__(self, work, size="4G", name="image"):
        self.path = pathlib.Path(tempfile.mkdtemp(dir=work)) / f"{name}.warren"
        self.dir = self.path.parent / "mnt"
        # Other users have business in here too.
        self.path.parent.chmod(0o755)
        self.dir.mkdir()
        self.daemon = None
        self.log = self.path.parent / "log"
        run(WARREN, "mkfs", self.path, "--size", size)

    def mount(self, options=None):
        command = [WARREN, "mount", "--foreground", str(self.path), str(self.dir)]
        command += ["-o", options] if options else []
        with open(self.log, "ab") as log:
            self.daemon = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        if not eventually(lambda: os.path.ismount(self.dir) or self.daemon.poll() is not None, 30):
            raise AssertionError("the mount did not come up")
        assert os.path.ismount(self.dir), f"mount failed: {self.messages()}"
        return self.dir

    def messages(self):
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""

    def unmount(self):
        run(WARREN, "umount", self.dir)
        code = self.daemon.wait(timeout=60)
        self.daemon = None
        assert code == 0, f"the daemon exited with {code}: {self.messages()}"
        self.no_panic()

    def remount(self):
        self.unmount()
        return self.mount()

    def kill(self):
        """kill -9, as a crash of the daemon."""
        self.daemon.send_signal(signal.SIGKILL)
        self.daemon.wait()
        self.daemon = None
        run("umount", "-l", self.dir)

    def fsck(self):
        assert self.daemon is None
        return run(WARREN, "fsck", self.path).stdout

    def no_panic(self):
        text = self.messages()
        assert "panicked" not in text, f"the daemon panicked: {text}"

    def dispose(self):
        if self.daemon:
            run("umount", "-l", self.dir, check=False)
            try:
                self.daemon.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.daemon.kill()
                self.daemon.wait()
            self.daemon = None
        if os.path.ismount(self.dir):
            run("umount", "-l", self.dir, check=False)
        shutil.rmtree(self.path.parent, ignore_errors=True)


class Bench:
    """What a case works with."""

    def __init__(self, work, directory=None, image=None):
        self.work = pathlib.Path(work)
        self.dir = directory
        self.image = image
        self.images = []

    def new_image(self, size="4G"):
        image = Image(self.work, size)
        self.images.append(image)
        return image

    def scratch(self):
        """A directory beside the filesystem under test, on the host."""
        return pathlib.Path(tempfile.mkdtemp(dir=self.work))

    def dispose(self):
        for image in self.images:
            image.dispose()
