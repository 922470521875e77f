#!/bin/bash
# A controller in the hands of libvfn: the device suite, a filesystem made, mounted, used and checked,
# refusals. The kernel's driver has it back at the end, and reads the filesystem. Runs in the host's
# root, where the library is.
set -euo pipefail

LD_LIBRARY_PATH=$(cat /run/scripts/libdir)
export LD_LIBRARY_PATH

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
mkdir /mnt/warren
head -c 24M /dev/urandom >/tmp/data
warren mkfs "$uri"
warren mount "$uri" /mnt/warren
if said=$(conformance "xnvme:$address?nsid=1" 2>&1); then
    echo "a second instance got the controller" >&2
    exit 1
fi
echo "refused: $said"
cp /tmp/data /mnt/warren/large
for n in $(seq 40); do
    echo "$n" >"/mnt/warren/small.$n"
done
sync /mnt/warren/large /mnt/warren/small.40
echo 3 >/proc/sys/vm/drop_caches
cmp /tmp/data /mnt/warren/large
warren umount /mnt/warren
warren fsck "$uri"

give nvme
for _ in $(seq 100); do
    [ -e /dev/ng0n3 ] && break
    sleep 0.1
done
warren fsck nvme:/dev/ng0n3
warren mount -o ro nvme:/dev/ng0n3 /mnt/warren
cmp /tmp/data /mnt/warren/large
[ "$(cat /mnt/warren/small.40)" = 40 ]
warren umount /mnt/warren
