#!/bin/sh
# After the power came back: everything that was synced is there, and the filesystem goes on.
set -e
warren fsck nvme:/dev/zns1
warren mount nvme:/dev/zns1 /mnt
count=$(wc -l </share/kept)
[ "$count" -ge 25 ]
(cd /mnt/kept && md5sum -c /share/kept) | grep -v ': OK$' && exit 1
seq "$count" >/tmp/log
head -n "$count" /mnt/kept/log | cmp - /tmp/log
echo "$count synced files and the log are as they were"
dd if=/dev/urandom of=/mnt/after bs=1M count=20 conv=fsync 2>/dev/null
sum=$(md5sum </mnt/after)
warren umount /mnt
warren fsck nvme:/dev/zns1
warren mount nvme:/dev/zns1 /mnt
[ "$(md5sum </mnt/after)" = "$sum" ]
warren umount /mnt
