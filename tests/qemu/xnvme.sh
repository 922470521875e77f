#!/bin/bash
# Namespaces through libxnvme: the device suite with every engine that can carry out the commands of
# zones, refusals of those that cannot, a filesystem made, used and checked, and the same filesystem
# through passthrough. Runs in the host's root, where the library is.
set -euo pipefail

LD_LIBRARY_PATH=$(cat /run/scripts/libdir)
export LD_LIBRARY_PATH

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

conformance 'xnvme:/dev/ng0n1?async=io_uring_cmd' 'xnvme:/dev/nvme0n2?async=io_uring_cmd&nsid=2'
conformance 'xnvme:/dev/ng0n1?async=thrpool&sync=nvme&admin=nvme' 'xnvme:/dev/ng0n2?async=emu'
conformance xnvme:/dev/ng0n2

for engine in libaio io_uring posix; do
    refuse "the engine of queues '$engine' cannot" conformance "xnvme:/dev/ng0n1?async=$engine"
done
refuse "'nil' answers commands without carrying them out" conformance 'xnvme:/dev/ng0n1?async=nil'
refuse 'an engine cannot carry out' conformance 'xnvme:/dev/ng0n1?sync=psync'
refuse 'has no engine of that name' conformance 'xnvme:/dev/ng0n1?async=warp'
refuse 'it is namespace 1, not 2' conformance 'xnvme:/dev/ng0n1?nsid=2'
refuse 'takes a device node' conformance 'xnvme:0000:00:04.0?be=linux'
refuse 'is no NVMe namespace' conformance xnvme:/dev/nvme0

device=/dev/ng0n3
mkdir /mnt/warren
head -c 24M /dev/urandom >/tmp/data
for engine in io_uring_cmd thrpool; do
    uri="xnvme:$device?async=$engine"
    warren mkfs --force "$uri"
    warren mount "$uri" /mnt/warren
    # Taken: for other instances by either way, and for whoever mounts block devices.
    refuse 'in use' env WARREN_LOG=error conformance "nvme:$device"
    cp /tmp/data /mnt/warren/large
    for n in $(seq 40); do
        echo "$n" >"/mnt/warren/small.$n"
    done
    sync /mnt/warren/large /mnt/warren/small.40
    echo 3 >/proc/sys/vm/drop_caches
    cmp /tmp/data /mnt/warren/large
    warren umount /mnt/warren
    warren fsck "$uri"
    refuse "'nil' answers" warren fsck "xnvme:$device?async=nil"
    # The bytes are those of any other way to the namespace.
    warren fsck "nvme:$device"
    warren mount -o ro "nvme:$device" /mnt/warren
    cmp /tmp/data /mnt/warren/large
    [ "$(cat /mnt/warren/small.40)" = 40 ]
    warren umount /mnt/warren
done
