"""Databases that commit by atomic writes: SQLite, and index files of vmcache."""

import contextlib
import json
import os
import random
import shutil
import subprocess
import time

from harness import TARGET, WARREN, Skip, case, eventually, run

SQLITE = os.environ.get("SQLITE", str(TARGET / "release" / "sqlite"))
LEDGER = os.environ.get("LEDGER", str(TARGET / "release" / "examples" / "ledger"))


def need_built(program):
    if not os.path.exists(program):
        raise Skip(f"{program} is not built (scripts/test builds it)")


def sqlite(*arguments):
    return run(SQLITE, *arguments).stdout.strip()


def transactions(database, mode, count, *more):
    return json.loads(sqlite("run", database, "--mode", mode, "--transactions", count, *more))


def log_blocks(directory):
    return json.loads(run(WARREN, "stats", directory, "--json").stdout)["log"]["chunk_blocks"]


@case(image=True)
def sqlite_commits_by_atomic_writes_and_writes_each_page_once(bench):
    need_built(SQLITE)
    for options in (None, "direct_io"):
        image = bench.new_image("1G")
        image.mount(options)
        written = {}
        for mode in ("journal", "atomic"):
            database = image.dir / f"{mode}.db"
            sqlite("make", database)
            os.sync()
            before = log_blocks(image.dir)
            report = transactions(database, mode, 200)
            written[mode] = log_blocks(image.dir) - before
            assert sqlite("check", database) == "200"
            if mode == "atomic":
                assert report["atomic_commits"] == 200 and report["journals_opened"] == 0, report
            else:
                assert report["atomic_commits"] == 0 and report["journals_opened"] == 200, report
        assert written["atomic"] < 0.65 * written["journal"], written
        # The other way of committing goes on with the same file.
        assert transactions(image.dir / "journal.db", "atomic", 10)["atomic_commits"] == 10
        assert transactions(image.dir / "atomic.db", "journal", 10)["atomic_commits"] == 0
        for mode in ("journal", "atomic"):
            assert sqlite("check", image.dir / f"{mode}.db") == "210"
        image.unmount()
        image.fsck()


@case(image=True)
def connections_to_one_sqlite_database_take_turns(bench):
    """On a mount with page cache one that is not alone uses its journal; without, atomic writes."""
    need_built(SQLITE)
    for options, atomic in ((None, None), ("direct_io", True)):
        image = bench.new_image("1G")
        image.mount(options)
        database = image.dir / "db"
        sqlite("make", database)
        command = [SQLITE, "run", str(database), "--mode", "atomic", "--transactions", "60", "--seed"]
        running = [subprocess.Popen(command + [str(seed)], stdout=subprocess.PIPE, text=True)
                   for seed in (1, 2, 3)]
        reports = [json.loads(process.communicate(timeout=200)[0]) for process in running]
        assert sqlite("check", database) == "180"
        if atomic:
            assert all(report["journals_opened"] == 0 for report in reports), reports
        image.unmount()
        image.fsck()


def crashes(bench, options, victim, begin, check, seconds):
    """Kills whoever writes, or the daemon below it, over and over."""
    image = bench.new_image("1G")
    image.mount(options)
    output, last = bench.scratch() / "told", 0
    check(image.dir)
    until, turns = time.monotonic() + seconds, 0
    while time.monotonic() < until or turns < 3:
        turns += 1
        with open(output, "w") as told:
            writer = begin(image.dir, random.randrange(1 << 30), told)
        time.sleep(random.uniform(0.2, 1.0))
        assert writer.poll() is None, "the writer failed"
        if victim == "daemon":
            image.kill()
        writer.kill()
        writer.wait()
        if victim == "daemon":
            image.mount(options)
        told = [int(line) for line in output.read_text().splitlines()]
        acknowledged = told[-1] if told else last
        last = check(image.dir)
        assert last in (acknowledged, acknowledged + 1), f"{last} was found, {acknowledged} acknowledged"
    image.unmount()
    image.fsck()
    assert last > 5, "hardly anything was committed"


def begin_sqlite(directory, seed, told):
    command = [SQLITE, "run", directory / "db", "--mode", "atomic", "--transactions", 0, "--seed", seed, "--tell"]
    return subprocess.Popen([str(part) for part in command], stdout=told)


def check_sqlite(directory):
    database = directory / "db"
    if not database.exists():
        sqlite("make", database)
    number = int(sqlite("check", database))
    assert not (directory / "db-journal").exists()
    return number


@case(image=True)
def a_killed_sqlite_leaves_its_last_commit(bench):
    need_built(SQLITE)
    for options in (None, "direct_io"):
        crashes(bench, options, "writer", begin_sqlite, check_sqlite, 4)


@case(image=True)
def sqlite_finds_its_last_commit_when_the_daemon_was_killed(bench):
    need_built(SQLITE)
    for options in (None, "direct_io"):
        crashes(bench, options, "daemon", begin_sqlite, check_sqlite, 5)


def begin_ledger(directory, seed, told):
    return subprocess.Popen([LEDGER, "run", str(directory / "index"), str(seed)], stdout=told)


def check_ledger(directory):
    last, lost, method = run(LEDGER, "check", directory / "index").stdout.split(maxsplit=2)
    assert lost == "0" and method.strip() == "atomic writes", (lost, method)
    assert os.listdir(directory) == ["index"], "there is no journal"
    return int(last)


@case(image=True)
def a_killed_user_of_an_index_file_leaves_its_last_commit(bench):
    need_built(LEDGER)
    crashes(bench, None, "writer", begin_ledger, check_ledger, 5)


@case(image=True)
def an_index_file_is_at_its_last_commit_when_the_daemon_was_killed(bench):
    need_built(LEDGER)
    for options in (None, "direct_io"):
        crashes(bench, options, "daemon", begin_ledger, check_ledger, 5)


@case
def an_index_file_moves_between_filesystems_with_its_journal(bench):
    need_built(LEDGER)
    elsewhere = bench.scratch()
    with open(elsewhere / "told", "w") as told:
        writer = begin_ledger(elsewhere, 5, told)
        assert eventually(lambda: (elsewhere / "told").stat().st_size > 100, 30)
        writer.kill()
        writer.wait()
    (elsewhere / "told").unlink()
    before = sorted(os.listdir(elsewhere))
    if before == ["index"]:
        raise Skip("the host's filesystem has atomic writes")
    assert before == ["index", "index-journal-0", "index-journal-1"]
    for name in before:
        shutil.copy(elsewhere / name, bench.dir)
    here = check_ledger(bench.dir)
    shutil.copy(bench.dir / "index", elsewhere / "back")
    there, _, method = run(LEDGER, "check", elsewhere / "back").stdout.split(maxsplit=2)
    assert int(there) == here and method.strip() == "journal"
    with contextlib.suppress(FileNotFoundError):
        assert run(LEDGER, "check", elsewhere / "index").stdout.split()[0] == str(here)
