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
        flags = os.O_RDONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        self._handle: int | None = os.open(path, flags, 0o600)
        try:
            self._lock(path)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                owner = os.read(self._handle, 20).decode(errors='replace').strip()
                self.release()
                raise ValueError(
                    f'{path.parent} is used for this robot by another process ({owner or "unknown"}): end it,'
                    ' or give this node another name (-r __node:=...) or another state_dir'
                ) from None
            return  # a file system without locks, some network shares for example
        with open(os.open(path, os.O_WRONLY | os.O_NONBLOCK), 'w') as file:
            file.truncate(0)
            file.write(str(os.getpid()))

    def _lock(self, path: Path) -> None:
        """Lock the file, which stays open only for reading, so that its disk can be mounted read-only."""
        assert self._handle is not None
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            os.close(self._handle)  # NFS locks only files that are open for writing
            self._handle = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self) -> None:
        """Release the lock. You may call this twice."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
