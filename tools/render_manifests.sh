#!/usr/bin/env bash
# render_manifests.sh HELM [--check]: writes the manifests for kubectl from the chart, or says whether they are in sync.
#
# They are the chart's default rendering without what only Helm reads, and without the checksum of the configuration, which
# nobody who edits them would keep up. HELM is Helm 3; Helm 4 leaves other blank lines.
# tests/chart runs the check.
set -euo pipefail
helm=$1 check=${2:-}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
namespace=camel-ray-system

render() {   # render TITLE OPTION...
  printf '%s\n' "# Rendered from charts/camel-ray by tools/render_manifests.sh. Do not edit." "# $1" \
    "apiVersion: v1" "kind: Namespace" "metadata:" "  name: $namespace" "  labels:" \
    "    pod-security.kubernetes.io/enforce: restricted"
  "$helm" template camel-ray "$root/charts/camel-ray" --namespace "$namespace" \
    --set crds.keep=false,test.enabled=false "${@:2}" |
    grep -v -e '^# Source: ' -e '^ *helm.sh/chart: ' -e '^ *app.kubernetes.io/managed-by: Helm$' |
    sed '/^ *annotations:$/{N;/\n *checksum\/config: /d}'
}

put() {   # put FILE: writes what comes in, or compares with it
  local text
  text=$(cat)
  if [[ -z $check ]]; then
    printf '%s\n' "$text" >"$root/$1"
  elif [[ $text != "$(cat "$root/$1")" ]]; then
    echo "$1 is not what the chart renders; run tools/render_manifests.sh HELM" >&2
    exit 1
  fi
}

render "kubectl apply --server-side -f manifests/install.yaml" | put manifests/install.yaml
render "Without the CRD, which is manifests/crd.yaml. kustomization.yaml tells more." \
  --set 'watchNamespaces={team-a}',crds.enabled=false | put manifests/overlays/namespaced/operator.yaml
