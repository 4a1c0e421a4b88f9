#!/usr/bin/env bash
# Makes .venv in this clone: camel-ray itself, editable, on top of dependencies that all clones of one user share.
# `tools/setup.sh vllm` adds vLLM, and from then on it comes with every refresh.
#
# The dependencies (several GB with torch) live in a virtual environment named after a hash of everything that decides its
# content. It is built under another name and renamed when it is complete, so an interrupted build is never used. Why:
# docs/decisions/0002-one-environment-by-hash.md. Settings: PYTHON (interpreter), CAMEL_RAY_CACHE (directory), PIP_INDEX_URL.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

UV_VERSION=0.13.9   # bootstrapped into the cache; nothing is installed outside of the cache and the clone
cache="${CAMEL_RAY_CACHE:-$HOME/.cache/camel-ray}"

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

find_python() {   # the first interpreter new enough
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    die "Python 3.11 or newer is needed, and ${PYTHON:-python3} is not; install one or set PYTHON to its path"
}

environment_key() {   # hash of: what pyproject.toml asks for, the pins, the interpreter, the machine, the uv
    "$python" - "$UV_VERSION" <<'EOF'
import hashlib, json, sys, sysconfig, tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
wanted = [project["requires-python"], project["dependencies"], project["optional-dependencies"]]
machine = [sys.version, sys.base_prefix, sysconfig.get_platform()]
parts = [wanted, Path("constraints.txt").read_text(), machine, sys.argv[1:]]
print(hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20])
EOF
}

configure_uv() {   # certificates and index as pip on this machine has them
    if [[ -z ${SSL_CERT_FILE:-} && -f /etc/ssl/certs/ca-certificates.crt ]]; then
        export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
    fi
    if [[ -n ${PIP_INDEX_URL:-} && -z ${UV_DEFAULT_INDEX:-} ]]; then
        export UV_DEFAULT_INDEX="$PIP_INDEX_URL"
    fi
    export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}" UV_NO_PROGRESS=1
}

build_uv() {
    say "installing uv $UV_VERSION"
    "$python" -m venv "$uv_home.partial.$$" || die "'$python -m venv' failed; on Debian and Ubuntu install python3-venv"
    "$uv_home.partial.$$/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
    publish "$uv_home.partial.$$" "$uv_home"
}

build_dependencies() {
    local partial="$dependencies.partial.$$"
    say "installing the dependencies into $dependencies (once; minutes)"
    # Relocatable: the scripts find their interpreter after the rename.
    "$uv_home/bin/uv" venv --quiet --relocatable --python "$python" "$partial"
    "$uv_home/bin/uv" pip install --quiet --python "$partial/bin/python" --compile-bytecode \
        --requirements pyproject.toml --all-extras --constraints constraints.txt
    publish "$partial" "$dependencies"
}

build_vllm() {   # --no-deps: the dependencies stay as they are, among them a build of torch that vLLM's own pin does not name
    local partial="$vllm.partial.$$"
    say "installing vLLM into $vllm (once)"
    "$uv_home/bin/uv" pip install --quiet --python "$dependencies/bin/python" --compile-bytecode --no-deps \
        --target "$partial" --requirements constraints-vllm.txt
    publish "$partial" "$vllm"
}

publish() {   # rename a complete directory into place; where another build was faster, keep that one
    "$python" -c 'import os, sys; os.rename(*sys.argv[1:])' "$1" "$2" 2>/dev/null || { [[ -d $2 ]] && rm -rf "$1"; }
}

link_clone() {   # a thin .venv: the shared packages through a .pth file, and camel-ray itself from this clone
    say "linking .venv"
    rm -rf .venv
    "$python" -m venv --without-pip .venv
    local shared here
    shared=$("$dependencies/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    here=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    printf 'import site; site.addsitedir(%s)\n' "'$shared'" > "$here/shared-dependencies.pth"
    "$uv_home/bin/uv" pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
    ln -s "$uv_home/bin/uv" .venv/bin/uv
    printf '%s\n' "$stamp" > .venv/stamp
}

link_vllm() {   # named to be read after shared-dependencies.pth: where both have a package, that one counts
    local here
    here=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    printf 'import site; site.addsitedir(%s)\n' "'$vllm'" > "$here/vllm.pth"
}

python=$(find_python)
key=$(environment_key)
dependencies="$cache/venv-$key"
uv_home="$cache/uv-$UV_VERSION-$("$python" -c 'import sys; print(sys.implementation.cache_tag)')"
# What .venv was made from. Clones move: an editable install knows its directory by name.
stamp="$key $PWD $(cksum < camel_ray/version.py)"
vllm=""
if [[ ${1:-} == vllm ]] || compgen -G ".venv/lib/python*/site-packages/vllm.pth" > /dev/null; then
    vllm="$cache/vllm-$key-$(cksum < constraints-vllm.txt | tr ' ' -)"
fi

linked() { [[ -d $dependencies && -x .venv/bin/python && -f .venv/stamp && $(< .venv/stamp) == "$stamp" ]]; }
vllm_linked() { [[ -z $vllm ]] || { [[ -d $vllm ]] && grep -qsF "'$vllm'" .venv/lib/python*/site-packages/vllm.pth; }; }

linked && vllm_linked && exit 0
mkdir -p "$cache"
configure_uv
if command -v flock > /dev/null; then   # without it two first builds do the work twice, and the second is thrown away
    exec 9> "$cache/lock"
    flock 9
    rm -rf "$cache"/*.partial.*         # left by builds that were killed: nobody else builds while we hold the lock
fi
[[ -d $uv_home ]] || build_uv
[[ -d $dependencies ]] || build_dependencies
[[ -z $vllm || -d $vllm ]] || build_vllm
linked || link_clone
vllm_linked || link_vllm
say "ready: .venv/bin/camel-ray"
