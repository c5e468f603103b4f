"""Subscriptions whose messages are taken a batch at a time.

A callback for each message wakes rclpy's executor, which costs more than the message: a hundred tokens a
second would take a noticeable share of a robot's processor from its model. Here the executor never touches
the subscriptions, and the transport keeps the messages until `take()`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.exceptions import InvalidHandle
from rclpy.qos import DurabilityPolicy, QoSProfile

from ros2_nanochat.ros.endpoint_events import no_events
from ros2_nanochat.ros.spinning import Untouched

_AT_ONCE = 2000  # messages of one topic in a batch


class Tap:
    """One subscription.

    Args:
        node: The node.
        kind: Type of the messages.
        topic: Name of the topic.
        receive: Called by `take()` with the messages that have arrived, if there are any.
        depth: How many messages the transport keeps.
        past: Also receive what was published before, as far as the publisher keeps it.
    """

    def __init__(
        self,
        node,
        kind: type,
        topic: str,
        receive: Callable[[list[Any]], None],
        depth: int = 1000,
        past: bool = False,
    ):
        self._node, self._kind, self._receive = node, kind, receive
        self._subscription = node.create_subscription(
            kind,
            topic,
            lambda _: None,  # never called
            QoSProfile(
                depth=depth,
                durability=DurabilityPolicy.TRANSIENT_LOCAL if past else DurabilityPolicy.VOLATILE,
            ),
            callback_group=Untouched(),
            event_callbacks=no_events(),
        )

    def take(self) -> None:
        """Receive what has arrived."""
        messages: list[Any] = []
        try:
            handle = self._subscription.handle
            with handle:
                while len(messages) < _AT_ONCE and (taken := handle.take_message(self._kind, False)):
                    messages.append(taken[0])
        except InvalidHandle:
            return  # the node is being destroyed
        finally:
            if messages:
                self._receive(messages)

    def close(self) -> None:
        """End the subscription."""
        self._node.destroy_subscription(self._subscription)
