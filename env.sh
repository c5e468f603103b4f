# `source env.sh` (bash or zsh) sets up a shell for the built workspace: Python, ROS 2, our messages and programs. `make setup` builds it.
# ROS_DISTRO=jazzy source env.sh: the workspace of that distro.

_nanochat_root=$(cd "$(dirname "${BASH_SOURCE[0]:-${(%):-%x}}")" && pwd)
_nanochat_places=$(cd "$_nanochat_root" && bash -c '. tools/places.sh; echo "$ROS_DISTRO|$VENV|$INSTALL|${ROS_HERE:+$ROS_PREFIX}"')
IFS='|' read -r ROS_DISTRO _nanochat_venv _nanochat_install _nanochat_ros <<< "$_nanochat_places"
export ROS_DISTRO

if [ ! -f "$_nanochat_install/setup.bash" ]; then
    echo "nanochat is not built for ROS 2 $ROS_DISTRO yet: run  make setup" >&2
    return 1
fi
# The set-up scripts of ROS and colcon read variables that may not be set: suspend the caller's `set -u`.
_nanochat_unset=
case $- in *u*) _nanochat_unset=yes; set +u ;; esac
_nanochat_shell=bash
if [ -n "${ZSH_VERSION:-}" ]; then _nanochat_shell=zsh; fi
if [ -n "$_nanochat_ros" ]; then
    . "$_nanochat_ros/setup.$_nanochat_shell"
else
    # ROS from the package index is in the virtual environment itself.
    case ":${AMENT_PREFIX_PATH:-}:" in *":$_nanochat_venv:"*) ;; *) export AMENT_PREFIX_PATH=$_nanochat_venv${AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH} ;; esac
fi
. "$_nanochat_venv/bin/activate"
. "$_nanochat_install/local_setup.$_nanochat_shell"
if [ -n "$_nanochat_unset" ]; then set -u; fi

# Room for camera frames in Fast DDS's shared memory, see config/fastdds.xml. Up to Jazzy (Fast DDS 2), the variable has its old name.
case $ROS_DISTRO in
    humble|iron|jazzy) export FASTRTPS_DEFAULT_PROFILES_FILE=${FASTRTPS_DEFAULT_PROFILES_FILE:-$_nanochat_root/config/fastdds.xml} ;;
    *) export FASTDDS_DEFAULT_PROFILES_FILE=${FASTDDS_DEFAULT_PROFILES_FILE:-$_nanochat_root/config/fastdds.xml} ;;
esac

unset _nanochat_root _nanochat_places _nanochat_venv _nanochat_install _nanochat_ros _nanochat_shell _nanochat_unset
