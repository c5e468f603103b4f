# Sourced by env.sh and tools/setup.sh in the root of the repository: which ROS 2 to use, and its folders.
# Each distro has its own folders, so that several can be installed side by side; Kilted's have the plain names.

if [ -z "${ROS_DISTRO:-}" ]; then
    ROS_DISTRO=kilted
    # If exactly one ROS is installed, use it.
    if [ "$(ls -d /opt/ros/*/setup.bash 2>/dev/null | wc -l)" = 1 ]; then
        ROS_DISTRO=$(basename "$(dirname /opt/ros/*/setup.bash)")
    fi
fi
ROS_PREFIX=${ROS_PREFIX:-/opt/ros/$ROS_DISTRO}
ROS_HERE=
if [ -f "$ROS_PREFIX/setup.bash" ]; then ROS_HERE=yes; fi
suffix=
if [ "$ROS_DISTRO" != kilted ]; then suffix=-$ROS_DISTRO; fi
# A second distro installed from wheels runs only the ROS tests, which need no torch.
ALL_TESTS=yes
if [ -n "$suffix" ] && [ -z "$ROS_HERE" ]; then ALL_TESTS=; fi
VENV=$PWD/.venv$suffix BUILD=$PWD/build$suffix INSTALL=$PWD/install$suffix LOG=$PWD/log$suffix
if [ -z "${PYTHON:-}" ]; then
    if [ -n "$ROS_HERE" ]; then PYTHON=/usr/bin/python3; else PYTHON=$(command -v python3 || echo /usr/bin/python3); fi
fi
