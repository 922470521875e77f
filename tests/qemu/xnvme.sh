#!/bin/bash
# Namespaces through libxnvme: the device suite with every engine that can carry out the commands of
# zones, refusals of those that cannot, a filesystem made, used and checked, and the same filesystem
# through passthrough. Runs in the host's root, where the library is.
set -euo pipefail

# shellcheck source=tests/qemu/xnvme_common.sh
. /run/scripts/xnvme_common.sh

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
for engine in io_uring_cmd thrpool; do
    uri="xnvme:$device?async=$engine"
    warren mkfs --force "$uri"
    warren mount "$uri" /mnt/warren
    # Taken: for other instances by either way, and for whoever mounts block devices.
    refuse 'in use' env WARREN_LOG=error conformance "nvme:$device"
    write_and_check "$uri"
    refuse "'nil' answers" warren fsck "xnvme:$device?async=nil"
    check_through_kernel $device
done
