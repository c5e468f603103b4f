"""Spinning an executor while other threads close what it waits for, and closing an action's end so that the
executor notices nothing.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque

from rclpy.exceptions import InvalidHandle
from rclpy.executors import Executor, ExternalShutdownException, ShutdownException

_AT_ONCE = 50  # exceptions within a second: from then on each is followed by a pause
_PAUSE = 0.1  # seconds
_AT_MOST = 30.0  # seconds of nothing but exceptions: then the executor itself does not work


def spin(executor: Executor, log=None) -> None:
    """Run an executor's callbacks until it, or its context, is shut down. A callback that fails is an error
    in `log` (of rclpy or like it), and the others go on; an executor that fails all the time raises what it
    fails with.
    """
    failures: deque[float] = deque(maxlen=_AT_ONCE)
    storm = math.inf  # when the exceptions that come all the time began
    while True:
        try:
            executor.spin()
        except (ExternalShutdownException, ShutdownException):
            pass
        except Exception as error:
            # An executor that is shut down has given up its nodes before what it wakes itself with; Jazzy's
            # then stumbles over that.
            if executor.context.ok() and executor.get_nodes():
                now = time.monotonic()
                failures.append(now)
                many = len(failures) == _AT_ONCE and now - failures[0] < _AT_ONCE * 2 * _PAUSE
                storm = min(storm, now) if many else math.inf
                if now - storm > _AT_MOST:
                    raise
                # rclpy waits for and calls what another thread destroyed just now: an InvalidHandle or, from
                # an action, another RuntimeError of the C
                # library. That round of waiting is lost, and nothing with it: what came is still there in the
                # next one.
                if log is not None and not isinstance(error, InvalidHandle):
                    log.warning(f'a call failed: {error}') if isinstance(error, RuntimeError) else log.error(
                        f'internal error: {error!r}'
                    )
                if many:
                    time.sleep(_PAUSE)
                continue
        return


def pass_through(node, timeout: float) -> None:
    """Wait until the executor of a node has come to what it had taken before, at most `timeout` seconds."""
    executor, done = node.executor, threading.Event()
    if executor is not None and executor.context.ok() and executor.get_nodes():
        # Twice: the second is begun when all that was handed to a thread before the first one is.
        executor.create_task(lambda: executor.create_task(done.set))
        done.wait(timeout)


def close_action(node, action, timeout: float) -> None:
    """Destroy an ActionServer or ActionClient of a node that somebody may be spinning; waits at most
    `timeout` seconds for the executor.

    Destroyed beside an executor that is just gathering what to wait for, it would end the executor (up to
    Kilted). Taken off the node first, and destroyed as a task of the executor, which runs between two rounds
    of waiting, it meets none.
    """
    try:
        node.remove_waitable(action)
    except ValueError:
        return  # it was closed before
    once, done = threading.Lock(), threading.Event()

    def destroy():
        if once.acquire(blocking=False):
            try:
                action.destroy()
            except (ValueError, InvalidHandle):
                pass  # it takes itself off the node as its last step, where it is no more
            done.set()

    executor = node.executor
    if executor is not None and executor.context.ok() and executor.get_nodes():
        # Twice through the executor: results that were being sent are on their way then.
        executor.create_task(lambda: executor.create_task(destroy))
        done.wait(timeout)
    else:
        destroy()
