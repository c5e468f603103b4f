"""Makes a file or folder in the cache atomically: in a temporary folder, by one process at a time.

The processes that do the work inherit the lock, so it is held until all have ended, even if this process is
killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ros2_nanochat.errors import BackendError

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Aside(NamedTuple):
    """The temporary folder in which something is made, and the file descriptor that holds the lock."""

    folder: str
    lock: int


@contextlib.contextmanager
def making(
    final: str,
    notify: Callable[[str], None],
    replace: bool = False,
    stop: threading.Event | None = None,
) -> Iterator[Aside | None]:
    """Provide a temporary folder in which to make `final`, for one process at a time.

    Args:
        final: The file or folder to make.
        notify: Called with a line of text if another process is at work.
        replace: Make it again even if it exists.
        stop: Set it to wait no longer for another process.

    Yields:
        The folder, which is removed afterwards; None if `final` exists, or with `replace` if another process
        has made it in the meantime.
    """
    root, name = os.path.split(final)
    folder, handle = None, -1
    try:
        os.makedirs(root, exist_ok=True)
        asked, handle = (
            time.time(),
            os.open(os.path.join(root, f'.{name}.lock'), os.O_RDWR | os.O_CREAT, 0o644),
        )
        _lock(handle, lambda: notify(f'waiting for another process that makes {final}'), stop)
        if os.path.exists(final) and not (replace and os.stat(final).st_mtime < asked):
            yield None
            return
        for left in os.listdir(root):  # left by a computer that was switched off, as the lock is ours
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


def _lock(handle: int, wait: Callable[[], None], stop: threading.Event | None) -> None:
    told = False
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                wait()
            told = True
            stop_if_set(stop)
            time.sleep(0.2)


def stop_if_set(stop: threading.Event | None) -> None:
    """Raise a BackendError if the caller no longer wants the model."""
    if stop is not None and stop.is_set():
        raise BackendError('making the model was stopped')


def _what_failed(error: OSError, final: str) -> str:
    place = os.path.dirname(final)
    file = os.fspath(error.filename) if isinstance(error.filename, (str, os.PathLike)) else final
    if error.errno == errno.EFBIG:
        return f'{final} cannot be written: {error.strerror}; {larger_files(place)}'
    if error.errno not in _FULL:
        return (
            f'{file}: {error.strerror or error}; {final} is not made: set XDG_CACHE_HOME to a folder that you'
            ' can write'
        )
    return f'{final} cannot be written: {error.strerror}; {more_room(place)}'


def more_room(folder: str) -> str:
    """Return what to do about a full disk."""
    return f'free some room on the disk of {folder}, or set XDG_CACHE_HOME to a disk that has it'


def larger_files(folder: str) -> str:
    """Return what to do if a file in a folder would be larger than allowed."""
    return (
        f'a file in {folder} would be larger than allowed: raise the limit (ulimit -f), or set XDG_CACHE_HOME'
        ' to a disk that takes larger files'
    )
