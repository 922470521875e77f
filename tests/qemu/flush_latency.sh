#!/bin/bash
# What a commit of 4 KiB costs on a namespace: with a flush, or as one durable write; as ioctls, or through
# io_uring. Not a case of the tests: docs/devices.md says how to run it. Runs in the host's root.
set -euo pipefail

flush_latency nvme:/dev/ng0n1 "${COMMITS:-500}"
