#!/bin/bash
# RocksDB on a namespace: fills, overwrites, compacts, reads, and checks the checksums of all it has
# written. Runs in the host's root, with /mnt/warren mounted.
set -euo pipefail

db=/mnt/warren/db
options=("--db=$db" --num=20000 --key_size=16 --value_size=400 --compression_type=none --seed=1
    --write_buffer_size=2097152 --target_file_size_base=2097152 --max_bytes_for_level_base=8388608)
run() {
    db_bench "${options[@]}" "$@" >/tmp/db_bench 2>&1 || {
        tail -20 /tmp/db_bench >&2
        exit 1
    }
    grep -E '^(fill|over|read)[a-z]* +:' /tmp/db_bench
}

run --benchmarks=fillseq,fillrandom,overwrite,readrandom
run --benchmarks=overwrite --use_existing_db=1 --num=300 --sync=1
ldb --db=$db checkconsistency >/dev/null
tables=0
for table in "$db"/*.sst; do
    sst_dump --file="$table" --command=verify --verify_checksum >/tmp/sst 2>&1 || {
        cat /tmp/sst >&2
        exit 1
    }
    tables=$((tables + 1))
done
[ $tables -gt 0 ]
echo "db_bench: $tables tables verified"
