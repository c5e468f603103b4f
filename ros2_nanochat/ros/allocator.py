"""Tunes the C library's allocator for a process with many threads that runs for months (only glibc).

Each thread that allocates may get its own heap, an "arena", and freed memory stays there: a node with many
threads keeps growing, and does not return the memory of a model that it closed.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os

_ARENAS = 2
_M_ARENA_MAX = -8  # from malloc.h


def limit_arenas() -> None:
    """Make all threads share a few arenas, unless the user set `MALLOC_ARENA_MAX` or `GLIBC_TUNABLES`.

    Call this before starting threads.
    """
    if 'MALLOC_ARENA_MAX' in os.environ or 'malloc.arena_max' in os.environ.get('GLIBC_TUNABLES', ''):
        return
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


def give_back_memory() -> None:
    """Return freed memory to the system. Call this after closing a model."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
