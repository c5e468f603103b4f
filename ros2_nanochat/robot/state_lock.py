"""Prevents two processes from writing one robot's state."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from pathlib import Path

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_guard = threading.Lock()
# device and inode of a locked file: its handle, and how many hold it
_held: dict[tuple[int, int], list[int]] = {}


class StateLock:
    """A lock on a file, held until `release()` or the end of the process. Those of one process share it.

    Args:
        path: The file, created if it does not exist.

    Raises:
        ValueError: Another process holds the lock.
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path):
        self._handle: int | None = os.open(path, _READ | os.O_CREAT, 0o600)
        status = os.fstat(self._handle)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._handle)
            raise OSError(errno.EINVAL, 'Not a regular file', str(path))
        self._file = status.st_dev, status.st_ino
        with _guard:
            if self._file in _held:
                os.close(self._handle)
                self._handle = _held[self._file][0]
                _held[self._file][1] += 1
                return
            try:
                self._lock(path)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    owner = os.read(self._handle, 20).decode(errors='replace').strip() or 'unknown'
                    os.close(self._handle)
                    raise ValueError(
                        f'{path.stem.lstrip(".")}: {path.parent} is used for this robot by another process'
                        f' ({owner}): end it, or give this node another name (-r __node:=...) or another'
                        ' state_dir'
                    ) from None
                return  # a file system without locks, some network shares for example
            _held[self._file] = [self._handle, 1]
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
        with _guard:
            handle, self._handle = self._handle, None
            if handle is None:
                return
            entry = _held.get(self._file)
            if entry is not None and entry[0] == handle:
                entry[1] -= 1
                if entry[1]:
                    return
                del _held[self._file]
            os.close(handle)
