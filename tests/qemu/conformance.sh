#!/bin/sh
# The device suite on both namespaces, once by each kind of node.
exec conformance nvme:/dev/ng0n1 nvme:/dev/nvme0n2
