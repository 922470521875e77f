#!/bin/bash
# Kernels and RocksDB on one filesystem, which is sound afterwards. Runs in the host's root.
set -euo pipefail

device=nvme:/dev/ng0n1
warren mkfs $device
mkdir /mnt/warren
warren mount $device /mnt/warren
/run/scripts/kernels.sh
/run/scripts/db_bench.sh
warren umount /mnt/warren
warren fsck $device
