"""Prevents two processes from writing one robot's state."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path


class StateLock:
    """A lock on a file, held until `release()` or the end of the process.

    Args:
        path: The file, created if it does not exist.

    Raises:
        ValueError: Another process holds the lock.
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path):
        self._handle: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                owner = os.read(self._handle, 20).decode(errors='replace').strip()
                self.release()
                raise ValueError(
                    f'{path.parent} is used for this robot by another process ({owner or "unknown"}): end it,'
                    ' or give this node another name (-r __node:=...) or another state_dir'
                ) from None
            return  # a file system without locks, some network shares for example
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Release the lock. You may call this twice."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
