"""Subscriptions whose messages are taken on a thread of their own, as soon as they come.

rclpy's executor goes through all entities of the node before it waits, and each message wakes it three times:
when it comes, when it was taken, and when its callback has returned. In a node with many robots that is a
millisecond each time, during which the work started by the message cannot run.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from rclpy.exceptions import InvalidHandle
from rclpy.guard_condition import GuardCondition
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.subscription import Subscription

from ros2_nanochat.errors import one_line
from ros2_nanochat.ros.allocator import fill_thread_cache
from ros2_nanochat.ros.spinning import Untouched

_LOOK = 1.0  # seconds between two looks at the subscriptions' events
_SETTLE = 0.005  # seconds to wait before rebuilding the wait set, since hundreds of robots may change at once
_PAUSE = 0.1  # seconds after a failure, so that repeated failures do not use the processor


class QuickSubscriptions:
    """Calls the callbacks of subscriptions and of their events one after another. They must return soon.

    The thread runs while there are subscriptions. Can be used from any thread.

    The executor must not wait for the events. With Fast DDS, an untaken message also wakes whoever waits for
    an event of its subscription: the executor would spin until this thread takes the message, and slow this
    thread down. The reverse is true, too: an untaken event wakes this thread.

    Args:
        node: The node.
        name: Name of the thread.
    """

    def __init__(self, node, name: str):
        self._node, self._name = node, name
        self._callbacks: dict[Subscription, Callable[[Any], None]] = {}
        self._changing = threading.Lock()
        self._calling = threading.RLock()  # held while messages are taken and callbacks run
        self._changed: GuardCondition | None = None  # of the thread that runs
        node.context.on_shutdown(self._wake)

    def add(self, kind: type, topic: str, callback: Callable[[Any], None], depth: int, **options):
        """Create a subscription.

        Args:
            kind: Type of the messages.
            topic: Name of the topic.
            callback: Called with each message.
            depth: How many messages the transport keeps.
            options: Further arguments of `create_subscription`.

        Returns:
            The subscription.
        """
        subscription = self._node.create_subscription(
            kind, topic, callback, depth, callback_group=Untouched(), **options
        )
        with self._changing:
            self._callbacks = {**self._callbacks, subscription: callback}
            try:
                self._wake() if self._changed is not None else self._start()
            except BaseException:
                self._forget(subscription)
                raise
        return subscription

    def remove(self, subscription: Subscription) -> None:
        """Destroy a subscription. Its callback may still run, see `wait`."""
        with self._changing:
            self._forget(subscription)
            self._wake()

    def wait(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for running callbacks of removed subscriptions to return."""
        if self._calling.acquire(timeout=timeout):
            self._calling.release()

    def _forget(self, subscription: Subscription) -> None:
        self._callbacks = {each: call for each, call in self._callbacks.items() if each != subscription}
        with suppress(InvalidHandle):
            self._node.destroy_subscription(subscription)

    def _start(self) -> None:
        if not self._node.context.ok():
            return  # no message comes any more
        changed = GuardCondition(None, None, context=self._node.context)
        try:
            threading.Thread(target=self._run, args=(changed,), name=self._name, daemon=True).start()
        except BaseException:
            changed.destroy()
            raise
        self._changed = changed

    def _wake(self) -> None:
        """Let the thread look what has changed. Takes no lock: the context calls it with its own."""
        changed = self._changed
        if changed is not None:
            with suppress(InvalidHandle):  # the thread has just ended
                changed.trigger()

    # --- the thread ---

    def _run(self, changed: GuardCondition) -> None:
        fill_thread_cache()
        while not self._ends(changed):
            try:
                self._wait(changed, self._callbacks)
                time.sleep(_SETTLE)
            except Exception as error:
                if self._node.context.ok():
                    self._log(f'cannot receive questions: {one_line(repr(error))} (retrying)')
                    time.sleep(_PAUSE)

    def _ends(self, changed: GuardCondition) -> bool:
        """Whether the thread has nothing left to do. From then on, `add` starts another one."""
        with self._changing:
            if self._callbacks and self._node.context.ok():
                return False
            self._changed = None
            changed.destroy()
            return True

    def _wait(self, changed: GuardCondition, callbacks: dict[Subscription, Callable]) -> None:
        """Wait for messages and take them, until the subscriptions change."""
        with ExitStack() as held:  # keeps handles alive that another thread destroys meanwhile
            subscriptions = []
            for subscription in callbacks:
                try:
                    held.enter_context(subscription.handle)
                except InvalidHandle:
                    continue
                subscriptions.append(subscription)
            context = self._node.context.handle
            held.enter_context(context)
            held.enter_context(changed.handle)
            wait_set = rclpy_implementation.WaitSet(len(subscriptions), 1, 0, 0, 0, 0, context)
            looked = -math.inf
            while self._callbacks is callbacks and self._node.context.ok():
                wait_set.clear_entities()
                for subscription in subscriptions:
                    wait_set.add_subscription(subscription.handle)
                wait_set.add_guard_condition(changed.handle)
                wait_set.wait(int(_LOOK * 1e9))
                ready = wait_set.get_ready_entities('subscription')
                self._take([each for each in subscriptions if each.handle.pointer in ready])
                # With Fast DDS it may be an event that woke us; other middleware does not wake us for it.
                if not ready or time.monotonic() - looked >= _LOOK:
                    with suppress(InvalidHandle):  # destroyed meanwhile: the others at the next look
                        self._look_at_events(subscriptions, context)
                    looked = time.monotonic()

    def _take(self, subscriptions: Sequence[Subscription]) -> None:
        """Take one message of each, so that a busy topic does not starve the others."""
        with self._calling:
            for subscription in subscriptions:
                callback = self._callbacks.get(subscription)
                taken = callback and subscription.handle.take_message(subscription.msg_type, False)
                if callback is None or taken is None:
                    continue
                self._call(callback, taken[0], subscription.topic_name)

    def _look_at_events(self, subscriptions: Sequence[Subscription], context) -> None:
        """Call the callbacks of what has happened, for example that a publisher has incompatible QoS."""
        with ExitStack() as held:
            handlers = []
            for handler in [each for subscription in subscriptions for each in subscription.event_handlers]:
                with suppress(InvalidHandle):
                    held.enter_context(handler)
                    handlers.append(handler)
            if not handlers:
                return
            wait_set = rclpy_implementation.WaitSet(0, 0, 0, 0, 0, len(handlers), context)
            for handler in handlers:
                handler.add_to_wait_set(wait_set)
            wait_set.wait(0)
            with self._calling:
                for handler in handlers:
                    event = handler.take_data() if handler.is_ready(wait_set) else None
                    if event is not None:
                        self._call(handler.callback, event, 'an event of a subscription')

    def _call(self, callback: Callable[[Any], None], argument: Any, what: str) -> None:
        try:
            callback(argument)
        except BaseException as error:  # the others go on
            self._log(f'{what}: internal error: {one_line(repr(error))}')

    def _log(self, text: str) -> None:
        self._node.get_logger().error(text, throttle_duration_sec=1.0)
