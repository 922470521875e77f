"""What a guest is built from: a Debian kernel, an initramfs of busybox and modules, our binaries.

Everything is kept under target/qemu and made again only when its inputs change. Debian packages are
downloaded and unpacked there, never installed; only the programs this needs itself are installed
with apt. Deliberately absent: distributions other than Debian and its kin, machines other than
x86-64.
"""

import gzip
import hashlib
import lzma
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).absolute()
CACHE = TARGET / "qemu"
TRIPLE = "x86_64-unknown-linux-gnu"
# By name: the newest kernel of the release the host runs, or of another suite of Debian.
KERNEL = os.environ.get("WARREN_QEMU_KERNEL", "linux-image-amd64")
SUITE = os.environ.get("WARREN_QEMU_SUITE", "")
MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "cpio": "cpio",
    "depmod": "kmod",
    "strip": "binutils",
}
MODULES = ["virtio_pci", "virtio_console", "virtio_blk", "nvme", "fuse", "9p", "9pnet_virtio", "loop"]


class Unavailable(Exception):
    """The machine cannot run guests, and why."""


def need_programs():
    """Installs the programs that are missing."""
    # depmod lives in sbin, which is not on everybody's path.
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = sorted(package for program, package in PROGRAMS.items() if not shutil.which(program))
    if platform.machine() != "x86_64":
        raise Unavailable(f"guests are x86-64 machines, this is {platform.machine()}")
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise Unavailable(f"please install: {' '.join(missing)}")
    print(f"qemu: installing {' '.join(missing)}", flush=True)
    apt_get("update", "-qq")
    apt_get("install", "-y", "-qq", "--no-install-recommends", *missing)


def apt_get(*arguments):
    """apt-get as root."""
    command = ["apt-get", *arguments] if os.getuid() == 0 else ["sudo", "apt-get", *arguments]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(f"apt-get {arguments[0]} failed: {done.stderr.strip()[-500:]}")


def suite_options(suite):
    """What has apt work with another suite of Debian, with lists of its own: nothing of the host's changes."""
    if not suite:
        return []
    home = CACHE / "apt" / suite
    for name in ("lists/partial", "cache/archives/partial"):
        (home / name).mkdir(parents=True, exist_ok=True)
    (home / "sources.list").write_text(f"deb [signed-by={KEYRING}] {MIRROR} {suite} main\n")
    settings = {"Dir::Etc::SourceList": home / "sources.list", "Dir::Etc::SourceParts": "-",
                "Dir::State::Lists": home / "lists", "Dir::Cache": home / "cache", "APT::Sandbox::User": "root"}
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def update_lists(suite):
    """Has apt learn what there is."""
    if not suite:
        apt_get("update", "-qq")
        return
    done = subprocess.run(["apt-get", *suite_options(suite), "update", "-qq"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(f"nothing is known of {suite}: {done.stderr.strip()[-500:]}")


def depends(package, suite):
    """Packages that a package depends on; None if apt does not know it."""
    listed = subprocess.run(["apt-cache", *suite_options(suite), "depends", "--important", package],
                            capture_output=True, text=True, check=False)
    pairs = (line.strip().partition(": ") for line in listed.stdout.splitlines())
    found = [name for word, _, name in pairs if word in ("Depends", "PreDepends") and not name.startswith("<")]
    return found if listed.returncode == 0 and listed.stdout else None


def download(package, directory, suite):
    """Downloads a package; answers its file."""
    done = subprocess.run(["apt-get", *suite_options(suite), "download", package], cwd=directory, capture_output=True,
                          text=True, check=False)
    found = list(directory.glob(f"{package}_*.deb"))
    if done.returncode != 0 or not found:
        raise Unavailable(f"{package} cannot be downloaded: {done.stderr.strip()[-500:]}")
    return found[0]


def download_kernel(directory):
    """The packages with the kernel behind a metapackage such as linux-image-amd64; another is itself. Newer ones
    have the image, the modules and the lists of what is built in in packages of their own."""
    needed = depends(KERNEL, SUITE)
    if needed is None:
        raise Unavailable(f"apt knows no package {KERNEL} {SUITE}")
    package = next((name for name in needed if name.startswith("linux-image-")), KERNEL)
    print(f"qemu: downloading {package}", file=sys.stderr, flush=True)
    apart = [name for name in depends(package, SUITE) or [] if name.startswith(("linux-binary-", "linux-modules-", "linux-base-"))]
    return [download(name, directory, SUITE) for name in (package, *apart)]


def tools(packages, suite=""):
    """Programs of Debian packages with the libraries they need, unpacked; answers a directory in whose `bin` each
    can be called, wherever the directory is, by the loader that belongs to it."""
    key = hashlib.sha256(repr((sorted(packages), suite)).encode()).hexdigest()[:16]
    home = CACHE / "tools" / key
    if home.exists():
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    if any(depends(package, suite) is None for package in packages):
        update_lists(suite)
    for package in packages:
        if depends(package, suite) is None:
            raise Unavailable(f"Debian {suite} has no package {package}")
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        work, tree = pathlib.Path(directory), pathlib.Path(directory, "tree")
        (tree / "bin").mkdir(parents=True)
        wanted, seen = list(packages), set()
        while wanted:
            package = wanted.pop()
            if package not in seen:
                seen.add(package)
                subprocess.run(["dpkg-deb", "-x", download(package, work, suite), tree / "root"], check=True)
                wanted += [name for name in depends(package, suite) or [] if name.startswith(("lib", "zlib"))]
        loader = next((tree / "root").glob("**/ld-linux-x86-64.so.2")).relative_to(tree)
        libraries = {path.parent.relative_to(tree) for path in (tree / "root").glob("**/*.so.*")}
        path = ":".join(f'"$here/{library}"' for library in sorted(libraries))
        for place in ("sbin", "usr/sbin"):
            for program in sorted((tree / "root").glob(f"{place}/*")):
                caller = tree / "bin" / program.name
                caller.write_text(f'#!/bin/sh\nhere=${{0%/*}}/..\nexec "$here/{loader}" --library-path {path} '
                                  f'"$here/{program.relative_to(tree)}" "$@"\n')
                caller.chmod(0o755)
        tree.rename(home)
    return home


def kernel():
    """The unpacked kernel package: (directory, version, vmlinux)."""
    place = CACHE / "kernels" / (f"{KERNEL}@{SUITE}" if SUITE else KERNEL)
    found = sorted(place.glob("*/vmlinux"))
    if found:
        return found[-1].parent, found[-1].parent.name, found[-1]
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        work = pathlib.Path(directory)
        try:
            packages = download_kernel(work)
        except Unavailable:
            # What apt knows may be older than what there is.
            update_lists(SUITE)
            packages = download_kernel(work)
        tree = work / "tree"
        for package in packages:
            subprocess.run(["dpkg-deb", "-x", package, tree], check=True)
        images = [*tree.glob("boot/vmlinuz-*"), *tree.glob("usr/lib/modules/*/vmlinuz")]
        if not images:
            raise Unavailable(f"there is no kernel in {', '.join(package.name for package in packages)}")
        image = images[0]
        version = image.parent.name if image.name == "vmlinuz" else image.name.removeprefix("vmlinuz-")
        # Newer packages have /usr/lib/modules, older ones /lib/modules.
        if not (tree / "lib/modules").exists():
            (tree / "lib").mkdir(exist_ok=True)
            (tree / "lib/modules").symlink_to("../usr/lib/modules")
        subprocess.run(["depmod", "-b", tree, version], check=True)
        (tree / "vmlinux").write_bytes(unpack_kernel(image.read_bytes()))
        home = place / version
        home.parent.mkdir(parents=True, exist_ok=True)
        tree.rename(home)
    return home, version, home / "vmlinux"


def unpack_kernel(image):
    """The ELF file within a bzImage: the guest would take seconds to unpack it itself."""
    for magic, decompressor in ((b"\xfd7zXZ\x00", lzma.LZMADecompressor), (b"\x1f\x8b\x08", None)):
        start = image.find(magic)
        while start >= 0:
            try:
                if decompressor:
                    elf = decompressor().decompress(image[start:])
                else:
                    elf = gzip.zlib.decompressobj(31).decompress(image[start:])
            except (lzma.LZMAError, gzip.zlib.error):
                elf = b""
            if elf.startswith(b"\x7fELF"):
                return elf
            start = image.find(magic, start + 1)
    # Some other compression (zstd, ...): QEMU boots the image as it is.
    return image


def archive(tree):
    """A directory as an initramfs."""
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    packed = subprocess.run(["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"], cwd=tree, check=True,
                            input=names.encode(), capture_output=True)
    return packed.stdout


def base_initramfs(extra_modules):
    """The part of the initramfs that depends on the kernel alone."""
    home, version, _ = kernel()
    init = ROOT / "qemu" / "init"
    busybox = pathlib.Path(shutil.which("busybox"))
    modules = [*MODULES, *extra_modules]
    key = hashlib.sha256(repr((version, modules, init.read_bytes(), busybox.stat().st_mtime)).encode())
    cached = CACHE / f"base-{version}-{key.hexdigest()[:16]}.cpio"
    if cached.exists():
        return cached
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        tree = pathlib.Path(directory)
        for name in ("bin", "dev", "etc", "host", "lib/modules", "mnt", "proc", "root", "run", "share", "sys", "tmp"):
            (tree / name).mkdir(parents=True)
        (tree / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        (tree / "etc/group").write_text("root:x:0:\n")
        (tree / "etc/mtab").symlink_to("/proc/mounts")
        shutil.copy(busybox, tree / "bin/busybox")
        listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
        for applet in listed.stdout.split():
            if applet != "busybox":
                (tree / "bin" / applet).symlink_to("busybox")
        shutil.copy(init, tree / "init")
        (tree / "init").chmod(0o755)
        order = module_files(home, version, modules, tree)
        (tree / "etc/modules").write_text("".join(f"{path.name}\n" for path in order))
        partial = cached.with_suffix(f".{os.getpid()}")
        partial.write_bytes(archive(tree))
        partial.rename(cached)
    return cached


def has_module(name):
    """Whether the kernel has a module, or has it built in."""
    home, version, _ = kernel()
    shown = subprocess.run(["modprobe", "-S", version, "-d", home, "--show-depends", name], capture_output=True,
                           check=False)
    return shown.returncode == 0


def module_files(home, version, modules, tree):
    """Copies modules and what they depend on to the tree; answers the order to load them in."""
    order = []
    for module in modules:
        shown = subprocess.run(["modprobe", "-S", version, "-d", home, "--show-depends", module],
                               capture_output=True, text=True, check=False)
        if shown.returncode != 0:
            raise Unavailable(f"kernel {version} has no module {module}: {shown.stderr.strip()}")
        for line in shown.stdout.splitlines():
            words = line.split()
            if words[0] != "insmod":
                continue
            source = pathlib.Path(words[1])
            if source.suffix != ".ko":
                source = unpack_module(source, tree)
            else:
                shutil.copy(source, tree / "lib/modules" / source.name)
            if source.name not in [path.name for path in order]:
                order.append(source)
    return order


def unpack_module(source, tree):
    """A compressed module, as newer kernels have them, unpacked into the tree."""
    target = tree / "lib/modules" / source.stem
    if source.suffix == ".xz":
        target.write_bytes(lzma.decompress(source.read_bytes()))
    else:
        tool = {".zst": "zstd", ".gz": "gzip"}.get(source.suffix)
        if tool is None or not shutil.which(tool):
            raise Unavailable(f"{source.name} cannot be unpacked here")
        unpacked = subprocess.run([tool, "-dc", source], check=True, capture_output=True)
        target.write_bytes(unpacked.stdout)
    return target


def static_build(profile, *arguments):
    """Builds with cargo, without any dynamic library; answers the directory of the results."""
    flags = ["--release"] if profile == "release" else []
    # A target directory of its own: other flags would rebuild everything in the usual one.
    home = TARGET / "static"
    environment = {**os.environ, "RUSTFLAGS": "-C target-feature=+crt-static"}
    command = ["cargo", "build", "--quiet", "--locked", "--target", TRIPLE, "--target-dir", home, *flags, *arguments]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return home / TRIPLE / ("release" if profile == "release" else "debug")


def warren(profile):
    """The static binary."""
    return static_build(profile, "-p", "warren-fs") / "warren"


def run_initramfs(files):
    """The part of the initramfs for one run: {path in the guest: path here or bytes}."""
    with tempfile.TemporaryDirectory() as directory:
        tree = pathlib.Path(directory)
        for name, source in files.items():
            target = tree / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(source, bytes):
                target.write_bytes(source)
            elif source.read_bytes()[:4] == b"\x7fELF":
                # Debug information would triple what the guest has to unpack.
                subprocess.run(["strip", "-o", target, source], check=True)
            else:
                shutil.copy(source, target)
            target.chmod(0o755)
        return archive(tree)
