"""Checks that shared memory has room for Fast DDS, and removes what killed processes left in it: without
room, frames are lost, and the transport's errors do not name the cause.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from pathlib import Path

_FOLDER = '/dev/shm'
_PROFILES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
_SEGMENT = re.compile(r'<segment_size>\s*(\d+)')
_PROCESSES = 2  # at least, with a camera: each has its own segment
_BOOKKEEPING = 1 / 16  # of a segment, which Fast DDS adds to it; and the ports of the process
# The file that the owner of a segment keeps locked (SharedMemManager.hpp of Fast DDS 2 and 3).
_LOCK = re.compile(r'(fastdds|fastrtps)_[0-9a-f]{16}_el')
_YOUNG = 10.0  # seconds: an owner makes the file before it locks it


def shortage(folder: str = _FOLDER) -> str:
    """Return a warning if shared memory is too small or full, '' if it is not or that is unknown.

    Ask before this process takes its segment.
    """
    profile = next((os.environ[name] for name in _PROFILES if os.environ.get(name)), '')
    try:
        segment = max(map(int, _SEGMENT.findall(Path(profile).read_text(encoding='utf-8'))), default=0)
        room = os.statvfs(folder)
    except (OSError, ValueError):
        return ''
    needed = segment * (1 + _BOOKKEEPING)
    size, free = room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize
    if size < _PROCESSES * needed:
        has, advice = f'{size >> 20} MB', 'In a container run with --ipc=host or --shm-size=1g,'
    elif free < needed:
        has = f'{free >> 20} of {size >> 20} MB free'
        advice = 'Make room (fastdds shm clean removes what killed processes left), give it more,'
    else:
        return ''
    return (
        f'{folder} has {has}, and {profile} takes {segment >> 20} MB for each process: camera frames will be'
        f' lost. {advice} or lower segment_size'
    )


def remove_left_segments(folder: str = _FOLDER) -> str:
    """Remove the segments of processes that were killed: each holds tens of megabytes until the next boot.

    A segment counts as left if its lock is free, and is older than a few seconds. Those of other users stay.

    Args:
        folder: Where Fast DDS keeps its segments.

    Returns:
        What was removed as a line for the log, '' for nothing.
    """
    count = freed = 0
    try:
        names = [name for name in os.listdir(folder) if _LOCK.fullmatch(name)]
    except OSError:
        return ''
    for name in names:
        lock, segment = os.path.join(folder, name), os.path.join(folder, name.removesuffix('_el'))
        try:
            with open(lock, 'rb') as held:
                known = os.fstat(held.fileno())
                if known.st_uid != os.getuid() or time.time() - known.st_mtime < _YOUNG:
                    continue
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.exists(segment):
                    size = os.stat(segment).st_blocks * 512
                    os.unlink(segment)
                    count, freed = count + 1, freed + size
                os.unlink(lock)
        except OSError:  # its owner lives, or another process removes it
            continue
    if not count:
        return ''
    what = f'{count} segment{"s" * (count > 1)} of shared memory ({freed >> 20} MB)'
    return f'removed {what} that killed processes left in {folder}'
