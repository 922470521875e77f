"""Names and directories: rename, links, unlink, limits, listings, big and deep trees."""

import ctypes
import errno
import os
import threading

from harness import as_user, case, fails_with, need_root

LIBC = ctypes.CDLL(None, use_errno=True)
NOREPLACE, EXCHANGE = 1, 2


def rename_flags(old, new, flags):
    if LIBC.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(old))


def make(path, kind):
    """Makes what the rename matrix renames; returns how to recognise it."""
    if kind == "file":
        path.write_text(str(path.name))
    elif kind == "empty":
        path.mkdir()
    elif kind == "full":
        path.mkdir()
        (path / "child").write_text("x")
    elif kind == "link":
        path.symlink_to("nowhere")
    elif kind == "fifo":
        os.mkfifo(path)


@case
def rename_matrix(bench):
    directories = {"empty", "full"}
    for old in ["file", "link", "fifo", "empty", "full"]:
        for new in ["none", "file", "link", "fifo", "empty", "full"]:
            source, target = bench.dir / f"{old}-{new}.s", bench.dir / f"{old}-{new}.t"
            make(source, old)
            make(target, new)
            ino = source.lstat().st_ino
            if new == "none" or (old in directories) == (new in directories) and new != "full":
                os.rename(source, target)
                assert target.lstat().st_ino == ino and not os.path.lexists(source)
                continue
            wrong = {True: [errno.ENOTDIR], False: [errno.EISDIR]}[old in directories]
            with fails_with(*wrong, errno.ENOTEMPTY, errno.EEXIST):
                os.rename(source, target)
            assert source.lstat().st_ino == ino


@case
def rename_noreplace_and_exchange(bench):
    a, b, c = (bench.dir / name for name in "abc")
    a.write_text("A")
    b.mkdir()
    (b / "inside").write_text("B")
    with fails_with(errno.EEXIST):
        rename_flags(a, b, NOREPLACE)
    rename_flags(a, c, NOREPLACE)
    rename_flags(c, b, EXCHANGE)
    assert b.read_text() == "A" and (c / "inside").read_text() == "B"
    assert bench.dir.stat().st_nlink == 3
    with fails_with(errno.ENOENT):
        rename_flags(a, b, EXCHANGE)
    with fails_with(errno.EINVAL):
        rename_flags(b, c, NOREPLACE | EXCHANGE)


@case
def rename_keeps_the_tree_a_tree(bench):
    (bench.dir / "a/b/c").mkdir(parents=True)
    with fails_with(errno.EINVAL):
        os.rename(bench.dir / "a", bench.dir / "a/b/d")
    with fails_with(errno.EINVAL):
        rename_flags(bench.dir / "a", bench.dir / "a/b", EXCHANGE)
    with fails_with(errno.ENOTEMPTY, errno.EEXIST):
        os.rename(bench.dir / "a/b/c", bench.dir / "a")
    os.rename(bench.dir / "a/b/c", bench.dir / "c")
    assert (bench.dir / "c/..").resolve() == bench.dir.resolve()
    assert (bench.dir / "a/b").stat().st_nlink == 2
    assert bench.dir.stat().st_nlink == 4


@case
def rename_onto_a_hard_link_of_itself_does_nothing(bench):
    a, b = bench.dir / "a", bench.dir / "b"
    a.write_text("x")
    os.link(a, b)
    os.rename(a, b)
    assert a.exists() and b.exists() and a.stat().st_nlink == 2


@case
def rename_replaces_an_open_file(bench):
    old, new = bench.dir / "old", bench.dir / "new"
    old.write_text("old")
    new.write_text("new")
    with open(new) as held:
        os.rename(old, new)
        assert held.read() == "new" and os.fstat(held.fileno()).st_nlink == 0
    assert new.read_text() == "old"


@case
def unlinked_files_live_while_they_are_open(bench):
    path = bench.dir / "f"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, b"before")
    os.unlink(path)
    with fails_with(errno.ENOENT):
        os.stat(path)
    os.pwrite(fd, b"after!" * 10000, 6)
    assert os.pread(fd, 6, 0) == b"before" and os.fstat(fd).st_size == 60006
    os.ftruncate(fd, 3)
    assert os.pread(fd, 10, 0) == b"bef" and os.fstat(fd).st_nlink == 0
    path.write_text("another")
    assert os.fstat(fd).st_ino != path.stat().st_ino
    os.close(fd)


@case
def a_removed_directory_stays_a_place_for_who_is_in_it(bench):
    path = bench.dir / "d"
    path.mkdir()
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.rmdir(path)
    assert os.listdir(fd) == []
    with fails_with(errno.ENOENT):
        os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    os.close(fd)


@case
def exclusive_creation(bench):
    path = bench.dir / "f"
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    with fails_with(errno.EEXIST):
        os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.symlink("target", bench.dir / "l")
    with fails_with(errno.EEXIST):
        os.open(bench.dir / "l", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    won = []
    def race():
        try:
            os.close(os.open(bench.dir / "race", os.O_CREAT | os.O_EXCL))
            won.append(1)
        except FileExistsError:
            pass
    threads = [threading.Thread(target=race) for _ in range(16)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(won) == 1


@case
def temporary_files_without_a_name_work_or_are_refused_as_unsupported(bench):
    try:
        fd = os.open(bench.dir, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError as error:
        # What programs take as the sign to use a name instead; see docs/semantics.md.
        assert error.errno == errno.EOPNOTSUPP, error
        assert os.listdir(bench.dir) == []
        return
    os.write(fd, b"hidden")
    assert os.listdir(bench.dir) == [] and os.fstat(fd).st_nlink == 0
    here = os.open(bench.dir, os.O_RDONLY)
    # With a directory descriptor, for only then does Python ask the kernel to follow the link.
    os.link(f"/proc/self/fd/{fd}", "shown", dst_dir_fd=here, follow_symlinks=True)
    os.close(here)
    os.close(fd)
    assert (bench.dir / "shown").read_bytes() == b"hidden"


@case
def hard_links_are_one_file(bench):
    a = bench.dir / "a"
    a.write_text("x")
    (bench.dir / "d").mkdir()
    b = bench.dir / "d/b"
    os.link(a, b)
    b.write_text("through b")
    assert a.read_text() == "through b" and a.stat().st_nlink == 2
    with fails_with(errno.EEXIST):
        os.link(a, b)
    with fails_with(errno.EPERM):
        os.link(bench.dir / "d", bench.dir / "e")
    a.unlink()
    assert b.stat().st_nlink == 1
    os.symlink("b", bench.dir / "d/s")
    os.link(bench.dir / "d/s", bench.dir / "s2", follow_symlinks=False)
    assert os.readlink(bench.dir / "s2") == "b"


@case
def symbolic_links_and_loops(bench):
    os.symlink("b", bench.dir / "a")
    os.symlink("a", bench.dir / "b")
    with fails_with(errno.ELOOP):
        os.stat(bench.dir / "a")
    long = "x/" * 2000 + "y"
    os.symlink(long, bench.dir / "long")
    assert os.readlink(bench.dir / "long") == long
    assert (bench.dir / "long").lstat().st_size == len(long)
    with fails_with(errno.ENAMETOOLONG):
        os.symlink("x" * 4096, bench.dir / "longer")


@case
def names_up_to_255_bytes_of_anything(bench):
    (bench.dir / ("n" * 255)).write_text("ok")
    with fails_with(errno.ENAMETOOLONG):
        (bench.dir / ("n" * 256)).write_text("no")
    odd = bytes(b for b in range(1, 256) if b != ord("/"))[:250]
    with open(os.path.join(os.fsencode(bench.dir), odd), "w") as out:
        out.write("odd")
    assert odd in os.listdir(os.fsencode(bench.dir))
    for name in ["é", "e\u0301", "E", "e", " ", "-", "...", "a\nb"]:
        (bench.dir / name).write_text(name)
    for name in ["é", "e\u0301", "E", "e", " ", "-", "...", "a\nb"]:
        assert (bench.dir / name).read_text() == name


@case
def errors_of_paths(bench):
    (bench.dir / "f").write_text("x")
    (bench.dir / "d/e").mkdir(parents=True)
    with fails_with(errno.ENOTDIR):
        os.stat(bench.dir / "f/x")
    with fails_with(errno.ENOTDIR):
        os.rmdir(bench.dir / "f")
    with fails_with(errno.EISDIR, errno.EPERM):
        os.unlink(bench.dir / "d")
    with fails_with(errno.ENOTEMPTY, errno.EEXIST):
        os.rmdir(bench.dir / "d")
    with fails_with(errno.EEXIST):
        os.mkdir(bench.dir / "f")
    with fails_with(errno.EISDIR):
        os.open(bench.dir / "d", os.O_WRONLY)
    with fails_with(errno.ENOENT):
        os.rename(bench.dir / "none", bench.dir / "f")


@case
def sticky_directories_protect_names(bench):
    need_root()
    bench.dir.chmod(0o1777)
    (bench.dir / "theirs").write_text("x")
    os.chown(bench.dir / "theirs", 1001, 1001)
    assert as_user(1002, lambda: os.unlink(bench.dir / "theirs")) in (errno.EPERM, errno.EACCES)
    assert as_user(1002, lambda: os.rename(bench.dir / "theirs", bench.dir / "mine")) in (errno.EPERM, errno.EACCES)
    assert as_user(1001, lambda: os.unlink(bench.dir / "theirs")) == 0


@case
def listing_while_names_come_and_go(bench):
    stay = {f"stay-{i}" for i in range(3000)}
    for name in stay:
        (bench.dir / name).touch()
    stop = threading.Event()
    def churn():
        turn = 0
        while not stop.is_set():
            path = bench.dir / f"churn-{turn % 50}"
            turn += 1
            path.touch()
            path.unlink()
    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(15):
            seen = [name for name in os.listdir(bench.dir) if name.startswith("stay-")]
            assert len(seen) == len(stay) and set(seen) == stay
    finally:
        stop.set()
        thread.join()


@case
def removing_while_listing_removes_everything(bench):
    for i in range(5000):
        (bench.dir / f"f{i}").touch()
    with os.scandir(bench.dir) as entries:
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir(bench.dir) == []


@case
def directory_of_200000_entries(bench):
    count = 200_000
    fd = os.open(bench.dir, os.O_RDONLY)
    for i in range(count):
        os.close(os.open(f"entry-{i}", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    names = os.listdir(bench.dir)
    assert len(names) == count and len(set(names)) == count
    for i in range(0, count, 997):
        assert os.stat(f"entry-{i}", dir_fd=fd).st_size == 0
    with fails_with(errno.ENOENT):
        os.stat("entry-200000", dir_fd=fd)
    for i in range(count):
        os.unlink(f"entry-{i}", dir_fd=fd)
    os.close(fd)
    assert os.listdir(bench.dir) == []
    os.rmdir(bench.dir)
    bench.dir.mkdir()


@case
def tree_300_levels_deep(bench):
    fds = [os.open(bench.dir, os.O_RDONLY)]
    for level in range(300):
        os.mkdir(f"level-{level}", dir_fd=fds[-1])
        fds.append(os.open(f"level-{level}", os.O_RDONLY, dir_fd=fds[-1]))
    fd = os.open("bottom", os.O_CREAT | os.O_RDWR, dir_fd=fds[-1])
    os.write(fd, b"deep")
    os.close(fd)
    up = os.open("/".join([".."] * 300), os.O_RDONLY, dir_fd=fds[-1])
    assert os.fstat(up).st_ino == os.fstat(fds[0]).st_ino
    for fd in [up, *fds]:
        os.close(fd)
