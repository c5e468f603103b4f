#!/usr/bin/env bash
# Runs pytest in the built workspace: tools/test.sh PYTEST-ARGUMENTS... Discovery stays on this machine, in a domain that is probably free.
# With wheels of a second distro only the ROS tests run: the others do not depend on it, and their runtimes are not installed there.
set -euo pipefail
cd "$(dirname "$0")/.."
export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST ROS_DOMAIN_ID=${ROS_DOMAIN_ID:-$((1 + RANDOM % 100))}
. tools/places.sh
if [ -z "$ALL_TESTS" ]; then set -- "$@" test/ros; fi
# The program, not `python -m`, which would put this folder first on the path: the tests run what the build installed.
exec pytest "$@"
