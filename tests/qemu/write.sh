#!/bin/sh
# Writes until the power goes: some of it synced, with its sums in /share/kept, the rest under way.
set -e
warren mkfs nvme:/dev/zns1
warren mount nvme:/dev/zns1 /mnt
mkdir /mnt/kept /mnt/lost
(while true; do dd if=/dev/urandom of=/mnt/lost/big bs=64K count=40 2>/dev/null; done) &
(
    n=0
    while true; do
        n=$((n + 1))
        echo $n >/mnt/lost/$n
        mv /mnt/lost/$n /mnt/lost/moved
    done
) &
n=0
while true; do
    n=$((n + 1))
    dd if=/dev/urandom of=/mnt/kept/$n bs=3000 count=$((n * n % 40 + 1)) conv=fsync 2>/dev/null
    echo $n >>/mnt/kept/log
    sync /mnt/kept/log
    sync -d /mnt/kept
    (cd /mnt/kept && md5sum $n) >>/share/kept
    echo "kept $n"
done
