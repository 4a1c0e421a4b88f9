#!/usr/bin/env bash
# enter.sh DIRECTORY ARGUMENTS...: moves into the cgroups that DIRECTORY/cgroups names, and becomes `unshare`, which waits
# for the first process of new namespaces: init.sh with all arguments. Whoever kills either of the two ends everything in
# the node, pods included: the kernel does the rest. rig/node.py calls this; needs root.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
while read -r group; do echo "$$" >"$group/cgroup.procs"; done <"$1/cgroups"
exec unshare --mount --net --pid --cgroup --ipc --uts --fork --kill-child --propagation private "$here/init.sh" "$@"
