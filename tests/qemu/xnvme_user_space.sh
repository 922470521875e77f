#!/bin/bash
# A controller in the hands of libvfn: the device suite, a filesystem made, mounted, used and checked,
# refusals. The kernel's driver has it back at the end, and reads the filesystem. Runs in the host's
# root, where the library is.
set -euo pipefail

# shellcheck source=tests/qemu/xnvme_common.sh
. /run/scripts/xnvme_common.sh

address=$(basename "$(readlink /sys/class/nvme/nvme0/device)")
node=/sys/bus/pci/devices/$address
# give DRIVER - hands the controller over.
give() {
    echo "$1" >"$node/driver_override"
    echo "$address" >"$node/driver/unbind"
    echo "$address" >/sys/bus/pci/drivers_probe
    [ "$(basename "$(readlink "$node/driver")")" = "$1" ]
}

if said=$(conformance "xnvme:$address?be=vfio&nsid=99" 2>&1); then
    echo "accepted a namespace that is not there: $said" >&2
    exit 1
fi
if [[ $said == *'this libxnvme has:'* ]]; then
    echo "$said"
    exit 77
fi

# QEMU's IOMMU does not remap interrupts.
echo 1 >/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts
give vfio-pci
ulimit -l unlimited
conformance "xnvme:$address" "xnvme:$address?be=vfio&nsid=2"

uri="xnvme:$address?nsid=3"
warren mkfs "$uri"
warren mount "$uri" /mnt/warren
# A second instance does not get the controller.
refuse '' conformance "xnvme:$address?nsid=1"
write_and_check "$uri"

give nvme
for _ in $(seq 100); do
    [ -e /dev/ng0n3 ] && break
    sleep 0.1
done
check_through_kernel /dev/ng0n3
