"""Closes the engines that are still open when the interpreter exits."""

from __future__ import annotations

import atexit
import logging
import weakref
from typing import Protocol

_log = logging.getLogger(__name__)


class _Closable(Protocol):
    def close(self) -> None: ...


_open: weakref.WeakSet[_Closable] = weakref.WeakSet()


def close_at_exit(engine: _Closable) -> None:
    """Close an engine when the interpreter exits, if it still exists: a thread inside a runtime would crash.

    Args:
        engine: What to close. It is not kept alive.
    """
    _open.add(engine)
    # One entry for all engines, because entries stay. It is the last one, because the last one runs first:
    # runtimes are imported before a model is opened, and have entries too.
    atexit.unregister(_close_all)
    atexit.register(_close_all)


def _close_all() -> None:
    for engine in list(_open):
        try:
            engine.close()
        except Exception:
            _log.exception('an engine cannot be closed')
