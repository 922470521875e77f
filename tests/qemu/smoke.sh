#!/bin/bash
# Makes, mounts, uses and checks a filesystem; refuses what has to be refused. Runs in the host's
# root.
set -euo pipefail

device=nvme:/dev/ng0n1
refuse() {
    if "$@" >/dev/null 2>&1; then
        echo "accepted: $*" >&2
        exit 1
    fi
}

refuse warren mkfs --size 1G $device
refuse warren mkfs nvme:/dev/nvme0
refuse warren mkfs nvme:/dev/ng9n9
warren mkfs --label guest $device
refuse warren mkfs $device
mkdir /mnt/warren
warren mount $device /mnt/warren
# The namespace is taken: for us, and for whoever mounts or formats block devices.
refuse python3 -c 'import os; os.open("/dev/nvme0n1", os.O_RDWR | os.O_EXCL)'
refuse flock --nonblock --shared /dev/ng0n1 true

cases=(
    names.rename_matrix names.hard_links_are_one_file names.symbolic_links_and_loops
    names.unlinked_files_live_while_they_are_open names.errors_of_paths
    data.odd_offsets_and_sizes data.shared_mappings_and_the_file_are_one
    data.direct_and_buffered_access_agree data.preallocation_and_holes
    data.truncation_never_shows_what_was_cut_off data.ranges_are_copied_inside
    data.every_way_to_sync_works
    attributes.permissions_hold_for_others attributes.times_are_kept_to_the_nanosecond
    locks.fcntl_locks_ranges
)
/run/scripts/tests/run --dir /mnt/warren "${cases[@]}"
# Long transfers, read back from the device.
head -c 80M /dev/urandom >/tmp/data
for round in 1 2 3; do
    cp /tmp/data /mnt/warren/large
    sync /mnt/warren/large
    echo 3 >/proc/sys/vm/drop_caches
    cmp /tmp/data /mnt/warren/large || {
        echo "round $round: the file reads as something else" >&2
        exit 1
    }
done
warren umount /mnt/warren
warren fsck $device
# What is there is not formatted by mistake, and formatted if that is meant.
refuse warren mkfs $device
warren mkfs --force $device
warren fsck $device
