"""Tunes the C library's allocator for a process with many threads that runs for months (only glibc).

Each thread that allocates may get its own heap, an "arena", and freed memory stays there: a node with many
threads keeps growing, and does not return the memory of a model that it closed. `malloc_trim` returns the
free end of the main arena only, and that of another one can be tens of megabytes: so there is one arena.

Each thread also keeps up to 0.25 MB of freed blocks. So a node grows a little while its executor starts
threads, and no more when all of them run.

Large blocks, such as a camera's frames, have pages of their own, which go back to the system when they are
freed. By default, glibc puts them into the arena as well once one of them was freed, and an arena keeps what
lies below any block in use.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os

_ARENAS = 1
_LARGE = 4 << 20  # bytes
_M_ARENA_MAX, _M_MMAP_THRESHOLD = -8, -3  # from malloc.h


def tune_allocator() -> None:
    """Make all threads share one arena, and give large blocks pages of their own; neither if the user set it
    (`MALLOC_ARENA_MAX`, `MALLOC_MMAP_THRESHOLD_`, `GLIBC_TUNABLES`).

    Call this before starting threads, and before importing rclpy, which starts some: arenas stay.
    """
    _set(_M_ARENA_MAX, _ARENAS, 'MALLOC_ARENA_MAX', 'malloc.arena_max')
    _set(_M_MMAP_THRESHOLD, _LARGE, 'MALLOC_MMAP_THRESHOLD_', 'malloc.mmap_threshold')


def _set(option: int, value: int, variable: str, tunable: str) -> None:
    if variable in os.environ or tunable in os.environ.get('GLIBC_TUNABLES', ''):
        return
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(option, value)


def give_back_memory() -> None:
    """Return freed memory to the system. Call this after closing a model."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
