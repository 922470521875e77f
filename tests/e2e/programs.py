"""Real programs at work: fio, fsx, SQLite, git, tar, RocksDB."""

import os
import random
import shutil

from harness import ROOT, TARGET, Skip, case, need, run, shell


def fio(bench, *arguments):
    need("fio")
    run("fio", "--name=verify", f"--directory={bench.dir}", "--size=48M", "--bsrange=1k-64k",
        "--verify=crc32c", "--verify_state_save=0", "--verify_fatal=1", "--rw=randwrite", "--randseed=42",
        "--end_fsync=1", *arguments, timeout=300)


@case
def fio_verifies_buffered(bench):
    fio(bench, "--ioengine=psync", "--numjobs=2")


@case
def fio_verifies_direct(bench):
    fio(bench, "--ioengine=libaio", "--direct=1", "--bsrange=4k-64k", "--iodepth=8")


@case
def fio_verifies_mapped(bench):
    fio(bench, "--ioengine=mmap", "--bsrange=4k-64k")


@case
def fio_verifies_through_io_uring(bench):
    need("fio")
    if "io_uring" not in run("fio", "--enghelp").stdout:
        raise Skip("this fio has no io_uring")
    fio(bench, "--ioengine=io_uring", "--iodepth=16")


@case
def fsx_exercises_one_file(bench):
    fsx = TARGET / "tools/bin/fsx"
    if not fsx.exists():
        need("cargo")
        run("cargo", "install", "fsx", "--version", "0.3.2", "--locked", "--root", TARGET / "tools",
            cwd=ROOT, timeout=600)
    for seed in (1, 2):
        run(fsx, "-N", "20000", "-S", seed, bench.dir / f"fsx-{seed}", cwd=bench.scratch())


@case
def sqlite_in_wal_mode(bench):
    need("sqlite3")
    database = bench.dir / "test.db"
    rows = "".join(
        f"INSERT INTO t(v, b) VALUES('{i}', randomblob({i % 4000}));" + ("COMMIT; BEGIN;" if i % 100 == 0 else "")
        for i in range(1, 4001))
    run("sqlite3", database, "PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT, b BLOB);")
    script = bench.scratch() / "rows.sql"
    script.write_text(f"BEGIN;{rows}COMMIT;DELETE FROM t WHERE id % 3 = 0;CREATE INDEX i ON t(v);")
    shell(f"sqlite3 test.db < {script}", bench.dir)
    if bench.image:
        ours = database.relative_to(bench.image.dir)
        database = bench.image.remount() / ours
    answer = run("sqlite3", database, "PRAGMA integrity_check; SELECT count(*) FROM t; VACUUM; PRAGMA integrity_check;")
    assert answer.stdout.split() == ["ok", "2667", "ok"], answer.stdout


@case
def git_from_init_to_clone(bench):
    need("git")
    chance = random.Random(3)
    repo = bench.dir / "repo"
    repo.mkdir()
    git = "git -c user.name=t -c user.email=t@t -c commit.gpgsign=false -c gc.auto=0"
    shell(f"{git} init -q .", repo)
    for commit in range(5):
        for i in range(120):
            path = repo / f"d{i % 10}" / f"f{i}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(chance.randbytes(chance.randrange(3000)))
        shell(f"{git} add -A && {git} commit -qm 'commit {commit}'", repo)
    shell(f"{git} -C repo repack -adq && {git} clone -q --no-hardlinks repo clone", bench.dir)
    assert shell(f"{git} fsck --full --strict 2>&1 | grep -v '^notice' || true", bench.dir / "clone").strip() == ""
    assert shell(f"{git} status --porcelain", bench.dir / "clone") == ""
    shell("diff -r --exclude=.git repo clone", bench.dir)


@case
def tar_there_and_back(bench):
    source = "/usr/include"
    shell(f"tar -C {source} -cf {bench.dir}/a.tar . && mkdir out && tar -xf a.tar -C out", bench.dir)
    shell(f"diff -r --no-dereference {source} out", bench.dir)
    sums = "find . -type f -print0 | sort -z | xargs -0r sha256sum"
    assert shell(sums, source) == shell(sums, bench.dir / "out")


@case
def rocksdb(bench):
    need("db_bench", "ldb", "sst_dump")
    database = bench.dir / "db"
    for options in ([], ["--mmap_read=1", "--mmap_write=1"],
                    ["--use_direct_reads=1", "--use_direct_io_for_flush_and_compaction=1"]):
        shutil.rmtree(database, ignore_errors=True)
        run("db_bench", f"--db={database}", "--benchmarks=fillrandom,overwrite,readrandom,readwhilewriting",
            "--num=40000", "--value_size=400", "--write_buffer_size=2097152", "--threads=2",
            "--target_file_size_base=2097152", "--max_bytes_for_level_base=8388608",
            "--compression_type=none", "--seed=1", *options)
        run("ldb", f"--db={database}", "checkconsistency")
        for table in database.glob("*.sst"):
            out = run("sst_dump", f"--file={table}", "--command=verify", "--verify_checksum").stdout
            assert "corruption" not in out.lower(), out
    run("db_bench", f"--db={database}", "--benchmarks=fillsync", "--num=2000", "--sync=1")


@case
def a_build_with_many_small_files(bench):
    need("cc", "make")
    for i in range(60):
        (bench.dir / f"m{i}.c").write_text(f"int f{i}(void) {{ return {i}; }}\n")
    calls = "".join(f"int f{i}(void); " for i in range(60))
    total = " + ".join(f"f{i}()" for i in range(60))
    (bench.dir / "main.c").write_text(f"#include <stdio.h>\n{calls}\nint main(void) {{ printf(\"%d\", {total}); }}\n")
    objects = " ".join(f"m{i}.o" for i in range(60))
    (bench.dir / "Makefile").write_text(f"prog: main.o {objects}\n\tcc -o $@ $^\n")
    shell("make -sj4", bench.dir)
    assert run(bench.dir / "prog", check=True).stdout == str(sum(range(60)))
    assert os.access(bench.dir / "prog", os.X_OK)
    assert "up to date" in shell("make", bench.dir)
