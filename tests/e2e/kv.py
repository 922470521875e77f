"""Index files on the mount: `warren kv` at work, killed, remounted, and full of many keys."""

import json
import os
import random
import signal
import subprocess
import time

from harness import WARREN, case, run


def kv(*arguments, **options):
    return run(WARREN, "kv", *arguments, **options)


def check(file):
    report = json.loads(kv("check", file, "--json").stdout)
    assert report["errors"] == [], report
    return report


@case
def set_get_scan_and_remove(bench):
    file = bench.dir / "index"
    for key, value in (("b", "2"), ("a", "1"), ("c\\x00", "\\xff\\n")):
        kv("set", file, key, value)
    assert kv("get", file, "a").stdout == "1\n"
    assert kv("scan", file).stdout == "a\t1\nb\t2\nc\\x00\t\\xff\\n\n"
    assert kv("remove", file, "a", "b").stdout == ""
    missing = kv("get", file, "a", check=False)
    assert (missing.returncode, missing.stdout, missing.stderr) == (1, "", "")
    assert check(file)["entries"] == 1


@case
def entries_survive_a_remount(bench):
    chance = random.Random(5)
    entries = {f"{chance.randrange(10 ** 9):09}": "x" * chance.randrange(200) for _ in range(20_000)}
    lines = "".join(f"{key}\t{value}\n" for key, value in entries.items())
    file = bench.dir / "index"
    kv("load", file, "-", "--cache", "1M", input=lines)
    kv("set", file, "long", input="y" * 300_000)
    if bench.image:
        ours = file.relative_to(bench.image.dir)
        file = bench.image.remount() / ours
    expected = sorted(entries.items()) + [("long", "y" * 300_000)]
    assert kv("scan", file, "--cache", "1M").stdout == "".join(f"{key}\t{value}\n" for key, value in expected)
    assert check(file)["entries"] == len(expected)


@case
def sorted_input_is_bulk_loaded(bench):
    file = bench.dir / "index"
    lines = "".join(f"key{i:08}\tvalue {i}\n" for i in range(100_000))
    kv("load", file, "--sorted", input=lines)
    stats = json.loads(kv("stats", file, "--json").stdout)
    tree = stats["trees"][0]
    assert tree["entries"] == 100_000 and tree["leaf_fill"] > 0.8, tree
    assert kv("scan", file, "--reverse", "--limit", "1").stdout == "key00099999\tvalue 99999\n"


@case
def a_second_process_is_kept_out(bench):
    file = bench.dir / "index"
    kv("set", file, "a", "1")
    loading = subprocess.Popen([WARREN, "kv", "load", str(file)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            other = kv("get", file, "a", check=False)
            if other.returncode != 0:
                break
        assert other.stderr == f"warren: {file}: in use by another process\n", other.stderr
        loading.communicate(b"b\t2\n", timeout=60)
        assert loading.returncode == 0
    finally:
        loading.kill()
        loading.wait()
    assert kv("scan", file).stdout == "a\t1\nb\t2\n"


@case
def a_killed_load_leaves_nothing_behind(bench):
    file = bench.dir / "index"
    kv("set", file, "a", "1")
    loading = subprocess.Popen([WARREN, "kv", "load", str(file), "--cache", "256K"], stdin=subprocess.PIPE)
    lines = "".join(f"{i * 7919 % 1000003:07}\t{'z' * 100}\n" for i in range(50_000))
    loading.stdin.write(lines.encode())
    loading.stdin.flush()
    loading.send_signal(signal.SIGKILL)
    loading.wait()
    assert check(file)["entries"] == 1
    assert kv("scan", file).stdout == "a\t1\n"


@case
def a_damaged_file_is_told(bench):
    file = bench.dir / "index"
    kv("load", file, input="".join(f"{i:06}\tvalue\n" for i in range(5000)))
    with open(file, "r+b") as image:
        image.seek(os.path.getsize(file) // 2)
        image.write(b"damage")
    checked = kv("check", file, check=False)
    assert checked.returncode == 1 and "is damaged" in checked.stdout, checked
    scanned = kv("scan", file, check=False)
    assert scanned.returncode == 1 and scanned.stderr.startswith(f"warren: {file}: page "), scanned.stderr


@case
def loads_run_on_the_mount(bench):
    for workload in "abcdef":
        out = kv("bench", bench.dir / "bench", "--workload", workload, "--records", 20_000, "--operations", 2_000,
                 "--threads", 2, "--cache", "1M", "--json").stdout
        assert json.loads(out)["all"]["operations"] == 2_000
    out = kv("bench", bench.dir / "bench", "--records", 1000, "--operations", 300, "--threads", 4, "--durable").stdout
    assert "300 operations" in out
    assert os.listdir(bench.dir) == []
