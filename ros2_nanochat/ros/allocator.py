"""Tunes the C library's allocator for a process with many threads that runs for months (only glibc).

Each thread that allocates may get its own heap, an "arena", and freed memory stays there: a node with many
threads keeps growing, and does not return the memory of a model that it closed. `malloc_trim` returns the
free end of the main arena only, and that of another one can be tens of megabytes: so there is one arena.

Each thread also keeps some freed blocks of each size, 0.25 to 0.6 MB in all, and the pages in which they lie
cannot be returned. So the executor's threads take theirs when they start, from pages of their own: later,
such blocks would lie all over the memory of a model that is closed. What makes and frees most, the
transitions of the life cycle, has threads of its own: what these keep is freed when they end.

Large blocks, such as a camera's frames, have pages of their own, which go back to the system when they are
freed. By default, glibc puts them into the arena as well once one of them was freed, and an arena keeps what
lies below any block in use.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future

from ros2_nanochat.memory import LARGE_BLOCK

_ARENAS = 1
_CACHED = range(24, 1033, 16)  # bytes of the blocks that a thread keeps
_MOST_OF_A_SIZE = 64  # that are counted; glibc keeps 7 or 16, unless you set `glibc.malloc.tcache_count`
_M_ARENA_MAX, _M_MMAP_THRESHOLD = -8, -3  # from malloc.h


def tune_allocator() -> None:
    """Make all threads share one arena, and give large blocks pages of their own; each unless you set it
    (`MALLOC_ARENA_MAX`, `MALLOC_MMAP_THRESHOLD_`, `GLIBC_TUNABLES`).

    Call this before starting threads, and before importing rclpy, which starts some: arenas stay.
    """
    _set(_M_ARENA_MAX, _ARENAS, 'MALLOC_ARENA_MAX', 'malloc.arena_max')
    _set(_M_MMAP_THRESHOLD, LARGE_BLOCK, 'MALLOC_MMAP_THRESHOLD_', 'malloc.mmap_threshold')


def _set(option: int, value: int, variable: str, tunable: str) -> None:
    if variable in os.environ or tunable in os.environ.get('GLIBC_TUNABLES', ''):
        return
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(option, value)


def fill_thread_cache() -> None:
    """Let this thread take the freed blocks that it keeps, see above. Call this where a thread begins that
    lives as long as the process.
    """
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        malloc, free = libc.malloc, libc.free
        malloc.restype, malloc.argtypes, free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
        count = _cached_of_a_size(malloc, free)
        for block in [malloc(size) for size in _CACHED for _ in range(count)]:
            free(block)


def _cached_of_a_size(malloc: Callable[[int], int], free: Callable[[int], None]) -> int:
    """How many freed blocks of one size a thread keeps. Of these, the last one freed is used first."""
    size = _CACHED[-1]
    blocks = [malloc(size) for _ in range(_MOST_OF_A_SIZE)]
    for block in blocks:
        free(block)
    again = malloc(size)
    free(again)
    return blocks.index(again) + 1 if again in blocks else 0


def on_own_thread(act: Callable[[], object], name: str) -> None:
    """Call a function on a thread of its own, and wait for it.

    Args:
        act: The function.
        name: Name of the thread.

    Raises:
        BaseException: Whatever the function raises.
    """
    done: Future[None] = Future()

    def run() -> None:
        try:
            act()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the system has no thread left
        run()
    else:
        thread.join()
    done.result()


def give_back_memory() -> None:
    """Return freed memory to the system. Call this after closing a model, when its threads have ended."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
