"""What scripts/bench, scripts/bench-offload and scripts/bench-zns share: filesystems to measure, and documenting results."""

import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
WARREN = os.environ.get("WARREN", str(TARGET / "release" / "warren"))
PASSTHROUGH = TARGET / "release" / "passthrough"
DOCUMENT = ROOT / "docs" / "performance.md"


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise SystemExit(f"bench: {' '.join(map(str, command))} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def wait_for(condition, what, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise SystemExit(f"bench: {what} did not happen within {seconds} s")
        time.sleep(0.005)


class Filesystem:
    """A filesystem to measure: fresh and empty when set up, gone when torn down."""

    options = ""

    def __init__(self, name, base, size="24G"):
        self.name, self.base, self.size = name, base / name, size
        self.backing, self.dir, self.daemon = self.base / "backing", self.base / "mnt", None

    @property
    def image(self):
        return self.backing / "image.warren"

    def set_up(self):
        self.backing.mkdir(parents=True)
        self.dir.mkdir()
        if self.name == "ext4":
            self.dir.rmdir()
            self.dir = self.backing
        elif self.name == "warren":
            run(WARREN, "mkfs", self.image, "--size", self.size)
        self.mount()

    def mount(self):
        if self.name == "ext4":
            return
        command = {
            "passthrough": [PASSTHROUGH, self.backing, self.dir],
            "warren": [WARREN, "mount", "--foreground", "-o", self.options or "rw", self.image, self.dir],
        }[self.name]
        self.daemon = subprocess.Popen([str(part) for part in command])
        wait_for(lambda: os.path.ismount(self.dir) or self.daemon.poll() is not None, "the mount")
        if self.daemon.poll() is not None:
            raise SystemExit(f"bench: {self.name} did not mount")

    def unmount(self):
        if self.daemon:
            run("umount", self.dir)
            self.daemon.wait(timeout=120)
            self.daemon = None

    def tear_down(self):
        if self.daemon:
            subprocess.run(["umount", "-l", str(self.dir)], check=False)
            self.daemon.wait(timeout=120)
            self.daemon = None
        shutil.rmtree(self.base, ignore_errors=True)

    def cold(self):
        """Nothing of the filesystem is in any cache of the kernel or of a daemon."""
        os.sync()
        if self.name == "warren":
            self.unmount()
        os.sync()
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
        if self.name == "warren":
            self.mount()

    def settle(self, seconds=30):
        """Lets the daemon finish what it does in the background."""
        os.sync()
        spent, until = None, time.monotonic() + seconds
        while self.daemon and time.monotonic() < until:
            fields = pathlib.Path(f"/proc/{self.daemon.pid}/stat").read_text().rsplit(")", 1)[1].split()
            now = int(fields[11]) + int(fields[12])
            if now == spent:
                return
            spent = now
            time.sleep(0.7)


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def machine():
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "unknown CPU")
    memory = int(open("/proc/meminfo").readline().split()[1]) // (1 << 20)
    return f"{os.cpu_count()} x {cpu}, {memory} GiB of memory, Linux {platform.release()}"


def command_line():
    """How this program was called, as one would from the top of the repository."""
    suite = os.environ.get("WARREN_QEMU_SUITE")
    words = [f"WARREN_QEMU_SUITE={suite}"] if suite else []
    return " ".join([*words, f"scripts/{pathlib.Path(sys.argv[0]).name}", *sys.argv[1:]])


def write_document(marker, parts):
    """Each benchmark {name: text} has its part of the document, which a run of it replaces; new parts go before the
    marker."""
    text = DOCUMENT.read_text()
    for name, body in parts.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        part = f"{begin}\n{body}\n{end}"
        if begin in text:
            text = text[:text.index(begin)] + part + text[text.index(end) + len(end):]
        else:
            text = text.replace(marker, part + marker)
    DOCUMENT.write_text(text)
