"""The C library's allocator in a process of many threads that runs for months (glibc; elsewhere nothing
happens).

Each thread that allocates may get a heap of its own, an "arena", and what is freed in it stays there: a node
with a hundred threads grows by megabytes a minute, and keeps half of a model that it closed.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os

_ARENAS = 2
_M_ARENA_MAX = -8  # of malloc.h


def limit_arenas() -> None:
    """Let all threads share few arenas, unless the user has chosen (`MALLOC_ARENA_MAX`, `GLIBC_TUNABLES`). To
    be called before threads start.
    """
    if 'MALLOC_ARENA_MAX' in os.environ or 'malloc.arena_max' in os.environ.get('GLIBC_TUNABLES', ''):
        return
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


def give_back_memory() -> None:
    """Return what has been freed to the system: after a model was closed."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
