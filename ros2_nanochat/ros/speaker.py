"""Publishes without blocking the publisher for long: a topic that is blocked by its listeners pauses for a
while.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ros2_nanochat.errors import shorten

_FIRST_REST, _LONGEST_REST = 0.5, 10.0  # seconds


class Speaker:
    """Publishes messages of one topic.

    Args:
        publish: Publishes a message.
        name: Name of the topic, for messages.
        closed: Whether the topic is being closed.
    """

    def __init__(self, publish: Callable, name: str, closed: Callable[[], bool]):
        self._publish, self._name, self._closed = publish, name, closed
        self._until, self._rest = 0.0, _FIRST_REST
        self.num_dropped = 0
        """Messages that were not published because the topic was blocked."""

    def __call__(self, *message) -> None:
        """Publish a message, or drop it while the topic pauses.

        A reliable listener that stops reading fills its buffers, and each message would then wait for the
        middleware's time-out.

        Raises:
            RuntimeError: The message cannot be published.
        """
        if self._until and time.monotonic() < self._until:
            self.num_dropped += 1
            return
        try:
            self._publish(*message)
        except Exception as error:
            if self._closed():
                return  # a reply that did not end in time continues while its topics are closed
            self.num_dropped += 1
            self._until = time.monotonic() + self._rest
            self._rest = min(2 * self._rest, _LONGEST_REST)
            raise RuntimeError(
                f'{self._name} cannot be published, a listener may not read what it subscribed to '
                f'({shorten(str(error))}); messages are dropped until it can'
            ) from error
        self._rest = _FIRST_REST
