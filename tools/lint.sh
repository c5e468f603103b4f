#!/usr/bin/env bash
# What `make lint` checks: the rules and the format of ruff, and the types with mypy. `ruff check --fix .` and `ruff format .` mend most of it.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/places.sh
PATH=$VENV/bin:$PATH
ruff check .
ruff format --check .
mypy
