"""The process of a node: runs its executor until it should end, and then shuts everything down in order."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import rclpy
from rclpy.executors import MultiThreadedExecutor

from ros2_nanochat.ros.allocator import fill_thread_cache
from ros2_nanochat.ros.library_log import library_log
from ros2_nanochat.ros.signals import ignore_signals
from ros2_nanochat.ros.spinning import spin

# Threads of the executor. No goal holds one; a reset does while a reply ends, a transition while it lasts.
_THREADS = 32
_START_SECONDS = 5.0  # timeout of the start barrier


def _start_threads(pool: ThreadPoolExecutor) -> None:
    """Start all threads of the executor, with the memory that each keeps.

    By default a thread starts when a callback finds all others busy: over the first half hour of a node,
    which then grows by 0.25 MB with each.
    """
    together = threading.Barrier(_THREADS)
    try:
        for _ in range(_THREADS):
            pool.submit(together.wait, _START_SECONDS)
    except RuntimeError:  # no more threads available: use those that started
        together.abort()


def run_until(done: threading.Event, node) -> int:
    """Run a node until an event is set, shut it down, and return its exit code.

    Args:
        done: The event.
        node: A node with `start()`, `close()`, which returns whether everything has ended, and `exit_code`.
    """
    executor = MultiThreadedExecutor(num_threads=_THREADS)
    executor._executor = ThreadPoolExecutor(_THREADS, initializer=fill_thread_cache)  # instead of its own
    executor.add_node(node)

    def run():
        fill_thread_cache()
        _start_threads(executor._executor)
        try:
            spin(executor, node.get_logger())
        except Exception as error:
            node.exit_code = 1
            node.get_logger().fatal(f'internal error: {error!r}')
        finally:
            done.set()

    spinning = threading.Thread(target=run, name='executor', daemon=True)
    spinning.start()
    with library_log(node.get_logger()):
        node.start()
        done.wait()
        clean = node.close()
    ending = threading.Thread(
        target=executor.shutdown, kwargs={'timeout_sec': 0.3}, name='shutdown', daemon=True
    )  # Kilted's waits for every callback
    ending.start()
    ending.join(0.3)
    spinning.join(0.3)
    leaving = threading.Thread(target=rclpy.try_shutdown, name='leaving', daemon=True)
    leaving.start()  # waits for threads that still open or close something
    leaving.join(1.0)
    ignore_signals()
    sys.stdout.flush()
    sys.stderr.flush()
    if not clean or spinning.is_alive() or ending.is_alive() or leaving.is_alive():
        os._exit(node.exit_code)  # a runtime that ignores abort() must not keep the process alive
    return node.exit_code
