#!/bin/sh
# The device suite on both namespaces, once by each kind of node; where the kernel can be told to
# refuse io_uring (6.6 and later), also without it.
set -e
conformance nvme:/dev/ng0n1 nvme:/dev/nvme0n2
switch=/proc/sys/kernel/io_uring_disabled
if [ -e $switch ]; then
    echo 2 >$switch
    echo 'without io_uring:'
    conformance nvme:/dev/ng0n1
fi
