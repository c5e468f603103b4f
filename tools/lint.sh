#!/usr/bin/env bash
# What `make lint` runs: the rules and the format of ruff, and mypy. `ruff check --fix .` and `ruff format .` fix most findings.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/places.sh
PATH=$VENV/bin:$PATH
ruff check .
ruff format --check .
mypy
