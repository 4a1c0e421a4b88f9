#!/usr/bin/env bash
# build.sh [--find] TOOL...: builds Go tools of the test rig into the cache, and prints the directory of each.
# With --find nothing is built: it fails and names what is missing.
#
# A real Kubernetes comes from its sources, through the Go module proxy: no image and no download of binaries. Cold it
# takes about a quarter of an hour on two cores, so each tool is cached by its version and shared by all clones of this
# user. `build.sh control-plane` stands for what tests/cluster needs, `node` for what tests/e2e needs besides, `helm` for
# what checks and installs the chart and reads its alerts.
set -euo pipefail
export CGO_ENABLED=0 GOFLAGS=-mod=mod GOWORK=off
cache="${CAMEL_RAY_CACHE:-$HOME/.cache/camel-ray}/rig"
declare -A module=(
  [kubernetes]=k8s.io/kubernetes@v1.36.3 [etcd]=go.etcd.io/etcd/server/v3@v3.6.14
  [kueue]=sigs.k8s.io/kueue@v0.19.2 [jobset]=sigs.k8s.io/jobset@v0.12.0
  [trainer]=github.com/kubeflow/trainer/v2@v2.3.0 [kwok]=sigs.k8s.io/kwok@v0.8.0
  [coredns]=github.com/coredns/coredns@v1.15.0 [pause]=@v1
  [helm3]=helm.sh/helm/v3@v3.21.4 [helm4]=helm.sh/helm/v4@v4.2.4
  [kubeconform]=github.com/yannh/kubeconform@v0.8.0 [helm-docs]=github.com/norwoodj/helm-docs@v1.14.2
  [prometheus]=github.com/prometheus/prometheus@v0.316.0
)
# the API of each release that the chart is checked against, as OpenAPI
for release in 1.32.13 1.33.13 1.34.4 1.35.4 1.36.3 1.37.2; do
  module[openapi-${release%.*}]=k8s.io/kubernetes@v$release
done
# tool -> module, package inside it, and manifests to keep beside it
declare -A source=(
  [kube-apiserver]="kubernetes cmd/kube-apiserver" [kube-controller-manager]="kubernetes cmd/kube-controller-manager"
  [kube-scheduler]="kubernetes cmd/kube-scheduler" [kubectl]="kubernetes cmd/kubectl" [etcd]="etcd ."
  [kueue]="kueue cmd/kueue config/components" [jobset]="jobset . config/components"
  [trainer]="trainer cmd/trainer-controller-manager manifests" [kwok]="kwok cmd/kwok kustomize"
  [kubelet]="kubernetes cmd/kubelet" [kube-proxy]="kubernetes cmd/kube-proxy" [coredns]="coredns rig" [pause]="pause ."
  [helm3]="helm3 cmd/helm" [helm4]="helm4 cmd/helm"
  [kubeconform]="kubeconform cmd/kubeconform" [helm-docs]="helm-docs cmd/helm-docs"
  [promtool]="prometheus cmd/promtool"
)
declare -A group=(
  [control-plane]="etcd kubectl kube-apiserver kube-controller-manager kube-scheduler"
  [node]="kubelet kube-proxy coredns pause" [helm]="helm3 helm4 kubeconform helm-docs promtool"
)
for project in "${!module[@]}"; do
  if [[ $project == openapi-* ]]; then
    source[$project]="$project api/openapi-spec/swagger.json" group[helm]+=" $project"
  fi
done
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

die() { printf 'rig: %s\n' "$*" >&2; exit 1; }

version_of() { local at=${module[$1]##*@}; printf '%s' "${at#v}"; }

fetch() {   # the directory of a module's source in Go's own cache
  (cd / && go mod download -json "${module[$1]}") | sed -n 's/.*"Dir": "\(.*\)".*/\1/p'
}

# k8s.io/kubernetes requires its staging modules at v0.0.0: replace each by the published tag of the same release.
kubernetes_module() {
  local version staging directory name
  version=$(version_of kubernetes) staging=v0.${version#*.} directory=$(fetch kubernetes)
  printf 'module rig\n\ngo 1.26.0\n\nrequire k8s.io/kubernetes v%s\n\nreplace (\n' "$version"
  sed -n 's/^\tk8s.io\/\([a-z-]*\) => .\/staging.*/\1/p' "$directory/go.mod" |
    while read -r name; do printf '\tk8s.io/%s => k8s.io/%s %s\n' "$name" "$name" "$staging"; done
  printf ')\n'
}

# What Helm says of itself, and the Kubernetes it takes for granted where it asks no cluster: that of its libraries. Helm 4
# reads the latter from the build itself.
helm_stamps() {   # helm_stamps VERSION GO.MOD
  local major=${1%%.*} minor
  minor=$(sed -n 's|^\tk8s.io/client-go v0\.\([0-9]*\)\..*|\1|p' "$2")
  printf ' -X helm.sh/helm/v%s/internal/version.version=v%s' "$major" "$1"
  if [[ $major == 3 ]]; then
    local package
    for package in lint/rules chartutil; do
      printf ' -X helm.sh/helm/v3/pkg/%s.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/%s.k8sVersionMinor=%s' \
        "$package" "$package" "$minor"
    done
  fi
}

build() {   # build TOOL OUTPUT-DIRECTORY
  local tool=$1 output=$2 project package manifests version flags="-s -w" tags= work
  read -r project package manifests <<<"${source[$tool]}"
  version=$(version_of "$project") work=$(mktemp -d)
  if [[ $tool == pause ]]; then
    gcc -static -Os -s -o "$output/pause" "$here/node/pause.c"
    rmdir "$work"
    return
  fi
  if [[ $tool == openapi-* ]]; then   # one file of a module that is unpacked for nothing else
    (export GOMODCACHE=$work GOFLAGS=-modcacherw && cp "$(fetch "$project")/$package" "$output/$tool")
    rm -rf "$work"
    return
  fi
  if [[ $project == kubernetes ]]; then
    kubernetes_module >"$work/go.mod"
    local stamp=k8s.io/component-base/version
    flags+=" -X $stamp.gitVersion=v$version -X $stamp.gitMajor=${version%%.*}"
    flags+=" -X $stamp.gitMinor=$(cut -d. -f2 <<<"$version")"
    package=k8s.io/kubernetes/$package
  else   # a copy, because a build may complete go.sum
    cp -r "$(fetch "$project")/." "$work" && chmod -R u+w "$work"
    sed -i '/=> \.\.\?\//d' "$work/go.mod"   # neighbours in its repository: the published modules instead
    if [[ $tool == kueue ]]; then   # it reads a certificate from a directory that only root can make
      sed -i 's|"/etc/kueue/metrics/certs"|os.Getenv("KUEUE_CERTIFICATES")|' "$work/cmd/kueue/main.go"
    fi
    if [[ $tool == coredns ]]; then mkdir "$work/rig" && cp "$here/node/coredns.go" "$work/rig/main.go"; fi
    if [[ $tool == promtool ]]; then tags=remove_all_sd; fi   # it discovers nothing: no client of any cloud
    if [[ $tool == helm[34] ]]; then flags+=$(helm_stamps "$version" "$work/go.mod"); fi
    package=./$package
  fi
  (cd "$work" && go build -trimpath -tags "$tags" -ldflags "$flags" -o "$output/$tool" "$package")
  if [[ -n $manifests ]]; then cp -r "$work/$manifests" "$output/manifests"; fi
  chmod -R u+w "$work" && rm -rf "$work"
}

tools=() find=
if [[ ${1:-} == --find ]]; then find=1; shift; fi
for name in "$@"; do
  read -ra members <<<"${group[$name]:-$name}"
  tools+=("${members[@]}")
done
if [[ -n $find ]]; then
  missing=()
  for tool in "${tools[@]}"; do
    [[ -n ${source[$tool]:-} ]] || die "no tool '$tool'; there are ${!source[*]}"
    directory="$cache/$tool-$(version_of "${source[$tool]%% *}")"
    if [[ -d $directory ]]; then printf '%s\n' "$directory"; else missing+=("$tool"); fi
  done
  [[ ${#missing[@]} == 0 ]] || die "not built: ${missing[*]}; run tests/rig/build.sh ${missing[*]}"
  exit
fi
mkdir -p "$cache"
exec 9>"$cache/lock" && flock 9
for tool in "${tools[@]}"; do
  [[ -n ${source[$tool]:-} ]] || die "no tool '$tool'; there are ${!source[*]}"
  project=${source[$tool]%% *} directory="$cache/$tool-$(version_of "$project")"
  if [[ ! -d $directory ]]; then
    if [[ $tool == pause ]]; then compiler=gcc; else compiler=go; fi
    command -v "$compiler" >/dev/null || die "$compiler is needed to build $tool (Go 1.26 or newer, or a C compiler)"
    echo "rig: building $tool $(version_of "$project") (once; minutes)" >&2
    rm -rf "$cache"/*.partial && mkdir "$directory.partial"
    build "$tool" "$directory.partial"
    mv "$directory.partial" "$directory"
  fi
  printf '%s\n' "$directory"
done
