"""A guest machine with zoned NVMe namespaces: its geometry, its start, its conversation, its end.

The guest runs without hardware virtualisation (TCG) unless WARREN_QEMU_KVM=1 asks for KVM: a probe
would have to be trusted on hosts where /dev/kvm opens and the first instruction hangs. Output of
the program in the guest comes over ports of its own, so that kernel messages never mix with it;
how it ended comes over a third. Deliberately absent: networking, graphics, more than one controller.

QEMU keeps the states of zones in its own memory: a namespace starts with every zone empty, whatever
its file holds. So a kept image is attached twice, as a plain read-only disk and as a fresh namespace,
and the guest copies every zone that holds anything, up to its capacity, before it runs the script.
Such zones are found full. A write pointer found above what was written, with zeroes in between, is
what a power cut may leave; a reset of the machine (`cycle_after`) keeps QEMU and the true states.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import parts

# `rep movsb` is carried out byte by byte by TCG, ten times as slowly as moves of words; a processor
# that does not advertise fast string moves (erms, fsrm) is not asked for them.
TCG_PROCESSOR = "max,-erms,-fsrm"
# The clock is the processor's own, which needs no exit to the device model (HPET: ten times as long);
# a busy host makes the kernel's test of the timer fail.
TCG_WORDS = ["tsc=reliable", "clocksource=tsc", "no_timer_check"]
TIMED_OUT = 124
GUEST_FAILED = 125
NO_MARKER = 126


def size(text):
    """Bytes of 4096, 64K, 1M, 4G."""
    match = re.fullmatch(r"(\d+)([KMGT]?)(i?B)?", text, re.IGNORECASE)
    if not match:
        raise ValueError(f"{text!r} is not a size such as 64M")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[match[2].upper()]


@dataclasses.dataclass
class Namespace:
    """A namespace, zoned unless it is `conventional`. Without an image it starts empty and is gone
    afterwards."""

    zones: int = 64
    zone_size: int = 64 << 20
    zone_capacity: int = 0
    max_open: int = 16
    max_active: int = 32
    block_size: int = 4096
    conventional: int = 0
    image: pathlib.Path | None = None

    @staticmethod
    def parse(text):
        """From KEY=VALUE,.. with the names of the fields, dashes for underscores."""
        fields = {}
        for part in text.split(","):
            key, _, value = part.partition("=")
            name = key.strip().replace("-", "_")
            if name not in {field.name for field in dataclasses.fields(Namespace)} - {"image"}:
                raise ValueError(f"a namespace has no {key!r}")
            fields[name] = size(value)
        return Namespace(**fields)

    def bytes(self):
        return self.zones * self.zone_size

    def used_zones(self, image):
        """(Start, length to copy) in bytes of the zones of a kept image that hold anything."""
        with image.open("rb") as file:
            for start in range(0, self.bytes(), self.zone_size):
                if holds_anything(file, start, start + self.zone_size):
                    yield start, self.zone_capacity or self.zone_size

    def arguments(self, number, image):
        capacity = self.zone_capacity or self.zone_size
        properties = [
            "nvme-ns", f"drive=zns{number}", "bus=nvme0", f"nsid={number}",
            f"logical_block_size={self.block_size}", f"physical_block_size={self.block_size}",
        ]
        if not self.conventional:
            properties += [
                "zoned=on", f"zoned.zone_size={self.zone_size}", f"zoned.zone_capacity={capacity}",
                f"zoned.max_open={self.max_open}", f"zoned.max_active={self.max_active}",
            ]
        return ["-drive", f"file={image},id=zns{number},format=raw,if=none,discard=unmap",
                "-device", ",".join(properties)]


def holds_anything(file, start, end):
    """Whether a range of a sparse file has a byte that is not zero."""
    try:
        at = os.lseek(file.fileno(), start, os.SEEK_DATA)
    except OSError:  # no data up to the end of the file
        return False
    while at < end:
        piece = os.pread(file.fileno(), min(1 << 20, end - at), at)
        if not piece:
            return False
        if piece.strip(b"\0"):
            return True
        at += len(piece)
    return False


@dataclasses.dataclass
class Machine:
    """What a run needs to know."""

    namespaces: list
    files: dict = dataclasses.field(default_factory=dict)
    modules: tuple = ()
    memory: str = "2G"
    mdts: int = 7
    zasl: int = 0
    share: pathlib.Path | None = None
    host_root: bool = False
    # All memory is the guest's from the start: nothing that is measured pays for its first use, which
    # can take the host as long as writing the same to a device.
    prealloc: bool = False
    # Which drivers in user space (VFIO) need.
    iommu: bool = False
    timeout_s: float = 300
    log: pathlib.Path | None = None
    # Kept images and the fresh copies that the guest fills.
    restored: dict = dataclasses.field(default_factory=dict)

    def command(self, work, *, console, reboots):
        """The QEMU command line, after making what it names in `work`."""
        _, _, kernel_image = parts.kernel()
        attached, restore = self.attach(work)
        initramfs = work / "initramfs"
        base = parts.base_initramfs(self.modules).read_bytes()
        files = {**self.files, "etc/restore": restore.encode()}
        initramfs.write_bytes(base + parts.run_initramfs(files))
        words = [f"warren.namespaces={len(self.namespaces)}", "console=ttyS0", "quiet", "mitigations=off",
                 # A guest that panics has failed: it ends, unless a reset is part of the plan.
                 "panic=0" if reboots else "panic=-1"]
        words += ["intel_iommu=on"] if self.iommu else []
        accelerator = ["-accel", "tcg,thread=multi", "-cpu", TCG_PROCESSOR]
        if os.environ.get("WARREN_QEMU_KVM") == "1":
            accelerator = ["-accel", "kvm", "-cpu", "host"]
        else:
            words += TCG_WORDS
        command = ["qemu-system-x86_64", *accelerator, "-smp", "2", "-m", self.memory, "-nodefaults", "-nographic",
                   *(["-machine", "q35", "-device", "intel-iommu"] if self.iommu else []),
                   *(["-object", f"memory-backend-ram,id=memory,size={self.memory},prealloc=on",
                      "-machine", "memory-backend=memory"] if self.prealloc else []),
                   "-kernel", kernel_image, "-initrd", initramfs,
                   "-device", "virtio-serial-pci,id=ports",
                   "-device", f"nvme,id=nvme0,serial=warren,mdts={self.mdts},zoned.zasl={self.zasl}"]
        command += ["-serial", "mon:stdio"] if console else ["-serial", f"file:{work / 'console'}"]
        command += [] if reboots else ["-no-reboot"]
        for name in ("control", "out", "err"):
            command += ["-chardev", f"socket,id={name},path={work / name}",
                        "-device", f"virtserialport,bus=ports.0,chardev={name},name={name}"]
        command += ["-qmp", f"unix:{work / 'qmp'},server=on,wait=off"]
        command += attached
        for tag, path, flags in (("share", self.share, ""), ("host", "/" if self.host_root else None, ",readonly=on")):
            if path:
                words.append(f"warren.{tag}")
                command += ["-virtfs", f"local,path={path},mount_tag={tag},security_model=none,multidevs=remap{flags}"]
        return [*map(str, command), "-append", " ".join(words)]

    def attach(self, work):
        """The namespaces on QEMU's command line, and what the guest has to copy first."""
        arguments, restore = [], []
        self.restored = {}
        for number, namespace in enumerate(self.namespaces, 1):
            image = namespace.image or work / f"zns{number}"
            used = list(namespace.used_zones(image)) if image.exists() else []
            if used:
                if image.stat().st_size != namespace.bytes():
                    raise ValueError(f"{image} is of another geometry: {image.stat().st_size} bytes")
                disk = f"vd{chr(ord('a') + len(self.restored))}"
                restore += [f"{disk} zns{number} {start} {length}\n" for start, length in used]
                arguments += ["-drive", f"file={image},id={disk},format=raw,if=none,readonly=on",
                              "-device", f"virtio-blk-pci,drive={disk}"]
                copy = image.with_name(f"{image.name}.restored")
                self.restored[image] = copy
                image = copy
            image.write_bytes(b"")
            os.truncate(image, namespace.bytes())
            arguments += namespace.arguments(number, image)
        return arguments, "".join(restore)

    def begun(self):
        """The guest has copied what it had to: the copies take the place of the kept images."""
        for image, copy in self.restored.items():
            copy.replace(image)
        self.restored = {}

    def run(self, scripts, *, off_after=None, cycle_after=None, console=False):
        """Runs the first of `scripts` (names under /scripts) and answers its exit code.

        `off_after`: QEMU is killed as soon as a line of output contains this. `cycle_after`: the
        machine loses power then and starts again, with the next of the scripts; the device keeps
        what it had completed.
        """
        parts.CACHE.mkdir(parents=True, exist_ok=True)
        # Whoever ends us ends QEMU too.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: sys.exit(128 + number))
        with tempfile.TemporaryDirectory(prefix="run.", dir=parts.CACHE) as directory:
            work = pathlib.Path(directory)
            command = self.command(work, console=console, reboots=cycle_after is not None)
            with contextlib.ExitStack() as stack:
                ports = {name: stack.enter_context(listener(work / name)) for name in ("control", "out", "err")}
                # A group of its own: an interrupt at the terminal reaches us alone, and we clean up.
                qemu = subprocess.Popen(command, stdin=None if console else subprocess.DEVNULL,
                                        stdout=None if console else subprocess.DEVNULL,
                                        stderr=None if console else subprocess.PIPE,
                                        process_group=None if console else 0)
                stack.callback(end, qemu)
                conversation = Conversation(qemu, ports, list(scripts), work / "qmp", self.begun)
                code = conversation.hold(time.monotonic() + self.timeout_s, off_after, cycle_after)
            for copy in self.restored.values():
                copy.unlink(missing_ok=True)
            if code in (TIMED_OUT, GUEST_FAILED) and not console:
                complain(qemu, work / "console", code, self.timeout_s)
            if self.log and (work / "console").exists():
                shutil.copy(work / "console", self.log)
            return code


def listener(path):
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen(1)
    return listening


def end(process):
    """Ends QEMU for certain."""
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait()


def complain(qemu, console, code, timeout_s):
    reason = f"no answer after {timeout_s:g} s" if code == TIMED_OUT else "the guest ended without an answer"
    print(f"qemu: {reason}; the last of its console:", file=sys.stderr)
    tail = console.read_bytes()[-3000:].decode(errors="replace") if console.exists() else ""
    error = qemu.stderr.read().decode(errors="replace") if qemu.stderr else ""
    print(f"{tail}\n{error}", file=sys.stderr, flush=True)


class Conversation:
    """The guest's three ports, as `qemu/init` uses them."""

    def __init__(self, qemu, ports, scripts, qmp, begun):
        self.qemu, self.scripts, self.qmp, self.begun = qemu, scripts, qmp, begun
        self.selector = selectors.DefaultSelector()
        for name, port in ports.items():
            self.selector.register(port, selectors.EVENT_READ, name)
        self.streams = {"out": sys.stdout.buffer, "err": sys.stderr.buffer}
        self.lines = {"control": b"", "out": b"", "err": b""}
        self.control = None
        self.code = None
        self.open_ports = 0

    def hold(self, deadline, off_after, cycle_after):
        """Talks until the guest is off; answers the exit code."""
        marker = (off_after or cycle_after or "").encode()
        marked = False
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return TIMED_OUT
            for key, _ in self.selector.select(min(left, 0.5)):
                for line in self.receive(key):
                    if marker and not marked and marker in line:
                        marked = True
                        if off_after:
                            end(self.qemu)
                            return 0
                        self.cycle()
            if self.open_ports == 0 and self.qemu.poll() is not None:
                break
        if self.code is None:
            return GUEST_FAILED
        if marker and not marked:
            print(f"qemu: the script never printed {marker.decode()!r}", file=sys.stderr)
            return NO_MARKER
        return self.code

    def receive(self, key):
        """Takes what a port has; answers its complete lines."""
        name = key.data
        if key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            connected, _ = key.fileobj.accept()
            self.selector.unregister(key.fileobj)
            self.selector.register(connected, selectors.EVENT_READ, name)
            self.open_ports += 1
            if name == "control":
                self.control = connected
            return []
        try:
            data = key.fileobj.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        if not data:
            self.selector.unregister(key.fileobj)
            self.open_ports -= 1
            return []
        if name in self.streams:
            self.streams[name].write(data)
            self.streams[name].flush()
        *lines, self.lines[name] = (self.lines[name] + data).split(b"\n")
        if name == "control":
            for line in lines:
                self.answer(line.decode(errors="replace").strip())
            return []
        return lines

    def answer(self, line):
        if line.endswith("ready"):
            self.begun()
            self.control.sendall(self.scripts.pop(0).encode() + b"\n")
        elif line.startswith("exit "):
            self.code = int(line.split()[1])

    def cycle(self):
        """Takes the power away and gives it back."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self.qmp))
            stream = monitor.makefile("rw")
            stream.readline()
            for request in ("qmp_capabilities", "system_reset"):
                stream.write(json.dumps({"execute": request}) + "\n")
                stream.flush()
                while "return" not in json.loads(stream.readline()):
                    pass
        self.lines = dict.fromkeys(self.lines, b"")
