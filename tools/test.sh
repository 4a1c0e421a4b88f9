#!/usr/bin/env bash
# All test layers, in two streams side by side: those around a cluster mostly wait, those that train mostly compute. Together they
# take as long as the longer one, so tests/vllm, though it computes, comes after the cluster's. The ones that compute are nice, so
# that whatever the others wait for comes promptly. The second stream's output comes when both are done; the exit status is bad if
# either is.
# An argument is a folder for the log of the second stream while it runs (default: a temporary one).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
log=${1:-$(mktemp -d)}/cluster.log
trap 'kill "$cluster" 2>/dev/null; wait "$cluster" 2>/dev/null' EXIT

$python -m pytest -p no:cacheprovider tests/chart tests/cluster tests/e2e tests/vllm > "$log" 2>&1 < /dev/null &
cluster=$!
echo "tests/chart, tests/cluster, tests/e2e and tests/vllm run beside these; their output follows (meanwhile: $log)"
nice -n 5 $python -m pytest tests/unit tests/ray
status=$?
wait "$cluster" || status=$?
cat "$log"
exit "$status"
