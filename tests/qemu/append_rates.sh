#!/bin/bash
# How many appends a namespace takes through passthrough and through libxnvme's engines, in turns. Not
# a case of the tests: docs/devices.md says how to run it. Runs in the host's root.
set -euo pipefail

if [ -e /run/scripts/libdir ]; then
    LD_LIBRARY_PATH=$(cat /run/scripts/libdir)
    export LD_LIBRARY_PATH
fi
append_rates nvme:/dev/ng0n1 'xnvme:/dev/ng0n1?async=io_uring_cmd' 'xnvme:/dev/ng0n1?async=emu' \
    'xnvme:/dev/ng0n1?async=thrpool'
