#!/usr/bin/env bash
# Run pytest in the built workspace: tools/test.sh PYTEST-ARGUMENTS... Discovery stays on this machine, in a domain that nobody else is likely to use.
# With wheels of a second distro only the tests of ROS run: the others do not depend on it, and their runtimes are not installed there.
set -euo pipefail
cd "$(dirname "$0")/.."
export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST ROS_DOMAIN_ID=${ROS_DOMAIN_ID:-$((1 + RANDOM % 100))}
. tools/places.sh
if [ -z "$ALL_TESTS" ]; then set -- "$@" test/ros; fi
# The program and not `python -m`, which would put this folder first on the path: what is tested is what the build installed.
exec pytest "$@"
