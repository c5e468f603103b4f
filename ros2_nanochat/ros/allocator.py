"""Tunes the C library's allocator for a process with many threads that runs for months (only glibc).

Each thread that allocates may get its own heap, an "arena", and freed memory stays there: a node with many
threads keeps growing, and does not return the memory of a model that it closed. `malloc_trim` returns the
free end of the main arena only, and that of another one can be tens of megabytes: so there is one arena.

Each thread also keeps up to 0.25 MB of freed blocks. So a node grows a little while its executor starts
threads, and no more when all of them run.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os

_ARENAS = 1
_M_ARENA_MAX = -8  # from malloc.h


def limit_arenas() -> None:
    """Make all threads share one arena, unless the user set `MALLOC_ARENA_MAX` or `GLIBC_TUNABLES`.

    Call this before starting threads, and before importing rclpy, which starts some: arenas stay.
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
