#!/usr/bin/env bash
# Runs pytest in the built workspace: tools/test.sh PYTEST-ARGUMENTS... Discovery stays on this machine, in a domain that is probably free.
#
# Without a path, the tests of the library run first, three files at a time, then those of ROS, four at a time (test/ros/conftest.py gives each
# worker a domain of its own): they start many processes, and wait as much as they compute.
# A test that fails runs once more, and the summary says so: several hundred start processes that meet over DDS, on machines that others share.
# With wheels of a second distro only the ROS tests run: the others do not depend on it, and their runtimes are not installed there.
set -euo pipefail
cd "$(dirname "$0")/.."
export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST ROS_DOMAIN_ID=${ROS_DOMAIN_ID:-$((1 + RANDOM % 50))}
. tools/places.sh

# The program, not `python -m`, which would put this folder first on the path: the tests run what the build installed.
for argument in "$@"; do
    if [[ $argument == test/* || $argument == test ]]; then exec pytest --reruns 1 "$@"; fi
done
# test/conftest.py says which files begin.
files=(--reruns 1 --dist loadfile --no-loadscope-reorder)
if [ -z "$ALL_TESTS" ]; then exec pytest "${files[@]}" -n 4 "$@" test/ros; fi

failed=0
# Exit code 5: none of these tests was asked for.
pytest "${files[@]}" -n 3 --ignore=test/ros "$@" test || { code=$?; [ $code = 5 ] || failed=$code; }
pytest "${files[@]}" -n 4 "$@" test/ros || { code=$?; [ $code = 5 ] || failed=$code; }
exit $failed
