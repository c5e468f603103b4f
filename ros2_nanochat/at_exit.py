"""Closes what has threads of its own and is still open when the interpreter exits: engines, clients."""

from __future__ import annotations

import atexit
import logging
import os
import weakref
from typing import Protocol

_log = logging.getLogger(__name__)


class _Closable(Protocol):
    def close(self) -> None: ...


_open: weakref.WeakSet[_Closable] = weakref.WeakSet()
if hasattr(os, 'register_at_fork'):  # a forked process has none of the threads, and must not wait for them
    os.register_at_fork(after_in_child=_open.clear)


def close_at_exit(closable: _Closable) -> None:
    """Close something when the interpreter exits, if it still exists: a thread that is then inside a runtime,
    or inside rclpy, would end the process with an error.

    Args:
        closable: What to close. It is not kept alive.
    """
    _open.add(closable)
    # One entry for all of them, because entries stay. It is the last one, because the last one runs first:
    # runtimes are imported before a model is opened, and have entries too.
    atexit.unregister(_close_all)
    atexit.register(_close_all)


def _close_all() -> None:
    for closable in list(_open):
        try:
            closable.close()
        except Exception:
            _log.exception('%s cannot be closed', type(closable).__name__)
