"""Spins an executor while other threads make and destroy entities, and closes an action without disturbing
the executor.
"""

from __future__ import annotations

import functools
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup
from rclpy.exceptions import InvalidHandle
from rclpy.executors import Executor, ExternalShutdownException, ShutdownException

_AT_ONCE = 50  # exceptions in a row before each is followed by a pause
_PAUSE = 0.1  # seconds
_LOOK = 0.1  # seconds; longer than a round takes
_AT_MOST = 30.0  # seconds of nothing but exceptions before the executor counts as broken


class Untouched(CallbackGroup):
    """Holds subscriptions that the executor must leave alone, because their owner takes the messages."""

    def can_execute(self, entity):
        return False

    def beginning_execution(self, entity):
        return False

    def ending_execution(self, entity):
        pass


class Forgetting(MutuallyExclusiveCallbackGroup):
    """A group that forgets destroyed entities. rclpy's groups keep a weak reference to each, and the default
    group exists as long as its node.
    """

    def add_entity(self, entity):
        """Called by rclpy for each new entity."""
        self.entities.add(weakref.ref(entity, self.entities.discard))


class Seldom(Forgetting):
    """Holds entities at which the executor looks only now and then, for example the events of publishers:
    each round of waiting looks at everything that it waits for.
    """

    _until = -math.inf

    def look(self) -> None:
        """Let the executor look at them in its next round."""
        self._until = time.monotonic() + _LOOK

    def can_execute(self, entity):
        """Called by rclpy before each round."""
        return time.monotonic() < self._until and super().can_execute(entity)


class MakesMany:
    """A node that makes and destroys entities by the thousand while it spins. Goes before `Node` among the
    bases.
    """

    _making = 0

    @functools.cached_property
    def default_callback_group(self) -> Forgetting:
        """The group of entities that name none, for example the events of publishers."""
        return Forgetting()

    @contextmanager
    def executor_left_alone(self) -> Iterator[None]:
        """Do not wake the executor for each entity: it would look at all the others each time. A timer wakes
        it now and then.
        """
        self._making += 1
        try:
            yield
        finally:
            self._making -= 1
            self._wake_executor()

    def _wake_executor(self) -> None:
        """Called by rclpy for each entity that was made."""
        if not self._making:
            super()._wake_executor()  # type: ignore[misc]


def spin(executor: Executor, log=None) -> None:
    """Run an executor's callbacks until it or its context is shut down.

    A callback that fails is logged, and the others continue. An executor that fails all the time raises its
    exception.

    Args:
        executor: The executor.
        log: A logger, or None.
    """
    failures: deque[float] = deque(maxlen=_AT_ONCE)
    storm = math.inf  # when the current series of exceptions began
    while True:
        try:
            executor.spin()
        except (ExternalShutdownException, ShutdownException):
            pass
        except Exception as error:
            # An executor that is shut down drops its nodes before its guard condition; Jazzy's then raises.
            if executor.context.ok() and executor.get_nodes():
                now = time.monotonic()
                failures.append(now)
                many = len(failures) == _AT_ONCE and now - failures[0] < _AT_ONCE * 2 * _PAUSE
                storm = min(storm, now) if many else math.inf
                if now - storm > _AT_MOST:
                    raise
                # rclpy uses an entity that another thread has just destroyed: an InvalidHandle or, from an
                # action, another RuntimeError of the C library. Only this round of waiting is lost; the
                # messages are still there in the next one.
                if log is not None and not isinstance(error, InvalidHandle):
                    log.warning(f'a call failed: {error}') if isinstance(error, RuntimeError) else log.error(
                        f'internal error: {error!r}'
                    )
                if many:
                    time.sleep(_PAUSE)
                continue
        return


def pass_through(node, timeout: float) -> None:
    """Wait at most `timeout` seconds until a node's executor has run what it had taken before."""
    executor, done = node.executor, threading.Event()
    if executor is not None and executor.context.ok() and executor.get_nodes():
        # Twice: the second starts only after everything that was given to a thread before the first.
        executor.create_task(lambda: executor.create_task(done.set))
        done.wait(timeout)


def close_action(node, action, timeout: float) -> None:
    """Destroy an ActionServer or ActionClient of a node that may be spinning.

    If it were destroyed while the executor collects what to wait for, the executor would fail (up to Kilted).
    So it is removed from the node first, and destroyed by a task that the executor runs between two rounds of
    waiting.

    Args:
        node: The node.
        action: The server or client.
        timeout: Seconds to wait for the executor.
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
                pass  # its last step removes it from the node, which we did already
            done.set()

    executor = node.executor
    if executor is not None and executor.context.ok() and executor.get_nodes():
        # Twice through the executor, so that pending results are sent first.
        executor.create_task(lambda: executor.create_task(destroy))
        done.wait(timeout)
    else:
        destroy()
