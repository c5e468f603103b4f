"""Makes a file or folder in the cache whole or not at all: in a folder aside, by one process at a time.

The lock is passed on to what the work starts, so that it is held until all of that has ended, even if the
process itself is killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ros2_nanochat.errors import BackendError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Aside(NamedTuple):
    """Where something is being made. lock: the file descriptor that holds the lock."""

    folder: str
    lock: int


@contextlib.contextmanager
def making(final: str, notify: Callable[[str], None], replace: bool = False) -> Iterator[Aside | None]:
    """A folder aside in which to make `final`, for one process at a time; None if it is there, or with
    `replace` if another process has made it meanwhile. The folder is gone afterwards.
    """
    root, name = os.path.split(final)
    folder, handle = None, -1
    try:
        os.makedirs(root, exist_ok=True)
        asked, handle = (
            time.time(),
            os.open(os.path.join(root, f'.{name}.lock'), os.O_RDWR | os.O_CREAT, 0o644),
        )
        _lock(handle, lambda: notify(f'waiting for another process that makes {final}'))
        if os.path.exists(final) and not (replace and os.stat(final).st_mtime < asked):
            yield None
            return
        for left in os.listdir(root):  # by a computer that was switched off: the lock is ours
            if left.startswith(f'.{name}.making-'):
                shutil.rmtree(os.path.join(root, left), ignore_errors=True)
        folder = tempfile.mkdtemp(prefix=f'.{name}.making-', dir=root)
        yield Aside(folder, handle)
    except OSError as error:
        raise BackendError(_what_failed(error, final)) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if handle >= 0:
            os.close(handle)


def _lock(handle: int, wait: Callable[[], None]) -> None:
    told = False
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                wait()
            told = True
            time.sleep(0.2)


def _what_failed(error: OSError, final: str) -> str:
    place = os.path.dirname(final)
    file = os.fspath(error.filename) if isinstance(error.filename, (str, os.PathLike)) else final
    if error.errno not in _FULL:
        return f'{file}: {error.strerror or error}; {final} is not made'
    return f'{final} cannot be written: {error.strerror}; {more_room(place)}'


def more_room(folder: str) -> str:
    """What to do about a full disk."""
    return f'free some room on the disk of {folder}, or set XDG_CACHE_HOME to a disk that has it'
