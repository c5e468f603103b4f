"""Checks that shared memory has room for Fast DDS: without it, frames are lost, and the transport's errors do
not name the cause.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_FOLDER = '/dev/shm'
_PROFILES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
_SEGMENT = re.compile(r'<segment_size>\s*(\d+)')
_PROCESSES = 2  # at least, with a camera: each has its own segment


def shortage(folder: str = _FOLDER) -> str:
    """Return a warning if shared memory is too small, '' if it is not or that is unknown."""
    profile = next((os.environ[name] for name in _PROFILES if os.environ.get(name)), '')
    try:
        segment = max(map(int, _SEGMENT.findall(Path(profile).read_text(encoding='utf-8'))), default=0)
        room = os.statvfs(folder)
    except (OSError, ValueError):
        return ''
    size = room.f_blocks * room.f_frsize
    if size >= _PROCESSES * segment:
        return ''
    return (
        f'{folder} has {size >> 20} MB, and {profile} takes {segment >> 20} MB for each process: camera'
        ' frames will be lost. In a container run with --ipc=host or --shm-size=1g, or lower segment_size'
    )
