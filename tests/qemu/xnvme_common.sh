#!/bin/bash
# What the cases with libxnvme share. To be sourced, in the host's root.

LD_LIBRARY_PATH=$(cat /run/scripts/libdir)
export LD_LIBRARY_PATH
mkdir /mnt/warren
head -c 24M /dev/urandom >/tmp/data

# refuse WORDS COMMAND.. - it has to fail, and to say WORDS.
refuse() {
    local words=$1 said
    shift
    if said=$("$@" 2>&1); then
        echo "accepted: $*" >&2
        exit 1
    fi
    if [[ $said != *"$words"* ]]; then
        echo "$* does not say '$words' but: $said" >&2
        exit 1
    fi
    echo "refused: $said"
}

# write_and_check URI - fills the mounted filesystem, unmounts it and checks it.
write_and_check() {
    cp /tmp/data /mnt/warren/large
    for n in $(seq 40); do
        echo "$n" >"/mnt/warren/small.$n"
    done
    sync /mnt/warren/large /mnt/warren/small.40
    echo 3 >/proc/sys/vm/drop_caches
    cmp /tmp/data /mnt/warren/large
    warren umount /mnt/warren
    warren fsck "$1"
}

# check_through_kernel NODE - the bytes are those of any other way to the namespace.
check_through_kernel() {
    warren fsck "nvme:$1"
    warren mount -o ro "nvme:$1" /mnt/warren
    cmp /tmp/data /mnt/warren/large
    [ "$(cat /mnt/warren/small.40)" = 40 ]
    warren umount /mnt/warren
}
