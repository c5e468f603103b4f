# Sourced by env.sh and tools/setup.sh in the repository's root: which ROS 2 is meant, and the folders that belong to it.
# A distro has folders of its own, so that several live side by side; Kilted's have the plain names.

if [ -z "${ROS_DISTRO:-}" ]; then
    ROS_DISTRO=kilted
    # One installed ROS, and no word about which: that one.
    if [ "$(ls -d /opt/ros/*/setup.bash 2>/dev/null | wc -l)" = 1 ]; then
        ROS_DISTRO=$(basename "$(dirname /opt/ros/*/setup.bash)")
    fi
fi
ROS_PREFIX=${ROS_PREFIX:-/opt/ros/$ROS_DISTRO}
ROS_HERE=
if [ -f "$ROS_PREFIX/setup.bash" ]; then ROS_HERE=yes; fi
suffix=
if [ "$ROS_DISTRO" != kilted ]; then suffix=-$ROS_DISTRO; fi
# A second distro of wheels beside Kilted runs the ROS tests alone, and needs no torch.
ALL_TESTS=yes
if [ -n "$suffix" ] && [ -z "$ROS_HERE" ]; then ALL_TESTS=; fi
VENV=$PWD/.venv$suffix BUILD=$PWD/build$suffix INSTALL=$PWD/install$suffix LOG=$PWD/log$suffix
if [ -z "${PYTHON:-}" ]; then
    if [ -n "$ROS_HERE" ]; then PYTHON=/usr/bin/python3; else PYTHON=$(command -v python3 || echo /usr/bin/python3); fi
fi
